//! Philox4x32-10: random numbers that are a function of where they are used, so that every strategy, backend and
//! micro-batch draws the same ones.
//!
//! The key is the seed (low word, high word). The counter is `(block low, block high, stream, purpose)`; a block makes
//! four consecutive elements, element `i` using word `i % 4` of block `i / 4`. Dropout uses a counter of its own, see
//! [`dropout_counter`]. `scripts/pytorch/philox.py` implements the same definition.
//! Reference: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// What a number is drawn for: the last word of the counter, so that no two uses share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial parameters; the stream is the parameter's index in execution order.
    Parameters = 0,
    /// Dropout masks.
    Dropout = 1,
    /// Synthetic inputs.
    Inputs = 2,
    /// Permutations of samplers and plans.
    Shuffle = 3,
    /// Synthetic labels.
    Labels = 4,
    /// The first factors of compressed gradients; the second word of the counter is the step.
    Compression = 5,
    /// Synthetic tokens, and which are hidden.
    Tokens = 6,
}

/// The key that belongs to a seed.
pub const fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Ten rounds of Philox4x32.
#[inline]
pub const fn block(mut key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    let mut c = counter;
    let mut round = 0;
    while round < ROUNDS {
        let a = MULTIPLIERS[0] as u64 * c[0] as u64;
        let b = MULTIPLIERS[1] as u64 * c[2] as u64;
        c = [
            (b >> 32) as u32 ^ c[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ c[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        round += 1;
    }
    c
}

/// The four words of block `index` of one stream.
#[inline]
pub const fn words(seed: u64, purpose: Purpose, stream: u32, index: u64) -> [u32; 4] {
    block(
        key(seed),
        [index as u32, (index >> 32) as u32, stream, purpose as u32],
    )
}

/// The word of one element.
#[inline]
pub const fn word(seed: u64, purpose: Purpose, stream: u32, element: u64) -> u32 {
    words(seed, purpose, stream, element / 4)[(element % 4) as usize]
}

/// A word as a number in [0, 1): the upper 24 bits, so that every value is exact in f32.
#[inline]
pub const fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Counter of the four dropout numbers of elements `4·block ..` of one sample, in memory order.
#[inline]
pub const fn dropout_counter(block: u32, sample: u32, step: u32, node: u32) -> [u32; 4] {
    [block, sample, step, Purpose::Dropout as u32 | node << 8]
}

/// Fills `to` with the elements `first..` of a stream, each `(2u − 1)·bound` in f32.
pub fn fill_symmetric(
    seed: u64,
    purpose: Purpose,
    stream: u32,
    first: u64,
    bound: f32,
    to: &mut [f32],
) {
    let (mut at, mut four) = (u64::MAX, [0; 4]);
    for (offset, value) in to.iter_mut().enumerate() {
        let element = first + offset as u64;
        if element / 4 != at {
            at = element / 4;
            four = words(seed, purpose, stream, at);
        }
        *value = (2.0 * uniform(four[(element % 4) as usize]) - 1.0) * bound;
    }
}

/// Numbers in order from one stream, for shuffling.
#[derive(Clone, Debug)]
pub struct Sequence {
    seed: u64,
    stream: u32,
    next: u64,
}

impl Sequence {
    /// The start of stream `stream` of [`Purpose::Shuffle`].
    pub const fn shuffle(seed: u64, stream: u32) -> Self {
        Self {
            seed,
            stream,
            next: 0,
        }
    }

    fn next_u64(&mut self) -> u64 {
        let four = words(self.seed, Purpose::Shuffle, self.stream, self.next);
        self.next += 1;
        u64::from(four[0]) | u64::from(four[1]) << 32
    }

    /// A number below `bound`, each equally likely: values from the incomplete last interval are drawn again.
    ///
    /// # Panics
    /// When `bound` is 0: a bug of the caller.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below 0");
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let value = self.next_u64();
            if value < limit {
                return value % bound;
            }
        }
    }

    /// Permutes `items` (Fisher–Yates).
    pub fn shuffle_slice<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of Random123's `kat_vectors` for philox4x32-10.
    #[test]
    fn known_answers() {
        assert_eq!(
            block([0; 2], [0; 4]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            block([u32::MAX; 2], [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            block(
                [0xa409_3822, 0x299f_31d0],
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniforms_stay_below_one() {
        assert_eq!(uniform(0), 0.0);
        assert_eq!(uniform(u32::MAX), 1.0 - f32::EPSILON / 2.0);
    }

    #[test]
    fn filling_in_parts_equals_filling_at_once() {
        let mut whole = [0.0; 23];
        fill_symmetric(7, Purpose::Inputs, 2, 5, 0.5, &mut whole);
        let mut parts = [0.0; 23];
        let (head, tail) = parts.split_at_mut(6);
        fill_symmetric(7, Purpose::Inputs, 2, 5, 0.5, head);
        fill_symmetric(7, Purpose::Inputs, 2, 11, 0.5, tail);
        assert_eq!(whole, parts);
        assert!(whole.iter().all(|v| v.abs() <= 0.5));
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_depends_on_seed_and_stream() {
        let shuffled = |seed, stream| {
            let mut items: Vec<u32> = (0..100).collect();
            Sequence::shuffle(seed, stream).shuffle_slice(&mut items);
            items
        };
        let mut sorted = shuffled(1, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(shuffled(1, 0), shuffled(1, 0));
        assert_ne!(shuffled(1, 0), shuffled(2, 0));
        assert_ne!(shuffled(1, 0), shuffled(1, 1));
    }
}
