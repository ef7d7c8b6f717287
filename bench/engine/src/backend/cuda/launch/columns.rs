//! How kernels that walk over rows are laid out on the GPU: a thread holds neighbouring channels, a block some channels and a slab of rows.
//!
//! Contract: a function of the shape, of the operands' alignment and of the number of multiprocessors; so results repeat on a GPU.
//! Reference: `kernels/columns.cuh`.
use cudarc::driver::sys::CUdeviceptr;

use super::{BLOCK, Grid, Launch};
use crate::backend::Result;
use crate::backend::cuda::module::{Columns, Groups};
use crate::tensor::Span;

/// Blocks that each multiprocessor gets of a sum over rows: as many as it holds at once, which the kernels' bounds see to. One more would wait
/// until others have ended, and then have the multiprocessor to itself.
const BLOCKS: usize = 3;
/// Rows that each thread of a sum has at least.
const ROWS: usize = 16;
/// Threads side by side in a block, at most.
const LANES: usize = 128;
const SIDE: usize = super::SIDE as usize;

/// Neighbouring channels that a thread can hold; `spans` are what is read or written so many at a time.
pub(super) fn vector(channels: usize, spans: &[CUdeviceptr]) -> usize {
    let fits = |vector: &usize| {
        channels.is_multiple_of(*vector)
            && spans.iter().all(|at| at.is_multiple_of(4 * *vector as u64))
    };
    [4, 2].into_iter().find(fits).unwrap_or(1)
}

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
    /// `spans` are what is read or written several channels at a time. They are asked to be aligned as floats are, which for narrower
    /// values is more than is needed.
    pub(super) fn new(
        l: &Launch<'_>,
        samples: usize,
        rows: usize,
        channels: usize,
        spans: &[CUdeviceptr],
    ) -> Self {
        Self::on(
            l.device.gpu.multiprocessors as usize,
            samples,
            rows,
            channels,
            spans,
        )
    }

    fn on(
        multiprocessors: usize,
        samples: usize,
        rows: usize,
        channels: usize,
        spans: &[CUdeviceptr],
    ) -> Self {
        let vector = vector(channels, spans);
        let tiles = channels / vector;
        let lanes = tiles.div_ceil(tiles.div_ceil(LANES));
        let down = (BLOCK as usize / lanes).max(1);
        let across = tiles.div_ceil(lanes);
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

    /// The kernels that hold as many channels a thread, for values of the type of `x`.
    pub(super) fn kernels<'a>(&self, l: &'a Launch<'_>, x: Span) -> Result<&'a Columns> {
        Ok(&l.of(x)?.columns[self.of_vector()])
    }

    /// Those of norms of groups.
    pub(super) fn groups<'a>(&self, l: &'a Launch<'_>, x: Span) -> Result<&'a Groups> {
        Ok(&l.of(x)?.groups[self.of_vector()])
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

/// The same of many slabs, which more threads read at a time.
pub(super) fn finish_slabs(n: usize, slabs: usize) -> Grid {
    Grid {
        threads: [32, slabs.next_power_of_two().clamp(8, 32) as u32],
        ..finish(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kernels of `columns.cu` ask of a launch.
    #[test]
    fn every_shape_has_blocks_that_cover_it() {
        for multiprocessors in [1, 108, 132, 160] {
            for (samples, rows) in [
                (1, 1),
                (1, 1000),
                (1, 802_816),
                (7, 12_544),
                (64, 49),
                (70_000, 4),
            ] {
                for channels in [1, 2, 3, 5, 16, 64, 70, 130, 256, 2048] {
                    let cut = Cut::on(multiprocessors, samples, rows, channels, &[256, 4096]);
                    let what = format!("{multiprocessors} {samples} {rows} {channels}");
                    assert_eq!(channels % cut.vector, 0, "{what}");
                    assert!(cut.lanes * cut.down <= BLOCK as usize, "{what}");
                    assert!(cut.across * cut.lanes * cut.vector >= channels, "{what}");
                    assert!(
                        (cut.across - 1) * cut.lanes * cut.vector < channels,
                        "{what}"
                    );
                    let covered = cut.slabs as u64 * cut.rows_a_slab;
                    assert!(
                        covered >= rows as u64 && covered - cut.rows_a_slab < rows as u64,
                        "{what}"
                    );
                    for grid in [cut.sum(16), cut.walk()] {
                        assert!(grid.blocks.iter().all(|side| *side > 0), "{what}");
                        assert!(grid.blocks[1] as usize <= SIDE, "{what}");
                        // 48 KiB are there without asking for more.
                        assert!(grid.shared <= 48 << 10, "{what}: {}", grid.shared);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_aligned_is_read_one_by_one() {
        let vector = |channels, spans: &[u64]| Cut::on(132, 1, 100, channels, spans).vector;
        assert_eq!(vector(64, &[256, 0]), 4);
        assert_eq!(vector(64, &[256, 264]), 2);
        assert_eq!(vector(64, &[256, 260]), 1);
        assert_eq!(vector(6, &[256]), 2);
        assert_eq!(vector(5, &[256]), 1);
    }
}
