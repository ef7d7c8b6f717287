//! y = x + a learned vector for each position, `[length, features]`: BERT's position embeddings.
//!
//! In memory a sample is `[length, features]` too, so that the vectors are a bias of whole samples.
use super::{Layer, Result, Step, Wires};
use crate::kernel::{Kernel, Write};
use crate::tensor::Span;

/// Learned positions.
pub struct Positions {
    /// `[length, features]`.
    pub weight: Span,
    /// Its gradient.
    pub d_weight: Span,
}

impl Layer for Positions {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let y = wires.cut(wires.output, step.batch);
        step.launch(Kernel::Copy {
            from: wires.cut(wires.inputs[0], step.batch),
            to: y,
            write: Write::Overwrite,
        })?;
        step.launch(Kernel::AddBias {
            y,
            bias: self.weight,
            rows: step.batch,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let d_y = wires.cut(wires.d_output, step.batch);
        step.launch(Kernel::BiasBackward {
            d_y,
            d_bias: self.d_weight,
            rows: step.batch,
        })?;
        match wires.d_input(step.batch) {
            Some((to, write)) => step.launch(Kernel::Copy {
                from: d_y,
                to,
                write,
            }),
            None => Ok(()),
        }
    }

    fn kind(&self) -> &'static str {
        "positions"
    }
}
