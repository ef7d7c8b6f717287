//! Collectives that one thread calls for all devices of its process: what DataParallel replicates and reduces by, where a library has them.
//!
//! Contract: the controller has all devices that take part, and nobody else enqueues on them meanwhile. A call runs on the compute stream of
//! each, after that device's earlier work and, as a whole, after the earlier work of all; what a device enqueues next comes after its part.
//! So no event is needed beside the controller's own joins. The host does not wait.
//! Reference: NCCL user guide, "Management Of Multiple GPUs From One Thread".
use crate::backend::{Backend, BackendError};
use crate::probe::Phase;
use crate::tensor::Span;

/// Devices that take part in a call. The first is its root.
pub trait Members {
    /// How many.
    fn count(&self) -> usize;
    /// The number of the device at `place`, and its backend.
    fn device(&mut self, place: usize) -> (usize, &mut dyn Backend);
    /// What is read or written there: as long, and of the same type, on every device.
    fn span(&mut self, place: usize) -> Span;
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{source}")]
pub struct Failed {
    /// The device that failed, where one can be told from the others; `source` names it too then, if it is a library's.
    pub device: Option<usize>,
    /// Why.
    pub source: BackendError,
}

/// Collectives of one controller. A call of fewer than two devices, or of nothing, does nothing.
pub trait Controller: Send + Sync {
    /// Enqueues copies of the root's span into those of all others, in pieces of at most [`super::links::PIECE_BYTES`].
    ///
    /// # Ordering
    /// See the module. Does not allocate once a call of this phase, these devices and these sizes was made.
    ///
    /// # Errors
    /// [`Failed`]: then no device can be used any more.
    fn broadcast(&self, phase: Phase, members: &mut dyn Members) -> Result<(), Failed>;
    /// Enqueues the sum of all spans into the root's; the others' stay. In pieces, as [`Controller::broadcast`].
    ///
    /// # Ordering
    /// As [`Controller::broadcast`].
    ///
    /// # Errors
    /// As [`Controller::broadcast`].
    fn reduce(&self, phase: Phase, members: &mut dyn Members) -> Result<(), Failed>;
    /// Stops every call under way: a device has failed, and the others would wait for it.
    fn abort(&self, reason: &str);
    /// Waits for calls under way and ends; devices may go after it.
    fn close(&self);
}
