//! What a library of NVIDIA's was left to choose: which of its algorithms computes an operation of some shape.
//!
//! Contract: made when somebody asks, after the steps that are timed; a step keeps what it has chosen as numbers. Two devices that have
//! chosen alike give the same list, whatever the order in which shapes came.

/// An algorithm that was taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Choice {
    /// Whose algorithm: `cuDNN`, `cuBLASLt`.
    pub library: &'static str,
    /// What it computes, such as `convolution forward`.
    pub operation: &'static str,
    /// Of what sizes and types, such as `x 128×56×56×64, w 64×3×3×64, stride 1, padding 1, f32`.
    pub shape: String,
    /// As the library names it, without what all of its names begin with.
    pub algorithm: String,
    /// Bytes on the GPU that it was given to work in.
    pub workspace_bytes: usize,
    /// Whether the library says that it gives the same bits each time.
    pub deterministic: bool,
    /// How it multiplies, as the library names it, such as `FMA_MATH`.
    pub math: String,
}
