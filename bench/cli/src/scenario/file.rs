//! The types of a scenario file: what each key is called, which values it takes and its default.
//!
//! Contract: these types say what is well formed, `check` says what is meaningful. There is no `untagged`,
//! no `flatten` and no internally tagged enum, so every error keeps the place of the value that caused it.
//! The format is described under "Scenario files" in ARCHITECTURE.md; `syncmark schema` prints it as JSON Schema.
use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use syncmark_engine::comm::Collective;
use syncmark_engine::model::spec::{LayerSpec, Norm};

use crate::scenario::size::ByteSize;

/// PyTorch's caps of DDP's buckets: the first is smaller so that it starts early, as long as nobody chose a cap.
pub const BUCKET_CAP: ByteSize = ByteSize::mib(25);
/// See [`BUCKET_CAP`].
pub const FIRST_BUCKET_CAP: ByteSize = ByteSize::mib(1);

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
    /// Name of a model file: mlp, convnet, resnet20, resnet18, resnet50.
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
}

/// `[data]`: where samples come from and how many a step takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Where samples come from.
    pub source: Source,
    /// Folder of the files of `fashion-mnist` or `cifar10`; default: SYNCMARK_DATA, then the known places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Per-sample shape of `synthetic`; default: the model's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// Classes of `synthetic`; default: the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Samples per step: per device with `scaling = "weak"`, over all devices with `"strong"`.
    pub batch_size: usize,
    /// Loader workers per device; only 0 (the training thread loads) is supported now.
    #[serde(default)]
    pub workers: usize,
    /// Seed of the sampler's permutation and of synthetic samples.
    #[serde(default)]
    pub seed: u64,
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
    /// Random samples of any shape.
    Synthetic,
}

/// `[train]`: optimizer and initial parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Train {
    /// The optimizer and its settings.
    pub optimizer: Optimizer,
    /// How the learning rate changes from step to step.
    pub schedule: Schedule,
    /// Micro-batches of a step: `batch_size` is that of one, and a step's gradient is their mean.
    pub accumulation: usize,
    /// Seed of initial parameters and dropout masks, the same on every rank.
    pub seed: u64,
}

/// The optimizer and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Stochastic gradient descent with PyTorch's momentum and weight decay.
    Sgd(Sgd),
    /// AdamW: Adam with decoupled weight decay.
    Adamw(Adamw),
}

/// How the learning rate changes from step to step, by PyTorch's closed forms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It does not.
    #[default]
    Constant,
    /// It grows linearly to the optimizer's.
    WarmUp(WarmUp),
    /// It is multiplied by a factor again and again.
    Step(StepDecay),
    /// It falls like half a cosine.
    Cosine(Cosine),
}

/// Settings of a warm-up: PyTorch's `LinearLR`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmUp {
    /// Steps until the optimizer's learning rate is reached.
    pub steps: usize,
    /// Share of the learning rate in the first step.
    #[serde(default)]
    pub start: f64,
}

/// Settings of a decay by steps: PyTorch's `StepLR`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StepDecay {
    /// Steps between two changes.
    pub every: usize,
    /// What the learning rate is multiplied by.
    pub factor: f64,
}

/// Settings of a cosine: PyTorch's `CosineAnnealingLR`, after a `LinearLR` where there is a warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cosine {
    /// Steps from the highest learning rate to the lowest, after the warm-up.
    pub steps: usize,
    /// Steps of a linear warm-up before.
    #[serde(default)]
    pub warm_up_steps: usize,
    /// Lowest learning rate.
    #[serde(default)]
    pub minimum: f64,
}

/// Settings of AdamW, with PyTorch's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Adamw {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub eps: f64,
    /// Share of the learning rate by which parameters shrink in a step.
    pub weight_decay: f64,
}

/// Settings of SGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sgd {
    /// Step size.
    pub learning_rate: f64,
    /// Weight of the previous update; 0 for none.
    pub momentum: f64,
    /// L2 penalty added to the gradient; 0 for none.
    pub weight_decay: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
}

/// `[parallel]`: how the work is spread over devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Parallel {
    /// Who holds a replica, and what is exchanged.
    pub strategy: Strategy,
    /// Whether DDP's ranks are threads of one process or processes.
    pub launch: Launch,
    /// Number of devices N.
    pub devices: usize,
    /// Whether `batch_size` is per device or global.
    pub scaling: Scaling,
    /// What computes.
    pub backend: BackendChoice,
    /// Where DP computes its loss.
    pub dp_loss: DpLoss,
    /// How ranks exchange bytes.
    pub transport: Transport,
    /// DDP and ZeRO: a bucket of gradients is closed once it holds this much.
    pub bucket_cap: ByteSize,
    /// The same for the first bucket; default: 1 MiB with the default `bucket_cap`, as in PyTorch, else `bucket_cap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_bucket_cap: Option<ByteSize>,
    /// DDP: whether buckets are reduced while backward goes on.
    pub overlap: bool,
    /// DDP with `accumulation`: only the last micro-batch of a step synchronizes.
    pub no_sync: bool,
    /// DDP: what gradients are exchanged as.
    pub compression: Compression,
    /// DDP and ZeRO: rank 0's buffers are broadcast before a forward, as PyTorch does.
    pub broadcast_buffers: bool,
    /// DP: the order of devices; the first holds the master. Default: 0, 1, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_ids: Option<Vec<usize>>,
    /// DP: where outputs are gathered. Default: the first of `device_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_device: Option<usize>,
    /// DP: the dimension that is scattered.
    pub dim: usize,
}

/// Who holds a replica, and what is exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// One device.
    Single,
    /// N replicas, free running: what the hardware itself loses when N run at once.
    Independent,
    /// DataParallel: one controller, replicas made anew at every step.
    Dp,
    /// DistributedDataParallel: one rank per device, gradients all-reduced.
    Ddp,
    /// ZeRO-1: as DDP, with the optimizer's state sharded over the ranks.
    Zero1,
}

/// How ranks exchange bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Through memory that ranks on one host share.
    Shared,
    /// Through TCP connections in a ring, on any hosts.
    Tcp,
}

/// What gradients are exchanged as: DDP's communication hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// IEEE half precision.
    Fp16,
    /// The upper half of fp32.
    Bf16,
    /// Low-rank approximations.
    Powersgd(PowerSgd),
}

/// Settings of PowerSGD, with the meaning of PyTorch's `PowerSGDState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PowerSgd {
    /// Rank of the approximation of each matrix.
    pub rank: usize,
    /// Steps with plain all-reduce before it starts.
    pub start_step: usize,
    /// Add what a step lost to the next one's gradient.
    pub error_feedback: bool,
    /// Start from the last step's factors.
    pub warm_start: bool,
}

/// How DDP's ranks are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Launch {
    /// Threads of one process.
    Threads,
    /// A process each, as torchrun does.
    Processes,
}

/// Whether the batch grows with the number of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// `batch_size` per device.
    Weak,
    /// `batch_size` over all devices.
    Strong,
}

/// What is asked to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BackendChoice {
    /// The fastest that this build has.
    Auto,
    /// Sets of CPU cores.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// Where DP computes its loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DpLoss {
    /// On device 0, on the gathered outputs.
    Gathered,
    /// In each replica's forward, as careful users write it; only losses are gathered.
    Replica,
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
    /// A child that takes longer is stopped, and its trial's outcome is `timeout`.
    pub timeout: TimeSpan,
    /// Steps of the tracing pass after the window.
    pub trace_steps: usize,
    /// Seed of the order of trials within blocks; recorded.
    pub seed: u64,
    /// Measure the same steps with synchronization off too: the paired arm behind exposed communication.
    pub unsynchronized: bool,
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

/// A length of time, written with its unit: `"300ms"`, `"2s"`, `"5m"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(with = "String")]
pub struct TimeSpan(pub Duration);

impl TimeSpan {
    /// A whole number of seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// In nanoseconds; saturates after 584 years.
    pub fn as_ns(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            source: Source::Synthetic,
            path: None,
            shape: None,
            classes: None,
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

impl Default for Optimizer {
    fn default() -> Self {
        Self::Sgd(Sgd::default())
    }
}

impl Default for Train {
    fn default() -> Self {
        Self {
            optimizer: Optimizer::default(),
            schedule: Schedule::default(),
            accumulation: 1,
            seed: 0,
        }
    }
}

impl Default for Adamw {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
        }
    }
}

impl Default for PowerSgd {
    fn default() -> Self {
        Self {
            rank: 1,
            start_step: 10,
            error_feedback: true,
            warm_start: true,
        }
    }
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 1e-4,
            nesterov: false,
        }
    }
}

impl Default for Parallel {
    fn default() -> Self {
        Self {
            strategy: Strategy::Single,
            launch: Launch::Processes,
            devices: 1,
            scaling: Scaling::Weak,
            backend: BackendChoice::Auto,
            dp_loss: DpLoss::Gathered,
            transport: Transport::Shared,
            bucket_cap: BUCKET_CAP,
            first_bucket_cap: None,
            overlap: true,
            no_sync: true,
            compression: Compression::None,
            broadcast_buffers: true,
            device_ids: None,
            output_device: None,
            dim: 0,
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
            smoke: false,
        }
    }
}

impl Serialize for TimeSpan {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let signed = jiff::SignedDuration::try_from(self.0).map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&format!("{signed:#}"))
    }
}

impl<'de> Deserialize<'de> for TimeSpan {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = TimeSpan;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(
                    "a duration with its unit, such as \"300ms\", \"2s\", \"5m\" or \"1h 30m\"",
                )
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<TimeSpan, E> {
                let parsed = text.parse::<jiff::SignedDuration>().ok();
                parsed
                    .and_then(|signed| Duration::try_from(signed).ok())
                    .map(TimeSpan)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
