//! Group norm where each group is one run of memory: features without spatial extent, or a whole sample (layer norm) whose
//! γ and β follow its elements.
//!
//! Contract: as [`crate::backend::cpu::group_norm`], which calls this; γ and β are per element of a sample or absent. Sums
//! run over 32 lanes and at most 32 steps in f32, then in f64.
//! Reference: Ba, Kiros and Hinton, *Layer normalization*, 2016.
use std::array::from_fn;

use crate::backend::cpu::columns::widest;
use crate::kernel::Write;

/// Numbers that are summed side by side.
const LANES: usize = 32;
/// Steps of a lane in f32 before its sum is added in f64.
const STEPS: usize = 32;

/// Σ map(inputs) over a run.
#[inline(always)]
pub(super) fn sums<const N: usize, const K: usize>(
    inputs: [&[f32]; N],
    map: impl Fn([f32; N]) -> [f32; K],
) -> [f64; K] {
    let len = inputs[0].len();
    let mut total = [0.0f64; K];
    for block in (0..len).step_by(LANES * STEPS) {
        let end = len.min(block + LANES * STEPS);
        let whole = block + (end - block) / LANES * LANES;
        let mut lanes = [[0.0f32; LANES]; K];
        for start in (block..whole).step_by(LANES) {
            let parts: [&[f32]; N] = from_fn(|i| &inputs[i][start..start + LANES]);
            for l in 0..LANES {
                let value = map(from_fn(|i| parts[i][l]));
                (0..K).for_each(|k| lanes[k][l] += value[k]);
            }
        }
        for at in whole..end {
            let value = map(from_fn(|i| inputs[i][at]));
            (0..K).for_each(|k| lanes[k][at - whole] += value[k]);
        }
        (0..K).for_each(|k| total[k] += fold(lanes[k]));
    }
    total
}

/// Sum of the lanes, halving their number: a chain of additions would take longer than a short run itself.
#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f64 {
    let mut lanes: [f64; LANES] = from_fn(|l| f64::from(lanes[l]));
    let mut half = LANES / 2;
    while half > 0 {
        (0..half).for_each(|l| lanes[l] += lanes[l + half]);
        half /= 2;
    }
    lanes[0]
}

/// The part of γ or β (or their gradients) that belongs to run `index`.
fn part(run: usize, index: usize, values: &[f32]) -> std::ops::Range<usize> {
    let start = index % (values.len() / run).max(1) * run;
    start..if values.is_empty() {
        start
    } else {
        start + run
    }
}

widest! {
    /// y = γ·(x − mean)·rstd + β for each run of `run` elements.
    pub(super) fn forward(
        x: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32], mean: &mut [f32], rstd: &mut [f32], run: usize, eps: f32,
    ) {
        let n = run as f64;
        let kept = mean.iter_mut().zip(rstd);
        for (index, ((x, y), (mean, rstd))) in x.chunks_exact(run).zip(y.chunks_exact_mut(run)).zip(kept).enumerate() {
            let [sum] = sums([x], |[x]| [x]);
            *mean = (sum / n) as f32;
            let [deviation, squares] = sums([x], |[x]| [x - *mean, (x - *mean) * (x - *mean)]);
            let variance = ((squares - deviation * deviation / n) / n).max(0.0);
            *rstd = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
            if gamma.is_empty() {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - *mean) * *rstd);
            } else {
                let part = part(run, index, gamma);
                let affine = gamma[part.clone()].iter().zip(&beta[part]);
                let elements = y.iter_mut().zip(x).zip(affine);
                elements.for_each(|((y, x), (gamma, beta))| *y = (x - *mean) * *rstd * gamma + beta);
            }
        }
    }
}

/// dx (+)= rstd·(g − mean_g − (x − mean)·projection), g = γ·d_y.
#[inline(always)]
fn input_gradient(inputs: [&[f32]; 2], gamma: &[f32], d_x: &mut [f32], at: [f32; 4], write: Write) {
    let [mean, rstd, mean_g, projection] = at;
    let gradient = |x: f32, g: f32| rstd * (g - mean_g - (x - mean) * projection);
    let pairs = d_x.iter_mut().zip(inputs[0].iter().zip(inputs[1]));
    match (gamma.is_empty(), write) {
        (true, Write::Overwrite) => pairs.for_each(|(to, (x, d_y))| *to = gradient(*x, *d_y)),
        (true, Write::Accumulate) => pairs.for_each(|(to, (x, d_y))| *to += gradient(*x, *d_y)),
        (false, Write::Overwrite) => {
            pairs
                .zip(gamma)
                .for_each(|((to, (x, d_y)), gamma)| *to = gradient(*x, gamma * d_y));
        }
        (false, Write::Accumulate) => {
            pairs
                .zip(gamma)
                .for_each(|((to, (x, d_y)), gamma)| *to += gradient(*x, gamma * d_y));
        }
    }
}

widest! {
    /// Gradients of each run of `run` elements; an empty `d_x` is not wanted.
    pub(super) fn backward(
        x: &[f32], d_y: &[f32], gamma: &[f32], mean: &[f32], rstd: &[f32], d_x: &mut [f32], d_gamma: &mut [f32],
        d_beta: &mut [f32], run: usize, write: Write,
    ) {
        let n = run as f64;
        for (index, (x, (&mean, &rstd))) in x.chunks_exact(run).zip(mean.iter().zip(rstd)).enumerate() {
            let d_y = &d_y[index * run..][..run];
            let gamma = &gamma[part(run, index, gamma)];
            let [first, second] = if gamma.is_empty() {
                sums([x, d_y], |[x, d_y]| [d_y, d_y * (x - mean)])
            } else {
                sums([x, d_y, gamma], |[x, d_y, gamma]| [gamma * d_y, gamma * d_y * (x - mean)])
            };
            if !d_x.is_empty() {
                let projection = second * f64::from(rstd) * f64::from(rstd) / n;
                let at = [mean, rstd, (first / n) as f32, projection as f32];
                input_gradient([x, d_y], gamma, &mut d_x[index * run..][..run], at, write);
            }
            if !gamma.is_empty() {
                let part = part(run, index, d_gamma);
                let to = d_gamma[part.clone()].iter_mut().zip(&mut d_beta[part]);
                for ((d_gamma, d_beta), (x, d_y)) in to.zip(x.iter().zip(d_y)) {
                    *d_gamma += d_y * (x - mean) * rstd;
                    *d_beta += d_y;
                }
            }
        }
    }
}
