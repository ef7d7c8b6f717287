//! Batch norm over the samples of all ranks.
//!
//! Forward gathers every rank's `[mean, rstd, count]` and merges them in rank order; backward sums `[Σ dy, Σ dy·(x − μ)]`
//! over the ranks. dγ and dβ stay local: DDP averages them with the other gradients. Ranks may hold different numbers
//! of samples; one without samples sends zeros and takes part. Without ranks, at world size 1 and in evaluation it
//! communicates nothing and is batch norm. Reference: PyTorch's `nn.SyncBatchNorm` (`torch/nn/modules/_functions.py`).
use super::batch::{BatchNorm, Settings, Statistics};
use crate::backend::{Backend, BackendError, Category, Stream};
use crate::comm::Reduce;
use crate::kernel::Kernel;
use crate::layer::{Layer, Mode, NormStatistics, Result, Step, Wires};
use crate::probe::Phase;
use crate::tensor::{Dtype, Span};

/// Batch norm that meets the other ranks.
pub struct SyncBatchNorm {
    settings: Settings,
    /// What it is without ranks.
    alone: BatchNorm,
    /// This rank's statistics, before the merge.
    local: Statistics,
    /// Those of all ranks.
    global: Statistics,
    /// `[mean(C), rstd(C), count(1)]` of this rank.
    packed: Span,
    /// One such block per rank.
    gathered: Span,
}

impl SyncBatchNorm {
    /// Batch norm over at most `world_size` ranks; `max_chunks` matters without ranks.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &mut dyn Backend,
        settings: Settings,
        max_chunks: usize,
        world_size: usize,
    ) -> Result<Self> {
        let alone = BatchNorm::new(backend, settings.clone(), max_chunks)?;
        let kept = Statistics::allocate(backend, settings.channels, 2)?;
        let block = 2 * settings.channels + 1;
        let packed = backend.allocate(Category::Activations, Dtype::F32, block)?;
        let gathered = backend.allocate(Category::Activations, Dtype::F32, block * world_size)?;
        Ok(Self {
            settings,
            alone,
            local: kept[0],
            global: kept[1],
            packed,
            gathered,
        })
    }

    /// Whether this call is one that meets other ranks.
    fn meets(&self, step: &Step<'_>) -> Result<bool> {
        let ranks = step.group.as_ref().map_or(1, |group| group.world_size());
        // What is evaluated, is by each rank alone.
        if step.mode != Mode::Train || ranks == 1 {
            return Ok(false);
        }
        if step.chunks.len() > 1 {
            return Err(BackendError::Unsupported(
                "sync-batch-norm over ranks with several normalization chunks on a rank",
            ));
        }
        Ok(true)
    }

    /// This rank's block of the all-gather.
    fn pack(&self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        if step.batch == 0 {
            return step.launch(Kernel::Fill {
                to: self.packed,
                value: 0.0,
            });
        }
        let samples = 0..step.batch;
        self.settings
            .take_statistics(step, wires, &self.local, samples)?;
        step.launch(Kernel::SyncPack {
            mean: self.local.mean,
            rstd: self.local.rstd,
            count: self.local.count,
            packed: self.packed,
        })
    }

    fn forward_over_ranks(&self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let s = &self.settings;
        self.pack(step, wires)?;
        let packed = step.backend.record(Stream::Compute);
        let Some(group) = step.group.as_deref_mut() else {
            return Ok(());
        };
        let ranks = group.world_size();
        let gathered = self.gathered.first(ranks * self.packed.len());
        let done = group.all_gather(
            step.backend,
            Phase::SyncBatchNorm,
            self.packed,
            gathered,
            packed,
        )?;
        step.backend.wait(Stream::Compute, done)?;
        let Statistics {
            mean,
            variance,
            rstd,
            count,
            ..
        } = self.global;
        step.launch(Kernel::SyncMerge {
            gathered,
            ranks,
            channels: s.channels,
            eps: s.eps,
            mean,
            variance,
            rstd,
            count,
        })?;
        if let Some(update) = s.update_running(&self.global, step.mode) {
            step.launch(update)?;
        }
        if step.batch == 0 {
            return Ok(());
        }
        step.launch(s.normalize(wires, 0..step.batch, [mean, rstd]))
    }

    fn backward_over_ranks(&self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (s, samples) = (&self.settings, 0..step.batch);
        let Statistics {
            mean, rstd, sums, ..
        } = self.global;
        if step.batch == 0 {
            step.launch(Kernel::Fill {
                to: sums,
                value: 0.0,
            })?;
        } else {
            s.pass_shortcut(step, wires)?;
            let whole = samples.clone();
            step.launch(s.backward_reduce(wires, whole, mean, &self.global, s.gate(rstd)))?;
            // Before the all-reduce, which is in place: dγ and dβ are of this rank's sums.
            s.accumulate_affine(step, &self.global)?;
        }
        let reduced = step.backend.record(Stream::Compute);
        let Some(group) = step.group.as_deref_mut() else {
            return Ok(());
        };
        let done = group.all_reduce(
            step.backend,
            Phase::SyncBatchNorm,
            sums,
            Reduce::Sum,
            reduced,
        )?;
        step.backend.wait(Stream::Compute, done)?;
        if step.batch == 0 {
            return Ok(());
        }
        match s.backward_input(wires, samples, &self.global) {
            Some(kernel) => step.launch(kernel),
            None => Ok(()),
        }
    }
}

impl Layer for SyncBatchNorm {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        match self.meets(step)? {
            true => self.forward_over_ranks(step, wires),
            false if step.batch == 0 => Ok(()),
            false => self.alone.forward(step, wires),
        }
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        match self.meets(step)? {
            true => self.backward_over_ranks(step, wires),
            false if step.batch == 0 => Ok(()),
            false => self.alone.backward(step, wires),
        }
    }

    fn statistics(&self) -> Option<NormStatistics<'_>> {
        self.alone.statistics()
    }

    fn kind(&self) -> &'static str {
        "sync-batch-norm"
    }

    fn meets_ranks(&self) -> bool {
        true
    }
}
