//! Group norm (with layer and instance norm) and RMS norm.
//!
//! A group that is one run of memory is a block's (`rows.cu`); others, and runs too long for that to fill the GPU, are sums over rows
//! (`columns.cu`), as batch norm's, sample by sample.
use super::batch_norm::Cut;
use super::{Grid, Launch, accumulate, call};
use cudarc::driver::sys::CUdeviceptr;

use crate::backend::{BackendError, Result};
use crate::kernel::{Affine, Kernel, Write};
use crate::tensor::Span;

/// Elements of a run beyond which it is cut into slabs of its rows.
const LONG: usize = 32 << 10;

fn affine(affine: Affine) -> i32 {
    match affine {
        Affine::None => 0,
        Affine::Channel => 1,
        Affine::Element => 2,
    }
}

/// Shape of a norm that looks at a sample at a time.
#[derive(Clone, Copy)]
struct Shape {
    batch: usize,
    spatial: usize,
    channels: usize,
    groups: usize,
    affine: Affine,
}

impl Shape {
    fn run(&self) -> usize {
        self.spatial * self.channels / self.groups
    }
    /// Whether each group lies in one run.
    fn in_runs(&self) -> bool {
        self.groups == 1 || self.spatial == 1
    }
    /// Threads of a block that takes a run.
    fn threads(&self) -> u32 {
        (self.run().div_ceil(4).next_power_of_two() as u32).clamp(32, 1024)
    }
    fn runs(&self) -> Grid {
        Grid::blocks((self.batch * self.groups) as u32, self.threads())
    }
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::GroupNormForward { x, gamma, beta, y, mean, rstd, batch, spatial, channels, groups, affine: of, eps, then } => {
            let shape = Shape { batch, spatial, channels, groups, affine: of };
            let [gamma, beta, shortcut, mean, rstd] = [gamma, beta, then.shortcut, mean, rstd].map(|span| l.at(span));
            let (x, y, relu) = (l.at(x), l.at(y), i32::from(then.relu));
            if shape.in_runs() && shape.run() <= LONG {
                let rows = &l.device.gpu.kernels.rows;
                return call!(
                    l, rows.run_forward, shape.runs();
                    x, gamma, beta, shortcut, y, mean, rstd, shape.run() as u64, groups as u32, channels as u32, affine(of), eps, relu,
                );
            }
            let cut = Cut::new(l, batch, spatial, channels, &[x, y, shortcut]);
            let partial = l.room(batch * cut.slabs * 3 * channels)?;
            let columns = &l.device.gpu.kernels.columns[cut.module];
            let none: CUdeviceptr = 0;
            call!(l, columns.moments, cut.grid(3); x, none, 0.0f32, partial, spatial as u64, channels as u32, cut.rows_a_slab)?;
            let grid = Grid { blocks: [groups as u32, batch as u32, 1], ..Grid::blocks(1, 256) };
            call!(l, columns.finish_groups, grid; partial, cut.slabs as u32, channels as u32, groups as u32, eps, mean, rstd)?;
            let grid = l.over((batch * spatial * channels / cut.vector) as u64);
            call!(
                l, columns.group_normalize, grid;
                x, mean, rstd, gamma, beta, shortcut, y, spatial as u64, channels as u32, groups as u32, batch as u64, affine(of), relu,
            )
        }
        Kernel::GroupNormBackward { x, y, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta, batch, spatial, channels, groups, affine, write } => {
            let shape = Shape { batch, spatial, channels, groups, affine };
            gate(l, y, d_y)?;
            let spans = Spans { x, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta };
            if shape.in_runs() && (shape.run() <= LONG || affine == Affine::Element) {
                return in_runs(l, shape, spans, write);
            }
            in_columns(l, shape, spans, write)
        }
        Kernel::RmsNormForward { x, gamma, y, rstd, batch, spatial, channels, affine: of, eps, then } => {
            let shape = Shape { batch, spatial, channels, groups: 1, affine: of };
            let [x, gamma, shortcut, y, rstd] = [x, gamma, then.shortcut, y, rstd].map(|span| l.at(span));
            let rows = &l.device.gpu.kernels.rows;
            call!(
                l, rows.rms_forward, shape.runs();
                x, gamma, shortcut, y, rstd, shape.run() as u64, channels as u32, affine(of), eps, i32::from(then.relu),
            )
        }
        Kernel::RmsNormBackward { x, y, d_y, gamma, rstd, d_x, d_gamma, batch, spatial, channels, affine, write } => {
            let shape = Shape { batch, spatial, channels, groups: 1, affine };
            gate(l, y, d_y)?;
            let spans = Spans { x, d_y, gamma, mean: Span::EMPTY, rstd, d_x, d_gamma, d_beta: Span::EMPTY };
            in_runs(l, shape, spans, write)
        }
        _ => unreachable!("only norms of samples come here"),
    }
}

/// Operands of a backward.
#[derive(Clone, Copy)]
struct Spans {
    x: Span,
    d_y: Span,
    gamma: Span,
    mean: Span,
    rstd: Span,
    d_x: Span,
    d_gamma: Span,
    d_beta: Span,
}

/// d_y through the rectifier, where there is one. It is written, since whoever added to the norm's output reads it too.
fn gate(l: &Launch<'_>, y: Span, d_y: Span) -> Result<()> {
    if y.is_empty() {
        return Ok(());
    }
    let n = d_y.len() as u64;
    let function = l.device.gpu.kernels.elementwise.gate;
    call!(l, function, l.over(n); l.at(y), l.at(d_y), n)
}

/// Rows that a block of `run_affine` adds up at least.
const ROWS: usize = 64;

#[rustfmt::skip]
fn in_runs(l: &mut Launch<'_>, shape: Shape, s: Spans, write: Write) -> Result<()> {
    let Shape { batch, spatial, channels, groups, .. } = shape;
    let none: CUdeviceptr = 0;
    let [x, d_y, gamma, mean, rstd, d_x] = [s.x, s.d_y, s.gamma, s.mean, s.rstd, s.d_x].map(|span| l.at(span));
    if !s.d_x.is_empty() {
        let rows = &l.device.gpu.kernels.rows;
        call!(
            l, rows.run_backward, shape.runs();
            x, d_y, none, gamma, mean, rstd, d_x, shape.run() as u64, groups as u32, channels as u32, affine(shape.affine), accumulate(write),
        )?;
    }
    let (elements, rows, positions) = match shape.affine {
        Affine::None => return Ok(()),
        Affine::Channel => (channels, batch * spatial, spatial),
        Affine::Element if groups == 1 || spatial == 1 => (spatial * channels, batch, 1),
        Affine::Element => return Err(BackendError::Unsupported("γ per element of groups that are not one run")),
    };
    if s.d_gamma.is_empty() && s.d_beta.is_empty() {
        return Ok(());
    }
    let across = elements.div_ceil(32);
    let wanted = (4 * l.multiprocessors() as usize).div_ceil(across);
    let slabs = wanted.clamp(1, rows.div_ceil(ROWS));
    let rows_a_slab = rows.div_ceil(slabs);
    let slabs = rows.div_ceil(rows_a_slab);
    let partial = l.room(slabs * 2 * elements)?;
    let of = &l.device.gpu.kernels.rows;
    let grid = Grid { blocks: [across as u32, slabs as u32, 1], threads: [32, 8], shared: 0 };
    call!(
        l, of.run_affine, grid;
        x, d_y, none, mean, rstd, partial, rows as u64, positions as u64, elements as u32, groups as u32, rows_a_slab as u64,
    )?;
    let [d_gamma, d_beta] = [s.d_gamma, s.d_beta].map(|span| l.at(span));
    call!(l, of.finish_run_affine, l.over(elements as u64); partial, slabs as u32, elements as u32, d_gamma, d_beta)
}

#[rustfmt::skip]
fn in_columns(l: &mut Launch<'_>, shape: Shape, s: Spans, write: Write) -> Result<()> {
    let Shape { batch, spatial, channels, groups, affine } = shape;
    if affine == Affine::Element {
        return Err(BackendError::Unsupported("γ per element of groups that are not one run"));
    }
    let [x, d_y, gamma, mean, rstd, d_x] = [s.x, s.d_y, s.gamma, s.mean, s.rstd, s.d_x].map(|span| l.at(span));
    let [d_gamma, d_beta] = [s.d_gamma, s.d_beta].map(|span| l.at(span));
    let cut = Cut::new(l, batch, spatial, channels, &[x, d_y, d_x]);
    let floats = batch * cut.slabs * 2 * channels;
    let partial = l.room(floats + 2 * batch * groups)?;
    let sums = partial + (floats * size_of::<f32>()) as u64;
    let of = &l.device.gpu.kernels.columns[cut.module];
    let none: CUdeviceptr = 0;
    call!(
        l, of.backward_sums, cut.grid(2);
        x, d_y, none, none, 0.0f32, mean, none, none, none, partial, spatial as u64, channels as u32, groups as u32, cut.rows_a_slab,
    )?;
    if affine == Affine::Channel && !(s.d_gamma.is_empty() && s.d_beta.is_empty()) {
        call!(
            l, of.group_affine, l.over(channels as u64);
            partial, rstd, batch as u64, cut.slabs as u32, channels as u32, groups as u32, d_gamma, d_beta,
        )?;
    }
    if s.d_x.is_empty() {
        return Ok(());
    }
    let grid = Grid { blocks: [groups as u32, batch as u32, 1], ..Grid::blocks(1, 256) };
    call!(l, of.finish_group_sums, grid; partial, gamma, cut.slabs as u32, channels as u32, groups as u32, sums)?;
    let grid = l.over((batch * spatial * channels / cut.vector) as u64);
    call!(
        l, of.group_backward_input, grid;
        x, d_y, none, gamma, mean, rstd, sums, d_x, spatial as u64, channels as u32, groups as u32, batch as u64, accumulate(write),
    )
}
