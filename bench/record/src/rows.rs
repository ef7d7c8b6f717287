//! The rows of the CSV files of a run folder, one struct a file. Units stand in the column names.
//!
//! Every row that belongs to a trial starts with its id, the hash of its effective configuration.
//! An empty cell is `None`: not measured, never zero.
use serde::{Deserialize, Serialize};

use crate::outcome::Outcome;

mod algorithm;
mod ceiling;
mod collective;
mod compression;
mod gpu;
mod learning;

pub use algorithm::AlgorithmRow;
pub use ceiling::CeilingRow;
pub use collective::CollectiveRow;
pub use compression::CompressionRow;
pub use gpu::GpuRow;
pub use learning::{LearningRow, NormStatisticsRow};

/// `trials.csv`: one row per trial: what it was, how it ended, and its figures with their spread.
///
/// `*_low` and `*_high` are the ends of the 95 % bootstrap interval over blocks; with fewer than 6
/// repeats they are the smallest and largest repeat, and `spread` says which of the two it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialRow {
    /// Hash of the effective configuration.
    pub trial: String,
    /// Short name for people, such as `ddp-processes ×2`.
    pub label: String,
    /// Name of the scenario.
    pub scenario: String,
    /// `train` and later kinds.
    pub kind: String,
    /// Name of the `[[variant]]`, where there is one.
    pub variant: Option<String>,
    /// Model preset, or `in-place`.
    pub model: String,
    /// Norm that the model's `norm` layers became.
    pub norm: String,
    /// Data source.
    pub data: String,
    /// `single`, `independent`, `dp`, `ddp`, `zero1`.
    pub strategy: String,
    /// `threads`, `processes`, or empty where the strategy has no choice.
    pub launch: Option<String>,
    /// How ranks or devices exchange bytes: `shared`, `tcp`, `copies`, or empty.
    pub transport: Option<String>,
    /// Where DP computes the loss: `gathered` or `replica`.
    pub dp_loss: Option<String>,
    /// How DP's devices on GPUs replicate and reduce: `peer-copy` or `nccl`.
    #[serde(default)]
    pub dp_transport: Option<String>,
    /// DDP's and ZeRO's buckets: a bucket is closed once it holds this much, and the first one once it holds that much.
    pub bucket_cap_bytes: Option<u64>,
    pub first_bucket_cap_bytes: Option<u64>,
    /// Whether communication overlaps backward.
    pub overlap: Option<bool>,
    /// Micro-batches of a step.
    pub accumulation: Option<u64>,
    /// Whether only the last micro-batch synchronizes; empty with one micro-batch.
    pub no_sync: Option<bool>,
    /// `none`, `fp16`, `bf16`, `powersgd-r<rank>`.
    pub compression: Option<String>,
    /// Whether rank 0's buffers are broadcast before a forward.
    pub broadcast_buffers: Option<bool>,
    /// DP's order of devices where it is not 0, 1, ..., such as `1+0`, and the output device where it is not the first of it.
    pub device_ids: Option<String>,
    pub output_device: Option<u32>,
    /// `sgd`, `sgd-nesterov` or `adamw` and its settings, such as `sgd learning_rate=0.01 momentum=0.9 weight_decay=0.0001`.
    pub optimizer: Option<String>,
    /// `constant`, `warm-up`, `step` or `cosine` and its settings, such as `step every=30 factor=0.1`.
    pub schedule: Option<String>,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// How products and convolutions are computed on GPUs, and whether activations are narrower: `fp32`, `tf32` or `bf16`; empty on CPUs, which
    /// have no choice.
    pub precision: Option<String>,
    /// Whether a step is launched as one CUDA graph; empty on CPUs, which have none.
    #[serde(default)]
    pub cuda_graph: Option<bool>,
    /// Who computes batch norm: `own` or `cudnn`; empty on CPUs, and where there is none.
    #[serde(default)]
    pub cuda_batch_norm: Option<String>,
    /// Who multiplies matrices on GPUs: `cublas` or `cublaslt`; empty on CPUs.
    #[serde(default)]
    pub cuda_matmul: Option<String>,
    /// Number of devices N.
    pub devices: u32,
    /// Threads that compute on each device; not for collectives.
    pub threads: Option<u32>,
    /// `weak` or `strong`.
    pub scaling: String,
    /// Samples per step over all devices, of all micro-batches.
    pub global_batch: u64,
    /// Samples per step on the most loaded device, of all micro-batches.
    pub device_batch: u64,
    /// Scalar parameters of the model.
    pub parameters: u64,
    /// More devices than cores.
    pub oversubscribed: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, in words, unless it passed.
    pub reason: Option<String>,
    /// Repeats with figures.
    pub repeats: u32,
    /// `interval` (95 % bootstrap) or `range` (fewer than 6 repeats).
    pub spread: Option<String>,
    /// Median over repeats of window time / steps.
    pub step_ms: Option<f64>,
    pub step_ms_low: Option<f64>,
    pub step_ms_high: Option<f64>,
    /// Median over repeats of samples / wall time of the whole window.
    pub samples_per_s: Option<f64>,
    pub samples_per_s_low: Option<f64>,
    pub samples_per_s_high: Option<f64>,
    /// Throughput over N × that of `single` on 1 device (weak), within blocks.
    pub efficiency_single: Option<f64>,
    pub efficiency_single_low: Option<f64>,
    pub efficiency_single_high: Option<f64>,
    /// Throughput over that of `independent` on N devices, launched alike, within blocks.
    pub efficiency_independent: Option<f64>,
    pub efficiency_independent_low: Option<f64>,
    pub efficiency_independent_high: Option<f64>,
    /// Step time minus that of the same step with synchronization off, within repeats.
    pub exposed_communication_ms: Option<f64>,
    pub exposed_communication_ms_low: Option<f64>,
    pub exposed_communication_ms_high: Option<f64>,
    /// Sent bytes per step over all ranks: by the formula, by our counters, by an independent counter.
    pub predicted_bytes_per_step: Option<f64>,
    pub counted_bytes_per_step: Option<f64>,
    pub measured_bytes_per_step: Option<f64>,
    /// Peak of what the engine allocated on the fullest device.
    pub peak_memory_bytes: Option<u64>,
    /// Step time of the traced pass over that of the window.
    pub tracing_slowdown: Option<f64>,
    /// Everything a reader must know before trusting the row, separated by `; `.
    pub warnings: Option<String>,
    /// Of learning trials: samples whose batch statistics are taken together on one device.
    #[serde(default)]
    pub normalization_batch: Option<u64>,
    /// Momentum of running statistics where it is not the usual 0.1: a number, or `cumulative`.
    #[serde(default)]
    pub norm_momentum: Option<String>,
    /// What batch statistics over sequences do with padding: `counted` or `masked`.
    #[serde(default)]
    pub norm_padding: Option<String>,
}

/// The warning of a trial that ran beside others.
pub const SIDE_BY_SIDE: &str = "ran beside other trials: its seconds are not to be compared";

impl TrialRow {
    /// A trial of which only its id is known, without figures: what the writers of rows start from.
    pub fn unknown(id: &str) -> Self {
        let unknown = || "unknown".to_string();
        Self {
            trial: id.into(),
            label: format!("trial {id}"),
            scenario: String::new(),
            kind: unknown(),
            variant: None,
            model: unknown(),
            norm: unknown(),
            data: unknown(),
            strategy: unknown(),
            launch: None,
            transport: None,
            dp_loss: None,
            dp_transport: None,
            bucket_cap_bytes: None,
            first_bucket_cap_bytes: None,
            overlap: None,
            accumulation: None,
            no_sync: None,
            compression: None,
            broadcast_buffers: None,
            device_ids: None,
            output_device: None,
            optimizer: None,
            schedule: None,
            backend: unknown(),
            precision: None,
            cuda_graph: None,
            cuda_batch_norm: None,
            cuda_matmul: None,
            devices: 1,
            threads: None,
            scaling: "weak".into(),
            global_batch: 0,
            device_batch: 0,
            parameters: 0,
            oversubscribed: false,
            outcome: Outcome::Interrupted,
            reason: None,
            repeats: 0,
            spread: None,
            step_ms: None,
            step_ms_low: None,
            step_ms_high: None,
            samples_per_s: None,
            samples_per_s_low: None,
            samples_per_s_high: None,
            efficiency_single: None,
            efficiency_single_low: None,
            efficiency_single_high: None,
            efficiency_independent: None,
            efficiency_independent_low: None,
            efficiency_independent_high: None,
            exposed_communication_ms: None,
            exposed_communication_ms_low: None,
            exposed_communication_ms_high: None,
            predicted_bytes_per_step: None,
            counted_bytes_per_step: None,
            measured_bytes_per_step: None,
            peak_memory_bytes: None,
            tracing_slowdown: None,
            warnings: None,
            normalization_batch: None,
            norm_momentum: None,
            norm_padding: None,
        }
    }

    /// Samples of a micro-batch on the most loaded device.
    pub fn micro_batch(&self) -> u64 {
        self.device_batch / self.accumulation.unwrap_or(1).max(1)
    }
}

/// `repeats.csv`: one row per trial and repeat: what bootstrap, compare and history read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RepeatRow {
    pub trial: String,
    pub repeat: u32,
    /// Position within its block (all trials once, shuffled).
    pub order: u32,
    pub outcome: Outcome,
    pub reason: Option<String>,
    /// UTC, RFC 3339.
    pub started: String,
    /// Steps before the window, not measured.
    pub warmup_steps: u64,
    /// Steps of the window, per rank.
    pub steps: u64,
    /// Samples of the window over all ranks.
    pub samples: u64,
    /// Barrier until the last rank finished.
    pub window_ns: Option<u64>,
    /// The same steps with synchronization off (the paired arm).
    pub unsynchronized_steps: Option<u64>,
    pub unsynchronized_window_ns: Option<u64>,
    /// `before` or `after`: where the arm stood relative to the window.
    pub unsynchronized_order: Option<String>,
    /// Mean step time of the traced pass.
    pub traced_steps: Option<u64>,
    pub traced_window_ns: Option<u64>,
    /// Mean step time in the first and last third of the window, slowest rank.
    pub first_third_ns: Option<u64>,
    pub last_third_ns: Option<u64>,
    /// Mean training loss over ranks in the last step of the window.
    pub loss: Option<f64>,
    /// After the window: whether all ranks held bit-equal parameters (DDP), empty where it has no meaning.
    pub parameters_equal: Option<bool>,
    /// How long the ranks' cores were watched for other load, in the shorter of the two passes that are: the window with its
    /// barrier, and the arm without synchronization. Empty where nobody could watch.
    pub watched_ns: Option<u64>,
    /// CPU time of other programs and of the kernel's own work over `watched_ns`, on the core of the ranks and in the pass
    /// that had most of it.
    pub foreign_cpu_share: Option<f64>,
    /// Time that the hypervisor gave to others, on the core and in the pass that lost most.
    pub steal_share: Option<f64>,
    /// Time in which some thread of the machine waited for a core (pressure stall information): the ranks' own are among them.
    pub cpu_pressure_share: Option<f64>,
    /// How often the ranks' threads were made to give up a core, by each other or by anyone else, in both passes.
    pub involuntary_switches: Option<u64>,
    /// On GPUs, of the worst GPU and pass; `gpus.csv` has each. Samples of the GPU that was sampled least often.
    #[serde(default)]
    pub gpu_samples: Option<u64>,
    /// By how much the SM clock was lower in one third of a pass than in another: 0.05 is 5 %.
    #[serde(default)]
    pub gpu_clock_spread: Option<f64>,
    /// Share of samples in which heat, a power brake or another slowdown of the hardware held the clock back, and which.
    #[serde(default)]
    pub gpu_slowdown_share: Option<f64>,
    #[serde(default)]
    pub gpu_slowdown: Option<String>,
    /// Processes that are not the run's and had a context on the GPU.
    #[serde(default)]
    pub gpu_foreign_processes: Option<u64>,
}

/// Which pass a step belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pass {
    /// The timed window; the only source of headline figures.
    #[default]
    Window,
    /// The paired arm with synchronization off.
    Unsynchronized,
    /// The tracing pass; the only pass with phase columns.
    Traced,
    /// On GPUs: steps that begin on an idle device, of which the host's time is told apart from the device's.
    Dispatch,
}

/// `steps.csv`: one row per trial, repeat, rank and step. Phase totals are filled in the traced pass alone, `dispatch_ns` and what follows
/// it in the pass `dispatch` alone, which only GPUs have.
/// Phases on the communication track can overlap those on the compute track.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    pub trial: String,
    pub repeat: u32,
    pub rank: u32,
    pub pass: Pass,
    pub step: u64,
    /// Since the start of the pass on this rank's clock.
    pub start_ns: u64,
    pub step_ns: u64,
    pub data_ns: Option<u64>,
    pub host_to_device_ns: Option<u64>,
    pub scatter_ns: Option<u64>,
    pub replicate_ns: Option<u64>,
    pub forward_ns: Option<u64>,
    pub gather_ns: Option<u64>,
    pub loss_ns: Option<u64>,
    pub scatter_gradients_ns: Option<u64>,
    pub backward_ns: Option<u64>,
    pub reduce_ns: Option<u64>,
    pub all_reduce_ns: Option<u64>,
    /// ZeRO-1's gradient buckets, then its parameters.
    pub reduce_scatter_ns: Option<u64>,
    pub all_gather_ns: Option<u64>,
    pub buffer_broadcast_ns: Option<u64>,
    pub sync_batch_norm_ns: Option<u64>,
    /// Compute waiting for communication that backward did not hide.
    pub wait_ns: Option<u64>,
    pub optimizer_ns: Option<u64>,
    pub zero_ns: Option<u64>,
    /// Host: enqueuing the step, without `upload_ns` and without waiting for the device.
    #[serde(default)]
    pub dispatch_ns: Option<u64>,
    /// Host: handing the batch over.
    #[serde(default)]
    pub upload_ns: Option<u64>,
    /// Device: from when the batch has arrived until all else of the step is done.
    #[serde(default)]
    pub device_ns: Option<u64>,
}

/// `phases.csv`: full spans of up to 20 traced steps a repeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseRow {
    pub trial: String,
    pub repeat: u32,
    pub rank: u32,
    pub device: u32,
    /// `host`, `compute` or `communication`.
    pub track: String,
    /// Snake-case name of the phase, as in the columns of `steps.csv` without `_ns`.
    pub phase: String,
    /// Bucket of DDP or ZeRO-1, where the phase has one.
    pub bucket: Option<u32>,
    pub step: u64,
    /// On `clock`, since its first span; comparable between rows of one repeat on one clock.
    pub start_ns: u64,
    pub end_ns: u64,
    /// `host`, or under a launcher on several hosts the name of the rank's.
    pub clock: String,
}

/// `comm.csv`: one row per trial, repeat, rank (for DP: device), phase, collective and payload size. DP moves a phase in
/// several copies of different sizes: there a row is a device and phase, `size_bytes` is the phase's payload of a step,
/// `calls` counts copies, and quantiles are empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommRow {
    pub trial: String,
    pub repeat: u32,
    pub rank: u32,
    /// `scatter`, `replicate`, `gather`, `scatter_gradients`, `reduce`, `all_reduce`, `reduce_scatter`, `all_gather`,
    /// `buffer_broadcast`, `sync_batch_norm`.
    pub phase: String,
    /// `copy`, `all_reduce`, `broadcast`, `all_gather`, ...
    pub collective: String,
    /// The named algorithm whose chunks the prediction sums over.
    pub algorithm: String,
    /// Calls within the window, and the steps of it.
    pub calls: u64,
    pub steps: u64,
    /// Payload of one call.
    pub size_bytes: u64,
    pub payload_bytes: u64,
    /// Counted at the copies; empty where a library copies out of our sight (`nccl`).
    pub sent_bytes: Option<u64>,
    pub received_bytes: Option<u64>,
    pub predicted_sent_bytes: Option<u64>,
    pub predicted_received_bytes: Option<u64>,
    /// By a counter that is not ours; empty where there is none (`shared`, `copies`).
    pub measured_sent_bytes: Option<u64>,
    /// Waiting for the last rank to arrive, over calls.
    pub wait_ns_p50: Option<u64>,
    pub wait_ns_p90: Option<u64>,
    /// Moving and reducing bytes after that, over calls.
    pub transfer_ns_p50: Option<u64>,
    pub transfer_ns_p90: Option<u64>,
}

/// `devices.csv`: one row per trial, repeat and device: what it held and how long it computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceRow {
    pub trial: String,
    pub repeat: u32,
    pub device: u32,
    /// Cores the device is pinned to, such as `0` or `0-3`.
    pub cores: String,
    /// The categories sum to `peak_memory_bytes`.
    pub parameters_bytes: u64,
    pub gradients_bytes: u64,
    pub optimizer_bytes: u64,
    pub activations_bytes: u64,
    pub buffers_bytes: u64,
    /// Staging for communication, gathered outputs, workspaces.
    pub workspace_bytes: u64,
    pub peak_memory_bytes: u64,
    /// Time in compute phases per step of the traced pass.
    pub busy_ns_per_step: Option<u64>,
}

/// `gates.csv`: one row per trial that was gated: how far it agrees with one device, before anything is timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateRow {
    pub trial: String,
    pub label: String,
    /// What it was held against, such as `1 device, chunks 4+4`.
    pub reference: String,
    /// Training steps before the comparison.
    pub steps: u32,
    /// Tensors compared: parameters, buffers and optimizer state.
    pub tensors: u64,
    /// The one with the largest error, and its norm-wise relative error; empty where it is not finite.
    pub worst_tensor: Option<String>,
    pub error: Option<f64>,
    /// Largest error that passes.
    pub tolerance: f64,
    /// Whether all ranks held the same bits; empty where there is one set of parameters.
    pub bit_equal: Option<bool>,
    pub passed: bool,
    /// What is wrong, unless it passed.
    pub reason: Option<String>,
    /// The seed of the initial parameters is the trial's plus this.
    #[serde(default)]
    pub start: u32,
    /// It did not pass, but by so little that rounding can be the cause, and other initial parameters were tried.
    #[serde(default)]
    pub retried: bool,
}

/// `layers.csv`: one row per trial, repeat, node of the model and direction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerRow {
    pub trial: String,
    pub repeat: u32,
    /// Position in the program.
    pub node: u32,
    /// `conv2d`, `batch-norm`, ...
    pub layer: String,
    /// Such as `3.conv2d`.
    pub name: String,
    /// Per-sample shape of its output, such as `16×32×32`.
    pub output_shape: String,
    /// `forward` or `backward`.
    pub direction: String,
    /// Timed calls.
    pub calls: u64,
    pub time_ns_p10: u64,
    pub time_ns_p50: u64,
    pub time_ns_p90: u64,
    /// Floating-point operations of the call by formula; empty where the layer has none to speak of.
    pub flops: Option<u64>,
    /// Fewest bytes that the call must read and write; of a node that is executed within another, what it adds to that one's.
    pub read_write_bytes: Option<u64>,
    /// Scalar parameters of the node.
    pub parameters: u64,
    /// The node whose kernels do this node's work too, where it has none of its own: the two are held against a ceiling together.
    #[serde(default)]
    pub within: Option<u32>,
    /// How a convolution is computed: `direct` or `im2row`; backward such as `dx im2row, dw direct`.
    #[serde(default)]
    pub algorithm: Option<String>,
    /// Bytes that a norm keeps from forward for backward, by formula; of the forward row alone.
    #[serde(default)]
    pub kept_bytes: Option<u64>,
}
