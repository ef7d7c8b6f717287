//! Mean and variance of each column of a row-major matrix, in one pass over memory.
//!
//! Contract: a block of at most 32 rows is read twice while it is in the first-level cache: its mean, then the deviations from
//! that mean. Blocks are merged in f64, their means relative to that of the first block, so that neither a mean far from zero
//! nor one that drifts from row to row costs digits. The order of additions depends on shapes alone.
//! Reference: Chan, Golub and LeVeque, *Algorithms for computing the sample variance*, 1983.
use std::array::from_fn;

use crate::backend::cpu::columns::{Columns, Groups, LANES, SIDE, tile};

/// Rows of a block.
const ROWS: usize = 32;

/// Sums of the blocks of some columns, each lane by itself.
struct Blocks {
    /// What block means are relative to.
    pivot: [f64; LANES],
    rows: [f64; LANES],
    /// Σ rows·(block mean − pivot).
    first: [f64; LANES],
    /// Σ rows·(block mean − pivot)².
    second: [f64; LANES],
    /// Σ of squared deviations from the block's own mean.
    within: [f64; LANES],
}

impl Blocks {
    const EMPTY: Self = Self {
        pivot: [0.0; LANES],
        rows: [0.0; LANES],
        first: [0.0; LANES],
        second: [0.0; LANES],
        within: [0.0; LANES],
    };

    /// Takes in a block of `rows` rows, of which `block` has what was summed over them. Lanes beyond `lanes` mean nothing.
    #[inline(always)]
    fn add(&mut self, rows: usize, block: &Block, lanes: usize) {
        let n = rows as f64;
        for l in 0..lanes {
            let deviation = f64::from(block.deviation[l]);
            let squares = f64::from(block.squares[l]);
            if self.rows[l] == 0.0 {
                self.pivot[l] = f64::from(block.center[l]);
            }
            let mean = f64::from(block.center[l]) - self.pivot[l] + deviation / n;
            self.rows[l] += n;
            self.first[l] += n * mean;
            self.second[l] += n * mean * mean;
            self.within[l] += (squares - deviation * deviation / n).max(0.0);
        }
    }

    /// Mean and sum of squared deviations of lanes `lane`, `lane + every`, ...
    #[inline(always)]
    fn merged(&self, lane: usize, every: usize) -> [f64; 2] {
        let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for l in (lane..LANES).step_by(every).filter(|l| self.rows[*l] > 0.0) {
            let (rows, shift) = (self.rows[l], self.first[l] / self.rows[l]);
            let own = self.within[l] + (self.second[l] - rows * shift * shift).max(0.0);
            let distance = self.pivot[l] + shift - mean;
            let all = n + rows;
            squares += own + distance * distance * n * rows / all;
            mean += distance * rows / all;
            n = all;
        }
        [mean, squares]
    }
}

/// Sums over a block of rows, each lane by itself.
#[derive(Clone, Copy)]
struct Block {
    /// Σ x, and then the mean.
    center: [f32; LANES],
    /// Σ (x − mean), which rounding leaves.
    deviation: [f32; LANES],
    /// Σ (x − mean)².
    squares: [f32; LANES],
}

impl Block {
    const EMPTY: Self = Self {
        center: [0.0; LANES],
        deviation: [0.0; LANES],
        squares: [0.0; LANES],
    };

    /// Adds rows, `stride` apart, to the sum. Lanes beyond `width` are not read.
    #[inline(always)]
    fn sum<const WHOLE: bool>(
        &mut self,
        x: &[f32],
        start: usize,
        rows: usize,
        stride: usize,
        width: usize,
    ) {
        // As in `columns`: one row is added in place.
        if WHOLE && rows == 1 {
            let x = tile(x, start);
            (0..LANES).for_each(|l| self.center[l] += x[l]);
            return;
        }
        let mut sum = self.center;
        for row in 0..rows {
            if WHOLE {
                let x = tile(x, start + row * stride);
                (0..LANES).for_each(|l| sum[l] += x[l]);
            } else {
                let x = &x[start + row * stride..][..width];
                (0..width).for_each(|l| sum[l] += x[l]);
            }
        }
        self.center = sum;
    }

    /// Turns the sum over `rows` rows into their mean.
    #[inline(always)]
    fn divide(&mut self, rows: usize) {
        let inverse = 1.0 / rows as f32;
        self.center = from_fn(|l| self.center[l] * inverse);
    }

    /// Adds the deviations of rows from the mean.
    #[inline(always)]
    fn deviate<const WHOLE: bool>(
        &mut self,
        x: &[f32],
        start: usize,
        rows: usize,
        stride: usize,
        width: usize,
    ) {
        let Self {
            center,
            mut deviation,
            mut squares,
        } = *self;
        for row in 0..rows {
            if WHOLE {
                let x = tile(x, start + row * stride);
                for l in 0..LANES {
                    let d = x[l] - center[l];
                    deviation[l] += d;
                    squares[l] += d * d;
                }
            } else {
                let x = &x[start + row * stride..][..width];
                for l in 0..width {
                    let d = x[l] - center[l];
                    deviation[l] += d;
                    squares[l] += d * d;
                }
            }
        }
        (self.deviation, self.squares) = (deviation, squares);
    }
}

/// For each column `j`: `finish(j, [mean, Σ (x − mean)²])`, in ascending order of `j`.
#[inline(always)]
pub(super) fn moments(columns: Columns, x: &[f32], finish: impl FnMut(usize, [f64; 2])) {
    if columns.width <= LANES {
        moments_in::<1>(columns, x, finish);
    } else {
        moments_in::<SIDE>(columns, x, finish);
    }
}

/// [`moments`] with so many groups of columns at a time.
#[inline(always)]
fn moments_in<const G: usize>(
    columns: Columns,
    x: &[f32],
    mut finish: impl FnMut(usize, [f64; 2]),
) {
    let fold = columns.fold();
    let last = columns.first + columns.width;
    let mut first = columns.first;
    while first < last {
        let groups = Groups::of(first, last.min(first + G * LANES));
        let mut blocks = [Blocks::EMPTY; G];
        let (stride, wide) = (columns.stride * fold, columns.rows / fold);
        for row in (0..wide).step_by(ROWS) {
            let rows = ROWS.min(wide - row);
            let turn = if G == 1 { rows } else { 1 };
            let mut sums = [Block::EMPTY; G];
            for row in (row..row + rows).step_by(turn) {
                for (g, block) in sums.iter_mut().enumerate().take(groups.count) {
                    let start = row * stride + first + g * LANES;
                    let width = groups.width(g);
                    if fold > 1 || width == LANES {
                        block.sum::<true>(x, start, turn, stride, LANES);
                    } else {
                        block.sum::<false>(x, start, turn, stride, width);
                    }
                }
            }
            for block in sums.iter_mut().take(groups.count) {
                block.divide(rows);
            }
            // The rows have just been read: no need to take turns.
            for (g, block) in sums.iter_mut().enumerate().take(groups.count) {
                let start = row * stride + first + g * LANES;
                let width = groups.width(g);
                if fold > 1 || width == LANES {
                    block.deviate::<true>(x, start, rows, stride, LANES);
                } else {
                    block.deviate::<false>(x, start, rows, stride, width);
                }
            }
            for (g, blocks) in blocks.iter_mut().enumerate().take(groups.count) {
                let lanes = if fold > 1 { LANES } else { groups.width(g) };
                blocks.add(rows, &sums[g], lanes);
            }
        }
        for row in (wide * fold..columns.rows).step_by(ROWS) {
            let rows = ROWS.min(columns.rows - row);
            let start = row * columns.stride + first;
            let (stride, width) = (columns.stride, groups.width(0));
            let mut block = Block::EMPTY;
            block.sum::<false>(x, start, rows, stride, width);
            block.divide(rows);
            block.deviate::<false>(x, start, rows, stride, width);
            blocks[0].add(rows, &block, width);
        }
        for (g, blocks) in blocks.iter().enumerate().take(groups.count) {
            let width = groups.width(g);
            let every = if fold > 1 { width } else { LANES };
            (0..width).for_each(|l| finish(first + g * LANES + l, blocks.merged(l, every)));
        }
        first = groups.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: usize, width: usize, value: impl Fn(usize, usize) -> f64) {
        let x: Vec<f32> = (0..rows * width)
            .map(|i| value(i / width, i % width) as f32)
            .collect();
        let mut seen = 0;
        moments(Columns::all(rows, width), &x, |j, [mean, squares]| {
            assert_eq!(j, seen, "columns come in order");
            seen += 1;
            let column = || (0..rows).map(|r| f64::from(x[r * width + j]));
            let expected = column().sum::<f64>() / rows as f64;
            let expected_squares: f64 = column().map(|x| (x - expected).powi(2)).sum();
            let scale = (expected_squares / rows as f64).sqrt();
            assert!(
                (mean - expected).abs() <= 1e-6 * scale.max(expected.abs() * 1e-6),
                "mean of column {j} of {rows} × {width}: {mean}, not {expected}"
            );
            assert!(
                (squares - expected_squares).abs() <= 1e-5 * expected_squares,
                "squares of column {j} of {rows} × {width}: {squares}, not {expected_squares}"
            );
        });
        assert_eq!(seen, width);
    }

    #[test]
    fn neither_a_far_mean_nor_a_drifting_one_costs_digits() {
        for (rows, width) in [
            (1, 1),
            (2, 3),
            (131, 1),
            (67, 16),
            (300, 64),
            (40, 70),
            (33, 10),
            (1000, 130),
        ] {
            let noise = |r: usize, c: usize| ((r * 37 + c * 11) % 101) as f64 / 50.0 - 1.0;
            check(rows, width, noise);
            check(rows, width, |r, c| 1000.0 + noise(r, c));
            // The first block says nothing about the others.
            check(
                rows,
                width,
                |r, c| if r < 32 { 0.0 } else { 5000.0 + noise(r, c) },
            );
            check(rows, width, |r, c| r as f64 * 10.0 + noise(r, c));
        }
    }
}
