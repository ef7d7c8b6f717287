//! Normalization layers: batch, batch over all ranks, and group (of which layer norm is the case of one group).
//!
//! What each computes is in SEMANTICS.md 3. Batch norm takes its statistics per chunk of the step's chunk list; the
//! others do not look at it.
pub mod batch;
pub mod group;
pub mod sync_batch;
