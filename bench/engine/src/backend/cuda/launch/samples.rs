//! Norms of samples by teams of blocks that keep what they read on chip: `kernels/samples.cu`.
//!
//! Contract: a function of the shape, of the operands' alignment and of the GPU; so results repeat on a GPU. Teams of several blocks wait for each
//! other, which only a cooperative launch may do: it starts once all of its blocks can be resident, whatever else is on the GPU.
//! Samples that do not fit on chip are left to `columns.cu` and `groups.cu`.
use cudarc::driver::sys::{CUdeviceptr, CUfunction};

use super::columns::{finish_slabs, vector};
use super::group_norm::{Backward, Forward, Shape, affine};
use super::{Grid, Launch, accumulate, call};
use crate::backend::Result;
use crate::backend::cuda::module::Samples;
use crate::kernel::Affine;
use crate::tensor::Span;

/// Threads of a block.
pub(in crate::backend::cuda) const THREADS: usize = 256;
/// Bytes of samples that a block keeps at most.
pub(in crate::backend::cuda) const STASH: usize = 48 << 10;
/// Of the blocks that fit on a GPU a grid takes so many of [`PARTS`]: collectives have kernels of their own beside it, and a cooperative launch
/// waits where they leave too little.
const SHARE: usize = 7;
const PARTS: usize = 8;
/// Groups of a unit, at most.
const MOST: usize = 64;
/// What each block of a team reads of the others, at most, where there is a choice.
const MERGED: usize = 2304;
/// Elements between the counters of two teams.
const APART: usize = 32;
/// Bytes of what a block tells the others of a group.
const MOMENTS: usize = 16;
const SUMS: usize = 8;

/// As kernels take it: which blocks take what of a sample.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct DeviceTeam {
    batch: u64,
    spatial: u64,
    channels: u32,
    groups: u32,
    unit: u32,
    units: u32,
    across: u32,
    lanes: u32,
    slabs: u32,
    rows: u32,
    keep: u32,
}

/// Channels of a unit, cut into blocks side by side.
#[derive(Clone, Copy)]
struct Unit {
    channels: usize,
    groups: usize,
    across: usize,
    lanes: usize,
    /// Slabs that the rows are cut into at least.
    slabs: usize,
}

impl Unit {
    fn down(self) -> usize {
        THREADS / self.lanes
    }
    /// What each block reads of the others.
    fn merged(self) -> usize {
        self.across * self.slabs * self.groups
    }
}

/// Blocks of a launch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Team {
    of: DeviceTeam,
    /// Samples that are under way at a time.
    together: usize,
    vector: usize,
    shared: usize,
}

impl Team {
    /// For a norm whose kernel keeps so many `kinds` of values of each element, of the type of `x`; none where a sample is too large or
    /// cannot be divided. `spans` are what is read or written several channels at a time.
    pub(super) fn new(
        l: &Launch<'_>,
        shape: Shape,
        (kinds, x): (usize, Span),
        spans: &[CUdeviceptr],
    ) -> Option<Self> {
        let resident = l.of(x).ok()?.resident * l.device.gpu.multiprocessors as usize;
        Self::on(
            resident * SHARE / PARTS,
            shape,
            kinds * x.dtype().size(),
            vector(shape.channels, spans),
        )
    }

    /// With so many blocks at most, `bytes` kept of each element.
    fn on(blocks: usize, shape: Shape, bytes: usize, vector: usize) -> Option<Self> {
        let Shape {
            batch,
            spatial,
            channels,
            groups,
            ..
        } = shape;
        let room = STASH / (THREADS * vector * bytes);
        let width = channels / groups;
        let fitting = (1..=groups.min(MOST))
            .filter(|many| groups.is_multiple_of(*many))
            .filter_map(|many| Self::unit(many, width, spatial, vector, room))
            .filter(|unit| channels / unit.channels * unit.across * unit.slabs <= blocks);
        // The widest one of which blocks need not read too much of each other; else what they read least of.
        let unit = fitting.min_by_key(|unit| match unit.merged() <= MERGED {
            true => (0, usize::MAX - unit.channels),
            false => (1, unit.merged()),
        })?;
        let (units, down) = (channels / unit.channels, unit.down());
        // Rounds as few as they can be, and then teams of as many blocks as there are, while threads have four rows.
        let together = (blocks / (units * unit.across * unit.slabs)).clamp(1, batch.max(1));
        let together = batch.div_ceil(batch.div_ceil(together)).max(1);
        let slabs = (blocks / (units * unit.across * together))
            .min(spatial.div_ceil(4 * down))
            .max(unit.slabs);
        let rows = spatial.div_ceil(slabs);
        let keep = rows.div_ceil(down);
        let of = DeviceTeam {
            batch: batch as u64,
            spatial: spatial as u64,
            channels: channels as u32,
            groups: groups as u32,
            unit: unit.channels as u32,
            units: units as u32,
            across: unit.across as u32,
            lanes: unit.lanes as u32,
            slabs: spatial.div_ceil(rows) as u32,
            rows: rows as u32,
            keep: keep as u32,
        };
        Some(Self {
            of,
            together,
            vector,
            shared: keep * THREADS * vector * bytes,
        })
    }

    /// A unit of `many` groups; none where threads cannot hold its channels.
    fn unit(many: usize, width: usize, spatial: usize, vector: usize, room: usize) -> Option<Unit> {
        let channels = many * width;
        let tiles = channels / vector;
        // One group may lie across several blocks; threads that have no lane do nothing.
        let cuts = if many == 1 { 16 } else { 1 };
        let idle = |across: &usize| ((THREADS % (tiles / across)).max(THREADS / 8), *across);
        let across = (1..=cuts)
            .filter(|across| {
                channels.is_multiple_of(vector)
                    && tiles.is_multiple_of(*across)
                    && tiles / across <= THREADS
            })
            .min_by_key(idle)?;
        let lanes = tiles / across;
        let slabs = spatial.div_ceil(room * (THREADS / lanes));
        // Channels of a thread are of one group where a group is cut, so that each block has one.
        (across == 1 || width.is_multiple_of(vector)).then_some(Unit {
            channels,
            groups: many,
            across,
            lanes,
            slabs,
        })
    }

    /// Blocks of a team.
    pub(super) fn size(&self) -> usize {
        (self.of.across * self.of.slabs) as usize
    }
    fn blocks(&self) -> usize {
        self.together * self.of.units as usize * self.size()
    }
    fn grid(&self) -> Grid {
        Grid {
            shared: self.shared as u32,
            ..Grid::blocks(self.blocks() as u32, THREADS as u32)
        }
    }
    /// Groups of a unit.
    fn groups(&self) -> usize {
        (self.of.groups / self.of.units) as usize
    }
    fn kernels<'a>(&self, l: &'a Launch<'_>, x: Span) -> Result<&'a Samples> {
        Ok(&l.of(x)?.samples[self.vector / 2])
    }
    /// Whether a thread's channels are of one group.
    fn one(&self) -> i32 {
        i32::from((self.of.channels / self.of.groups).is_multiple_of(self.vector as u32))
    }
    /// Slabs of partial sums for γ's and β's gradients.
    fn affine_slabs(&self) -> usize {
        self.together * self.of.slabs as usize
    }

    /// Room for counters, which are zeroed, what blocks tell each other, and `more` elements of 4 bytes: where each lies.
    fn room(&self, l: &mut Launch<'_>, bytes: usize, more: usize) -> Result<[CUdeviceptr; 3]> {
        let several = self.size() > 1;
        let counters = if several {
            self.blocks() / self.size() * APART
        } else {
            0
        };
        let told = if several {
            (2 * self.blocks() * self.groups() * bytes).div_ceil(16) * 4
        } else {
            0
        };
        let arrived = l.room(counters + told + more)?;
        l.zero_at(arrived, counters * size_of::<u32>())?;
        let partial = arrived + (counters * size_of::<u32>()) as u64;
        Ok([arrived, partial, partial + (told * size_of::<f32>()) as u64])
    }
}

/// Enqueues with what the launch asks for: cooperative where blocks wait for each other.
macro_rules! call_team {
    ($launch:expr, $team:expr, $function:expr; $($argument:expr),* $(,)?) => {{
        let function: CUfunction = $function;
        match $team.size() {
            1 => call!($launch, function, $team.grid(); $($argument),*),
            _ => $launch.enqueue_together(
                function, $team.grid(), &mut [$(std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()),*],
            ),
        }
    }};
}

/// Enqueues a forward; β and mean are empty for RMS norm.
pub(super) fn forward(l: &mut Launch<'_>, team: Team, shape: Shape, o: Forward) -> Result<()> {
    let [x, gamma, beta, shortcut] = [o.x, o.gamma, o.beta, o.then.shortcut].map(|span| l.at(span));
    let [y, mean, rstd] = [o.y, o.mean, o.rstd].map(|span| l.at(span));
    let [arrived, partial, _] = team.room(l, MOMENTS, 0)?;
    let (kernels, relu, of) = (team.kernels(l, o.x)?, i32::from(o.then.relu), team.of);
    let affine = affine(shape.affine);
    if o.mean.is_empty() {
        return call_team!(
            l, team, kernels.team_rms_forward;
            x, gamma, shortcut, y, rstd, of, partial, arrived, affine, o.eps, relu,
        );
    }
    call_team!(
        l, team, kernels.team_forward;
        x, gamma, beta, shortcut, y, mean, rstd, of, partial, arrived, affine, o.eps, relu, team.one(),
    )
}

/// Enqueues a backward of γ per channel or none, whose dx is wanted; β's gradient and mean are empty for RMS norm.
pub(super) fn backward(l: &mut Launch<'_>, team: Team, shape: Shape, o: Backward) -> Result<()> {
    let [x, d_y, y, gamma, mean, rstd, d_x] =
        [o.x, o.d_y, o.y, o.gamma, o.mean, o.rstd, o.d_x].map(|span| l.at(span));
    let wanted = shape.affine == Affine::Channel && !(o.d_gamma.is_empty() && o.d_beta.is_empty());
    let slabs = team.affine_slabs();
    let more = if wanted {
        slabs * 2 * shape.channels
    } else {
        0
    };
    let [arrived, partial, sums] = team.room(l, SUMS, more)?;
    let sums = if wanted { sums } else { 0 };
    let (kernels, of) = (team.kernels(l, o.x)?, team.of);
    call_team!(
        l, team, kernels.team_backward;
        x, d_y, y, gamma, mean, rstd, d_x, of, partial, arrived, sums, accumulate(o.write), team.one(),
    )?;
    if !wanted {
        return Ok(());
    }
    let [d_gamma, d_beta] = [o.d_gamma, o.d_beta].map(|span| l.at(span));
    let rows = &l.of(o.x)?.rows;
    call!(
        l, rows.finish_run_affine, finish_slabs(shape.channels, slabs);
        sums, slabs as u32, shape.channels as u32, d_gamma, d_beta,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes() -> Vec<Shape> {
        let mut shapes = Vec::new();
        for (batch, spatial) in [
            (1, 1),
            (1, 9),
            (3, 49),
            (256, 12_544),
            (1024, 784),
            (70_000, 4),
            (2, 50_176),
            (600, 3136),
        ] {
            for (channels, groups) in [
                (1, 1),
                (3, 3),
                (5, 1),
                (6, 3),
                (6, 2),
                (12, 4),
                (16, 16),
                (64, 1),
                (64, 16),
                (64, 64),
                (70, 7),
                (96, 96),
                (250, 1),
                (256, 32),
                (256, 256),
                (600, 600),
                (1031, 1),
                (1200, 600),
                (2048, 1),
                (2048, 32),
                (2048, 2048),
                (6000, 2),
            ] {
                shapes.push(Shape {
                    batch,
                    spatial,
                    channels,
                    groups,
                    affine: Affine::Channel,
                });
            }
        }
        shapes
    }

    /// What `samples.cu` asks of a launch.
    #[test]
    fn every_team_covers_its_samples() {
        let mut teams = 0;
        for shape in shapes() {
            for vector in [4, 2, 1]
                .into_iter()
                .filter(|vector| shape.channels.is_multiple_of(*vector))
            {
                for (blocks, bytes) in [(462, 4), (462, 8), (100, 4), (1, 8)] {
                    let Some(team) = Team::on(blocks, shape, bytes, vector) else {
                        continue;
                    };
                    teams += 1;
                    let (what, of) = (format!("{shape:?} {team:?}"), team.of);
                    let [unit, units, across, lanes] =
                        [of.unit, of.units, of.across, of.lanes].map(|n| n as usize);
                    assert!(team.blocks() >= 1 && team.blocks() <= blocks, "{what}");
                    assert!(team.together <= shape.batch, "{what}");
                    assert_eq!(unit * units, shape.channels, "{what}");
                    assert_eq!(shape.groups % units, 0, "{what}");
                    assert_eq!(across * lanes * vector, unit, "{what}");
                    assert!(lanes <= THREADS, "{what}");
                    assert!(
                        across == 1 || (team.groups() == 1 && team.one() == 1),
                        "{what}"
                    );
                    assert!(team.groups() <= MOST, "{what}");
                    let (slabs, rows) = (of.slabs as usize, of.rows as usize);
                    assert!(
                        slabs * rows >= shape.spatial && (slabs - 1) * rows < shape.spatial,
                        "{what}"
                    );
                    assert!(of.keep as usize * (THREADS / lanes) >= rows, "{what}");
                    assert!(team.shared <= STASH, "{what}");
                }
            }
        }
        assert!(teams > 1000, "{teams}");
    }

    /// What the scenarios of norms run through, on 132 multiprocessors of 4 blocks: in one go, enough of them to hide how long a barrier takes.
    #[test]
    fn images_of_the_scenarios_have_teams() {
        for (batch, spatial, channels, groups, vector, at_once) in [
            (256, 12_544, 64, 1, 4, [6, 3]),
            (256, 12_544, 64, 16, 4, [6, 3]),
            (256, 12_544, 64, 64, 4, [6, 3]),
            (1024, 784, 256, 1, 4, [27, 13]),
            (1024, 784, 256, 256, 4, [23, 12]),
        ] {
            let shape = Shape {
                batch,
                spatial,
                channels,
                groups,
                affine: Affine::Channel,
            };
            for (bytes, least) in [4, 8].into_iter().zip(at_once) {
                let team = Team::on(462, shape, bytes, vector).unwrap();
                assert!(team.together >= least - 1, "{least}: {team:?}");
                assert!(team.blocks() * 10 >= 462 * 8, "{team:?}");
                assert!(team.of.unit >= 32, "{team:?}");
            }
        }
    }
}
