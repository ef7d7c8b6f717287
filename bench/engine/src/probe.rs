//! What the engine hands over about a step: spans and their times. It stores nothing.

/// Where a span belongs in a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Track {
    /// The host thread.
    Host,
    /// A device's compute stream.
    Compute,
    /// A device's communication stream.
    Communication,
}

/// What part of a step a span or a collective belongs to. [`Phase::name`] is the column of `steps.csv` without `_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Waiting for a batch in host memory.
    Data,
    /// Host to device.
    HostToDevice,
    /// DP: inputs and labels to their devices.
    Scatter,
    /// DP: parameters and buffers to the replicas.
    Replicate,
    /// Forward.
    Forward,
    /// DP: outputs to device 0.
    Gather,
    /// Loss and its gradient.
    Loss,
    /// DP: output gradients to the replicas.
    ScatterGradients,
    /// Backward.
    Backward,
    /// DP: gradients to device 0.
    Reduce,
    /// DDP: gradient buckets.
    AllReduce,
    /// DDP: buffers of rank 0.
    BufferBroadcast,
    /// SyncBN's collectives.
    SyncBatchNorm,
    /// Compute waiting for communication that backward did not hide.
    Wait,
    /// Optimizer.
    Optimizer,
    /// Zeroing gradients.
    Zero,
    /// Set-up: parameter check and first broadcast, layout of buckets, barriers. Not part of a step.
    Setup,
    /// ZeRO-1: gradient buckets, each rank keeping its shard of the sum.
    ReduceScatter,
    /// ZeRO-1: the shards of the parameters.
    AllGather,
}

impl Phase {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 19] = [
        Self::Data,
        Self::HostToDevice,
        Self::Scatter,
        Self::Replicate,
        Self::Forward,
        Self::Gather,
        Self::Loss,
        Self::ScatterGradients,
        Self::Backward,
        Self::Reduce,
        Self::AllReduce,
        Self::BufferBroadcast,
        Self::SyncBatchNorm,
        Self::Wait,
        Self::Optimizer,
        Self::Zero,
        Self::Setup,
        Self::ReduceScatter,
        Self::AllGather,
    ];
    /// Snake-case name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::HostToDevice => "host_to_device",
            Self::Scatter => "scatter",
            Self::Replicate => "replicate",
            Self::Forward => "forward",
            Self::Gather => "gather",
            Self::Loss => "loss",
            Self::ScatterGradients => "scatter_gradients",
            Self::Backward => "backward",
            Self::Reduce => "reduce",
            Self::AllReduce => "all_reduce",
            Self::BufferBroadcast => "buffer_broadcast",
            Self::SyncBatchNorm => "sync_batch_norm",
            Self::Wait => "wait",
            Self::Optimizer => "optimizer",
            Self::Zero => "zero",
            Self::Setup => "setup",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
        }
    }
}

/// A part of a step, with its times on [`now_ns`]'s clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseSpan {
    /// Device within the process's view (for DDP the rank).
    pub device: u16,
    /// Where it belongs.
    pub track: Track,
    /// What it is.
    pub phase: Phase,
    /// Bucket of DDP or ZeRO-1.
    pub bucket: Option<u16>,
    /// When the host enqueued it, and had done so.
    pub host_ns: [u64; 2],
    /// When the device began and ended it.
    pub device_ns: [u64; 2],
}

/// What a step took the host to enqueue, beside what it took the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    /// Device within the process's view (for DDP the rank).
    pub device: u16,
    /// Host: from the begin of the step until the last call that enqueues a part of it has returned, without `upload_ns`.
    pub dispatch_ns: u64,
    /// Host: handing the batch over, which copies it, and waits for memory to copy it to where all is under way.
    pub upload_ns: u64,
    /// Device: from when the first micro-batch has arrived until everything else on the compute stream is done. Where the host is slower
    /// than the device, it is the host's time: the device waits within it.
    pub device_ns: u64,
}

/// Receives the spans of a step after the step. With [`Probe::tracing`] false a strategy records no event, takes no
/// time stamp and does not synchronize for the probe's sake.
pub trait Probe {
    /// Whether spans are wanted.
    fn tracing(&self) -> bool;
    /// One span of the step that has just ended.
    fn span(&mut self, span: PhaseSpan);
    /// Whether [`Dispatch`] is wanted, of strategies that have one host thread for each device. Such a step has two events
    /// and synchronizes at its end, outside of what is told.
    fn dispatching(&self) -> bool {
        false
    }
    /// That of the step that has just ended.
    fn dispatch(&mut self, dispatch: Dispatch) {
        let _ = dispatch;
    }
}

/// The probe of untraced passes.
pub struct Silent;

impl Probe for Silent {
    fn tracing(&self) -> bool {
        false
    }
    fn span(&mut self, _: PhaseSpan) {}
}

/// Nanoseconds of CLOCK_MONOTONIC: comparable between the processes of one host.
pub fn now_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
