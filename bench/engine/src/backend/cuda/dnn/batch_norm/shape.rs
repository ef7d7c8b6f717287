//! A batch norm's descriptors, and what cuDNN wants for it.
use cudarc::cudnn::sys::{
    cudnnBatchNormMode_t as Mode, cudnnDataType_t, cudnnHandle_t, cudnnStatus_t,
    cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};
use std::ptr::null_mut;

use super::{NormOf, OPERATIONS};
use crate::backend::Result;
use crate::backend::cuda::api::{cudnn, cudnn_norm};
use crate::backend::cuda::choice::Choice;
use crate::backend::cuda::dnn::algorithm::{bare, type_name};
use crate::backend::cuda::dnn::check;
use crate::tensor::Dtype;

/// One shape. It is copied freely; [`Shape::destroy`] is called once.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) x: cudnnTensorDescriptor_t,
    /// Of γ, β and statistics.
    pub(super) channels: cudnnTensorDescriptor_t,
    pub(super) mode: Mode,
    /// Bytes of workspace.
    pub(super) forward: usize,
    pub(super) backward: usize,
    /// Bytes that live from forward to backward.
    pub(super) reserve: usize,
}

impl Shape {
    pub(super) fn new(of: &NormOf) -> Result<Self> {
        let mut shape = Self {
            x: null_mut(),
            channels: null_mut(),
            mode: Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT,
            forward: 0,
            backward: 0,
            reserve: 0,
        };
        let described = shape.describe(of);
        if described.is_err() {
            shape.destroy();
        }
        described.map(|()| shape)
    }

    fn describe(&mut self, of: &NormOf) -> Result<()> {
        let stored = match of.dtype {
            Dtype::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            _ => cudnnDataType_t::CUDNN_DATA_FLOAT,
        };
        let [n, c, h] = [of.samples, of.channels, of.spatial].map(|value| value as i32);
        let what = "failed to describe a batch norm";
        let format = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        // SAFETY: each descriptor is made before it is set.
        unsafe {
            check(cudnn::cudnnCreateTensorDescriptor(&mut self.x), what)?;
            check(cudnn::cudnnCreateTensorDescriptor(&mut self.channels), what)?;
            check(
                cudnn::cudnnSetTensor4dDescriptor(self.x, format, stored, n, c, h, 1),
                what,
            )?;
            // The same in both spatial modes.
            check(
                cudnn_norm::cudnnDeriveBNTensorDescriptor(self.channels, self.x, self.mode),
                what,
            )
        }
    }

    /// Asks what the shape wants in a mode, and takes that; else what cuDNN said, and to what.
    pub(super) fn ask(
        &mut self,
        handle: cudnnHandle_t,
        mode: Mode,
    ) -> std::result::Result<(), (cudnnStatus_t, &'static str)> {
        let done = |status, what| match status {
            cudnnStatus_t::CUDNN_STATUS_SUCCESS => Ok(()),
            status => Err((status, what)),
        };
        let none = null_mut();
        let (x, channels) = (self.x, self.channels);
        let mut sizes = [0usize; 3];
        // SAFETY: the descriptors are alive; descriptors of what is not there may be null.
        unsafe {
            let forward = cudnn_norm::cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
                handle,
                mode,
                OPERATIONS,
                x,
                null_mut(),
                x,
                channels,
                none,
                &mut sizes[0],
            );
            done(forward, "failed to ask what a batch norm wants")?;
            let backward = cudnn_norm::cudnnGetBatchNormalizationBackwardExWorkspaceSize(
                handle,
                mode,
                OPERATIONS,
                x,
                null_mut(),
                x,
                null_mut(),
                x,
                channels,
                none,
                &mut sizes[1],
            );
            done(backward, "failed to ask what a batch norm's backward wants")?;
            let reserve = cudnn_norm::cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
                handle,
                mode,
                OPERATIONS,
                none,
                x,
                &mut sizes[2],
            );
            done(reserve, "failed to ask what a batch norm keeps")?;
        }
        self.mode = mode;
        [self.forward, self.backward, self.reserve] = sizes;
        Ok(())
    }

    /// Forward and backward in words, for the records.
    pub(super) fn choices(self, of: &NormOf) -> [Choice; 2] {
        let NormOf {
            samples,
            spatial,
            channels,
            dtype,
        } = of;
        let choice = |operation, workspace_bytes| Choice {
            library: "cuDNN",
            operation,
            shape: format!("x {samples}×{spatial}×{channels}, {}", type_name(*dtype)),
            algorithm: bare(&self.mode),
            workspace_bytes,
            // cuDNN says nothing of it.
            deterministic: false,
            math: String::new(),
        };
        [
            choice("batch norm forward", self.forward),
            choice("batch norm backward", self.backward),
        ]
    }

    /// Takes the descriptors away: nobody may use them or another copy any more.
    pub(super) fn destroy(&self) {
        for descriptor in [self.x, self.channels] {
            if !descriptor.is_null() {
                // SAFETY: nobody else has it. One that was never made must not be destroyed.
                let _ = unsafe { cudnn::cudnnDestroyTensorDescriptor(descriptor) };
            }
        }
    }
}
