//! `[parallel]`: who holds a replica, how ranks meet, and what they exchange.
//!
//! Reference: the constructors of `torch.nn.DataParallel`, `DistributedDataParallel` and `PowerSGDState`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scenario::size::ByteSize;

/// PyTorch's caps of DDP's buckets: the first is smaller so that it starts early, as long as nobody chose a cap.
pub const BUCKET_CAP: ByteSize = ByteSize::mib(25);
/// See [`BUCKET_CAP`].
pub const FIRST_BUCKET_CAP: ByteSize = ByteSize::mib(1);

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
    /// Threads that compute on each device, on a core each.
    pub threads: usize,
    /// Whether `batch_size` is per device or global.
    pub scaling: Scaling,
    /// What computes.
    pub backend: BackendChoice,
    /// On GPUs: whether devices may share one where there are fewer, which shows no performance. If not, such trials are left out.
    pub share_gpus: bool,
    /// Where DP computes its loss.
    pub dp_loss: DpLoss,
    /// How DP replicates parameters and reduces gradients.
    pub dp_transport: DpTransport,
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
    /// Between GPUs, by NVIDIA's library. On GPUs `shared` stands for it too.
    Nccl,
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
    /// GPUs where all is there that the scenario needs, with one for each device, and else the CPU; the run says which and why.
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

/// How DP replicates parameters and reduces gradients; everything else it copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DpTransport {
    /// By copies from device to device.
    #[default]
    PeerCopy,
    /// By NCCL's broadcast and reduce, as PyTorch does: for GPUs, one for each device. It has not run on hardware.
    Nccl,
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

impl Default for Parallel {
    fn default() -> Self {
        Self {
            strategy: Strategy::Single,
            launch: Launch::Processes,
            devices: 1,
            threads: 1,
            scaling: Scaling::Weak,
            backend: BackendChoice::Auto,
            share_gpus: true,
            dp_loss: DpLoss::Gathered,
            dp_transport: DpTransport::PeerCopy,
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
