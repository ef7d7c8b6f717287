//! How kernels that walk over rows are laid out on the GPU: a thread holds neighbouring channels, a block some channels and a slab of rows.
//!
//! Contract: a function of the shape, of the operands' alignment and of the number of multiprocessors; so results repeat on a GPU.
//! Reference: `kernels/columns.cuh`.
use cudarc::driver::sys::CUdeviceptr;

use super::{BLOCK, Grid, Launch};
use crate::backend::cuda::module::{Columns, Groups};

/// Blocks that each multiprocessor gets of a sum over rows.
const BLOCKS: usize = 4;
/// Rows that each thread of a sum has at least.
const ROWS: usize = 16;
/// Threads side by side in a block, at most.
const LANES: usize = 128;
/// Sides of a grid but the first.
const SIDE: usize = 65_535;

/// Blocks for `samples` of `rows` of `channels`.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    /// Channels of a thread: 4, 2 or 1.
    vector: usize,
    lanes: usize,
    down: usize,
    across: usize,
    samples: usize,
    rows: usize,
    multiprocessors: usize,
    /// Rows of a slab.
    pub(super) rows_a_slab: u64,
    /// Slabs of a sample.
    pub(super) slabs: usize,
}

impl Cut {
    /// `spans` are what is read or written several channels at a time.
    pub(super) fn new(
        l: &Launch<'_>,
        samples: usize,
        rows: usize,
        channels: usize,
        spans: &[CUdeviceptr],
    ) -> Self {
        let fits = |vector: &usize| {
            channels.is_multiple_of(*vector)
                && spans.iter().all(|at| at.is_multiple_of(4 * *vector as u64))
        };
        let vector = [4, 2].into_iter().find(fits).unwrap_or(1);
        let tiles = channels / vector;
        let lanes = tiles.div_ceil(tiles.div_ceil(LANES));
        let down = (BLOCK as usize / lanes).max(1);
        let across = tiles.div_ceil(lanes);
        let multiprocessors = l.device.gpu.multiprocessors as usize;
        let most = (BLOCKS * multiprocessors / (across * samples.max(1))).clamp(1, SIDE);
        let wanted = rows.div_ceil(down * ROWS).clamp(1, most);
        let rows_a_slab = rows.div_ceil(wanted).max(1);
        Self {
            vector,
            lanes,
            down,
            across,
            samples,
            rows,
            multiprocessors,
            rows_a_slab: rows_a_slab as u64,
            slabs: rows.div_ceil(rows_a_slab).max(1),
        }
    }

    /// The kernels that hold as many channels a thread.
    pub(super) fn kernels<'a>(&self, l: &'a Launch<'_>) -> &'a Columns {
        &l.device.gpu.kernels.columns[self.of_vector()]
    }

    /// Those of norms of groups.
    pub(super) fn groups<'a>(&self, l: &'a Launch<'_>) -> &'a Groups {
        &l.device.gpu.kernels.groups[self.of_vector()]
    }

    fn of_vector(&self) -> usize {
        match self.vector {
            4 => 2,
            2 => 1,
            _ => 0,
        }
    }

    /// Blocks of a sum, with so many bytes of shared memory for each channel of each thread.
    pub(super) fn sum(&self, bytes: usize) -> Grid {
        Grid {
            blocks: [self.across as u32, self.slabs as u32, self.samples as u32],
            threads: [self.lanes as u32, self.down as u32],
            shared: (self.lanes * self.down * self.vector * bytes) as u32,
        }
    }

    /// Blocks of what writes every row.
    pub(super) fn walk(&self) -> Grid {
        let together = if self.vector == 1 { 4 } else { 2 };
        let most = (super::WAVES as usize * self.multiprocessors)
            .div_ceil(self.across * self.samples.clamp(1, SIDE));
        Grid {
            blocks: [
                self.across as u32,
                self.rows
                    .div_ceil(self.down * together)
                    .clamp(1, most.min(SIDE)) as u32,
                self.samples.min(SIDE) as u32,
            ],
            threads: [self.lanes as u32, self.down as u32],
            shared: 0,
        }
    }
}

/// Blocks that merge slabs of `n` numbers each.
pub(super) fn finish(n: usize) -> Grid {
    Grid {
        blocks: [n.div_ceil(32) as u32, 1, 1],
        threads: [32, 8],
        shared: 0,
    }
}
