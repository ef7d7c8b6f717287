//! Strategies: how one training step is spread over devices. One file each, its step readable from top to bottom.
//!
//! Everything enqueues; on a backend that computes at once a step is done when it returns, on others after
//! [`Strategy::finish`]. A steady-state step allocates nothing. The words are PyTorch's, for
//! `torch.nn.parallel.{DataParallel, DistributedDataParallel}`.
pub mod bucket;
pub mod ddp;
pub mod dp;
mod graph;
pub mod hook;
pub mod independent;
mod micro_batch;
mod ranks;
mod replica;
pub mod single;
mod tracing;
pub mod zero1;

use crate::backend::cuda::choice::Choice;
use crate::backend::{BackendError, MemoryUse};
use crate::comm::Count;
use crate::data::HostBatch;
use crate::optim::OptimizerError;
use crate::probe::{Probe, Silent};
use crate::program::{BuildError, ImportError, NamedTensor};

pub use bucket::BucketCaps;
pub use ddp::{Ddp, DdpOptions, DdpSettings, Fidelity};
pub use dp::{Dp, DpInputs, DpLoss, DpSettings};
pub use graph::UNCAPTURED as STEPS_BEFORE_CAPTURE;
pub use hook::{Compression, PowerSgdSettings};
pub use independent::{Independent, IndependentSettings};
pub use replica::{LayerNoise, NodeTimes, Noise, Replica};
pub use single::{Single, SingleSettings};
pub use zero1::{Zero1, Zero1Settings};

/// Why a strategy failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StrategyError {
    /// The model could not be laid out on a device.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A device or a collective failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Tensors that do not fit the model.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A setting that cannot work.
    #[error("{setting} is {value}: {expected}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// A batch that the strategy was not built for.
    #[error(
        "a batch of {len} samples with {inputs} input elements and {labels} labels: expected {expected}"
    )]
    Batch {
        /// Samples.
        len: usize,
        /// Elements of its inputs.
        inputs: usize,
        /// Its labels.
        labels: usize,
        /// What would do.
        expected: String,
    },
    /// The ranks do not train the same model.
    #[error(
        "rank {rank} was built with other parameters than rank 0: every rank needs the same model"
    )]
    Model {
        /// The first rank that differs.
        rank: usize,
    },
    /// The ranks do not cut the same buckets.
    #[error(
        "rank {rank} was given other bucket caps than rank 0: every rank needs the same, for its shard lies by them"
    )]
    Buckets {
        /// The first rank that differs.
        rank: usize,
    },
    /// Gradients became ready in another order than that of the arena.
    #[error("gradients {found:?} became ready where {expected} was next in the arena")]
    Order {
        /// What became ready.
        found: std::ops::Range<usize>,
        /// First element that was expected.
        expected: usize,
    },
    /// One of DataParallel's devices failed.
    #[error("device {device}: {source}")]
    Device {
        /// The lowest index that failed.
        device: usize,
        /// Why.
        source: BackendError,
    },
    /// Nothing to go back to.
    #[error("restore without a snapshot")]
    NoSnapshot,
}

impl From<OptimizerError> for StrategyError {
    fn from(error: OptimizerError) -> Self {
        match error {
            OptimizerError::Backend(error) => Self::Backend(error),
            OptimizerError::Setting {
                setting,
                value,
                expected,
            } => Self::Setting {
                setting,
                value,
                expected,
            },
        }
    }
}

/// Result of strategy calls.
pub type Result<T> = std::result::Result<T, StrategyError>;

/// What an evaluation found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Samples evaluated.
    pub samples: usize,
    /// Their mean loss.
    pub loss: f64,
    /// Labels that are not the largest logit.
    pub errors: usize,
    /// All labels: the samples, or of tokens the positions that are to be predicted.
    pub labels: usize,
}

/// A way of training on one or several devices; under DDP one rank of it.
pub trait Strategy: Send {
    /// One training step: host to device, forward, loss, backward, communication, optimizer, zeroing. With
    /// [`Probe::tracing`] it also synchronizes at its end and hands its spans over.
    ///
    /// # Errors
    /// The first failure; the strategy is of no use afterwards.
    fn step(&mut self, batch: HostBatch<'_>, probe: &mut dyn Probe) -> Result<()>;

    /// The replica that holds the trained parameters: device 0's, or the rank's own.
    fn master(&mut self) -> &mut Replica;

    /// Whether ranks and devices exchange anything from now on. Off, the same work is done on stale data: what a step
    /// costs without communication.
    fn set_synchronize(&mut self, on: bool);

    /// From now on a step is captured once for each kind of step, after [`STEPS_BEFORE_CAPTURE`] that are not, and enqueued as a whole by those
    /// that follow. A kind is a batch size and, of ranks, what they exchange: with [`Strategy::set_synchronize`] off that is nothing, and
    /// buckets that are rebuilt are others. Results are the same, to the bit. Under DDP and ZeRO-1 every rank must call it, and a batch size that
    /// changes on one rank from one step to the next must change on all.
    ///
    /// # Errors
    /// [`StrategyError::Setting`] where a step cannot be captured: micro-batches are uploaded in between, and DataParallel's devices are
    /// enqueued by threads that its controller joins between phases.
    fn capture_steps(&mut self) -> Result<()> {
        Err(graph::refused(
            "of DataParallel, whose controller joins its devices' threads between phases",
            "one device, ranks, or replicas that never meet",
        ))
    }

    /// Blocks until all devices are idle.
    ///
    /// # Errors
    /// A device's failure.
    fn finish(&mut self) -> Result<()> {
        Ok(self.master().backend.synchronize()?)
    }

    /// Loss of the last step: the mean over this strategy's (under DDP this rank's) samples. Blocks.
    ///
    /// # Errors
    /// A device's failure.
    fn loss(&mut self) -> Result<f32> {
        self.master().read_loss()
    }

    /// A step that also says, of each bucket of gradients, how far it is from the exact mean over the ranks; nothing where
    /// gradients are not exchanged in buckets. Blocks; every rank must call it, and no time of it means anything.
    ///
    /// # Errors
    /// As [`Strategy::step`].
    fn checked_step(&mut self, batch: HostBatch<'_>) -> Result<Vec<Fidelity>> {
        self.step(batch, &mut Silent)?;
        Ok(Vec::new())
    }

    /// Mean loss and errors in evaluation mode, on one device; any number of samples. Blocks. Under DDP every rank
    /// must call it, as with PyTorch, for the ranks may exchange buffers first.
    ///
    /// # Errors
    /// A device's failure.
    fn evaluate(&mut self, batch: HostBatch<'_>) -> Result<Evaluation> {
        self.master().evaluate(batch)
    }

    /// Parameters, buffers and optimizer state (`momentum.<parameter>`; `exp_avg.`,
    /// `exp_avg_sq.` and `step`) by PyTorch's names. Blocks. Under ZeRO-1 every rank must call it, for each holds a shard
    /// of the state.
    ///
    /// # Errors
    /// A device's failure.
    fn export(&mut self) -> Result<Vec<NamedTensor>> {
        self.master().export()
    }

    /// Takes over what [`Strategy::export`] gave. Under DDP every rank must.
    ///
    /// # Errors
    /// Tensors that do not fit, or a device's failure.
    fn import(&mut self, tensors: &[NamedTensor]) -> Result<()> {
        self.master().import(tensors)
    }

    /// Remembers parameters, buffers, optimizer state and step number, exactly. Blocks.
    ///
    /// # Errors
    /// A device's failure.
    fn snapshot(&mut self) -> Result<()> {
        self.master().snapshot()
    }

    /// Goes back to the snapshot, as often as wanted. Blocks.
    ///
    /// # Errors
    /// [`StrategyError::NoSnapshot`], or a device's failure.
    fn restore(&mut self) -> Result<()> {
        self.master().restore()
    }

    /// The learning rate of the steps that follow: what the schedule is applied to.
    ///
    /// # Errors
    /// A device's failure.
    fn set_learning_rate(&mut self, rate: f32) -> Result<()> {
        self.master().set_learning_rate(rate)
    }

    /// Whether all ranks hold bit-equal parameters; `None` where there are no ranks. Blocks; every rank must call it.
    ///
    /// # Errors
    /// A device's or rank's failure.
    fn parameters_equal(&mut self) -> Result<Option<bool>> {
        Ok(None)
    }

    /// Blocks until all ranks are here.
    ///
    /// # Errors
    /// When the job was aborted.
    fn barrier(&mut self) -> Result<()> {
        Ok(())
    }

    /// Blocks until all ranks are here; returns what rank 0 brought.
    ///
    /// # Errors
    /// When the job was aborted.
    fn agree(&mut self, value: u64) -> Result<u64> {
        Ok(value)
    }

    /// What was counted since the last reset, by rank or device.
    fn counts(&self) -> Vec<(usize, Count)> {
        Vec::new()
    }

    /// Forgets the counts.
    fn reset_counts(&mut self) {}

    /// Bytes allocated by category, one entry per device of this strategy.
    fn memory(&mut self) -> Vec<MemoryUse> {
        vec![self.master().backend.memory_use()]
    }

    /// Which algorithms NVIDIA's libraries took, one list per device as in [`Strategy::memory`]; empty on CPUs.
    fn choices(&mut self) -> Vec<Vec<Choice>> {
        vec![self.master().backend.choices()]
    }
}
