//! Convolutions, by cuDNN.
//!
//! Contract: NHWC images, weights [out_c, kernel, kernel, c]. Descriptors and the algorithm of a shape are made once and kept. Only
//! algorithms that cuDNN calls deterministic are taken, and with [`Precision::Fp32`] only those without tensor cores: the first of cuDNN's
//! own ranking, so that the same shape has the same algorithm in every run, whatever a clock says.
//! Reference: cuDNN's API reference, `cudnnConvolutionForward` and the two backwards.
use crate::backend::cuda::api::cudnn;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t as DataAlgorithm,
    cudnnConvolutionBwdFilterAlgo_t as FilterAlgorithm, cudnnConvolutionDescriptor_t,
    cudnnConvolutionFwdAlgo_t as ForwardAlgorithm, cudnnConvolutionMode_t, cudnnDataType_t,
    cudnnDeterminism_t, cudnnFilterDescriptor_t, cudnnHandle_t, cudnnMathType_t, cudnnStatus_t,
    cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};
use cudarc::driver::sys::{CUdeviceptr, CUstream};

use super::Precision;
use super::memory::{Memory, Scratch};
use crate::backend::{BackendError, Result};
use crate::kernel::{Window, Write};
use crate::tensor::Dtype;

/// Most workspace that an algorithm may want.
const MOST_WORKSPACE: usize = 2 << 30;
/// Algorithms of one direction that cuDNN may name.
const NAMED: usize = 8;
/// Where narrow weight gradients lie in scratch is a multiple of this.
const ALIGNMENT: usize = 256;

/// What a convolution is of: its window, its batch, and the type of images and weights, f32 or bfloat16. Sums are in f32.
type Of<'a> = (&'a Window, usize, Dtype);

/// An algorithm with what it needs.
#[derive(Clone, Copy)]
struct Choice<A> {
    algorithm: A,
    workspace: usize,
    math: cudnnMathType_t,
}

/// Descriptors of one shape, and the algorithms chosen so far.
struct Shape {
    x: cudnnTensorDescriptor_t,
    y: cudnnTensorDescriptor_t,
    weight: cudnnFilterDescriptor_t,
    convolution: cudnnConvolutionDescriptor_t,
    forward: Option<Choice<ForwardAlgorithm>>,
    data: Option<Choice<DataAlgorithm>>,
    filter: Option<Choice<FilterAlgorithm>>,
}

/// cuDNN on one stream.
pub(super) struct Dnn {
    handle: cudnnHandle_t,
    precision: Precision,
    shapes: HashMap<(Window, usize, Dtype), Shape>,
}

fn check(status: cudnnStatus_t, what: &str) -> Result<()> {
    if status == cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    Err(BackendError::Device(format!(
        "{what}: cuDNN returned {status:?}"
    )))
}

impl Shape {
    fn new((window, batch, dtype): Of<'_>, math: cudnnMathType_t) -> Result<Self> {
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

    fn set<A>(&self, choice: &Choice<A>) -> Result<()> {
        // SAFETY: the descriptor is alive.
        let set = unsafe { cudnn::cudnnSetConvolutionMathType(self.convolution, choice.math) };
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

/// The first of cuDNN's ranking that may be taken.
macro_rules! choose {
    ($dnn:expr, $dtype:expr, $function:ident, $shape:expr, [$($descriptor:ident),*], $what:literal) => {{
        // SAFETY: results are plain numbers, which the call overwrites as far as it says.
        let mut found: [_; NAMED] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        // SAFETY: the descriptors are alive; the array is as long as said.
        let ranked = unsafe {
            cudnn::$function($dnn.handle, $($shape.$descriptor,)* NAMED as i32, &mut count, found.as_mut_ptr())
        };
        check(ranked, concat!("failed to rank algorithms of a convolution's ", $what))?;
        let any = $dnn.tensor_cores($dtype);
        found[..count as usize]
            .iter()
            .find(|one| {
                one.status == cudnnStatus_t::CUDNN_STATUS_SUCCESS
                    && one.determinism == cudnnDeterminism_t::CUDNN_DETERMINISTIC
                    && one.memory <= MOST_WORKSPACE
                    && (any || one.mathType == cudnnMathType_t::CUDNN_FMA_MATH)
            })
            .map(|one| Choice { algorithm: one.algo, workspace: one.memory, math: one.mathType })
            .ok_or_else(|| BackendError::Device(format!(
                concat!("cuDNN has no deterministic algorithm for a convolution's ", $what, " of {:?} in {:?}; it names {:?}"),
                $dtype,
                $dnn.precision,
                found[..count as usize].iter().map(|one| (one.algo, one.status, one.mathType)).collect::<Vec<_>>(),
            )))?
    }};
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
        })
    }

    /// Whether tensor cores may multiply: from f32 only where it is said to be rounded; what is narrow loses nothing.
    fn tensor_cores(&self, dtype: Dtype) -> bool {
        dtype != Dtype::F32 || self.precision == Precision::Tf32
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
        let choice = match shape.forward {
            Some(choice) => choice,
            None => choose!(
                self,
                of.2,
                cudnnGetConvolutionForwardAlgorithm_v7,
                shape,
                [x, weight, convolution, y],
                "forward"
            ),
        };
        shape.set(&choice)?;
        let workspace = room.0.room(room.1, choice.workspace)?;
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
                choice.algorithm,
                workspace as *mut _,
                choice.workspace,
                (&raw const ZERO).cast(),
                shape.y,
                y as *mut _,
            )
        };
        self.shape(of)?.forward = Some(choice);
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
        let choice = match shape.data {
            Some(choice) => choice,
            None => choose!(
                self,
                of.2,
                cudnnGetConvolutionBackwardDataAlgorithm_v7,
                shape,
                [weight, y, convolution, x],
                "input gradient"
            ),
        };
        shape.set(&choice)?;
        let workspace = room.0.room(room.1, choice.workspace)?;
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
                choice.algorithm,
                workspace as *mut _,
                choice.workspace,
                (&raw const beta).cast(),
                shape.x,
                d_x as *mut _,
            )
        };
        self.shape(of)?.data = Some(choice);
        check(status, "failed to enqueue a convolution's input gradient")
    }

    /// d_weight += the weight gradient, which is of the images' type.
    pub(super) fn backward_weight(
        &mut self,
        of: Of<'_>,
        spans: [CUdeviceptr; 3],
        room: (&mut Scratch, &mut Memory),
    ) -> Result<()> {
        let choice = self.filter(of)?;
        let workspace = room.0.room(room.1, choice.workspace)?;
        self.enqueue_weight(of, choice, spans, workspace, &ONE)
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
        let choice = self.filter(of)?;
        let own = (elements * of.2.size()).next_multiple_of(ALIGNMENT);
        let made = room.0.room(room.1, own + choice.workspace)?;
        self.enqueue_weight(of, choice, [x, d_y, made], made + own as u64, &ZERO)?;
        Ok(made)
    }

    fn filter(&mut self, of: Of<'_>) -> Result<Choice<FilterAlgorithm>> {
        self.shape(of)?;
        let shape = &self.shapes[&(*of.0, of.1, of.2)];
        let choice = match shape.filter {
            Some(choice) => choice,
            None => choose!(
                self,
                of.2,
                cudnnGetConvolutionBackwardFilterAlgorithm_v7,
                shape,
                [x, y, convolution, weight],
                "weight gradient"
            ),
        };
        self.shape(of)?.filter = Some(choice);
        Ok(choice)
    }

    fn enqueue_weight(
        &mut self,
        of: Of<'_>,
        choice: Choice<FilterAlgorithm>,
        [x, d_y, d_weight]: [CUdeviceptr; 3],
        workspace: CUdeviceptr,
        beta: &'static f32,
    ) -> Result<()> {
        let handle = self.handle;
        let shape = self.shape(of)?;
        shape.set(&choice)?;
        // SAFETY: as in `forward`; the workspace is as large as the choice says.
        let status = unsafe {
            cudnn::cudnnConvolutionBackwardFilter(
                handle,
                (&raw const ONE).cast(),
                shape.x,
                x as *const _,
                shape.y,
                d_y as *const _,
                shape.convolution,
                choice.algorithm,
                workspace as *mut _,
                choice.workspace,
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
