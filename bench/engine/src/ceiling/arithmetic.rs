//! Peak of f32 arithmetic: independent fused multiply-adds on the registers that the kernels run with.
//!
//! Contract: two operations per multiplication and addition, as the formulas of `model::cost` count; where the instructions do not fuse
//! (portable), a product and a sum. All values end at the fixed point of v·½ + 1, which is 2 exactly whatever they began with.
use std::hint::black_box;

use super::together::{Work, together, windows};
use super::{Ceiling, CeilingError, Measured, Result, Spread};
use crate::backend::BackendError;
use crate::backend::cpu::ceiling::{CHAIN_LEN, flops_per_round, multiply_add};
use crate::backend::cpu::instructions;
use crate::probe::now_ns;

/// All parts of a window together last about this long.
const WHOLE_NS: u64 = 16_000_000;
/// Rounds by whose time the windows are planned.
const TRIED_ROUNDS: u64 = 1 << 14;

struct Chains {
    values: [f32; CHAIN_LEN],
    rounds: u64,
}

impl Chains {
    /// For windows that last a `parts`-th of the whole.
    fn new(parts: u64) -> Self {
        // Chains that begin alike would be one.
        let values = std::array::from_fn(|i| 1.0 + i as f32 / CHAIN_LEN as f32);
        let mut chains = Self {
            values,
            rounds: TRIED_ROUNDS,
        };
        let begin = now_ns();
        chains.run();
        let ns = (now_ns() - begin).max(1);
        chains.rounds = (TRIED_ROUNDS * (WHOLE_NS / parts) / ns).max(1);
        chains
    }

    fn run(&mut self) {
        let (factor, summand) = (black_box(0.5), black_box(1.0));
        multiply_add(self.rounds, factor, summand, black_box(&mut self.values));
    }
}

impl Work for Chains {
    fn window(&mut self) -> f64 {
        self.run();
        (self.rounds * flops_per_round()) as f64
    }

    fn check(&self) -> Result<()> {
        let worked_on = &self.values[..(flops_per_round() / 2) as usize];
        match worked_on.iter().find(|value| **value != 2.0) {
            None => Ok(()),
            Some(found) => Err(CeilingError::Wrong {
                ceiling: Ceiling::MultiplyAdd,
                found: f64::from(*found),
                expected: 2.0,
            }),
        }
    }
}

/// Operations per second of as many threads as there are lists of cores, all at once; a thread without cores stays where the
/// caller is.
///
/// # Errors
/// When a thread cannot be pinned, and for instructions that cannot be had.
pub fn arithmetic(cores: &[Vec<usize>]) -> Result<Measured> {
    let instructions = instructions::from_environment().map_err(BackendError::Instructions)?;
    let (windows, parts) = windows(cores.len());
    let rates = together(cores, windows, || Ok(Chains::new(parts)))?;
    Ok(Measured {
        ceiling: Ceiling::MultiplyAdd,
        threads: cores.len(),
        instructions: Some(instructions),
        working_set_bytes: None,
        spread: Spread::of(rates, false),
    })
}
