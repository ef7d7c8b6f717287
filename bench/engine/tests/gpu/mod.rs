//! A GPU under test, where there is one.
#![allow(dead_code, reason = "each test binary uses its part")]
use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cuda::{BatchNormBy, CudaBackend, CudaDevice, Matmul, Precision};

/// Makes a test fail that would be skipped for want of a GPU.
pub const REQUIRED: &str = "SYNCMARK_REQUIRE_GPU";

/// A device on the first GPU; none, with the reason on stdout, where there is no GPU.
///
/// # Panics
/// When there is none and [`REQUIRED`] is set.
pub fn gpu() -> Option<Box<dyn Backend>> {
    gpu_of(Precision::Fp32)
}

/// As [`gpu`], in a precision.
///
/// # Panics
/// As [`gpu`].
pub fn gpu_of(precision: Precision) -> Option<Box<dyn Backend>> {
    gpu_with(precision, BatchNormBy::Own)
}

/// As [`gpu_of`], with batch norm by somebody.
///
/// # Panics
/// As [`gpu`].
pub fn gpu_with(precision: Precision, batch_norm: BatchNormBy) -> Option<Box<dyn Backend>> {
    gpu_as(CudaDevice {
        precision,
        batch_norm,
        ..CudaDevice::default()
    })
}

/// As [`gpu`], in a precision, with products by cuBLASLt.
///
/// # Panics
/// As [`gpu`].
pub fn gpu_with_cublaslt(precision: Precision) -> Option<Box<dyn Backend>> {
    gpu_as(CudaDevice {
        precision,
        matmul: Matmul::CublasLt,
        ..CudaDevice::default()
    })
}

/// As [`gpu`], on a GPU of this number.
///
/// # Panics
/// As [`gpu`].
pub fn gpu_at(ordinal: usize) -> Option<Box<dyn Backend>> {
    gpu_as(CudaDevice {
        ordinal,
        ..CudaDevice::default()
    })
}

fn gpu_as(device: CudaDevice) -> Option<Box<dyn Backend>> {
    match CudaBackend::new(device) {
        Ok(backend) => Some(Box::new(backend)),
        Err(reason) => {
            let required = std::env::var_os(REQUIRED).is_some_and(|value| value == "1");
            assert!(
                !required,
                "{REQUIRED} is set, and there is no GPU: {reason}"
            );
            println!("not run on a GPU: {reason}");
            None
        }
    }
}
