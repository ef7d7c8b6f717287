//! The end of a residual block: y = body + shortcut.
//!
//! Where a branch's value is used by nobody else, the program lets its gradient be the output's gradient, and its
//! `d_inputs` is none; see [`crate::program`].
use super::{Layer, Result, Step, Wires};
use crate::kernel::Kernel;

/// An addition of two values.
pub struct Residual;

impl Layer for Residual {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let [a, b] = [0, 1].map(|branch| wires.cut(wires.inputs[branch], step.batch));
        step.launch(Kernel::Add {
            a,
            b,
            to: wires.cut(wires.output, step.batch),
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let from = wires.cut(wires.d_output, step.batch);
        for (d_x, write) in wires.d_inputs.iter().flatten() {
            step.launch(Kernel::Copy {
                from,
                to: wires.cut(*d_x, step.batch),
                write: *write,
            })?;
        }
        Ok(())
    }

    fn kind(&self) -> &'static str {
        "residual"
    }
}
