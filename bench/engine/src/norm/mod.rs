//! Normalization layers: batch, batch over all ranks, group (layer norm is the case of one group, instance norm that of a
//! group per channel), and RMS.
//!
//! What each computes is in SEMANTICS.md 3. Batch norm takes its statistics per chunk of the step's chunk list; the
//! others do not look at it.
pub mod batch;
pub mod group;
pub mod rms;
pub mod sync_batch;
