//! How far the gradients that a step uses are from the exact mean of the ranks' gradients.
//!
//! A checked step keeps a copy of each bucket's local gradients before the hook sees them, and reduces it without compression. It is
//! for a pass of its own: it allocates, synchronizes in the midst of the step and is counted under the phase `setup`.
use super::Ddp;
use crate::backend::{Category, Event, Stream};
use crate::comm::{Collective, Reduce};
use crate::data::HostBatch;
use crate::kernel::{Kernel, Write};
use crate::probe::{Phase, Silent};
use crate::strategy::{Result, Strategy};
use crate::tensor::Dtype;

/// Sums over a bucket, or several added up, of the gradients as used (u) and of the exact mean (e).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Fidelity {
    /// Σ (u − e)².
    pub error: f64,
    /// Σ u².
    pub used: f64,
    /// Σ e².
    pub exact: f64,
    /// Σ u·e.
    pub product: f64,
    /// Bytes that this rank sent for u, counted; none where the communicator does not count.
    pub sent_bytes: Option<u64>,
    /// As `sent_bytes`, for e, which was reduced without compression.
    pub uncompressed_bytes: Option<u64>,
}

/// Both, as far as they were counted; what was not counted says nothing against what was.
fn plus(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (counted, None) | (None, counted) => counted,
    }
}

impl Fidelity {
    fn of(used: &[f32], exact: &[f32]) -> Self {
        let each = used.iter().zip(exact).map(|(used, exact)| {
            let (used, exact) = (f64::from(*used), f64::from(*exact));
            Self {
                error: (used - exact).powi(2),
                used: used * used,
                exact: exact * exact,
                product: used * exact,
                ..Self::default()
            }
        });
        each.sum()
    }

    /// ‖u − e‖ / ‖e‖; 0 where both are zero.
    pub fn relative_error(&self) -> f64 {
        if self.error == 0.0 {
            return 0.0;
        }
        (self.error / self.exact).sqrt()
    }

    /// Cosine of the angle between u and e; 1 where both are zero.
    pub fn cosine(&self) -> f64 {
        if self.error == 0.0 {
            return 1.0;
        }
        self.product / (self.used.sqrt() * self.exact.sqrt())
    }
}

impl std::iter::Sum for Fidelity {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            error: sum.error + one.error,
            used: sum.used + one.used,
            exact: sum.exact + one.exact,
            product: sum.product + one.product,
            sent_bytes: plus(sum.sent_bytes, one.sent_bytes),
            uncompressed_bytes: plus(sum.uncompressed_bytes, one.uncompressed_bytes),
        })
    }
}

impl Ddp {
    /// A step as any other, compared.
    pub(super) fn step_checked(&mut self, batch: HostBatch<'_>) -> Result<Vec<Fidelity>> {
        if self.exact.is_empty() {
            let len = self.replica.program.gradients().len();
            let backend = &mut self.replica.backend;
            self.exact = backend.allocate(Category::Workspace, Dtype::F32, len)?;
        }
        self.sent = self.all_reduced()?;
        self.found = Some(Vec::new());
        let done = self.step(batch, &mut Silent);
        let found = self.found.take().unwrap_or_default();
        done.map(|()| found)
    }

    /// Bytes that this rank has sent in all-reduces of gradients as used, and of exact ones; none where that is not counted. Blocks.
    fn all_reduced(&mut self) -> Result<[Option<u64>; 2]> {
        self.replica.backend.synchronize()?;
        let counts = self.communicator.counts();
        let of = |phase| {
            let calls = counts.iter().filter(|count| count.phase == phase);
            let calls = calls.filter(|count| count.collective == Collective::AllReduce);
            calls.map(|count| count.sent_bytes).sum()
        };
        Ok([of(Phase::AllReduce), of(Phase::Setup)])
    }

    /// Before a backward: of several reductions in a step the last one counts, whose gradients the optimizer uses.
    pub(super) fn forget_found(&mut self) {
        if let Some(found) = &mut self.found {
            found.clear();
        }
    }

    /// After the hook: counts what it and the exact reduction sent for the bucket.
    pub(super) fn count_bucket(&mut self) -> Result<()> {
        if self.found.is_none() {
            return Ok(());
        }
        let now = self.all_reduced()?;
        let before = std::mem::replace(&mut self.sent, now);
        let more = |which: usize| Some(now[which]? - before[which]?);
        if let Some(found) = &mut self.found {
            found.push(Fidelity {
                sent_bytes: more(0),
                uncompressed_bytes: more(1),
                ..Fidelity::default()
            });
        }
        Ok(())
    }

    /// Before the hook: reduces a copy of the bucket's gradients.
    pub(super) fn keep_exact(&mut self, index: usize) -> Result<()> {
        if self.found.is_none() {
            return Ok(());
        }
        let range = self.buckets.range(index);
        let (from, to) = (
            self.replica.program.gradients().slice(range.clone()),
            self.exact.slice(range),
        );
        let backend = &mut *self.replica.backend;
        let write = Write::Overwrite;
        backend.launch(Stream::Compute, Kernel::Copy { from, to, write })?;
        let after = backend.record(Stream::Compute);
        let mean = Reduce::ScaledSum(1.0 / self.communicator.world_size() as f32);
        let communicator = &mut self.communicator;
        let _: Event = communicator.all_reduce(backend, Phase::Setup, to, mean, after)?;
        Ok(())
    }

    /// After the reduction: compares. Blocks.
    pub(super) fn compare(&mut self) -> Result<()> {
        if self.found.is_none() {
            return Ok(());
        }
        let used = self.replica.download(self.replica.program.gradients())?;
        let exact = self.replica.download(self.exact)?;
        for (index, found) in self.found.iter_mut().flatten().enumerate() {
            let range = self.buckets.range(index);
            let compared = Fidelity::of(&used[range.clone()], &exact[range]);
            *found = [*found, compared].into_iter().sum();
        }
        Ok(())
    }
}
