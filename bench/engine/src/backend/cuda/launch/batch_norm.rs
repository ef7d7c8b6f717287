//! Batch norm over rows, with or without rows that are left out, and what it shares with biases: sums of columns.
//!
//! Rows are cut into slabs, one a block; what blocks find is merged in the order of the slabs.
use super::{BLOCK, Grid, Launch, accumulate, call};
use cudarc::driver::sys::CUdeviceptr;

use crate::backend::Result;
use crate::kernel::{Gate, Kernel, Then};
use crate::tensor::Span;

/// Blocks that each multiprocessor gets of a sum over rows.
const BLOCKS: usize = 4;

/// How rows of `channels` are cut: channels a thread, and a grid whose second side is slabs.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Index of the module: 0 for one channel a thread, 1 for four.
    pub(super) module: usize,
    pub(super) vector: usize,
    pub(super) rows_a_slab: u64,
    pub(super) slabs: usize,
    grid: Grid,
}

impl Cut {
    /// For `samples` of `rows` each; `spans` are what is read or written in vectors.
    pub(super) fn new(
        l: &Launch<'_>,
        samples: usize,
        rows: usize,
        channels: usize,
        spans: &[CUdeviceptr],
    ) -> Self {
        let vector = if channels.is_multiple_of(4) && spans.iter().all(|at| at.is_multiple_of(16)) {
            4
        } else {
            1
        };
        let tiles = channels / vector;
        let lanes = tiles.next_power_of_two().min(32);
        let down = BLOCK as usize / lanes;
        let across = tiles.div_ceil(lanes);
        let wanted = (l.multiprocessors() as usize * BLOCKS).div_ceil(across * samples.max(1));
        // A slab has eight rows a thread at least, so that a block's own work outweighs merging it.
        let slabs = wanted.clamp(1, rows.div_ceil(8 * down).max(1));
        let rows_a_slab = rows.div_ceil(slabs).max(1);
        let slabs = rows.div_ceil(rows_a_slab).max(1);
        Self {
            module: usize::from(vector == 4),
            vector,
            rows_a_slab: rows_a_slab as u64,
            slabs,
            grid: Grid {
                blocks: [across as u32, slabs as u32, samples as u32],
                threads: [lanes as u32, down as u32],
                shared: 0,
            },
        }
    }

    /// Its grid, with so many f32 of shared memory for each channel of each thread.
    pub(super) fn grid(&self, floats: usize) -> Grid {
        let shared = BLOCK as usize * self.vector * floats * size_of::<f32>();
        Grid {
            shared: shared as u32,
            ..self.grid
        }
    }
}

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

/// β, γ and 1/deviation of a rectifier that is computed again.
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
    let partial = l.room(cut.slabs * 3 * channels)?;
    let of = &l.device.gpu.kernels.columns[cut.module];
    call!(l, of.moments, cut.grid(3); at, mask.tokens, mask.padding, partial, rows as u64, channels as u32, cut.rows_a_slab)?;
    let [mean, variance, count] = [mean, variance, count].map(|span| l.at(span));
    call!(l, of.finish_statistics, l.over(channels as u64); partial, cut.slabs as u32, channels as u32, mean, variance, count)
}

#[rustfmt::skip]
#[allow(clippy::too_many_arguments, reason = "a kernel's operands are what its formula names")]
fn normalize(
    l: &Launch<'_>, x: Span, mask: Mask, mean: Span, rstd: Span, gamma: Span, beta: Span, y: Span, rows: usize, then: Then,
) -> Result<()> {
    let channels = mean.len();
    let [x, y, shortcut] = [x, y, then.shortcut].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[x, y, shortcut]);
    let of = &l.device.gpu.kernels.columns[cut.module];
    let [mean, rstd, gamma, beta] = [mean, rstd, gamma, beta].map(|span| l.at(span));
    let grid = l.over((rows * channels / cut.vector) as u64);
    call!(l, of.normalize, grid; x, mask.tokens, mask.padding, mean, rstd, gamma, beta, shortcut, y, rows as u64, channels as u32, i32::from(then.relu))
}

#[rustfmt::skip]
fn backward_reduce(l: &mut Launch<'_>, x: Span, d_y: Span, mask: Mask, mean: Span, sums: Span, rows: usize, gate: Gate) -> Result<()> {
    let channels = mean.len();
    let [x, d_y, mean] = [x, d_y, mean].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[x, d_y]);
    let partial = l.room(cut.slabs * 2 * channels)?;
    let [gamma, beta, rstd] = again(l, gate);
    let of = &l.device.gpu.kernels.columns[cut.module];
    let y: CUdeviceptr = 0;
    call!(
        l, of.backward_sums, cut.grid(2);
        x, d_y, y, mask.tokens, mask.padding, mean, gamma, beta, rstd, partial, rows as u64, channels as u32, channels as u32, cut.rows_a_slab,
    )?;
    call!(l, of.finish_sums, l.over(2 * channels as u64); partial, cut.slabs as u32, channels as u32, l.at(sums))
}

#[rustfmt::skip]
#[allow(clippy::too_many_arguments, reason = "a kernel's operands are what its formula names")]
fn backward_input(
    l: &Launch<'_>, x: Span, d_y: Span, mask: Mask, [mean, rstd, gamma, sums, count]: [Span; 5], d_x: Span, rows: usize, write: i32, gate: Gate,
) -> Result<()> {
    let channels = mean.len();
    let [x, d_y, d_x] = [x, d_y, d_x].map(|span| l.at(span));
    let cut = Cut::new(l, 1, rows, channels, &[x, d_y, d_x]);
    let of = &l.device.gpu.kernels.columns[cut.module];
    let [again_gamma, again_beta, again_rstd] = again(l, gate);
    let [mean, rstd, gamma, sums, count] = [mean, rstd, gamma, sums, count].map(|span| l.at(span));
    let grid = l.over((rows * channels / cut.vector) as u64);
    call!(
        l, of.backward_input, grid;
        x, d_y, mask.tokens, mask.padding, mean, rstd, gamma, sums, count, again_gamma, again_beta, again_rstd, d_x, rows as u64, channels as u32, write,
    )
}

#[rustfmt::skip]
fn backward_eval(l: &Launch<'_>, d_y: Span, mask: Mask, rstd: Span, gamma: Span, d_x: Span, rows: usize, write: i32) -> Result<()> {
    let channels = rstd.len();
    let of = &l.device.gpu.kernels.columns[0];
    let [d_y, rstd, gamma, d_x] = [d_y, rstd, gamma, d_x].map(|span| l.at(span));
    let grid = l.over((rows * channels) as u64);
    call!(l, of.backward_eval, grid; d_y, mask.tokens, mask.padding, rstd, gamma, d_x, rows as u64, channels as u32, write)
}

/// d_bias[c] += Σ_r d_y[r, c].
#[rustfmt::skip]
pub(super) fn bias_backward(l: &mut Launch<'_>, d_y: Span, d_bias: Span, rows: usize) -> Result<()> {
    let channels = d_bias.len();
    let at = l.at(d_y);
    let cut = Cut::new(l, 1, rows, channels, &[at]);
    let partial = l.room(cut.slabs * channels)?;
    let of = &l.device.gpu.kernels.columns[cut.module];
    call!(l, of.column_sums, cut.grid(1); at, partial, rows as u64, channels as u32, cut.rows_a_slab)?;
    call!(l, of.finish_column_sums, l.over(channels as u64); partial, cut.slabs as u32, channels as u32, l.at(d_bias))
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    let mask = |l: &Launch<'_>, tokens: Span, padding: usize| Mask { tokens: l.at(tokens), padding: padding as f32 };
    let gpu = std::sync::Arc::clone(&l.device.gpu);
    let of = &gpu.kernels.columns[0];
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
        Kernel::BatchNormalize { x, mean, rstd, gamma, beta, y, rows, then } => {
            normalize(l, x, OPEN, mean, rstd, gamma, beta, y, rows, then)
        }
        Kernel::MaskedNormalize { x, tokens, padding, mean, rstd, gamma, beta, y, rows } => {
            let mask = mask(l, tokens, padding);
            normalize(l, x, mask, mean, rstd, gamma, beta, y, rows, Then::NOTHING)
        }
        Kernel::BatchBackwardReduce { x, d_y, mean, sums, rows, gate } => backward_reduce(l, x, d_y, OPEN, mean, sums, rows, gate),
        Kernel::MaskedBackwardReduce { x, d_y, tokens, padding, mean, sums, rows } => {
            let mask = mask(l, tokens, padding);
            backward_reduce(l, x, d_y, mask, mean, sums, rows, Gate::Open)
        }
        Kernel::BatchBackwardAffine { sums, rstd, d_gamma, d_beta } => {
            let n = rstd.len() as u32;
            call!(l, of.backward_affine, l.over(u64::from(n)); l.at(sums), l.at(rstd), l.at(d_gamma), l.at(d_beta), n)
        }
        Kernel::BatchBackwardInput { x, d_y, mean, rstd, gamma, sums, count, d_x, rows, write, gate } => {
            backward_input(l, x, d_y, OPEN, [mean, rstd, gamma, sums, count], d_x, rows, accumulate(write), gate)
        }
        Kernel::MaskedBackwardInput { x, d_y, tokens, padding, mean, rstd, gamma, sums, count, d_x, rows, write } => {
            let mask = mask(l, tokens, padding);
            backward_input(l, x, d_y, mask, [mean, rstd, gamma, sums, count], d_x, rows, accumulate(write), Gate::Open)
        }
        Kernel::BatchBackwardEval { d_y, rstd, gamma, d_x, rows, write } => backward_eval(l, d_y, OPEN, rstd, gamma, d_x, rows, accumulate(write)),
        Kernel::MaskedBackwardEval { d_y, tokens, padding, rstd, gamma, d_x, rows, write } => {
            let mask = mask(l, tokens, padding);
            backward_eval(l, d_y, mask, rstd, gamma, d_x, rows, accumulate(write))
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
