//! What computes the trials of a plan: what `auto` stands for, and what trials on GPUs need.
//!
//! Contract: pure. What a machine has is looked at elsewhere ([`crate::run::backend`]) and given to the plan as a [`Choice`].
use crate::plan::config::{Backend, StrategyConfig, TrialConfig};
use crate::scenario::file::BackendChoice;

/// What `parallel.backend = "auto"` stands for in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What computes.
    pub backend: Backend,
    /// Why, as what `auto` did: `found no CUDA driver`.
    pub why: String,
}

/// What trials on GPUs need together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Devices of the largest trial.
    pub devices: usize,
    /// Whether ranks exchange, for which there is NCCL.
    pub ranks_meet: bool,
}

impl Choice {
    /// The choice of a machine that has nothing else.
    pub fn cpu(why: impl Into<String>) -> Self {
        Self {
            backend: Backend::Cpu,
            why: why.into(),
        }
    }

    /// `Backend cpu: `auto` found no CUDA driver.`
    pub fn sentence(&self) -> String {
        format!("Backend {}: `auto` {}.", self.backend.name(), self.why)
    }
}

impl Needs {
    /// Of trials on GPUs, or of what would be.
    pub fn of<'a>(trials: impl IntoIterator<Item = &'a TrialConfig>) -> Option<Self> {
        let one = |config: &TrialConfig| Self {
            devices: config.devices,
            ranks_meet: ranks_meet(config),
        };
        trials.into_iter().map(one).reduce(|a, b| Self {
            devices: a.devices.max(b.devices),
            ranks_meet: a.ranks_meet || b.ranks_meet,
        })
    }
}

/// DP has one controller, and independent replicas exchange nothing.
fn ranks_meet(config: &TrialConfig) -> bool {
    let ranks = matches!(
        config.strategy,
        StrategyConfig::Ddp(_) | StrategyConfig::Zero1(_)
    );
    ranks && config.devices > 1
}

/// What computes where a scenario says `choice` and `auto` stands for the other.
pub(super) fn resolved(choice: BackendChoice, auto: Backend) -> Backend {
    match choice {
        BackendChoice::Auto => auto,
        BackendChoice::Cpu => Backend::Cpu,
        BackendChoice::Cuda => Backend::Cuda,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::mock;
    use crate::scenario::file::{DpLoss, Launch};

    #[test]
    fn only_auto_is_left_to_the_machine() {
        for auto in [Backend::Cpu, Backend::Cuda] {
            assert_eq!(resolved(BackendChoice::Auto, auto), auto);
            assert_eq!(resolved(BackendChoice::Cpu, auto), Backend::Cpu);
            assert_eq!(resolved(BackendChoice::Cuda, auto), Backend::Cuda);
        }
    }

    #[test]
    fn needs_are_those_of_the_largest_and_of_any_that_exchange() {
        let single = mock::trial("single", StrategyConfig::Single, 1).config;
        let dp = mock::trial("dp", mock::dp(DpLoss::Gathered, 4), 4).config;
        let ddp = mock::trial("ddp", mock::ddp(Launch::Processes), 2).config;
        let alone = mock::trial("ddp", mock::ddp(Launch::Processes), 1).config;
        let needs = |trials: &[&TrialConfig]| {
            Needs::of(trials.iter().copied()).map(|needs| (needs.devices, needs.ranks_meet))
        };
        assert_eq!(needs(&[]), None);
        assert_eq!(needs(&[&single, &dp]), Some((4, false)));
        assert_eq!(
            needs(&[&single, &alone]),
            Some((1, false)),
            "one rank meets nobody"
        );
        assert_eq!(needs(&[&dp, &ddp, &single]), Some((4, true)));
    }

    #[test]
    fn a_choice_says_what_and_why() {
        let sentence = Choice::cpu("found no CUDA driver").sentence();
        assert_eq!(sentence, "Backend cpu: `auto` found no CUDA driver.");
    }
}
