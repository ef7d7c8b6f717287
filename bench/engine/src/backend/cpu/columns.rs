//! Loops over the columns (channels) of row-major matrices, which every norm, bias and average is made of.
//!
//! Contract: both loops visit 64 columns at a time, held in arrays of fixed size, so that LLVM makes vector code of them;
//! a matrix whose width divides 64 is read as one with fewer and wider rows. Sums run over at most 32 rows in f32 and
//! over those blocks in f64: their error does not grow with the number of rows, and the order depends on shapes alone.
//! Reference: Higham, *Accuracy and Stability of Numerical Algorithms*, chapter 4 (blocked summation).
use std::array::from_fn;

use crate::kernel::Write;

/// Columns that are worked on together: four AVX-512 registers.
pub(super) const LANES: usize = 64;
/// Rows that are summed in f32 before their sum is added in f64.
const BLOCK: usize = 32;
/// Rows that a map stays on before it goes to the next columns, so that pages stay in the TLB.
const MAP_ROWS: usize = 128;

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

/// For each column `j`: `finish(j, Σ_rows map(inputs, coefficients(j)))`, called in ascending order of `j` (counted from the
/// matrix's first column).
#[inline(always)]
pub(super) fn reduce<const N: usize, const M: usize, const K: usize>(
    columns: Columns,
    inputs: [&[f32]; N],
    coefficients: impl Fn(usize) -> [f32; M],
    map: impl Fn([f32; N], [f32; M]) -> [f32; K],
    mut finish: impl FnMut(usize, [f64; K]),
) {
    let fold = columns.fold();
    let wide_rows = columns.rows / fold;
    let last = columns.first + columns.width;
    let mut column = columns.first;
    while column < last {
        let width = if fold > 1 {
            columns.width
        } else {
            LANES.min(last - column)
        };
        let lane = |lane: usize| column + lane % width;
        let at: [[f32; LANES]; M] = transpose(from_fn::<_, LANES, _>(|l| coefficients(lane(l))));
        let mut total = [[0.0f64; LANES]; K];
        let mut row = 0;
        if fold > 1 || width == LANES {
            let stride = columns.stride * fold;
            while row < wide_rows {
                let end = wide_rows.min(row + BLOCK);
                let mut sum = [[0.0f32; LANES]; K];
                for r in row..end {
                    let start = r * stride + column;
                    let tiles: [&[f32; LANES]; N] = from_fn(|i| tile(inputs[i], start));
                    for l in 0..LANES {
                        let value = map(from_fn(|i| tiles[i][l]), from_fn(|m| at[m][l]));
                        for k in 0..K {
                            sum[k][l] += value[k];
                        }
                    }
                }
                for k in 0..K {
                    for l in 0..LANES {
                        total[k][l] += f64::from(sum[k][l]);
                    }
                }
                row = end;
            }
            row *= fold;
        }
        while row < columns.rows {
            let end = columns.rows.min(row + BLOCK);
            let mut sum = [[0.0f32; LANES]; K];
            for r in row..end {
                let start = r * columns.stride + column;
                let slices: [&[f32]; N] = from_fn(|i| &inputs[i][start..start + width]);
                for l in 0..width {
                    let value = map(from_fn(|i| slices[i][l]), from_fn(|m| at[m][l]));
                    for k in 0..K {
                        sum[k][l] += value[k];
                    }
                }
            }
            for k in 0..K {
                for l in 0..width {
                    total[k][l] += f64::from(sum[k][l]);
                }
            }
            row = end;
        }
        for l in 0..width {
            let folded = |k: usize| (0..fold).map(|f: usize| total[k][f * width + l]).sum();
            finish(column + l, from_fn(folded));
        }
        column += width;
    }
}

/// For each row and column `j`: `output (+)= map(inputs, coefficients(j))`. Coefficients are asked for again every 128 rows.
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
    let fold = columns.fold();
    let last = columns.first + columns.width;
    let mut block = 0;
    while block < columns.rows {
        let block_end = columns.rows.min(block + MAP_ROWS * fold);
        let mut column = columns.first;
        while column < last {
            let width = if fold > 1 {
                columns.width
            } else {
                LANES.min(last - column)
            };
            let lane = |lane: usize| column + lane % width;
            let at: [[f32; LANES]; M] =
                transpose(from_fn::<_, LANES, _>(|l| coefficients(lane(l))));
            let mut row = block;
            if fold > 1 || width == LANES {
                while row + fold <= block_end {
                    let start = row * columns.stride + column;
                    let tiles: [&[f32; LANES]; N] = from_fn(|i| tile(inputs[i], start));
                    let to = &mut output[start..start + LANES];
                    for l in 0..LANES {
                        store(
                            &mut to[l],
                            map(from_fn(|i| tiles[i][l]), from_fn(|m| at[m][l])),
                        );
                    }
                    row += fold;
                }
            }
            while row < block_end {
                let start = row * columns.stride + column;
                let slices: [&[f32]; N] = from_fn(|i| &inputs[i][start..start + width]);
                let to = &mut output[start..start + width];
                for l in 0..width {
                    store(
                        &mut to[l],
                        map(from_fn(|i| slices[i][l]), from_fn(|m| at[m][l])),
                    );
                }
                row += 1;
            }
            column += width;
        }
        block = block_end;
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
