//! A model on one device: its values, parameters and layers, run forward in order and backward in reverse.
//!
//! Everything is allocated when a program is built, for a maximum batch; a step allocates nothing. There is no autograd:
//! the first writer of a value's gradient overwrites it and later ones add, decided when the program is built
//! ([`plan`]). Parameters and gradients are one arena each, in gradient-ready order, so that a DDP bucket is a
//! contiguous range. The loss is outside, because DataParallel computes it on the gathered output.
mod build;
pub mod fuse;
pub mod plan;
pub mod table;
pub mod transfer;
mod values;

use std::ops::Range;

use crate::backend::cuda::nvtx;
use crate::backend::{Backend, BackendError};
use crate::kernel::Kernel;
use crate::layer::{Layer, NormStatistics, Result, Step, Wires};
use crate::model::Model;
use crate::shape::Shape;
use crate::tensor::Span;

pub use table::{Buffer, BufferKind, Buffers, NamedTensor, Parameter, TensorData};
pub use transfer::ImportError;

/// Why a program could not be built.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BuildError {
    /// A setting must be positive.
    #[error("{0} is 0: expected at least 1")]
    Zero(&'static str),
    /// More elements than can be addressed.
    #[error(
        "a batch of {max_batch} needs more elements than can be addressed: lower the batch size"
    )]
    TooLarge {
        /// Maximum batch.
        max_batch: usize,
    },
    /// The device failed, most often for want of memory.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// What a program is built for.
#[derive(Clone, Copy, Debug)]
pub struct ProgramSettings {
    /// Most samples of a call.
    pub max_batch: usize,
    /// Most normalization chunks of a call.
    pub max_chunks: usize,
    /// Ranks that SyncBN may meet.
    pub world_size: usize,
    /// Seed of initial parameters and dropout masks.
    pub seed: u64,
    /// Whether the gradient of the model's input is wanted; training does not need it, and tokens have none.
    pub input_gradient: bool,
    /// Parts of equal size that parameters and gradients can be cut into: ZeRO's shards. Their arenas are padded for it.
    pub shards: usize,
}

struct Node {
    layer: Box<dyn Layer>,
    wires: Wires,
    ready: Range<usize>,
}

/// A model on one device.
pub struct Program {
    nodes: Vec<Node>,
    table: Vec<Parameter>,
    buffers: Buffers,
    /// With the padding at their ends.
    padded: [Span; 2],
    parameters: Span,
    gradients: Span,
    input: Span,
    /// What the first node reads: `input`, or that rounded to the type of values.
    first: Span,
    output: Span,
    d_output: Span,
    d_input: Option<Span>,
    input_shape: Shape,
    output_shape: Shape,
    settings: ProgramSettings,
}

impl Program {
    /// Allocates a program on `backend` and initialises its parameters from `seed`: the same on every rank, strategy
    /// and backend.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn build(
        backend: &mut dyn Backend,
        model: &Model,
        max_batch: usize,
        max_chunks: usize,
        world_size: usize,
        seed: u64,
    ) -> std::result::Result<Self, BuildError> {
        let settings = ProgramSettings {
            max_batch,
            max_chunks,
            world_size,
            seed,
            input_gradient: false,
            shards: 1,
        };
        Self::with_settings(backend, model, settings)
    }

    /// As [`Program::build`], with all settings.
    ///
    /// # Errors
    /// [`BuildError`].
    pub fn with_settings(
        backend: &mut dyn Backend,
        model: &Model,
        settings: ProgramSettings,
    ) -> std::result::Result<Self, BuildError> {
        build::build(backend, model, settings)
    }

    /// f32 input of the maximum batch, NHWC, or tokens as whole numbers: upload a batch into its first samples.
    pub fn input(&self) -> Span {
        self.input
    }
    /// Output of the maximum batch, of the device's type of values; so is its gradient.
    pub fn output(&self) -> Span {
        self.output
    }
    /// Gradient of the output: written from outside before each backward, which uses its memory again.
    pub fn d_output(&self) -> Span {
        self.d_output
    }
    /// Gradient of the input, if it was asked for.
    pub fn d_input(&self) -> Option<Span> {
        self.d_input
    }
    /// The first `batch` samples of one of the four spans above.
    pub fn cut(&self, span: Span, batch: usize) -> Span {
        span.first(span.len() / self.settings.max_batch * batch)
    }
    /// Shape of an input sample.
    pub fn input_shape(&self) -> Shape {
        self.input_shape
    }
    /// Shape of an output sample.
    pub fn output_shape(&self) -> Shape {
        self.output_shape
    }
    /// What it was built for.
    pub fn settings(&self) -> ProgramSettings {
        self.settings
    }
    /// All parameters, in gradient-ready order.
    pub fn parameters(&self) -> Span {
        self.parameters
    }
    /// All gradients, in the order of [`Program::parameters`].
    pub fn gradients(&self) -> Span {
        self.gradients
    }
    /// All parameters with the padding that makes them divisible by the number of shards.
    pub fn padded_parameters(&self) -> Span {
        self.padded[0]
    }
    /// All gradients with their padding, which stays zero.
    pub fn padded_gradients(&self) -> Span {
        self.padded[1]
    }
    /// The gradients that no [`Step::fresh`] backward overwrites, in as few spans as there can be.
    pub fn accumulated_gradients(&self) -> Vec<Span> {
        let overwritten = self.nodes.iter().map(|node| node.layer.overwritten());
        let mut overwritten: Vec<Span> = overwritten.filter(|span| !span.is_empty()).collect();
        overwritten.sort_by_key(|span| span.start());
        let (all, mut next, mut kept) = (self.gradients, 0, Vec::new());
        for span in overwritten {
            let start = span.start() - all.start();
            kept.push(all.slice(next..start));
            next = start + span.len();
        }
        kept.push(all.slice(next..all.len()));
        kept.retain(|span| !span.is_empty());
        kept
    }
    /// The parameters one by one, in execution order (PyTorch's).
    pub fn table(&self) -> &[Parameter] {
        &self.table
    }
    /// Running statistics.
    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }
    /// Whether it has no node: a model of a flatten alone.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
    /// Kind of node `i`, as in model files.
    pub fn kind(&self, i: usize) -> &'static str {
        self.nodes[i].layer.kind()
    }
    /// What the batch norms keep and have last taken, in execution order.
    pub fn statistics(&self) -> impl Iterator<Item = NormStatistics<'_>> {
        self.nodes.iter().filter_map(|node| node.layer.statistics())
    }
    /// Elements of the gradient arena that are complete once `backward_node(i)` is enqueued, if those of the later nodes
    /// are: consecutive, from 0 upward as `i` goes down.
    pub fn ready_after(&self, i: usize) -> Range<usize> {
        self.nodes[i].ready.clone()
    }

    /// Enqueues the forward pass on the compute stream; does not block.
    ///
    /// # Errors
    /// The backend's failure, or that of a chunk that cannot be normalized.
    pub fn forward(&mut self, step: &mut Step<'_>) -> Result<()> {
        (0..self.len()).try_for_each(|i| self.forward_node(i, step))
    }

    /// Enqueues the forward pass of one node.
    ///
    /// # Errors
    /// As [`Program::forward`].
    ///
    /// # Panics
    /// When batch or chunks exceed what the program was built for: a bug of the strategy.
    pub fn forward_node(&mut self, i: usize, step: &mut Step<'_>) -> Result<()> {
        self.check(step);
        let node = &mut self.nodes[i];
        if step.batch == 0 && !node.layer.meets_ranks() {
            return Ok(());
        }
        let _range = nvtx::range(format_args!("{i}.{} forward", node.layer.kind()));
        if i == 0 && self.first != self.input && step.batch > 0 {
            let [from, to] = [self.input, self.first].map(|span| node.wires.cut(span, step.batch));
            let divisor = 1.0;
            step.launch(Kernel::Narrow { from, to, divisor })?;
        }
        node.layer.forward(step, &node.wires)
    }

    /// Enqueues the backward pass on the compute stream; does not block. The gradient of the output must have been
    /// enqueued before. Parameter gradients accumulate.
    ///
    /// # Errors
    /// As [`Program::forward`].
    pub fn backward(&mut self, step: &mut Step<'_>) -> Result<()> {
        (0..self.len())
            .rev()
            .try_for_each(|i| self.backward_node(i, step))
    }

    /// Enqueues the backward pass of one node; call in reverse order.
    ///
    /// # Errors
    /// As [`Program::forward`].
    ///
    /// # Panics
    /// As [`Program::forward_node`].
    pub fn backward_node(&mut self, i: usize, step: &mut Step<'_>) -> Result<()> {
        self.check(step);
        let node = &mut self.nodes[i];
        if step.batch == 0 && !node.layer.meets_ranks() {
            let to = node.layer.overwritten();
            return if step.fresh && !to.is_empty() {
                step.launch(Kernel::Fill { to, value: 0.0 })
            } else {
                Ok(())
            };
        }
        let _range = nvtx::range(format_args!("{i}.{} backward", node.layer.kind()));
        node.layer.backward(step, &node.wires)
    }

    fn check(&self, step: &Step<'_>) {
        let s = &self.settings;
        assert!(
            step.batch <= s.max_batch,
            "a batch of {} in a program for {}",
            step.batch,
            s.max_batch
        );
        assert!(
            step.chunks.len() <= s.max_chunks,
            "{} chunks in a program for {}",
            step.chunks.len(),
            s.max_chunks
        );
        assert!(
            step.chunks.iter().sum::<usize>() == step.batch,
            "chunks {:?} of a batch of {}",
            step.chunks,
            step.batch
        );
    }
}
