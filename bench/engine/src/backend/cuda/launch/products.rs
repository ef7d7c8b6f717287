//! Products, and a bias or its gradient in the same pass where cuBLASLt has that.
//!
//! The sums are the kernels' own: a bias is added before the result is rounded, and a bias gradient is summed in f32. A bias that meets
//! bfloat16 results is rounded to that first, as PyTorch's autocast does, since cuBLASLt takes a bias of the result's type alone.
use super::{Launch, accumulate, call, run};
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::blas::{Matrix, Product};
use crate::backend::cuda::blas_lt::{BlasLt, Epilogue};
use crate::backend::{Result, Stream};
use crate::kernel::{Kernel, Write};
use crate::tensor::{Dtype, Span};

/// Operands and result of a product `[m, n, k]`.
pub(super) fn matrices(
    l: &Launch<'_>,
    [a, b, c]: [Span; 3],
    [m, n, k]: [usize; 3],
    [transpose_a, transpose_b]: [bool; 2],
) -> [Matrix; 3] {
    let matrix = |span: Span, row: usize, transposed: bool| Matrix {
        at: l.at(span),
        row,
        stride: 0,
        dtype: span.dtype(),
        transposed,
    };
    [
        matrix(a, if transpose_a { m } else { k }, transpose_a),
        matrix(b, if transpose_b { k } else { n }, transpose_b),
        matrix(c, n, false),
    ]
}

/// Enqueues two kernels, as one where that can be.
pub(in crate::backend::cuda) fn run_both(
    device: &mut CudaBackend,
    on: Stream,
    kernels: &[Kernel; 2],
) -> Result<()> {
    if at_once(&mut Launch { device, on }, kernels)? {
        return Ok(());
    }
    kernels
        .iter()
        .try_for_each(|kernel| run(device, on, kernel))
}

/// Enqueues both as one, or nothing and says so.
fn at_once(l: &mut Launch<'_>, kernels: &[Kernel; 2]) -> Result<bool> {
    let &[
        Kernel::Matmul {
            a,
            b,
            c,
            m,
            n,
            k,
            transpose_a,
            transpose_b,
            write,
        },
        second,
    ] = kernels
    else {
        return Ok(false);
    };
    if l.device.blas[l.on as usize].lt().is_none() || m == 0 || n == 0 {
        return Ok(false);
    }
    let of = matrices(l, [a, b, c], [m, n, k], [transpose_a, transpose_b]);
    let product = Product {
        m,
        n,
        k,
        scale: 1.0,
        batch: 1,
        write,
    };
    match second {
        Kernel::AddBias { y, bias, rows }
            if y == c && rows == m && bias.len() == n && write == Write::Overwrite =>
        {
            with_bias(l, &product, &of, bias)
        }
        Kernel::BiasBackward { d_y, d_bias, rows }
            if d_y == a
                && transpose_a
                && rows == k
                && d_bias.len() == m
                && c.dtype() == Dtype::F32 =>
        {
            with_gradient(l, &product, &of, d_bias)
        }
        _ => Ok(false),
    }
}

/// Of a stream for which [`at_once`] has found it.
fn lt<'l>(l: &'l mut Launch<'_>) -> &'l mut BlasLt {
    let lt = l.device.blas[l.on as usize].lt();
    lt.expect("whether there is one was asked before")
}

fn with_bias(l: &mut Launch<'_>, product: &Product, of: &[Matrix; 3], bias: Span) -> Result<bool> {
    let ([a, b, c], at) = (of, l.at(bias));
    if c.dtype == bias.dtype() {
        return lt(l).enqueue(product, [a, b, c], Epilogue::Bias, at);
    }
    // Two of the narrow ones are as long as an f32.
    let narrowed = l.room(bias.len().div_ceil(2))?;
    if !lt(l).takes(product, [a, b, c], Epilogue::Bias, narrowed)? {
        return Ok(false);
    }
    let (n, divisor) = (bias.len() as u64, 1.0f32);
    let narrow = l.device.gpu.kernels.compression.narrow_bf16;
    call!(l, narrow, l.by_four(n); at, narrowed, n, divisor)?;
    lt(l).enqueue(product, [a, b, c], Epilogue::Bias, narrowed)
}

/// cuBLASLt writes the sums over what was there, so they go by way of scratch.
fn with_gradient(
    l: &mut Launch<'_>,
    product: &Product,
    of: &[Matrix; 3],
    d_bias: Span,
) -> Result<bool> {
    let ([a, b, c], sums) = (of, l.room(d_bias.len())?);
    if !lt(l).enqueue(product, [a, b, c], Epilogue::BiasGradient, sums)? {
        return Ok(false);
    }
    let n = d_bias.len() as u64;
    let (copy, to) = (l.of(d_bias)?.elementwise.copy, l.at(d_bias));
    call!(l, copy, l.by_four(n); sums, to, n, accumulate(Write::Accumulate))?;
    Ok(true)
}
