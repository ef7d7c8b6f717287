//! Mean over height and width: `[c, h, w]` to `[c]`, as PyTorch's `AdaptiveAvgPool2d(1)` and a flatten.
use super::{Layer, Result, Step, Wires};
use crate::kernel::Kernel;

/// A global average pooling.
pub struct GlobalAveragePool {
    /// Channels.
    pub channels: usize,
    /// Height times width.
    pub spatial: usize,
}

impl Layer for GlobalAveragePool {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (batch, spatial, channels) = (step.batch, self.spatial, self.channels);
        let (x, y) = (
            wires.cut(wires.inputs[0], batch),
            wires.cut(wires.output, batch),
        );
        step.launch(Kernel::GlobalAveragePoolForward {
            x,
            y,
            batch,
            spatial,
            channels,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (batch, spatial, channels) = (step.batch, self.spatial, self.channels);
        let d_y = wires.cut(wires.d_output, batch);
        let Some((d_x, write)) = wires.d_input(batch) else {
            return Ok(());
        };
        step.launch(Kernel::GlobalAveragePoolBackward {
            d_y,
            d_x,
            batch,
            spatial,
            channels,
            write,
        })
    }

    fn kind(&self) -> &'static str {
        "global-average-pool"
    }
}
