//! What one trial is: the effective configuration that a child process receives as JSON.
//!
//! Contract: a `TrialConfig` is complete (the child reads no file and has no default of its own) and holds
//! nothing that its strategy does not use, so two trials that would do the same work have the same id.
//! The child protocol carries it verbatim; see "The runner" in ARCHITECTURE.md.
use serde::{Deserialize, Serialize};
use syncmark_engine::model::NormOptions;
use syncmark_engine::model::spec::{
    BatchNormSpec, GroupNormSpec, ModelSpec, Momentum, Norm, Padding,
};

use crate::plan::model::keeps_own_statistics;
use crate::scenario::file::{
    Compression, CudaBatchNorm, CudaMatmul, EvaluationSplit, Launch, Operation, Optimizer,
    PowerSgd, Precision, Predict, Scaling, Schedule,
};

mod strategy;
pub use strategy::{DdpConfig, DpConfig, StrategyConfig, Zero1Config};

/// Version of [`TrialConfig`]'s JSON; a child refuses any other.
pub const PROTOCOL_VERSION: u32 = 1;

/// More threads of a device than this cannot be meant either.
pub const MAX_THREADS: usize = 256;

/// More devices than this cannot be meant, and a rank each would exhaust the machine.
pub const MAX_DEVICES: usize = 1024;

/// Everything a child needs in order to run one trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialConfig {
    /// [`PROTOCOL_VERSION`] of the writer. Not part of the trial's id.
    pub protocol: u32,
    /// What is measured. Collectives use neither model, data nor optimizer: these hold the same values in all such trials.
    pub work: Work,
    /// The model, resolved; its `input` and `classes` are those of the data.
    pub model: ModelSpec,
    /// What the model's `norm` layers become; `none` where the model has no such layer.
    pub norm: Norm,
    /// Groups of `norm = "group"`; `None` is min(32, channels / 4).
    pub norm_groups: Option<usize>,
    /// Whether padding counts in batch statistics; none where it is not said or means nothing, and then it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_padding: Option<Padding>,
    /// Momentum of running statistics, made to fit the normalization batch where the scenario says so; none where it is the usual one or
    /// means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_momentum: Option<Momentum>,
    /// Where samples come from.
    pub data: DataConfig,
    /// The optimizer and its settings.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// Micro-batches of a step; each has the samples of [`TrialConfig::batch`].
    pub accumulation: usize,
    /// How matrix products and convolutions are computed.
    #[serde(default, skip_serializing_if = "is_fp32")]
    pub precision: Precision,
    /// Whether a step is launched as one CUDA graph.
    #[serde(default, skip_serializing_if = "is_off")]
    pub cuda_graph: bool,
    /// Who computes batch norm on GPUs.
    #[serde(default, skip_serializing_if = "is_own")]
    pub cuda_batch_norm: CudaBatchNorm,
    /// Who multiplies matrices on GPUs.
    #[serde(default, skip_serializing_if = "is_cublas")]
    pub cuda_matmul: CudaMatmul,
    /// Seed of initial parameters and dropout masks.
    pub train_seed: u64,
    /// Who holds a replica, and what is exchanged.
    pub strategy: StrategyConfig,
    /// What computes.
    pub backend: Backend,
    /// Number of devices N, at least 1.
    pub devices: usize,
    /// Threads that compute on each device, at least 1.
    #[serde(default = "one_thread", skip_serializing_if = "is_one_thread")]
    pub threads: usize,
    /// Whether the batch of the scenario was per device or global.
    pub scaling: Scaling,
    /// Samples of one micro-batch.
    pub batch: Batch,
    /// How long it is measured.
    pub measure: MeasureConfig,
}

/// Configurations that say nothing have one thread a device, and one thread is not said, so that ids of trials stay the same.
fn one_thread() -> usize {
    1
}

fn is_fp32(precision: &Precision) -> bool {
    *precision == Precision::Fp32
}

fn is_own(batch_norm: &CudaBatchNorm) -> bool {
    *batch_norm == CudaBatchNorm::Own
}
fn is_cublas(matmul: &CudaMatmul) -> bool {
    *matmul == CudaMatmul::Cublas
}

fn is_off(on: &bool) -> bool {
    !*on
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

fn is_one_thread(threads: &usize) -> bool {
    *threads == 1
}

/// Who computes the batch norms of a trial; none on CPUs, and where it has none.
pub fn batch_norm_by(config: &TrialConfig) -> Option<CudaBatchNorm> {
    let there = keeps_own_statistics(&config.model, config.norm) && config.work.steps();
    (config.backend == Backend::Cuda && there || config.cuda_batch_norm != CudaBatchNorm::Own)
        .then_some(config.cuda_batch_norm)
}

/// What a trial measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Whole training steps.
    Train,
    /// Collectives of ranks that do nothing else.
    Collectives(CollectivesConfig),
    /// Whole training steps of one device, and the time of every node of the model.
    LayerCost,
    /// Training to an end, with evaluations.
    Learning(LearningConfig),
}

/// How long a trial learns, and how it is evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningConfig {
    /// When it ends.
    pub length: Length,
    /// Samples whose batch statistics are taken together on one device; none: the whole of a device's batch.
    pub normalization_batch: Option<usize>,
    /// Steps between evaluations; none: those of an epoch.
    pub every: Option<usize>,
    /// What it is evaluated on.
    pub split: EvaluationSplit,
    /// Share of the training samples that is held out.
    pub validation: f64,
    /// Whether it is also evaluated with batch statistics.
    pub batch_statistics: bool,
    /// Batches whose statistics are averaged for PreciseBN; 0 for none.
    pub precise_batches: usize,
    /// Masks that it is evaluated with where the model drops something; 0 for none, and where it does not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropout_masks: usize,
}

/// When learning ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// After so many rounds through the training samples.
    Epochs(usize),
    /// After so many steps.
    Steps(usize),
}

/// Operations and sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectivesConfig {
    /// In the order in which they are timed.
    pub operations: Vec<Operation>,
    /// Sizes of the messages, over all ranks.
    pub sizes_bytes: Vec<u64>,
    /// Calls of a size that are not timed.
    pub warmup: u64,
    /// Fewest timed calls of a size.
    pub iterations: u64,
    /// Shortest time that a size is timed for.
    pub min_time_ns: u64,
}

impl Work {
    /// The scenario's kind, as in `trials.csv`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Collectives(_) => "collectives",
            Self::LayerCost => "layer-cost",
            Self::Learning(_) => "learning",
        }
    }

    /// Whether whole training steps are taken.
    pub fn steps(&self) -> bool {
        match self {
            Self::Train | Self::LayerCost | Self::Learning(_) => true,
            Self::Collectives(_) => false,
        }
    }
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceConfig {
    /// The embedded digits: `[1, 8, 8]`, 10 classes.
    Digits,
    /// Fashion-MNIST: `[1, 28, 28]`, 10 classes.
    FashionMnist {
        /// Folder that the scenario names.
        path: Option<String>,
    },
    /// CIFAR-10: `[3, 32, 32]`, 10 classes.
    Cifar10 {
        /// Folder that the scenario names.
        path: Option<String>,
    },
    /// Words of at most `model.input` characters.
    Text {
        /// List that the scenario names; none: the shipped words.
        path: Option<String>,
        /// How characters are hidden.
        masking: MaskingConfig,
    },
    /// Random samples of `model.input` in `model.classes` classes.
    Synthetic,
    /// Sequences of `model.input` random tokens out of `model.classes`.
    SyntheticTokens {
        /// Fewest words; the rest is padding.
        shortest: usize,
        /// How words are hidden.
        masking: MaskingConfig,
    },
}

/// How tokens are hidden, with the data's seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskingConfig {
    /// The share of them.
    pub share: f32,
    /// What has a label.
    pub predict: Predict,
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

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// Sets of CPU cores.
    #[default]
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// Samples of one micro-batch: of a step, where that has one.
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
    /// Whether steps, phases and layers are named for profilers.
    #[serde(default, skip_serializing_if = "is_off")]
    pub nvtx: bool,
    /// A smoke size: exempt from the shortest times and labelled.
    pub smoke: bool,
}

/// A short name for `trials.csv` and labels, with every setting that is not the usual one.
pub fn compression_name(compression: Compression) -> String {
    match compression {
        Compression::None => "none".to_owned(),
        Compression::Fp16 => "fp16".to_owned(),
        Compression::Bf16 => "bf16".to_owned(),
        Compression::Powersgd(power) => {
            let without = |on: bool, word: &str| match on {
                true => String::new(),
                false => format!("-no-{word}"),
            };
            let from = match power.start_step {
                usual if usual == PowerSgd::default().start_step => String::new(),
                step => format!("-from{step}"),
            };
            format!(
                "powersgd-r{}{from}{}{}",
                power.rank,
                without(power.error_feedback, "feedback"),
                without(power.warm_start, "warm-start")
            )
        }
    }
}

/// An optimizer with all of its settings, for `trials.csv`: trials that differ in one of them are not the same.
pub fn optimizer_name(optimizer: &Optimizer) -> String {
    match optimizer {
        Optimizer::Sgd(sgd) => format!(
            "{} learning_rate={} momentum={} weight_decay={}",
            if sgd.nesterov { "sgd-nesterov" } else { "sgd" },
            sgd.learning_rate,
            sgd.momentum,
            sgd.weight_decay
        ),
        Optimizer::Adamw(adam) => format!(
            "adamw learning_rate={} beta1={} beta2={} eps={} weight_decay={}",
            adam.learning_rate, adam.beta1, adam.beta2, adam.eps, adam.weight_decay
        ),
    }
}

/// A momentum of running statistics as a user would write it.
pub fn momentum_name(momentum: Momentum) -> String {
    match momentum {
        Momentum::Exponential(weight) => weight.to_string(),
        Momentum::Cumulative => "cumulative".to_owned(),
    }
}

/// What is done with padding, as a scenario has it.
pub fn padding_name(padding: Padding) -> String {
    match padding {
        Padding::Counted => "counted".to_owned(),
        Padding::Masked => "masked".to_owned(),
    }
}

/// A schedule with all of its settings, for `trials.csv`.
pub fn schedule_name(schedule: &Schedule) -> String {
    match schedule {
        Schedule::Constant => "constant".to_owned(),
        Schedule::WarmUp(warm) => format!("warm-up steps={} start={}", warm.steps, warm.start),
        Schedule::Step(step) => format!("step every={} factor={}", step.every, step.factor),
        Schedule::Cosine(cosine) => format!(
            "cosine steps={} warm_up_steps={} minimum={}",
            cosine.steps, cosine.warm_up_steps, cosine.minimum
        ),
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
        norm_options(self.norm_groups, self.norm_padding, self.norm_momentum)
    }

    /// Processes that one repeat starts: N for process ranks, one for everything else.
    pub fn processes(&self) -> usize {
        match self.strategy.launched() {
            Some(Launch::Processes) => self.devices,
            _ => 1,
        }
    }

    /// The strategy's name in `trials.csv`: ranks that only communicate follow none.
    pub fn strategy_name(&self) -> &'static str {
        match self.work {
            Work::Train | Work::LayerCost | Work::Learning(_) => self.strategy.name(),
            Work::Collectives(_) => "ranks",
        }
    }

    /// How it learns, if it does.
    pub fn learning(&self) -> Option<&LearningConfig> {
        match &self.work {
            Work::Learning(learning) => Some(learning),
            _ => None,
        }
    }

    /// Samples whose batch statistics are taken together.
    pub fn normalization_batch(&self) -> usize {
        if self.norm == Norm::SyncBatch {
            return self.batch.global;
        }
        let own = self
            .learning()
            .and_then(|learning| learning.normalization_batch);
        own.unwrap_or_else(|| {
            self.batch
                .chunks
                .first()
                .copied()
                .unwrap_or(self.batch.global)
        })
    }

    /// The trial of a repeat: learning trials have seeds of their own in each, equal in all trials.
    pub fn of_repeat(&self, repeat: u32) -> Self {
        let mut config = self.clone();
        if self.learning().is_some() {
            config.train_seed = config.train_seed.wrapping_add(u64::from(repeat));
            // Far apart, because an epoch adds to it: no order is that of another repeat's epoch.
            config.data.seed = config.data.seed.wrapping_add(u64::from(repeat) << 32);
        }
        config
    }

    /// Samples per step over all devices, of all micro-batches.
    pub fn step_samples(&self) -> usize {
        self.accumulation * self.batch.global
    }

    /// Samples per step on the most loaded device, of all micro-batches.
    pub fn device_samples(&self) -> usize {
        self.accumulation * self.batch.chunks.iter().copied().max().unwrap_or(0)
    }
}

/// Settings of the layers that `norm` stands for: PyTorch's defaults, but for what a scenario can set.
pub fn norm_options(
    groups: Option<usize>,
    padding: Option<Padding>,
    momentum: Option<Momentum>,
) -> NormOptions {
    let usual = BatchNormSpec::default();
    NormOptions {
        batch: BatchNormSpec {
            padding: padding.unwrap_or_default(),
            momentum: momentum.unwrap_or(usual.momentum),
            ..usual
        },
        group: GroupNormSpec {
            groups,
            ..GroupNormSpec::default()
        },
        ..NormOptions::default()
    }
}
