//! What a library's batch norm computes, in the CPU's own loops: the reference that GPUs' are held against. No CPU trains by it.
use super::batch_norm::{self, Running};
use crate::kernel::Write;

/// What forward reads beside x.
pub(super) struct Affine<'a> {
    pub(super) gamma: &'a [f32],
    pub(super) beta: &'a [f32],
}

/// Running statistics; both empty for none.
pub(super) struct Averages<'a> {
    pub(super) mean: &'a mut [f32],
    pub(super) variance: &'a mut [f32],
    pub(super) momentum: f32,
}

pub(super) fn forward(
    x: &[f32],
    affine: &Affine<'_>,
    y: &mut [f32],
    [mean, rstd]: [&mut [f32]; 2],
    averages: Averages<'_>,
    eps: f32,
) {
    let rows = x.len() / mean.len();
    batch_norm::statistics(x, mean, rstd, rows);
    if !averages.mean.is_empty() {
        let running = Running {
            mean: averages.mean,
            variance: averages.variance,
            tracked: &mut 0,
        };
        batch_norm::update_running(mean, rstd, rows as f32, running, Some(averages.momentum));
    }
    rstd.iter_mut()
        .for_each(|variance| *variance = 1.0 / (*variance + eps).sqrt());
    batch_norm::normalize(
        x,
        mean,
        rstd,
        affine.gamma,
        affine.beta,
        &[],
        false,
        y,
        rows,
    );
}

/// What backward reads.
pub(super) struct Kept<'a> {
    pub(super) x: &'a [f32],
    pub(super) d_y: &'a [f32],
    pub(super) gamma: &'a [f32],
    pub(super) mean: &'a [f32],
    pub(super) rstd: &'a [f32],
}

pub(super) fn backward(
    kept: &Kept<'_>,
    [d_gamma, d_beta]: [&mut [f32]; 2],
    d_x: &mut [f32],
    write: Write,
) {
    let &Kept {
        x,
        d_y,
        gamma,
        mean,
        rstd,
    } = kept;
    let rows = x.len() / mean.len();
    // The library has a workspace for them.
    let mut sums = vec![0.0f32; 2 * mean.len()];
    batch_norm::backward_reduce(x, d_y, mean, None, &mut sums, rows);
    batch_norm::backward_affine(&sums, rstd, d_gamma, d_beta);
    if !d_x.is_empty() {
        let count = rows as f32;
        batch_norm::backward_input(
            x, d_y, mean, rstd, gamma, None, &sums, count, d_x, rows, write,
        );
    }
}

pub(super) fn eval(
    x: &[f32],
    affine: &Affine<'_>,
    mean: &[f32],
    variance: &[f32],
    y: &mut [f32],
    eps: f32,
) {
    let rows = x.len() / mean.len();
    let mut rstd = vec![0.0; mean.len()];
    batch_norm::reciprocal_deviation(variance, &mut rstd, eps);
    batch_norm::normalize(
        x,
        mean,
        &rstd,
        affine.gamma,
        affine.beta,
        &[],
        false,
        y,
        rows,
    );
}
