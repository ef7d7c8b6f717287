//! Convolution in NHWC, forward and both backwards, by direct kernels.
//!
//! Contract: weights are [out_c, kernel, kernel, c]; the workspace has [`workspace`] elements. Results do not depend on what is
//! in it, and are the same for the same instructions. Direct kernels read an input pixel where it lies (padded rows apart),
//! so no matrix of patches is ever written; [`im2row`] writes it and has a matrix product of it. [`algorithms`] says by shape which.
//! Reference: Zhang, Franchetti and Low, *High performance zero-memory overhead direct convolutions*, 2018.
mod filter;
mod im2row;
mod pass;
mod pixels;
mod weight;

use std::ops::Range;

use crate::kernel::{ConvAlgorithm, ConvAlgorithms, Window, Write};
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
        .max(im2row::scratch(window))
}

/// Channels that leave most lanes of a register empty where they are its columns.
const FEW: usize = 4;
/// Channels from which on pixels with stride are worth copying together, and from which on they are not any more.
const GATHERED: Range<usize> = 64..1024;

/// How a convolution of this shape is computed, by what was measured (`cargo bench -p syncmark-engine --bench kernels -- conv`, on a
/// machine with AVX-512). A fixed rule and no probe: what a clock has chosen would not repeat to the bit.
pub(crate) fn algorithms(window: &Window) -> ConvAlgorithms {
    let product = im2row::is_product(window);
    let gathered = window.kernel == 1 && window.stride > 1 && GATHERED.contains(&window.c);
    let few = window.c <= FEW;
    let fastest = |im2row: bool| match im2row {
        true => ConvAlgorithm::Im2row,
        false => ConvAlgorithm::Direct,
    };
    ConvAlgorithms {
        forward: fastest(product),
        backward_input: fastest(product || gathered || few),
        backward_weight: fastest(product || gathered || (few && window.stride > 1)),
    }
}

/// What is computed, and how.
pub(super) struct Call<'a> {
    pub(super) algorithm: ConvAlgorithm,
    pub(super) window: &'a Window,
    pub(super) batch: usize,
}

/// y = x ⋆ w (+ bias, unless empty).
pub(super) fn forward(
    call: Call<'_>,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
    workspace: &mut [f32],
) {
    let Call {
        algorithm,
        window,
        batch,
    } = call;
    if algorithm == ConvAlgorithm::Im2row {
        return im2row::forward(x, weight, bias, y, window, batch, workspace);
    }
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
    call: Call<'_>,
    d_y: &[f32],
    weight: &[f32],
    d_x: &mut [f32],
    workspace: &mut [f32],
    write: Write,
) {
    let Call {
        algorithm,
        window,
        batch,
    } = call;
    if algorithm == ConvAlgorithm::Im2row {
        return im2row::backward_input(d_y, weight, d_x, window, batch, workspace, write);
    }
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
    call: Call<'_>,
    x: &[f32],
    d_y: &[f32],
    d_weight: &mut [f32],
    workspace: &mut [f32],
    channels: Range<usize>,
) {
    let Call {
        algorithm,
        window,
        batch,
    } = call;
    let add = match algorithm {
        ConvAlgorithm::Direct => weight::add,
        ConvAlgorithm::Im2row => im2row::backward_weight,
    };
    add(x, d_y, d_weight, window, batch, workspace, channels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_decides_how_a_convolution_is_computed() {
        for (c, out_c, side, kernel, stride, expected) in [
            (64, 64, 56, 3, 1, "direct direct direct"),
            (256, 512, 28, 3, 2, "direct direct direct"),
            // First layers: nobody asks for the gradient of their input.
            (3, 16, 32, 3, 1, "direct im2row direct"),
            (3, 64, 224, 7, 2, "direct im2row im2row"),
            // Single pixels.
            (64, 256, 56, 1, 1, "im2row im2row im2row"),
            (1024, 256, 14, 1, 1, "im2row im2row im2row"),
            (16, 32, 32, 1, 2, "direct direct direct"),
            (256, 512, 56, 1, 2, "direct im2row im2row"),
            (1024, 2048, 14, 1, 2, "direct direct direct"),
        ] {
            let padding = kernel / 2;
            let out = (side + 2 * padding - kernel) / stride + 1;
            let window = Window {
                h: side,
                w: side,
                c,
                out_h: out,
                out_w: out,
                out_c,
                kernel,
                stride,
                padding,
            };
            let found = algorithms(&window);
            let names = [found.forward, found.backward_input, found.backward_weight];
            let names = names.map(ConvAlgorithm::name).join(" ");
            assert_eq!(names, expected, "{window:?}");
        }
    }
}
