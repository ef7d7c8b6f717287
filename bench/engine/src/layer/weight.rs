//! A weight as products read it: as the optimizer keeps it, or rounded to the type of the values that it meets.
//!
//! Where values are narrower than f32, a forward rounds the weight once, and its backward reads what that left: as PyTorch's autocast, which
//! keeps what it has rounded until the step's end. The optimizer never sees the rounded one.
use super::{Result, Step};
use crate::kernel::Kernel;
use crate::tensor::Span;

/// A weight of a linear layer or a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Weight {
    /// f32, the optimizer's.
    master: Span,
    /// Of the type of values; empty where that is f32.
    narrowed: Span,
}

impl Weight {
    /// The weight `master`, which is rounded to `narrowed` before it is used, unless that is empty.
    pub const fn new(master: Span, narrowed: Span) -> Self {
        Self { master, narrowed }
    }

    /// Enqueues what makes it ready for a forward and its backward.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn prepare(&self, step: &mut Step<'_>) -> Result<()> {
        if self.narrowed.is_empty() {
            return Ok(());
        }
        step.launch(Kernel::Narrow {
            from: self.master,
            to: self.narrowed,
            divisor: 1.0,
        })
    }

    /// What products read.
    pub const fn span(&self) -> Span {
        if self.narrowed.is_empty() {
            self.master
        } else {
            self.narrowed
        }
    }
}
