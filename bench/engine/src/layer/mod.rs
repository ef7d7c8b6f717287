//! Layers: each enqueues kernels for its forward and backward on a step's device. One file each.
use crate::backend::{Backend, BackendError};
use crate::comm::Communicator;
use crate::kernel::Write;
use crate::tensor::Span;

/// Whether batch statistics and dropout are those of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, running statistics updated, dropout on.
    Train,
    /// Running statistics, dropout off.
    Eval,
}

/// Device-side state of a step, so that a captured graph can replay.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// i32 `[step, sample_offset]`: step number, and the global index of this device's first sample.
    pub counters: Span,
    /// f32 `[learning_rate]`.
    pub rates: Span,
}

/// What a layer sees of the running step.
pub struct Step<'a> {
    /// The device.
    pub backend: &'a mut dyn Backend,
    /// The ranks that SyncBN talks to; none on a single device and under DP.
    pub group: Option<&'a mut dyn Communicator>,
    /// Training or evaluation.
    pub mode: Mode,
    /// Samples of this call, at most the program's maximum.
    pub batch: usize,
    /// Normalization chunks in samples, summing to `batch`: ghost batches, or DP's scatter on one device. Stored
    /// statistics come from chunk 0. Usually one chunk.
    pub chunks: &'a [usize],
    /// Device-side state.
    pub state: State,
}

/// The spans that a node is wired to, each for the maximum batch: cut them with [`Wires::cut`].
#[derive(Clone, Debug)]
pub struct Wires {
    /// Input activations.
    pub inputs: Vec<Span>,
    /// Output activation.
    pub output: Span,
    /// Gradient of the output.
    pub d_output: Span,
    /// Gradient of each input and how to write it; `None` where nobody needs it (the model's input).
    pub d_inputs: Vec<Option<(Span, Write)>>,
    /// Maximum batch.
    pub max_batch: usize,
}

impl Wires {
    /// The part of a whole-batch span that belongs to `batch` samples.
    pub fn cut(&self, span: Span, batch: usize) -> Span {
        span.first(span.len() / self.max_batch * batch)
    }
}

/// Result of layer calls.
pub type Result<T> = std::result::Result<T, BackendError>;

/// A layer holds its parameter spans, what it keeps for backward, and its settings; all are fixed when it is built.
///
/// # Ordering
/// Both calls enqueue on the compute stream and do not block; a collective inside a layer is ordered by events.
pub trait Layer: Send {
    /// Enqueues the forward pass.
    ///
    /// # Errors
    /// The backend's failure.
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()>;
    /// Enqueues the backward pass; parameter gradients accumulate.
    ///
    /// # Errors
    /// The backend's failure.
    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()>;
    /// Kind, as in model files: `linear`, `batch-norm`, ...
    fn kind(&self) -> &'static str;
}
