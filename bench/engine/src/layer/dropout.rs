//! Inverted dropout: y = x·mask/(1−p) in training, the identity in evaluation.
//!
//! The mask is never stored: it is a function of seed, node, step, global sample index and element
//! ([`crate::philox::dropout_counter`]), so backward draws it again, and every strategy and micro-batch draws the same.
use super::{Layer, Result, Step, Wires};
use crate::kernel::{Kernel, Write};
use crate::tensor::Span;

/// A dropout.
pub struct Dropout {
    /// Probability that an element is zeroed.
    pub p: f32,
    /// The trial's seed.
    pub seed: u64,
    /// Index of this node in its program.
    pub node: u32,
}

impl Dropout {
    fn apply(&self, step: &mut Step<'_>, x: Span, y: Span, write: Write) -> Result<()> {
        let (p, seed, node, state, batch) = (
            self.p,
            self.seed,
            self.node,
            step.state.counters,
            step.batch,
        );
        step.launch(match step.mode.drops() {
            true => Kernel::Dropout {
                x,
                y,
                p,
                seed,
                node,
                state,
                batch,
                write,
            },
            false => Kernel::Copy {
                from: x,
                to: y,
                write,
            },
        })
    }
}

impl Layer for Dropout {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (x, y) = (
            wires.cut(wires.inputs[0], step.batch),
            wires.cut(wires.output, step.batch),
        );
        self.apply(step, x, y, Write::Overwrite)
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let d_y = wires.cut(wires.d_output, step.batch);
        let Some((d_x, write)) = wires.d_input(step.batch) else {
            return Ok(());
        };
        self.apply(step, d_y, d_x, write)
    }

    fn kind(&self) -> &'static str {
        "dropout"
    }
}
