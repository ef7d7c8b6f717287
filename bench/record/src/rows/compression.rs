//! The rows of `compression.csv`: what compressed gradients lose.
use serde::{Deserialize, Serialize};

/// `compression.csv`: one row per trial, repeat and checked step: how far compressed gradients are from exact ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompressionRow {
    pub trial: String,
    pub repeat: u32,
    /// Training steps before it.
    pub step: u64,
    /// As in `trials.csv`.
    pub compression: String,
    /// Bucket, or empty for all of them together.
    pub bucket: Option<u32>,
    /// ‖mean as used − exact mean‖ / ‖exact mean‖.
    pub relative_error: f64,
    /// Cosine of the angle between the two.
    pub cosine: f64,
    /// Bytes that a rank sent for gradients in the step, and would have sent uncompressed; empty where they cannot be counted.
    pub sent_bytes: Option<u64>,
    pub uncompressed_bytes: Option<u64>,
}
