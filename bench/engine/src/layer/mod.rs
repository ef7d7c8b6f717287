//! Layers: each enqueues kernels for its forward and backward on a step's device. One file each.
//!
//! A layer is built once, for a maximum batch, by [`crate::program`]; every call cuts its spans to the batch at hand. It
//! allocates on the device only when it is built. The norms are in [`crate::norm`].
pub mod attention;
pub mod average_pool;
pub mod conv2d;
pub mod dropout;
pub mod embedding;
pub mod flatten;
pub mod gelu;
pub mod global_average_pool;
pub mod linear;
pub mod max_pool;
pub mod positions;
pub mod relu;
pub mod residual;
pub mod weight;
pub mod within;

use std::ops::Range;

use crate::backend::{Backend, BackendError, Category, HostSlice, Stream};
use crate::comm::Communicator;
use crate::kernel::{Kernel, Write};
use crate::norm::batch::Statistics;
use crate::tensor::{Dtype, Span};

/// Whether batch statistics and dropout are those of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Batch statistics, running statistics updated, dropout on.
    Train,
    /// Running statistics, dropout off.
    Eval,
    /// Running statistics, dropout on: what dropout makes of a trained model.
    Dropout,
    /// Batch statistics that change nothing, dropout off: what the statistics of a batch make of a trained model.
    BatchStatistics,
    /// Batch statistics whose mean the running ones become, dropout off: PreciseBN.
    Reestimate,
}

impl Mode {
    /// Whether batch norms take statistics of the batch.
    pub const fn takes_statistics(self) -> bool {
        !matches!(self, Self::Eval | Self::Dropout)
    }
    /// Whether dropout drops.
    pub const fn drops(self) -> bool {
        matches!(self, Self::Train | Self::Dropout)
    }
}

/// Device-side state of a step, so that a captured graph can replay.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// i32 `[step, sample_offset]`: step number, and the global index of this device's first sample.
    pub counters: Span,
    /// f32 `[learning_rate]`.
    pub rates: Span,
}

impl State {
    /// Allocates the state of one device: step 0, sample offset 0, learning rate 0.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(backend: &mut dyn Backend) -> Result<Self> {
        let counters = backend.allocate(Category::Workspace, Dtype::I32, 2)?;
        let rates = backend.allocate(Category::Workspace, Dtype::F32, 1)?;
        Ok(Self { counters, rates })
    }
    /// Enqueues new values of the step number, and of the global index of this device's first sample.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn set_counters(
        &self,
        backend: &mut dyn Backend,
        step: i32,
        sample_offset: i32,
    ) -> Result<()> {
        backend.upload(
            Stream::Compute,
            HostSlice::I32(&[step, sample_offset]),
            self.counters,
        )
    }
    /// Enqueues a new learning rate.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn set_learning_rate(&self, backend: &mut dyn Backend, learning_rate: f32) -> Result<()> {
        backend.upload(
            Stream::Compute,
            HostSlice::F32(&[learning_rate]),
            self.rates,
        )
    }
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
    /// Whether gradients of parameters hold nothing yet, so that those of [`Layer::overwritten`] are written over.
    pub fresh: bool,
}

impl Step<'_> {
    /// Enqueues a kernel on the compute stream.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn launch(&mut self, kernel: Kernel) -> Result<()> {
        self.backend.launch(Stream::Compute, kernel)
    }

    /// Enqueues two kernels that a device may do as one, as [`Backend::launch_both`].
    ///
    /// # Errors
    /// The backend's failure.
    pub fn launch_both(&mut self, kernels: [Kernel; 2]) -> Result<()> {
        self.backend.launch_both(Stream::Compute, kernels)
    }
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
        self.part(span, 0..batch)
    }
    /// The part of a whole-batch span that belongs to `samples`.
    pub fn part(&self, span: Span, samples: Range<usize>) -> Span {
        let elements = span.len() / self.max_batch;
        span.slice(elements * samples.start..elements * samples.end)
    }
    /// Gradient of the first input, cut to `batch` samples, if anybody needs it.
    pub fn d_input(&self, batch: usize) -> Option<(Span, Write)> {
        self.d_inputs[0].map(|(span, write)| (self.cut(span, batch), write))
    }
}

/// Result of layer calls.
pub type Result<T> = std::result::Result<T, BackendError>;

/// Statistics of a batch norm, `[C]` each.
#[derive(Clone, Copy, Debug)]
pub struct NormStatistics<'a> {
    /// `3.batch-norm`.
    pub name: &'a str,
    /// Running mean.
    pub running_mean: Span,
    /// Running variance, unbiased.
    pub running_variance: Span,
    /// Of the normalization chunks of the last forward that took statistics.
    pub chunks: &'a [Statistics],
}

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
    /// The gradient that backward overwrites, to the last element, in a [`Step::fresh`] call: it need not be zeroed before.
    fn overwritten(&self) -> Span {
        Span::EMPTY
    }
    /// The statistics that a batch norm keeps and has last taken.
    fn statistics(&self) -> Option<NormStatistics<'_>> {
        None
    }
    /// Kind, as in model files: `linear`, `batch-norm`, ...
    fn kind(&self) -> &'static str;
    /// Whether it takes part in collectives, so that a rank without samples must call it too.
    fn meets_ranks(&self) -> bool {
        false
    }
}
