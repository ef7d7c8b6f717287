//! The rows of `algorithms.csv`: what NVIDIA's libraries took for the operations of a trial.
use serde::{Deserialize, Serialize};

/// `algorithms.csv`: one row per trial, repeat, device, library, operation and shape whose algorithm the library was left to choose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AlgorithmRow {
    pub trial: String,
    pub repeat: u32,
    pub device: u32,
    /// `cuDNN`, `cuBLASLt`.
    pub library: String,
    /// Such as `convolution forward`.
    pub operation: String,
    /// Sizes and types, such as `x 128×56×56×64, w 64×3×3×64, stride 1, padding 1, f32`.
    pub shape: String,
    /// As the library names it.
    pub algorithm: String,
    /// Memory on the GPU that it was given to work in.
    pub workspace_bytes: u64,
    /// Whether the library says that it gives the same bits each time.
    pub deterministic: bool,
    /// How it multiplies, as the library names it.
    pub math: String,
}
