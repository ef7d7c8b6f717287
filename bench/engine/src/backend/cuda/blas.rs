//! Matrix products, by cuBLAS; those of a device that is told so by [`super::blas_lt`], as far as that has them.
//!
//! Contract: row-major operands, as everywhere in the engine. cuBLAS has columns first, so each product is computed as that of the
//! transposes: Cᵀ = op(B)ᵀ·op(A)ᵀ. Operands are f32, or A and B bfloat16 and C either; sums are in f32 (of
//! parts of a long sum that cuBLAS computes apart, those of a bfloat16 C may be rounded to it, as PyTorch lets it too). The handle has a
//! workspace of its own, so that no call allocates and results repeat to the bit.
//! Reference: cuBLAS library user guide, `cublasGemmStridedBatchedEx` and "Results reproducibility".
use crate::backend::cuda::api::cublas;
use cudarc::cublas::sys::{
    cublasComputeType_t as Compute, cublasGemmAlgo_t, cublasHandle_t, cublasOperation_t,
    cublasStatus_t, cudaDataType_t,
};
use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::blas_lt::BlasLt;
use super::choice::Choice;
use super::memory::Memory;
use super::{Matmul, Precision};
use crate::backend::{BackendError, Category, Result};
use crate::kernel::Write;
use crate::tensor::Dtype;

/// What cuBLAS recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// A row-major matrix on the GPU, or the first of several that lie `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) at: CUdeviceptr,
    /// Elements from one row to the next, as it is stored.
    pub(super) row: usize,
    pub(super) stride: usize,
    /// f32 or bfloat16.
    pub(super) dtype: Dtype,
    /// Whether it is stored the other way round than its place in the product says.
    pub(super) transposed: bool,
}

/// C (+)= scale·op(A)·op(B), `batch` times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) scale: f32,
    pub(super) batch: usize,
    pub(super) write: Write,
}

/// cuBLAS on one stream.
pub(super) struct Blas {
    handle: cublasHandle_t,
    compute: Compute,
    lt: Option<BlasLt>,
}

fn check(status: cublasStatus_t, what: &str) -> Result<()> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(BackendError::Device(format!(
        "{what}: cuBLAS returned {status:?}"
    )))
}

impl Blas {
    pub(super) fn new(
        stream: CUstream,
        (precision, matmul): (Precision, Matmul),
        memory: &mut Memory,
    ) -> Result<Self> {
        let lt = match matmul {
            Matmul::Cublas => None,
            Matmul::CublasLt => Some(BlasLt::new(stream, precision, memory)?),
        };
        let (_, workspace) = memory.allocate(Category::Workspace, Dtype::F32, WORKSPACE / 4)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is the thread's; the workspace lives as long as the device.
        unsafe {
            check(
                cublas::cublasCreate_v2(&mut handle),
                "failed to start cuBLAS",
            )?;
            check(
                cublas::cublasSetStream_v2(handle, stream.cast()),
                "failed to give cuBLAS a stream",
            )?;
            check(
                cublas::cublasSetWorkspace_v2(handle, workspace as *mut _, WORKSPACE),
                "failed to give cuBLAS a workspace",
            )?;
        }
        let compute = match precision {
            Precision::Fp32 | Precision::Bf16 => Compute::CUBLAS_COMPUTE_32F,
            Precision::Tf32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
        };
        Ok(Self {
            handle,
            compute,
            lt,
        })
    }

    /// Products of bfloat16 are exact in f32, so there is nothing to choose.
    fn compute_of(&self, operands: Dtype) -> Compute {
        match operands {
            Dtype::Bf16 => Compute::CUBLAS_COMPUTE_32F,
            _ => self.compute,
        }
    }

    /// Enqueues a product; C's rows are `c.row` apart.
    pub(super) fn product(
        &mut self,
        product: Product,
        a: Matrix,
        b: Matrix,
        c: Matrix,
    ) -> Result<()> {
        let Product {
            m,
            n,
            k,
            scale,
            batch,
            write,
        } = product;
        if m == 0 || n == 0 || batch == 0 {
            return Ok(());
        }
        let types = operands(a.dtype, b.dtype, c.dtype)?;
        if let Some(lt) = &mut self.lt
            && lt.product(&product, [&a, &b, &c])?
        {
            return Ok(());
        }
        let (compute, beta) = (self.compute_of(a.dtype), beta(write));
        // SAFETY: the caller's spans are as large as the product says; scalars are read before the call returns.
        let status = unsafe {
            cublas::cublasGemmStridedBatchedEx(
                self.handle,
                operation(b.transposed),
                operation(a.transposed),
                n as i32,
                m as i32,
                k as i32,
                (&raw const scale).cast(),
                b.at as *const _,
                types[1],
                b.row as i32,
                b.stride as i64,
                a.at as *const _,
                types[0],
                a.row as i32,
                a.stride as i64,
                (&raw const beta).cast(),
                c.at as *mut _,
                types[2],
                c.row as i32,
                c.stride as i64,
                batch as i32,
                compute,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check(status, "failed to enqueue a matrix product")
    }

    /// cuBLASLt, where that multiplies.
    pub(super) fn lt(&mut self) -> Option<&mut BlasLt> {
        self.lt.as_mut()
    }

    /// What was chosen so far for each shape, by who tells.
    pub(super) fn choices(&self) -> Vec<Choice> {
        self.lt.as_ref().map(BlasLt::choices).unwrap_or_default()
    }
}

/// Where the matrices of many products lie: arrays of addresses on the GPU, one for each operand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) at: CUdeviceptr,
    /// Elements from one row to the next, as it is stored.
    pub(super) row: usize,
    /// f32 or bfloat16.
    pub(super) dtype: Dtype,
    pub(super) transposed: bool,
}

impl Blas {
    /// Enqueues `product.batch` products whose operands lie anywhere.
    pub(super) fn products(
        &self,
        product: Product,
        a: Addresses,
        b: Addresses,
        c: Addresses,
    ) -> Result<()> {
        let Product {
            m,
            n,
            k,
            scale,
            batch,
            write,
        } = product;
        if m == 0 || n == 0 || batch == 0 {
            return Ok(());
        }
        let types = operands(a.dtype, b.dtype, c.dtype)?;
        let (compute, beta) = (self.compute_of(a.dtype), beta(write));
        // SAFETY: the arrays hold `batch` addresses each of matrices as large as the product says; scalars are read before the call returns.
        let status = unsafe {
            cublas::cublasGemmBatchedEx(
                self.handle,
                operation(b.transposed),
                operation(a.transposed),
                n as i32,
                m as i32,
                k as i32,
                (&raw const scale).cast(),
                b.at as *const *const _,
                types[1],
                b.row as i32,
                a.at as *const *const _,
                types[0],
                a.row as i32,
                (&raw const beta).cast(),
                c.at as *const *mut _,
                types[2],
                c.row as i32,
                batch as i32,
                compute,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check(status, "failed to enqueue matrix products")
    }
}

/// The types of A, B and C.
fn operands(a: Dtype, b: Dtype, c: Dtype) -> Result<[cudaDataType_t; 3]> {
    let of = |dtype| match dtype {
        Dtype::Bf16 => cudaDataType_t::CUDA_R_16BF,
        _ => cudaDataType_t::CUDA_R_32F,
    };
    match (a, b, c) {
        (Dtype::F32, Dtype::F32, Dtype::F32)
        | (Dtype::Bf16, Dtype::Bf16, Dtype::F32 | Dtype::Bf16) => Ok([of(a), of(b), of(c)]),
        _ => Err(BackendError::Unsupported(
            "a matrix product of operands of different types",
        )),
    }
}

fn operation(transposed: bool) -> cublasOperation_t {
    match transposed {
        true => cublasOperation_t::CUBLAS_OP_T,
        false => cublasOperation_t::CUBLAS_OP_N,
    }
}

pub(super) fn beta(write: Write) -> f32 {
    match write {
        Write::Overwrite => 0.0,
        Write::Accumulate => 1.0,
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle. What a broken context says of it was said before.
        let _ = unsafe { cublas::cublasDestroy_v2(self.handle) };
    }
}
