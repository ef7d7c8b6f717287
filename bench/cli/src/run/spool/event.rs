//! The events of a spool and their 64 bytes, little-endian: bytes 0..8 hold the kind (u8) and small fields, words follow
//! from byte 8 on. A kind keeps its number for ever; a reader skips kinds that it does not know.
mod bytes;
mod ceiling;
mod choice;
mod comm;
mod fields;
mod gpu;
mod learning;

use super::EVENT_BYTES;
pub use ceiling::CeilingEvent;
pub use choice::{ChoicePiece, pieces};
pub use comm::CommEvent;
use fields::Fields;
pub use gpu::{GpuPlace, GpuState, GpuTraffic, REASONS, name_bytes, name_of};
pub use learning::LearningEvent;

/// What an event says. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "fields are named as the columns that they become"
)]
pub enum Event {
    /// One step of a pass has ended.
    Step {
        pass: u8,
        step: u64,
        start_ns: u64,
        end_ns: u64,
        samples: u64,
    },
    /// A pass has ended on this rank: from its barrier until its last step was complete on its device.
    Pass {
        pass: u8,
        steps: u64,
        samples: u64,
        start_ns: u64,
        end_ns: u64,
    },
    /// The warm-up has ended.
    Warmup { steps: u64 },
    /// A span of a traced step; `bucket` is `u16::MAX` for none.
    Span {
        device: u16,
        track: u8,
        phase: u8,
        bucket: u16,
        step: u64,
        host_ns: [u64; 2],
        device_ns: [u64; 2],
    },
    /// What was counted in the window; the quantiles are saturated at u32.
    Comm(CommEvent),
    /// What a device holds, per category of the engine.
    Memory { device: u16, bytes: [u64; 6] },
    /// Training loss of a step.
    Loss { step: u64, loss: f64 },
    /// What the host took to enqueue a step of the pass `dispatch` and to hand its batch over, and the device to compute it.
    Dispatch {
        step: u64,
        dispatch_ns: u64,
        upload_ns: u64,
        device_ns: u64,
    },
    /// Whether all ranks held bit-equal parameters after the window.
    ParametersEqual { equal: bool },
    /// How far a checked step's gradients are from their exact mean; `bucket` is `u16::MAX` for all together.
    Compression {
        bucket: u16,
        step: u64,
        relative_error: f64,
        cosine: f64,
        sent_bytes: Option<u64>,
        uncompressed_bytes: Option<u64>,
    },
    /// Bytes sent in the calls of the totals right before it, by a counter that is not ours; absent where there is none.
    Measured { sent_bytes: u64 },
    /// Use of a group of cores from before the window's barrier until after its last step, in nanoseconds of CPU time.
    Cores {
        /// First device on these cores.
        device: u16,
        /// How many they are.
        cores: u16,
        elapsed_ns: u64,
        /// By anyone, on these cores and their hyper-threads.
        busy_ns: u64,
        /// By this process's threads that are pinned here, with what switching to them cost.
        pinned_ns: u64,
        /// By its threads that are pinned nowhere, and by the conductor.
        elsewhere_ns: u64,
        stolen_ns: u64,
        involuntary_switches: u64,
        /// Time in which some thread of the machine waited for a core.
        pressure_ns: Option<u64>,
    },
    /// Where a device's GPU sits.
    GpuPlace(GpuPlace),
    /// A GPU over a timed pass.
    GpuState(GpuState),
    /// What a GPU moved in a timed pass.
    GpuTraffic(GpuTraffic),
    /// Whether the GPU of a device reaches the memory of another device's directly, or through the host.
    GpuPeer { from: u16, to: u16, directly: bool },
    /// A piece of what a library of NVIDIA's took for an operation.
    Choice(ChoicePiece),
    /// Time of a call of a collective that runs alone, at p10, p50 and p90 of its batches on the slowest rank.
    CollectiveTime {
        collective: u8,
        algorithm: u8,
        elements: u64,
        size_bytes: u64,
        iterations: u64,
        time_ns: [u64; 3],
    },
    /// What the check and the counters of all ranks found at the collective whose time came before.
    CollectiveCheck {
        collective: u8,
        elements: u64,
        wrong: u64,
        calls: u64,
        sent_bytes: Option<u64>,
        measured_sent_bytes: Option<u64>,
    },
    /// Times of a node of the model at p10, p50 and p90 of its calls.
    NodeTime {
        node: u32,
        backward: bool,
        calls: u64,
        time_ns: [u64; 3],
    },
    /// What the machine can do at best, measured beside the passes.
    Ceiling(CeilingEvent),
    /// An evaluation of a trial that learns.
    Learning(LearningEvent),
    /// What was evaluated after the last step, loss and error each; NaN for none.
    LearningEnd {
        step: u64,
        /// On training samples.
        train_eval: [f64; 2],
        /// With dropout on.
        dropout: [f64; 2],
        /// With statistics that were estimated anew.
        precise: [f64; 2],
    },
    /// How far the statistics of batches are from the stored ones in a batch norm.
    NormStatistics {
        layer: u16,
        channels: u32,
        step: u64,
        values: f64,
        batches: u64,
        mean_noise: f64,
        variance_noise: f64,
    },
}
