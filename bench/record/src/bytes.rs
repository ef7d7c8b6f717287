//! What each strategy must move, to the byte: sums over the actual chunks of the named algorithm.
//!
//! Contract: pure arithmetic over element counts; nothing here looks at a counter, and the engine, which counts,
//! does not depend on this crate. Chunks are split by elements, so a figure for an uneven split is a whole number
//! of elements and not a rounded `(N−1)/N·S`. One rank alone moves nothing.
//! Reference: METHODOLOGY.md, "Bytes three ways"; NVIDIA nccl-tests, `doc/PERFORMANCE.md`.
pub mod collective;
pub mod data_parallel;
pub mod distributed;
pub mod sharded;

pub use collective::{Algorithm, Call, Collective};
pub use data_parallel::{DataParallelStep, Gathered, PhaseTraffic, coalesced};
pub use distributed::{DistributedStep, LowRank, bucket_elements, low_rank_elements};
pub use sharded::{ShardedStage, divisible_buckets, optimizer_shard_calls, sharded_step};

use std::ops::{Add, AddAssign, Mul};

/// Bytes that one rank (or device) sends and receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Written for others, or read by others from this rank.
    pub sent: u64,
    /// Read from others, or written by others for this rank.
    pub received: u64,
}

impl Add for Traffic {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            received: self.received + other.received,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<u64> for Traffic {
    type Output = Self;
    fn mul(self, times: u64) -> Self {
        Self {
            sent: self.sent * times,
            received: self.received * times,
        }
    }
}

impl std::iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(traffic: I) -> Self {
        traffic.fold(Self::default(), Add::add)
    }
}

/// Elements of chunk `index` when `elements` are split over `ranks`: the first `elements % ranks` chunks get one more.
///
/// # Panics
/// When `ranks` is 0.
pub fn split(elements: u64, ranks: u64, index: u64) -> u64 {
    elements / ranks + u64::from(index < elements % ranks)
}

/// Samples of every chunk when DP scatters `batch` samples over `devices`: chunks of ceil(batch / devices), so 10
/// over 4 gives 3, 3, 3, 1 and 9 over 4 gives 3, 3, 3 on three devices.
///
/// # Panics
/// When `devices` is 0.
pub fn scatter_chunks(batch: u64, devices: u64) -> Vec<u64> {
    let chunk = batch.div_ceil(devices);
    let mut left = batch;
    let mut chunks = Vec::new();
    while left > 0 {
        chunks.push(chunk.min(left));
        left -= chunk.min(left);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dp_chunks_are_those_of_torch_chunk() {
        assert_eq!(scatter_chunks(10, 4), [3, 3, 3, 1]);
        assert_eq!(scatter_chunks(9, 4), [3, 3, 3]);
        assert_eq!(scatter_chunks(2, 4), [1, 1]);
        assert_eq!(scatter_chunks(8, 1), [8]);
        assert!(scatter_chunks(0, 3).is_empty());
    }

    #[test]
    fn a_split_gives_the_remainder_to_the_first_chunks() {
        assert_eq!(
            (0..4).map(|i| split(10, 4, i)).collect::<Vec<_>>(),
            [3, 3, 2, 2]
        );
        assert_eq!(
            (0..4).map(|i| split(2, 4, i)).collect::<Vec<_>>(),
            [1, 1, 0, 0]
        );
    }
}
