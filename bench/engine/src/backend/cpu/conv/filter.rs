//! The weights as a pass reads them: blocks of destination channels, each tap's of a block side by side.
//!
//! Contract: [block][row tap][column tap][source channel][`width`], where the last block is filled up with zeros. Weights
//! change with every step, so this is done in every call; it is little beside the products that read it.
use super::pass::Taps;
use crate::kernel::Window;

/// Rows that are transposed at a time, so that what is read twice stays in the first-level cache.
const ROWS: usize = 16;

/// For the forward pass: output channels by patch elements, transposed in blocks.
pub(super) fn forward(weight: &[f32], window: &Window, width: usize, packed: &mut [f32]) {
    let patch = window.kernel * window.kernel * window.c;
    let blocks = packed.chunks_exact_mut(patch * width);
    for (block, weight) in blocks.zip(weight.chunks(patch * width)) {
        let some = weight.len() / patch;
        for first in (0..patch).step_by(ROWS) {
            for element in first..patch.min(first + ROWS) {
                let to = &mut block[element * width..][..width];
                for (channel, to) in to[..some].iter_mut().enumerate() {
                    *to = weight[channel * patch + element];
                }
                to[some..].fill(0.0);
            }
        }
    }
}

/// For the pass of the input gradient to rows and columns with these taps: turned round, input channels last.
pub(super) fn backward(
    weight: &[f32],
    window: &Window,
    rows: Taps,
    columns: Taps,
    width: usize,
    packed: &mut [f32],
) {
    let size = rows.count * columns.count * window.out_c * width;
    for block in 0..window.c.div_ceil(width) {
        let first = block * width;
        let some = width.min(window.c - first);
        let mut to = packed[block * size..][..size].chunks_exact_mut(width);
        for row in (0..rows.count).rev() {
            let row = rows.first + window.stride * row;
            for column in (0..columns.count).rev() {
                let column = columns.first + window.stride * column;
                for channel in 0..window.out_c {
                    let tap = (channel * window.kernel + row) * window.kernel + column;
                    let from = &weight[tap * window.c + first..][..some];
                    let to = to
                        .next()
                        .expect("a block has a row for each tap and channel");
                    to[..some].copy_from_slice(from);
                    to[some..].fill(0.0);
                }
            }
        }
    }
}
