//! Kernels of gradient compression: conversions to half precision and back, and what PowerSGD needs beside products.
//!
//! Contract: one thread, no allocation, the same bits on every processor for conversions. Matrices are row-major.
//! Reference: `torch/distributed/algorithms/ddp_comm_hooks/powerSGD_hook.py` (`_orthogonalize`); LAPACK's `sgeqr2`, `slarfg` and
//! `sorg2r`, which `torch.linalg.qr` stands on, for the signs of its columns.
use crate::backend::cpu::columns::widest;
use crate::half::{Bf16, F16, Half};
use crate::philox::{self, Purpose};

/// Most columns that are orthogonalized by Gram-Schmidt; more take Householder reflections, as in PyTorch.
const MOST_BY_GRAM_SCHMIDT: usize = 2;

#[inline(always)]
fn narrow<T: Half>(from: &[f32], to: &mut [T], divisor: f32) {
    let pairs = to.iter_mut().zip(from);
    pairs.for_each(|(to, from)| *to = T::narrow(T::narrow(*from).widen() / divisor));
}

#[inline(always)]
fn widen<T: Half>(from: &[T], to: &mut [f32]) {
    to.iter_mut()
        .zip(from)
        .for_each(|(to, from)| *to = from.widen());
}

widest! {
    /// to = from, rounded, then divided and rounded again.
    pub(super) fn narrow_f16(from: &[f32], to: &mut [F16], divisor: f32) {
        narrow(from, to, divisor);
    }
}

widest! {
    /// As [`narrow_f16`].
    pub(super) fn narrow_bf16(from: &[f32], to: &mut [Bf16], divisor: f32) {
        narrow(from, to, divisor);
    }
}

widest! {
    /// to = from.
    pub(super) fn widen_f16(from: &[F16], to: &mut [f32]) {
        widen(from, to);
    }
}

widest! {
    /// to = from.
    pub(super) fn widen_bf16(from: &[Bf16], to: &mut [f32]) {
        widen(from, to);
    }
}

widest! {
    /// to −= from.
    pub(super) fn subtract(from: &[f32], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to -= from);
    }
}

/// Standard normal numbers of (seed, step, stream): Box and Muller's transformation of two uniform ones each.
pub(super) fn fill_normal(to: &mut [f32], seed: u64, step: u32, stream: u32) {
    for (block, four) in to.chunks_mut(4).enumerate() {
        let counter = [block as u32, step, stream, Purpose::Compression as u32];
        let [a, b, c, d] = philox::block(philox::key(seed), counter);
        let [first, second] = normals(a, b);
        let [third, fourth] = normals(c, d);
        let values = [first, second, third, fourth];
        four.copy_from_slice(&values[..four.len()]);
    }
}

fn normals(radius: u32, angle: u32) -> [f32; 2] {
    // The first uniform number lies in (0, 1], so that its logarithm is finite.
    let radius = (-2.0 * (1.0 - f64::from(philox::uniform(radius))).ln()).sqrt();
    let (sine, cosine) = (std::f64::consts::TAU * f64::from(philox::uniform(angle))).sin_cos();
    [(radius * cosine) as f32, (radius * sine) as f32]
}

/// Replaces the columns of a matrix by an orthonormal basis of what they span. `workspace`: twice as many elements as columns.
///
/// # Panics
/// When there are more columns than rows, or too little workspace: bugs of the caller.
pub(super) fn orthogonalize(matrix: &mut [f32], columns: usize, workspace: &mut [f32]) {
    assert!(
        matrix.len() >= columns * columns && workspace.len() >= 2 * columns,
        "{columns} columns of {} elements",
        matrix.len()
    );
    if columns <= MOST_BY_GRAM_SCHMIDT {
        gram_schmidt(matrix, columns);
    } else {
        let (factors, products) = workspace.split_at_mut(columns);
        householder(matrix, columns, factors, &mut products[..columns]);
    }
}

/// Modified Gram-Schmidt without a guard against columns of zeros, which become NaN, as in PyTorch with its default epsilon of 0.
fn gram_schmidt(matrix: &mut [f32], columns: usize) {
    for column in 0..columns {
        let norm = dot(matrix, columns, column, column).sqrt() as f32;
        let rows = matrix.chunks_exact_mut(columns);
        rows.for_each(|row| row[column] /= norm);
        for other in column + 1..columns {
            let part = dot(matrix, columns, column, other) as f32;
            let rows = matrix.chunks_exact_mut(columns);
            rows.for_each(|row| row[other] -= part * row[column]);
        }
    }
}

/// The inner product of two columns.
fn dot(matrix: &[f32], columns: usize, a: usize, b: usize) -> f64 {
    let rows = matrix.chunks_exact(columns);
    rows.map(|row| f64::from(row[a]) * f64::from(row[b])).sum()
}

/// The orthonormal factor of a QR factorization; one that exists whatever the rank of the matrix.
fn householder(matrix: &mut [f32], columns: usize, factors: &mut [f32], products: &mut [f32]) {
    for (k, factor) in factors.iter_mut().enumerate().take(columns) {
        *factor = reflector(matrix, columns, k);
        reflect(matrix, columns, k, *factor, products);
    }
    // The factors become the matrix itself: the last reflection first, each on the columns behind it.
    for k in (0..columns).rev() {
        reflect(matrix, columns, k, factors[k], products);
        for (row, values) in matrix.chunks_exact_mut(columns).enumerate() {
            values[k] = match row.cmp(&k) {
                std::cmp::Ordering::Less => 0.0,
                std::cmp::Ordering::Equal => 1.0 - factors[k],
                std::cmp::Ordering::Greater => -factors[k] * values[k],
            };
        }
    }
}

/// Replaces column `k` below the diagonal by the vector v (v[k] = 1 is left out) of the reflection 1 − factor·v·vᵀ that zeroes it;
/// returns the factor. The diagonal keeps what it was: nothing reads it again.
fn reflector(matrix: &mut [f32], columns: usize, k: usize) -> f32 {
    let below = matrix.chunks_exact(columns).skip(k + 1);
    let norm = below
        .map(|row| f64::from(row[k]).powi(2))
        .sum::<f64>()
        .sqrt();
    if norm == 0.0 {
        return 0.0;
    }
    let alpha = f64::from(matrix[k * columns + k]);
    let beta = -alpha.hypot(norm).copysign(alpha);
    let below = matrix.chunks_exact_mut(columns).skip(k + 1);
    below.for_each(|row| row[k] = (f64::from(row[k]) / (alpha - beta)) as f32);
    ((beta - alpha) / beta) as f32
}

/// Applies reflection `k` to the columns behind `k`.
fn reflect(matrix: &mut [f32], columns: usize, k: usize, factor: f32, products: &mut [f32]) {
    let behind = k + 1..columns;
    if factor == 0.0 || behind.is_empty() {
        return;
    }
    let vector = |row: usize, values: &[f32]| if row == k { 1.0 } else { values[k] };
    let products = &mut products[behind.clone()];
    products.fill(0.0);
    for (row, values) in matrix.chunks_exact(columns).enumerate().skip(k) {
        let v = vector(row, values);
        let pairs = products.iter_mut().zip(&values[behind.clone()]);
        pairs.for_each(|(product, value)| *product += v * value);
    }
    for (row, values) in matrix.chunks_exact_mut(columns).enumerate().skip(k) {
        let v = factor * vector(row, values);
        let pairs = values[behind.clone()].iter_mut().zip(&*products);
        pairs.for_each(|(value, product)| *value -= v * product);
    }
}
