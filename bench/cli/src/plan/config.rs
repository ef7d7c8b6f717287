//! What one trial is: the effective configuration that a child process receives as JSON.
//!
//! Contract: a `TrialConfig` is complete (the child reads no file and has no default of its own) and holds
//! nothing that its strategy does not use, so two trials that would do the same work have the same id.
//! The child protocol carries it verbatim; see "The runner" in ARCHITECTURE.md.
use serde::{Deserialize, Serialize};
use syncmark_engine::model::NormOptions;
use syncmark_engine::model::spec::{GroupNormSpec, ModelSpec, Norm};

use crate::scenario::file::{DpLoss, Launch, Optimizer, Scaling};

/// Version of [`TrialConfig`]'s JSON; a child refuses any other.
pub const PROTOCOL_VERSION: u32 = 1;

/// More devices than this cannot be meant, and a rank each would exhaust the machine.
pub const MAX_DEVICES: usize = 1024;

/// Everything a child needs in order to run one trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialConfig {
    /// [`PROTOCOL_VERSION`] of the writer. Not part of the trial's id.
    pub protocol: u32,
    /// The model, resolved; its `input` and `classes` are those of the data.
    pub model: ModelSpec,
    /// What the model's `norm` layers become; `none` where the model has no such layer.
    pub norm: Norm,
    /// Groups of `norm = "group"`; `None` is min(32, channels / 4).
    pub norm_groups: Option<usize>,
    /// Where samples come from.
    pub data: DataConfig,
    /// The optimizer and its settings.
    pub optimizer: Optimizer,
    /// Seed of initial parameters and dropout masks.
    pub train_seed: u64,
    /// Who holds a replica, and what is exchanged.
    pub strategy: StrategyConfig,
    /// What computes.
    pub backend: Backend,
    /// Number of devices N, at least 1.
    pub devices: usize,
    /// Whether the batch of the scenario was per device or global.
    pub scaling: Scaling,
    /// Samples of one step.
    pub batch: Batch,
    /// How long it is measured.
    pub measure: MeasureConfig,
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceConfig {
    /// The embedded digits: `[1, 8, 8]`, 10 classes.
    Digits,
    /// Random samples of `model.input` in `model.classes` classes.
    Synthetic,
}

/// Samples and their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Where samples come from.
    pub source: SourceConfig,
    /// Seed of the sampler's permutation and of synthetic samples.
    pub seed: u64,
}

/// A strategy with the settings that it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrategyConfig {
    /// One device.
    Single,
    /// N replicas without synchronization.
    Independent,
    /// DataParallel.
    Dp {
        /// Where the loss is computed.
        loss: DpLoss,
    },
    /// DistributedDataParallel.
    Ddp {
        /// What its ranks are.
        launch: Launch,
    },
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Sets of CPU cores.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// Samples of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Over all devices.
    pub global: usize,
    /// Per device, in device order, summing to `global`. Under DP with uneven chunks it can be shorter than
    /// `devices`: the devices beyond it get no samples, as in PyTorch.
    pub chunks: Vec<usize>,
}

/// How long a trial is measured. A window ends when both its steps and its time are reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasureConfig {
    /// Fewest steps of the window.
    pub steps: usize,
    /// Shortest window.
    pub min_time_ns: u64,
    /// Fewest steps before the window.
    pub warmup_steps: usize,
    /// Shortest time before the window.
    pub warmup_time_ns: u64,
    /// Longest life of a child.
    pub timeout_ns: u64,
    /// Steps of the tracing pass.
    pub trace_steps: usize,
    /// Whether the paired arm with synchronization off runs; never where there is nothing to synchronize.
    pub unsynchronized: bool,
    /// A smoke size: exempt from the shortest times and labelled.
    pub smoke: bool,
}

impl StrategyConfig {
    /// `single`, `independent`, `dp` or `ddp`, as in a scenario and in `trials.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Independent => "independent",
            Self::Dp { .. } => "dp",
            Self::Ddp { .. } => "ddp",
        }
    }

    /// `threads` or `processes` where the strategy has a choice.
    pub fn launch(self) -> Option<&'static str> {
        match self {
            Self::Ddp {
                launch: Launch::Threads,
            } => Some("threads"),
            Self::Ddp {
                launch: Launch::Processes,
            } => Some("processes"),
            _ => None,
        }
    }

    /// `gathered` or `replica` under DP.
    pub fn dp_loss(self) -> Option<&'static str> {
        match self {
            Self::Dp {
                loss: DpLoss::Gathered,
            } => Some("gathered"),
            Self::Dp {
                loss: DpLoss::Replica,
            } => Some("replica"),
            _ => None,
        }
    }
}

impl Backend {
    /// `cpu` or `cuda`, as in `trials.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl TrialConfig {
    /// Settings of the layers that the model's `norm` stands for.
    pub fn norm_options(&self) -> NormOptions {
        norm_options(self.norm_groups)
    }

    /// Processes that one repeat starts: N for process ranks, one for everything else.
    pub fn processes(&self) -> usize {
        match self.strategy {
            StrategyConfig::Ddp {
                launch: Launch::Processes,
            } => self.devices,
            _ => 1,
        }
    }

    /// Samples per step on the most loaded device.
    pub fn device_batch(&self) -> usize {
        self.batch.chunks.iter().copied().max().unwrap_or(0)
    }
}

/// Settings of the layers that `norm` stands for: PyTorch's defaults, but for the groups that a scenario can set.
pub fn norm_options(groups: Option<usize>) -> NormOptions {
    NormOptions {
        group: GroupNormSpec {
            groups,
            ..GroupNormSpec::default()
        },
        ..NormOptions::default()
    }
}
