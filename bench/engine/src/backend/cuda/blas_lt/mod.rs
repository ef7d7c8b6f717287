//! Matrix products by cuBLASLt, with biases and their gradients beside them.
//!
//! Contract: as [`super::blas`]'s. Descriptors, layouts and algorithm of a product are made when its shape first occurs and kept; after that a
//! call sets the place of a bias, if there is one, and enqueues. The algorithm is the first of the library's own ranking that adds parts of
//! a long sum in a fixed order, chosen by shape, types and alignment alone, and its workspace is this stream's own, so results repeat to the
//! bit on the same GPU with the same library. In strict f32 cuBLAS multiplies, and so it does what has addresses in arrays.
//! Reference: cuBLAS library user guide, "Using the cuBLASLt API" and "Results reproducibility".
mod key;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use cudarc::cublaslt::sys::{cublasComputeType_t, cublasLtHandle_t, cublasStatus_t};
use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::Precision;
use super::api::cublaslt;
use super::blas::{Matrix, Product, beta};
use super::choice::Choice;
use super::memory::Memory;
use crate::backend::{BackendError, Category, Result};
use crate::tensor::Dtype;
pub(super) use key::Epilogue;
use key::{BIAS_ALIGNMENT, Key};
use plan::Plan;

/// As much as cuBLAS has.
const WORKSPACE: usize = 32 << 20;

fn check(status: cublasStatus_t, what: &str) -> Result<()> {
    if status == cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(BackendError::Device(format!(
        "{what}: cuBLASLt returned {status:?}"
    )))
}

/// How a product of some shape is computed.
enum Way {
    Plan(Plan),
    /// By cuBLAS: in strict f32, or of nothing.
    Cublas,
    /// Not with its epilogue, which kernels of ours then are.
    Apart,
}

/// cuBLASLt on one stream.
pub(super) struct BlasLt {
    // Plans go before the handle.
    ways: HashMap<Key, Way>,
    handle: cublasLtHandle_t,
    stream: CUstream,
    workspace: CUdeviceptr,
    precision: Precision,
}

impl BlasLt {
    /// # Errors
    /// No such library; a precision in which it would multiply nothing.
    pub(super) fn new(stream: CUstream, precision: Precision, memory: &mut Memory) -> Result<Self> {
        if precision == Precision::Fp32 {
            return Err(BackendError::Unsupported(
                "products by cuBLASLt in fp32: strict f32 is cuBLAS's",
            ));
        }
        cublaslt::load()?;
        let (_, workspace) = memory.allocate(Category::Workspace, Dtype::F32, WORKSPACE / 4)?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is the thread's.
        let made = unsafe { cublaslt::cublasLtCreate(&mut handle) };
        check(made, "failed to start cuBLASLt")?;
        Ok(Self {
            ways: HashMap::new(),
            handle,
            stream,
            workspace,
            precision,
        })
    }

    /// What it multiplies operands by; none for what is cuBLAS's.
    fn compute(precision: Precision, operands: Dtype) -> Option<cublasComputeType_t> {
        match (operands, precision) {
            // Products of bfloat16 are exact in f32.
            (Dtype::Bf16, _) => Some(cublasComputeType_t::CUBLAS_COMPUTE_32F),
            (_, Precision::Tf32) => Some(cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32),
            _ => None,
        }
    }

    /// Enqueues a product, unless that is cuBLAS's: then false.
    ///
    /// # Errors
    /// No algorithm; the library's failure.
    pub(super) fn product(&mut self, product: &Product, of: [&Matrix; 3]) -> Result<bool> {
        self.enqueue(product, of, Epilogue::None, 0)
    }

    /// Whether a product can be enqueued with `epilogue`, whose bias or bias gradient lies at `bias`.
    ///
    /// # Errors
    /// The library's failure.
    pub(super) fn takes(
        &mut self,
        product: &Product,
        of: [&Matrix; 3],
        epilogue: Epilogue,
        bias: CUdeviceptr,
    ) -> Result<bool> {
        let key = Key::new(product, of, epilogue, bias);
        Ok(matches!(self.way(key, bias)?, Way::Plan(_)))
    }

    /// Enqueues a product with an epilogue; false where [`Self::takes`] says so, and nothing is enqueued.
    ///
    /// # Errors
    /// No algorithm, of a product without epilogue; the library's failure.
    pub(super) fn enqueue(
        &mut self,
        product: &Product,
        of: [&Matrix; 3],
        epilogue: Epilogue,
        bias: CUdeviceptr,
    ) -> Result<bool> {
        let (handle, workspace, stream) = (self.handle, self.workspace, self.stream);
        let key = Key::new(product, of, epilogue, bias);
        let Way::Plan(plan) = self.way(key, bias)? else {
            return Ok(false);
        };
        let scalars = [product.scale, beta(product.write)];
        let places = of.map(|matrix| matrix.at);
        plan.enqueue(handle, places, scalars, bias, workspace, stream)?;
        Ok(true)
    }

    fn way(&mut self, key: Key, bias: CUdeviceptr) -> Result<&Way> {
        let (handle, precision) = (self.handle, self.precision);
        match self.ways.entry(key) {
            Entry::Occupied(found) => Ok(found.into_mut()),
            Entry::Vacant(place) => {
                let way = match Self::compute(precision, key.a.dtype) {
                    None => Way::Cublas,
                    Some(_) if key.k == 0 => Way::Cublas,
                    Some(_)
                        if key.epilogue != Epilogue::None
                            && key.bias_alignment < BIAS_ALIGNMENT =>
                    {
                        Way::Apart
                    }
                    Some(compute) => match Plan::new(handle, &key, compute, bias)? {
                        Some(plan) => Way::Plan(plan),
                        None if key.epilogue != Epilogue::None => Way::Apart,
                        None => return Err(nothing(&key, precision)),
                    },
                };
                Ok(place.insert(way))
            }
        }
    }

    /// How each product was computed so far, in the order of their shapes' names.
    pub(super) fn choices(&self) -> Vec<Choice> {
        let choice = |(key, way): (&Key, &Way)| {
            let math = match Self::compute(self.precision, key.a.dtype) {
                Some(cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32) => "tf32",
                Some(_) => "bf16",
                None => "f32",
            };
            let (library, algorithm, workspace_bytes, deterministic) = match way {
                Way::Plan(plan) => (
                    "cuBLASLt",
                    plan.algorithm(),
                    plan.workspace,
                    plan.is_deterministic(),
                ),
                Way::Cublas => ("cuBLAS", "default".to_owned(), WORKSPACE, true),
                Way::Apart => (
                    "cuBLASLt",
                    "none: the product alone, the bias by a kernel of ours".to_owned(),
                    0,
                    true,
                ),
            };
            Choice {
                library,
                operation: key.operation(),
                shape: key.shape(),
                algorithm,
                workspace_bytes,
                deterministic,
                math: math.to_owned(),
            }
        };
        let mut choices: Vec<Choice> = self.ways.iter().map(choice).collect();
        choices.sort_by(|a, b| (a.operation, &a.shape).cmp(&(b.operation, &b.shape)));
        choices
    }
}

fn nothing(key: &Key, precision: Precision) -> BackendError {
    BackendError::Device(format!(
        "cuBLASLt has no deterministic algorithm for a product with {} in {precision:?}: let cuBLAS multiply (`train.cuda_matmul = \"cublas\"`)",
        key.shape()
    ))
}

impl Drop for BlasLt {
    fn drop(&mut self) {
        self.ways.clear();
        // SAFETY: nobody else has the handle. What a broken context says of it was said before.
        let _ = unsafe { cublaslt::cublasLtDestroy(self.handle) };
    }
}
