//! Gradients in half precision: half the bytes, and the rounding of a short significand.
//!
//! Contract: each gradient is rounded, divided by N, rounded again, and summed in the narrow type with a rounding after every addition;
//! too large becomes infinite, as a user of PyTorch's hook would see. Division comes before the sum, so a sum overflows no sooner.
//! Reference: `_compress_hook` of `default_hooks.py`: `buffer.to(dtype).div_(world_size)`, all-reduce, `copy_` back.
use super::{Bucket, HookPlace, Lane};
use crate::backend::{Backend, BackendError, Category, Event, Stream};
use crate::comm::Reduce;
use crate::kernel::Kernel;
use crate::tensor::{Dtype, Span};

pub(super) struct Halves {
    /// The gradient arena over again, in the narrow type.
    narrow: Span,
    divisor: f32,
}

impl Halves {
    pub(super) fn new(
        backend: &mut dyn Backend,
        dtype: Dtype,
        place: &HookPlace<'_>,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            narrow: backend.allocate(Category::Workspace, dtype, place.gradients.len())?,
            divisor: place.world_size as f32,
        })
    }

    pub(super) fn reduce(
        &mut self,
        lane: &mut Lane<'_>,
        gradients: Span,
        bucket: &Bucket,
    ) -> Result<Event, BackendError> {
        let narrow = self.narrow.slice(bucket.range.clone());
        lane.compute(Kernel::Narrow {
            from: gradients,
            to: narrow,
            divisor: self.divisor,
        })?;
        let after = lane.backend.record(Stream::Compute);
        lane.all_reduce(narrow, Reduce::Sum, after)?;
        lane.then(|communication| {
            communication.run(Kernel::Widen {
                from: narrow,
                to: gradients,
            })
        })
    }
}
