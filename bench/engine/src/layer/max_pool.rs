//! Largest element of each window; of equal ones the first in row-major order gets the gradient, as in PyTorch.
use super::{Layer, Result, Step, Wires};
use crate::kernel::{Kernel, Window};
use crate::tensor::Span;

/// A max pooling.
pub struct MaxPool {
    /// Its geometry.
    pub window: Window,
    /// i32, one winner for each element of the output, for the maximum batch.
    pub index: Span,
}

impl Layer for MaxPool {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        step.launch(Kernel::MaxPoolForward {
            x: wires.cut(wires.inputs[0], batch),
            y: wires.cut(wires.output, batch),
            index: wires.cut(self.index, batch),
            window: self.window,
            batch,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        let Some((d_x, write)) = wires.d_input(batch) else {
            return Ok(());
        };
        step.launch(Kernel::MaxPoolBackward {
            d_y: wires.cut(wires.d_output, batch),
            index: wires.cut(self.index, batch),
            d_x,
            window: self.window,
            batch,
            write,
        })
    }

    fn kind(&self) -> &'static str {
        "max-pool"
    }
}
