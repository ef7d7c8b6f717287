//! cuDNN's batch norm: a table of its own, so that a cuDNN without it trains all the same. Loaded where it is asked for.
use std::ffi::c_void;

use cudarc::cudnn::sys::{
    cudnnActivationDescriptor_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, cudnnHandle_t,
    cudnnStatus_t, cudnnTensorDescriptor_t,
};

use super::functions;

functions! {
    Cudnn
    fn cudnnBatchNormalizationBackwardEx(handle: cudnnHandle_t, mode: cudnnBatchNormMode_t, bn_ops: cudnnBatchNormOps_t, alpha_data_diff: *const c_void, beta_data_diff: *const c_void, alpha_param_diff: *const c_void, beta_param_diff: *const c_void, x_desc: cudnnTensorDescriptor_t, x_data: *const c_void, y_desc: cudnnTensorDescriptor_t, y_data: *const c_void, dy_desc: cudnnTensorDescriptor_t, dy_data: *const c_void, dz_desc: cudnnTensorDescriptor_t, dz_data: *mut c_void, dx_desc: cudnnTensorDescriptor_t, dx_data: *mut c_void, d_bn_scale_bias_desc: cudnnTensorDescriptor_t, bn_scale_data: *const c_void, bn_bias_data: *const c_void, d_bn_scale_data: *mut c_void, d_bn_bias_data: *mut c_void, epsilon: f64, saved_mean: *const c_void, saved_inv_variance: *const c_void, activation_desc: cudnnActivationDescriptor_t, work_space: *mut c_void, work_space_size_in_bytes: usize, reserve_space: *mut c_void, reserve_space_size_in_bytes: usize) -> cudnnStatus_t;
    fn cudnnBatchNormalizationForwardInference(handle: cudnnHandle_t, mode: cudnnBatchNormMode_t, alpha: *const c_void, beta: *const c_void, x_desc: cudnnTensorDescriptor_t, x: *const c_void, y_desc: cudnnTensorDescriptor_t, y: *mut c_void, bn_scale_bias_mean_var_desc: cudnnTensorDescriptor_t, bn_scale: *const c_void, bn_bias: *const c_void, estimated_mean: *const c_void, estimated_variance: *const c_void, epsilon: f64) -> cudnnStatus_t;
    fn cudnnBatchNormalizationForwardTrainingEx(handle: cudnnHandle_t, mode: cudnnBatchNormMode_t, bn_ops: cudnnBatchNormOps_t, alpha: *const c_void, beta: *const c_void, x_desc: cudnnTensorDescriptor_t, x_data: *const c_void, z_desc: cudnnTensorDescriptor_t, z_data: *const c_void, y_desc: cudnnTensorDescriptor_t, y_data: *mut c_void, bn_scale_bias_mean_var_desc: cudnnTensorDescriptor_t, bn_scale: *const c_void, bn_bias: *const c_void, exponential_average_factor: f64, result_running_mean: *mut c_void, result_running_variance: *mut c_void, epsilon: f64, result_save_mean: *mut c_void, result_save_inv_variance: *mut c_void, activation_desc: cudnnActivationDescriptor_t, workspace: *mut c_void, work_space_size_in_bytes: usize, reserve_space: *mut c_void, reserve_space_size_in_bytes: usize) -> cudnnStatus_t;
    fn cudnnDeriveBNTensorDescriptor(derived_bn_desc: cudnnTensorDescriptor_t, x_desc: cudnnTensorDescriptor_t, mode: cudnnBatchNormMode_t) -> cudnnStatus_t;
    fn cudnnGetBatchNormalizationBackwardExWorkspaceSize(handle: cudnnHandle_t, mode: cudnnBatchNormMode_t, bn_ops: cudnnBatchNormOps_t, x_desc: cudnnTensorDescriptor_t, y_desc: cudnnTensorDescriptor_t, dy_desc: cudnnTensorDescriptor_t, dz_desc: cudnnTensorDescriptor_t, dx_desc: cudnnTensorDescriptor_t, d_bn_scale_bias_desc: cudnnTensorDescriptor_t, activation_desc: cudnnActivationDescriptor_t, size_in_bytes: *mut usize) -> cudnnStatus_t;
    fn cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(handle: cudnnHandle_t, mode: cudnnBatchNormMode_t, bn_ops: cudnnBatchNormOps_t, x_desc: cudnnTensorDescriptor_t, z_desc: cudnnTensorDescriptor_t, y_desc: cudnnTensorDescriptor_t, bn_scale_bias_mean_var_desc: cudnnTensorDescriptor_t, activation_desc: cudnnActivationDescriptor_t, size_in_bytes: *mut usize) -> cudnnStatus_t;
    fn cudnnGetBatchNormalizationTrainingExReserveSpaceSize(handle: cudnnHandle_t, mode: cudnnBatchNormMode_t, bn_ops: cudnnBatchNormOps_t, activation_desc: cudnnActivationDescriptor_t, x_desc: cudnnTensorDescriptor_t, size_in_bytes: *mut usize) -> cudnnStatus_t;
}

#[cfg(test)]
mod tests {
    use super::load;
    use crate::backend::cuda::library::{self, Library};

    #[test]
    fn a_missing_cudnn_is_an_error_and_a_cudnn_has_batch_norm() {
        let loaded = load();
        match library::find(Library::Cudnn) {
            Err(missing) => assert_eq!(loaded, Err(missing)),
            Ok(found) => assert_eq!(loaded, Ok(()), "cuDNN {}", found.version),
        }
    }
}
