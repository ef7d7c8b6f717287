//! Batch, synchronized and group norms.
use syncmark_engine::kernel::{Affine, Gate, Kernel, Then, Write};
use syncmark_engine::tensor::Span;

use crate::device::{Device, on_every_backend};

const EPS: f32 = 1e-5;

/// Mean and biased variance of each of `sets` sets; `set(i)` names element i's.
fn moments(x: &[f64], sets: usize, set: impl Fn(usize) -> usize) -> (Vec<f64>, Vec<f64>) {
    let n = (x.len() / sets) as f64;
    let (mut mean, mut variance) = (vec![0.0; sets], vec![0.0; sets]);
    x.iter()
        .enumerate()
        .for_each(|(i, v)| mean[set(i)] += v / n);
    x.iter()
        .enumerate()
        .for_each(|(i, v)| variance[set(i)] += (v - mean[set(i)]).powi(2) / n);
    (mean, variance)
}

fn reciprocal(variance: &[f64]) -> Vec<f64> {
    variance
        .iter()
        .map(|v| 1.0 / (v + f64::from(EPS)).sqrt())
        .collect()
}

/// Gradient of normalization: rstd·[g − mean(g) − x̂·mean(g·x̂)] over each set.
fn normalization_gradient(
    x_hat: &[f64],
    g: &[f64],
    rstd: &[f64],
    set: impl Fn(usize) -> usize,
) -> Vec<f64> {
    let n = (g.len() / rstd.len()) as f64;
    let (mut first, mut second) = (vec![0.0; rstd.len()], vec![0.0; rstd.len()]);
    for i in 0..g.len() {
        first[set(i)] += g[i] / n;
        second[set(i)] += g[i] * x_hat[i] / n;
    }
    (0..g.len())
        .map(|i| rstd[set(i)] * (g[i] - first[set(i)] - x_hat[i] * second[set(i)]))
        .collect()
}

fn batch_norm(device: &mut Device, rows: usize, c: usize, center: f32, with_affine: bool) {
    let what = format!("{rows} × {c} about {center}, affine {with_affine}");
    let (x, d_y) = (
        device.random_about(center, rows * c),
        device.random(rows * c),
    );
    let gamma = if with_affine {
        device.random(c)
    } else {
        device.none()
    };
    let beta = if with_affine {
        device.random(c)
    } else {
        device.none()
    };
    let (mean, variance) = moments(&x.values, c, |i| i % c);
    let rstd = reciprocal(&variance);
    let [mean_span, variance_span, rstd_span] = [(); 3].map(|()| device.random(c).span);
    device.launch(Kernel::BatchStatistics {
        x: x.span,
        mean: mean_span,
        variance: variance_span,
        rows,
    });
    device.launch(Kernel::ReciprocalDeviation {
        variance: variance_span,
        rstd: rstd_span,
        eps: EPS,
    });
    device.expect(&format!("mean {what}"), mean_span, &mean);
    device.expect(&format!("variance {what}"), variance_span, &variance);
    device.expect(&format!("rstd {what}"), rstd_span, &rstd);
    let x_hat: Vec<f64> = (0..rows * c)
        .map(|i| (x.values[i] - mean[i % c]) * rstd[i % c])
        .collect();
    let of =
        |values: &[f64], i: usize, otherwise: f64| values.get(i % c).copied().unwrap_or(otherwise);
    let y: Vec<f64> = x_hat
        .iter()
        .enumerate()
        .map(|(i, v)| of(&gamma.values, i, 1.0) * v + of(&beta.values, i, 0.0))
        .collect();
    let output = device.random(rows * c).span;
    device.launch(Kernel::BatchNormalize {
        x: x.span,
        mean: mean_span,
        rstd: rstd_span,
        gamma: gamma.span,
        beta: beta.span,
        y: output,
        rows,
        then: Then::NOTHING,
    });
    // A mean far from zero has itself a rounding error, which shows in x − mean: compare at zero only.
    if center == 0.0 {
        device.expect(&format!("y {what}"), output, &y);
    }

    let sums = device.random(2 * c).span;
    let count = device.given(&[rows as f32]).span;
    device.launch(Kernel::BatchBackwardReduce {
        x: x.span,
        d_y: d_y.span,
        mean: mean_span,
        sums,
        rows,
        gate: Gate::Open,
    });
    let g: Vec<f64> = d_y
        .values
        .iter()
        .enumerate()
        .map(|(i, d)| of(&gamma.values, i, 1.0) * d)
        .collect();
    let d_x = normalization_gradient(&x_hat, &g, &rstd, |i| i % c);
    let (gamma, mean, rstd_values, rstd) = (gamma.span, mean_span, rstd, rstd_span);
    let (x, d_y_values, d_y) = (x.span, d_y.values, d_y.span);
    if center == 0.0 {
        device.expect_writes(&format!("dx {what}"), &d_x, |d_x, write| {
            Kernel::BatchBackwardInput {
                x,
                d_y,
                mean,
                rstd,
                gamma,
                sums,
                count,
                d_x,
                rows,
                write,
                gate: Gate::Open,
            }
        });
    }
    let eval: Vec<f64> = g
        .iter()
        .enumerate()
        .map(|(i, g)| g * rstd_values[i % c])
        .collect();
    device.expect_writes(&format!("dx in evaluation, {what}"), &eval, |d_x, write| {
        Kernel::BatchBackwardEval {
            d_y,
            rstd,
            gamma,
            d_x,
            rows,
            write,
        }
    });
    let (mut d_gamma, mut d_beta) = (vec![0.0; c], vec![0.0; c]);
    for i in 0..rows * c {
        d_gamma[i % c] += d_y_values[i] * x_hat[i];
        d_beta[i % c] += d_y_values[i];
    }
    let (to_gamma, to_beta) = (device.random(c), device.random(c));
    device.launch(Kernel::BatchBackwardAffine {
        sums,
        rstd,
        d_gamma: to_gamma.span,
        d_beta: to_beta.span,
    });
    if center == 0.0 {
        let added = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        device.expect(
            &format!("dγ {what}"),
            to_gamma.span,
            &added(&to_gamma.values, &d_gamma),
        );
        device.expect(
            &format!("dβ {what}"),
            to_beta.span,
            &added(&to_beta.values, &d_beta),
        );
    }
}

#[test]
fn batch_norm_forward_and_backward() {
    on_every_backend(|device| {
        // Not two rows: their gradient is a small difference of large terms; the vector below is made for it.
        for (rows, c) in [(5, 1), (33, 10), (300, 16), (257, 64), (65, 70), (20, 130)] {
            for with_affine in [false, true] {
                batch_norm(device, rows, c, 0.0, with_affine);
            }
        }
        // E[x²] − E[x]² would have no correct digit here.
        batch_norm(device, 4096, 16, 1000.0, true);
    });
}

/// The known vector: n = 2 and half-gap d give x̂ = ±d/sqrt(d² + eps) and, for upstream ±1, |dx| = eps/(d² + eps)^1.5.
#[test]
fn batch_norm_of_two_samples() {
    on_every_backend(|device| {
        let d = 0.01f32;
        let (x, d_y) = (device.given(&[3.0 * d, d]), device.given(&[1.0, -1.0]));
        let [mean, variance, rstd] = [(); 3].map(|()| device.zeros(1));
        let (y, sums, d_x) = (device.zeros(2), device.zeros(2), device.zeros(2));
        let count = device.given(&[2.0]).span;
        let (gamma, beta, rows) = (Span::EMPTY, Span::EMPTY, 2);
        device.launch(Kernel::BatchStatistics {
            x: x.span,
            mean,
            variance,
            rows,
        });
        device.launch(Kernel::ReciprocalDeviation {
            variance,
            rstd,
            eps: EPS,
        });
        device.launch(Kernel::BatchNormalize {
            x: x.span,
            mean,
            rstd,
            gamma,
            beta,
            y,
            rows,
            then: Then::NOTHING,
        });
        device.launch(Kernel::BatchBackwardReduce {
            x: x.span,
            d_y: d_y.span,
            mean,
            sums,
            rows,
            gate: Gate::Open,
        });
        let (x, d_y, write) = (x.span, d_y.span, Write::Overwrite);
        device.launch(Kernel::BatchBackwardInput {
            x,
            d_y,
            mean,
            rstd,
            gamma,
            sums,
            count,
            d_x,
            rows,
            write,
            gate: Gate::Open,
        });
        let (d, eps) = (f64::from(d), f64::from(EPS));
        let hat = d / (d * d + eps).sqrt();
        device.expect("x̂", y, &[hat, -hat]);
        let gradient = eps / (d * d + eps).powf(1.5);
        device.expect("dx", d_x, &[gradient, -gradient]);
    });
}

#[test]
fn running_statistics() {
    on_every_backend(|device| {
        for momentum in [Some(0.1f32), None] {
            let (mean, variance) = (device.random(5), device.random_about(2.0, 5));
            let (running_mean, running_variance) = (device.random(5), device.random_about(2.0, 5));
            let (count, tracked) = (device.given(&[8.0]).span, device.given_i64(&[3]));
            device.launch(Kernel::UpdateRunning {
                mean: mean.span,
                variance: variance.span,
                count,
                running_mean: running_mean.span,
                running_variance: running_variance.span,
                tracked,
                momentum,
            });
            let m = momentum.map_or(0.25, f64::from);
            let mix = |old: &[f64], new: &[f64], factor: f64| -> Vec<f64> {
                old.iter()
                    .zip(new)
                    .map(|(old, new)| (1.0 - m) * old + m * new * factor)
                    .collect()
            };
            device.expect(
                "mean",
                running_mean.span,
                &mix(&running_mean.values, &mean.values, 1.0),
            );
            let expected = mix(&running_variance.values, &variance.values, 8.0 / 7.0);
            device.expect("variance", running_variance.span, &expected);
            assert_eq!(device.read_i64(tracked), [4]);
        }
    });
}

#[test]
fn merged_statistics_are_those_of_all_rows() {
    on_every_backend(|device| {
        let (channels, counts) = (5, [3usize, 0, 7, 1]);
        let total: usize = counts.iter().sum();
        let x = device.random_about(0.5, total * channels);
        let gathered = device.zeros(counts.len() * (2 * channels + 1));
        let mut first = 0;
        for (rank, rows) in counts.into_iter().enumerate() {
            let [mean, variance, rstd] = [(); 3].map(|()| device.zeros(channels));
            let block = gathered.slice(rank * (2 * channels + 1)..(rank + 1) * (2 * channels + 1));
            if rows > 0 {
                let x = x.span.slice(first * channels..(first + rows) * channels);
                device.launch(Kernel::BatchStatistics {
                    x,
                    mean,
                    variance,
                    rows,
                });
                device.launch(Kernel::ReciprocalDeviation {
                    variance,
                    rstd,
                    eps: EPS,
                });
            }
            let count = device.given(&[rows as f32]).span;
            device.launch(Kernel::SyncPack {
                mean,
                rstd,
                count,
                packed: block,
            });
            first += rows;
        }
        let [mean, variance, rstd] = [(); 3].map(|()| device.random(channels).span);
        let count = device.random(1).span;
        let ranks = counts.len();
        device.launch(Kernel::SyncMerge {
            gathered,
            ranks,
            channels,
            eps: EPS,
            mean,
            variance,
            rstd,
            count,
        });
        let (expected_mean, expected_variance) = moments(&x.values, channels, |i| i % channels);
        device.expect("mean", mean, &expected_mean);
        device.expect("variance", variance, &expected_variance);
        device.expect("rstd", rstd, &reciprocal(&expected_variance));
        device.expect("count", count, &[total as f64]);
    });
}

fn group_norm(device: &mut Device, [batch, spatial, channels, groups]: [usize; 4], affine: Affine) {
    let what = format!("{batch} × {spatial} × {channels}, {groups} groups, {affine:?}");
    let size = spatial * channels;
    let (x, d_y) = (
        device.random_about(0.3, batch * size),
        device.random(batch * size),
    );
    let affine_len = match affine {
        Affine::None => 0,
        Affine::Channel => channels,
        Affine::Element => size,
    };
    let (gamma, beta) = if affine_len > 0 {
        (device.random(affine_len), device.random(affine_len))
    } else {
        (device.none(), device.none())
    };
    let set = |i: usize| i / size * groups + i % channels / (channels / groups);
    // Channel: i % C; element: i % (S·C). Both are the remainder by the length of γ.
    let of = |values: &[f64], i: usize, otherwise: f64| {
        if values.is_empty() {
            otherwise
        } else {
            values[i % values.len()]
        }
    };
    let (mean, variance) = moments(&x.values, batch * groups, set);
    let rstd = reciprocal(&variance);
    let x_hat: Vec<f64> = (0..batch * size)
        .map(|i| (x.values[i] - mean[set(i)]) * rstd[set(i)])
        .collect();
    let y: Vec<f64> = x_hat
        .iter()
        .enumerate()
        .map(|(i, v)| of(&gamma.values, i, 1.0) * v + of(&beta.values, i, 0.0))
        .collect();
    let output = device.random(batch * size).span;
    let (mean_span, rstd_span) = (
        device.random(batch * groups).span,
        device.random(batch * groups).span,
    );
    device.launch(Kernel::GroupNormForward {
        x: x.span,
        gamma: gamma.span,
        beta: beta.span,
        y: output,
        mean: mean_span,
        rstd: rstd_span,
        batch,
        spatial,
        channels,
        groups,
        affine,
        eps: EPS,
        then: Then::NOTHING,
    });
    device.expect(&format!("y {what}"), output, &y);
    device.expect(&format!("mean {what}"), mean_span, &mean);
    device.expect(&format!("rstd {what}"), rstd_span, &rstd);

    let g: Vec<f64> = d_y
        .values
        .iter()
        .enumerate()
        .map(|(i, d)| of(&gamma.values, i, 1.0) * d)
        .collect();
    let d_x = normalization_gradient(&x_hat, &g, &rstd, set);
    let to_gamma = if affine_len > 0 {
        device.zeros(affine_len)
    } else {
        Span::EMPTY
    };
    let to_beta = if affine_len > 0 {
        device.zeros(affine_len)
    } else {
        Span::EMPTY
    };
    let (x, d_y_values, d_y, gamma) = (x.span, d_y.values, d_y.span, gamma.span);
    let kernel = |d_x, write| Kernel::GroupNormBackward {
        x,
        d_y,
        gamma,
        mean: mean_span,
        rstd: rstd_span,
        d_x,
        d_gamma: to_gamma,
        d_beta: to_beta,
        batch,
        spatial,
        channels,
        groups,
        affine,
        write,
        y: Span::EMPTY,
    };
    device.expect_writes(&format!("dx {what}"), &d_x, kernel);
    device.launch(kernel(Span::EMPTY, Write::Overwrite));
    if affine_len > 0 {
        // The kernel ran three times, and γ and β accumulate, also where dx is not wanted.
        let (mut d_gamma, mut d_beta) = (vec![0.0; affine_len], vec![0.0; affine_len]);
        for i in 0..batch * size {
            d_gamma[i % affine_len] += 3.0 * d_y_values[i] * x_hat[i];
            d_beta[i % affine_len] += 3.0 * d_y_values[i];
        }
        device.expect(&format!("dγ {what}"), to_gamma, &d_gamma);
        device.expect(&format!("dβ {what}"), to_beta, &d_beta);
    }
}

#[test]
fn group_norm_forward_and_backward() {
    on_every_backend(|device| {
        for shape in [
            [2, 4, 1, 1],
            [3, 9, 6, 3],
            [2, 25, 16, 4],
            [2, 16, 64, 1],
            [3, 1, 100, 1],
            [3, 1, 128, 1],
            [3, 1, 96, 8],
            [2, 1, 2100, 1],
            [2, 9, 250, 1],
            [2, 7, 70, 7],
            [2, 7, 96, 2],
            [2, 5, 600, 600],
            [1, 3, 1200, 600],
            // Samples that a GPU's blocks take together, some blocks each: whole, by groups, by channels, and with groups that share a thread's channels.
            [3, 300, 64, 1],
            [3, 500, 16, 4],
            [2, 700, 24, 24],
            [1, 1200, 12, 4],
            [4, 133, 7, 7],
            [2, 60, 2048, 1],
            // More samples than blocks, and channels that no block has the threads for.
            [700, 9, 8, 8],
            [2, 40, 1031, 1],
            [2, 40, 2062, 2],
            // Rows: of a warp, of a block, of more than a block's threads own.
            [70, 1, 768, 1],
            [9, 1, 1025, 1],
            [3, 1, 513, 1],
            [3, 1, 2052, 1],
        ] {
            for affine in [Affine::None, Affine::Channel, Affine::Element] {
                group_norm(device, shape, affine);
            }
        }
    });
}
