//! Learning rates by step: PyTorch's `LinearLR`, `StepLR`, `CosineAnnealingLR` and a `SequentialLR` of them, in closed form.
//!
//! Contract: `rate(base, k)` is what PyTorch's scheduler gives its optimizer for step k, counted from 0, when `step()` is
//! called after each update. It is a function of k alone, so that going back to a snapshot needs no state. One difference:
//! past its last step PyTorch's cosine rises again, ours stays at the minimum.
use std::f64::consts::PI;

use super::{OptimizerError, demand, demand_not_negative};

/// A schedule; counts are in optimizer steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Schedule {
    /// The base rate.
    #[default]
    Constant,
    /// From `start`·base, linearly, to the base rate at step `steps`, and constant from there (`LinearLR`).
    WarmUp {
        /// Steps until the base rate is reached.
        steps: u64,
        /// First rate as a share of the base rate, 0 to 1.
        start: f64,
    },
    /// base·factor^⌊k/every⌋ (`StepLR`).
    Step {
        /// Steps between two changes.
        every: u64,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// A linear warm-up from 0 over `warm_up_steps`, then half a cosine of `steps` steps to `minimum` (`CosineAnnealingLR`
    /// with T_max = steps), where it stays.
    Cosine {
        /// Steps of the cosine, after the warm-up.
        steps: u64,
        /// Steps of the warm-up before; 0 for none.
        warm_up_steps: u64,
        /// Last rate (not a share of the base rate).
        minimum: f64,
    },
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, base: f32, step: u64) -> f32 {
        let base_rate = f64::from(base);
        let rate = match *self {
            Self::Constant => return base,
            Self::WarmUp { steps, start } => base_rate * warm_up(step, steps, start),
            Self::Step { every, factor } => {
                base_rate * factor.powi(i32::try_from(step / every).unwrap_or(i32::MAX))
            }
            Self::Cosine { warm_up_steps, .. } if step < warm_up_steps => {
                base_rate * warm_up(step, warm_up_steps, 0.0)
            }
            Self::Cosine {
                steps,
                warm_up_steps,
                minimum,
            } => {
                let turn = (step - warm_up_steps).min(steps) as f64 / steps as f64;
                minimum + (base_rate - minimum) * (1.0 + (PI * turn).cos()) / 2.0
            }
        };
        rate as f32
    }

    pub(super) fn validate(&self) -> Result<(), OptimizerError> {
        match *self {
            Self::Constant => Ok(()),
            Self::WarmUp { steps, start } => {
                demand(steps > 0, "warm-up steps", steps, "write at least 1")?;
                let fine = (0.0..=1.0).contains(&start);
                demand(fine, "warm-up start", start, "write a share from 0 to 1")
            }
            Self::Step { every, factor } => {
                demand(
                    every > 0,
                    "steps between changes",
                    every,
                    "write at least 1",
                )?;
                demand_not_negative(&[("the schedule's factor", factor)])
            }
            Self::Cosine { steps, minimum, .. } => {
                demand(steps > 0, "cosine steps", steps, "write at least 1")?;
                demand_not_negative(&[("the cosine's minimum", minimum)])
            }
        }
    }
}

/// Share of the base rate at `step` of a linear warm-up.
fn warm_up(step: u64, steps: u64, start: f64) -> f64 {
    start + (1.0 - start) * (step.min(steps) as f64 / steps as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cosine_stays_at_its_minimum_where_pytorchs_rises_again() {
        let cosine = Schedule::Cosine {
            steps: 6,
            warm_up_steps: 4,
            minimum: 0.01,
        };
        assert_eq!(cosine.rate(0.1, 0), 0.0);
        assert_eq!(cosine.rate(0.1, 2), 0.05);
        assert_eq!(cosine.rate(0.1, 4), 0.1);
        assert_eq!(cosine.rate(0.1, 10), 0.01);
        assert_eq!(cosine.rate(0.1, 13), 0.01);
        assert_eq!(cosine.rate(0.1, u64::MAX), 0.01);
    }

    #[test]
    fn a_warm_up_stays_at_the_base_rate_and_a_step_falls_without_end() {
        let warm_up = Schedule::WarmUp {
            steps: 4,
            start: 0.5,
        };
        let rates = [0, 1, 4, 5, u64::MAX].map(|step| warm_up.rate(0.25, step));
        assert_eq!(rates, [0.125, 0.15625, 0.25, 0.25, 0.25]);
        let step = Schedule::Step {
            every: 2,
            factor: 0.5,
        };
        let rates = [0, 1, 2, 3, 4, u64::MAX].map(|at| step.rate(1.0, at));
        assert_eq!(rates, [1.0, 1.0, 0.5, 0.5, 0.25, 0.0]);
    }

    #[test]
    fn what_cannot_work_says_what_would() {
        let refused = [
            (
                Schedule::WarmUp {
                    steps: 0,
                    start: 0.0,
                },
                "warm-up steps is 0: write at least 1",
            ),
            (
                Schedule::WarmUp {
                    steps: 3,
                    start: 1.5,
                },
                "warm-up start is 1.5: write a share from 0 to 1",
            ),
            (
                Schedule::Step {
                    every: 0,
                    factor: 0.1,
                },
                "steps between changes is 0: write at least 1",
            ),
            (
                Schedule::Step {
                    every: 1,
                    factor: f64::NAN,
                },
                "the schedule's factor is NaN: write a number that is not negative",
            ),
            (
                Schedule::Cosine {
                    steps: 0,
                    warm_up_steps: 5,
                    minimum: 0.0,
                },
                "cosine steps is 0: write at least 1",
            ),
        ];
        for (schedule, message) in refused {
            let error = schedule.validate().expect_err("refused");
            assert_eq!(error.to_string(), message);
        }
    }
}
