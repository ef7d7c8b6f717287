//! Matrix products and biases.
//!
//! Contract: row-major operands, f32, one thread. Narrow products have a kernel of their own; the others are the `gemm`
//! crate's (AVX-512 through its feature `x86-v4`), which allocates its packing buffers in every call and frees them before
//! it returns: the only allocations of a step on the CPU. `tests/no_allocation` bounds them. It packs a right operand that is
//! stored [n, k], such as a linear layer's weights in forward, by going down 48 rows at once. Rows of 1024 elements are 4 KiB apart: all 48
//! fall into one set of the first-level cache, which holds 8 lines, so every line is fetched again for each of its elements. Such operands
//! are therefore copied, some rows at a time, to where rows begin a line further apart.
//! Reference: Goto and van de Geijn, *Anatomy of high-performance matrix multiplication*, 2008.
use std::cell::RefCell;
use std::ops::Range;

use crate::backend::cpu::columns::{Columns, map, reduce, widest};

#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::narrow;
use crate::kernel::Write;

/// Rows of `b`, stored [n, k], that are copied at a time: two panels of the crate's packing. With rows of 1024 they are 400 KB and stay in the
/// second-level cache; 48 to 384 were measured and are as fast within the noise, all rows at once slower.
const COPIED: usize = 96;
/// Elements of `b` up to which all rows are copied at once: `a` is read again for every copy.
const SMALL: usize = 1 << 17;
/// Elements from which on rows are copied. Shorter ones are at most 1 KiB apart, and copying costs as much as it gains.
const LONG: usize = 256;
/// Elements of a line of the cache: what copied rows are further apart, and where the first begins.
const LINE: usize = 16;

thread_local! {
    /// Copied rows: kept from call to call, so that a step allocates nothing for them.
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

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
    #[cfg(target_arch = "x86_64")]
    if narrow::applies(product) {
        return narrow::matmul(product, a, b, c, write);
    }
    let Product { m, n, .. } = product;
    let whole = Whole::new(product, a, b, c);
    // SAFETY: this is the only part.
    unsafe { whole.part(0..m, 0..n, write) }
}

/// A product that is made in parts, on several threads.
pub(super) struct Whole {
    product: Product,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
}

// SAFETY: plain pointers; [`Whole::part`] says who may use them.
unsafe impl Sync for Whole {}

impl Whole {
    /// Over the operands of a product, which must outlive it.
    ///
    /// # Panics
    /// When they do not have the product's sizes.
    pub(super) fn new(product: Product, a: &[f32], b: &[f32], c: &mut [f32]) -> Self {
        let Product { m, n, k, .. } = product;
        assert!(
            a.len() == m * k && b.len() == k * n && c.len() == m * n,
            "{product:?} does not fit its operands"
        );
        let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        Self { product, a, b, c }
    }

    /// The rows and columns of c that are in these ranges.
    ///
    /// # Safety
    /// The operands are still there; nobody else reads or writes these elements of c.
    pub(super) unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>, write: Write) {
        let Product {
            m,
            n,
            k,
            transpose_a,
            transpose_b,
        } = self.product;
        assert!(rows.end <= m && columns.end <= n);
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        let (a_row, a_column) = if transpose_a { (1, m) } else { (k, 1) };
        let (b_row, b_column) = if transpose_b { (1, k) } else { (n, 1) };
        // SAFETY: the ranges are inside, the sizes were checked against the operands, and this part of c is the caller's.
        unsafe {
            let a = Placed {
                at: self.a.add(rows.start * a_row),
                row: a_row,
                column: a_column,
            };
            let b = Placed {
                at: self.b.add(columns.start * b_column),
                row: b_row,
                column: b_column,
            };
            let c = self.c.add(rows.start * n + columns.start);
            multiply([rows.len(), columns.len(), k], 1.0, a, b, (c, n), write);
        }
    }
}

/// Where a matrix begins, and the elements from one of its rows and columns to the next.
#[derive(Clone, Copy)]
struct Placed {
    at: *const f32,
    row: usize,
    column: usize,
}

/// c (+)= factor·a·b for [m, n, k], by copies of b where it is stored [n, k] in long rows. Rows of c are `c.1` elements apart.
///
/// # Safety
/// There are matrices of these sizes, none of which is empty, and c is the caller's alone.
unsafe fn multiply(
    [m, n, k]: [usize; 3],
    factor: f32,
    a: Placed,
    b: Placed,
    c: (*mut f32, usize),
    write: Write,
) {
    if b.row != 1 || k < LONG {
        // SAFETY: as the caller promises.
        return unsafe { packed([m, n, k], factor, a, b, c, write) };
    }
    ROWS.with_borrow_mut(|room| {
        let copied = if n * k <= SMALL { n } else { COPIED };
        let apart = k + LINE;
        if room.len() < copied * apart + LINE {
            room.resize(copied * apart + LINE, 0.0);
        }
        let first = room.as_ptr().align_offset(LINE * size_of::<f32>());
        let copies = &mut room[first..];
        for start in (0..n).step_by(copied) {
            let some = start..n.min(start + copied);
            for (row, copy) in some.clone().zip(copies.chunks_exact_mut(apart)) {
                // SAFETY: b has n rows of k elements, and this is one of them.
                let from = unsafe { std::slice::from_raw_parts(b.at.add(row * b.column), k) };
                copy[..k].copy_from_slice(from);
            }
            let b = Placed {
                at: copies.as_ptr(),
                row: 1,
                column: apart,
            };
            // SAFETY: the copies hold as many columns; the rest is as the caller promises.
            unsafe {
                let c = (c.0.add(start), c.1);
                packed([m, some.len(), k], factor, a, b, c, write);
            }
        }
    });
}

/// The same, as the crate does it.
///
/// # Safety
/// As for [`multiply`].
unsafe fn packed(
    [m, n, k]: [usize; 3],
    factor: f32,
    a: Placed,
    b: Placed,
    (c, c_row): (*mut f32, usize),
    write: Write,
) {
    // SAFETY: as the caller promises.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_row as isize,
            write == Write::Accumulate,
            a.at,
            a.column as isize,
            a.row as isize,
            b.at,
            b.column as isize,
            b.row as isize,
            // The crate computes alpha·c + beta·a·b.
            1.0,
            factor,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A matrix within a larger one, by its strides.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    from: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> Strided<'a> {
    /// Rows that begin `row` elements apart.
    pub(super) fn rows(from: &'a [f32], row: usize) -> Self {
        let column = 1;
        Self { from, row, column }
    }

    /// The same elements, with rows for columns.
    pub(super) fn transposed(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn placed(self) -> Placed {
        let Self { from, row, column } = self;
        let at = from.as_ptr();
        Placed { at, row, column }
    }

    /// Whether a matrix of so many rows and columns lies inside.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row + (columns - 1) * self.column < self.from.len()
    }
}

/// As [`Strided`], to be written.
pub(super) struct StridedMut<'a> {
    to: &'a mut [f32],
    row: usize,
}

impl<'a> StridedMut<'a> {
    /// Rows that begin `row` elements apart.
    pub(super) fn rows(to: &'a mut [f32], row: usize) -> Self {
        Self { to, row }
    }
}

/// c (+)= factor·a·b for [m, n, k].
///
/// # Panics
/// When a matrix is not inside its slice, or one of m, n and k is 0.
pub(super) fn product(
    [m, n, k]: [usize; 3],
    factor: f32,
    a: Strided<'_>,
    b: Strided<'_>,
    c: StridedMut<'_>,
    write: Write,
) {
    assert!(
        m > 0 && n > 0 && k > 0 && a.holds(m, k) && b.holds(k, n),
        "[{m}, {n}, {k}] does not fit its operands"
    );
    assert!(n <= c.row && (m - 1) * c.row + n <= c.to.len());
    // SAFETY: the matrices lie inside their slices, and c is exclusively borrowed.
    unsafe {
        let c = (c.to.as_mut_ptr(), c.row);
        multiply([m, n, k], factor, a.placed(), b.placed(), c, write);
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
