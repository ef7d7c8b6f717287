//! Loops over the columns (channels) of row-major matrices, which every norm, bias and average is made of.
//!
//! Contract: both loops visit 64 columns at a time, held in arrays of fixed size, so that LLVM makes vector code of them;
//! a matrix whose width divides 64 is read as one with fewer and wider rows, a wider one row by row. Sums run over at most 32 rows in f32 and
//! over those blocks in f64: their error does not grow with the number of rows, and the order depends on shapes alone.
//! Reference: Higham, *Accuracy and Stability of Numerical Algorithms*, chapter 4 (blocked summation).
use std::array::from_fn;

use crate::kernel::Write;

/// Columns that are worked on together: four AVX-512 registers.
pub(super) const LANES: usize = 64;
/// Rows that are summed in f32 before their sum is added in f64, and that a wide matrix is gone through by.
const BLOCK: usize = 32;

/// Compiles a function for AVX-512, for AVX2 and for the baseline, and picks the widest this machine has at run time.
/// Rust contracts no multiplications and additions, so the three give the same bits.
macro_rules! widest {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident$(<$number:ident: $bound:ident>)?($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments, reason = "a kernel's operands are what its formula names")]
        $visibility fn $name$(<$number: $bound>)?($($argument: $type),*) {
            #[inline(always)]
            fn body$(<$number: $bound>)?($($argument: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512$(<$number: $bound>)?($($argument: $type),*) {
                    body($($argument),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2$(<$number: $bound>)?($($argument: $type),*) {
                    body($($argument),*);
                }
                use $crate::backend::cpu::instructions::{Instructions, instructions};
                match instructions() {
                    // SAFETY: `instructions` are those of this machine.
                    Instructions::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    Instructions::Avx2 => return unsafe { avx2($($argument),*) },
                    Instructions::Portable => {}
                }
            }
            body($($argument),*);
        }
    };
}
pub(crate) use widest;

/// Some neighbouring columns of a row-major matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    pub(super) rows: usize,
    /// Width of the whole matrix.
    pub(super) stride: usize,
    pub(super) first: usize,
    pub(super) width: usize,
}

impl Columns {
    /// All columns.
    pub(super) fn all(rows: usize, width: usize) -> Self {
        Self {
            rows,
            stride: width,
            first: 0,
            width,
        }
    }
    /// `width` columns from `first` on, of a matrix `stride` wide.
    pub(super) fn some(rows: usize, stride: usize, first: usize, width: usize) -> Self {
        Self {
            rows,
            stride,
            first,
            width,
        }
    }
    /// How many rows may be read as one of exactly [`LANES`] columns.
    pub(super) fn fold(self) -> usize {
        let whole = self.width == self.stride && self.width > 0;
        if whole && self.width < LANES && LANES.is_multiple_of(self.width) {
            LANES / self.width
        } else {
            1
        }
    }
}

/// Groups of [`LANES`] columns that are visited in turn in each row, so that a wide matrix is gone through once from its beginning to
/// its end, and not once for each group: lines that a prefetcher brings are then those that are wanted next. That is worth more than
/// sums that stay in registers: groups that take turns after two, four or eight rows are faster out of a cache and slower by half out of memory,
/// prefetch instructions or not. Four of them are 256 columns; sums of eight were slower by some percent.
pub(super) const SIDE: usize = 4;

/// For each column `j`: `finish(j, Σ_rows map(inputs, coefficients(j)))`, called in ascending order of `j` (counted from the
/// matrix's first column).
#[inline(always)]
pub(super) fn reduce<const N: usize, const M: usize, const K: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> [f32; K],
    finish: impl FnMut(usize, [f64; K]),
) {
    reduce_read::<false, N, M, K>(columns, inputs, coefficients, map, finish);
}

/// [`reduce`] to the same bits where the inputs have just been read and lie in a cache: a wide matrix then needs no prefetcher, and each
/// group's sums stay in registers.
#[inline(always)]
pub(super) fn reduce_again<const N: usize, const M: usize, const K: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> [f32; K],
    finish: impl FnMut(usize, [f64; K]),
) {
    reduce_read::<true, N, M, K>(columns, inputs, coefficients, map, finish);
}

/// Both of them: as many groups at a time as the matrix has, up to [`SIDE`].
#[inline(always)]
fn reduce_read<const AGAIN: bool, const N: usize, const M: usize, const K: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> [f32; K],
    finish: impl FnMut(usize, [f64; K]),
) {
    if columns.width <= LANES {
        reduce_in::<1, AGAIN, N, M, K>(columns, inputs, coefficients, map, finish);
    } else {
        reduce_in::<SIDE, AGAIN, N, M, K>(columns, inputs, coefficients, map, finish);
    }
}

/// The same with `G` groups at a time, which take turns in each row unless there is but one or all was read before.
#[inline(always)]
fn reduce_in<const G: usize, const AGAIN: bool, const N: usize, const M: usize, const K: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> [f32; K],
    mut finish: impl FnMut(usize, [f64; K]),
) {
    let fold = columns.fold();
    let last = columns.first + columns.width;
    let mut first = columns.first;
    while first < last {
        let groups = Groups::of(first, last.min(first + G * LANES));
        let mut at = [[[0.0f32; LANES]; M]; G];
        let mut total = [[[0.0f64; LANES]; K]; G];
        for (g, at) in at.iter_mut().enumerate().take(groups.count) {
            *at = transpose(from_fn::<_, LANES, _>(|l| {
                coefficients(groups.column(g, l))
            }));
        }
        // Folded rows, and the rows that are left.
        let (stride, wide) = (columns.stride * fold, columns.rows / fold);
        for row in (0..wide).step_by(BLOCK) {
            let rows = BLOCK.min(wide - row);
            let mut sums = [[[0.0f32; LANES]; K]; G];
            let turn = if G == 1 || AGAIN { rows } else { 1 };
            for row in (row..row + rows).step_by(turn) {
                for (g, sum) in sums.iter_mut().enumerate().take(groups.count) {
                    let start = row * stride + first + g * LANES;
                    let width = groups.width(g);
                    if fold > 1 || width == LANES {
                        add_rows::<true, N, M, K>(
                            inputs, start, turn, stride, LANES, &at[g], &map, sum,
                        );
                    } else {
                        add_rows::<false, N, M, K>(
                            inputs, start, turn, stride, width, &at[g], &map, sum,
                        );
                    }
                }
            }
            for (total, sum) in total.iter_mut().zip(&sums).take(groups.count) {
                add_sums(total, sum);
            }
        }
        for row in (wide * fold..columns.rows).step_by(BLOCK) {
            let rows = BLOCK.min(columns.rows - row);
            let start = row * columns.stride + first;
            let (stride, width) = (columns.stride, groups.width(0));
            let mut sum = [[0.0f32; LANES]; K];
            add_rows::<false, N, M, K>(inputs, start, rows, stride, width, &at[0], &map, &mut sum);
            add_sums(&mut total[0], &sum);
        }
        for (g, total) in total.iter().enumerate().take(groups.count) {
            let width = groups.width(g);
            for l in 0..width {
                let folded = |k: usize| (0..fold).map(|f: usize| total[k][f * width + l]).sum();
                finish(first + g * LANES + l, from_fn(folded));
            }
        }
        first = groups.end;
    }
}

/// Adds up to [`BLOCK`] rows of at most [`LANES`] columns to their sums; lanes beyond `width` stay as they are.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the innermost loop of every sum")]
fn add_rows<const WHOLE: bool, const N: usize, const M: usize, const K: usize>(
    inputs: [&[f32]; N],
    start: usize,
    rows: usize,
    stride: usize,
    width: usize,
    at: &[[f32; LANES]; M],
    map: &impl Fn([f32; N], [f32; M]) -> [f32; K],
    sums: &mut [[f32; LANES]; K],
) {
    // One row is added in place: there is nothing to keep in registers, and arrays that are copied to and fro take longer than the sum.
    if WHOLE && rows == 1 {
        let tiles: [&[f32; LANES]; N] = from_fn(|i| tile(inputs[i], start));
        for l in 0..LANES {
            let value = map(from_fn(|i| tiles[i][l]), from_fn(|m| at[m][l]));
            for k in 0..K {
                sums[k][l] += value[k];
            }
        }
        return;
    }
    let mut sum = *sums;
    for row in 0..rows {
        let start = start + row * stride;
        if WHOLE {
            let tiles: [&[f32; LANES]; N] = from_fn(|i| tile(inputs[i], start));
            for l in 0..LANES {
                let value = map(from_fn(|i| tiles[i][l]), from_fn(|m| at[m][l]));
                for k in 0..K {
                    sum[k][l] += value[k];
                }
            }
        } else {
            let slices: [&[f32]; N] = from_fn(|i| &inputs[i][start..start + width]);
            for l in 0..width {
                let value = map(from_fn(|i| slices[i][l]), from_fn(|m| at[m][l]));
                for k in 0..K {
                    sum[k][l] += value[k];
                }
            }
        }
    }
    *sums = sum;
}

/// Adds the sums of a block of rows to those of all.
#[inline(always)]
fn add_sums<const K: usize>(total: &mut [[f64; LANES]; K], sums: &[[f32; LANES]; K]) {
    for (total, sum) in total.iter_mut().zip(sums) {
        for (total, sum) in total.iter_mut().zip(sum) {
            *total += f64::from(*sum);
        }
    }
}

/// Neighbouring groups of at most [`LANES`] columns.
#[derive(Clone, Copy)]
pub(super) struct Groups {
    first: usize,
    end: usize,
    pub(super) count: usize,
}

impl Groups {
    /// The groups of columns `first..end`.
    #[inline(always)]
    pub(super) fn of(first: usize, end: usize) -> Self {
        Self {
            first,
            end,
            count: (end - first).div_ceil(LANES),
        }
    }
    /// Columns of group `g`.
    #[inline(always)]
    pub(super) fn width(self, g: usize) -> usize {
        LANES.min(self.end - self.first - g * LANES)
    }
    /// The column of a lane of group `g`; lanes beyond the group's columns repeat them.
    #[inline(always)]
    pub(super) fn column(self, g: usize, lane: usize) -> usize {
        self.first + g * LANES + lane % self.width(g)
    }
    /// Behind the last column.
    #[inline(always)]
    pub(super) fn end(self) -> usize {
        self.end
    }
}

/// For each row and column `j`: `output (+)= map(inputs, coefficients(j))`. Coefficients are asked for once or a few times.
#[inline(always)]
pub(super) fn map<const N: usize, const M: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    output: &mut [f32],
    write: Write,
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> f32,
) {
    match write {
        Write::Overwrite => map_with(columns, inputs, output, coefficients, map, |to, value| {
            *to = value
        }),
        Write::Accumulate => map_with(columns, inputs, output, coefficients, map, |to, value| {
            *to += value
        }),
    }
}

#[inline(always)]
fn map_with<const N: usize, const M: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    output: &mut [f32],
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> f32,
    store: impl Fn(&mut f32, f32),
) {
    if columns.width <= LANES {
        map_in::<1, N, M>(columns, inputs, output, coefficients, map, store);
    } else {
        map_in::<SIDE, N, M>(columns, inputs, output, coefficients, map, store);
    }
}

/// [`map`] with so many groups of columns at a time.
#[inline(always)]
fn map_in<const G: usize, const N: usize, const M: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    output: &mut [f32],
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> f32,
    store: impl Fn(&mut f32, f32),
) {
    let fold = columns.fold();
    let last = columns.first + columns.width;
    let mut first = columns.first;
    while first < last {
        let groups = Groups::of(first, last.min(first + G * LANES));
        let mut at = [[[0.0f32; LANES]; M]; G];
        for (g, at) in at.iter_mut().enumerate().take(groups.count) {
            *at = transpose(from_fn::<_, LANES, _>(|l| {
                coefficients(groups.column(g, l))
            }));
        }
        let (stride, wide) = (columns.stride * fold, columns.rows / fold);
        for row in (0..wide).step_by(BLOCK) {
            let rows = BLOCK.min(wide - row);
            let turn = if G == 1 { rows } else { 1 };
            for row in (row..row + rows).step_by(turn) {
                for (g, at) in at.iter().enumerate().take(groups.count) {
                    let start = row * stride + first + g * LANES;
                    let width = groups.width(g);
                    if fold > 1 || width == LANES {
                        map_rows::<true, N, M>(
                            inputs, output, start, turn, stride, LANES, at, &map, &store,
                        );
                    } else {
                        map_rows::<false, N, M>(
                            inputs, output, start, turn, stride, width, at, &map, &store,
                        );
                    }
                }
            }
        }
        if wide * fold < columns.rows {
            let (row, rows) = (wide * fold, columns.rows - wide * fold);
            let start = row * columns.stride + first;
            let (stride, width) = (columns.stride, groups.width(0));
            map_rows::<false, N, M>(
                inputs, output, start, rows, stride, width, &at[0], &map, &store,
            );
        }
        first = groups.end;
    }
}

/// Maps up to [`BLOCK`] rows of at most [`LANES`] columns.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the innermost loop of every map")]
fn map_rows<const WHOLE: bool, const N: usize, const M: usize>(
    inputs: [&[f32]; N],
    output: &mut [f32],
    start: usize,
    rows: usize,
    stride: usize,
    width: usize,
    at: &[[f32; LANES]; M],
    map: &impl Fn([f32; N], [f32; M]) -> f32,
    store: &impl Fn(&mut f32, f32),
) {
    for row in 0..rows {
        let start = start + row * stride;
        if WHOLE {
            let tiles: [&[f32; LANES]; N] = from_fn(|i| tile(inputs[i], start));
            let to = &mut output[start..start + LANES];
            for l in 0..LANES {
                store(
                    &mut to[l],
                    map(from_fn(|i| tiles[i][l]), from_fn(|m| at[m][l])),
                );
            }
        } else {
            let slices: [&[f32]; N] = from_fn(|i| &inputs[i][start..start + width]);
            let to = &mut output[start..start + width];
            for l in 0..width {
                store(
                    &mut to[l],
                    map(from_fn(|i| slices[i][l]), from_fn(|m| at[m][l])),
                );
            }
        }
    }
}

#[inline(always)]
pub(super) fn tile(slice: &[f32], start: usize) -> &[f32; LANES] {
    slice[start..start + LANES]
        .first_chunk()
        .expect("the slice has as many elements")
}

#[inline(always)]
fn transpose<const M: usize>(lanes: [[f32; M]; LANES]) -> [[f32; LANES]; M] {
    from_fn(|m| from_fn(|l| lanes[l][m]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: usize, stride: usize, first: usize, width: usize) {
        let x: Vec<f32> = (0..rows * stride)
            .map(|i| (i * 37 % 101) as f32 - 50.0)
            .collect();
        let columns = Columns::some(rows, stride, first, width);
        let mut seen = Vec::new();
        reduce(
            columns,
            [&x],
            |j| [j as f32],
            |[x], [j]| [x, x * j],
            |j, sums| seen.push((j, sums)),
        );
        let expected: Vec<(usize, [f64; 2])> = (first..first + width)
            .map(|j| {
                let sum: f64 = (0..rows).map(|r| f64::from(x[r * stride + j])).sum();
                (j, [sum, sum * j as f64])
            })
            .collect();
        assert_eq!(seen, expected);
        let mut y = vec![1.0; x.len()];
        map(
            columns,
            [&x],
            &mut y,
            Write::Accumulate,
            |j| [j as f32],
            |[x], [j]| x * j,
        );
        for (i, value) in y.iter().enumerate() {
            let column = i % stride;
            let inside = (first..first + width).contains(&column);
            assert_eq!(
                *value,
                if inside {
                    1.0 + x[i] * column as f32
                } else {
                    1.0
                }
            );
        }
    }

    #[test]
    fn every_way_through_the_loops_gives_exact_integer_sums() {
        for (rows, stride, first, width) in [
            (1, 1, 0, 1),
            (131, 1, 0, 1),
            (67, 16, 0, 16),
            (300, 64, 0, 64),
            (40, 70, 0, 70),
            (3, 200, 0, 200),
            (33, 10, 0, 10),
            (9, 130, 3, 127),
            (9, 32, 16, 16),
            (0, 8, 0, 8),
        ] {
            check(rows, stride, first, width);
        }
    }
}
