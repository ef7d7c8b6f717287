//! How a trial or one of its repeats ended.
use serde::{Deserialize, Serialize};

/// The end of a trial or of one repeat. Only [`Outcome::Passed`], [`Outcome::Unsteady`] and
/// [`Outcome::Disturbed`] carry a performance figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Ran to its end and passed its gate.
    Passed,
    /// The child reported an error.
    Failed,
    /// The trial outlived `measure.timeout` and was stopped.
    Timeout,
    /// A rank died (signal or exit status); the reason names it.
    RankFailed,
    /// An allocation failed.
    OutOfMemory,
    /// The loss became NaN or infinite.
    Diverged,
    /// The trial's gate failed: its results are not what the semantics demand, so no figure is shown.
    Invalid,
    /// First and last third of the window differ by more than 2 %.
    Unsteady,
    /// Other programs or the hypervisor used the ranks' cores during the window.
    Disturbed,
    /// Not run, with a reason.
    Skipped,
    /// The run was interrupted before or during it.
    Interrupted,
}

/// The outcome of a trial whose repeats ended like this and none of them failed: `disturbed` if more than a third of those
/// with figures are, because a median bears fewer; else `unsteady` if any is.
pub fn of_repeats(repeats: impl Iterator<Item = Outcome> + Clone) -> Outcome {
    let figures = repeats.filter(|outcome| outcome.has_figures());
    let count = |wanted| figures.clone().filter(|outcome| *outcome == wanted).count();
    let (disturbed, unsteady) = (count(Outcome::Disturbed), count(Outcome::Unsteady));
    match figures.clone().count() {
        all if 3 * disturbed > all => Outcome::Disturbed,
        _ if unsteady > 0 => Outcome::Unsteady,
        _ => Outcome::Passed,
    }
}

impl Outcome {
    /// Whether performance figures of this outcome may be shown.
    pub fn has_figures(self) -> bool {
        matches!(self, Self::Passed | Self::Unsteady | Self::Disturbed)
    }
    /// Whether the run's exit status becomes 1 because of it.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Failed
                | Self::Timeout
                | Self::RankFailed
                | Self::OutOfMemory
                | Self::Diverged
                | Self::Invalid
        )
    }
}
