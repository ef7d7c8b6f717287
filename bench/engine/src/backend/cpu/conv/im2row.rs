//! Convolution as matrix products, over patches that are written out row by row (im2row).
//!
//! Contract: as the direct kernels'. A strip of output pixels has a matrix of a patch each, [pixels][kernel][kernel][c], in the
//! workspace: few enough pixels that it stays in the second-level cache. A kernel of one pixel without stride or
//! padding has the input itself for its patches; then a strip is all there is. Bias is put into the output before the product.
//! Reference: Chellapilla, Puri and Simard, *High performance convolutional neural networks for document processing*, 2006.
use std::ops::Range;

use super::pixels::SCRATCH;
use crate::backend::cpu::matmul::{Strided, StridedMut, product};
use crate::kernel::{Window, Write};

/// Elements of a patch.
fn patch(window: &Window) -> usize {
    window.kernel * window.kernel * window.c
}

/// Whether the input is the matrix of patches.
pub(super) fn is_product(window: &Window) -> bool {
    (window.kernel, window.stride, window.padding) == (1, 1, 0)
}

/// Output pixels of a strip.
fn strip(window: &Window) -> usize {
    (SCRATCH / patch(window).max(1)).clamp(1, window.out_h * window.out_w)
}

/// Elements of workspace.
pub(super) fn scratch(window: &Window) -> usize {
    if is_product(window) {
        0
    } else {
        strip(window) * patch(window)
    }
}

/// Where an output pixel's patch lies: for each row of the kernel that is inside the image, the taps that are inside and the
/// first element they read. `at` is called with the elements of the patch, and those of a sample.
fn runs(window: &Window, pixel: usize, mut at: impl FnMut(Range<usize>, Range<usize>)) {
    let Window {
        h,
        w,
        c,
        out_w,
        kernel,
        stride,
        padding,
        ..
    } = *window;
    let (top, left) = (pixel / out_w * stride, pixel % out_w * stride);
    // Taps that meet the image.
    let inside = |first: usize, side: usize| {
        let from = padding.saturating_sub(first).min(kernel);
        from..(side + padding).saturating_sub(first).clamp(from, kernel)
    };
    let (rows, columns) = (inside(top, h), inside(left, w));
    if columns.is_empty() {
        return;
    }
    let len = columns.len() * c;
    for row in rows {
        let from = ((top + row - padding) * w + left + columns.start - padding) * c;
        let to = (row * kernel + columns.start) * c;
        at(to..to + len, from..from + len);
    }
}

/// Writes out the patches of some output pixels of a sample.
fn write_out(window: &Window, sample: &[f32], pixels: Range<usize>, patches: &mut [f32]) {
    let padded = window.padding > 0;
    for (pixel, to) in pixels.zip(patches.chunks_exact_mut(patch(window))) {
        if padded {
            to.fill(0.0);
        }
        runs(window, pixel, |taps, from| {
            to[taps].copy_from_slice(&sample[from]);
        });
    }
}

/// The patches of a strip: written out, or the input itself.
fn patches<'a>(
    window: &Window,
    x: &'a [f32],
    sample: usize,
    strip: Range<usize>,
    workspace: &'a mut [f32],
) -> &'a [f32] {
    let len = strip.len() * patch(window);
    if is_product(window) {
        return &x[..len];
    }
    let in_sample = window.h * window.w * window.c;
    let patches = &mut workspace[..len];
    write_out(
        window,
        &x[sample * in_sample..][..in_sample],
        strip,
        patches,
    );
    patches
}

/// Strips of a batch: sample and output pixels; one of the whole batch where there is nothing to write out.
fn strips(window: &Window, batch: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let pixels = window.out_h * window.out_w;
    let (samples, pixels, some) = if is_product(window) {
        (batch.min(1), pixels * batch, pixels * batch)
    } else {
        (batch, pixels, strip(window))
    };
    (0..samples).flat_map(move |sample| {
        (0..pixels)
            .step_by(some.max(1))
            .map(move |first| (sample, first..pixels.min(first + some)))
    })
}

/// y = x ⋆ w (+ bias, unless empty).
pub(super) fn forward(
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    window: &Window,
    batch: usize,
    workspace: &mut [f32],
) {
    let (patch, out_c) = (patch(window), window.out_c);
    let pixels = window.out_h * window.out_w;
    for (sample, strip) in strips(window, batch) {
        let y = &mut y[(sample * pixels + strip.start) * out_c..][..strip.len() * out_c];
        let write = if bias.is_empty() {
            Write::Overwrite
        } else {
            y.chunks_exact_mut(out_c)
                .for_each(|y| y.copy_from_slice(bias));
            Write::Accumulate
        };
        let patches = patches(window, x, sample, strip.clone(), workspace);
        product(
            [strip.len(), out_c, patch],
            1.0,
            Strided::rows(patches, patch),
            Strided::rows(weight, patch).transposed(),
            StridedMut::rows(y, out_c),
            write,
        );
    }
}

/// dx (+)= the input gradient.
pub(super) fn backward_input(
    d_y: &[f32],
    weight: &[f32],
    d_x: &mut [f32],
    window: &Window,
    batch: usize,
    workspace: &mut [f32],
    write: Write,
) {
    let (patch, out_c) = (patch(window), window.out_c);
    let (in_sample, pixels) = (window.h * window.w * window.c, window.out_h * window.out_w);
    let through = |d_y: &[f32], rows: usize, to: &mut [f32], write| {
        product(
            [rows, patch, out_c],
            1.0,
            Strided::rows(d_y, out_c),
            Strided::rows(weight, patch),
            StridedMut::rows(to, patch),
            write,
        );
    };
    if write == Write::Overwrite && !is_product(window) {
        d_x[..batch * in_sample].fill(0.0);
    }
    for (sample, strip) in strips(window, batch) {
        let d_y = &d_y[(sample * pixels + strip.start) * out_c..][..strip.len() * out_c];
        if is_product(window) {
            through(d_y, strip.len(), &mut d_x[..strip.len() * patch], write);
            continue;
        }
        let patches = &mut workspace[..strip.len() * patch];
        through(d_y, strip.len(), patches, Write::Overwrite);
        let d_x = &mut d_x[sample * in_sample..][..in_sample];
        for (pixel, patch) in strip.zip(patches.chunks_exact(patch)) {
            runs(window, pixel, |taps, to| {
                for (to, from) in d_x[to].iter_mut().zip(&patch[taps]) {
                    *to += from;
                }
            });
        }
    }
}

/// d_weight += the weight gradient, for the weights of some output channels.
pub(super) fn backward_weight(
    x: &[f32],
    d_y: &[f32],
    d_weight: &mut [f32],
    window: &Window,
    batch: usize,
    workspace: &mut [f32],
    channels: Range<usize>,
) {
    if channels.is_empty() {
        return;
    }
    let (patch, out_c) = (patch(window), window.out_c);
    let pixels = window.out_h * window.out_w;
    for (sample, strip) in strips(window, batch) {
        let d_y = &d_y[(sample * pixels + strip.start) * out_c..][..strip.len() * out_c];
        let patches = patches(window, x, sample, strip.clone(), workspace);
        product(
            [channels.len(), patch, strip.len()],
            1.0,
            Strided::rows(&d_y[channels.start..], out_c).transposed(),
            Strided::rows(patches, patch),
            StridedMut::rows(&mut *d_weight, patch),
            Write::Accumulate,
        );
    }
}
