//! Gradient accumulation: a step's batch is cut into K micro-batches, whose gradients add up to one update.
//!
//! Micro-batch k of a batch of K·b samples is samples k·b to (k + 1)·b of it. Its loss and gradients are divided by K, so the
//! sum over a step is the mean; batch statistics are those of a micro-batch, and running statistics move K times. A strategy
//! goes through [`Replica::micro_batches`], hands each to [`Replica::host_to_device`] and [`Replica::compute_loss`] (or, where
//! it computes the loss itself, uses [`Nth::loss_scale`] and [`Replica::report`]), and optimizes after the last.
//! Reference: `DistributedDataParallel.no_sync` in `torch/nn/parallel/distributed.py`, and the notes on it.
use super::replica::Replica;
use crate::backend::{BackendError, Stream};
use crate::data::HostBatch;
use crate::kernel::{Kernel, Write};
use crate::tensor::Span;

/// One micro-batch of a step, or the part of it that one replica takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct MicroBatch<'a> {
    /// Its samples.
    pub(super) samples: HostBatch<'a>,
    /// Which one of the step's it is.
    pub(super) nth: Nth,
    /// Index of its first sample among all of the step: what dropout masks are drawn by.
    pub(super) offset: usize,
}

/// Micro-batch number `index` of `count`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nth {
    /// From 0 to K − 1.
    index: usize,
    /// K.
    count: usize,
}

impl MicroBatch<'_> {
    /// Number of its samples.
    pub(super) fn len(&self) -> usize {
        self.samples.len
    }
}

impl Nth {
    /// Whether an update follows it.
    pub(super) fn is_last(&self) -> bool {
        self.index + 1 == self.count
    }

    /// What the mean over `samples` of its samples, as a part of the step's mean, multiplies their sum by: 1/(K·samples).
    pub(super) fn loss_scale(&self, samples: usize) -> f32 {
        1.0 / (self.count * samples) as f32
    }
}

impl Replica {
    /// The micro-batches of a step, in order. `batch` has passed [`Replica::check`].
    pub(super) fn micro_batches<'a>(
        &self,
        batch: HostBatch<'a>,
    ) -> impl Iterator<Item = MicroBatch<'a>> + use<'a> {
        let count = self.accumulation;
        let (len, first) = (batch.len / count, self.sample_offset);
        let global = self.global_batch.unwrap_or(len);
        (0..count).map(move |index| MicroBatch {
            samples: batch.part(index * len..(index + 1) * len),
            nth: Nth { index, count },
            offset: index * global + first,
        })
    }

    /// Adds the loss of a micro-batch, which [`Nth::loss_scale`] has divided, to what is reported of the step.
    pub(super) fn report(&mut self, loss: Span, nth: Nth) -> std::result::Result<(), BackendError> {
        if nth.count == 1 {
            self.reported = loss;
            return Ok(());
        }
        self.reported = self.summed_loss;
        let write = match nth.index {
            0 => Write::Overwrite,
            _ => Write::Accumulate,
        };
        let sum = Kernel::Copy {
            from: loss,
            to: self.summed_loss,
            write,
        };
        self.backend.launch(Stream::Compute, sum)
    }
}
