//! Mean of each window, as PyTorch's `nn.AvgPool2d`: padding counts as zeros unless it is left out of the divisor too.
use super::{Layer, Result, Step, Wires};
use crate::kernel::{Kernel, Window};

/// An average pooling.
pub struct AveragePool {
    /// Its geometry.
    pub window: Window,
    /// Whether padding counts in the divisor.
    pub count_padding: bool,
}

impl Layer for AveragePool {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        step.launch(Kernel::AveragePoolForward {
            x: wires.cut(wires.inputs[0], batch),
            y: wires.cut(wires.output, batch),
            window: self.window,
            batch,
            count_padding: self.count_padding,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        let Some((d_x, write)) = wires.d_input(batch) else {
            return Ok(());
        };
        step.launch(Kernel::AveragePoolBackward {
            d_y: wires.cut(wires.d_output, batch),
            d_x,
            window: self.window,
            batch,
            count_padding: self.count_padding,
            write,
        })
    }

    fn kind(&self) -> &'static str {
        "average-pool"
    }
}
