//! What a library chose for an operation that it has several algorithms for, as records have it.

/// An algorithm, and what it was chosen for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// As NVIDIA writes it.
    pub library: &'static str,
    /// What is computed.
    pub operation: &'static str,
    /// Sizes, types and layouts that decided.
    pub shape: String,
    /// The library's own name or number of the algorithm, with its settings.
    pub algorithm: String,
    /// Bytes of workspace that it needs.
    pub workspace_bytes: usize,
    /// Whether it repeats to the bit.
    pub deterministic: bool,
    /// How it multiplies.
    pub math: String,
}
