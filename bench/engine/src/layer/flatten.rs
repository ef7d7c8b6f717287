//! `[c, h, w]` to `[c·h·w]`, channel-major as in PyTorch: in memory a transpose from NHWC.
//!
//! A flatten that moves nothing never becomes a layer: see [`crate::model::resolve()`].
use super::{Layer, Result, Step, Wires};
use crate::kernel::{Kernel, Write};

/// A flatten.
pub struct Flatten {
    /// Channels.
    pub channels: usize,
    /// Height times width.
    pub spatial: usize,
}

impl Layer for Flatten {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        let (from, to) = (
            wires.cut(wires.inputs[0], batch),
            wires.cut(wires.output, batch),
        );
        let (rows, columns) = (self.spatial, self.channels);
        step.launch(Kernel::Transpose {
            from,
            to,
            batch,
            rows,
            columns,
            write: Write::Overwrite,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        let from = wires.cut(wires.d_output, batch);
        let Some((to, write)) = wires.d_input(batch) else {
            return Ok(());
        };
        let (rows, columns) = (self.channels, self.spatial);
        step.launch(Kernel::Transpose {
            from,
            to,
            batch,
            rows,
            columns,
            write,
        })
    }

    fn kind(&self) -> &'static str {
        "flatten"
    }
}
