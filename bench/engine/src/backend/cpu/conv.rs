//! Convolution in NHWC, forward and both backwards, by direct kernels.
//!
//! Contract: weights are [out_c, kernel, kernel, c]; the workspace has [`workspace`] elements. Results do not depend on what is
//! in it, and are the same for the same instructions. Direct kernels read an input pixel where it lies (padded rows apart),
//! so no matrix of patches is ever written. At every shape of training in the benches (`kernels`, group `conv`) this was as fast
//! as im2row with a matrix product or faster, and so it is the only way.
//! Reference: Zhang, Franchetti and Low, *High performance zero-memory overhead direct convolutions*, 2018.
mod filter;
mod pass;
mod pixels;
mod weight;

use std::ops::Range;

use crate::kernel::{Window, Write};
use pass::{Pass, Taps};

/// Elements of a packed filter, for the widest registers.
fn filter_len(window: &Window) -> usize {
    let up = |channels: usize| channels.next_multiple_of(pixels::MOST_WIDTH);
    let channels = (up(window.out_c) * window.c).max(up(window.c) * window.out_c);
    window.kernel * window.kernel * channels
}

/// Elements of padded rows: a few samples, or as many rows as stay in the cache, or the fewest that a filter needs.
fn rows_len(window: &Window) -> usize {
    let forward = Pass::forward(window);
    // A pass of the input gradient reads rows of the output with at most as many taps on each side.
    let backward = (window.out_w.max(window.w) + 2 * window.kernel) * window.out_c;
    let line = forward.line().max(backward);
    let samples = 8 * line * (window.h.max(window.out_h) + window.kernel);
    samples.min(pixels::SCRATCH).max(line * window.kernel)
}

/// Elements of workspace that a convolution needs.
pub(crate) fn workspace(window: &Window) -> usize {
    let rows = filter_len(window) + rows_len(window);
    rows.max(weight::scratch(window))
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
    let (filter, scratch) = workspace.split_at_mut(filter_len(window));
    let width = pixels::width(window.out_c);
    let pass = Pass::forward(window);
    let len = window.out_c.next_multiple_of(width) * window.kernel * pass.run();
    filter::forward(weight, window, width, &mut filter[..len]);
    let operands = pixels::Operands {
        source: x,
        filter: &filter[..len],
        bias,
        to: y,
        scratch,
    };
    pixels::write(&pass, operands, batch, Write::Overwrite);
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
    let (filter, scratch) = workspace.split_at_mut(filter_len(window));
    let width = pixels::width(window.c);
    for row in 0..window.stride {
        for column in 0..window.stride {
            let pass = Pass::backward(window, row, column);
            let (rows, columns) = (Taps::of(window, row), Taps::of(window, column));
            filter::backward(weight, window, rows, columns, width, filter);
            let operands = pixels::Operands {
                source: d_y,
                filter,
                bias: &[],
                to: &mut *d_x,
                scratch: &mut *scratch,
            };
            pixels::write(&pass, operands, batch, write);
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
    weight::add(window, x, d_y, d_weight, batch, workspace, channels);
}
