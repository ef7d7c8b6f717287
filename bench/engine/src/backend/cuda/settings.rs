//! What a device on a GPU is told: which GPU, in what precision, and whose kernels.
use crate::tensor::Dtype;

/// How products and convolutions are computed, and what activations and their gradients are in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// In f32, multiply-adds included.
    #[default]
    Fp32,
    /// By tensor cores, from operands rounded to 10 bits of fraction; sums in f32.
    Tf32,
    /// Activations and their gradients are bfloat16 in memory. Products and convolutions have operands of that, weights rounded to it
    /// included; sums, statistics and all other arithmetic are in f32, and so are parameters, their gradients and the optimizer. What is
    /// f32 in memory is multiplied as with [`Precision::Fp32`].
    Bf16,
}

impl Precision {
    /// What activations and their gradients are in memory.
    pub const fn values(self) -> Dtype {
        match self {
            Self::Fp32 | Self::Tf32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }
}

/// Who computes batch norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BatchNormBy {
    /// Our kernels.
    #[default]
    Own,
    /// cuDNN, where it has what is asked for: in training and evaluation, with an exponential average and without padding to leave out.
    /// Rectifiers and additions behind it are kernels of our own.
    Cudnn,
}

/// Who multiplies matrices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Matmul {
    /// cuBLAS.
    #[default]
    Cublas,
    /// cuBLASLt, which also adds biases and sums their gradients; what is f32 and not to be rounded stays with cuBLAS. Not with
    /// [`Precision::Fp32`]. It has not run on hardware.
    CublasLt,
}

/// What a device is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct CudaDevice {
    /// Which of the GPUs that the driver shows this process.
    pub ordinal: usize,
    /// Of products and convolutions, and of values.
    pub precision: Precision,
    /// Of batch norm.
    pub batch_norm: BatchNormBy,
    /// Who multiplies matrices.
    pub matmul: Matmul,
}
