//! The types of a scenario file: what each key is called, which values it takes and its default.
//!
//! Contract: these types say what is well formed, `check` says what is meaningful. There is no `untagged`,
//! no `flatten` and no internally tagged enum, so every error keeps the place of the value that caused it.
//! `syncmark schema` prints the format as JSON Schema; the files in `scenarios` are examples of all of it.
mod learning;
mod parallel;
mod time_span;
mod train;

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use syncmark_engine::comm::Collective;
use syncmark_engine::model::spec::{LayerSpec, Momentum, Norm, Padding};

use crate::scenario::size::ByteSize;

pub use learning::{Evaluate, EvaluationSplit};
pub use parallel::{
    BUCKET_CAP, BackendChoice, Compression, DpLoss, DpTransport, FIRST_BUCKET_CAP, Launch,
    Parallel, PowerSgd, Scaling, Strategy, Transport,
};
pub use time_span::TimeSpan;
pub use train::{
    Adamw, Cosine, CudaBatchNorm, CudaMatmul, Optimizer, Precision, Schedule, Sgd, StepDecay,
    Train, WarmUp,
};

/// One scenario file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name of the scenario; names its run folders.
    pub name: String,
    /// The question that the report answers.
    pub question: String,
    /// What is measured.
    pub kind: Kind,
    /// What the report's answer in words compares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
    /// The model that trains.
    #[serde(default)]
    pub model: Model,
    /// The samples it trains on; only `kind = "collectives"` goes without.
    #[serde(default)]
    pub data: Data,
    /// Optimizer and initial parameters.
    #[serde(default)]
    pub train: Train,
    /// How the work is spread over devices.
    #[serde(default)]
    pub parallel: Parallel,
    /// Operations and sizes of `kind = "collectives"`.
    #[serde(default)]
    pub collectives: Collectives,
    /// When and on what `kind = "learning"` evaluates.
    #[serde(default)]
    pub evaluate: Evaluate,
    /// How long and how often it is measured.
    #[serde(default)]
    pub measure: Measure,
    /// Lists of values for dotted keys; every combination is a trial.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sweep: BTreeMap<String, Vec<serde_json::Value>>,
    /// Named sets of overrides; with a sweep, each is combined with every combination of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variant: Vec<Variant>,
}

impl Scenario {
    /// Whether what trains learns to an end. Where GPUs are accepted both are done: an end in `[train]` says which.
    pub fn learns(&self) -> bool {
        let ends = self.train.steps.is_some() || self.train.epochs.is_some();
        self.kind == Kind::Learning || (self.kind == Kind::Acceptance && ends)
    }
}

/// What a scenario measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Whole training steps.
    Train,
    /// Collectives of ranks, without training.
    Collectives,
    /// Training steps of one device, with the time of every node of the model.
    LayerCost,
    /// What norms cost: nodes timed on one device, whole steps and exchanges of ranks under DDP.
    NormCost,
    /// Training to an end, with evaluations: what is learned, not how fast. Every repeat has seeds of its own.
    Learning,
    /// Collectives of ranks, and training: steps, or to an end where one is given. All of it is held against other programs on this machine's GPUs.
    Acceptance,
}

impl Kind {
    /// What can be written.
    pub const NAMES: [&'static str; 6] = [
        "train",
        "collectives",
        "layer-cost",
        "norm-cost",
        "learning",
        "acceptance",
    ];
}

/// `[collectives]`: which operations are timed at which sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Collectives {
    /// In the order in which they are timed.
    pub operations: Vec<Operation>,
    /// Smallest message, over all ranks, as nccl-tests counts.
    pub from: ByteSize,
    /// Largest message.
    pub to: ByteSize,
    /// Factor from one size to the next.
    pub factor: u64,
    /// Calls of a size that are not timed.
    pub warmup: u64,
    /// Fewest timed calls of a size.
    pub iterations: u64,
    /// Shortest time that a size is timed for.
    pub min_time: TimeSpan,
}

/// A collective that can be timed alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Operation {
    Broadcast,
    Reduce,
    AllReduce,
    AllGather,
    ReduceScatter,
    Scatter,
    Gather,
    /// From the first rank to the last.
    SendRecv,
    Barrier,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Broadcast,
        Self::Reduce,
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::Scatter,
        Self::Gather,
        Self::SendRecv,
        Self::Barrier,
    ];

    /// The engine's name of it; a send stands for both of its ends.
    pub fn collective(self) -> Collective {
        match self {
            Self::Broadcast => Collective::Broadcast,
            Self::Reduce => Collective::Reduce,
            Self::AllReduce => Collective::AllReduce,
            Self::AllGather => Collective::AllGather,
            Self::ReduceScatter => Collective::ReduceScatter,
            Self::Scatter => Collective::Scatter,
            Self::Gather => Collective::Gather,
            Self::SendRecv => Collective::Send,
            Self::Barrier => Collective::Barrier,
        }
    }
}

/// `[answer]`: what the report's answer in words compares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Dotted key whose values are compared, or `variant`.
    pub factor: String,
    /// The value that the others are compared with.
    pub baseline: serde_json::Value,
    /// The figure that is compared.
    pub metric: Metric,
}

/// A figure of a trial that an answer can compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Samples over the wall time of the window.
    SamplesPerS,
    /// Wall time of the window over its steps.
    StepMs,
    /// Bytes sent in a step over all devices, as counted.
    BytesPerStep,
}

/// `[model]`: a preset, or layers in place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name of a model file: mlp, convnet, resnet20, resnet18, resnet50, char-encoder, bert-mini, bert-mini-tied, bert-base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<String>,
    /// Layers in place of a preset, in order of execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<LayerSpec>>,
    /// With `layers`: per-sample input shape, used where the data source leaves it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Vec<usize>>,
    /// With `layers`: classes, used where the data source leaves them open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// The norm that the model's `norm` layers become.
    #[serde(default)]
    pub norm: Norm,
    /// Groups of `norm = "group"`; must divide the channels. Default: min(32, channels / 4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_groups: Option<usize>,
    /// Whether padding counts in the statistics of `norm = "batch"` and `"sync-batch"` over sequences of tokens. Default: it does,
    /// as in PyTorch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_padding: Option<Padding>,
    /// Weight of the new batch in the running statistics of `norm = "batch"` and `"sync-batch"`, or `"cumulative"`. Default: 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_momentum: Option<Momentum>,
    /// Samples whose statistics the momentum m is meant for: with b of them taken together it becomes 1 − (1 − m)^(b / this), so that running
    /// statistics remember as many samples whatever b is. Default: it stays m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub norm_momentum_batch: Option<usize>,
}

/// Share of tokens that is hidden by default: Devlin et al. 2018, 3.1.
pub const HIDDEN: f32 = 0.15;

/// `[data]`: where samples come from and how many a step takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Where samples come from.
    pub source: Source,
    /// Folder of the files of `fashion-mnist` or `cifar10`; default: SYNCMARK_DATA, then the known places. Of `text` a file with a word a
    /// line, such as /usr/share/dict/words; default: the shipped words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Per-sample shape of `synthetic`; default: the model's input. Of tokens `[length]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// Classes of `synthetic`; default: the model's. Of tokens the vocabulary, with padding (0) and mask (1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Of tokens: fewest words of a synthetic sequence, the rest of which is padding. Default: no padding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortest: Option<usize>,
    /// Of tokens: the share that is hidden, from 0 to 1; one in each sequence always is. Default: 0.15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<f32>,
    /// Of tokens: what is predicted. Default: what is hidden.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predict: Option<Predict>,
    /// Samples per step: per device with `scaling = "weak"`, over all devices with `"strong"`.
    pub batch_size: usize,
    /// Loader workers per device; only 0 (the training thread loads) is supported now.
    #[serde(default)]
    pub workers: usize,
    /// Seed of the sampler's permutation and of synthetic samples.
    #[serde(default)]
    pub seed: u64,
}

/// Which tokens have a label, over which the loss is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Predict {
    /// Those that are hidden.
    Hidden,
    /// All but padding.
    All,
}

/// Where samples come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// UCI handwritten digits: 1797 images of 1×8×8 in 10 classes, embedded.
    Digits,
    /// Fashion-MNIST: 60,000 images of 1×28×28 in 10 classes, from files of the user.
    FashionMnist,
    /// CIFAR-10: 50,000 images of 3×32×32 in 10 classes, from files of the user.
    Cifar10,
    /// Words as sequences of characters, for a model with an embedding: 3984 shipped ones, or a list of the user's.
    Text,
    /// Random samples of any shape; for a model with an embedding, sequences of random tokens.
    Synthetic,
}

/// `[measure]`: how long and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Measure {
    /// Fewest steps of the timed window; it is longer where `min_time` asks for more.
    pub steps: usize,
    /// Shortest timed window.
    pub min_time: TimeSpan,
    /// Fewest steps before the window.
    pub warmup_steps: usize,
    /// Shortest time before the window.
    pub warmup_time: TimeSpan,
    /// Blocks; in each, every trial runs once. Below 6 the report prints a range and no verdict.
    pub repeats: usize,
    /// A child that takes longer is stopped, and its trial's outcome is `timeout`. With `kind = "learning"` the default is a day.
    pub timeout: TimeSpan,
    /// Steps of the tracing pass after the window.
    pub trace_steps: usize,
    /// Seed of the order of trials within blocks; recorded.
    pub seed: u64,
    /// Measure the same steps with synchronization off too: the paired arm behind exposed communication.
    pub unsynchronized: bool,
    /// Repeats run side by side, as many as have cores of their own; only with `kind = "learning"`, which times nothing.
    pub concurrent: bool,
    /// Name steps, phases and layers for NVIDIA's profilers (NVTX ranges), where that library is installed.
    pub nvtx: bool,
    /// A smoke size: too short to cite, labelled so wherever it is shown, and free of the shortest times.
    pub smoke: bool,
}

/// A named set of overrides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Shown in tables and charts.
    pub name: String,
    /// Dotted keys and their values.
    pub set: BTreeMap<String, serde_json::Value>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            source: Source::Synthetic,
            path: None,
            shape: None,
            classes: None,
            shortest: None,
            hidden: None,
            predict: None,
            batch_size: 1,
            workers: 0,
            seed: 0,
        }
    }
}

impl Default for Collectives {
    fn default() -> Self {
        Self {
            operations: Operation::ALL.to_vec(),
            from: ByteSize(4),
            to: ByteSize::mib(64),
            factor: 4,
            warmup: 5,
            iterations: 20,
            min_time: TimeSpan(Duration::from_millis(100)),
        }
    }
}

impl Default for Measure {
    fn default() -> Self {
        Self {
            steps: 30,
            min_time: TimeSpan::seconds(5),
            warmup_steps: 5,
            warmup_time: TimeSpan::seconds(2),
            repeats: 10,
            timeout: TimeSpan::seconds(300),
            trace_steps: 20,
            seed: 0,
            unsynchronized: true,
            concurrent: false,
            nvtx: false,
            smoke: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_kinds_are_those_that_are_read() {
        let error = serde_json::from_str::<Kind>("\"none\"")
            .unwrap_err()
            .to_string();
        let expected = Kind::NAMES.map(|name| format!("`{name}`")).join(", ");
        assert!(
            error.contains(&format!("expected one of {expected} at")),
            "{error}"
        );
    }
}
