//! Matrix products and biases.
//!
//! Contract: row-major operands, f32, one thread. Narrow products have a kernel of their own; the others are the `gemm`
//! crate's (AVX-512 through its feature `x86-v4`), which allocates its packing buffers in every call and frees them before
//! it returns: the only allocations of a step on the CPU. `tests/no_allocation` bounds them.
//! Reference: Goto and van de Geijn, *Anatomy of high-performance matrix multiplication*, 2008.
use crate::backend::cpu::columns::{Columns, map, reduce, widest};
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::narrow;
use crate::kernel::Write;

/// Shape of a product: c is [m, n], the inner dimension is k.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// `a` is stored [k, m].
    pub(super) transpose_a: bool,
    /// `b` is stored [n, k].
    pub(super) transpose_b: bool,
}

/// c (+)= op(a)·op(b).
pub(super) fn matmul(product: Product, a: &[f32], b: &[f32], c: &mut [f32], write: Write) {
    let Product {
        m,
        n,
        k,
        transpose_a,
        transpose_b,
    } = product;
    assert!(
        a.len() == m * k && b.len() == k * n && c.len() == m * n,
        "{product:?} does not fit its operands"
    );
    if c.is_empty() {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if narrow::applies(product) {
        return narrow::matmul(product, a, b, c, write);
    }
    let accumulate = write == Write::Accumulate;
    let (a_row, a_column) = if transpose_a { (1, m) } else { (k, 1) };
    let (b_row, b_column) = if transpose_b { (1, k) } else { (n, 1) };
    // SAFETY: the strides and sizes were checked against the slices, and `c` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            a.as_ptr(),
            a_column as isize,
            a_row as isize,
            b.as_ptr(),
            b_column as isize,
            b_row as isize,
            // The crate computes alpha·c + beta·a·b.
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

widest! {
    /// y[r,c] += bias[c].
    pub(super) fn add_bias(y: &mut [f32], bias: &[f32], rows: usize) {
        let columns = Columns::all(rows, bias.len());
        map(columns, [], y, Write::Accumulate, |c| [bias[c]], |[], [bias]| bias);
    }
}

widest! {
    /// d_bias[c] += Σ_r d_y[r,c].
    pub(super) fn bias_backward(d_y: &[f32], d_bias: &mut [f32], rows: usize) {
        let columns = Columns::all(rows, d_bias.len());
        reduce(columns, [d_y], |_| [], |[d_y], []| [d_y], |c, [sum]| d_bias[c] += sum as f32);
    }
}
