//! y = max(x, 0). Backward looks at y, so that x need not be kept; at 0 the gradient is 0, as in PyTorch.
use super::{Layer, Result, Step, Wires};
use crate::kernel::Kernel;

/// A rectifier.
pub struct Relu;

impl Layer for Relu {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (x, y) = (
            wires.cut(wires.inputs[0], step.batch),
            wires.cut(wires.output, step.batch),
        );
        step.launch(Kernel::ReluForward { x, y })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (y, d_y) = (
            wires.cut(wires.output, step.batch),
            wires.cut(wires.d_output, step.batch),
        );
        let Some((d_x, write)) = wires.d_input(step.batch) else {
            return Ok(());
        };
        step.launch(Kernel::ReluBackward { y, d_y, d_x, write })
    }

    fn kind(&self) -> &'static str {
        "relu"
    }
}
