//! Samplers: what PyTorch's promise of them, for any number of samples and ranks.
use proptest::prelude::*;
use syncmark_engine::data::{Distributed, Random, RankOrder, Sampler, Sequential};

fn order(sampler: &dyn Sampler, epoch: u64) -> Vec<usize> {
    // What was in the buffer before must not matter.
    let mut indices = vec![usize::MAX; 3];
    sampler.indices(epoch, &mut indices);
    assert_eq!(indices.len(), sampler.len());
    indices
}

fn sorted(mut indices: Vec<usize>) -> Vec<usize> {
    indices.sort_unstable();
    indices
}

#[test]
fn examples_by_hand() {
    let rank = |len, ranks, rank, drop_last| {
        order(
            &Distributed {
                len,
                ranks,
                rank,
                seed: None,
                drop_last,
            },
            0,
        )
    };
    // Ten samples on four ranks: padded to twelve by the first two.
    assert_eq!(rank(10, 4, 0, false), [0, 4, 8]);
    assert_eq!(rank(10, 4, 1, false), [1, 5, 9]);
    assert_eq!(rank(10, 4, 2, false), [2, 6, 0]);
    assert_eq!(rank(10, 4, 3, false), [3, 7, 1]);
    // Truncated to eight.
    assert_eq!(rank(10, 4, 3, true), [3, 7]);
    // Fewer samples than ranks: the head comes several times.
    assert_eq!(rank(2, 5, 4, false), [0]);
    assert_eq!(rank(2, 5, 3, false), [1]);
    assert_eq!(rank(2, 5, 0, true), [] as [usize; 0]);
    // Two ranks with batches of two: the ranks' batches stand one after the other.
    let ranks = Distributed {
        len: 10,
        ranks: 2,
        rank: 0,
        seed: None,
        drop_last: false,
    };
    assert_eq!(
        order(&RankOrder { ranks, batch: 2 }, 0),
        [0, 2, 1, 3, 4, 6, 5, 7]
    );
}

proptest! {
    #[test]
    fn sequential_is_the_identity(len in 0usize..200) {
        prop_assert_eq!(order(&Sequential { len }, 3), (0..len).collect::<Vec<_>>());
    }

    #[test]
    fn random_takes_every_sample_once_in_another_order_each_epoch(len in 20usize..200, seed: u64, epoch in 0u64..1000) {
        let random = Random { len, seed };
        let first = order(&random, epoch);
        prop_assert_eq!(sorted(first.clone()), (0..len).collect::<Vec<_>>());
        prop_assert_eq!(&first, &order(&random, epoch));
        prop_assert_ne!(&first, &order(&random, epoch + 1));
        // Seed plus epoch is what counts, as in PyTorch.
        prop_assert_eq!(&first, &order(&Random { len, seed: seed.wrapping_add(epoch) }, 0));
    }

    #[test]
    fn ranks_share_the_samples_evenly(
        len in 1usize..200, ranks in 1usize..9, seed in proptest::option::of(any::<u64>()), epoch in 0u64..50, drop_last: bool,
    ) {
        let of = |rank| order(&Distributed { len, ranks, rank, seed, drop_last }, epoch);
        let shares: Vec<Vec<usize>> = (0..ranks).map(of).collect();
        let each = if drop_last { len / ranks } else { len.div_ceil(ranks) };
        prop_assert!(shares.iter().all(|share| share.len() == each));
        let shared = match seed {
            Some(seed) => order(&Random { len, seed }, epoch),
            None => order(&Sequential { len }, epoch),
        };
        // Position p of the padded (the head again) or truncated order belongs to rank p % ranks.
        for (rank, share) in shares.iter().enumerate() {
            for (k, index) in share.iter().enumerate() {
                prop_assert_eq!(*index, shared[(rank + k * ranks) % len]);
            }
        }
        let all = sorted(shares.concat());
        let mut distinct = all.clone();
        distinct.dedup();
        if drop_last {
            prop_assert_eq!(distinct.len(), all.len(), "no sample twice");
        } else {
            prop_assert_eq!(distinct, (0..len).collect::<Vec<_>>(), "every sample");
            prop_assert!(all.len() - len < ranks, "at most ranks − 1 duplicates");
        }
    }

    #[test]
    fn rank_order_is_the_ranks_batches_one_after_the_other(
        len in 1usize..200, ranks in 1usize..6, batch in 1usize..6, seed in proptest::option::of(any::<u64>()), drop_last: bool,
    ) {
        let of = |rank| Distributed { len, ranks, rank, seed, drop_last };
        let global = order(&RankOrder { ranks: of(0), batch }, 1);
        let shares: Vec<Vec<usize>> = (0..ranks).map(|rank| order(&of(rank), 1)).collect();
        let steps = shares[0].len() / batch;
        let expected: Vec<usize> = (0..steps)
            .flat_map(|k| shares.iter().flat_map(move |share| share[k * batch..(k + 1) * batch].to_vec()))
            .collect();
        prop_assert_eq!(global, expected);
    }
}
