//! The order in which trials run: blocks in which every trial runs once, shuffled by a recorded seed.
//!
//! Contract: the order depends on the number of trials, the number of repeats and the seed alone. Ratios
//! between trials are taken within a block, so slow drift of the machine falls on all trials alike.
//! Reference: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) and Fisher and Yates' shuffle (Durstenfeld 1964).

/// Indices of trials, block by block: `repeats` blocks, each a permutation of `0..trials`.
pub fn schedule(trials: usize, repeats: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut random = SplitMix64(seed);
    (0..repeats)
        .map(|_| {
            let mut block: Vec<usize> = (0..trials).collect();
            for last in (1..trials).rev() {
                block.swap(last, random.below(last as u64 + 1) as usize);
            }
            block
        })
        .collect()
}

/// A generator whose whole state is one word, so that the recorded seed says everything.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound`, without the bias of a plain remainder: values of the last, incomplete
    /// stretch of the range are drawn again.
    fn below(&mut self, bound: u64) -> u64 {
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let value = self.next();
            if value < limit {
                return value % bound;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_holds_every_trial_once() {
        let blocks = schedule(7, 20, 3);
        assert_eq!(blocks.len(), 20);
        for mut block in blocks {
            block.sort_unstable();
            assert_eq!(block, (0..7).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_seed_decides_the_order() {
        assert_eq!(schedule(9, 3, 1), schedule(9, 3, 1));
        assert_ne!(schedule(9, 3, 1), schedule(9, 3, 2));
        let blocks = schedule(9, 3, 1);
        assert_ne!(blocks[0], blocks[1]);
    }

    #[test]
    fn more_repeats_keep_the_blocks_that_were_there() {
        assert_eq!(schedule(5, 3, 8), schedule(5, 6, 8)[..3]);
    }

    #[test]
    fn splitmix64_gives_the_published_sequence() {
        // First outputs for seed 1234567, as in Vigna's reference implementation.
        let mut random = SplitMix64(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn every_trial_comes_first_about_equally_often() {
        let mut first = [0_u32; 4];
        for block in schedule(4, 4000, 11) {
            first[block[0]] += 1;
        }
        // A binomial count of mean 1000 and deviation 27: five deviations either way.
        assert!(first.iter().all(|n| (865..=1135).contains(n)), "{first:?}");
    }

    #[test]
    fn nothing_to_run_gives_empty_blocks() {
        assert_eq!(schedule(0, 2, 0), vec![Vec::<usize>::new(); 2]);
    }
}
