//! ZeRO-1: as DistributedDataParallel, with the optimizer's state sharded over the ranks.
//!
//! Each bucket of gradients is reduce-scattered while backward goes on, each rank updates its shard of the bucket's
//! parameters, and the shards are all-gathered while later buckets are updated. Together that moves what an all-reduce
//! would; the optimizer's state, and its work, are divided by N. Ranks weigh equally: a gradient is scaled by 1/N. Reference:
//! Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020, stage 1; PyTorch's
//! `torch.distributed.optim.ZeroRedundancyOptimizer` makes the same updates with whole parameters for shards.
mod state;

use std::ops::Range;

use super::bucket::{BucketCaps, Buckets};
use super::graph::Exchange;
use super::graph::exchanging::{self, Rank};
use super::micro_batch::MicroBatch;
use super::ranks::{self, Words, in_order, with_group};
use super::replica::{Replica, ReplicaSettings};
use super::{Evaluation, Result, Strategy, StrategyError};
use crate::backend::cuda::nvtx;
use crate::backend::{Backend, Event, Stream};
use crate::comm::{Communicator, Count, Reduce, chunk};
use crate::data::HostBatch;
use crate::model::Model;
use crate::optim::OptimizerSettings;
use crate::probe::{Phase, Probe, now_ns};
use crate::program::{NamedTensor, Program};

/// Settings of [`Zero1`].
#[derive(Clone, Debug)]
pub struct Zero1Settings {
    /// Most samples of this rank's micro-batch.
    pub max_batch: usize,
    /// Index of this rank's first sample in a global micro-batch: the samples of the ranks before it.
    pub sample_offset: usize,
    /// Samples of a global micro-batch, of all ranks.
    pub global_batch: usize,
    /// Micro-batches of a step, K; equal on all ranks. Only the last one's gradients are reduced, as with DDP's `no_sync`: a rank
    /// keeps the mean of its shard alone, so the others' gradients could not be added to.
    pub accumulation: usize,
    /// Seed of parameters and dropout masks.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// When buckets are closed, as DDP's; equal on all ranks.
    pub bucket_caps: BucketCaps,
    /// Whether rank 0's buffers are broadcast at all.
    pub broadcast_buffers: bool,
}

/// One rank.
pub struct Zero1 {
    replica: Replica,
    communicator: Box<dyn Communicator>,
    /// Fixed from the start, because the optimizer's state lies by them; each is divisible by the number of ranks.
    buckets: Buckets,
    broadcasts_buffers: bool,
    synchronize: bool,
    /// Whether the next forward begins with rank 0's buffers: the last forward was one of training whose gradients were reduced.
    stale_buffers: bool,
    /// Ends of the collectives of the present step, by bucket: of the reduce-scatters, then of the all-gathers.
    pending: Vec<Event>,
    words: Words,
}

impl Zero1 {
    /// Builds this rank's replica and its shards of the optimizer, checks that all ranks have the same model and buckets,
    /// and takes over the parameters and buffers of rank 0. Blocks; every rank must call it.
    ///
    /// # Errors
    /// [`StrategyError::Model`] or [`StrategyError::Buckets`] when ranks differ, or a device's or rank's failure.
    pub fn new(
        mut backend: Box<dyn Backend>,
        communicator: Box<dyn Communicator>,
        model: &Model,
        settings: &Zero1Settings,
    ) -> Result<Self> {
        let (rank, world) = (communicator.rank(), communicator.world_size());
        let words = Words::allocate(&mut *backend, world)?;
        let replica = ReplicaSettings {
            device: rank,
            max_batch: settings.max_batch,
            loss_batch: settings.max_batch,
            accumulation: settings.accumulation,
            sample_offset: settings.sample_offset,
            global_batch: Some(settings.global_batch),
            chunks: &[],
            world_size: world,
            seed: settings.seed,
            optimizer: settings.optimizer,
            optimizes: false,
        };
        let replica = Replica::sharded(backend, model, &replica, world)?;
        let buckets = sharded_buckets(&replica.program, settings.bucket_caps, world);
        let mut zero1 = Self {
            replica,
            communicator,
            pending: Vec::with_capacity(buckets.len()),
            buckets,
            broadcasts_buffers: settings.broadcast_buffers,
            synchronize: true,
            stale_buffers: true,
            words,
        };
        zero1.settle()?;
        for index in 0..zero1.buckets.len() {
            let shard = zero1.shard(index);
            zero1.replica.optimize_range(shard, settings.optimizer)?;
        }
        Ok(zero1)
    }

    fn settle(&mut self) -> Result<()> {
        let (replica, communicator) = (&mut self.replica, &mut *self.communicator);
        ranks::settle(replica, communicator, &self.words, self.broadcasts_buffers)?;
        let own = ranks::hash(self.buckets.ends());
        let all = self
            .words
            .exchange(&mut *replica.backend, communicator, own)?;
        let Some(rank) = all.iter().position(|theirs| *theirs != all[0]) else {
            return Ok(());
        };
        let error = StrategyError::Buckets { rank };
        communicator.aborter().abort(&error.to_string());
        Err(error)
    }

    /// This rank's parameters of bucket `index`: its part, without the padding at the end of the arena.
    fn shard(&self, index: usize) -> Range<usize> {
        let (bucket, elements) = (
            self.buckets.range(index),
            self.replica.program.parameters().len(),
        );
        let part = chunk(
            bucket.len(),
            self.communicator.world_size(),
            self.communicator.rank(),
        );
        (bucket.start + part.start).min(elements)..(bucket.start + part.end).min(elements)
    }

    fn enqueue_step(&mut self, batch: HostBatch<'_>) -> Result<()> {
        for micro in self.replica.micro_batches(batch) {
            let reduces = self.synchronize && micro.nth.is_last();
            self.replica.host_to_device(&micro)?;
            self.differentiate(&micro, reduces)?;
        }
        self.replica.upload_rate()?;
        self.update()?;
        self.replica.step += 1;
        Ok(())
    }

    /// The gradients of a micro-batch that lies on the device; with `reduces` their mean over the ranks is under way.
    fn differentiate(&mut self, micro: &MicroBatch<'_>, reduces: bool) -> Result<()> {
        self.broadcast_buffers(reduces)?;
        ranks::forward(
            &mut self.replica,
            &mut *self.communicator,
            self.synchronize,
            micro.len(),
        )?;
        self.replica.compute_loss(micro)?;
        self.backward(micro.len(), reduces)
    }

    /// Rank 0's buffers for all before a forward, if the last one was of training and its gradients were reduced; `reduces` says whether
    /// those of the coming one will be.
    fn broadcast_buffers(&mut self, reduces: bool) -> Result<()> {
        let stale = std::mem::replace(&mut self.stale_buffers, reduces);
        if !(self.synchronize && self.broadcasts_buffers && stale) {
            return Ok(());
        }
        ranks::broadcast_buffers(&mut self.replica, &mut *self.communicator)
    }

    /// Backward node by node. With `reduces`, each bucket's reduce-scatter starts as soon as its last gradient is enqueued.
    fn backward(&mut self, len: usize, reduces: bool) -> Result<()> {
        self.pending.clear();
        let elements = self.replica.program.parameters().len();
        let (mut ready, mut next) = (0, 0);
        let _range = nvtx::range(format_args!("backward"));
        let opened = self.replica.trace.open(&mut *self.replica.backend);
        for i in (0..self.replica.program.len()).rev() {
            with_group(
                &mut self.replica,
                &mut *self.communicator,
                self.synchronize,
                |replica, group| replica.backward_node(i, len, group),
            )?;
            ready = in_order(ready, self.replica.program.ready_after(i))?;
            while reduces
                && next < self.buckets.len()
                && self.buckets.range(next).end.min(elements) <= ready
            {
                self.reduce_scatter(next)?;
                next += 1;
            }
        }
        self.replica
            .trace
            .close(&mut *self.replica.backend, Phase::Backward, opened);
        Ok(())
    }

    /// The mean over the ranks of a bucket's gradients; this rank's shard of it replaces its own.
    fn reduce_scatter(&mut self, index: usize) -> Result<()> {
        let Replica {
            backend,
            program,
            trace,
            ..
        } = &mut self.replica;
        let since = if trace.on() { now_ns() } else { 0 };
        let phase = Phase::ReduceScatter;
        let mean = Reduce::ScaledSum(1.0 / self.communicator.world_size() as f32);
        let gradients = program.padded_gradients().slice(self.buckets.range(index));
        let after = backend.record(Stream::Compute);
        let event = self.communicator.reduce_scatter_in_place(
            &mut **backend,
            phase,
            gradients,
            mean,
            after,
        )?;
        trace.collective(phase, Some(index as u16), event, since);
        self.pending.push(event);
        Ok(())
    }

    /// Bucket by bucket: waits for the shard of the gradients, updates the shard of the parameters, and lets the others
    /// have it while the next is updated. The step ends when all parameters are here.
    fn update(&mut self) -> Result<()> {
        for index in 0..self.buckets.len() {
            if let Some(reduced) = self.pending.get(index).copied() {
                self.wait(reduced)?;
            }
            self.replica.update(index)?;
            if self.synchronize {
                self.pending[index] = self.all_gather(index)?;
            }
        }
        self.replica.clear_after_update()?;
        for index in 0..self.pending.len() {
            self.wait(self.pending[index])?;
        }
        Ok(())
    }

    fn all_gather(&mut self, index: usize) -> Result<Event> {
        let Replica {
            backend,
            program,
            trace,
            ..
        } = &mut self.replica;
        let since = if trace.on() { now_ns() } else { 0 };
        let phase = Phase::AllGather;
        let bucket = program.padded_parameters().slice(self.buckets.range(index));
        let (world, rank) = (self.communicator.world_size(), self.communicator.rank());
        let own = bucket.slice(chunk(bucket.len(), world, rank));
        let after = backend.record(Stream::Compute);
        let event = self
            .communicator
            .all_gather(&mut **backend, phase, own, bucket, after)?;
        trace.collective(phase, Some(index as u16), event, since);
        Ok(event)
    }

    /// What computation did not hide of the communication is waited for here.
    fn wait(&mut self, event: Event) -> Result<()> {
        let Replica { backend, trace, .. } = &mut self.replica;
        let opened = trace.open(&mut **backend);
        backend.wait(Stream::Compute, event)?;
        trace.close(&mut **backend, Phase::Wait, opened);
        Ok(())
    }

    /// The buckets; the last may end in the padding.
    pub fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    /// A failure of this rank ends the job of all.
    fn report<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| self.communicator.aborter().abort(&error.to_string()))
    }
}

impl Strategy for Zero1 {
    fn step(&mut self, batch: HostBatch<'_>, probe: &mut dyn Probe) -> Result<()> {
        let _range = nvtx::range(format_args!("step"));
        self.replica.check(&batch, self.replica.max_batch())?;
        self.replica.trace.begin(probe);
        let done = exchanging::step(self, batch);
        self.report(done)?;
        Ok(self.replica.trace.emit(&mut *self.replica.backend, probe)?)
    }

    fn master(&mut self) -> &mut Replica {
        &mut self.replica
    }

    fn capture_steps(&mut self) -> Result<()> {
        self.replica.capture_steps()
    }

    /// Off: each rank updates its shard with its own gradients, and nothing is exchanged.
    fn set_synchronize(&mut self, on: bool) {
        self.synchronize = on;
    }

    fn evaluate(&mut self, batch: HostBatch<'_>) -> Result<Evaluation> {
        // A forward that is not training does not make the buffers differ.
        let broadcast = self.broadcast_buffers(false);
        self.report(broadcast)?;
        self.replica.evaluate(batch)
    }

    fn export(&mut self) -> Result<Vec<NamedTensor>> {
        let exported = self.export_gathered();
        self.report(exported)
    }

    fn import(&mut self, tensors: &[NamedTensor]) -> Result<()> {
        self.stale_buffers = true;
        self.replica.import(tensors)
    }

    fn restore(&mut self) -> Result<()> {
        self.stale_buffers = true;
        self.replica.restore()
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

    /// Without what set-up and exports moved, which is no part of a step.
    fn counts(&self) -> Vec<(usize, Count)> {
        ranks::step_counts(&*self.communicator)
    }

    fn reset_counts(&mut self) {
        self.communicator.reset_counts();
    }
}

impl Rank for Zero1 {
    fn ends(&mut self) -> (&mut Replica, &mut dyn Communicator) {
        (&mut self.replica, &mut *self.communicator)
    }

    fn exchange(&self) -> Option<Exchange> {
        let buffers = self.broadcasts_buffers && self.stale_buffers;
        // The buckets never change.
        Some(Exchange {
            synchronizes: self.synchronize,
            buffers: self.synchronize && buffers,
            ..Exchange::default()
        })
    }

    fn take_step(&mut self, batch: HostBatch<'_>) -> Result<()> {
        self.enqueue_step(batch)
    }

    fn compute(&mut self, micro: &MicroBatch<'_>) -> Result<()> {
        self.differentiate(micro, self.synchronize)?;
        self.update()
    }

    fn pass_over(&mut self) {
        self.stale_buffers = self.synchronize;
    }
}

impl Drop for Zero1 {
    fn drop(&mut self) {
        ranks::abort_in_panic(&*self.communicator);
    }
}

/// DDP's buckets from the second step on, each made divisible by the number of ranks.
fn sharded_buckets(program: &Program, caps: BucketCaps, world: usize) -> Buckets {
    Buckets::assign(&ranks::ready_sizes(program), caps).divisible(world)
}
