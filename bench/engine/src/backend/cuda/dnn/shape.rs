//! A convolution's descriptors, and the algorithms that were taken for it.
use cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t as DataAlgorithm,
    cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm, cudnnConvolutionDescriptor_t,
    cudnnConvolutionFwdAlgo_t as ForwardAlgorithm, cudnnConvolutionMode_t, cudnnDataType_t,
    cudnnFilterDescriptor_t, cudnnMathType_t, cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};

use super::algorithm::Taken;
use super::{Of, check};
use crate::backend::Result;
use crate::backend::cuda::api::cudnn;
use crate::tensor::Dtype;

/// Descriptors of one shape, and the algorithms chosen so far.
pub(super) struct Shape {
    pub(super) x: cudnnTensorDescriptor_t,
    pub(super) y: cudnnTensorDescriptor_t,
    pub(super) weight: cudnnFilterDescriptor_t,
    pub(super) convolution: cudnnConvolutionDescriptor_t,
    pub(super) forward: Option<Taken<ForwardAlgorithm>>,
    pub(super) data: Option<Taken<DataAlgorithm>>,
    pub(super) filter: Option<Taken<FilterAlgorithm>>,
}

impl Shape {
    pub(super) fn new((window, batch, dtype): Of<'_>, math: cudnnMathType_t) -> Result<Self> {
        let mut shape = Self {
            x: std::ptr::null_mut(),
            y: std::ptr::null_mut(),
            weight: std::ptr::null_mut(),
            convolution: std::ptr::null_mut(),
            forward: None,
            data: None,
            filter: None,
        };
        let (format, float) = (
            cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
            cudnnDataType_t::CUDNN_DATA_FLOAT,
        );
        let stored = match dtype {
            Dtype::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            _ => float,
        };
        let int = |value: usize| value as i32;
        let (n, kernel, padding, stride) = (
            int(batch),
            int(window.kernel),
            int(window.padding),
            int(window.stride),
        );
        let (c, h, w) = (int(window.c), int(window.h), int(window.w));
        let (out_c, out_h, out_w) = (int(window.out_c), int(window.out_h), int(window.out_w));
        let what = "failed to describe a convolution";
        // SAFETY: each descriptor is made before it is set; `Drop` takes them away.
        unsafe {
            check(cudnn::cudnnCreateTensorDescriptor(&mut shape.x), what)?;
            check(cudnn::cudnnCreateTensorDescriptor(&mut shape.y), what)?;
            check(cudnn::cudnnCreateFilterDescriptor(&mut shape.weight), what)?;
            check(
                cudnn::cudnnCreateConvolutionDescriptor(&mut shape.convolution),
                what,
            )?;
            check(
                cudnn::cudnnSetTensor4dDescriptor(shape.x, format, stored, n, c, h, w),
                what,
            )?;
            check(
                cudnn::cudnnSetTensor4dDescriptor(shape.y, format, stored, n, out_c, out_h, out_w),
                what,
            )?;
            check(
                cudnn::cudnnSetFilter4dDescriptor(
                    shape.weight,
                    stored,
                    format,
                    out_c,
                    c,
                    kernel,
                    kernel,
                ),
                what,
            )?;
            let mode = cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            check(
                cudnn::cudnnSetConvolution2dDescriptor(
                    shape.convolution,
                    padding,
                    padding,
                    stride,
                    stride,
                    1,
                    1,
                    mode,
                    float,
                ),
                what,
            )?;
            check(
                cudnn::cudnnSetConvolutionMathType(shape.convolution, math),
                what,
            )?;
        }
        Ok(shape)
    }

    /// Says how the algorithm multiplies.
    pub(super) fn set<A>(&self, taken: &Taken<A>) -> Result<()> {
        // SAFETY: the descriptor is alive.
        let set = unsafe { cudnn::cudnnSetConvolutionMathType(self.convolution, taken.math) };
        check(set, "failed to set how a convolution multiplies")
    }
}

impl Drop for Shape {
    fn drop(&mut self) {
        // SAFETY: nobody else has the descriptors. One that was never made must not be destroyed: cuDNN aborts the process where
        // the part of it that would destroy it was never loaded.
        unsafe {
            for tensor in [self.x, self.y] {
                if !tensor.is_null() {
                    let _ = cudnn::cudnnDestroyTensorDescriptor(tensor);
                }
            }
            if !self.weight.is_null() {
                let _ = cudnn::cudnnDestroyFilterDescriptor(self.weight);
            }
            if !self.convolution.is_null() {
                let _ = cudnn::cudnnDestroyConvolutionDescriptor(self.convolution);
            }
        }
    }
}
