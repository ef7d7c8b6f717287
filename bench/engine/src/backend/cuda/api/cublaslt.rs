//! cuBLASLt, as far as it is used: a table of its own, loaded by devices that are asked to multiply with it.
use std::ffi::{c_int, c_void};

use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulAlgoConfigAttributes_t, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatmulHeuristicResult_t, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t,
    cublasStatus_t, cudaDataType_t, cudaStream_t,
};

use super::functions;

functions! {
    CublasLt
    fn cublasLtCreate(light_handle: *mut cublasLtHandle_t) -> cublasStatus_t;
    fn cublasLtDestroy(light_handle: cublasLtHandle_t) -> cublasStatus_t;
    fn cublasLtMatmul(light_handle: cublasLtHandle_t, compute_desc: cublasLtMatmulDesc_t, alpha: *const c_void, a: *const c_void, a_desc: cublasLtMatrixLayout_t, b: *const c_void, b_desc: cublasLtMatrixLayout_t, beta: *const c_void, c: *const c_void, c_desc: cublasLtMatrixLayout_t, d: *mut c_void, d_desc: cublasLtMatrixLayout_t, algo: *const cublasLtMatmulAlgo_t, workspace: *mut c_void, workspace_size_in_bytes: usize, stream: cudaStream_t) -> cublasStatus_t;
    fn cublasLtMatmulAlgoConfigGetAttribute(algo: *const cublasLtMatmulAlgo_t, attr: cublasLtMatmulAlgoConfigAttributes_t, buf: *mut c_void, size_in_bytes: usize, size_written: *mut usize) -> cublasStatus_t;
    fn cublasLtMatmulAlgoGetHeuristic(light_handle: cublasLtHandle_t, operation_desc: cublasLtMatmulDesc_t, a_desc: cublasLtMatrixLayout_t, b_desc: cublasLtMatrixLayout_t, c_desc: cublasLtMatrixLayout_t, d_desc: cublasLtMatrixLayout_t, preference: cublasLtMatmulPreference_t, requested_algo_count: c_int, heuristic_results_array: *mut cublasLtMatmulHeuristicResult_t, return_algo_count: *mut c_int) -> cublasStatus_t;
    fn cublasLtMatmulDescCreate(matmul_desc: *mut cublasLtMatmulDesc_t, compute_type: cublasComputeType_t, scale_type: cudaDataType_t) -> cublasStatus_t;
    fn cublasLtMatmulDescDestroy(matmul_desc: cublasLtMatmulDesc_t) -> cublasStatus_t;
    fn cublasLtMatmulDescSetAttribute(matmul_desc: cublasLtMatmulDesc_t, attr: cublasLtMatmulDescAttributes_t, buf: *const c_void, size_in_bytes: usize) -> cublasStatus_t;
    fn cublasLtMatmulPreferenceCreate(pref: *mut cublasLtMatmulPreference_t) -> cublasStatus_t;
    fn cublasLtMatmulPreferenceDestroy(pref: cublasLtMatmulPreference_t) -> cublasStatus_t;
    fn cublasLtMatmulPreferenceSetAttribute(pref: cublasLtMatmulPreference_t, attr: cublasLtMatmulPreferenceAttributes_t, buf: *const c_void, size_in_bytes: usize) -> cublasStatus_t;
    fn cublasLtMatrixLayoutCreate(mat_layout: *mut cublasLtMatrixLayout_t, data_type: cudaDataType_t, rows: u64, cols: u64, ld: i64) -> cublasStatus_t;
    fn cublasLtMatrixLayoutDestroy(mat_layout: cublasLtMatrixLayout_t) -> cublasStatus_t;
    fn cublasLtMatrixLayoutSetAttribute(mat_layout: cublasLtMatrixLayout_t, attr: cublasLtMatrixLayoutAttribute_t, buf: *const c_void, size_in_bytes: usize) -> cublasStatus_t;
}

#[cfg(test)]
mod tests {
    use super::load;
    use crate::backend::cuda::library::{self, Library};

    #[test]
    fn a_missing_library_is_an_error_and_one_that_is_there_has_all_of_this() {
        let loaded = load();
        match library::find(Library::CublasLt) {
            Err(missing) => assert_eq!(loaded, Err(missing)),
            Ok(found) => assert_eq!(loaded, Ok(()), "cuBLASLt {}", found.version),
        }
    }
}
