//! How each trial stands while the run goes on, and the outcome it ends with.
//!
//! Contract, the rules of a run:
//! - a trial whose gate failed is never measured;
//! - a failed repeat does not end its trial, because the next one may pass and its cause must not be guessed; but after
//!   one `out-of-memory`, one `invalid` or two `timeout`s later repeats could only end the same way, so they are left out;
//! - a trial with a failed repeat has that failure as its outcome, however many others passed;
//! - a trial is `disturbed` if more than a third of its repeats with figures are: a median bears fewer;
//! - otherwise it is `unsteady` if any repeat with figures is.
use syncmark_record::Outcome;

use super::progress::outcome_name;

/// Timeouts after which a trial is given up.
const TIMEOUTS_ALLOWED: usize = 2;

/// How one repeat ended.
#[derive(Clone, Debug, PartialEq)]
pub struct RepeatEnd {
    /// Repeat, from 0.
    pub repeat: u32,
    /// How.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<String>,
}

/// One trial in the course of a run.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// What bars it from being measured at all: its gate.
    barred: Option<(Outcome, String)>,
    repeats: Vec<RepeatEnd>,
}

/// Why trials that never ran did not.
#[derive(Clone, Debug, PartialEq)]
pub enum Unrun {
    /// They all had their chance.
    Complete,
    /// The user stopped the run.
    Interrupted,
    /// The run itself could not go on.
    Stopped(String),
}

impl Standing {
    /// Bars the trial: its gate did not pass.
    pub fn bar(&mut self, outcome: Outcome, reason: String) {
        self.barred = Some((outcome, reason));
    }

    /// Adds a repeat.
    pub fn add(&mut self, end: RepeatEnd) {
        self.repeats.push(end);
    }

    /// Whether a repeat has come to its end before.
    pub fn has(&self, repeat: u32) -> bool {
        self.repeats.iter().any(|end| end.repeat == repeat)
    }

    /// Whether a further repeat is worth running.
    pub fn is_open(&self) -> bool {
        let ended = |outcome| {
            self.repeats
                .iter()
                .filter(|end| end.outcome == outcome)
                .count()
        };
        self.barred.is_none()
            && ended(Outcome::OutOfMemory) == 0
            && ended(Outcome::Invalid) == 0
            && ended(Outcome::Timeout) < TIMEOUTS_ALLOWED
    }

    /// Repeats with figures.
    pub fn with_figures(&self) -> usize {
        self.repeats
            .iter()
            .filter(|end| end.outcome.has_figures())
            .count()
    }

    /// The outcome of the trial and its reason, given what became of the run and how many repeats were planned.
    pub fn outcome(&self, planned: usize, unrun: &Unrun) -> (Outcome, Option<String>) {
        if let Some((outcome, reason)) = &self.barred {
            return (*outcome, Some(reason.clone()));
        }
        if let Some(failure) = self.repeats.iter().find(|end| end.outcome.is_failure()) {
            let others = format!("{} of {planned} repeats ended well", self.with_figures());
            let reason = failure.reason.as_deref().unwrap_or("no reason was given");
            return (
                failure.outcome,
                Some(format!("repeat {}: {reason}; {others}", failure.repeat)),
            );
        }
        if self.with_figures() == 0 {
            return self.without_figures(unrun);
        }
        let outcomes = self.repeats.iter().map(|end| end.outcome);
        (
            syncmark_record::outcome::of_repeats(outcomes),
            self.reason_with_figures(planned, unrun),
        )
    }

    /// The first repeat of each kind that did not simply pass, and how many were like it.
    fn reason_with_figures(&self, planned: usize, unrun: &Unrun) -> Option<String> {
        let mut reasons = Vec::new();
        for outcome in [Outcome::Disturbed, Outcome::Unsteady] {
            let mut alike = self.repeats.iter().filter(|end| end.outcome == outcome);
            if let Some(first) = alike.next() {
                let (repeat, count) = (first.repeat, 1 + alike.count());
                let reason = first.reason.as_deref().unwrap_or("no reason was given");
                reasons.push(format!(
                    "repeat {repeat}: {reason} ({count} of {planned} repeats {})",
                    outcome_name(outcome)
                ));
            }
        }
        if self.with_figures() < planned && *unrun != Unrun::Complete {
            reasons.push(format!(
                "the run ended after {} of {planned} repeats",
                self.with_figures()
            ));
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn without_figures(&self, unrun: &Unrun) -> (Outcome, Option<String>) {
        match unrun {
            Unrun::Interrupted => {
                let when = if self.repeats.is_empty() {
                    "before"
                } else {
                    "during"
                };
                (
                    Outcome::Interrupted,
                    Some(format!("the run was interrupted {when} its first repeat")),
                )
            }
            Unrun::Stopped(why) => (
                Outcome::Skipped,
                Some(format!("the run stopped before it: {why}")),
            ),
            Unrun::Complete => (Outcome::Skipped, Some("no repeat was asked for".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(ends: &[Outcome]) -> Standing {
        let mut standing = Standing::default();
        for (repeat, &outcome) in (0..).zip(ends) {
            let reason = (outcome != Outcome::Passed).then(|| format!("{outcome:?} for a test"));
            standing.add(RepeatEnd {
                repeat,
                outcome,
                reason,
            });
        }
        standing
    }

    #[test]
    fn repeats_go_on_after_a_death_but_not_after_what_would_only_come_again() {
        assert!(standing(&[Outcome::RankFailed, Outcome::Failed, Outcome::Diverged]).is_open());
        assert!(standing(&[Outcome::Timeout]).is_open());
        assert!(!standing(&[Outcome::Timeout, Outcome::Passed, Outcome::Timeout]).is_open());
        assert!(!standing(&[Outcome::OutOfMemory]).is_open());
        assert!(!standing(&[Outcome::Invalid]).is_open());
    }

    #[test]
    fn one_failure_outweighs_every_repeat_that_passed() {
        let (outcome, reason) = standing(&[Outcome::Passed, Outcome::RankFailed, Outcome::Passed])
            .outcome(3, &Unrun::Complete);
        assert_eq!(outcome, Outcome::RankFailed);
        assert_eq!(
            reason.unwrap(),
            "repeat 1: RankFailed for a test; 2 of 3 repeats ended well"
        );
    }

    #[test]
    fn the_worst_of_those_with_figures_counts() {
        let (outcome, reason) = standing(&[Outcome::Passed, Outcome::Unsteady, Outcome::Passed])
            .outcome(3, &Unrun::Complete);
        assert_eq!(outcome, Outcome::Unsteady);
        assert_eq!(
            reason.unwrap(),
            "repeat 1: Unsteady for a test (1 of 3 repeats unsteady)"
        );
        assert_eq!(
            standing(&[Outcome::Passed]).outcome(1, &Unrun::Complete),
            (Outcome::Passed, None)
        );
    }

    #[test]
    fn a_trial_is_disturbed_when_more_than_a_third_of_its_repeats_are() {
        let (p, d, u) = (Outcome::Passed, Outcome::Disturbed, Outcome::Unsteady);
        let (outcome, reason) = standing(&[d, p, p]).outcome(3, &Unrun::Complete);
        assert_eq!(outcome, Outcome::Passed);
        assert_eq!(
            reason.unwrap(),
            "repeat 0: Disturbed for a test (1 of 3 repeats disturbed)"
        );
        let end = |ends: &[Outcome]| standing(ends).outcome(3, &Unrun::Complete).0;
        assert_eq!(end(&[d, p, d]), Outcome::Disturbed);
        assert_eq!(end(&[d, p, u]), Outcome::Unsteady);
        assert_eq!(end(&[d]), Outcome::Disturbed);
    }

    #[test]
    fn an_interruption_keeps_what_was_measured() {
        let (outcome, reason) =
            standing(&[Outcome::Passed, Outcome::Interrupted]).outcome(3, &Unrun::Interrupted);
        assert_eq!(outcome, Outcome::Passed);
        assert_eq!(reason.unwrap(), "the run ended after 1 of 3 repeats");
        assert_eq!(
            standing(&[]).outcome(3, &Unrun::Interrupted).0,
            Outcome::Interrupted
        );
        assert_eq!(
            standing(&[Outcome::Interrupted])
                .outcome(3, &Unrun::Interrupted)
                .0,
            Outcome::Interrupted
        );
    }

    #[test]
    fn a_barred_trial_keeps_the_word_of_its_gate() {
        let mut standing = standing(&[]);
        standing.bar(Outcome::Invalid, "gate: conv2d.weight differs".into());
        assert!(!standing.is_open());
        let end = standing.outcome(3, &Unrun::Interrupted);
        assert_eq!(
            end,
            (Outcome::Invalid, Some("gate: conv2d.weight differs".into()))
        );
    }
}
