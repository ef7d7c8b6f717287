//! Bytes of the sharded data-parallel variants: ZeRO's stages as published, and the ZeRO-1 step that is run here.
//!
//! Contract: shards are equal, the last one padded, as ZeRO and FSDP pad them; so every rank moves the same.
//! Reference: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", 2020, section 7.
use super::distributed::F32_BYTES;
use super::{Algorithm, Call, Collective, Traffic};

/// What a sharded data-parallel variant keeps on one rank only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardedStage {
    /// Optimizer state (ZeRO-1).
    Optimizer,
    /// Optimizer state and gradients (ZeRO-2).
    Gradients,
    /// Parameters too (ZeRO-3, FSDP full shard): they are gathered for the forward and again for the backward.
    Parameters,
}

/// One rank's bytes of a sharded step on a ring. Shards are equal, the last one padded, as ZeRO and FSDP pad them.
///
/// # Panics
/// When `ranks` is 0.
pub fn sharded_step(
    stage: ShardedStage,
    elements: u64,
    element_bytes: u64,
    ranks: u64,
    rank: u64,
) -> Traffic {
    let shard = elements.div_ceil(ranks);
    let call = |collective, elements| {
        let call = Call {
            collective,
            algorithm: Algorithm::Ring,
            elements,
            element_bytes,
            ranks,
        };
        call.traffic(rank).unwrap_or_default()
    };
    let gathers = match stage {
        ShardedStage::Optimizer | ShardedStage::Gradients => 1,
        ShardedStage::Parameters => 2,
    };
    call(Collective::ReduceScatter, shard * ranks) + call(Collective::AllGather, shard) * gathers
}

/// Elements of every bucket once each is divisible by the number of ranks: what is left over goes to the next bucket, and the
/// last is padded. A bucket that is left with nothing is none. `buckets` are those of DDP.
///
/// # Panics
/// When `ranks` is 0.
pub fn divisible_buckets(buckets: &[u64], ranks: u64) -> Vec<u64> {
    let mut divisible = Vec::new();
    let mut open = 0;
    for (index, elements) in buckets.iter().enumerate() {
        open += elements;
        let last = index + 1 == buckets.len();
        let now = if last {
            open.next_multiple_of(ranks)
        } else {
            open / ranks * ranks
        };
        open = open.saturating_sub(now);
        if now > 0 {
            divisible.push(now);
        }
    }
    divisible
}

/// The calls of one ZeRO-1 step for a bucket of `elements`, in order; under an all-gather each rank contributes a part.
pub fn optimizer_shard_calls(elements: u64, algorithm: Algorithm, ranks: u64) -> [Call; 2] {
    let call = |collective, elements| Call {
        collective,
        algorithm,
        elements,
        element_bytes: F32_BYTES,
        ranks,
    };
    [
        call(Collective::ReduceScatter, elements),
        call(Collective::AllGather, elements / ranks),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharding_moves_what_the_semantics_say() {
        let p = 4 * 1000 * 4; // divides evenly over 4 ranks
        let sent = |stage| sharded_step(stage, 4000, 4, 4, 1).sent;
        assert_eq!(sent(ShardedStage::Optimizer), 2 * p * 3 / 4);
        assert_eq!(sent(ShardedStage::Gradients), 2 * p * 3 / 4);
        assert_eq!(sent(ShardedStage::Parameters), 3 * p * 3 / 4);
        assert_eq!(
            sharded_step(ShardedStage::Parameters, 4000, 4, 1, 0),
            Traffic::default()
        );
    }

    #[test]
    fn left_over_elements_go_to_the_next_bucket_and_the_last_is_padded() {
        assert_eq!(divisible_buckets(&[10, 7, 3], 4), [8, 8, 4]);
        assert_eq!(divisible_buckets(&[2, 1, 2], 4), [8]);
        assert_eq!(divisible_buckets(&[3, 1], 4), [4]);
        assert_eq!(divisible_buckets(&[12, 5], 1), [12, 5]);
        assert_eq!(divisible_buckets(&[1], 4), [4]);
        assert!(divisible_buckets(&[], 4).is_empty());
    }

    #[test]
    fn buckets_move_together_what_one_padded_arena_would() {
        for algorithm in [Algorithm::Ring, Algorithm::SharedDirect] {
            for ranks in 1..=4 {
                for buckets in [
                    vec![10, 7, 3],
                    vec![4000],
                    vec![1, 1, 1],
                    vec![401, 3, 1202],
                ] {
                    let elements = buckets.iter().sum();
                    let whole = sharded_step(ShardedStage::Optimizer, elements, 4, ranks, 0);
                    for rank in 0..ranks {
                        let sum: Traffic = divisible_buckets(&buckets, ranks)
                            .into_iter()
                            .flat_map(|bucket| optimizer_shard_calls(bucket, algorithm, ranks))
                            .map(|call| call.traffic(rank).expect("both have these collectives"))
                            .sum();
                        assert_eq!(sum, whole, "{buckets:?} over {ranks}, {algorithm:?}");
                    }
                }
            }
        }
    }
}
