//! Kernels that go through memory once: copies, sums, ReLU, transposition.
//!
//! Contract: operands of one call have the same length; outputs do not overlap inputs. One thread, no allocation.
//! Reference: the first family of [`crate::kernel::Kernel`].
use crate::backend::cpu::columns::widest;
use crate::kernel::Write;

/// Side of the squares that a transposition moves at a time: 16 f32 are one cache line.
const SQUARE: usize = 16;

widest! {
    /// to (+)= from.
    pub(super) fn copy(from: &[f32], to: &mut [f32], write: Write) {
        match write {
            Write::Overwrite => to.copy_from_slice(from),
            Write::Accumulate => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
        }
    }
}

widest! {
    /// to = a + b.
    pub(super) fn add(a: &[f32], b: &[f32], to: &mut [f32]) {
        to.iter_mut().zip(a.iter().zip(b)).for_each(|(to, (a, b))| *to = a + b);
    }
}

widest! {
    /// to *= factor.
    pub(super) fn scale(to: &mut [f32], factor: f32) {
        to.iter_mut().for_each(|to| *to *= factor);
    }
}

/// max(x, 0), where NaN stays NaN so that a diverged run shows.
#[inline(always)]
pub(super) fn rectified(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

widest! {
    /// y = max(x, 0).
    pub(super) fn relu_forward(x: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = rectified(x));
    }
}

widest! {
    /// y += shortcut, unless that is empty; then y = max(y, 0) if `relu`.
    pub(super) fn finish(y: &mut [f32], shortcut: &[f32], relu: bool) {
        match (shortcut.is_empty(), relu) {
            (true, false) => {}
            (true, true) => y.iter_mut().for_each(|y| *y = rectified(*y)),
            (false, false) => y.iter_mut().zip(shortcut).for_each(|(y, other)| *y += other),
            (false, true) => y.iter_mut().zip(shortcut).for_each(|(y, other)| *y = rectified(*y + other)),
        }
    }
}

widest! {
    /// d_y = 0 where y is not positive.
    pub(super) fn gate(y: &[f32], d_y: &mut [f32]) {
        d_y.iter_mut().zip(y).for_each(|(d_y, &y)| *d_y = if y > 0.0 { *d_y } else { 0.0 });
    }
}

widest! {
    /// dx (+)= dy where y > 0.
    pub(super) fn relu_backward(y: &[f32], d_y: &[f32], d_x: &mut [f32], write: Write) {
        let pairs = d_x.iter_mut().zip(y.iter().zip(d_y));
        match write {
            Write::Overwrite => pairs.for_each(|(d_x, (&y, &d_y))| *d_x = if y > 0.0 { d_y } else { 0.0 }),
            Write::Accumulate => pairs.for_each(|(d_x, (&y, &d_y))| *d_x += if y > 0.0 { d_y } else { 0.0 }),
        }
    }
}

widest! {
    /// Each of `batch` matrices [rows, columns] becomes [columns, rows].
    pub(super) fn transpose(from: &[f32], to: &mut [f32], batch: usize, rows: usize, columns: usize, write: Write) {
        let size = rows * columns;
        for b in 0..batch {
            let (from, to) = (&from[b * size..][..size], &mut to[b * size..][..size]);
            for row in (0..rows).step_by(SQUARE) {
                for column in (0..columns).step_by(SQUARE) {
                    for c in column..columns.min(column + SQUARE) {
                        for r in row..rows.min(row + SQUARE) {
                            let value = from[r * columns + c];
                            match write {
                                Write::Overwrite => to[c * rows + r] = value,
                                Write::Accumulate => to[c * rows + r] += value,
                            }
                        }
                    }
                }
            }
        }
    }
}
