//! Convolution as matrix products over rows of input patches (im2row), forward and both backwards.
//!
//! Contract: NHWC, weights [out_c, kernel, kernel, c]. The workspace holds the patch matrix of a sample or more; work goes
//! in strips, several small samples or some output rows of a large one, whose patches stay in the cache from where they are
//! made to where they are used. A 1×1 kernel with stride 1 and no padding is a product already and needs no patches.
//! Reference: Chellapilla, Puri and Simard, *High performance convolutional neural networks for document processing*, 2006.
use std::ops::Range;

use crate::backend::cpu::matmul::{Product, add_bias, matmul};
use crate::kernel::{Window, Write};

/// Elements of patches that a strip should not exceed: 1 MiB, so that they stay in the second-level cache.
const STRIP: usize = 1 << 18;

/// A convolution's sizes, derived from its window.
#[derive(Clone, Copy)]
struct Sizes {
    /// Elements of one input sample.
    input: usize,
    /// Elements of one output sample.
    output: usize,
    /// Output positions of one sample: rows of its patch matrix.
    positions: usize,
    /// Elements of one patch: columns of the patch matrix.
    patch: usize,
}

impl Sizes {
    fn of(window: &Window) -> Self {
        let positions = window.out_h * window.out_w;
        Self {
            input: window.h * window.w * window.c,
            output: positions * window.out_c,
            positions,
            patch: window.kernel * window.kernel * window.c,
        }
    }
}

/// What is worked on at a time: whole samples, or some output rows of one.
struct Strip {
    samples: Range<usize>,
    /// Output rows of each sample.
    rows: Range<usize>,
}

/// Cuts a batch into strips, in order.
fn strips(
    window: &Window,
    sizes: Sizes,
    batch: usize,
    workspace: usize,
) -> impl Iterator<Item = Strip> {
    let matrix = sizes.positions * sizes.patch;
    assert!(
        workspace >= matrix,
        "the workspace holds {} of {matrix} elements",
        workspace
    );
    let group = (workspace.min(STRIP) / matrix.max(1)).max(1);
    // Each strip's product reads the weights anew: that is little beside at least four times as many patches.
    let enough = (4 * window.out_c).div_ceil(window.out_w);
    let fitting = STRIP / (window.out_w * sizes.patch).max(1);
    let height = if matrix > STRIP {
        fitting.max(enough).min(window.out_h)
    } else {
        window.out_h
    };
    let out_h = window.out_h;
    (0..batch).step_by(group).flat_map(move |first| {
        (0..out_h).step_by(height).map(move |row| Strip {
            samples: first..batch.min(first + group),
            rows: row..out_h.min(row + height),
        })
    })
}

impl Strip {
    /// Rows of this strip's patch matrix.
    fn positions(&self, window: &Window) -> usize {
        self.samples.len() * self.rows.len() * window.out_w
    }
    /// Where its outputs lie: one range, since a strip of several samples has all their rows.
    fn outputs(&self, window: &Window, sizes: Sizes) -> Range<usize> {
        let row = window.out_w * window.out_c;
        let start = self.samples.start * sizes.output + self.rows.start * row;
        start..start + self.positions(window) * window.out_c
    }
    /// For each sample: the range of its input, and of its patches in the workspace.
    fn parts(
        &self,
        window: &Window,
        sizes: Sizes,
    ) -> impl Iterator<Item = (Range<usize>, Range<usize>)> + use<> {
        let part = self.rows.len() * window.out_w * sizes.patch;
        self.samples.clone().enumerate().map(move |(i, sample)| {
            (
                sample * sizes.input..(sample + 1) * sizes.input,
                i * part..(i + 1) * part,
            )
        })
    }
}

fn is_product(window: &Window) -> bool {
    window.kernel == 1 && window.stride == 1 && window.padding == 0
}

/// For each position of the output rows and each kernel row: `visit(offset in the patch matrix, offset in the input,
/// length)` of the run of elements inside the image. What it leaves out of a patch is padding.
#[inline(always)]
fn for_each_run(window: &Window, rows: Range<usize>, mut visit: impl FnMut(usize, usize, usize)) {
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
    let row = kernel * c;
    for oy in rows.clone() {
        for ox in 0..out_w {
            let patch = ((oy - rows.start) * out_w + ox) * kernel * row;
            // First and last kernel column inside the image.
            let left = padding.saturating_sub(ox * stride);
            let right = kernel.min((w + padding).saturating_sub(ox * stride));
            if left >= right {
                continue;
            }
            for ky in 0..kernel {
                let y = oy * stride + ky;
                if y < padding || y >= h + padding {
                    continue;
                }
                let from = ((y - padding) * w + (ox * stride + left - padding)) * c;
                visit(patch + ky * row + left * c, from, (right - left) * c);
            }
        }
    }
}

/// Fills the patch matrix of a strip and returns it.
fn im2row<'a>(
    x: &[f32],
    strip: &Strip,
    window: &Window,
    sizes: Sizes,
    workspace: &'a mut [f32],
) -> &'a [f32] {
    let patches = &mut workspace[..strip.positions(window) * sizes.patch];
    if window.padding > 0 {
        patches.fill(0.0);
    }
    for (input, part) in strip.parts(window, sizes) {
        let (x, patches) = (&x[input], &mut patches[part]);
        for_each_run(window, strip.rows.clone(), |to, from, len| {
            patches[to..to + len].copy_from_slice(&x[from..from + len]);
        });
    }
    patches
}

/// Adds the elements of a strip's patch matrix to where they came from.
fn row2im(patches: &[f32], strip: &Strip, window: &Window, sizes: Sizes, d_x: &mut [f32]) {
    for (input, part) in strip.parts(window, sizes) {
        let (d_x, patches) = (&mut d_x[input], &patches[part]);
        for_each_run(window, strip.rows.clone(), |from, to, len| {
            let pairs = d_x[to..to + len].iter_mut().zip(&patches[from..from + len]);
            pairs.for_each(|(d_x, patch)| *d_x += patch);
        });
    }
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
    let sizes = Sizes::of(window);
    let product = |rows| Product {
        m: rows,
        n: window.out_c,
        k: sizes.patch,
        transpose_a: false,
        transpose_b: true,
    };
    if is_product(window) {
        matmul(
            product(batch * sizes.positions),
            x,
            weight,
            y,
            Write::Overwrite,
        );
    } else {
        for strip in strips(window, sizes, batch, workspace.len()) {
            let patches = im2row(x, &strip, window, sizes, workspace);
            let y = &mut y[strip.outputs(window, sizes)];
            matmul(
                product(strip.positions(window)),
                patches,
                weight,
                y,
                Write::Overwrite,
            );
        }
    }
    if !bias.is_empty() {
        add_bias(y, bias, batch * sizes.positions);
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
    let sizes = Sizes::of(window);
    let product = |rows| Product {
        m: rows,
        n: sizes.patch,
        k: window.out_c,
        transpose_a: false,
        transpose_b: false,
    };
    if is_product(window) {
        return matmul(product(batch * sizes.positions), d_y, weight, d_x, write);
    }
    if write == Write::Overwrite {
        d_x.fill(0.0);
    }
    for strip in strips(window, sizes, batch, workspace.len()) {
        let rows = strip.positions(window);
        let patches = &mut workspace[..rows * sizes.patch];
        matmul(
            product(rows),
            &d_y[strip.outputs(window, sizes)],
            weight,
            patches,
            Write::Overwrite,
        );
        row2im(patches, &strip, window, sizes, d_x);
    }
}

/// d_weight += the weight gradient.
pub(super) fn backward_weight(
    x: &[f32],
    d_y: &[f32],
    d_weight: &mut [f32],
    window: &Window,
    batch: usize,
    workspace: &mut [f32],
) {
    let sizes = Sizes::of(window);
    let product = |rows| Product {
        m: window.out_c,
        n: sizes.patch,
        k: rows,
        transpose_a: true,
        transpose_b: false,
    };
    if is_product(window) {
        return matmul(
            product(batch * sizes.positions),
            d_y,
            x,
            d_weight,
            Write::Accumulate,
        );
    }
    for strip in strips(window, sizes, batch, workspace.len()) {
        let patches = im2row(x, &strip, window, sizes, workspace);
        let d_y = &d_y[strip.outputs(window, sizes)];
        matmul(
            product(strip.positions(window)),
            d_y,
            patches,
            d_weight,
            Write::Accumulate,
        );
    }
}
