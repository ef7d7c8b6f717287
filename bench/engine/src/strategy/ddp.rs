//! DistributedDataParallel: one rank per device, gradients all-reduced in buckets while backward goes on.
//!
//! This is one rank; whether the others are threads or processes is the communicator's matter. Ranks weigh equally:
//! each gradient is scaled by 1/N, whatever the rank's batch, as in PyTorch. Reference:
//! `torch/nn/parallel/distributed.py` and `torch/csrc/distributed/c10d/reducer.cpp`.
mod fidelity;
mod setup;

pub use fidelity::Fidelity;

use super::bucket::Buckets;
use super::hook::{Bucket, Compression, Hook, HookPlace};
use super::ranks::{self, Words, in_order, with_group};
use super::replica::{Replica, ReplicaSettings};
use super::{Evaluation, Result, Strategy};
use crate::backend::{Backend, Category, Event, Stream};
use crate::comm::{Communicator, Count};
use crate::data::HostBatch;
use crate::model::Model;
use crate::optim::OptimizerSettings;
use crate::probe::{Phase, Probe};
use crate::program::NamedTensor;
use crate::tensor::{Dtype, Span};

/// Settings of [`Ddp`].
#[derive(Clone, Debug)]
pub struct DdpSettings {
    /// Most samples of this rank's step.
    pub max_batch: usize,
    /// Index of this rank's first sample in the global batch: the samples of the ranks before it.
    pub sample_offset: usize,
    /// Seed of parameters and dropout masks.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// Cap of a bucket; none for 25 MiB with a first bucket of 1 MiB.
    pub bucket_cap_bytes: Option<usize>,
    /// What gradients are exchanged as.
    pub compression: Compression,
}

/// One rank.
pub struct Ddp {
    replica: Replica,
    communicator: Box<dyn Communicator>,
    sample_offset: usize,
    bucket_cap_bytes: Option<usize>,
    buckets: Buckets,
    hook: Hook,
    /// For checked steps: the exact mean, and what was found; empty and none in others.
    exact: Span,
    found: Option<Vec<Fidelity>>,
    sent: [u64; 2],
    /// Whether the buckets still wait for their rebuild after the first step.
    first: bool,
    synchronize: bool,
    /// Whether the next forward begins with rank 0's buffers: the last training forward synchronized.
    stale_buffers: bool,
    /// Ends of the all-reduces of the present step.
    pending: Vec<Event>,
    words: Words,
    /// i64 `[1 + parameters]`: number of buckets, and their ends.
    layout: Span,
}

impl Ddp {
    /// Builds this rank's replica, checks that all ranks have the same model, and takes over the parameters and
    /// buffers of rank 0. Blocks; every rank must call it.
    ///
    /// # Errors
    /// [`StrategyError::Model`] when ranks differ, or a device's or rank's failure.
    pub fn new(
        mut backend: Box<dyn Backend>,
        communicator: Box<dyn Communicator>,
        model: &Model,
        settings: &DdpSettings,
    ) -> Result<Self> {
        let (rank, world) = (communicator.rank(), communicator.world_size());
        let words = Words::allocate(&mut *backend, world)?;
        let mut replica = Replica::new(
            backend,
            model,
            &ReplicaSettings {
                device: rank,
                max_batch: settings.max_batch,
                loss_batch: settings.max_batch,
                chunks: &[],
                world_size: world,
                seed: settings.seed,
                optimizer: settings.optimizer,
                optimizes: true,
            },
        )?;
        let state = replica.counters();
        let hook = Hook::new(
            &mut *replica.backend,
            settings.compression,
            &HookPlace {
                gradients: replica.program.gradients(),
                parameters: replica.program.table(),
                world_size: world,
                seed: settings.seed,
                state,
            },
        )?;
        let mut ddp = Self {
            buckets: Buckets::unlimited(replica.program.gradients().len()),
            replica,
            communicator,
            hook,
            exact: Span::EMPTY,
            found: None,
            sent: [0; 2],
            sample_offset: settings.sample_offset,
            bucket_cap_bytes: settings.bucket_cap_bytes,
            first: true,
            synchronize: true,
            stale_buffers: true,
            pending: Vec::new(),
            words,
            layout: Span::EMPTY,
        };
        let parameters = ddp.replica.program.table().len();
        ddp.layout =
            ddp.replica
                .backend
                .allocate(Category::Workspace, Dtype::I64, 1 + parameters)?;
        ddp.pending.reserve(parameters);
        ranks::settle(&mut ddp.replica, &mut *ddp.communicator, &ddp.words, true)?;
        Ok(ddp)
    }

    fn take_step(&mut self, batch: HostBatch<'_>) -> Result<()> {
        self.replica.host_to_device(&batch, self.sample_offset)?;
        self.broadcast_buffers()?;
        self.forward(batch.len)?;
        self.replica.compute_loss(batch.len)?;
        self.backward(batch.len)?;
        self.wait_for_gradients()?;
        self.compare()?;
        self.replica.optimize()?;
        self.rebuild_buckets()
    }

    /// Rank 0's buffers for all, if the last training forward synchronized.
    fn broadcast_buffers(&mut self) -> Result<()> {
        let stale = std::mem::replace(&mut self.stale_buffers, self.synchronize);
        if !(self.synchronize && stale) {
            return Ok(());
        }
        ranks::broadcast_buffers(&mut self.replica, &mut *self.communicator)
    }

    fn forward(&mut self, len: usize) -> Result<()> {
        ranks::forward(
            &mut self.replica,
            &mut *self.communicator,
            self.synchronize,
            len,
        )
    }

    /// Backward node by node; each bucket's all-reduce starts as soon as its last gradient is enqueued.
    fn backward(&mut self, len: usize) -> Result<()> {
        self.pending.clear();
        let (mut ready, mut next) = (0, 0);
        let opened = self.replica.trace.open(&mut *self.replica.backend);
        for i in (0..self.replica.program.len()).rev() {
            let Self {
                replica,
                communicator,
                synchronize,
                ..
            } = self;
            with_group(
                replica,
                &mut **communicator,
                *synchronize,
                |replica, group| replica.backward_node(i, len, group),
            )?;
            ready = in_order(ready, self.replica.program.ready_after(i))?;
            while self.synchronize
                && next < self.buckets.len()
                && self.buckets.range(next).end <= ready
            {
                self.reduce_bucket(next)?;
                next += 1;
            }
        }
        self.replica
            .trace
            .close(&mut *self.replica.backend, Phase::Backward, opened);
        Ok(())
    }

    fn reduce_bucket(&mut self, index: usize) -> Result<()> {
        self.keep_exact(index)?;
        let Replica { backend, trace, .. } = &mut self.replica;
        let bucket = Bucket {
            range: self.buckets.range(index),
            index,
            last: index + 1 == self.buckets.len(),
        };
        let event =
            self.hook
                .reduce_traced(&mut **backend, &mut *self.communicator, trace, &bucket)?;
        self.pending.push(event);
        self.count_bucket()
    }

    /// What backward did not hide of the communication is waited for here.
    fn wait_for_gradients(&mut self) -> Result<()> {
        let Replica { backend, trace, .. } = &mut self.replica;
        let opened = trace.open(&mut **backend);
        for event in self.pending.drain(..) {
            backend.wait(Stream::Compute, event)?;
        }
        trace.close(&mut **backend, Phase::Wait, opened);
        Ok(())
    }

    /// What the hook carries from step to step, see [`Hook::export`]. Blocks.
    ///
    /// # Errors
    /// A device's failure.
    pub fn export_compression(&mut self) -> Result<Vec<NamedTensor>> {
        self.hook.export(&mut *self.replica.backend)
    }

    /// The buckets in use: one until the first step is over.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// A failure of this rank ends the job of all.
    fn report<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.communicator.aborter().abort(&error.to_string()))
    }
}

impl Strategy for Ddp {
    fn step(&mut self, batch: HostBatch<'_>, probe: &mut dyn Probe) -> Result<()> {
        self.replica.check(&batch, self.replica.max_batch())?;
        self.replica.trace.start(probe.tracing());
        let done = self.take_step(batch);
        self.report(done)?;
        Ok(self.replica.trace.emit(&mut *self.replica.backend, probe)?)
    }

    fn checked_step(&mut self, batch: HostBatch<'_>) -> Result<Vec<Fidelity>> {
        self.step_checked(batch)
    }

    fn master(&mut self) -> &mut Replica {
        &mut self.replica
    }

    /// Off: no all-reduce, no buffers, and SyncBN is local.
    fn set_synchronize(&mut self, on: bool) {
        self.synchronize = on;
    }

    fn evaluate(&mut self, batch: HostBatch<'_>) -> Result<Evaluation> {
        let broadcast = self.broadcast_buffers();
        self.report(broadcast)?;
        // A forward that is not training does not make the buffers differ.
        self.stale_buffers = false;
        self.replica.evaluate(batch)
    }

    fn import(&mut self, tensors: &[NamedTensor]) -> Result<()> {
        self.stale_buffers = true;
        self.replica.import(tensors)
    }

    fn snapshot(&mut self) -> Result<()> {
        self.replica.snapshot()?;
        self.hook.snapshot(&mut *self.replica.backend)
    }

    fn restore(&mut self) -> Result<()> {
        self.stale_buffers = true;
        self.replica.restore()?;
        self.hook.restore(&mut *self.replica.backend)
    }

    fn parameters_equal(&mut self) -> Result<Option<bool>> {
        ranks::parameters_equal(&mut self.replica, &mut *self.communicator, &self.words).map(Some)
    }

    fn barrier(&mut self) -> Result<()> {
        Ok(self.communicator.barrier()?)
    }

    fn agree(&mut self, value: u64) -> Result<u64> {
        Ok(self.communicator.agree(value)?)
    }

    /// Without what set-up moved, which is no part of a step.
    fn counts(&self) -> Vec<(usize, Count)> {
        ranks::step_counts(&*self.communicator)
    }

    fn reset_counts(&mut self) {
        self.communicator.reset_counts();
    }
}

impl Drop for Ddp {
    fn drop(&mut self) {
        ranks::abort_in_panic(&*self.communicator);
    }
}
