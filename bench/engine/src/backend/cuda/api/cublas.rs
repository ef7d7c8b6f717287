//! cuBLAS, as far as it is used.
use std::ffi::{c_int, c_longlong, c_void};

use cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasOperation_t, cublasStatus_t,
    cudaDataType, cudaStream_t,
};

use super::functions;

functions! {
    Cublas
    fn cublasCreate_v2(handle: *mut cublasHandle_t) -> cublasStatus_t;
    fn cublasDestroy_v2(handle: cublasHandle_t) -> cublasStatus_t;
    fn cublasGemmBatchedEx(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const c_void, a: *const *const c_void, atype: cudaDataType, lda: c_int, b: *const *const c_void, btype: cudaDataType, ldb: c_int, beta: *const c_void, c: *const *mut c_void, ctype: cudaDataType, ldc: c_int, batch_count: c_int, compute_type: cublasComputeType_t, algo: cublasGemmAlgo_t) -> cublasStatus_t;
    fn cublasGemmStridedBatchedEx(handle: cublasHandle_t, transa: cublasOperation_t, transb: cublasOperation_t, m: c_int, n: c_int, k: c_int, alpha: *const c_void, a: *const c_void, atype: cudaDataType, lda: c_int, stride_a: c_longlong, b: *const c_void, btype: cudaDataType, ldb: c_int, stride_b: c_longlong, beta: *const c_void, c: *mut c_void, ctype: cudaDataType, ldc: c_int, stride_c: c_longlong, batch_count: c_int, compute_type: cublasComputeType_t, algo: cublasGemmAlgo_t) -> cublasStatus_t;
    fn cublasSetStream_v2(handle: cublasHandle_t, stream_id: cudaStream_t) -> cublasStatus_t;
    fn cublasSetWorkspace_v2(handle: cublasHandle_t, workspace: *mut c_void, workspace_size_in_bytes: usize) -> cublasStatus_t;
}
