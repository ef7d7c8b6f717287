//! What the ranks of DDP and of ZeRO-1 do alike: agree on the model, share rank 0's buffers, meet in SyncBN.
//!
//! Set-up blocks, is counted under the phase `setup`, and is no part of a step. The rest enqueues and allocates nothing.
//! Reference: `_verify_param_shape_across_processes` and `_sync_buffers` in `torch/nn/parallel/distributed.py`.
use std::ops::Range;

use super::replica::Replica;
use super::tracing::{Trace, Watched};
use super::{Result, StrategyError};
use crate::backend::cuda::nvtx;
use crate::backend::{Backend, BackendError, Category, Event, HostSlice, HostSliceMut, Stream};
use crate::comm::{Communicator, Count};
use crate::probe::{Phase, now_ns};
use crate::program::Program;
use crate::tensor::{Dtype, Span};

/// i64 words for what ranks tell each other outside of steps: one to send, one from each rank.
pub(super) struct Words {
    own: Span,
    all: Span,
}

impl Words {
    /// Words for a job of `world` ranks.
    pub(super) fn allocate(
        backend: &mut dyn Backend,
        world: usize,
    ) -> std::result::Result<Self, BackendError> {
        Ok(Self {
            own: backend.allocate(Category::Workspace, Dtype::I64, 1)?,
            all: backend.allocate(Category::Workspace, Dtype::I64, world)?,
        })
    }

    /// Every rank's word, in rank order. Blocks.
    pub(super) fn exchange(
        &self,
        backend: &mut dyn Backend,
        communicator: &mut dyn Communicator,
        word: u64,
    ) -> Result<Vec<i64>> {
        backend.upload(Stream::Compute, HostSlice::I64(&[word as i64]), self.own)?;
        let after = backend.record(Stream::Compute);
        communicator.all_gather(backend, Phase::Setup, self.own, self.all, after)?;
        let mut all = vec![0; self.all.len()];
        backend.download(self.all, HostSliceMut::I64(&mut all))?;
        Ok(all)
    }
}

/// Checks that all ranks have the same model, then takes over the parameters of rank 0 and, with `broadcasts_buffers`, its
/// buffers. Blocks.
pub(super) fn settle(
    replica: &mut Replica,
    communicator: &mut dyn Communicator,
    words: &Words,
    broadcasts_buffers: bool,
) -> Result<()> {
    let own = description(replica);
    let all = words.exchange(&mut *replica.backend, communicator, own)?;
    if let Some(rank) = all.iter().position(|theirs| *theirs != all[0]) {
        let error = StrategyError::Model { rank };
        communicator.aborter().abort(&error.to_string());
        return Err(error);
    }
    let (program, backend) = (&replica.program, &mut *replica.backend);
    let after = backend.record(Stream::Compute);
    let buffers = program.buffers();
    broadcast(
        communicator,
        backend,
        Phase::Setup,
        program.parameters(),
        after,
    )?;
    for span in [buffers.floats, buffers.integers] {
        if broadcasts_buffers {
            broadcast(communicator, backend, Phase::Setup, span, after)?;
        }
    }
    Ok(backend.synchronize()?)
}

/// A hash of the names and shapes of all parameters and buffers.
fn description(replica: &Replica) -> u64 {
    let mut hash = Fnv::default();
    for parameter in replica.program.table() {
        hash.add(parameter.name.as_bytes());
        parameter
            .shape
            .iter()
            .for_each(|size| hash.add(&size.to_le_bytes()));
    }
    for buffer in &replica.program.buffers().table {
        hash.add(buffer.name.as_bytes());
        hash.add(&buffer.range.len().to_le_bytes());
    }
    hash.0
}

/// Whether all ranks hold bit-equal parameters. Blocks.
pub(super) fn parameters_equal(
    replica: &mut Replica,
    communicator: &mut dyn Communicator,
    words: &Words,
) -> Result<bool> {
    let parameters = replica.download(replica.program.parameters())?;
    let mut hash = Fnv::default();
    parameters
        .iter()
        .for_each(|value| hash.add(&value.to_bits().to_le_bytes()));
    let all = words.exchange(&mut *replica.backend, communicator, hash.0)?;
    Ok(all.iter().all(|theirs| *theirs == all[0]))
}

/// Rank 0's buffers for all; compute goes on once they are here.
pub(super) fn broadcast_buffers(
    replica: &mut Replica,
    communicator: &mut dyn Communicator,
) -> Result<()> {
    let Replica {
        backend,
        program,
        trace,
        ..
    } = replica;
    let after = backend.record(Stream::Compute);
    let mut last = None;
    for span in [program.buffers().floats, program.buffers().integers] {
        let since = if trace.on() { now_ns() } else { 0 };
        let phase = Phase::BufferBroadcast;
        if let Some(event) = broadcast(communicator, &mut **backend, phase, span, after)? {
            trace.collective(phase, None, event, since);
            last = Some(event);
        }
    }
    if let Some(event) = last {
        let opened = trace.open(&mut **backend);
        backend.wait(Stream::Compute, event)?;
        trace.close(&mut **backend, Phase::Wait, opened);
    }
    Ok(())
}

/// Enqueues a broadcast from rank 0, of a span that may be empty.
fn broadcast(
    communicator: &mut dyn Communicator,
    backend: &mut dyn Backend,
    phase: Phase,
    span: Span,
    after: Event,
) -> std::result::Result<Option<Event>, BackendError> {
    if span.is_empty() {
        return Ok(None);
    }
    communicator
        .broadcast(backend, phase, span, 0, after)
        .map(Some)
}

/// Forward in training mode; SyncBN meets the other ranks while `synchronize`.
pub(super) fn forward(
    replica: &mut Replica,
    communicator: &mut dyn Communicator,
    synchronize: bool,
    len: usize,
) -> Result<()> {
    let _range = nvtx::range(format_args!("forward"));
    let opened = replica.trace.open(&mut *replica.backend);
    with_group(replica, communicator, synchronize, |replica, group| {
        replica.forward(len, group)
    })?;
    replica
        .trace
        .close(&mut *replica.backend, Phase::Forward, opened);
    Ok(())
}

/// Calls `work` with the ranks that SyncBN meets: none while nothing synchronizes, watched ones in a traced step.
pub(super) fn with_group(
    replica: &mut Replica,
    communicator: &mut dyn Communicator,
    synchronize: bool,
    work: impl FnOnce(
        &mut Replica,
        Option<&mut dyn Communicator>,
    ) -> std::result::Result<(), BackendError>,
) -> std::result::Result<(), BackendError> {
    if !synchronize {
        return work(replica, None);
    }
    if !replica.trace.on() {
        return work(replica, Some(communicator));
    }
    // The trace is put back below; the replica itself does not trace while layers run.
    let mut trace = std::mem::replace(&mut replica.trace, Trace::new(0));
    let result = work(
        replica,
        Some(&mut Watched {
            inner: communicator,
            trace: &mut trace,
            bucket: None,
        }),
    );
    replica.trace = trace;
    result
}

/// Where the next gradients must begin, after `found` became ready.
pub(super) fn in_order(expected: usize, found: Range<usize>) -> Result<usize> {
    if found.is_empty() {
        Ok(expected)
    } else if found.start == expected {
        Ok(found.end)
    } else {
        Err(StrategyError::Order { found, expected })
    }
}

/// Elements of all parameters, in the order in which their gradients become ready.
pub(super) fn ready_sizes(program: &Program) -> Vec<usize> {
    let table = program.table().iter();
    let mut ranges: Vec<Range<usize>> = table.map(|parameter| parameter.range.clone()).collect();
    ranges.sort_by_key(|range| range.start);
    ranges.iter().map(Range::len).collect()
}

/// What a rank counted, without what set-up moved, which is no part of a step.
pub(super) fn step_counts(communicator: &dyn Communicator) -> Vec<(usize, Count)> {
    let counts = communicator.counts().into_iter();
    let of_steps = counts.filter(|count| count.phase != Phase::Setup);
    of_steps.map(|count| (communicator.rank(), count)).collect()
}

/// A word that is equal on ranks with equal numbers.
pub(super) fn hash(numbers: &[usize]) -> u64 {
    let mut hash = Fnv::default();
    numbers
        .iter()
        .for_each(|number| hash.add(&number.to_le_bytes()));
    hash.0
}

/// A rank that panics may leave its communication stream in the middle of a collective: dropping the device waits for
/// that stream, and the stream for ranks that wait for this one. So the job ends here for all.
pub(super) fn abort_in_panic(communicator: &dyn Communicator) {
    if std::thread::panicking() {
        let reason = format!("rank {} panicked", communicator.rank());
        communicator.aborter().abort(&reason);
    }
}

/// FNV-1a, 64 bits: equal inputs give equal words on every rank; nobody is kept out by it.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
