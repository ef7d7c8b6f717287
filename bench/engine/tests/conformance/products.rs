//! Matrix products, biases and convolutions.
use syncmark_engine::kernel::{ConvAlgorithm, Kernel, Window};

use crate::device::on_every_backend;

fn product(
    a: &[f64],
    b: &[f64],
    [m, n, k]: [usize; 3],
    transpose_a: bool,
    transpose_b: bool,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            for l in 0..k {
                let left = if transpose_a {
                    a[l * m + i]
                } else {
                    a[i * k + l]
                };
                c[i * n + j] += left
                    * if transpose_b {
                        b[j * k + l]
                    } else {
                        b[l * n + j]
                    };
            }
        }
    }
    c
}

#[test]
fn matmul() {
    on_every_backend(|device| {
        for [m, n, k] in [
            [1, 1, 1],
            [5, 10, 3],
            [17, 1, 33],
            [64, 64, 64],
            [128, 10, 65],
            [3, 130, 257],
            [70, 33, 5],
            [19, 16, 600],
            [8, 9, 256],
            [3, 16, 1],
        ] {
            for (transpose_a, transpose_b) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                let (a, b) = (device.random(m * k), device.random(k * n));
                let expected = product(&a.values, &b.values, [m, n, k], transpose_a, transpose_b);
                let (a, b) = (a.span, b.span);
                let what = format!("[{m}, {n}, {k}] {transpose_a} {transpose_b}");
                device.expect_writes(&what, &expected, |c, write| Kernel::Matmul {
                    a,
                    b,
                    c,
                    m,
                    n,
                    k,
                    transpose_a,
                    transpose_b,
                    write,
                });
            }
        }
    });
}

#[test]
fn biases() {
    on_every_backend(|device| {
        for (rows, c) in [(1, 1), (9, 10), (300, 16), (65, 70), (33, 128)] {
            let (bias, d_y) = (device.random(c), device.random(rows * c));
            let expected: Vec<f64> = (0..rows * c).map(|i| bias.values[i % c]).collect();
            device.expect_added("add", &expected, |y| Kernel::AddBias {
                y,
                bias: bias.span,
                rows,
            });
            let expected: Vec<f64> = (0..c)
                .map(|j| d_y.values[j..].iter().step_by(c).sum())
                .collect();
            device.expect_added("backward", &expected, |d_bias| Kernel::BiasBackward {
                d_y: d_y.span,
                d_bias,
                rows,
            });
        }
    });
}

/// Calls `visit(x, w, y)` with the offsets of each multiplication.
fn each_product(window: &Window, batch: usize, mut visit: impl FnMut(usize, usize, usize)) {
    let Window {
        h,
        w,
        c,
        out_h,
        out_w,
        out_c,
        kernel,
        stride,
        padding,
    } = *window;
    for (b, oy, ox, o) in (0..batch * out_h * out_w * out_c).map(|i| {
        (
            i / (out_h * out_w * out_c),
            i / (out_w * out_c) % out_h,
            i / out_c % out_w,
            i % out_c,
        )
    }) {
        for (ky, kx, channel) in
            (0..kernel * kernel * c).map(|i| (i / (kernel * c), i / c % kernel, i % c))
        {
            let (y, x) = (oy * stride + ky, ox * stride + kx);
            if y < padding || x < padding || y - padding >= h || x - padding >= w {
                continue;
            }
            visit(
                ((b * h + y - padding) * w + x - padding) * c + channel,
                ((o * kernel + ky) * kernel + kx) * c + channel,
                ((b * out_h + oy) * out_w + ox) * out_c + o,
            );
        }
    }
}

fn window(
    [h, w, c]: [usize; 3],
    out_c: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
) -> Window {
    let side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
    Window {
        h,
        w,
        c,
        out_h: side(h),
        out_w: side(w),
        out_c,
        kernel,
        stride,
        padding,
    }
}

#[test]
fn convolution() {
    on_every_backend(|device| {
        for (window, batch) in [
            (window([1, 1, 1], 1, 1, 1, 0), 1),
            (window([5, 7, 3], 4, 3, 1, 1), 3),
            (window([8, 8, 16], 16, 3, 1, 1), 2),
            (window([9, 6, 5], 7, 3, 2, 1), 5),
            (window([6, 6, 8], 12, 1, 1, 0), 3),
            (window([7, 7, 8], 3, 1, 2, 0), 3),
            (window([14, 13, 3], 6, 7, 2, 3), 2),
            (window([4, 4, 2], 3, 2, 2, 0), 3),
            (window([3, 3, 2], 3, 5, 1, 2), 3),
            (window([10, 9, 2], 3, 4, 3, 2), 2),
            (window([6, 5, 4], 5, 3, 3, 0), 3),
            (window([4, 3, 4], 5, 1, 3, 0), 2),
            // Fewer pixels than taps, and padding that no tap leaves.
            (window([2, 2, 3], 2, 1, 1, 1), 2),
            (window([2, 3, 3], 4, 5, 1, 4), 2),
            (window([1, 1, 4], 4, 3, 1, 1), 2),
            // Samples that a backend cuts into strips of rows: of the input, of the output.
            (window([31, 90, 12], 3, 3, 1, 1), 2),
            (window([33, 40, 65], 17, 3, 1, 1), 1),
            (window([40, 41, 9], 66, 3, 1, 1), 1),
            // Several samples in a strip, and channels that fill several registers and a part of one.
            (window([9, 9, 40], 33, 3, 1, 1), 7),
            (window([3, 4, 100], 70, 1, 1, 0), 5),
        ] {
            let what = format!("{window:?} × {batch}");
            let x = device.random(batch * window.h * window.w * window.c);
            let weight = device.random(window.out_c * window.kernel * window.kernel * window.c);
            let bias = device.random(window.out_c);
            let outputs = batch * window.out_h * window.out_w * window.out_c;
            let d_y = device.random(outputs);
            let (mut plain, mut d_x, mut d_weight) = (
                vec![0.0; outputs],
                vec![0.0; x.values.len()],
                vec![0.0; weight.values.len()],
            );
            each_product(&window, batch, |at_x, at_w, at_y| {
                plain[at_y] += x.values[at_x] * weight.values[at_w];
                d_x[at_x] += d_y.values[at_y] * weight.values[at_w];
                d_weight[at_w] += d_y.values[at_y] * x.values[at_x];
            });
            let biased: Vec<f64> = plain
                .iter()
                .enumerate()
                .map(|(i, v)| v + bias.values[i % window.out_c])
                .collect();
            let none = device.none();
            let (x, weight, d_y) = (x.span, weight.span, d_y.span);
            // What an earlier kernel left in the workspace must not matter.
            let room = window.workspace() * device.backend.compute_threads();
            let workspace = device.random(room).span;
            let y = device.random(outputs).span;
            for algorithm in [ConvAlgorithm::Direct, ConvAlgorithm::Im2row] {
                for (bias, expected) in [(&none, &plain), (&bias, &biased)] {
                    device.launch(Kernel::Conv2dForward {
                        x,
                        weight,
                        bias: bias.span,
                        y,
                        window,
                        algorithm,
                        batch,
                        workspace,
                    });
                    device.expect(&format!("forward {what} {algorithm:?}"), y, expected);
                }
                device.expect_writes(&format!("dx {what} {algorithm:?}"), &d_x, |d_x, write| {
                    Kernel::Conv2dBackwardInput {
                        d_y,
                        weight,
                        d_x,
                        window,
                        algorithm,
                        batch,
                        workspace,
                        write,
                    }
                });
                device.expect_added(&format!("dw {what} {algorithm:?}"), &d_weight, |d_weight| {
                    Kernel::Conv2dBackwardWeight {
                        x,
                        d_y,
                        d_weight,
                        window,
                        algorithm,
                        batch,
                        workspace,
                    }
                });
            }
        }
    });
}
