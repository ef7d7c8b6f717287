//! Adam with decoupled weight decay (Loshchilov and Hutter 2019), as PyTorch's `torch.optim.AdamW` without AMSGrad.
//!
//! p ← p·(1 − lr·wd); m ← β₁·m + (1 − β₁)·g; v ← β₂·v + (1 − β₂)·g²; p ← p − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + eps),
//! where t counts updates from 1. The βs are f64: 1 − β₂ of an f32 0.999 would be off by 1e-5.
use super::{OptimizerError, demand, demand_not_negative};

/// Settings of AdamW; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwSettings {
    /// Learning rate, before the schedule.
    pub learning_rate: f32,
    /// Decay β₁ of the average gradient.
    pub beta1: f64,
    /// Decay β₂ of the average squared gradient.
    pub beta2: f64,
    /// Added to the root of the average square.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamwSettings {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
        }
    }
}

impl AdamwSettings {
    pub(super) fn validate(&self) -> Result<(), OptimizerError> {
        demand_not_negative(&[
            ("the learning rate", f64::from(self.learning_rate)),
            ("eps", f64::from(self.eps)),
            ("the weight decay", f64::from(self.weight_decay)),
        ])?;
        for (setting, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            let fine = (0.0..1.0).contains(&beta);
            demand(fine, setting, beta, "write a number from 0 to below 1")?;
        }
        Ok(())
    }
}
