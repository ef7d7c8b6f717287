//! cuDNN, as far as it is used.
use std::ffi::{c_int, c_void};

use cudarc::cudnn::sys::{
    cudaStream_t, cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdDataAlgoPerf_t,
    cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionBwdFilterAlgoPerf_t,
    cudnnConvolutionDescriptor_t, cudnnConvolutionFwdAlgo_t, cudnnConvolutionFwdAlgoPerf_t,
    cudnnConvolutionMode_t, cudnnDataType_t, cudnnFilterDescriptor_t, cudnnHandle_t,
    cudnnMathType_t, cudnnStatus_t, cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};

use super::functions;

functions! {
    Cudnn
    fn cudnnConvolutionBackwardData(handle: cudnnHandle_t, alpha: *const c_void, w_desc: cudnnFilterDescriptor_t, w: *const c_void, dy_desc: cudnnTensorDescriptor_t, dy: *const c_void, conv_desc: cudnnConvolutionDescriptor_t, algo: cudnnConvolutionBwdDataAlgo_t, work_space: *mut c_void, work_space_size_in_bytes: usize, beta: *const c_void, dx_desc: cudnnTensorDescriptor_t, dx: *mut c_void) -> cudnnStatus_t;
    fn cudnnConvolutionBackwardFilter(handle: cudnnHandle_t, alpha: *const c_void, x_desc: cudnnTensorDescriptor_t, x: *const c_void, dy_desc: cudnnTensorDescriptor_t, dy: *const c_void, conv_desc: cudnnConvolutionDescriptor_t, algo: cudnnConvolutionBwdFilterAlgo_t, work_space: *mut c_void, work_space_size_in_bytes: usize, beta: *const c_void, dw_desc: cudnnFilterDescriptor_t, dw: *mut c_void) -> cudnnStatus_t;
    fn cudnnConvolutionForward(handle: cudnnHandle_t, alpha: *const c_void, x_desc: cudnnTensorDescriptor_t, x: *const c_void, w_desc: cudnnFilterDescriptor_t, w: *const c_void, conv_desc: cudnnConvolutionDescriptor_t, algo: cudnnConvolutionFwdAlgo_t, work_space: *mut c_void, work_space_size_in_bytes: usize, beta: *const c_void, y_desc: cudnnTensorDescriptor_t, y: *mut c_void) -> cudnnStatus_t;
    fn cudnnCreate(handle: *mut cudnnHandle_t) -> cudnnStatus_t;
    fn cudnnCreateConvolutionDescriptor(conv_desc: *mut cudnnConvolutionDescriptor_t) -> cudnnStatus_t;
    fn cudnnCreateFilterDescriptor(filter_desc: *mut cudnnFilterDescriptor_t) -> cudnnStatus_t;
    fn cudnnCreateTensorDescriptor(tensor_desc: *mut cudnnTensorDescriptor_t) -> cudnnStatus_t;
    fn cudnnDestroy(handle: cudnnHandle_t) -> cudnnStatus_t;
    fn cudnnDestroyConvolutionDescriptor(conv_desc: cudnnConvolutionDescriptor_t) -> cudnnStatus_t;
    fn cudnnDestroyFilterDescriptor(filter_desc: cudnnFilterDescriptor_t) -> cudnnStatus_t;
    fn cudnnDestroyTensorDescriptor(tensor_desc: cudnnTensorDescriptor_t) -> cudnnStatus_t;
    fn cudnnGetConvolutionBackwardDataAlgorithm_v7(handle: cudnnHandle_t, filter_desc: cudnnFilterDescriptor_t, diff_desc: cudnnTensorDescriptor_t, conv_desc: cudnnConvolutionDescriptor_t, grad_desc: cudnnTensorDescriptor_t, requested_algo_count: c_int, returned_algo_count: *mut c_int, perf_results: *mut cudnnConvolutionBwdDataAlgoPerf_t) -> cudnnStatus_t;
    fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(handle: cudnnHandle_t, src_desc: cudnnTensorDescriptor_t, diff_desc: cudnnTensorDescriptor_t, conv_desc: cudnnConvolutionDescriptor_t, grad_desc: cudnnFilterDescriptor_t, requested_algo_count: c_int, returned_algo_count: *mut c_int, perf_results: *mut cudnnConvolutionBwdFilterAlgoPerf_t) -> cudnnStatus_t;
    fn cudnnGetConvolutionForwardAlgorithm_v7(handle: cudnnHandle_t, src_desc: cudnnTensorDescriptor_t, filter_desc: cudnnFilterDescriptor_t, conv_desc: cudnnConvolutionDescriptor_t, dest_desc: cudnnTensorDescriptor_t, requested_algo_count: c_int, returned_algo_count: *mut c_int, perf_results: *mut cudnnConvolutionFwdAlgoPerf_t) -> cudnnStatus_t;
    fn cudnnSetConvolution2dDescriptor(conv_desc: cudnnConvolutionDescriptor_t, pad_h: c_int, pad_w: c_int, u: c_int, v: c_int, dilation_h: c_int, dilation_w: c_int, mode: cudnnConvolutionMode_t, compute_type: cudnnDataType_t) -> cudnnStatus_t;
    fn cudnnSetConvolutionMathType(conv_desc: cudnnConvolutionDescriptor_t, math_type: cudnnMathType_t) -> cudnnStatus_t;
    fn cudnnSetFilter4dDescriptor(filter_desc: cudnnFilterDescriptor_t, data_type: cudnnDataType_t, format: cudnnTensorFormat_t, k: c_int, c: c_int, h: c_int, w: c_int) -> cudnnStatus_t;
    fn cudnnSetStream(handle: cudnnHandle_t, stream_id: cudaStream_t) -> cudnnStatus_t;
    fn cudnnSetTensor4dDescriptor(tensor_desc: cudnnTensorDescriptor_t, format: cudnnTensorFormat_t, data_type: cudnnDataType_t, n: c_int, c: c_int, h: c_int, w: c_int) -> cudnnStatus_t;
}
