//! Batch norm by cuDNN, to race ours against.
//!
//! Contract: rows of channels, samples × spatial of them, as NHWC images of one column; values f32 or bfloat16, all else f32. The mode is
//! `CUDNN_BATCHNORM_SPATIAL_PERSISTENT`, which in NHWC has kernels of its own, or `CUDNN_BATCHNORM_SPATIAL` where cuDNN refuses that for a
//! shape; evaluation is always `SPATIAL`, as in PyTorch. Its conventions are those of [`crate::kernel::Kernel::LibraryBatchNorm`]: the
//! average's factor is PyTorch's momentum, running variances are stored unbiased, what is kept is 1/sqrt(variance + ε), and ε may be as
//! small as 0. Only `CUDNN_BATCHNORM_OPS_BN`, as PyTorch has it: the
//! operations with a rectifier come with conditions on type and channels, so rectifiers and additions are kernels of our own behind it.
//! Reference: cuDNN's API reference, `cudnnBatchNormalizationForwardTrainingEx`; PyTorch, `aten/src/ATen/native/cudnn/BatchNorm.cpp`.
mod shape;

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use cudarc::cudnn::sys::{
    cudnnBatchNormMode_t as Mode, cudnnBatchNormOps_t as Operations, cudnnStatus_t,
};
use cudarc::driver::sys::CUdeviceptr;

use super::{Dnn, ONE, ZERO, check};
use crate::backend::cuda::api::cudnn_norm;
use crate::backend::cuda::choice::Choice;
use crate::backend::cuda::memory::{Memory, Scratch};
use crate::backend::{BackendError, Result};
use crate::kernel::Write;
use crate::tensor::Dtype;
use shape::Shape;

/// Nothing but the norm.
const OPERATIONS: Operations = Operations::CUDNN_BATCHNORM_OPS_BN;

/// What a batch norm is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::backend::cuda) struct NormOf {
    pub(in crate::backend::cuda) samples: usize,
    pub(in crate::backend::cuda) spatial: usize,
    pub(in crate::backend::cuda) channels: usize,
    pub(in crate::backend::cuda) dtype: Dtype,
}

/// Shapes that came so far, and what forward leaves for backward.
#[derive(Default)]
pub(super) struct Norms {
    shapes: HashMap<NormOf, Shape>,
    /// By where the norm keeps its mean, which no other norm does.
    reserves: HashMap<CUdeviceptr, Scratch>,
}

impl Norms {
    pub(super) fn choices(&self) -> impl Iterator<Item = Choice> + '_ {
        self.shapes.iter().flat_map(|(of, shape)| shape.choices(of))
    }
}

/// Where forward in training reads and writes; running statistics are 0 where they are left alone.
pub(in crate::backend::cuda) struct Forward {
    pub(in crate::backend::cuda) x: CUdeviceptr,
    pub(in crate::backend::cuda) affine: [CUdeviceptr; 2],
    pub(in crate::backend::cuda) y: CUdeviceptr,
    pub(in crate::backend::cuda) kept: [CUdeviceptr; 2],
    pub(in crate::backend::cuda) running: [CUdeviceptr; 2],
    pub(in crate::backend::cuda) eps: f32,
    pub(in crate::backend::cuda) momentum: f32,
}

/// Where backward does; `d_x` is 0 where nobody wants it.
pub(in crate::backend::cuda) struct Backward {
    pub(in crate::backend::cuda) x: CUdeviceptr,
    pub(in crate::backend::cuda) d_y: CUdeviceptr,
    pub(in crate::backend::cuda) gamma: CUdeviceptr,
    pub(in crate::backend::cuda) kept: [CUdeviceptr; 2],
    pub(in crate::backend::cuda) d_affine: [CUdeviceptr; 2],
    pub(in crate::backend::cuda) d_x: CUdeviceptr,
    pub(in crate::backend::cuda) eps: f32,
    pub(in crate::backend::cuda) write: Write,
}

/// Where evaluation does.
pub(in crate::backend::cuda) struct Eval {
    pub(in crate::backend::cuda) x: CUdeviceptr,
    pub(in crate::backend::cuda) affine: [CUdeviceptr; 2],
    pub(in crate::backend::cuda) running: [CUdeviceptr; 2],
    pub(in crate::backend::cuda) y: CUdeviceptr,
    pub(in crate::backend::cuda) eps: f32,
}

fn read(at: CUdeviceptr) -> *const c_void {
    at as *const c_void
}

fn written(at: CUdeviceptr) -> *mut c_void {
    at as *mut c_void
}

/// Whether cuDNN says that it has nothing for this: any of a group of numbers.
fn is_refused(status: cudnnStatus_t) -> bool {
    status as u32 / 1000 == cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED as u32 / 1000
}

/// What cuDNN said where it has no batch norm of some shape.
fn said(of: &NormOf, status: cudnnStatus_t, what: &str) -> BackendError {
    let NormOf {
        samples,
        spatial,
        channels,
        dtype,
    } = of;
    BackendError::Device(format!(
        "{what}: cuDNN returned {status:?} for {samples}×{spatial}×{channels} in {dtype:?}; our own kernels compute that"
    ))
}

/// Has cuDNN load what describes batch norms, on one thread at a time: as for convolutions.
pub(in crate::backend::cuda) fn load_parts() -> Result<()> {
    static PARTS: Mutex<()> = Mutex::new(());
    let _alone = PARTS.lock().unwrap_or_else(PoisonError::into_inner);
    let one = NormOf {
        samples: 1,
        spatial: 1,
        channels: 1,
        dtype: Dtype::F32,
    };
    Shape::new(&one).map(|shape| shape.destroy())
}

impl Dnn {
    fn norm(&mut self, of: NormOf) -> Result<Shape> {
        if let Some(shape) = self.norms.shapes.get(&of) {
            return Ok(*shape);
        }
        let mut shape = Shape::new(&of)?;
        let asked = shape.ask(self.handle, Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT);
        let asked = match asked {
            Err((status, _)) if is_refused(status) => {
                shape.ask(self.handle, Mode::CUDNN_BATCHNORM_SPATIAL)
            }
            other => other,
        };
        if let Err((status, what)) = asked {
            shape.destroy();
            return Err(said(&of, status, what));
        }
        self.norms.shapes.insert(of, shape);
        Ok(shape)
    }

    /// Batch norm in training; what it takes in passing is kept for [`Dnn::norm_backward`] of the same mean.
    pub(in crate::backend::cuda) fn norm_forward(
        &mut self,
        of: NormOf,
        at: &Forward,
        mut room: (&mut Scratch, &mut Memory),
    ) -> Result<()> {
        let mut shape = self.norm(of)?;
        let mut status = self.enqueue_forward(&shape, at, &mut room)?;
        if is_refused(status) && shape.mode != Mode::CUDNN_BATCHNORM_SPATIAL {
            // Only the call itself knows of some shapes.
            shape
                .ask(self.handle, Mode::CUDNN_BATCHNORM_SPATIAL)
                .map_err(|(status, what)| said(&of, status, what))?;
            self.norms.shapes.insert(of, shape);
            status = self.enqueue_forward(&shape, at, &mut room)?;
        }
        match status {
            cudnnStatus_t::CUDNN_STATUS_SUCCESS => Ok(()),
            _ => Err(said(&of, status, "failed to enqueue a batch norm")),
        }
    }

    fn enqueue_forward(
        &mut self,
        shape: &Shape,
        at: &Forward,
        room: &mut (&mut Scratch, &mut Memory),
    ) -> Result<cudnnStatus_t> {
        let reserve = self.norms.reserves.entry(at.kept[0]).or_default();
        let reserve = reserve.room(room.1, shape.reserve)?;
        let workspace = room.0.room(room.1, shape.forward)?;
        // SAFETY: the spans are as large as the shape says, the workspaces as cuDNN asked for.
        Ok(unsafe {
            cudnn_norm::cudnnBatchNormalizationForwardTrainingEx(
                self.handle,
                shape.mode,
                OPERATIONS,
                (&raw const ONE).cast(),
                (&raw const ZERO).cast(),
                shape.x,
                read(at.x),
                null_mut(),
                read(0),
                shape.x,
                written(at.y),
                shape.channels,
                read(at.affine[0]),
                read(at.affine[1]),
                f64::from(at.momentum),
                written(at.running[0]),
                written(at.running[1]),
                f64::from(at.eps),
                written(at.kept[0]),
                written(at.kept[1]),
                null_mut(),
                written(workspace),
                shape.forward,
                written(reserve),
                shape.reserve,
            )
        })
    }

    /// Its backward: gradients of γ and β are added to.
    pub(in crate::backend::cuda) fn norm_backward(
        &mut self,
        of: NormOf,
        at: &Backward,
        room: (&mut Scratch, &mut Memory),
    ) -> Result<()> {
        let shape = self.norm(of)?;
        let reserve = self.norms.reserves.entry(at.kept[0]).or_default();
        let reserve = reserve.room(room.1, shape.reserve)?;
        // cuDNN makes the input's gradient whether anybody wants it or not.
        let values = of.samples * of.spatial * of.channels * of.dtype.size();
        let own = shape.backward.next_multiple_of(super::ALIGNMENT);
        let unwanted = if at.d_x == 0 { values } else { 0 };
        let workspace = room.0.room(room.1, own + unwanted)?;
        let d_x = match at.d_x {
            0 => workspace + own as u64,
            wanted => wanted,
        };
        let blend: *const f32 = match at.write {
            Write::Accumulate if at.d_x != 0 => &ONE,
            _ => &ZERO,
        };
        // SAFETY: as in `enqueue_forward`.
        let status = unsafe {
            cudnn_norm::cudnnBatchNormalizationBackwardEx(
                self.handle,
                shape.mode,
                OPERATIONS,
                (&raw const ONE).cast(),
                blend.cast(),
                (&raw const ONE).cast(),
                (&raw const ONE).cast(),
                shape.x,
                read(at.x),
                null_mut(),
                read(0),
                shape.x,
                read(at.d_y),
                null_mut(),
                written(0),
                shape.x,
                written(d_x),
                shape.channels,
                read(at.gamma),
                read(0),
                written(at.d_affine[0]),
                written(at.d_affine[1]),
                f64::from(at.eps),
                read(at.kept[0]),
                read(at.kept[1]),
                null_mut(),
                written(workspace),
                shape.backward,
                written(reserve),
                shape.reserve,
            )
        };
        check(status, "failed to enqueue a batch norm's backward")
    }

    /// Batch norm in evaluation mode.
    pub(in crate::backend::cuda) fn norm_eval(&mut self, of: NormOf, at: &Eval) -> Result<()> {
        let shape = self.norm(of)?;
        // SAFETY: as in `enqueue_forward`.
        let status = unsafe {
            cudnn_norm::cudnnBatchNormalizationForwardInference(
                self.handle,
                Mode::CUDNN_BATCHNORM_SPATIAL,
                (&raw const ONE).cast(),
                (&raw const ZERO).cast(),
                shape.x,
                read(at.x),
                shape.x,
                written(at.y),
                shape.channels,
                read(at.affine[0]),
                read(at.affine[1]),
                read(at.running[0]),
                read(at.running[1]),
                f64::from(at.eps),
            )
        };
        check(status, "failed to enqueue a batch norm in evaluation mode")
    }
}

impl Drop for Norms {
    fn drop(&mut self) {
        self.shapes.values().for_each(Shape::destroy);
    }
}
