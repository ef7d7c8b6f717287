//! Batch norm in one call: a library's on a GPU (cuDNN), and what stands for it on the CPU.
use syncmark_engine::kernel::{Kernel, Write};
use syncmark_engine::tensor::Span;

use crate::device::{Device, Operand, on_every_library};

const EPS: f32 = 1e-5;
const MOMENTUM: f32 = 0.3;

/// x̂, mean, biased variance and 1/sqrt(variance + ε) of rows of `c` channels.
struct Expected {
    x_hat: Vec<f64>,
    mean: Vec<f64>,
    variance: Vec<f64>,
    rstd: Vec<f64>,
}

fn expected(x: &[f64], c: usize) -> Expected {
    let n = (x.len() / c) as f64;
    let channel = |k: usize| x.iter().skip(k).step_by(c);
    let mean: Vec<f64> = (0..c).map(|k| channel(k).sum::<f64>() / n).collect();
    let variance: Vec<f64> = (0..c)
        .map(|k| channel(k).map(|v| (v - mean[k]).powi(2)).sum::<f64>() / n)
        .collect();
    let rstd: Vec<f64> = variance
        .iter()
        .map(|v| 1.0 / (v + f64::from(EPS)).sqrt())
        .collect();
    let x_hat = (0..x.len())
        .map(|i| (x[i] - mean[i % c]) * rstd[i % c])
        .collect();
    Expected {
        x_hat,
        mean,
        variance,
        rstd,
    }
}

fn affine(values: &[f64], gamma: &Operand, beta: &Operand) -> Vec<f64> {
    let c = gamma.values.len();
    let of = |(i, v): (usize, &f64)| gamma.values[i % c] * v + beta.values[i % c];
    values.iter().enumerate().map(of).collect()
}

/// (1−m)·old + m·new.
fn averaged(old: &[f64], new: &[f64], scale: f64) -> Vec<f64> {
    let m = f64::from(MOMENTUM);
    let of = |(old, new): (&f64, &f64)| (1.0 - m) * old + m * new * scale;
    old.iter().zip(new).map(of).collect()
}

fn forward_and_backward(device: &mut Device, samples: usize, spatial: usize, c: usize) {
    let (rows, what) = (samples * spatial, format!("{samples} × {spatial} × {c}"));
    let (x, d_y) = (device.random(rows * c), device.random(rows * c));
    let (gamma, beta) = (device.random(c), device.random(c));
    let (running_mean, running_variance) = (device.random(c), device.random_about(2.0, c));
    let [mean, rstd] = [(); 2].map(|()| device.random(c).span);
    let y = device.random(rows * c).span;
    let forward = |running: [Span; 2]| Kernel::LibraryBatchNorm {
        x: x.span,
        gamma: gamma.span,
        beta: beta.span,
        y,
        mean,
        rstd,
        running_mean: running[0],
        running_variance: running[1],
        samples,
        spatial,
        eps: EPS,
        momentum: MOMENTUM,
    };
    let e = expected(&x.values, c);
    device.launch(forward([running_mean.span, running_variance.span]));
    device.expect(&format!("mean {what}"), mean, &e.mean);
    device.expect(&format!("rstd {what}"), rstd, &e.rstd);
    let normalized = affine(&e.x_hat, &gamma, &beta);
    device.expect(&format!("y {what}"), y, &normalized);
    // The average takes in the unbiased variance.
    let unbiased = rows as f64 / (rows - 1) as f64;
    let means = averaged(&running_mean.values, &e.mean, 1.0);
    let variances = averaged(&running_variance.values, &e.variance, unbiased);
    device.expect(&format!("running mean {what}"), running_mean.span, &means);
    device.expect(
        &format!("running variance {what}"),
        running_variance.span,
        &variances,
    );
    // Without running statistics it does the same and leaves them alone.
    device.launch(forward([Span::EMPTY; 2]));
    device.expect(&format!("y again {what}"), y, &normalized);
    device.expect(&format!("alone {what}"), running_mean.span, &means);

    let n = rows as f64;
    let sum = |values: &dyn Fn(usize) -> f64, k: usize| -> f64 {
        (k..rows * c).step_by(c).map(values).sum()
    };
    let d = &d_y.values;
    let d_beta: Vec<f64> = (0..c).map(|k| sum(&|i| d[i], k)).collect();
    let d_gamma: Vec<f64> = (0..c).map(|k| sum(&|i| d[i] * e.x_hat[i], k)).collect();
    let d_x: Vec<f64> = (0..rows * c)
        .map(|i| {
            let k = i % c;
            gamma.values[k] * e.rstd[k] * (d[i] - d_beta[k] / n - e.x_hat[i] * d_gamma[k] / n)
        })
        .collect();
    let backward = |[d_gamma, d_beta, d_x]: [Span; 3], write| Kernel::LibraryBatchNormBackward {
        x: x.span,
        d_y: d_y.span,
        gamma: gamma.span,
        mean,
        rstd,
        d_gamma,
        d_beta,
        d_x,
        samples,
        spatial,
        eps: EPS,
        write,
    };
    let [unread_gamma, unread_beta] = [(); 2].map(|()| device.random(c).span);
    device.expect_writes(&format!("dx {what}"), &d_x, |d_x, write| {
        backward([unread_gamma, unread_beta, d_x], write)
    });
    // Gradients of parameters are added to, also where nobody wants the input's.
    device.expect_added(&format!("dγ {what}"), &d_gamma, |to| {
        backward([to, unread_beta, Span::EMPTY], Write::Overwrite)
    });
    device.expect_added(&format!("dβ {what}"), &d_beta, |to| {
        backward([unread_gamma, to, Span::EMPTY], Write::Overwrite)
    });
}

#[test]
fn a_library_computes_what_batch_norm_is() {
    on_every_library(|device| {
        // Rows of features, odd sizes, and images whose channels fill vectors.
        for (samples, spatial, c) in [(7, 1, 5), (3, 10, 3), (4, 64, 16), (2, 49, 64)] {
            forward_and_backward(device, samples, spatial, c);
        }
    });
}

#[test]
fn a_library_evaluates_with_running_statistics() {
    on_every_library(|device| {
        for (samples, spatial, c) in [(5, 1, 3), (2, 12, 8)] {
            let len = samples * spatial * c;
            let x = device.random(len);
            let (gamma, beta) = (device.random(c), device.random(c));
            let (mean, variance) = (device.random(c), device.random_about(2.0, c));
            let y = device.random(len).span;
            device.launch(Kernel::LibraryBatchNormEval {
                x: x.span,
                gamma: gamma.span,
                beta: beta.span,
                running_mean: mean.span,
                running_variance: variance.span,
                y,
                samples,
                spatial,
                eps: EPS,
            });
            let of = |i: usize| {
                let k = i % c;
                (x.values[i] - mean.values[k]) / (variance.values[k] + f64::from(EPS)).sqrt()
            };
            let x_hat: Vec<f64> = (0..len).map(of).collect();
            device.expect("y in evaluation", y, &affine(&x_hat, &gamma, &beta));
        }
    });
}

#[test]
fn a_rectifier_works_in_place() {
    crate::device::on_every_backend(|device| {
        for len in [1, 1000, 4099] {
            let (y, shortcut) = (device.random(len), device.random(len));
            let sums = y.values.iter().zip(&shortcut.values).map(|(a, b)| a + b);
            let rectified: Vec<f64> = sums.map(|sum| sum.max(0.0)).collect();
            let (y, shortcut) = (y.span, shortcut.span);
            device.launch(Kernel::Rectify { y, shortcut });
            device.expect("y + shortcut, rectified", y, &rectified);
            let alone = device.random(len);
            let rectified: Vec<f64> = alone.values.iter().map(|v| v.max(0.0)).collect();
            let (y, shortcut) = (alone.span, Span::EMPTY);
            device.launch(Kernel::Rectify { y, shortcut });
            device.expect("y, rectified", y, &rectified);
        }
    });
}
