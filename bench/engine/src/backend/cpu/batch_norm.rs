//! Batch norm over the rows of [rows, c], in the pieces that SyncBN puts collectives between.
//!
//! Contract: statistics as in [`crate::backend::cpu::moments`]; γ and β may be empty (1 and 0). `count` lies on the device, because
//! under SyncBN it is a result. A rectifier that follows, and what is added before it, are part of both directions.
//! Reference: Chan, Golub and LeVeque, *Algorithms for computing the sample variance*, 1983; PyTorch's `batch_norm`.
use crate::backend::cpu::columns::{Columns, map, reduce, widest};
use crate::backend::cpu::elementwise::rectified;
use crate::backend::cpu::moments::moments;
use crate::kernel::Write;

/// γ or β of a channel, where an empty slice means `otherwise`.
#[inline(always)]
pub(super) fn affine(values: &[f32], channel: usize, otherwise: f32) -> f32 {
    if values.is_empty() {
        otherwise
    } else {
        values[channel]
    }
}

widest! {
    /// mean[c] and biased variance[c] of x[rows, c].
    pub(super) fn statistics(x: &[f32], mean: &mut [f32], variance: &mut [f32], rows: usize) {
        let n = rows as f64;
        moments(Columns::all(rows, mean.len()), x, |c, [center, squares]| {
            mean[c] = center as f32;
            variance[c] = (squares / n) as f32;
        });
    }
}

widest! {
    /// kept = [mean[c], Σ (x − mean)²[c]] of x[rows, c], to be merged with those of other rows.
    pub(super) fn partial_statistics(x: &[f32], kept: &mut [f64], rows: usize) {
        let (means, squares) = kept.split_at_mut(kept.len() / 2);
        moments(Columns::all(rows, means.len()), x, |c, [center, sum]| {
            means[c] = center;
            squares[c] = sum;
        });
    }
}

/// Takes what [`partial_statistics`] kept of `more` rows into what it kept of `rows`.
pub(super) fn merge_statistics(kept: &mut [f64], rows: usize, other: &[f64], more: usize) {
    if more == 0 {
        return;
    }
    let (n, m) = (rows as f64, more as f64);
    let (means, squares) = kept.split_at_mut(kept.len() / 2);
    let (other_means, other_squares) = other.split_at(other.len() / 2);
    for c in 0..means.len() {
        let distance = other_means[c] - means[c];
        means[c] += distance * m / (n + m);
        squares[c] += other_squares[c] + distance * distance * n * m / (n + m);
    }
}

/// rstd[c] = 1/sqrt(variance[c] + eps).
pub(super) fn reciprocal_deviation(variance: &[f32], rstd: &mut [f32], eps: f32) {
    rstd.iter_mut()
        .zip(variance)
        .for_each(|(rstd, variance)| *rstd = 1.0 / (variance + eps).sqrt());
}

/// What [`update_running`] writes.
pub(super) struct Running<'a> {
    pub(super) mean: &'a mut [f32],
    pub(super) variance: &'a mut [f32],
    pub(super) tracked: &'a mut i64,
}

/// Exponential (or, without `momentum`, cumulative) averages; the variance is stored unbiased. A `count` of 1 has
/// no unbiased variance: the biased one is stored then (building a model refuses such batches). A `count` of 0, where all was padding,
/// changes nothing.
pub(super) fn update_running(
    mean: &[f32],
    variance: &[f32],
    count: f32,
    running: Running<'_>,
    momentum: Option<f32>,
) {
    if count == 0.0 {
        return;
    }
    *running.tracked += 1;
    let m = momentum.unwrap_or_else(|| (1.0 / *running.tracked as f64) as f32);
    let unbiased = if count > 1.0 {
        count / (count - 1.0)
    } else {
        1.0
    };
    running
        .mean
        .iter_mut()
        .zip(mean)
        .for_each(|(running, mean)| *running = (1.0 - m) * *running + m * mean);
    let pairs = running.variance.iter_mut().zip(variance);
    pairs.for_each(|(running, variance)| {
        *running = (1.0 - m) * *running + m * (variance * unbiased)
    });
}

widest! {
    /// y = γ·(x − mean)·rstd + β, plus `shortcut` unless that is empty, rectified if `relu`.
    pub(super) fn normalize(
        x: &[f32], mean: &[f32], rstd: &[f32], gamma: &[f32], beta: &[f32], shortcut: &[f32], relu: bool, y: &mut [f32], rows: usize,
    ) {
        let coefficients = |c: usize| [mean[c], rstd[c] * affine(gamma, c, 1.0), affine(beta, c, 0.0)];
        let columns = Columns::all(rows, mean.len());
        let write = Write::Overwrite;
        match (shortcut.is_empty(), relu) {
            (true, false) => map(columns, [x], y, write, coefficients, normalized),
            (true, true) => map(columns, [x], y, write, coefficients, |x, at| rectified(normalized(x, at))),
            (false, false) => map(columns, [x, shortcut], y, write, coefficients, |[x, other], at| normalized([x], at) + other),
            (false, true) => map(columns, [x, shortcut], y, write, coefficients, |[x, other], at| {
                rectified(normalized([x], at) + other)
            }),
        }
    }
}

/// The formula that a gate computes again: both must round alike.
#[inline(always)]
fn normalized([x]: [f32; 1], [mean, scale, beta]: [f32; 3]) -> f32 {
    (x - mean) * scale + beta
}

/// A rectifier right behind a norm, with what it takes to compute again where the norm's output was positive.
#[derive(Clone, Copy)]
pub(super) struct Rectifier<'a> {
    pub(super) rstd: &'a [f32],
    pub(super) gamma: &'a [f32],
    pub(super) beta: &'a [f32],
}

impl Rectifier<'_> {
    #[inline(always)]
    fn coefficients(self, mean: &[f32], c: usize) -> [f32; 3] {
        let scale = self.rstd[c] * affine(self.gamma, c, 1.0);
        [mean[c], scale, affine(self.beta, c, 0.0)]
    }
}

/// The gradient that a rectifier lets through whose input was `y`.
#[inline(always)]
fn gated(y: f32, d_y: f32) -> f32 {
    if y > 0.0 { d_y } else { 0.0 }
}

/// A number that sums in f64 end as: f32 for a kernel's result, f64 for a part of it.
pub(super) trait Sum {
    /// Rounded if it must be.
    fn of(sum: f64) -> Self;
}

impl Sum for f32 {
    #[inline(always)]
    fn of(sum: f64) -> Self {
        sum as f32
    }
}

impl Sum for f64 {
    #[inline(always)]
    fn of(sum: f64) -> Self {
        sum
    }
}

widest! {
    /// sums[..c] = Σ d_y, sums[c..] = Σ d_y·(x − mean), of the d_y that pass the rectifier behind the norm, if there is one.
    pub(super) fn backward_reduce<S: Sum>(
        x: &[f32], d_y: &[f32], mean: &[f32], rectifier: Option<Rectifier<'_>>, sums: &mut [S], rows: usize,
    ) {
        let (d_beta, d_gamma) = sums.split_at_mut(mean.len());
        let columns = Columns::all(rows, mean.len());
        let finish = |c: usize, [first, second]: [f64; 2]| {
            d_beta[c] = S::of(first);
            d_gamma[c] = S::of(second);
        };
        match rectifier {
            None => reduce(columns, [x, d_y], |c| [mean[c]], |[x, d_y], [mean]| [d_y, d_y * (x - mean)], finish),
            Some(rectifier) => reduce(
                columns,
                [x, d_y],
                |c| rectifier.coefficients(mean, c),
                |[x, d_y], at| {
                    let d_y = gated(normalized([x], at), d_y);
                    [d_y, d_y * (x - at[0])]
                },
                finish,
            ),
        }
    }
}

/// d_gamma += sums[c..]·rstd, d_beta += sums[..c].
pub(super) fn backward_affine(sums: &[f32], rstd: &[f32], d_gamma: &mut [f32], d_beta: &mut [f32]) {
    let (first, second) = sums.split_at(rstd.len());
    d_beta
        .iter_mut()
        .zip(first)
        .for_each(|(d_beta, sum)| *d_beta += sum);
    d_gamma
        .iter_mut()
        .zip(second.iter().zip(rstd))
        .for_each(|(d_gamma, (sum, rstd))| *d_gamma += sum * rstd);
}

widest! {
    /// dx (+)= γ·rstd·[d_y − sums[c]/n − (x − mean)·rstd²·sums[C+c]/n], of the d_y that pass the rectifier behind the norm, if there is
    /// one.
    pub(super) fn backward_input(
        x: &[f32], d_y: &[f32], mean: &[f32], rstd: &[f32], gamma: &[f32], rectifier: Option<Rectifier<'_>>, sums: &[f32],
        count: f32, d_x: &mut [f32], rows: usize, write: Write,
    ) {
        let (first, second) = sums.split_at(mean.len());
        let columns = Columns::all(rows, mean.len());
        let means = |c: usize| [first[c] / count, rstd[c] * rstd[c] * (second[c] / count)];
        match rectifier {
            None => {
                let coefficients = |c: usize| {
                    let [d_mean, projection] = means(c);
                    [mean[c], rstd[c] * affine(gamma, c, 1.0), d_mean, projection]
                };
                map(columns, [x, d_y], d_x, write, coefficients, |[x, d_y], [mean, scale, d_mean, projection]| {
                    scale * (d_y - d_mean - (x - mean) * projection)
                });
            }
            Some(rectifier) => {
                let coefficients = |c: usize| {
                    let ([mean, scale, beta], [d_mean, projection]) = (rectifier.coefficients(mean, c), means(c));
                    [mean, scale, beta, d_mean, projection]
                };
                map(columns, [x, d_y], d_x, write, coefficients, |[x, d_y], [mean, scale, beta, d_mean, projection]| {
                    let d_y = gated(normalized([x], [mean, scale, beta]), d_y);
                    scale * (d_y - d_mean - (x - mean) * projection)
                });
            }
        }
    }
}

widest! {
    /// dx (+)= γ·rstd·d_y.
    pub(super) fn backward_eval(d_y: &[f32], rstd: &[f32], gamma: &[f32], d_x: &mut [f32], rows: usize, write: Write) {
        let coefficients = |c: usize| [rstd[c] * affine(gamma, c, 1.0)];
        map(Columns::all(rows, rstd.len()), [d_y], d_x, write, coefficients, |[d_y], [scale]| d_y * scale);
    }
}

/// packed = [mean, rstd, count], or zeros where nothing was counted.
pub(super) fn sync_pack(mean: &[f32], rstd: &[f32], count: f32, packed: &mut [f32]) {
    let channels = mean.len();
    if count == 0.0 {
        return packed.fill(0.0);
    }
    packed[..channels].copy_from_slice(mean);
    packed[channels..2 * channels].copy_from_slice(rstd);
    packed[2 * channels] = count;
}

/// What [`sync_merge`] writes.
pub(super) struct Merged<'a> {
    pub(super) mean: &'a mut [f32],
    pub(super) variance: &'a mut [f32],
    pub(super) rstd: &'a mut [f32],
    pub(super) count: &'a mut [f32],
}

/// Merges per-rank [mean, rstd, count] blocks in rank order, in f64; blocks with count 0 are left out.
pub(super) fn sync_merge(gathered: &[f32], channels: usize, eps: f32, merged: Merged<'_>) {
    let block = 2 * channels + 1;
    for c in 0..channels {
        let (mut n, mut mean, mut squares) = (0.0f64, 0.0f64, 0.0f64);
        for rank in gathered.chunks_exact(block) {
            let count = f64::from(rank[2 * channels]);
            if count == 0.0 {
                continue;
            }
            let (local, rstd) = (f64::from(rank[c]), f64::from(rank[channels + c]));
            let variance = (1.0 / (rstd * rstd) - f64::from(eps)).max(0.0);
            squares += variance * count + (mean - local).powi(2) * n * count / (n + count);
            mean = (mean * n + local * count) / (n + count);
            n += count;
        }
        let variance = if n > 0.0 { squares / n } else { 0.0 };
        merged.mean[c] = mean as f32;
        merged.variance[c] = variance as f32;
        merged.rstd[c] = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
        merged.count[0] = n as f32;
    }
}
