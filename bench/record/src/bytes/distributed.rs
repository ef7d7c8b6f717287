//! Bytes of one DistributedDataParallel step, and its SyncBatchNorm traffic.
//!
//! Contract: buckets are those after the rebuild of step 1, in gradient-ready order; the first step, with its one
//! unlimited bucket, belongs to the warm-up. Reference: `torch/csrc/distributed/c10d/reducer.cpp`.
use super::{Algorithm, Call, Collective, Traffic};

/// Bytes of an fp32 element, in which gradients, buffers and statistics travel.
pub(super) const F32_BYTES: u64 = 4;

/// Elements of every bucket. The cap closes a bucket after it was reached, so a bucket may overshoot; the first
/// bucket has a cap of its own. `parameters` are element counts in gradient-ready order, caps are in bytes.
pub fn bucket_elements(parameters: &[u64], first_cap_bytes: u64, cap_bytes: u64) -> Vec<u64> {
    let mut buckets = Vec::new();
    let mut open = 0;
    for &elements in parameters {
        open += elements;
        let cap = if buckets.is_empty() {
            first_cap_bytes
        } else {
            cap_bytes
        };
        if open * F32_BYTES >= cap {
            buckets.push(std::mem::take(&mut open));
        }
    }
    if open > 0 {
        buckets.push(open);
    }
    buckets
}

/// Elements of the three all-reduces of a bucket under PowerSGD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LowRank {
    /// Of tensors that are not compressed.
    pub plain: u64,
    /// Of the factors P: Σ n·r.
    pub p: u64,
    /// Of the factors Q: Σ m·r.
    pub q: u64,
}

/// What PowerSGD exchanges for a bucket of tensors of these shapes. A tensor is the matrix of its first dimension and the rest, and is
/// compressed if (n + m)·r is more than `min_compression_rate` times smaller than n·m; vectors never are.
/// Reference: `_should_compress` of `torch/distributed/algorithms/ddp_comm_hooks/powerSGD_hook.py`.
pub fn low_rank_elements(shapes: &[Vec<u64>], rank: u64, min_compression_rate: f64) -> LowRank {
    let mut sum = LowRank::default();
    for shape in shapes {
        let elements: u64 = shape.iter().product();
        let n = shape.first().copied().unwrap_or(1);
        let m = elements / n.max(1);
        let r = rank.min(n).min(m);
        let factors = (n + m) * r;
        if shape.len() > 1 && factors as f64 * min_compression_rate < elements as f64 {
            sum.p += n * r;
            sum.q += m * r;
        } else {
            sum.plain += elements;
        }
    }
    sum
}

/// Sizes of one DDP step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistributedStep {
    /// Number of ranks.
    pub ranks: u64,
    /// Algorithm of the collectives.
    pub algorithm: Algorithm,
    /// Elements of every gradient bucket.
    pub buckets: Vec<u64>,
    /// All buffers in bytes, which rank 0 broadcasts before a forward.
    pub buffer_bytes: u64,
    /// Channels of every SyncBatchNorm layer, forwards and backwards once each.
    pub sync_batch_norm_channels: Vec<u64>,
}

impl DistributedStep {
    /// Phases of `comm.csv` with what `rank` sends and receives in them per step. `None` where the algorithm lacks
    /// one of the collectives.
    pub fn phases(&self, rank: u64) -> Option<Vec<(&'static str, Traffic)>> {
        Some(vec![
            ("all_reduce", self.gradients(rank)?),
            ("buffer_broadcast", self.buffers(rank)?),
            ("sync_batch_norm", self.sync_batch_norm(rank)?),
        ])
    }

    /// All ranks and phases together.
    pub fn total(&self) -> Option<Traffic> {
        (0..self.ranks)
            .map(|rank| {
                Some(
                    self.phases(rank)?
                        .into_iter()
                        .map(|(_, traffic)| traffic)
                        .sum::<Traffic>(),
                )
            })
            .sum()
    }

    fn call(&self, collective: Collective, elements: u64, element_bytes: u64) -> Call {
        Call {
            collective,
            algorithm: self.algorithm,
            elements,
            element_bytes,
            ranks: self.ranks,
        }
    }

    fn gradients(&self, rank: u64) -> Option<Traffic> {
        let calls = self
            .buckets
            .iter()
            .map(|&n| self.call(Collective::AllReduce, n, F32_BYTES).traffic(rank));
        calls.sum()
    }

    /// A broadcast's bytes are linear in its length, so it does not matter how the buffers are grouped.
    fn buffers(&self, rank: u64) -> Option<Traffic> {
        self.call(Collective::Broadcast { root: 0 }, self.buffer_bytes, 1)
            .traffic(rank)
    }

    /// Forward: mean, inverse deviation and count of every rank to every rank. Backward: two sums per channel.
    fn sync_batch_norm(&self, rank: u64) -> Option<Traffic> {
        let layer = |&channels: &u64| {
            let forward = self
                .call(Collective::AllGather, 2 * channels + 1, F32_BYTES)
                .traffic(rank)?;
            let backward = self
                .call(Collective::AllReduce, 2 * channels, F32_BYTES)
                .traffic(rank)?;
            Some(forward + backward)
        };
        self.sync_batch_norm_channels.iter().map(layer).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_bucket_closes_after_it_reached_its_cap() {
        let quarter = MIB / 4;
        // 1 MiB fills the first bucket exactly; then 24 MiB + 2 MiB overshoots the cap of 25 MiB.
        assert_eq!(
            bucket_elements(&[quarter, 24 * quarter, 2 * quarter, 5], MIB, 25 * MIB),
            [quarter, 26 * quarter, 5]
        );
        assert_eq!(bucket_elements(&[7, 9], MIB, 25 * MIB), [16]);
        assert!(bucket_elements(&[], MIB, 25 * MIB).is_empty());
    }

    fn step(algorithm: Algorithm, ranks: u64) -> DistributedStep {
        DistributedStep {
            ranks,
            algorithm,
            buckets: vec![10, 7],
            buffer_bytes: 24,
            sync_batch_norm_channels: vec![3],
        }
    }

    #[test]
    fn a_step_by_hand_over_two_ranks() {
        // All-reduce over 2 ranks sends S in all from each rank: (10 + 7)·4. Rank 0 broadcasts 24 bytes.
        // SyncBN: (2·3 + 1)·4 forwards and 6·4 backwards.
        for algorithm in [Algorithm::SharedDirect, Algorithm::Ring] {
            let total = step(algorithm, 2).total().unwrap();
            assert_eq!(total.sent, 2 * 17 * 4 + 24 + 2 * 28 + 2 * 24);
            assert_eq!(total.received, total.sent);
            let rank0 = step(algorithm, 2).phases(0).unwrap();
            assert_eq!(
                rank0[1].1,
                Traffic {
                    sent: 24,
                    received: 0
                }
            );
        }
    }

    #[test]
    fn an_algorithm_without_all_gather_has_no_sync_batch_norm_figure() {
        assert_eq!(step(Algorithm::BinaryTree, 2).total(), None);
    }

    #[test]
    fn resnet50_on_eight_ranks_is_the_published_figure() {
        // 25,557,032 parameters: 102.2 MB, 178.9 MB sent per rank.
        let call = Call {
            collective: Collective::AllReduce,
            algorithm: Algorithm::Ring,
            elements: 25_557_032,
            element_bytes: 4,
            ranks: 8,
        };
        assert_eq!(call.traffic(3).unwrap().sent, 178_899_224);
    }
}
