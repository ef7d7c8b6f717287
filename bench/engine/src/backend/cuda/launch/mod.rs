//! From kernels as data to launches: one `match`, with a file for each family behind it.
//!
//! Contract: a kernel's grid depends on its shape and on the number of multiprocessors, never on a clock, so results repeat. What a
//! kernel leaves for the next one lies in the stream's scratch.
//! Reference: [`crate::kernel::Kernel`], which states each formula; `kernels/*.cu`, whose signatures the calls repeat.
mod attention;
mod batch_norm;
mod columns;
mod flash;
mod group_norm;
mod library_norm;
mod loss;
mod pool;
mod products;
mod samples;
mod tokens;

pub(super) use products::run_both;
pub(super) use samples::{STASH, THREADS};

use crate::backend::cuda::api::driver;
use std::ffi::c_void;

use cudarc::driver::sys::{CUdeviceptr, CUfunction};

use super::CudaBackend;
use super::blas::{Addresses, Matrix, Product};
use super::dnn::Dnn;
use super::gpu::check;
use super::memory::{Memory, Scratch};
use super::module::OfValues;
use crate::backend::{BackendError, Result, Stream};
use crate::kernel::{Gelu, Kernel, Window, Write};
use crate::tensor::{Dtype, Span};

/// Threads of a block where a kernel does not say otherwise.
const BLOCK: u32 = 256;
/// Blocks that each multiprocessor gets at most of elementwise work.
const WAVES: u32 = 16;

/// Most blocks along the second and third side of a grid.
const SIDE: u32 = 65_535;

/// A kernel's blocks.
#[derive(Clone, Copy)]
struct Grid {
    blocks: [u32; 3],
    threads: [u32; 2],
    shared: u32,
}

impl Grid {
    const fn blocks(blocks: u32, threads: u32) -> Self {
        Self {
            blocks: [blocks, 1, 1],
            threads: [threads, 1],
            shared: 0,
        }
    }
}

/// A device in the course of one launch.
struct Launch<'a> {
    device: &'a mut CudaBackend,
    on: Stream,
}

/// Enqueues a kernel function with arguments of exactly its parameters' types.
macro_rules! call {
    ($launch:expr, $function:expr, $grid:expr; $($argument:expr),* $(,)?) => {
        $launch.enqueue($function, $grid, &mut [$(std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()),*])
    };
}
use call;

impl Launch<'_> {
    fn enqueue(
        &self,
        function: CUfunction,
        grid: Grid,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let [x, y, z] = grid.blocks;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        if y.max(z) > SIDE {
            return Err(BackendError::Unsupported(
                "more than 65535 samples in one call of a kernel that takes a sample a block",
            ));
        }
        let [across, down] = grid.threads;
        // SAFETY: the parameters are those of the function, by type and number; the spans behind them are the caller's.
        let launched = unsafe {
            driver::cuLaunchKernel(
                function,
                x,
                y,
                z,
                across,
                down,
                1,
                grid.shared,
                self.device.raw_stream(self.on),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check(launched, "failed to launch a kernel")
    }

    /// As [`Self::enqueue`], of blocks that wait for each other: all of them are resident together.
    fn enqueue_together(
        &self,
        function: CUfunction,
        grid: Grid,
        parameters: &mut [*mut c_void],
    ) -> Result<()> {
        let ([x, y, z], [across, down]) = (grid.blocks, grid.threads);
        // SAFETY: as in `enqueue`.
        let launched = unsafe {
            driver::cuLaunchCooperativeKernel(
                function,
                x,
                y,
                z,
                across,
                down,
                1,
                grid.shared,
                self.device.raw_stream(self.on),
                parameters.as_mut_ptr(),
            )
        };
        check(
            launched,
            "failed to launch a kernel whose blocks wait for each other",
        )
    }

    /// Where a span lies; 0 for none.
    fn at(&self, span: Span) -> CUdeviceptr {
        self.device.address(span)
    }

    /// Kernels for values of the type of `value`.
    fn of(&self, value: Span) -> Result<&OfValues> {
        self.device.gpu.kernels.of(value.dtype())
    }

    /// Blocks for `items` independent pieces of work, each thread taking as many as it must.
    fn over(&self, items: u64) -> Grid {
        let most = u64::from(self.device.gpu.multiprocessors * WAVES);
        Grid::blocks(items.div_ceil(u64::from(BLOCK)).min(most) as u32, BLOCK)
    }

    /// The same for kernels whose threads take four elements at a time.
    fn by_four(&self, items: u64) -> Grid {
        self.over(items.div_ceil(4))
    }

    /// Room for so many f32.
    fn room(&mut self, floats: usize) -> Result<CUdeviceptr> {
        let device = &mut *self.device;
        device.scratch[self.on as usize].room(&mut device.memory, floats * size_of::<f32>())
    }

    /// Sets bytes to 0.
    fn zero(&self, span: Span) -> Result<()> {
        self.zero_at(self.at(span), span.bytes())
    }

    /// The same of so many bytes anywhere.
    fn zero_at(&self, at: CUdeviceptr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the bytes are the caller's to write.
        let zeroed =
            unsafe { driver::cuMemsetD8Async(at, 0, bytes, self.device.raw_stream(self.on)) };
        check(zeroed, "failed to zero memory on the GPU")
    }

    fn products(&self, product: Product, a: Addresses, b: Addresses, c: Addresses) -> Result<()> {
        self.device.blas[self.on as usize].products(product, a, b, c)
    }

    fn product(&mut self, product: Product, a: Matrix, b: Matrix, c: Matrix) -> Result<()> {
        self.device.blas[self.on as usize].product(product, a, b, c)
    }
}

/// As kernels take it.
const fn accumulate(write: Write) -> i32 {
    match write {
        Write::Overwrite => 0,
        Write::Accumulate => 1,
    }
}

fn tanh(formula: Gelu) -> i32 {
    i32::from(formula == Gelu::Tanh)
}

/// Enqueues `kernel`.
#[rustfmt::skip]
#[allow(clippy::too_many_lines, reason = "one arm per kernel")]
pub(super) fn run(device: &mut CudaBackend, on: Stream, kernel: &Kernel) -> Result<()> {
    let gpu = std::sync::Arc::clone(&device.gpu);
    let (optimizer, compression) = (&gpu.kernels.optimizer, &gpu.kernels.compression);
    // Those for the type of what is written.
    let elementwise = |to: Span| gpu.kernels.of(to.dtype()).map(|of| &of.elementwise);
    let mut l = Launch { device, on };
    match *kernel {
        Kernel::Fill { to, value: 0.0 } if matches!(to.dtype(), Dtype::F32 | Dtype::Bf16) => l.zero(to),
        Kernel::Fill { to, value } => {
            let n = to.len() as u64;
            call!(l, elementwise(to)?.fill, l.by_four(n); l.at(to), n, value)
        }
        Kernel::Copy { from, to, write } => {
            let n = to.len() as u64;
            call!(l, elementwise(to)?.copy, l.by_four(n); l.at(from), l.at(to), n, accumulate(write))
        }
        Kernel::Add { a, b, to } => {
            let n = to.len() as u64;
            call!(l, elementwise(to)?.add_two, l.by_four(n); l.at(a), l.at(b), l.at(to), n)
        }
        Kernel::Scale { to, factor } => {
            let n = to.len() as u64;
            call!(l, elementwise(to)?.scale, l.by_four(n); l.at(to), n, factor)
        }
        Kernel::ReluForward { x, y } => {
            let n = y.len() as u64;
            call!(l, elementwise(y)?.relu_forward, l.by_four(n); l.at(x), l.at(y), n)
        }
        Kernel::ReluBackward { y, d_y, d_x, write } => {
            let n = d_x.len() as u64;
            call!(l, elementwise(d_x)?.relu_backward, l.by_four(n); l.at(y), l.at(d_y), l.at(d_x), n, accumulate(write))
        }
        Kernel::Gate { y, d_y } => {
            let n = d_y.len() as u64;
            call!(l, elementwise(d_y)?.gate, l.by_four(n); l.at(y), l.at(d_y), n)
        }
        Kernel::Rectify { y, shortcut } => {
            let n = y.len() as u64;
            call!(l, elementwise(y)?.rectify, l.by_four(n); l.at(y), l.at(shortcut), n)
        }
        Kernel::GeluForward { x, y, formula } => {
            let n = y.len() as u64;
            call!(l, elementwise(y)?.gelu_forward, l.by_four(n); l.at(x), l.at(y), n, tanh(formula))
        }
        Kernel::GeluBackward { x, d_y, d_x, formula, write } => {
            let n = d_x.len() as u64;
            call!(l, elementwise(d_x)?.gelu_backward, l.by_four(n); l.at(x), l.at(d_y), l.at(d_x), n, tanh(formula), accumulate(write))
        }
        Kernel::Transpose { from, to, batch, rows, columns, write } => {
            let grid = Grid {
                blocks: [columns.div_ceil(32) as u32, rows.div_ceil(32) as u32, batch as u32],
                threads: [32, 8],
                shared: 0,
            };
            call!(l, elementwise(to)?.transpose, grid; l.at(from), l.at(to), rows as u32, columns as u32, accumulate(write))
        }
        Kernel::Dropout { x, y, p, seed, node, state, batch, write } => {
            let (batch, size) = (batch as u64, y.len() as u64 / batch.max(1) as u64);
            let blocks = size.div_ceil(4);
            let function = elementwise(y)?.dropout;
            let (x, y, state) = (l.at(x), l.at(y), l.at(state));
            call!(l, function, l.over(batch * blocks); x, y, size, blocks, batch, p, seed, node, state, accumulate(write))
        }
        Kernel::EmbeddingForward { .. } | Kernel::EmbeddingBackward { .. } => tokens::run(&mut l, kernel),
        Kernel::AttentionForward { .. } | Kernel::AttentionBackward { .. } => attention::run(&mut l, kernel),
        Kernel::Narrow { from, to, divisor } => {
            let n = to.len() as u64;
            let function = if to.dtype() == Dtype::F16 { compression.narrow_f16 } else { compression.narrow_bf16 };
            call!(l, function, l.by_four(n); l.at(from), l.at(to), n, divisor)
        }
        Kernel::Widen { from, to } => {
            let n = to.len() as u64;
            let function = if from.dtype() == Dtype::F16 { compression.widen_f16 } else { compression.widen_bf16 };
            call!(l, function, l.by_four(n); l.at(from), l.at(to), n)
        }
        Kernel::Subtract { from, to } => {
            let n = to.len() as u64;
            call!(l, elementwise(to)?.subtract, l.by_four(n); l.at(from), l.at(to), n)
        }
        Kernel::FillNormal { to, seed, stream, state } => {
            let n = to.len() as u64;
            call!(l, compression.fill_normal, l.over(n.div_ceil(4)); l.at(to), n, seed, l.at(state), stream)
        }
        Kernel::Orthogonalize { matrix, columns, workspace } => {
            let (rows, at) = ((matrix.len() / columns.max(1)) as u64, l.at(matrix));
            if columns <= 2 {
                return call!(l, compression.gram_schmidt, Grid::blocks(1, 1024); at, rows, columns as u32);
            }
            call!(l, compression.householder, Grid::blocks(1, 1024); at, rows, columns as u32, l.at(workspace))
        }
        // A product with one column is a scaling by a factor that lies on the device, which is no value and so may be of another type.
        Kernel::Matmul { a, b, c, n: 1, k: 1, write, .. } if a.dtype() != b.dtype() => {
            let n = c.len() as u64;
            call!(l, elementwise(c)?.scale_by, l.by_four(n); l.at(a), l.at(b), l.at(c), n, accumulate(write))
        }
        Kernel::Matmul { a, b, c, m, n, k, transpose_a, transpose_b, write } => {
            let [a, b, c] = products::matrices(&l, [a, b, c], [m, n, k], [transpose_a, transpose_b]);
            l.product(Product { m, n, k, scale: 1.0, batch: 1, write }, a, b, c)
        }
        Kernel::AddBias { y, bias, rows } => add_bias(&l, y, bias, rows),
        Kernel::BiasBackward { d_y, d_bias, rows } => batch_norm::bias_backward(&mut l, d_y, d_bias, rows),
        Kernel::Conv2dForward { x, weight, bias, y, window, batch, .. } => {
            let (of, spans) = ((&window, batch, x.dtype()), [x, weight, y]);
            convolution(&mut l, spans, |dnn, at, room| dnn.forward(of, at, room))?;
            match bias.is_empty() {
                true => Ok(()),
                false => add_bias(&l, y, bias, batch * window.out_h * window.out_w),
            }
        }
        Kernel::Conv2dBackwardInput { d_y, weight, d_x, window, batch, write, .. } => {
            let of = (&window, batch, d_x.dtype());
            convolution(&mut l, [d_y, weight, d_x], |dnn, at, room| dnn.backward_input(of, at, write, room))
        }
        Kernel::Conv2dBackwardWeight { x, d_y, d_weight, window, batch, .. } => {
            let of = (&window, batch, x.dtype());
            match x.dtype() == d_weight.dtype() {
                true => convolution(&mut l, [x, d_y, d_weight], |dnn, at, room| dnn.backward_weight(of, at, room)),
                false => narrow_weight_gradient(&mut l, of, [x, d_y, d_weight]),
            }
        }
        Kernel::MaxPoolForward { .. } | Kernel::MaxPoolBackward { .. } | Kernel::AveragePoolForward { .. }
        | Kernel::AveragePoolBackward { .. } | Kernel::GlobalAveragePoolForward { .. } | Kernel::GlobalAveragePoolBackward { .. } => {
            pool::run(&l, kernel)
        }
        Kernel::GroupNormForward { .. } | Kernel::GroupNormBackward { .. } | Kernel::RmsNormForward { .. }
        | Kernel::RmsNormBackward { .. } => group_norm::run(&mut l, kernel),
        Kernel::LibraryBatchNorm { .. } | Kernel::LibraryBatchNormBackward { .. } | Kernel::LibraryBatchNormEval { .. } => {
            library_norm::run(&mut l, kernel)
        }
        Kernel::SoftmaxCrossEntropy { .. } | Kernel::CountErrors { .. } => loss::run(&mut l, kernel),
        Kernel::Sgd { parameter, gradient, buffer, rates, momentum, weight_decay, nesterov } => {
            let n = parameter.len() as u64;
            let [parameter, gradient, buffer, rates] = [parameter, gradient, buffer, rates].map(|span| l.at(span));
            call!(l, optimizer.sgd, l.by_four(n); parameter, gradient, buffer, rates, n, momentum, weight_decay, i32::from(nesterov))
        }
        Kernel::Adamw { parameter, gradient, average, square, rates, counters, beta1, beta2, eps, weight_decay } => {
            let n = parameter.len() as u64;
            let [parameter, gradient, average, square] = [parameter, gradient, average, square].map(|span| l.at(span));
            let (rates, counters) = (l.at(rates), l.at(counters));
            call!(l, optimizer.adamw, l.by_four(n); parameter, gradient, average, square, rates, counters, n, beta1, beta2, eps, weight_decay)
        }
        _ => batch_norm::run(&mut l, kernel),
    }
}

fn add_bias(l: &Launch<'_>, y: Span, bias: Span, rows: usize) -> Result<()> {
    let (n, columns) = ((rows * bias.len()) as u64, bias.len() as u32);
    let function = l.of(y)?.elementwise.add_bias;
    call!(l, function, l.by_four(n); l.at(y), l.at(bias), n, columns)
}

/// A convolution's shape: its window, its batch, and the type of its images and weights.
type Shape<'a> = (&'a Window, usize, Dtype);

/// cuDNN has one handle, on the compute stream, where all convolutions are.
fn convolution<T>(
    l: &mut Launch<'_>,
    spans: [Span; 3],
    work: impl FnOnce(&mut Dnn, [CUdeviceptr; 3], (&mut Scratch, &mut Memory)) -> Result<T>,
) -> Result<T> {
    assert!(
        l.on == Stream::Compute,
        "convolutions are on the compute stream"
    );
    let at = spans.map(|span| l.at(span));
    let CudaBackend {
        dnn,
        scratch,
        memory,
        ..
    } = &mut *l.device;
    work(dnn, at, (&mut scratch[Stream::Compute as usize], memory))
}

/// cuDNN's weight gradient is of the type of the images, so that of narrow ones is made in scratch and then added in f32.
fn narrow_weight_gradient(
    l: &mut Launch<'_>,
    of: Shape<'_>,
    spans @ [_, _, d_weight]: [Span; 3],
) -> Result<()> {
    let n = d_weight.len() as u64;
    let made = convolution(l, spans, |dnn, at, room| {
        dnn.narrow_backward_weight(of, at, d_weight.len(), room)
    })?;
    let function = l.device.gpu.kernels.compression.add_bf16;
    call!(l, function, l.by_four(n); made, l.at(d_weight), n)
}

/// A window as kernels take it.
#[repr(C)]
#[derive(Clone, Copy)]
struct DeviceWindow {
    h: u32,
    w: u32,
    c: u32,
    out_h: u32,
    out_w: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
}

impl From<&Window> for DeviceWindow {
    fn from(window: &Window) -> Self {
        Self {
            h: window.h as u32,
            w: window.w as u32,
            c: window.c as u32,
            out_h: window.out_h as u32,
            out_w: window.out_w as u32,
            kernel: window.kernel as u32,
            stride: window.stride as u32,
            padding: window.padding as u32,
        }
    }
}
