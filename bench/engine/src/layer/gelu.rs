//! y = x·Φ(x), the Gaussian error linear unit, or its tanh approximation. Backward looks at x. As PyTorch's `nn.GELU`.
use super::{Layer, Result, Step, Wires};
use crate::kernel::{Gelu as Formula, Kernel};

/// A Gaussian error linear unit.
pub struct Gelu {
    /// Exact, or the approximation.
    pub formula: Formula,
}

impl Layer for Gelu {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        step.launch(Kernel::GeluForward {
            x: wires.cut(wires.inputs[0], step.batch),
            y: wires.cut(wires.output, step.batch),
            formula: self.formula,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let Some((d_x, write)) = wires.d_input(step.batch) else {
            return Ok(());
        };
        step.launch(Kernel::GeluBackward {
            x: wires.cut(wires.inputs[0], step.batch),
            d_y: wires.cut(wires.d_output, step.batch),
            d_x,
            formula: self.formula,
            write,
        })
    }

    fn kind(&self) -> &'static str {
        "gelu"
    }
}
