//! Stochastic gradient descent with momentum, Nesterov's form of it and weight decay, as PyTorch's `torch.optim.SGD`
//! without dampening.
//!
//! A first buffer of zeros gives the same first step as PyTorch's copy of the gradient.
use super::{OptimizerError, demand, demand_not_negative};

/// Settings of SGD.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdSettings {
    /// Learning rate, before the schedule.
    pub learning_rate: f32,
    /// Momentum μ; 0 keeps no buffer.
    pub momentum: f32,
    /// Weight decay: added to the gradient as wd·p.
    pub weight_decay: f32,
    /// Whether the step is g + μ·buf, a look ahead, instead of buf.
    pub nesterov: bool,
}

impl SgdSettings {
    pub(super) fn validate(&self) -> Result<(), OptimizerError> {
        demand_not_negative(&[
            ("the learning rate", f64::from(self.learning_rate)),
            ("the momentum", f64::from(self.momentum)),
            ("the weight decay", f64::from(self.weight_decay)),
        ])?;
        demand(
            !self.nesterov || self.momentum > 0.0,
            "nesterov",
            "true with a momentum of 0",
            "its step looks ahead along the momentum: write a momentum above 0, or nesterov = false",
        )
    }
}
