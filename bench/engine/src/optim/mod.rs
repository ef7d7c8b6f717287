//! Optimizers: one kernel over an arena of parameters, or over a range of it, and the schedule of its learning rate.
//!
//! What changes from step to step lies on the device ([`crate::layer::State`]): the step number, from which AdamW's bias
//! corrections follow, and the learning rate, which the strategy writes before each update. A captured graph can replay.
pub mod adamw;
mod optimizer;
pub mod schedule;
pub mod sgd;

use crate::backend::BackendError;

pub use adamw::AdamwSettings;
pub use optimizer::Optimizer;
pub use schedule::Schedule;
pub use sgd::SgdSettings;

/// How a gradient becomes an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Stochastic gradient descent.
    Sgd(SgdSettings),
    /// Adam with decoupled weight decay.
    Adamw(AdamwSettings),
}

/// An optimizer and the schedule of its learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// How a gradient becomes an update.
    pub rule: Rule,
    /// The learning rate by step.
    pub schedule: Schedule,
}

impl OptimizerSettings {
    /// SGD at a constant rate.
    pub const fn sgd(settings: SgdSettings) -> Self {
        Self {
            rule: Rule::Sgd(settings),
            schedule: Schedule::Constant,
        }
    }

    /// AdamW at a constant rate.
    pub const fn adamw(settings: AdamwSettings) -> Self {
        Self {
            rule: Rule::Adamw(settings),
            schedule: Schedule::Constant,
        }
    }

    /// The rate that the schedule is applied to.
    pub fn learning_rate(&self) -> f32 {
        match self.rule {
            Rule::Sgd(sgd) => sgd.learning_rate,
            Rule::Adamw(adamw) => adamw.learning_rate,
        }
    }

    /// Refuses settings that cannot work.
    ///
    /// # Errors
    /// [`OptimizerError::Setting`].
    pub fn validate(&self) -> Result<(), OptimizerError> {
        match self.rule {
            Rule::Sgd(sgd) => sgd.validate()?,
            Rule::Adamw(adamw) => adamw.validate()?,
        }
        self.schedule.validate()
    }
}

/// Why there is no such optimizer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OptimizerError {
    /// A setting that cannot work.
    #[error("{setting} is {value}: {expected}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// Its state could not be allocated.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Refuses a value for which `fine` is false.
pub(crate) fn demand(
    fine: bool,
    setting: &'static str,
    value: impl ToString,
    expected: &'static str,
) -> Result<(), OptimizerError> {
    if fine {
        return Ok(());
    }
    Err(OptimizerError::Setting {
        setting,
        value: value.to_string(),
        expected,
    })
}

/// Refuses numbers that are negative or not finite.
pub(crate) fn demand_not_negative(values: &[(&'static str, f64)]) -> Result<(), OptimizerError> {
    values.iter().try_for_each(|(setting, value)| {
        let fine = value.is_finite() && *value >= 0.0;
        demand(fine, setting, value, "write a number that is not negative")
    })
}
