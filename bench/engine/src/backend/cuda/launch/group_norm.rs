//! Group norm (with layer and instance norm) and RMS norm.
//!
//! A group that is one short run of memory is a block's (`rows.cu`). Larger samples, and groups of some channels, are a team of blocks'
//! (`samples.cu`). What fits neither is a block's where it is a run, or sums over rows (`columns.cu`, `groups.cu`), sample by sample.
use cudarc::driver::sys::CUdeviceptr;

use super::batch_norm::MOMENTS;
use super::columns::{Cut, finish, finish_slabs, vector};
use super::samples::{self, Team};
use super::{BLOCK, Grid, Launch, accumulate, call};
use crate::backend::Result;
use crate::kernel::{Affine, Kernel, Then, Write};
use crate::tensor::Span;

/// Elements of a run beyond which it is cut into slabs of its rows.
const LONG: usize = 32 << 10;
/// Elements of a run that the registers of a warp hold.
const WARP_RUN: usize = 1 << 10;
/// Elements of a run that the registers of a block hold.
const REGISTERS: usize = 8 << 10;
/// Threads of a block of `rows_backward` at most, and the rows that each has under way.
const WHOLE: usize = 512;
const TOGETHER: usize = 4;
/// Threads of it that a multiprocessor has registers for.
const AT_A_TIME: usize = 576;
/// Blocks of a team beyond which a backward had better go through memory once more than have them wait for each other: on an H200, of 822 MB in
/// f32, layer norm took 1.07 ms by teams of 134 blocks and 0.86 by those of 34, by sums over rows 0.98.
const WAITING: usize = 64;
/// Rows that a block of the sums for γ and β has at least.
const ROWS: usize = 64;

pub(super) fn affine(affine: Affine) -> i32 {
    match affine {
        Affine::None => 0,
        Affine::Channel => 1,
        Affine::Element => 2,
    }
}

/// Shape of a norm that looks at a sample at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) batch: usize,
    pub(super) spatial: usize,
    pub(super) channels: usize,
    pub(super) groups: usize,
    pub(super) affine: Affine,
}

impl Shape {
    fn run(&self) -> usize {
        self.spatial * self.channels / self.groups
    }
    /// Whether each group lies in one run that a block takes.
    fn in_runs(&self) -> bool {
        self.spatial == 1 || (self.groups == 1 && self.run() <= LONG)
    }
    /// Whether a block holds a run in registers from the moment that it is read.
    fn in_registers(&self) -> bool {
        self.spatial == 1 || (self.groups == 1 && self.run() <= REGISTERS)
    }
    fn runs(&self) -> Grid {
        let threads = self.run().div_ceil(16).next_multiple_of(32) as u32;
        Grid::blocks((self.batch * self.groups) as u32, threads.clamp(32, 512))
    }
    /// Blocks that finish what slabs of each group held.
    fn per_group(&self) -> Grid {
        Grid {
            blocks: [self.groups as u32, self.batch as u32, 1],
            ..Grid::blocks(1, 64)
        }
    }
}

/// Operands of a forward; β and mean are empty for RMS norm.
#[derive(Clone, Copy)]
pub(super) struct Forward {
    pub(super) x: Span,
    pub(super) gamma: Span,
    pub(super) beta: Span,
    pub(super) y: Span,
    pub(super) mean: Span,
    pub(super) rstd: Span,
    pub(super) eps: f32,
    pub(super) then: Then,
}

/// Operands of a backward; β's gradient and mean are empty for RMS norm.
#[derive(Clone, Copy)]
pub(super) struct Backward {
    pub(super) x: Span,
    pub(super) y: Span,
    pub(super) d_y: Span,
    pub(super) gamma: Span,
    pub(super) mean: Span,
    pub(super) rstd: Span,
    pub(super) d_x: Span,
    pub(super) d_gamma: Span,
    pub(super) d_beta: Span,
    pub(super) write: Write,
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::GroupNormForward { x, gamma, beta, y, mean, rstd, batch, spatial, channels, groups, affine, eps, then } => {
            let shape = Shape { batch, spatial, channels, groups, affine };
            let operands = Forward { x, gamma, beta, y, mean, rstd, eps, then };
            forward(l, shape, operands)
        }
        Kernel::GroupNormBackward { x, y, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta, batch, spatial, channels, groups, affine, write } => {
            let shape = Shape { batch, spatial, channels, groups, affine };
            let operands = Backward { x, y, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta, write };
            backward(l, shape, operands)
        }
        Kernel::RmsNormForward { x, gamma, y, rstd, batch, spatial, channels, affine: of, eps, then } => {
            let shape = Shape { batch, spatial, channels, groups: 1, affine: of };
            forward(l, shape, Forward { x, gamma, beta: Span::EMPTY, y, mean: Span::EMPTY, rstd, eps, then })
        }
        Kernel::RmsNormBackward { x, y, d_y, gamma, rstd, d_x, d_gamma, batch, spatial, channels, affine, write } => {
            let shape = Shape { batch, spatial, channels, groups: 1, affine };
            let (mean, d_beta) = (Span::EMPTY, Span::EMPTY);
            backward(l, shape, Backward { x, y, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta, write })
        }
        _ => unreachable!("only norms of samples come here"),
    }
}

/// By whoever is fastest. On an H200, of 822 MB in f32, teams took 0.63 ms for layer norm and 0.87 for instance norm, sums over rows 0.68 and 0.69:
/// where each channel has a group of its own, a team merges too many.
fn forward(l: &mut Launch<'_>, shape: Shape, o: Forward) -> Result<()> {
    let [x, y, shortcut] = [o.x, o.y, o.then.shortcut].map(|span| l.at(span));
    let [gamma, beta] = [o.gamma, o.beta].map(|span| if_each(shape, l.at(span)));
    let merges_few = o.mean.is_empty() || shape.groups < shape.channels;
    if !shape.in_registers()
        && merges_few
        && let Some(team) = Team::new(l, shape, (1, o.x), &[x, y, shortcut, gamma, beta])
    {
        return samples::forward(l, team, shape, o);
    }
    // RMS norm has no other way.
    match shape.in_runs() || o.mean.is_empty() {
        true => forward_in_runs(l, shape, o),
        false => forward_in_columns(l, shape, o),
    }
}

/// The same, of x and d_y.
fn backward(l: &mut Launch<'_>, shape: Shape, o: Backward) -> Result<()> {
    let spans = [o.x, o.y, o.d_y, o.d_x].map(|span| l.at(span));
    // Gradients of a γ per element are sums over samples, which no team sees.
    if shape.spatial > 1
        && shape.affine != Affine::Element
        && !o.d_x.is_empty()
        && let Some(team) = Team::new(l, shape, (2, o.x), &spans)
        && (o.mean.is_empty() || team.size() <= WAITING)
    {
        return samples::backward(l, team, shape, o);
    }
    if let Some(grid) = whole_rows(
        l.device.gpu.multiprocessors as usize,
        shape,
        vector(shape.channels, &spans),
    ) && !o.d_x.is_empty()
    {
        return backward_in_whole_rows(l, shape, o, grid, vector(shape.channels, &spans));
    }
    match shape.in_runs() || o.mean.is_empty() {
        true => backward_in_runs(l, shape, o),
        false => backward_in_columns(l, shape, o),
    }
}

#[rustfmt::skip]
fn forward_in_runs(l: &Launch<'_>, shape: Shape, o: Forward) -> Result<()> {
    let [x, gamma, beta, shortcut] = [o.x, o.gamma, o.beta, o.then.shortcut].map(|span| l.at(span));
    let [y, mean, rstd] = [o.y, o.mean, o.rstd].map(|span| l.at(span));
    let rows = &l.of(o.x)?.rows;
    let (length, groups, channels, relu) = (shape.run() as u64, shape.groups as u32, shape.channels as u32, i32::from(o.then.relu));
    if shape.run() <= WARP_RUN {
        let runs = (shape.batch * shape.groups) as u64;
        let grid = Grid::blocks(runs.div_ceil(u64::from(BLOCK / 32)) as u32, BLOCK);
        return call!(
            l, rows.warp_forward, grid;
            x, gamma, beta, shortcut, y, mean, rstd, runs, length, groups, channels, affine(shape.affine), o.eps, relu,
        );
    }
    if o.mean.is_empty() {
        return call!(l, rows.rms_forward, shape.runs(); x, gamma, shortcut, y, rstd, length, channels, affine(shape.affine), o.eps, relu);
    }
    call!(
        l, rows.run_forward, shape.runs();
        x, gamma, beta, shortcut, y, mean, rstd, length, groups, channels, affine(shape.affine), o.eps, relu,
    )
}

/// γ or β where it is read several at a time, which is where each element has its own; else 0, which is aligned to anything.
fn if_each(shape: Shape, parameter: CUdeviceptr) -> CUdeviceptr {
    if shape.affine == Affine::Element {
        parameter
    } else {
        0
    }
}

#[rustfmt::skip]
fn forward_in_columns(l: &mut Launch<'_>, shape: Shape, o: Forward) -> Result<()> {
    let [x, gamma, beta, shortcut] = [o.x, o.gamma, o.beta, o.then.shortcut].map(|span| l.at(span));
    let [y, mean, rstd] = [o.y, o.mean, o.rstd].map(|span| l.at(span));
    let cut = Cut::new(l, shape.batch, shape.spatial, shape.channels, &[x, y, shortcut, if_each(shape, gamma), if_each(shape, beta)]);
    let partial = l.room(shape.batch * cut.slabs * MOMENTS * shape.channels)?;
    let (of, by_group) = (cut.kernels(l, o.x)?, cut.groups(l, o.x)?);
    let none: CUdeviceptr = 0;
    let (spatial, channels, groups) = (shape.spatial as u64, shape.channels as u32, shape.groups as u32);
    call!(l, of.moments, cut.sum(16); x, none, 0.0f32, partial, spatial, channels, cut.rows_a_slab)?;
    call!(l, by_group.finish_groups, shape.per_group(); partial, cut.slabs as u32, channels, groups, o.eps, mean, rstd)?;
    let relu = i32::from(o.then.relu);
    call!(
        l, by_group.group_normalize, cut.walk();
        x, mean, rstd, gamma, beta, shortcut, y, spatial, channels, groups, shape.batch as u64, affine(shape.affine), relu,
    )
}

/// Blocks whose threads own elements of each row that comes by; none where a group is no row, or too long a one.
fn whole_rows(multiprocessors: usize, shape: Shape, vector: usize) -> Option<Grid> {
    let four = if vector == 4 { 4 } else { 1 };
    let across = shape.channels.div_ceil(four).next_multiple_of(32);
    if shape.spatial > 1 || shape.groups > 1 || across > WHOLE {
        return None;
    }
    let down = (BLOCK as usize / across).max(1);
    let most = multiprocessors * (AT_A_TIME / (across * down)).max(1);
    Some(Grid {
        blocks: [shape.batch.div_ceil(down * TOGETHER).min(most) as u32, 1, 1],
        threads: [across as u32, down as u32],
        shared: 0,
    })
}

#[rustfmt::skip]
fn backward_in_whole_rows(l: &mut Launch<'_>, shape: Shape, o: Backward, grid: Grid, vector: usize) -> Result<()> {
    let [x, d_y, y, gamma, mean, rstd, d_x] = [o.x, o.d_y, o.y, o.gamma, o.mean, o.rstd, o.d_x].map(|span| l.at(span));
    let wanted = shape.affine != Affine::None && !(o.d_gamma.is_empty() && o.d_beta.is_empty());
    let slabs = (grid.blocks[0] * grid.threads[1]) as usize;
    let partial = if wanted { l.room(slabs * 2 * shape.channels)? } else { 0 };
    let (rows, length) = (shape.batch as u64, shape.channels as u32);
    let of = &l.of(o.x)?.rows;
    call!(
        l, of.rows_backward, grid;
        x, d_y, y, gamma, mean, rstd, d_x, partial, rows, length, accumulate(o.write), i32::from(vector == 4),
    )?;
    if !wanted {
        return Ok(());
    }
    let [d_gamma, d_beta] = [o.d_gamma, o.d_beta].map(|span| l.at(span));
    call!(l, of.finish_run_affine, finish_slabs(shape.channels, slabs); partial, slabs as u32, length, d_gamma, d_beta)
}

#[rustfmt::skip]
fn backward_in_runs(l: &mut Launch<'_>, shape: Shape, o: Backward) -> Result<()> {
    let Shape { batch, spatial, channels, groups, .. } = shape;
    let [x, d_y, gamma, mean, rstd, d_x] = [o.x, o.d_y, o.gamma, o.mean, o.rstd, o.d_x].map(|span| l.at(span));
    // The first kernel of the chain sends d_y through the rectifier where it lies; those behind it find it done.
    let mut y = l.at(o.y);
    let wants_affine = shape.affine != Affine::None && !(o.d_gamma.is_empty() && o.d_beta.is_empty());
    if !o.d_x.is_empty() {
        let rows = &l.of(o.x)?.rows;
        let length = shape.run() as u64;
        call!(
            l, rows.run_backward, shape.runs();
            x, d_y, y, gamma, mean, rstd, d_x, length, groups as u32, channels as u32, affine(shape.affine), accumulate(o.write),
        )?;
        y = 0;
    } else if !wants_affine && y != 0 {
        let n = o.d_y.len() as u64;
        let function = l.of(o.d_y)?.elementwise.gate;
        return call!(l, function, l.by_four(n); y, d_y, n);
    }
    if !wants_affine {
        return Ok(());
    }
    let (elements, rows, positions) = match shape.affine {
        Affine::Element => (spatial * channels, batch, 1),
        _ => (channels, batch * spatial, spatial),
    };
    let across = elements.div_ceil(32);
    let wanted = (4 * l.device.gpu.multiprocessors as usize).div_ceil(across);
    let slabs = wanted.clamp(1, rows.div_ceil(ROWS));
    let rows_a_slab = rows.div_ceil(slabs);
    let slabs = rows.div_ceil(rows_a_slab);
    let partial = l.room(slabs * 2 * elements)?;
    let of = &l.of(o.x)?.rows;
    let grid = Grid { blocks: [across as u32, slabs as u32, 1], threads: [32, 8], shared: 0 };
    call!(
        l, of.run_affine, grid;
        x, d_y, y, mean, rstd, partial, rows as u64, positions as u64, elements as u32, groups as u32, rows_a_slab as u64,
    )?;
    let [d_gamma, d_beta] = [o.d_gamma, o.d_beta].map(|span| l.at(span));
    call!(l, of.finish_run_affine, finish_slabs(elements, slabs); partial, slabs as u32, elements as u32, d_gamma, d_beta)
}

#[rustfmt::skip]
fn backward_in_columns(l: &mut Launch<'_>, shape: Shape, o: Backward) -> Result<()> {
    let [x, y, d_y, gamma, mean, rstd, d_x] = [o.x, o.y, o.d_y, o.gamma, o.mean, o.rstd, o.d_x].map(|span| l.at(span));
    let [d_gamma, d_beta] = [o.d_gamma, o.d_beta].map(|span| l.at(span));
    let cut = Cut::new(l, shape.batch, shape.spatial, shape.channels, &[x, y, d_y, d_x, if_each(shape, gamma)]);
    let floats = shape.batch * cut.slabs * 2 * shape.channels;
    let partial = l.room(floats + 2 * shape.batch * shape.groups)?;
    let sums = partial + (floats * size_of::<f32>()) as u64;
    let (of, by_group) = (cut.kernels(l, o.x)?, cut.groups(l, o.x)?);
    let none: CUdeviceptr = 0;
    let (batch, spatial, channels, groups) = (shape.batch as u64, shape.spatial as u64, shape.channels as u32, shape.groups as u32);
    let (slabs, wants_affine) = (cut.slabs as u32, !(o.d_gamma.is_empty() && o.d_beta.is_empty()));
    if shape.affine == Affine::Element {
        call!(l, by_group.element_sums, cut.sum(8); x, d_y, y, gamma, mean, partial, spatial, channels, groups, cut.rows_a_slab)?;
        call!(l, by_group.finish_group_sums, shape.per_group(); partial, none, slabs, channels, groups, sums)?;
        if wants_affine {
            let each = l.over(spatial * u64::from(channels));
            call!(l, by_group.element_affine, each; x, d_y, mean, rstd, batch, spatial, channels, groups, d_gamma, d_beta)?;
        }
    } else {
        call!(
            l, of.backward_sums, cut.sum(8);
            x, d_y, y, none, 0.0f32, mean, none, none, none, partial, spatial, channels, groups, cut.rows_a_slab,
        )?;
        call!(l, by_group.finish_group_sums, shape.per_group(); partial, gamma, slabs, channels, groups, sums)?;
        if wants_affine && shape.affine == Affine::Channel {
            call!(l, by_group.group_affine, finish(shape.channels); partial, rstd, batch, slabs, channels, groups, d_gamma, d_beta)?;
        }
    }
    if o.d_x.is_empty() {
        return Ok(());
    }
    // d_y has been through the rectifier by now.
    let function = if shape.affine == Affine::Element { by_group.element_backward_input } else { by_group.group_backward_input };
    call!(
        l, function, cut.walk();
        x, d_y, none, gamma, mean, rstd, sums, d_x, spatial, channels, groups, batch, accumulate(o.write),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `rows_backward` asks of a launch.
    #[test]
    fn rows_have_a_thread_for_each_of_their_elements() {
        for (batch, channels) in [
            (1, 1),
            (3, 5),
            (7, 64),
            (16_384, 768),
            (5, 2048),
            (2, 512),
            (9, 513),
        ] {
            let shape = Shape {
                batch,
                spatial: 1,
                channels,
                groups: 1,
                affine: Affine::Element,
            };
            for vector in [4, 1]
                .into_iter()
                .filter(|vector| channels.is_multiple_of(*vector))
            {
                let what = format!("{batch} × {channels} by {vector}");
                let Some(grid) = whole_rows(132, shape, vector) else {
                    assert!(channels / vector > WHOLE, "{what}");
                    continue;
                };
                let [across, down] = grid.threads.map(|n| n as usize);
                assert!(
                    across.is_multiple_of(32) && across * vector >= channels,
                    "{what}"
                );
                assert!(across * down <= WHOLE && grid.blocks[0] > 0, "{what}");
            }
        }
        let images = Shape {
            batch: 2,
            spatial: 4,
            channels: 8,
            groups: 1,
            affine: Affine::None,
        };
        assert!(whole_rows(132, images, 4).is_none());
    }
}
