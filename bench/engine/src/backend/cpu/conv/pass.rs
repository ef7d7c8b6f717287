//! The geometry of a convolution and of its input gradient, in one form: pixels that are sums over taps of source pixels.
//!
//! Contract: a forward pass reads the input and writes the output. The input gradient with stride s is s² passes, one for each
//! remainder of a row and a column by s, which read the output gradient with every s-th tap, turned round: no multiplication
//! with the zeros between. Destination pixel (r, c) sums source pixels (r·step + t − pad) over the taps t of its rows and
//! columns; rows outside the source are left out, columns outside are zeros.
//! Reference: Dumoulin and Visin, *A guide to convolution arithmetic for deep learning*, 2016, chapter 4.
use std::ops::Range;

use crate::kernel::Window;

/// Sizes and strides of one pass, in elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    /// Height of a source sample.
    pub(super) source_h: usize,
    /// Width of a source sample.
    pub(super) source_w: usize,
    /// Channels of the source.
    pub(super) source_c: usize,
    /// Rows of destination pixels.
    pub(super) rows: usize,
    /// Destination pixels of a row.
    pub(super) columns: usize,
    /// Source pixels from one destination pixel to the next.
    pub(super) step: usize,
    /// Rows of the filter.
    pub(super) row_taps: usize,
    /// Columns of the filter.
    pub(super) column_taps: usize,
    /// Rows that the first tap of the first pixel lies above the source; below it when negative.
    pub(super) row_padding: isize,
    /// The same for columns.
    pub(super) column_padding: isize,
    /// Channels of the destination.
    pub(super) to_c: usize,
    /// Where the first pixel lies in a destination sample.
    pub(super) to_first: usize,
    /// From one destination row to the next.
    pub(super) to_row: usize,
    /// From one destination pixel to the next.
    pub(super) to_pixel: usize,
    /// Elements of a destination sample.
    pub(super) to_sample: usize,
}

/// Every `stride`-th tap that meets rows (or columns) with this remainder: the first of them, and how many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taps {
    pub(super) first: usize,
    pub(super) count: usize,
    /// Output rows that the first such row lies after the start.
    shift: usize,
}

impl Taps {
    pub(super) fn of(window: &Window, remainder: usize) -> Self {
        let at = remainder + window.padding;
        let first = at % window.stride;
        Self {
            first,
            count: window.kernel.saturating_sub(first).div_ceil(window.stride),
            shift: at / window.stride,
        }
    }

    fn padding(self) -> isize {
        self.count as isize - 1 - self.shift as isize
    }
}

impl Pass {
    /// From the input to the output.
    pub(super) fn forward(window: &Window) -> Self {
        let padding = window.padding as isize;
        Self {
            source_h: window.h,
            source_w: window.w,
            source_c: window.c,
            rows: window.out_h,
            columns: window.out_w,
            step: window.stride,
            row_taps: window.kernel,
            column_taps: window.kernel,
            row_padding: padding,
            column_padding: padding,
            to_c: window.out_c,
            to_first: 0,
            to_row: window.out_w * window.out_c,
            to_pixel: window.out_c,
            to_sample: window.out_h * window.out_w * window.out_c,
        }
    }

    /// From the output gradient to input rows and columns `row`, `column`, and every stride-th after them.
    pub(super) fn backward(window: &Window, row: usize, column: usize) -> Self {
        let (rows, columns) = (Taps::of(window, row), Taps::of(window, column));
        let every = |side: usize, first: usize| side.saturating_sub(first).div_ceil(window.stride);
        Self {
            source_h: window.out_h,
            source_w: window.out_w,
            source_c: window.out_c,
            rows: every(window.h, row),
            columns: every(window.w, column),
            step: 1,
            row_taps: rows.count,
            column_taps: columns.count,
            row_padding: rows.padding(),
            column_padding: columns.padding(),
            to_c: window.c,
            to_first: (row * window.w + column) * window.c,
            to_row: window.stride * window.w * window.c,
            to_pixel: window.stride * window.c,
            to_sample: window.h * window.w * window.c,
        }
    }

    pub(super) fn source_sample(&self) -> usize {
        self.source_h * self.source_w * self.source_c
    }

    /// Elements of the source that a row of the filter covers.
    pub(super) fn run(&self) -> usize {
        self.column_taps * self.source_c
    }

    /// Pixels of a source row with all that its taps reach.
    fn padded(&self) -> usize {
        (self.columns.max(1) - 1) * self.step + self.column_taps
    }

    /// Elements of a padded source row.
    pub(super) fn line(&self) -> usize {
        self.padded() * self.source_c
    }

    /// Whether taps reach beyond a row, so that rows have to be copied with their padding.
    pub(super) fn reaches_beyond(&self) -> bool {
        self.column_padding != 0 || self.padded() > self.source_w
    }

    /// Source rows that some destination rows (at least one) read.
    pub(super) fn source_rows(&self, rows: &Range<usize>) -> Range<usize> {
        let inside = |row: isize| row.clamp(0, self.source_h as isize) as usize;
        let first = inside((rows.start * self.step) as isize - self.row_padding);
        let last = ((rows.end - 1) * self.step + self.row_taps) as isize - self.row_padding;
        first..inside(last).max(first)
    }

    /// Row taps of destination row `row` whose source row is inside.
    pub(super) fn row_taps_inside(&self, row: usize) -> Range<usize> {
        let top = (row * self.step) as isize - self.row_padding;
        let last = (self.source_h as isize - top).clamp(0, self.row_taps as isize) as usize;
        let first = (-top).clamp(0, last as isize) as usize;
        first..last
    }

    /// Copies source rows of one sample to `to`, each with its padding.
    #[inline(always)]
    pub(super) fn pad(&self, sample: &[f32], rows: Range<usize>, to: &mut [f32]) {
        let left = self.column_padding.max(0) as usize;
        let skipped = (-self.column_padding).max(0) as usize;
        let inside = self.source_w.saturating_sub(skipped);
        let inside = inside.min(self.padded().saturating_sub(left)) * self.source_c;
        let left = left.min(self.padded()) * self.source_c;
        for (row, to) in rows.zip(to.chunks_exact_mut(self.line().max(1))) {
            let from =
                &sample[(row * self.source_w + skipped.min(self.source_w)) * self.source_c..];
            to[..left].fill(0.0);
            to[left..left + inside].copy_from_slice(&from[..inside]);
            to[left + inside..].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pair of an input and an output pixel that a tap connects, by the definition of a convolution.
    fn connections(window: &Window) -> Vec<[usize; 3]> {
        let mut found = Vec::new();
        for out in 0..window.out_h {
            for tap in 0..window.kernel {
                let row = (out * window.stride + tap).wrapping_sub(window.padding);
                if row < window.h {
                    found.push([row, out, tap]);
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn the_passes_of_the_input_gradient_meet_every_tap_once() {
        for (side, kernel, stride, padding) in [
            (8, 3, 1, 1),
            (9, 3, 2, 1),
            (7, 1, 3, 0),
            (10, 4, 3, 2),
            (2, 5, 1, 4),
            (13, 7, 2, 3),
            (4, 1, 1, 2),
        ] {
            let out = (side + 2 * padding - kernel) / stride + 1;
            let window = Window {
                h: side,
                w: side,
                c: 1,
                out_h: out,
                out_w: out,
                out_c: 1,
                kernel,
                stride,
                padding,
            };
            let mut met = Vec::new();
            for remainder in 0..stride {
                let (pass, taps) = (
                    Pass::backward(&window, remainder, remainder),
                    Taps::of(&window, remainder),
                );
                for row in 0..pass.rows {
                    for tap in pass.row_taps_inside(row) {
                        let source = (row + tap) as isize - pass.row_padding;
                        let kernel_row = taps.first + stride * (taps.count - 1 - tap);
                        met.push([remainder + row * stride, source as usize, kernel_row]);
                    }
                }
            }
            met.sort();
            assert_eq!(met, connections(&window), "{window:?}");
        }
    }
}
