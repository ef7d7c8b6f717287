//! Normalization layers: batch, batch over all ranks, group (layer norm is the case of one group, instance norm that of a
//! group per channel), and RMS.
//!
//! What each computes is in METHODOLOGY.md, "Norms". Batch norm takes its statistics per chunk of the step's chunk list; the
//! others do not look at it.
pub mod batch;
pub mod group;
mod kept;
mod library;
pub mod rms;
pub mod sync_batch;

use std::ops::Range;

use crate::kernel::{Kernel, Then};
use crate::layer::{Result, Step, Wires};
use crate::tensor::Span;

/// What of the nodes behind it a norm does itself. The shortcut of an addition is its second input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    #[default]
    None,
    /// y = max(norm, 0).
    Relu,
    /// y = max(norm + shortcut, 0).
    AddRelu,
}

impl Tail {
    /// What the forward kernel does behind the norm, for some samples.
    fn then(self, wires: &Wires, samples: Range<usize>) -> Then {
        Then {
            shortcut: match self {
                Self::AddRelu => wires.part(wires.inputs[1], samples),
                Self::None | Self::Relu => Span::EMPTY,
            },
            relu: self != Self::None,
        }
    }

    /// The rectified output of a batch; empty without a rectifier.
    fn rectified(self, wires: &Wires, batch: usize) -> Span {
        match self {
            Self::None => Span::EMPTY,
            Self::Relu | Self::AddRelu => wires.cut(wires.output, batch),
        }
    }

    /// Enqueues that the output's gradient goes through the rectifier, if there is one.
    fn gate(self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (y, d_y) = (
            self.rectified(wires, step.batch),
            wires.cut(wires.d_output, step.batch),
        );
        if y.is_empty() {
            return Ok(());
        }
        step.launch(Kernel::Gate { y, d_y })
    }

    /// Enqueues the shortcut's gradient, which is the output's behind the rectifier, unless it lies there already.
    fn pass_on(self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let Some(Some((to, write))) = wires.d_inputs.get(1) else {
            return Ok(());
        };
        step.launch(Kernel::Copy {
            from: wires.cut(wires.d_output, step.batch),
            to: wires.cut(*to, step.batch),
            write: *write,
        })
    }
}
