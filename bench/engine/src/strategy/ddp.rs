//! DistributedDataParallel: one rank per device, gradients all-reduced in buckets while backward goes on.
//!
//! This is one rank; whether the others are threads or processes is the communicator's matter. Ranks weigh equally:
//! each gradient is scaled by 1/N, whatever the rank's batch, as in PyTorch. Reference:
//! `torch/nn/parallel/distributed.py` and `torch/csrc/distributed/c10d/reducer.cpp`.
mod fidelity;
mod setup;

pub use fidelity::Fidelity;

use super::bucket::{BucketCaps, Buckets};
use super::graph::Exchange;
use super::graph::exchanging::{self, Rank};
use super::hook::{Bucket, Compression, Hook, HookPlace};
use super::micro_batch::MicroBatch;
use super::ranks::{self, Words, in_order, with_group};
use super::replica::{Replica, ReplicaSettings};
use super::{Evaluation, Result, Strategy};
use crate::backend::cuda::nvtx;
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
    /// Most samples of this rank's micro-batch.
    pub max_batch: usize,
    /// Index of this rank's first sample in a global micro-batch: the samples of the ranks before it.
    pub sample_offset: usize,
    /// Samples of a global micro-batch, of all ranks.
    pub global_batch: usize,
    /// Seed of parameters and dropout masks.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// What PyTorch's constructor takes.
    pub options: DdpOptions,
}

/// Options of [`Ddp`]; the defaults are PyTorch's. They must be equal on all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DdpOptions {
    /// When buckets are closed.
    pub bucket_caps: BucketCaps,
    /// Whether a bucket is reduced as soon as it is full, while backward goes on; otherwise all are, in order, after it.
    pub overlap: bool,
    /// Whether rank 0's buffers are broadcast at all.
    pub broadcast_buffers: bool,
    /// Micro-batches of a step, K.
    pub accumulation: usize,
    /// Whether only a step's last micro-batch reduces gradients. Otherwise each one does, as without PyTorch's `no_sync`:
    /// what is reduced then holds the mean of the micro-batches before it, of which the mean over ranks is itself.
    pub no_sync: bool,
    /// What gradients are exchanged as.
    pub compression: Compression,
}

impl Default for DdpOptions {
    fn default() -> Self {
        Self {
            bucket_caps: BucketCaps::default(),
            overlap: true,
            broadcast_buffers: true,
            accumulation: 1,
            no_sync: true,
            compression: Compression::None,
        }
    }
}

/// One rank.
pub struct Ddp {
    replica: Replica,
    communicator: Box<dyn Communicator>,
    options: DdpOptions,
    buckets: Buckets,
    hook: Hook,
    /// For checked steps: the exact mean, and what was found; empty and none in others.
    exact: Span,
    found: Option<Vec<Fidelity>>,
    sent: [Option<u64>; 2],
    /// Whether the buckets still wait for their rebuild after the first reduction.
    first: bool,
    synchronize: bool,
    /// Whether the next forward begins with rank 0's buffers: the last forward was one of training whose gradients were reduced.
    stale_buffers: bool,
    /// Ends of the all-reduces under way.
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
    /// [`super::StrategyError::Model`] when ranks differ, or a device's or rank's failure.
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
                accumulation: settings.options.accumulation,
                sample_offset: settings.sample_offset,
                global_batch: Some(settings.global_batch),
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
            settings.options.compression,
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
            sent: [Some(0); 2],
            options: settings.options,
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
        let buffers = ddp.options.broadcast_buffers;
        ranks::settle(
            &mut ddp.replica,
            &mut *ddp.communicator,
            &ddp.words,
            buffers,
        )?;
        Ok(ddp)
    }

    fn enqueue_step(&mut self, batch: HostBatch<'_>) -> Result<()> {
        for micro in self.replica.micro_batches(batch) {
            let reduces = self.synchronize && (micro.nth.is_last() || !self.options.no_sync);
            self.replica.host_to_device(&micro)?;
            self.differentiate(&micro, reduces)?;
            if reduces {
                self.compare()?;
                self.rebuild_buckets()?;
            }
        }
        self.replica.optimize()
    }

    /// The gradients of a micro-batch that lies on the device; with `reduces` their mean over the ranks.
    fn differentiate(&mut self, micro: &MicroBatch<'_>, reduces: bool) -> Result<()> {
        self.broadcast_buffers(reduces)?;
        self.forward(micro.len())?;
        self.replica.compute_loss(micro)?;
        self.backward(micro.len(), reduces)?;
        match reduces {
            true => self.wait_for_gradients(),
            false => Ok(()),
        }
    }

    /// Rank 0's buffers for all before a forward, if the last one was of training and its gradients were reduced, as by PyTorch's
    /// `will_sync_module_buffers`; `reduces` says whether those of the coming one will be. With `no_sync` that is once a step.
    fn broadcast_buffers(&mut self, reduces: bool) -> Result<()> {
        let stale = std::mem::replace(&mut self.stale_buffers, reduces);
        if !(self.synchronize && self.options.broadcast_buffers && stale) {
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

    /// Backward node by node. With `reduces`, each bucket's all-reduce starts as soon as its last gradient is enqueued or,
    /// without overlap, when backward is over.
    fn backward(&mut self, len: usize, reduces: bool) -> Result<()> {
        let (mut ready, mut next) = (0, 0);
        self.forget_found();
        let _range = nvtx::range(format_args!("backward"));
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
            if reduces && self.options.overlap {
                next = self.reduce_buckets(next, ready)?;
            }
        }
        self.replica
            .trace
            .close(&mut *self.replica.backend, Phase::Backward, opened);
        if reduces {
            self.reduce_buckets(next, ready)?;
        }
        Ok(())
    }

    /// Reduces the buckets from number `next` whose gradients lie before element `ready`; returns the next one.
    fn reduce_buckets(&mut self, mut next: usize, ready: usize) -> Result<usize> {
        while next < self.buckets.len() && self.buckets.range(next).end <= ready {
            self.reduce_bucket(next)?;
            next += 1;
        }
        Ok(next)
    }

    fn reduce_bucket(&mut self, index: usize) -> Result<()> {
        self.keep_exact(index)?;
        let _range = nvtx::range(format_args!("all-reduce of bucket {index}"));
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
        let _range = nvtx::range(format_args!("step"));
        self.replica.check(&batch, self.replica.max_batch())?;
        self.replica.trace.begin(probe);
        let done = exchanging::step(self, batch);
        self.report(done)?;
        Ok(self.replica.trace.emit(&mut *self.replica.backend, probe)?)
    }

    fn checked_step(&mut self, batch: HostBatch<'_>) -> Result<Vec<Fidelity>> {
        self.step_checked(batch)
    }

    fn master(&mut self) -> &mut Replica {
        &mut self.replica
    }

    fn capture_steps(&mut self) -> Result<()> {
        self.replica.capture_steps()
    }

    /// Off: no all-reduce, no buffers, and SyncBN is local.
    fn set_synchronize(&mut self, on: bool) {
        self.synchronize = on;
    }

    fn evaluate(&mut self, batch: HostBatch<'_>) -> Result<Evaluation> {
        // A forward that is not training does not make the buffers differ.
        let broadcast = self.broadcast_buffers(false);
        self.report(broadcast)?;
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

impl Rank for Ddp {
    fn ends(&mut self) -> (&mut Replica, &mut dyn Communicator) {
        (&mut self.replica, &mut *self.communicator)
    }

    /// Not while the buckets wait for their rebuild, nor in a checked step: both block.
    fn exchange(&self) -> Option<Exchange> {
        let blocks = (self.first && self.synchronize) || self.found.is_some();
        let buffers = self.options.broadcast_buffers && self.stale_buffers;
        (!blocks).then(|| Exchange {
            synchronizes: self.synchronize,
            buffers: self.synchronize && buffers,
            buckets: ranks::hash(self.buckets.ends()),
            stage: self.hook.stage(),
        })
    }

    fn take_step(&mut self, batch: HostBatch<'_>) -> Result<()> {
        self.enqueue_step(batch)
    }

    fn compute(&mut self, micro: &MicroBatch<'_>) -> Result<()> {
        self.differentiate(micro, self.synchronize)?;
        self.replica.update_all()?;
        self.replica.clear_after_update()
    }

    fn pass_over(&mut self) {
        self.stale_buffers = self.synchronize;
        if self.synchronize {
            self.hook.pass_over();
        }
    }
}

impl Drop for Ddp {
    fn drop(&mut self) {
        ranks::abort_in_panic(&*self.communicator);
    }
}
