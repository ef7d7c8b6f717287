//! Destination pixels of a pass: forward and input gradient.
//!
//! Contract: a tile of some neighbouring pixels by two registers of channels keeps its sums in registers over all taps and
//! source channels, and is written once. Filters come from [`super::filter`]. A strip of rows, or of whole small samples, is
//! copied with its padding to `scratch` first, which stays in the second-level cache.
//! Reference: Georganas et al., *Anatomy of high-performance deep learning convolutions on SIMD architectures*, 2018.
use std::ops::Range;

use super::pass::Pass;
use crate::backend::cpu::instructions::{Instructions, instructions};
use crate::backend::cpu::register::{MOST_LANES, Plain, Register};
use crate::kernel::Write;

/// Padded source elements of a strip: 256 KiB, which is half of a small second-level cache.
pub(super) const SCRATCH: usize = 1 << 16;
/// The widest block of channels.
pub(super) const MOST_WIDTH: usize = 2 * MOST_LANES;

/// Channels of a filter's block: two registers, or one where that is enough.
pub(super) fn width(channels: usize) -> usize {
    let lanes = match instructions() {
        Instructions::Avx512 => 16,
        Instructions::Avx2 => 8,
        Instructions::Portable => 4,
    };
    if channels <= lanes { lanes } else { 2 * lanes }
}

/// What a pass works on.
pub(super) struct Operands<'a> {
    /// Samples of the source, as many as the batch or more.
    pub(super) source: &'a [f32],
    /// Packed weights.
    pub(super) filter: &'a [f32],
    /// One element a destination channel, or none.
    pub(super) bias: &'a [f32],
    /// Samples of the destination.
    pub(super) to: &'a mut [f32],
    /// Room for padded rows.
    pub(super) scratch: &'a mut [f32],
}

/// Samples and destination rows that are worked on at a time, with the source rows they read.
struct Strip {
    samples: Range<usize>,
    rows: Range<usize>,
    source: Range<usize>,
}

fn strips(pass: Pass, batch: usize, scratch: usize) -> impl Iterator<Item = Strip> {
    let line = pass.line().max(1);
    let sample = pass.source_rows(&(0..pass.rows)).len() * line;
    let (group, height) = if 2 * sample <= scratch {
        ((scratch / sample.max(1)).clamp(1, batch.max(1)), pass.rows)
    } else {
        let lines = scratch / line;
        assert!(
            lines >= pass.row_taps,
            "the scratch holds {lines} of {} rows",
            pass.row_taps
        );
        let height = (lines - pass.row_taps) / pass.step + 1;
        (1, height.min(pass.rows))
    };
    (0..batch).step_by(group).flat_map(move |sample| {
        (0..pass.rows).step_by(height).map(move |row| {
            let rows = row..pass.rows.min(row + height);
            Strip {
                samples: sample..batch.min(sample + group),
                source: pass.source_rows(&rows),
                rows,
            }
        })
    })
}

/// What all tiles of a destination row have in common.
#[derive(Clone, Copy)]
struct Tile {
    /// Elements from one pixel's source to the next's.
    source_pixel: usize,
    /// Elements from one source row to the next.
    source_row: usize,
    row_taps: usize,
    run: usize,
    to_pixel: usize,
    /// Channels to write: all of the registers' or, in the last block, fewer.
    channels: usize,
    accumulate: bool,
}

/// `M` pixels of `N` registers.
///
/// # Safety
/// The machine has the instructions of `R`. `source` can be read for `row_taps` rows of `run` elements at each of `M`
/// pixels, `filter` for as many registers times `N`, `bias` for `N` registers, and `to` written at each pixel.
#[inline(always)]
unsafe fn tile<R: Register, const M: usize, const N: usize>(
    tile: Tile,
    source: *const f32,
    filter: *const f32,
    bias: *const f32,
    to: *mut f32,
) {
    // SAFETY: the caller's promise covers every offset below.
    unsafe {
        let mut sums: [[R; N]; M] = [std::array::from_fn(|n| R::load(bias.add(n * R::LANES))); M];
        let mut filter = filter;
        for row in 0..tile.row_taps {
            let row = source.add(row * tile.source_row);
            for i in 0..tile.run {
                let weights: [R; N] = std::array::from_fn(|n| R::load(filter.add(n * R::LANES)));
                for (m, sums) in sums.iter_mut().enumerate() {
                    let value = R::splat(*row.add(m * tile.source_pixel + i));
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = sum.add_product(value, weight);
                    }
                }
                filter = filter.add(N * R::LANES);
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let to = to.add(m * tile.to_pixel);
            if tile.channels == N * R::LANES {
                for (n, sum) in sums.into_iter().enumerate() {
                    let to = to.add(n * R::LANES);
                    if tile.accumulate {
                        R::load(to).add(sum).store(to);
                    } else {
                        sum.store(to);
                    }
                }
            } else {
                let mut values = [0.0f32; MOST_WIDTH];
                for (n, sum) in sums.into_iter().enumerate() {
                    sum.store(values.as_mut_ptr().add(n * R::LANES));
                }
                for (channel, value) in values[..tile.channels].iter().enumerate() {
                    let to = to.add(channel);
                    *to = if tile.accumulate { *to + value } else { *value };
                }
            }
        }
    }
}

/// Runs a pass over `batch` samples; `by_tile` calls [`tile`] for the number of pixels that it is given, at most `most`.
#[inline(always)]
fn run<R: Register, const N: usize>(
    pass: &Pass,
    operands: Operands<'_>,
    batch: usize,
    write: Write,
    most: usize,
    by_tile: impl Fn(usize, Tile, *const f32, *const f32, *const f32, *mut f32),
) {
    if pass.rows == 0 || pass.columns == 0 {
        return;
    }
    let Operands {
        source,
        filter,
        bias,
        to,
        scratch,
    } = operands;
    let (width, run) = (N * R::LANES, pass.run());
    let block = pass.row_taps * run * width;
    assert!(source.len() >= batch * pass.source_sample());
    assert!(filter.len() >= pass.to_c.div_ceil(width) * block);
    assert!(to.len() >= batch * pass.to_sample);
    let copied = pass.reaches_beyond();
    let source_row = if copied {
        pass.line()
    } else {
        pass.source_w * pass.source_c
    };
    let tiles = pass.columns.div_ceil(most);
    for strip in strips(*pass, batch, scratch.len()) {
        let size = strip.source.len() * source_row;
        let samples = strip.samples.clone().enumerate();
        if copied {
            for (i, sample) in samples.clone() {
                let sample = &source[sample * pass.source_sample()..][..pass.source_sample()];
                pass.pad(
                    sample,
                    strip.source.clone(),
                    &mut scratch[i * size..][..size],
                );
            }
        }
        for first in (0..pass.to_c).step_by(width) {
            let channels = width.min(pass.to_c - first);
            let filter = &filter[first / width * block..][..block];
            let mut start = [0.0f32; MOST_WIDTH];
            if !bias.is_empty() {
                start[..channels].copy_from_slice(&bias[first..][..channels]);
            }
            for (i, sample) in samples.clone() {
                let lines = if copied {
                    &scratch[i * size..][..size]
                } else {
                    &source[sample * pass.source_sample() + strip.source.start * source_row..]
                        [..size]
                };
                for row in strip.rows.clone() {
                    let taps = pass.row_taps_inside(row);
                    let tile = Tile {
                        source_pixel: pass.step * pass.source_c,
                        source_row,
                        row_taps: taps.len(),
                        run,
                        to_pixel: pass.to_pixel,
                        channels,
                        accumulate: write == Write::Accumulate,
                    };
                    let at = if taps.is_empty() || run == 0 {
                        0
                    } else {
                        let first = (row * pass.step + taps.start) as isize - pass.row_padding;
                        let at = (first as usize - strip.source.start) * source_row;
                        let reached = (pass.columns - 1) * tile.source_pixel
                            + (taps.len() - 1) * source_row
                            + run;
                        assert!(at + reached <= lines.len(), "taps reach beyond their rows");
                        at
                    };
                    let filter = &filter[taps.start * run * width..];
                    let to = &mut to[sample * pass.to_sample + pass.to_first + row * pass.to_row..];
                    assert!(to.len() >= (pass.columns - 1) * pass.to_pixel + first + channels);
                    let mut column = 0;
                    for left in (1..=tiles).rev() {
                        let pixels = (pass.columns - column) / left;
                        let source = if run == 0 || taps.is_empty() {
                            lines.as_ptr()
                        } else {
                            lines[at + column * tile.source_pixel..].as_ptr()
                        };
                        let to = to[column * pass.to_pixel + first..].as_mut_ptr();
                        by_tile(pixels, tile, source, filter.as_ptr(), start.as_ptr(), to);
                        column += pixels;
                    }
                }
            }
        }
    }
}

/// A function that runs a pass with one register, and those of at most so many pixels.
macro_rules! pass_with {
    ($(#[$attribute:meta])* $name:ident, $register:ty, $most:literal, [$($pixels:literal),*]) => {
        $(#[$attribute])*
        fn $name(pass: &Pass, operands: Operands<'_>, batch: usize, write: Write) {
            if pass.to_c <= <$register>::LANES {
                run::<$register, 1>(pass, operands, batch, write, $most, |pixels, a, b, c, d, e| match pixels {
                    // SAFETY: the caller has the instructions, and `run` checked the operands.
                    $($pixels => unsafe { tile::<$register, $pixels, 1>(a, b, c, d, e) },)*
                    _ => unreachable!("a tile has at most {} pixels", $most),
                });
            } else {
                run::<$register, 2>(pass, operands, batch, write, $most, |pixels, a, b, c, d, e| match pixels {
                    // SAFETY: the caller has the instructions, and `run` checked the operands.
                    $($pixels => unsafe { tile::<$register, $pixels, 2>(a, b, c, d, e) },)*
                    _ => unreachable!("a tile has at most {} pixels", $most),
                });
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pass_with!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    avx512,
    std::arch::x86_64::__m512,
    12,
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
);
#[cfg(target_arch = "x86_64")]
pass_with!(
    #[target_feature(enable = "avx2,fma")]
    avx2,
    std::arch::x86_64::__m256,
    6,
    [1, 2, 3, 4, 5, 6]
);
pass_with!(portable, Plain, 6, [1, 2, 3, 4, 5, 6]);

/// Writes (or adds to) the destination pixels of a pass.
///
/// # Panics
/// When the operands do not have the pass's sizes.
pub(super) fn write(pass: &Pass, operands: Operands<'_>, batch: usize, write: Write) {
    match instructions() {
        // SAFETY: `instructions` are those of this machine.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => unsafe { avx512(pass, operands, batch, write) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { avx2(pass, operands, batch, write) },
        _ => portable(pass, operands, batch, write),
    }
}
