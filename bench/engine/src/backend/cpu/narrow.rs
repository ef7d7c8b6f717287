//! Matrix products with 8 to 16 columns: a classifier's logits, convolutions to few channels.
//!
//! Contract: AVX-512 only ([`applies`] says where); row-major, `a` not transposed. Eight rows at a time keep their sums in
//! registers and read `a` where it lies, once; `b` is copied to the stack in blocks. General packing, as the `gemm` crate
//! does it, costs more than such a product itself.
//! Reference: Heinecke et al., *LIBXSMM: accelerating small matrix multiplications by runtime code generation*, 2016.
use std::arch::x86_64::{
    __m512, __mmask16, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
};

use crate::backend::cpu::instructions::{Instructions, instructions};
use crate::backend::cpu::matmul::Product;
use crate::kernel::Write;

/// Columns of one register.
const LANES: usize = 16;
/// Columns below which the unused part of the register costs more than packing does.
const FEWEST: usize = 8;
/// Rows whose sums are in registers together: enough of them to hide the latency of a fused multiply-add.
const ROWS: usize = 8;
/// Inner dimension of a block: its part of `b` is 16 KiB of stack and stays in the first-level cache.
const DEPTH: usize = 256;

/// Whether a product is narrow, and this machine has the instructions for it.
pub(super) fn applies(product: Product) -> bool {
    (FEWEST..=LANES).contains(&product.n)
        && !product.transpose_a
        && instructions() == Instructions::Avx512
}

/// c (+)= a·op(b), for a product that [`applies`] accepted.
///
/// # Panics
/// When the operands do not have the product's sizes.
pub(super) fn matmul(product: Product, a: &[f32], b: &[f32], c: &mut [f32], write: Write) {
    let Product { m, n, k, .. } = product;
    assert!(applies(product) && a.len() == m * k && b.len() == k * n && c.len() == m * n);
    if k == 0 && write == Write::Overwrite {
        c.fill(0.0);
    }
    let mut block = [0.0f32; DEPTH * LANES];
    for start in (0..k).step_by(DEPTH) {
        let depth = DEPTH.min(k - start);
        pack(product, b, start, &mut block[..depth * LANES]);
        let accumulate = start > 0 || write == Write::Accumulate;
        for row in (0..m).step_by(ROWS) {
            let a = &a[row * k + start..];
            let c = &mut c[row * n..];
            if row + ROWS <= m {
                // SAFETY: `applies` found the instructions; `a` and `c` have ROWS more rows.
                unsafe { tile::<ROWS>(a, k, &block[..depth * LANES], c, n, accumulate) }
            } else {
                for i in 0..m - row {
                    // SAFETY: as above, for one row.
                    unsafe {
                        tile::<1>(
                            &a[i * k..],
                            k,
                            &block[..depth * LANES],
                            &mut c[i * n..],
                            n,
                            accumulate,
                        )
                    }
                }
            }
        }
    }
}

/// Copies rows `start..` of op(b) to `block`, each filled up to [`LANES`] columns with zeros.
fn pack(product: Product, b: &[f32], start: usize, block: &mut [f32]) {
    let Product {
        n, k, transpose_b, ..
    } = product;
    for (row, to) in block.chunks_exact_mut(LANES).enumerate() {
        let p = start + row;
        for (j, to) in to[..n].iter_mut().enumerate() {
            *to = if transpose_b {
                b[j * k + p]
            } else {
                b[p * n + j]
            };
        }
    }
}

/// The first `n` columns of R rows: c (+)= a·block.
///
/// # Safety
/// The machine has AVX-512F. `a` holds R rows `stride` apart with as many elements as `block` has rows, the last of them
/// whole; `c` holds R rows of `n`, at most 16, elements.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize>(
    a: &[f32],
    stride: usize,
    block: &[f32],
    c: &mut [f32],
    n: usize,
    accumulate: bool,
) {
    let depth = block.len() / LANES;
    debug_assert!(a.len() >= (R - 1) * stride + depth && c.len() >= R * n && n <= LANES);
    let mask = ((1u32 << n) - 1) as __mmask16;
    let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
    for p in 0..depth {
        // SAFETY: p is a row of the block, and an element of each row of `a`.
        unsafe {
            let b = _mm512_loadu_ps(block.as_ptr().add(p * LANES));
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(*a.as_ptr().add(i * stride + p)), b, *sum);
            }
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the mask keeps both accesses to the n elements of row i.
        unsafe {
            let to = c.as_mut_ptr().add(i * n);
            let old = if accumulate {
                _mm512_maskz_loadu_ps(mask, to)
            } else {
                _mm512_setzero_ps()
            };
            _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(old, sum));
        }
    }
}
