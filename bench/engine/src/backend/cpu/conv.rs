//! Convolution as matrix products over rows of input patches (im2row), forward and both backwards.
//!
//! Contract: NHWC, weights [out_c, kernel, kernel, c]. The workspace holds the patch matrices of as many samples as fit,
//! at least one. A 1×1 kernel with stride 1 and no padding is a product already and needs no patches.
//! Reference: Chellapilla, Puri and Simard, *High performance convolutional neural networks for document processing*, 2006.
use crate::backend::cpu::matmul::{Product, add_bias, matmul};
use crate::kernel::{Window, Write};

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
    /// How many samples' patches fit the workspace.
    fn group(self, workspace: &[f32], batch: usize) -> usize {
        let matrix = self.positions * self.patch;
        assert!(
            workspace.len() >= matrix,
            "the workspace holds {} of {matrix} elements",
            workspace.len()
        );
        (workspace.len() / matrix.max(1)).clamp(1, batch.max(1))
    }
}

fn is_product(window: &Window) -> bool {
    window.kernel == 1 && window.stride == 1 && window.padding == 0
}

/// For each output position and kernel row: `visit(offset in the patch matrix, offset in the input, length)` of the run
/// of elements inside the image. What it leaves out of a patch is padding.
#[inline(always)]
fn for_each_run(window: &Window, mut visit: impl FnMut(usize, usize, usize)) {
    let Window {
        h,
        w,
        c,
        out_h,
        out_w,
        kernel,
        stride,
        padding,
        ..
    } = *window;
    let row = kernel * c;
    for oy in 0..out_h {
        for ox in 0..out_w {
            let patch = (oy * out_w + ox) * kernel * row;
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

/// Fills the patch matrix [positions, patch] of one sample.
fn im2row(x: &[f32], window: &Window, patches: &mut [f32]) {
    if window.padding > 0 {
        patches.fill(0.0);
    }
    for_each_run(window, |to, from, len| {
        patches[to..to + len].copy_from_slice(&x[from..from + len])
    });
}

/// Adds a patch matrix's elements to where they came from.
fn row2im(patches: &[f32], window: &Window, d_x: &mut [f32]) {
    for_each_run(window, |from, to, len| {
        let pairs = d_x[to..to + len].iter_mut().zip(&patches[from..from + len]);
        pairs.for_each(|(d_x, patch)| *d_x += patch);
    });
}

/// Fills the patch matrices of the samples in `x`.
fn patches_of<'a>(
    x: &[f32],
    window: &Window,
    sizes: Sizes,
    workspace: &'a mut [f32],
) -> &'a mut [f32] {
    let matrix = sizes.positions * sizes.patch;
    let samples = x.len() / sizes.input;
    let patches = &mut workspace[..samples * matrix];
    for (x, patches) in x
        .chunks_exact(sizes.input)
        .zip(patches.chunks_exact_mut(matrix))
    {
        im2row(x, window, patches);
    }
    patches
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
        let group = sizes.group(workspace, batch);
        for (x, y) in x
            .chunks(group * sizes.input)
            .zip(y.chunks_mut(group * sizes.output))
        {
            let patches = patches_of(x, window, sizes, workspace);
            matmul(
                product(y.len() / window.out_c),
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
    let group = sizes.group(workspace, batch);
    let matrix = sizes.positions * sizes.patch;
    for (d_y, d_x) in d_y
        .chunks(group * sizes.output)
        .zip(d_x.chunks_mut(group * sizes.input))
    {
        let rows = d_y.len() / window.out_c;
        let patches = &mut workspace[..rows * sizes.patch];
        matmul(product(rows), d_y, weight, patches, Write::Overwrite);
        for (patches, d_x) in patches
            .chunks_exact(matrix)
            .zip(d_x.chunks_exact_mut(sizes.input))
        {
            row2im(patches, window, d_x);
        }
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
    let group = sizes.group(workspace, batch);
    for (x, d_y) in x
        .chunks(group * sizes.input)
        .zip(d_y.chunks(group * sizes.output))
    {
        let patches = patches_of(x, window, sizes, workspace);
        matmul(
            product(d_y.len() / window.out_c),
            d_y,
            patches,
            d_weight,
            Write::Accumulate,
        );
    }
}
