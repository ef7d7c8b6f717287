//! Average pooling over windows.
//!
//! Contract: NHWC. A window lies inside the padded image, with at least one element in the image itself; its divisor is
//! kernel² where padding counts, else its elements inside the image. Sums are of at most kernel² elements, in row-major order.
//! Reference: `avg_pool2d` in PyTorch's ATen/native/cpu/AvgPoolKernel.cpp, without `ceil_mode` and `divisor_override`.
use std::ops::Range;

use crate::backend::cpu::columns::widest;
use crate::backend::cpu::pool::range;
use crate::kernel::{Window, Write};

/// The offsets in its image, h·W+w, that window `position` of an image covers, and one over its divisor.
#[inline(always)]
fn covered(
    position: usize,
    window: &Window,
    count_padding: bool,
) -> (Range<usize>, Range<usize>, f32) {
    let rows = range(position / window.out_w, window, window.h);
    let columns = range(position % window.out_w, window, window.w);
    let divisor = if count_padding {
        window.kernel * window.kernel
    } else {
        rows.len() * columns.len()
    };
    (rows, columns, 1.0 / divisor as f32)
}

widest! {
    /// y = mean of each window.
    pub(super) fn forward(x: &[f32], y: &mut [f32], window: &Window, batch: usize, count_padding: bool) {
        let (c, input, positions) = (window.c, window.h * window.w * window.c, window.out_h * window.out_w);
        for (index, y) in y.chunks_exact_mut(c).take(batch * positions).enumerate() {
            let x = &x[index / positions * input..][..input];
            let (rows, columns, share) = covered(index % positions, window, count_padding);
            y.fill(0.0);
            for row in rows {
                for column in columns.clone() {
                    let x = &x[(row * window.w + column) * c..][..c];
                    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
                }
            }
            y.iter_mut().for_each(|y| *y *= share);
        }
    }
}

widest! {
    /// dx gets dy over the divisor from each window.
    pub(super) fn backward(d_y: &[f32], d_x: &mut [f32], window: &Window, batch: usize, count_padding: bool, write: Write) {
        let (c, input, positions) = (window.c, window.h * window.w * window.c, window.out_h * window.out_w);
        if write == Write::Overwrite {
            d_x[..batch * input].fill(0.0);
        }
        for (index, d_y) in d_y.chunks_exact(c).take(batch * positions).enumerate() {
            let d_x = &mut d_x[index / positions * input..][..input];
            let (rows, columns, share) = covered(index % positions, window, count_padding);
            for row in rows {
                for column in columns.clone() {
                    let d_x = &mut d_x[(row * window.w + column) * c..][..c];
                    d_x.iter_mut().zip(d_y).for_each(|(d_x, d_y)| *d_x += d_y * share);
                }
            }
        }
    }
}
