//! `[train]`: the optimizer, its schedule and micro-batches, with PyTorch's names and defaults.
//!
//! Reference: `torch.optim` and `torch.optim.lr_scheduler`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use syncmark_engine::tensor::Dtype;

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
    /// How matrix products and convolutions are computed, and whether activations are narrower. CPUs have `fp32` only.
    pub precision: Precision,
    /// On GPUs with `kind = "train"`: capture a step once as a CUDA graph and launch that, in place of its kernels one by one; with the strategies
    /// `ddp` and `zero1` with NCCL's collectives in it. Not for `dp`, nor with `accumulation`. The results are the same, to the bit (with
    /// `single` and `independent`: ranks have not run on hardware).
    pub cuda_graph: bool,
    /// Who computes batch norm on GPUs: our kernels, or cuDNN, to time it beside ours; cuDNN's has not run on hardware.
    pub cuda_batch_norm: CudaBatchNorm,
    /// On GPUs: the library that multiplies matrices. `cublaslt`, with `tf32` and `bf16` alone, also adds biases of linear layers and sums their
    /// gradients; it has not run on hardware.
    pub cuda_matmul: CudaMatmul,
    /// Samples of a step that the optimizer's learning rate is meant for: it is multiplied by the step's samples over this (the linear rule,
    /// Goyal et al. 2017). Default: it stays as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate_batch: Option<usize>,
    /// Seed of initial parameters and dropout masks, the same on every rank. With `kind = "learning"`, that of the first repeat.
    pub seed: u64,
    /// With `kind = "learning"`: how often it goes through the training samples. Either this or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// With `kind = "learning"`: how many steps it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// With `kind = "learning"` on one device: samples whose batch statistics are taken together, which must divide the batch. Default:
    /// all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalization_batch: Option<usize>,
}

/// Who multiplies matrices on GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CudaMatmul {
    /// cuBLAS, with kernels of our own for biases.
    #[default]
    Cublas,
    /// cuBLASLt; cuBLAS for what is f32 and not rounded, and for attention.
    CublasLt,
}

impl CudaMatmul {
    /// `cublas` or `cublaslt`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cublas => "cublas",
            Self::CublasLt => "cublaslt",
        }
    }
}

/// How matrix products and convolutions are computed, and what activations are in memory; all other arithmetic is in fp32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// In fp32, multiply-adds included.
    #[default]
    Fp32,
    /// By a GPU's tensor cores, from operands rounded to 10 bits of fraction; sums in fp32.
    Tf32,
    /// As `torch.autocast(bfloat16)`: activations and their gradients lie in memory as bfloat16, and products and convolutions are of that, on a
    /// GPU's tensor cores; sums, norms, softmax, loss, parameters, their gradients and the optimizer in fp32.
    Bf16,
}

/// Who computes batch norm on GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CudaBatchNorm {
    /// Our kernels, which do what is behind the norm too.
    #[default]
    Own,
    /// cuDNN; what is behind the norm is done by a kernel of ours.
    Cudnn,
}

impl CudaBatchNorm {
    /// `own` or `cudnn`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Cudnn => "cudnn",
        }
    }
}

impl Precision {
    /// `fp32`, `tf32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// What activations and their gradients are in memory.
    pub fn values(self) -> Dtype {
        match self {
            Self::Fp32 | Self::Tf32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }
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
            precision: Precision::Fp32,
            cuda_graph: false,
            cuda_batch_norm: CudaBatchNorm::Own,
            cuda_matmul: CudaMatmul::Cublas,
            learning_rate_batch: None,
            seed: 0,
            epochs: None,
            steps: None,
            normalization_batch: None,
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
