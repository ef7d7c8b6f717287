//! Max pooling and global average pooling.
//!
//! Contract: NHWC. A maximum's winner is the first in row-major order, and NaN wins, as in PyTorch, so that a diverged run
//! shows. Padding never wins; a window lies inside the image with at least one element.
//! Reference: `max_pool2d` in PyTorch's ATen/native/cpu/MaxPoolKernel.cpp.
use crate::backend::cpu::columns::{Columns, map, reduce, widest};
use crate::kernel::{Window, Write};

/// Rows or columns of the image under window `at`.
pub(super) fn range(at: usize, window: &Window, side: usize) -> std::ops::Range<usize> {
    let start = at * window.stride;
    start.saturating_sub(window.padding)
        ..(start + window.kernel)
            .saturating_sub(window.padding)
            .min(side)
}

widest! {
    /// y = window maximum, index = its offset h·W+w in its image.
    pub(super) fn max_forward(x: &[f32], y: &mut [f32], index: &mut [i32], window: &Window, batch: usize) {
        let (c, input, positions) = (window.c, window.h * window.w * window.c, window.out_h * window.out_w);
        let outputs = y.chunks_exact_mut(c).zip(index.chunks_exact_mut(c));
        for (position, (y, index)) in outputs.take(batch * positions).enumerate() {
            let x = &x[position / positions * input..][..input];
            let (oy, ox) = (position % positions / window.out_w, position % window.out_w);
            let columns = range(ox, window, window.w);
            let rows = range(oy, window, window.h);
            y.fill(f32::NEG_INFINITY);
            index.fill((rows.start * window.w + columns.start) as i32);
            for offset in rows.flat_map(|row| columns.clone().map(move |column| row * window.w + column)) {
                let candidates = &x[offset * c..][..c];
                for ((y, index), &x) in y.iter_mut().zip(index.iter_mut()).zip(candidates) {
                    let wins = x > *y || x.is_nan();
                    *y = if wins { x } else { *y };
                    *index = if wins { offset as i32 } else { *index };
                }
            }
        }
    }
}

/// dx gets dy at the winners.
pub(super) fn max_backward(
    d_y: &[f32],
    index: &[i32],
    d_x: &mut [f32],
    window: &Window,
    batch: usize,
    write: Write,
) {
    let (c, input, output) = (
        window.c,
        window.h * window.w * window.c,
        window.out_h * window.out_w * window.c,
    );
    if write == Write::Overwrite {
        d_x.fill(0.0);
    }
    for sample in 0..batch {
        let d_x = &mut d_x[sample * input..][..input];
        let d_y = d_y[sample * output..][..output].chunks_exact(c);
        for (d_y, index) in d_y.zip(index[sample * output..][..output].chunks_exact(c)) {
            for (channel, (d_y, &index)) in d_y.iter().zip(index).enumerate() {
                d_x[index as usize * c + channel] += d_y;
            }
        }
    }
}

widest! {
    /// y[b,c] = mean over `spatial` of x[b,s,c].
    pub(super) fn average_forward(x: &[f32], y: &mut [f32], spatial: usize, channels: usize) {
        for (x, y) in x.chunks_exact(spatial * channels).zip(y.chunks_exact_mut(channels)) {
            let mean = |sum: f64| (sum / spatial as f64) as f32;
            reduce(Columns::all(spatial, channels), [x], |_| [], |[x], []| [x], |c, [sum]| y[c] = mean(sum));
        }
    }
}

widest! {
    /// dx[b,s,c] (+)= dy[b,c]/spatial.
    pub(super) fn average_backward(d_y: &[f32], d_x: &mut [f32], spatial: usize, channels: usize, write: Write) {
        let share = 1.0 / spatial as f32;
        for (d_x, d_y) in d_x.chunks_exact_mut(spatial * channels).zip(d_y.chunks_exact(channels)) {
            map(Columns::all(spatial, channels), [], d_x, write, |c| [d_y[c] * share], |[], [value]| value);
        }
    }
}
