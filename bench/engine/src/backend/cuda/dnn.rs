//! Convolutions, by cuDNN.
//!
//! Contract: NHWC images, weights [out_c, kernel, kernel, c]. Descriptors and the algorithm of a shape are made once and kept. Only
//! algorithms that cuDNN calls deterministic are taken, and with [`Precision::Fp32`] only those without tensor cores: the first of cuDNN's
//! own ranking, so that the same shape has the same algorithm in every run, whatever a clock says.
//! Reference: cuDNN's API reference, `cudnnConvolutionForward` and the two backwards.
mod algorithm;
pub(super) mod batch_norm;
mod shape;

use crate::backend::cuda::api::cudnn;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cudarc::cudnn::sys::{
    cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm, cudnnDeterminism_t, cudnnHandle_t,
    cudnnMathType_t, cudnnStatus_t,
};
use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::Precision;
use super::choice::Choice;
use super::memory::{Memory, Scratch};
use crate::backend::{BackendError, Result};
use crate::kernel::{Window, Write};
use crate::tensor::Dtype;
use algorithm::{MOST_WORKSPACE, NAMED, Taken, choose};
use batch_norm::Norms;
use shape::Shape;

/// Where narrow weight gradients lie in scratch is a multiple of this.
const ALIGNMENT: usize = 256;

/// What a convolution is of: its window, its batch, and the type of images and weights, f32 or bfloat16. Sums are in f32.
type Of<'a> = (&'a Window, usize, Dtype);

/// cuDNN on one stream.
pub(super) struct Dnn {
    handle: cudnnHandle_t,
    precision: Precision,
    shapes: HashMap<(Window, usize, Dtype), Shape>,
    norms: Norms,
}

fn check(status: cudnnStatus_t, what: &str) -> Result<()> {
    if status == cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    Err(BackendError::Device(format!(
        "{what}: cuDNN returned {status:?}"
    )))
}

impl Dnn {
    pub(super) fn new(stream: CUstream, precision: Precision) -> Result<Self> {
        load_parts()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is the thread's.
        unsafe {
            check(cudnn::cudnnCreate(&mut handle), "failed to start cuDNN")?;
            check(
                cudnn::cudnnSetStream(handle, stream.cast()),
                "failed to give cuDNN a stream",
            )?;
        }
        Ok(Self {
            handle,
            precision,
            shapes: HashMap::new(),
            norms: Norms::default(),
        })
    }

    /// Whether tensor cores may multiply: from f32 only where it is said to be rounded; what is narrow loses nothing.
    fn tensor_cores(&self, dtype: Dtype) -> bool {
        dtype != Dtype::F32 || self.precision == Precision::Tf32
    }

    /// What was taken for each shape so far.
    pub(super) fn choices(&self) -> Vec<Choice> {
        let mut choices = Vec::new();
        for ((window, batch, dtype), shape) in &self.shapes {
            let of = (window, *batch, *dtype);
            let forward = shape
                .forward
                .map(|taken| taken.choice("convolution forward", of));
            let data = shape
                .data
                .map(|taken| taken.choice("convolution input gradient", of));
            let filter = shape
                .filter
                .map(|taken| taken.choice("convolution weight gradient", of));
            choices.extend([forward, data, filter].into_iter().flatten());
        }
        choices.extend(self.norms.choices());
        // Whatever the order of a table by hashes.
        choices.sort();
        choices
    }

    fn shape(&mut self, (window, batch, dtype): Of<'_>) -> Result<&mut Shape> {
        let key = (*window, batch, dtype);
        if !self.shapes.contains_key(&key) {
            let math = match (dtype, self.tensor_cores(dtype)) {
                (Dtype::F32, true) => cudnnMathType_t::CUDNN_DEFAULT_MATH,
                (_, true) => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
                (_, false) => cudnnMathType_t::CUDNN_FMA_MATH,
            };
            let made = Shape::new((window, batch, dtype), math)?;
            self.shapes.insert(key, made);
        }
        Ok(self.shapes.get_mut(&key).expect("just inserted"))
    }

    /// y = x ⋆ w.
    pub(super) fn forward(
        &mut self,
        of: Of<'_>,
        [x, weight, y]: [CUdeviceptr; 3],
        room: (&mut Scratch, &mut Memory),
    ) -> Result<()> {
        self.shape(of)?;
        let shape = &self.shapes[&(*of.0, of.1, of.2)];
        let taken = match shape.forward {
            Some(taken) => taken,
            None => choose!(
                self,
                of.2,
                cudnnGetConvolutionForwardAlgorithm_v7,
                shape,
                [x, weight, convolution, y],
                "forward"
            ),
        };
        shape.set(&taken)?;
        let workspace = room.0.room(room.1, taken.workspace)?;
        // SAFETY: the spans are as large as the shapes say.
        let status = unsafe {
            cudnn::cudnnConvolutionForward(
                self.handle,
                (&raw const ONE).cast(),
                shape.x,
                x as *const _,
                shape.weight,
                weight as *const _,
                shape.convolution,
                taken.algorithm,
                workspace as *mut _,
                taken.workspace,
                (&raw const ZERO).cast(),
                shape.y,
                y as *mut _,
            )
        };
        self.shape(of)?.forward = Some(taken);
        check(status, "failed to enqueue a convolution")
    }

    /// dx (+)= the input gradient.
    pub(super) fn backward_input(
        &mut self,
        of: Of<'_>,
        [d_y, weight, d_x]: [CUdeviceptr; 3],
        write: Write,
        room: (&mut Scratch, &mut Memory),
    ) -> Result<()> {
        self.shape(of)?;
        let shape = &self.shapes[&(*of.0, of.1, of.2)];
        let taken = match shape.data {
            Some(taken) => taken,
            None => choose!(
                self,
                of.2,
                cudnnGetConvolutionBackwardDataAlgorithm_v7,
                shape,
                [weight, y, convolution, x],
                "input gradient"
            ),
        };
        shape.set(&taken)?;
        let workspace = room.0.room(room.1, taken.workspace)?;
        let beta = if write == Write::Accumulate {
            ONE
        } else {
            ZERO
        };
        // SAFETY: as in `forward`.
        let status = unsafe {
            cudnn::cudnnConvolutionBackwardData(
                self.handle,
                (&raw const ONE).cast(),
                shape.weight,
                weight as *const _,
                shape.y,
                d_y as *const _,
                shape.convolution,
                taken.algorithm,
                workspace as *mut _,
                taken.workspace,
                (&raw const beta).cast(),
                shape.x,
                d_x as *mut _,
            )
        };
        self.shape(of)?.data = Some(taken);
        check(status, "failed to enqueue a convolution's input gradient")
    }

    /// d_weight += the weight gradient, which is of the images' type.
    pub(super) fn backward_weight(
        &mut self,
        of: Of<'_>,
        spans: [CUdeviceptr; 3],
        room: (&mut Scratch, &mut Memory),
    ) -> Result<()> {
        let taken = self.filter(of)?;
        let workspace = room.0.room(room.1, taken.workspace)?;
        self.enqueue_weight(of, taken, spans, workspace, &ONE)
    }

    /// The weight gradient of narrow images, `elements` of it, in scratch: where it lies until the next kernel uses that. The third span is
    /// not looked at.
    pub(super) fn narrow_backward_weight(
        &mut self,
        of: Of<'_>,
        [x, d_y, _]: [CUdeviceptr; 3],
        elements: usize,
        room: (&mut Scratch, &mut Memory),
    ) -> Result<CUdeviceptr> {
        let taken = self.filter(of)?;
        let own = (elements * of.2.size()).next_multiple_of(ALIGNMENT);
        let made = room.0.room(room.1, own + taken.workspace)?;
        self.enqueue_weight(of, taken, [x, d_y, made], made + own as u64, &ZERO)?;
        Ok(made)
    }

    fn filter(&mut self, of: Of<'_>) -> Result<Taken<FilterAlgorithm>> {
        self.shape(of)?;
        let shape = &self.shapes[&(*of.0, of.1, of.2)];
        let taken = match shape.filter {
            Some(taken) => taken,
            None => choose!(
                self,
                of.2,
                cudnnGetConvolutionBackwardFilterAlgorithm_v7,
                shape,
                [x, y, convolution, weight],
                "weight gradient"
            ),
        };
        self.shape(of)?.filter = Some(taken);
        Ok(taken)
    }

    fn enqueue_weight(
        &mut self,
        of: Of<'_>,
        taken: Taken<FilterAlgorithm>,
        [x, d_y, d_weight]: [CUdeviceptr; 3],
        workspace: CUdeviceptr,
        beta: &'static f32,
    ) -> Result<()> {
        let handle = self.handle;
        let shape = self.shape(of)?;
        shape.set(&taken)?;
        // SAFETY: as in `forward`; the workspace is as large as was asked for.
        let status = unsafe {
            cudnn::cudnnConvolutionBackwardFilter(
                handle,
                (&raw const ONE).cast(),
                shape.x,
                x as *const _,
                shape.y,
                d_y as *const _,
                shape.convolution,
                taken.algorithm,
                workspace as *mut _,
                taken.workspace,
                std::ptr::from_ref(beta).cast(),
                shape.weight,
                d_weight as *mut _,
            )
        };
        check(status, "failed to enqueue a convolution's weight gradient")
    }
}

/// Has cuDNN load the parts of itself that describe convolutions, on one thread: it does so at first use, and threads that come to that
/// together have been seen to find it half done.
fn load_parts() -> Result<()> {
    static PARTS: Mutex<bool> = Mutex::new(false);
    let mut parts = PARTS.lock().unwrap_or_else(PoisonError::into_inner);
    if !*parts {
        let window = Window {
            h: 1,
            w: 1,
            c: 1,
            out_h: 1,
            out_w: 1,
            out_c: 1,
            kernel: 1,
            stride: 1,
            padding: 0,
        };
        drop(Shape::new(
            (&window, 1, Dtype::F32),
            cudnnMathType_t::CUDNN_FMA_MATH,
        )?);
        *parts = true;
    }
    Ok(())
}

static ONE: f32 = 1.0;
static ZERO: f32 = 0.0;

impl Drop for Dnn {
    fn drop(&mut self) {
        self.shapes.clear();
        // SAFETY: nobody else has the handle.
        let _ = unsafe { cudnn::cudnnDestroy(self.handle) };
    }
}
