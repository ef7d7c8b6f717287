//! Batch norm over the rows of [rows, c], in the pieces that SyncBN puts collectives between.
//!
//! Contract: statistics come from two passes, the second corrected by the sum of its deviations, so that a mean far from
//! zero costs no digits; γ and β may be empty (1 and 0). `count` lies on the device, because under SyncBN it is a result.
//! Reference: Chan, Golub and LeVeque, *Algorithms for computing the sample variance*, 1983; PyTorch's `batch_norm`.
use crate::backend::cpu::columns::{Columns, map, reduce, widest};
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
        let columns = Columns::all(rows, mean.len());
        let n = rows as f64;
        reduce(columns, [x], |_| [], |[x], []| [x], |c, [sum]| mean[c] = (sum / n) as f32);
        reduce(
            columns,
            [x],
            |c| [mean[c]],
            |[x], [mean]| [x - mean, (x - mean) * (x - mean)],
            |c, [deviation, squares]| variance[c] = ((squares - deviation * deviation / n) / n).max(0.0) as f32,
        );
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

/// Exponential (or, without `momentum`, cumulative) averages; the variance is stored unbiased. A `count` of 1 or less has
/// no unbiased variance: the biased one is stored then (building a model refuses such batches).
pub(super) fn update_running(
    mean: &[f32],
    variance: &[f32],
    count: f32,
    running: Running<'_>,
    momentum: Option<f32>,
) {
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
    /// y = γ·(x − mean)·rstd + β.
    pub(super) fn normalize(x: &[f32], mean: &[f32], rstd: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32], rows: usize) {
        let coefficients = |c: usize| [mean[c], rstd[c] * affine(gamma, c, 1.0), affine(beta, c, 0.0)];
        let columns = Columns::all(rows, mean.len());
        map(columns, [x], y, Write::Overwrite, coefficients, |[x], [mean, scale, beta]| (x - mean) * scale + beta);
    }
}

widest! {
    /// sums[..c] = Σ d_y, sums[c..] = Σ d_y·(x − mean).
    pub(super) fn backward_reduce(x: &[f32], d_y: &[f32], mean: &[f32], sums: &mut [f32], rows: usize) {
        let (d_beta, d_gamma) = sums.split_at_mut(mean.len());
        reduce(
            Columns::all(rows, mean.len()),
            [x, d_y],
            |c| [mean[c]],
            |[x, d_y], [mean]| [d_y, d_y * (x - mean)],
            |c, [first, second]| {
                d_beta[c] = first as f32;
                d_gamma[c] = second as f32;
            },
        );
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
    /// dx (+)= γ·rstd·[d_y − sums[c]/n − (x − mean)·rstd²·sums[C+c]/n].
    pub(super) fn backward_input(
        x: &[f32], d_y: &[f32], mean: &[f32], rstd: &[f32], gamma: &[f32], sums: &[f32], count: f32, d_x: &mut [f32],
        rows: usize, write: Write,
    ) {
        let (first, second) = sums.split_at(mean.len());
        let coefficients = |c: usize| {
            let projection = rstd[c] * rstd[c] * (second[c] / count);
            [mean[c], rstd[c] * affine(gamma, c, 1.0), first[c] / count, projection]
        };
        map(Columns::all(rows, mean.len()), [x, d_y], d_x, write, coefficients, |[x, d_y], [mean, scale, d_mean, projection]| {
            scale * (d_y - d_mean - (x - mean) * projection)
        });
    }
}

widest! {
    /// dx (+)= γ·rstd·d_y.
    pub(super) fn backward_eval(d_y: &[f32], rstd: &[f32], gamma: &[f32], d_x: &mut [f32], rows: usize, write: Write) {
        let coefficients = |c: usize| [rstd[c] * affine(gamma, c, 1.0)];
        map(Columns::all(rows, rstd.len()), [d_y], d_x, write, coefficients, |[d_y], [scale]| d_y * scale);
    }
}

/// packed = [mean, rstd, rows].
pub(super) fn sync_pack(mean: &[f32], rstd: &[f32], rows: usize, packed: &mut [f32]) {
    let channels = mean.len();
    packed[..channels].copy_from_slice(mean);
    packed[channels..2 * channels].copy_from_slice(rstd);
    packed[2 * channels] = rows as f32;
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
