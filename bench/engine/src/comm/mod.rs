//! Ranks that exchange bytes: the communicator and, for DataParallel, the links between one controller's devices.
//!
//! Bytes are counted where they are copied, never computed: the formulas live in a crate that this one cannot import.
mod algorithm;
mod combine;
pub mod controller;
pub mod count;
pub mod device_links;
pub mod error;
#[doc(hidden)]
pub mod fault;
mod ledger;
pub mod links;
pub mod nccl;
mod number;
pub mod shared;
mod signature;
pub mod tcp;

use crate::backend::{Backend, Captured, Event, Result};
use crate::probe::Phase;
use crate::tensor::Span;

pub use count::Count;

/// How contributions are combined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reduce {
    /// Σ over ranks, in rank order (so every rank gets the same bits).
    Sum,
    /// Each contribution is scaled as it enters, then summed: DDP's 1/N.
    ScaledSum(f32),
    /// Largest.
    Max,
}

/// Which collective; the name used in `comm.csv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Collective {
    /// Host-side barrier.
    Barrier,
    /// Root to all.
    Broadcast,
    /// All to root, combined.
    Reduce,
    /// All to all, combined.
    AllReduce,
    /// Everyone gets everyone's block.
    AllGather,
    /// Combined, each rank keeps its chunk.
    ReduceScatter,
    /// Root's blocks to their ranks.
    Scatter,
    /// Everyone's block to the root.
    Gather,
    /// Point to point.
    Send,
    /// Point to point.
    Receive,
    /// DP: a copy between two devices of one controller.
    Copy,
}

impl Collective {
    /// Snake-case name, as in `comm.csv`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::ReduceScatter => "reduce_scatter",
            Self::Scatter => "scatter",
            Self::Gather => "gather",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Copy => "copy",
        }
    }
}

/// Work of [`Backend::enqueue_host`], as data: no closure, so that enqueuing does not allocate.
#[derive(Clone, Copy, Debug)]
pub enum HostCall {
    /// A collective of the `shared` transport.
    Collective(CollectiveCall),
    /// A copy between two devices of this process, for [`links`]: `from` on device `source`, `to` on the stream's own device `destination`.
    Link {
        /// Device that `from` lies on.
        source: usize,
        /// What is copied.
        from: Span,
        /// Device that `to` lies on: the stream's own.
        destination: usize,
        /// Where it goes.
        to: Span,
        /// For whom it is counted.
        phase: Phase,
    },
}

/// One call of a collective.
#[derive(Clone, Copy, Debug)]
pub struct CollectiveCall {
    /// Which.
    pub collective: Collective,
    /// For whom it is counted.
    pub phase: Phase,
    /// What the rank contributes (or sends).
    pub from: Span,
    /// Where the result goes; equal to `from` for in-place collectives.
    pub to: Span,
    /// How contributions combine.
    pub reduce: Reduce,
    /// Root, or the peer of send and receive.
    pub root: usize,
}

/// The ranks of one job, seen from one of them. Every rank must make the same calls in the same order.
///
/// # Ordering
/// Every collective runs on the communication stream after `after` and returns its end; nothing blocks the host but
/// [`Communicator::barrier`]. Results are bit-equal on all ranks.
pub trait Communicator: Send {
    /// This rank.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn world_size(&self) -> usize;
    /// Enqueues `call`. In-place collectives (broadcast, reduce, all-reduce) have `from == to`. Lengths: all-gather
    /// `to = n·from`; reduce-scatter and scatter: `to` is this rank's chunk of the standard split of `from`
    /// ([`chunk`]); gather mirrored. Scatter ignores `from` except on the root; gather ignores `to` except there.
    /// All-gather and reduce-scatter may also be in place: the one's `from` is the rank's block of `to`, the other's `to`
    /// the rank's chunk of `from`, of which the other chunks are of no use afterwards.
    ///
    /// # Errors
    /// A mismatch of lengths, or the backend's failure.
    fn enqueue(
        &mut self,
        backend: &mut dyn Backend,
        call: CollectiveCall,
        after: Event,
    ) -> Result<Event>;
    /// Blocks the host until all ranks are here.
    ///
    /// # Errors
    /// When the job was aborted.
    fn barrier(&mut self) -> Result<()>;
    /// Blocks the host until all ranks are here, and returns the `value` that rank 0 brought: how ranks agree on the
    /// length of a window or on stopping a warm-up. Not counted.
    ///
    /// # Errors
    /// When the job was aborted.
    fn agree(&mut self, value: u64) -> Result<u64>;
    /// From now on calls are captured with their device's work ([`Backend::begin_capture`], which comes before): none runs, and none is
    /// counted before it is replayed. Ranks must capture the same calls, and replay them together. Nothing has to be done where calls are
    /// work of a stream of the host's, which counts as it runs.
    fn begin_capture(&mut self) {}
    /// Ends what [`Communicator::begin_capture`] began: its calls are those of `captured`, or of nothing after a failure.
    fn end_capture(&mut self, captured: Option<Captured>) {
        let _ = captured;
    }
    /// Says that the calls of `captured` are under way again, until the device has reached `end`; they are counted, but within it nobody can time them.
    ///
    /// # Errors
    /// Why collectives fail, once they do.
    fn replayed(
        &mut self,
        backend: &mut dyn Backend,
        captured: Captured,
        end: Event,
    ) -> Result<()> {
        let _ = (backend, captured, end);
        Ok(())
    }
    /// What was counted since the last reset, per phase, collective and size. Call after a synchronize.
    fn counts(&self) -> Vec<Count>;
    /// Forgets the counts.
    fn reset_counts(&mut self);
    /// A handle with which any thread can stop every rank's pending and later collectives.
    fn aborter(&self) -> Aborter;
    /// Why collectives fail, once they do.
    fn failure(&self) -> Option<String>;
    /// A handle with which any thread can look how the job is, for as long as it likes.
    fn watch(&self) -> Watch;

    /// In-place all-reduce.
    ///
    /// # Errors
    /// As [`Communicator::enqueue`].
    fn all_reduce(
        &mut self,
        backend: &mut dyn Backend,
        phase: Phase,
        span: Span,
        reduce: Reduce,
        after: Event,
    ) -> Result<Event> {
        self.enqueue(
            backend,
            CollectiveCall {
                collective: Collective::AllReduce,
                phase,
                from: span,
                to: span,
                reduce,
                root: 0,
            },
            after,
        )
    }
    /// In-place broadcast.
    ///
    /// # Errors
    /// As [`Communicator::enqueue`].
    fn broadcast(
        &mut self,
        backend: &mut dyn Backend,
        phase: Phase,
        span: Span,
        root: usize,
        after: Event,
    ) -> Result<Event> {
        self.enqueue(
            backend,
            CollectiveCall {
                collective: Collective::Broadcast,
                phase,
                from: span,
                to: span,
                reduce: Reduce::Sum,
                root,
            },
            after,
        )
    }
    /// Reduce-scatter in place: afterwards the rank's chunk of `span` holds the result, and the rest is of no use.
    ///
    /// # Errors
    /// As [`Communicator::enqueue`].
    fn reduce_scatter_in_place(
        &mut self,
        backend: &mut dyn Backend,
        phase: Phase,
        span: Span,
        reduce: Reduce,
        after: Event,
    ) -> Result<Event> {
        let own = chunk(span.len(), self.world_size(), self.rank());
        self.enqueue(
            backend,
            CollectiveCall {
                collective: Collective::ReduceScatter,
                phase,
                from: span,
                to: span.slice(own),
                reduce,
                root: 0,
            },
            after,
        )
    }
    /// All-gather: `to` holds every rank's `from`, in rank order.
    ///
    /// # Errors
    /// As [`Communicator::enqueue`].
    fn all_gather(
        &mut self,
        backend: &mut dyn Backend,
        phase: Phase,
        from: Span,
        to: Span,
        after: Event,
    ) -> Result<Event> {
        self.enqueue(
            backend,
            CollectiveCall {
                collective: Collective::AllGather,
                phase,
                from,
                to,
                reduce: Reduce::Sum,
                root: 0,
            },
            after,
        )
    }
}

/// Stops a job's collectives from any thread.
#[derive(Clone)]
pub struct Aborter(pub std::sync::Arc<dyn Fn(&str) + Send + Sync>);

impl Aborter {
    /// Makes every pending and later collective of the job fail with `reason`.
    pub fn abort(&self, reason: &str) {
        (self.0)(reason);
    }
}

/// Looks how a job is, from any thread. Cheap enough to look every few milliseconds.
#[derive(Clone)]
pub struct Watch(pub std::sync::Arc<dyn Fn() -> Seen + Send + Sync>);

impl Watch {
    /// How it is now.
    pub fn look(&self) -> Seen {
        (self.0)()
    }
}

/// What a look at a job shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Why the job was aborted.
    pub failure: Option<String>,
    /// Other ranks that have left in good order, as far as this one was told: their work is done, and they will come to nothing more.
    pub left: Vec<usize>,
}

/// Chunk `index` of the standard split of `len` elements into `parts`: sizes differ by at most one, longer ones first.
pub fn chunk(len: usize, parts: usize, index: usize) -> std::ops::Range<usize> {
    let (size, longer) = (len / parts, len % parts);
    let start = index * size + index.min(longer);
    start..start + size + usize::from(index < longer)
}
