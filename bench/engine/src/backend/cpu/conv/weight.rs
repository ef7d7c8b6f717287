//! The gradient of the weights: for each tap, output gradients times the input pixels they met.
//!
//! Contract: adds to `d_weight` [out_c][kernel][kernel][c]. A tile of some output channels by some registers of a filter row
//! (its columns and channels lie side by side in the input) sums over the pixels of a strip in registers. Output gradients
//! are gathered by tile where many tiles read them, input pixels where they lie so far apart that they would push each other
//! out of the first-level cache.
//! Reference: Georganas et al., *Anatomy of high-performance deep learning convolutions on SIMD architectures*, 2018.
use std::ops::Range;

use super::pass::Pass;
use crate::backend::cpu::instructions::{Instructions, instructions};
use crate::backend::cpu::register::{MOST_LANES, Plain, Register};
use crate::kernel::Window;

/// Pixels that a strip should have: so many products hide the load and store of a tile's sums.
const PIXELS: usize = 192;
/// Elements from one input pixel to the next from which on pixels are gathered.
const FAR: usize = 64;
/// Tiles that have to read an output gradient for it to be gathered.
const OFTEN: usize = 4;
/// Output channels up to which a pixel's gradients are one cache line, which tiles read where it lies.
const FEW: usize = 16;
/// The widest tile.
const MOST_WIDTH: usize = 3 * MOST_LANES;

/// Samples and output rows of a strip.
#[derive(Clone, Copy)]
struct Strip {
    samples: usize,
    rows: usize,
}

impl Strip {
    fn of(window: &Window) -> Self {
        let rows = (PIXELS / window.out_w.max(1)).clamp(1, window.out_h.max(1));
        let samples = if rows == window.out_h {
            (PIXELS / (window.out_h * window.out_w).max(1)).max(1)
        } else {
            1
        };
        Self { samples, rows }
    }

    fn pixels(self, window: &Window) -> usize {
        self.samples * self.rows * window.out_w
    }

    /// Elements of its padded input rows. Loads of the last registers of a filter row reach beyond it, so behind the last
    /// line there is room for a tile.
    fn padded(self, window: &Window) -> usize {
        let lines = ((self.rows - 1) * window.stride + window.kernel).min(window.h);
        let all = self.samples * lines * Pass::forward(window).line();
        (all + MOST_WIDTH).next_multiple_of(MOST_LANES)
    }

    fn gathered(self, window: &Window) -> usize {
        (self.pixels(window) * window.out_c).next_multiple_of(MOST_LANES)
    }
}

/// Elements of scratch that [`add`] needs.
pub(super) fn scratch(window: &Window) -> usize {
    let strip = Strip::of(window);
    strip.padded(window) + strip.gathered(window) + strip.pixels(window) * MOST_WIDTH
}

/// What a tile sums over, and where its sums go. Distances are in elements.
#[derive(Clone, Copy)]
struct Tile {
    samples: usize,
    rows: usize,
    columns: usize,
    d_y_sample: usize,
    d_y_pixel: usize,
    x_sample: usize,
    x_row: usize,
    x_pixel: usize,
    /// From one output channel's weights to the next's.
    to_channel: usize,
    /// Elements of the filter row to write: all of the registers' or, at its end, fewer.
    width: usize,
}

/// `M` output channels by `N` registers of a filter row.
///
/// # Safety
/// The machine has the instructions of `R`. For each of the tile's pixels `d_y` can be read for `M` elements and `x` for `N`
/// registers; `to` can be written for `width` elements at each of `M` channels.
#[inline(always)]
unsafe fn tile<R: Register, const M: usize, const N: usize>(
    tile: Tile,
    d_y: *const f32,
    x: *const f32,
    to: *mut f32,
) {
    // SAFETY: the caller's promise covers every offset below.
    unsafe {
        let mut sums = [[R::splat(0.0); N]; M];
        for sample in 0..tile.samples {
            let mut d_y = d_y.add(sample * tile.d_y_sample);
            for row in 0..tile.rows {
                let mut x = x.add(sample * tile.x_sample + row * tile.x_row);
                for _ in 0..tile.columns {
                    let inputs: [R; N] = std::array::from_fn(|n| R::load(x.add(n * R::LANES)));
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let gradient = R::splat(*d_y.add(m));
                        for (sum, input) in sums.iter_mut().zip(inputs) {
                            *sum = sum.add_product(gradient, input);
                        }
                    }
                    d_y = d_y.add(tile.d_y_pixel);
                    x = x.add(tile.x_pixel);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let to = to.add(m * tile.to_channel);
            if tile.width == N * R::LANES {
                for (n, sum) in sums.into_iter().enumerate() {
                    let to = to.add(n * R::LANES);
                    R::load(to).add(sum).store(to);
                }
            } else {
                let mut values = [0.0f32; MOST_WIDTH];
                for (n, sum) in sums.into_iter().enumerate() {
                    sum.store(values.as_mut_ptr().add(n * R::LANES));
                }
                for (i, value) in values[..tile.width].iter().enumerate() {
                    *to.add(i) += value;
                }
            }
        }
    }
}

/// Cuts output channels into tiles of at most `most`, as equal as possible.
fn tiles(channels: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (mut first, end) = (channels.start, channels.end);
    (1..=channels.len().div_ceil(most)).rev().map(move |left| {
        let tile = first..first + (end - first) / left;
        first = tile.end;
        tile
    })
}

/// Copies `M` channels of each pixel side by side.
#[inline(always)]
fn gather<const M: usize>(pixels: &[f32], channels: usize, to: &mut [f32]) {
    for (to, from) in to.chunks_exact_mut(M).zip(pixels.chunks(channels)) {
        to.copy_from_slice(&from[..M]);
    }
}

/// Operands of [`add`].
struct Operands<'a> {
    x: &'a [f32],
    d_y: &'a [f32],
    d_weight: &'a mut [f32],
    scratch: &'a mut [f32],
    /// Output channels whose weights these are.
    channels: Range<usize>,
}

/// Runs over a batch in strips; `by_tile` calls [`tile`] for channels, at most `most`, and registers, at most `N`; `by_gather`
/// calls [`gather`] for channels.
#[inline(always)]
fn run<R: Register, const N: usize>(
    window: &Window,
    operands: Operands<'_>,
    batch: usize,
    most: usize,
    by_tile: impl Fn(usize, usize, Tile, *const f32, *const f32, *mut f32),
    by_gather: impl Fn(usize, &[f32], usize, &mut [f32]),
) {
    let Operands {
        x,
        d_y,
        d_weight,
        scratch,
        channels,
    } = operands;
    let (pass, strip) = (Pass::forward(window), Strip::of(window));
    let (run, line, width) = (pass.run(), pass.line(), N * R::LANES);
    let Window {
        out_w,
        out_c,
        stride,
        kernel,
        ..
    } = *window;
    assert!(x.len() >= batch * pass.source_sample() && d_y.len() >= batch * pass.to_sample);
    assert!(channels.end <= out_c);
    let len = channels.len() * kernel * run;
    assert_eq!(d_weight.len(), len, "sizes of the weights");
    let (padded, rest) = scratch.split_at_mut(strip.padded(window));
    let (gathered, rest) = rest.split_at_mut(strip.gathered(window));
    let near = &mut rest[..strip.pixels(window) * MOST_WIDTH];
    let often = out_c > FEW && kernel * run.div_ceil(width) >= OFTEN;
    let far = stride * window.c >= FAR;
    for first in (0..batch).step_by(strip.samples) {
        let samples = first..batch.min(first + strip.samples);
        for top in (0..window.out_h).step_by(strip.rows) {
            let rows = top..window.out_h.min(top + strip.rows);
            let source = pass.source_rows(&rows);
            let (size, pixels) = (source.len() * line, rows.len() * out_w);
            for (i, sample) in samples.clone().enumerate() {
                let x = &x[sample * pass.source_sample()..][..pass.source_sample()];
                pass.pad(x, source.clone(), &mut padded[i * size..][..size]);
                if often {
                    let d_y = &d_y[sample * pass.to_sample + top * pass.to_row..];
                    let d_y = &d_y[..pixels * out_c];
                    for tile in tiles(channels.clone(), most) {
                        let m = tile.len();
                        let before = tile.start - channels.start;
                        let at = (before * samples.len() + i * m) * pixels;
                        by_gather(
                            m,
                            &d_y[tile.start..],
                            out_c,
                            &mut gathered[at..][..pixels * m],
                        );
                    }
                }
            }
            for row_tap in 0..kernel {
                // Output rows whose input row for this tap is inside.
                let inside = |row: &usize| pass.row_taps_inside(*row).contains(&row_tap);
                let Some(low) = rows.clone().find(inside) else {
                    continue;
                };
                let high = rows.clone().rfind(inside).map_or(low, |row| row + 1);
                let from = (low * stride + row_tap - window.padding - source.start) * line;
                for element in (0..run).step_by(width) {
                    let some = width.min(run - element);
                    let registers = some.div_ceil(R::LANES);
                    let whole = registers * R::LANES;
                    let mut shape = Tile {
                        samples: samples.len(),
                        rows: high - low,
                        columns: out_w,
                        d_y_sample: pass.to_sample,
                        d_y_pixel: out_c,
                        x_sample: size,
                        x_row: stride * line,
                        x_pixel: stride * window.c,
                        to_channel: kernel * run,
                        width: some,
                    };
                    let last = (shape.samples - 1) * shape.x_sample
                        + (shape.rows - 1) * shape.x_row
                        + (shape.columns - 1) * shape.x_pixel;
                    assert!(from + element + last + whole <= padded.len());
                    let mut x = &padded[from + element..];
                    if far {
                        let mut to = near.chunks_exact_mut(whole);
                        for sample in 0..shape.samples {
                            for row in 0..shape.rows {
                                let x = &x[sample * shape.x_sample + row * shape.x_row..];
                                for (pixel, to) in (&mut to).take(out_w).enumerate() {
                                    to.copy_from_slice(&x[pixel * shape.x_pixel..][..whole]);
                                }
                            }
                        }
                        // Without gaps between rows a sample is one long row.
                        shape.x_pixel = whole;
                        shape.columns *= shape.rows;
                        shape.rows = 1;
                        shape.x_sample = shape.columns * whole;
                        x = near;
                    }
                    for tile in tiles(channels.clone(), most) {
                        let m = tile.len();
                        let before = tile.start - channels.start;
                        let d_y = if often {
                            shape.d_y_pixel = m;
                            shape.d_y_sample = pixels * m;
                            let at = before * samples.len() * pixels;
                            &gathered[at + (low - top) * out_w * m..]
                        } else {
                            &d_y[first * pass.to_sample + low * pass.to_row + tile.start..]
                        };
                        let to = &mut d_weight[(before * kernel + row_tap) * run + element..];
                        assert!(to.len() >= (m - 1) * shape.to_channel + some);
                        by_tile(
                            m,
                            registers,
                            shape,
                            d_y.as_ptr(),
                            x.as_ptr(),
                            to.as_mut_ptr(),
                        );
                    }
                }
            }
        }
    }
}

/// A function that runs with one register, tiles of at most so many channels, and of at most so many registers.
macro_rules! weight_with {
    ($(#[$attribute:meta])* $name:ident, $register:ty, $most:literal, $channels:tt, $registers:tt) => {
        $(#[$attribute])*
        fn $name(window: &Window, operands: Operands<'_>, batch: usize) {
            run::<$register, { weight_with!(@last $registers) }>(
                window,
                operands,
                batch,
                $most,
                |channels, registers, a, b, c, d| weight_with!(@tiles $register, channels, registers, (a, b, c, d), $channels, $registers),
                |channels, a, b, c| weight_with!(@gathers channels, (a, b, c), $channels),
            );
        }
    };
    (@last [$($registers:literal),*]) => { [$($registers),*].len() };
    (@gathers $m:expr, $arguments:tt, [$($channels:literal),*]) => {
        match $m {
            $($channels => gather::<$channels> $arguments,)*
            _ => unreachable!("a tile has no more channels"),
        }
    };
    (@tiles $register:ty, $m:expr, $n:expr, $arguments:tt, [$($channels:literal),*], $registers:tt) => {
        match $m {
            $($channels => weight_with!(@registers $register, $channels, $n, $arguments, $registers),)*
            _ => unreachable!("a tile has no more channels"),
        }
    };
    (@registers $register:ty, $channels:literal, $n:expr, $arguments:tt, [$($registers:literal),*]) => {
        match $n {
            // SAFETY: the caller has the instructions, and `run` checked the operands.
            $($registers => unsafe { tile::<$register, $channels, $registers> $arguments },)*
            _ => unreachable!("a tile has no more registers"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
weight_with!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    avx512,
    std::arch::x86_64::__m512,
    8,
    [1, 2, 3, 4, 5, 6, 7, 8],
    [1, 2, 3]
);
#[cfg(target_arch = "x86_64")]
weight_with!(
    #[target_feature(enable = "avx2,fma")]
    avx2,
    std::arch::x86_64::__m256,
    6,
    [1, 2, 3, 4, 5, 6],
    [1, 2]
);
weight_with!(portable, Plain, 6, [1, 2, 3, 4, 5, 6], [1, 2]);

/// d_weight += the gradient of a batch, for the weights of `channels`.
///
/// # Panics
/// When the operands do not have the window's sizes, or `scratch` is smaller than [`scratch`] says.
pub(super) fn add(
    x: &[f32],
    d_y: &[f32],
    d_weight: &mut [f32],
    window: &Window,
    batch: usize,
    scratch: &mut [f32],
    channels: Range<usize>,
) {
    let operands = Operands {
        x,
        d_y,
        d_weight,
        scratch,
        channels,
    };
    match instructions() {
        // SAFETY: `instructions` are those of this machine.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => unsafe { avx512(window, operands, batch) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { avx2(window, operands, batch) },
        _ => portable(window, operands, batch),
    }
}
