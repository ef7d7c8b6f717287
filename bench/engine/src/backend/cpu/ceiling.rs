//! Loops that do nothing but what a processor does best: fused multiply-adds in registers, and streams through memory.
//!
//! Contract: with the same registers and the same ordinary loads and stores as the kernels, so that a kernel's speed can be held against
//! these as what it could be at best. The operands come from outside and the results go there, so nothing can be left out.
//! Reference: Williams, Waterman and Patterson, *Roofline*, 2009; McCalpin, *STREAM*, 1995.
use super::columns::widest;
use super::instructions::{Instructions, instructions};
use super::register::{MOST_LANES, Plain, Register};

/// Products that do not wait for each other: two units with a latency of up to six cycles are kept busy, and with the two operands
/// they fit into 16 registers.
const CHAINS: usize = 12;
/// Elements that hold all chains of the widest register.
pub(crate) const CHAIN_LEN: usize = CHAINS * MOST_LANES;

/// Floating-point operations of a round of [`multiply_add`].
pub(crate) fn flops_per_round() -> u64 {
    let lanes = match instructions() {
        Instructions::Avx512 => 16,
        Instructions::Avx2 => 8,
        Instructions::Portable => Plain::LANES,
    };
    (2 * CHAINS * lanes) as u64
}

/// `rounds` times v ← v·factor + summand, for as many of the values as fit into the registers of all chains.
///
/// # Safety
/// The machine has the instructions of `R`.
#[inline(always)]
unsafe fn chains<R: Register>(
    rounds: u64,
    factor: f32,
    summand: f32,
    values: &mut [f32; CHAIN_LEN],
) {
    // SAFETY: the caller has the instructions, and all chains of the widest register fit into the values.
    unsafe {
        let (factor, summand) = (R::splat(factor), R::splat(summand));
        let mut sums: [R; CHAINS] =
            std::array::from_fn(|i| R::load(values.as_ptr().add(i * R::LANES)));
        for _ in 0..rounds {
            // The product is with what the round before gave: nothing of it can be taken out of the loop.
            for sum in &mut sums {
                *sum = summand.add_product(*sum, factor);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            sum.store(values.as_mut_ptr().add(i * R::LANES));
        }
    }
}

macro_rules! chains_with {
    ($(#[$attribute:meta])* $name:ident, $register:ty) => {
        $(#[$attribute])*
        fn $name(rounds: u64, factor: f32, summand: f32, values: &mut [f32; CHAIN_LEN]) {
            // SAFETY: the function has the register's instructions.
            unsafe { chains::<$register>(rounds, factor, summand, values) }
        }
    };
}
#[cfg(target_arch = "x86_64")]
chains_with!(
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    avx512,
    std::arch::x86_64::__m512
);
#[cfg(target_arch = "x86_64")]
chains_with!(
    #[target_feature(enable = "avx2,fma")]
    avx2,
    std::arch::x86_64::__m256
);
chains_with!(portable, Plain);

/// `rounds` times v ← v·factor + summand, [`flops_per_round`] operations each.
pub(crate) fn multiply_add(rounds: u64, factor: f32, summand: f32, values: &mut [f32; CHAIN_LEN]) {
    match instructions() {
        // SAFETY: `instructions` are those of this machine.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512 => unsafe { avx512(rounds, factor, summand, values) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2 => unsafe { avx2(rounds, factor, summand, values) },
        _ => portable(rounds, factor, summand, values),
    }
}

/// Neighbouring elements that are read together: independent sums in all registers.
const LANES: usize = 64;

widest! {
    /// total = Σ x, exact while x are small whole numbers.
    pub(crate) fn read(x: &[f32], total: &mut f64) {
        let mut sums = [0.0f32; LANES];
        let (tiles, rest) = x.as_chunks::<LANES>();
        for tile in tiles {
            for (sum, value) in sums.iter_mut().zip(tile) {
                *sum += value;
            }
        }
        let all = sums.iter().chain(rest);
        *total = all.map(|value| f64::from(*value)).sum();
    }
}

widest! {
    /// y = x·factor + summand: a stream in and a stream out.
    pub(crate) fn read_write(x: &[f32], y: &mut [f32], factor: f32, summand: f32) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = x * factor + summand;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_takes_all_rounds() {
        for rounds in [0, 1, 3] {
            let mut values: [f32; CHAIN_LEN] = std::array::from_fn(|i| i as f32);
            multiply_add(rounds, 2.0, 1.0, &mut values);
            let worked_on = (flops_per_round() / 2) as usize;
            for (i, value) in values.iter().enumerate() {
                let mut expected = i as f32;
                for _ in 0..rounds * u64::from(i < worked_on) {
                    expected = expected * 2.0 + 1.0;
                }
                assert_eq!(*value, expected, "{i} after {rounds}");
            }
        }
    }

    #[test]
    fn streams_are_read_and_written_to_their_end() {
        for len in [0, 1, 63, 64, 200] {
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let (mut total, mut y) = (-1.0, vec![0.0; len]);
            read(&x, &mut total);
            assert_eq!(total, (0..len).sum::<usize>() as f64);
            read_write(&x, &mut y, 0.5, 0.25);
            assert!(x.iter().zip(&y).all(|(x, y)| *y == x * 0.5 + 0.25));
        }
    }
}
