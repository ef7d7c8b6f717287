//! What trials of collectives record.
use serde::{Deserialize, Serialize};

/// `collectives.csv`: one row per trial, repeat, collective and size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CollectiveRow {
    pub trial: String,
    pub repeat: u32,
    /// `shared`, `tcp` or `nccl`.
    pub transport: String,
    /// `threads` or `processes`.
    pub launch: String,
    pub ranks: u32,
    /// `all_reduce`, `broadcast`, `barrier`, ...
    pub collective: String,
    /// The named algorithm whose chunks the prediction sums over.
    pub algorithm: String,
    /// Elements (f32) of the call, and S in nccl-tests' sense: over all ranks where each brings a part.
    pub elements: u64,
    pub size_bytes: u64,
    /// Timed calls.
    pub iterations: u64,
    /// Time of a call on the slowest rank, over batches of back-to-back calls.
    pub time_ns_p10: u64,
    pub time_ns_p50: u64,
    pub time_ns_p90: u64,
    /// S over the median time, and that times the collective's factor; empty for a barrier.
    pub algbw_bytes_per_s: Option<f64>,
    pub busbw_bytes_per_s: Option<f64>,
    /// Whether every element of every rank's result was compared, and how many were wrong.
    pub checked: bool,
    pub wrong_elements: u64,
    /// Bytes sent per call over all ranks: by our counters (empty where they cannot count), by the formula, by an independent counter.
    pub counted_sent_bytes: Option<f64>,
    pub predicted_sent_bytes: Option<f64>,
    pub measured_sent_bytes: Option<f64>,
    /// Over `nccl`: what NCCL says that it takes, such as `RING` and `SIMPLE`; empty where it does not say, and of what goes from one rank
    /// to another.
    #[serde(default)]
    pub nccl_algorithm: Option<String>,
    #[serde(default)]
    pub nccl_protocol: Option<String>,
}
