//! The types of a scenario file: what each key is called, which values it takes and its default.
//!
//! Contract: these types say what is well formed, `check` says what is meaningful. There is no `untagged`,
//! no `flatten` and no internally tagged enum, so every error keeps the place of the value that caused it.
//! The format is described under "Scenario files" in ARCHITECTURE.md; `syncmark schema` prints it as JSON Schema.
use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use syncmark_engine::model::spec::{LayerSpec, Norm};

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
    /// The samples it trains on.
    pub data: Data,
    /// Optimizer and initial parameters.
    #[serde(default)]
    pub train: Train,
    /// How the work is spread over devices.
    #[serde(default)]
    pub parallel: Parallel,
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
}

/// `[model]`: a preset, or layers in place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name of a model file: mlp, convnet, resnet20.
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
    /// Random samples of any shape.
    Synthetic,
}

/// `[train]`: optimizer and initial parameters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// The optimizer and its settings.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Seed of initial parameters and dropout masks, the same on every rank.
    #[serde(default)]
    pub seed: u64,
}

/// The optimizer and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// Stochastic gradient descent with PyTorch's momentum and weight decay.
    Sgd(Sgd),
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

impl Default for Optimizer {
    fn default() -> Self {
        Self::Sgd(Sgd::default())
    }
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            learning_rate: 0.1,
            momentum: 0.9,
            weight_decay: 1e-4,
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
