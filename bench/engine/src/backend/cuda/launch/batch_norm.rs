//! Batch norm over rows, with or without rows that are left out, and what it shares with biases: sums of columns.
//!
//! Rows are cut into slabs, one a block; what blocks find is merged in a fixed tree.
use cudarc::driver::sys::CUdeviceptr;

use super::columns::{Cut, finish};
use super::{BLOCK, Grid, Launch, accumulate, call};
use crate::backend::Result;
use crate::kernel::{Gate, Kernel, Then, Write};
use crate::tensor::Span;

/// Numbers that a slab's moments are: count, mean, what the mean's rounding left, squared distances.
pub(super) const MOMENTS: usize = 4;

/// Tokens of rows that may be left out; none for batch norm proper.
#[derive(Clone, Copy)]
struct Mask {
    tokens: CUdeviceptr,
    padding: f32,
}

const OPEN: Mask = Mask {
    tokens: 0,
    padding: 0.0,
};

/// γ, β and 1/deviation of a rectifier that is computed again.
fn again(l: &Launch<'_>, gate: Gate) -> [CUdeviceptr; 3] {
    match gate {
        Gate::Open => [0; 3],
        Gate::Again { beta, gamma, rstd } => [l.at(gamma), l.at(beta), l.at(rstd)],
    }
}

#[rustfmt::skip]
fn statistics(l: &mut Launch<'_>, x: Span, mask: Mask, mean: Span, variance: Span, count: Span, rows: usize) -> Result<()> {
    let channels = mean.len();
    let at = l.at(x);
    let cut = Cut::new(l, 1, rows, channels, &[at]);
    let partial = l.room(cut.slabs * MOMENTS * channels)?;
    let of = cut.kernels(l, x)?;
    call!(l, of.moments, cut.sum(16); at, mask.tokens, mask.padding, partial, rows as u64, channels as u32, cut.rows_a_slab)?;
    let [mean, variance, count] = [mean, variance, count].map(|span| l.at(span));
    call!(l, of.finish_statistics, finish(channels); partial, cut.slabs as u32, channels as u32, mean, variance, count)
}

#[rustfmt::skip]
fn normalize(l: &Launch<'_>, x: Span, mask: Mask, [mean, rstd, gamma, beta]: [Span; 4], y: Span, rows: usize, then: Then) -> Result<()> {
    let channels = mean.len();
    let [at, to, shortcut] = [x, y, then.shortcut].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[at, to, shortcut]);
    let of = cut.kernels(l, x)?;
    let [mean, rstd, gamma, beta] = [mean, rstd, gamma, beta].map(|span| l.at(span));
    let relu = i32::from(then.relu);
    call!(
        l, of.normalize, cut.walk();
        at, mask.tokens, mask.padding, mean, rstd, gamma, beta, shortcut, to, rows as u64, channels as u32, relu,
    )
}

#[rustfmt::skip]
fn backward_reduce(l: &mut Launch<'_>, [x, d_y, mean, sums]: [Span; 4], mask: Mask, rows: usize, gate: Gate) -> Result<()> {
    let channels = mean.len();
    let values = x;
    let [x, d_y, mean, sums] = [x, d_y, mean, sums].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[x, d_y]);
    let partial = l.room(cut.slabs * 2 * channels)?;
    let [gamma, beta, rstd] = again(l, gate);
    let of = cut.kernels(l, values)?;
    let y: CUdeviceptr = 0;
    let (all, width) = (rows as u64, channels as u32);
    call!(
        l, of.backward_sums, cut.sum(8);
        x, d_y, y, mask.tokens, mask.padding, mean, gamma, beta, rstd, partial, all, width, width, cut.rows_a_slab,
    )?;
    call!(l, of.finish_sums, finish(2 * channels); partial, cut.slabs as u32, width, sums)
}

#[rustfmt::skip]
fn backward_input(
    l: &Launch<'_>, [x, d_y, d_x]: [Span; 3], mask: Mask, [mean, rstd, gamma, sums, count]: [Span; 5], rows: usize, write: Write, gate: Gate,
) -> Result<()> {
    let channels = mean.len();
    let values = x;
    let [x, d_y, d_x] = [x, d_y, d_x].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[x, d_y, d_x]);
    let of = cut.kernels(l, values)?;
    let [again_gamma, again_beta, again_rstd] = again(l, gate);
    let [mean, rstd, gamma, sums, count] = [mean, rstd, gamma, sums, count].map(|span| l.at(span));
    let (all, width) = (rows as u64, channels as u32);
    call!(
        l, of.backward_input, cut.walk();
        x, d_y, mask.tokens, mask.padding, mean, rstd, gamma, sums, count, again_gamma, again_beta, again_rstd, d_x, all, width, accumulate(write),
    )
}

#[rustfmt::skip]
fn backward_eval(l: &Launch<'_>, [d_y, d_x]: [Span; 2], mask: Mask, [rstd, gamma]: [Span; 2], rows: usize, write: Write) -> Result<()> {
    let channels = rstd.len();
    let values = d_y;
    let [d_y, rstd, gamma, d_x] = [d_y, rstd, gamma, d_x].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[d_y, d_x]);
    let of = cut.kernels(l, values)?;
    call!(
        l, of.backward_eval, cut.walk();
        d_y, mask.tokens, mask.padding, rstd, gamma, d_x, rows as u64, channels as u32, accumulate(write),
    )
}

/// d_bias[c] += Σ_r d_y[r, c].
#[rustfmt::skip]
pub(super) fn bias_backward(l: &mut Launch<'_>, d_y: Span, d_bias: Span, rows: usize) -> Result<()> {
    let channels = d_bias.len();
    let [at, d_bias] = [d_y, d_bias].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[at]);
    let partial = l.room(cut.slabs * channels)?;
    let of = cut.kernels(l, d_y)?;
    call!(l, of.column_sums, cut.sum(4); at, partial, rows as u64, channels as u32, cut.rows_a_slab)?;
    call!(l, of.finish_column_sums, finish(channels); partial, cut.slabs as u32, channels as u32, d_bias, 1i32)
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    let mask = |l: &Launch<'_>, tokens: Span, padding: usize| Mask { tokens: l.at(tokens), padding: padding as f32 };
    let gpu = std::sync::Arc::clone(&l.device.gpu);
    // What follows the sums touches no values.
    let of = &gpu.kernels.wide.columns[0];
    match *kernel {
        Kernel::BatchStatistics { x, mean, variance, rows } => statistics(l, x, OPEN, mean, variance, Span::EMPTY, rows),
        Kernel::MaskedStatistics { x, tokens, padding, mean, variance, count, rows } => {
            let mask = mask(l, tokens, padding);
            statistics(l, x, mask, mean, variance, count, rows)
        }
        Kernel::ReciprocalDeviation { variance, rstd, eps } => {
            let n = variance.len() as u32;
            call!(l, of.reciprocal_deviation, l.over(u64::from(n)); l.at(variance), l.at(rstd), n, eps)
        }
        Kernel::UpdateRunning { mean, variance, count, running_mean, running_variance, tracked, momentum } => {
            let n = mean.len() as u32;
            let [mean, variance, count, running_mean] = [mean, variance, count, running_mean].map(|span| l.at(span));
            let (running_variance, tracked) = (l.at(running_variance), l.at(tracked));
            let momentum = momentum.unwrap_or(-1.0);
            call!(l, of.update_running, Grid::blocks(1, BLOCK); mean, variance, count, running_mean, running_variance, tracked, n, momentum)
        }
        Kernel::BatchNormalize { x, mean, rstd, gamma, beta, y, rows, then } => normalize(l, x, OPEN, [mean, rstd, gamma, beta], y, rows, then),
        Kernel::MaskedNormalize { x, tokens, padding, mean, rstd, gamma, beta, y, rows } => {
            normalize(l, x, mask(l, tokens, padding), [mean, rstd, gamma, beta], y, rows, Then::NOTHING)
        }
        Kernel::BatchBackwardReduce { x, d_y, mean, sums, rows, gate } => backward_reduce(l, [x, d_y, mean, sums], OPEN, rows, gate),
        Kernel::MaskedBackwardReduce { x, d_y, tokens, padding, mean, sums, rows } => {
            let mask = mask(l, tokens, padding);
            backward_reduce(l, [x, d_y, mean, sums], mask, rows, Gate::Open)
        }
        Kernel::BatchBackwardAffine { sums, rstd, d_gamma, d_beta } => {
            let n = rstd.len() as u32;
            call!(l, of.backward_affine, l.over(u64::from(n)); l.at(sums), l.at(rstd), l.at(d_gamma), l.at(d_beta), n)
        }
        Kernel::BatchBackwardInput { x, d_y, mean, rstd, gamma, sums, count, d_x, rows, write, gate } => {
            backward_input(l, [x, d_y, d_x], OPEN, [mean, rstd, gamma, sums, count], rows, write, gate)
        }
        Kernel::MaskedBackwardInput { x, d_y, tokens, padding, mean, rstd, gamma, sums, count, d_x, rows, write } => {
            backward_input(l, [x, d_y, d_x], mask(l, tokens, padding), [mean, rstd, gamma, sums, count], rows, write, Gate::Open)
        }
        Kernel::BatchBackwardEval { d_y, rstd, gamma, d_x, rows, write } => backward_eval(l, [d_y, d_x], OPEN, [rstd, gamma], rows, write),
        Kernel::MaskedBackwardEval { d_y, tokens, padding, rstd, gamma, d_x, rows, write } => {
            backward_eval(l, [d_y, d_x], mask(l, tokens, padding), [rstd, gamma], rows, write)
        }
        Kernel::SyncMerge { gathered, ranks, channels, eps, mean, variance, rstd, count } => {
            let n = channels as u32;
            let [mean, variance, rstd, count] = [mean, variance, rstd, count].map(|span| l.at(span));
            call!(l, of.sync_merge, l.over(u64::from(n)); l.at(gathered), ranks as u32, n, eps, mean, variance, rstd, count)
        }
        Kernel::SyncPack { mean, rstd, count, packed } => {
            let n = mean.len() as u32;
            call!(l, of.sync_pack, l.over(u64::from(n)); l.at(mean), l.at(rstd), l.at(count), l.at(packed), n)
        }
        _ => unreachable!("every other kernel has a family of its own"),
    }
}
