//! Where the rows of a run go, and the last word on how a repeat ended.
//!
//! Contract: a repeat is judged by what its ranks left, not only by how its processes ended: unequal parameters, a loss
//! that is not finite, a missing window and an unsteady one are all visible in the events alone. Rows are on disk when
//! a call returns. See "A run folder" in ARCHITECTURE.md.
use syncmark_record::disturbance::disturbance;
use syncmark_record::rows::{GateRow, RepeatRow};
use syncmark_record::{FolderError, Outcome, Records, RepeatRecord, RunFolder};

use super::recorder::{self, RepeatFacts};
use super::spool::Event;
use crate::plan::config::{TrialConfig, Work};

/// Largest change of the mean step time from the first to the last third of a steady window.
pub const STEADY: f64 = 0.02;

/// How a repeat ended once its events were looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<String>,
}

/// Writes the rows of a run.
pub trait Ledger {
    /// Judges and writes a repeat.
    ///
    /// # Errors
    /// [`FolderError`] with what is kept.
    fn repeat(
        &mut self,
        facts: &RepeatFacts<'_>,
        ranks: &[Vec<Event>],
    ) -> Result<Verdict, FolderError>;

    /// Writes all gates.
    ///
    /// # Errors
    /// [`FolderError`].
    fn gates(&mut self, rows: &[GateRow]) -> Result<(), FolderError>;
}

/// Writes to a run folder.
pub struct FolderLedger {
    folder: RunFolder,
    records: Records,
}

impl FolderLedger {
    /// Opens the files of a folder.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn new(folder: RunFolder) -> Result<Self, FolderError> {
        let records = folder.records()?;
        Ok(Self { folder, records })
    }
}

impl Ledger for FolderLedger {
    fn repeat(
        &mut self,
        facts: &RepeatFacts<'_>,
        ranks: &[Vec<Event>],
    ) -> Result<Verdict, FolderError> {
        let mut record = recorder::record(facts, ranks);
        let verdict = match facts.config.work {
            Work::Train => judge(facts.config, &record.repeat),
            Work::LayerCost => judge_nodes(facts.config, &record),
            Work::Learning(_) => judge_learning(&record),
            Work::Collectives(_) => judge_collectives(facts.config, &record),
        };
        record.repeat.outcome = verdict.outcome;
        record.repeat.reason = verdict.reason.clone();
        self.records.append(&record)?;
        Ok(verdict)
    }

    fn gates(&mut self, rows: &[GateRow]) -> Result<(), FolderError> {
        if rows.is_empty() {
            Ok(())
        } else {
            self.folder.write_gates(rows)
        }
    }
}

/// Judges a repeat that learned: it has an end, which has been evaluated. Other load slows it down and changes nothing that it learns.
fn judge_learning(record: &RepeatRecord) -> Verdict {
    let row = &record.repeat;
    let evaluated = record
        .learning
        .last()
        .is_some_and(|last| last.eval_error.is_some());
    let (outcome, reason) = match (row.outcome, row.parameters_equal) {
        (Outcome::Passed, Some(false)) => (
            Outcome::Invalid,
            Some("the ranks' parameters were not bit-equal after the last step".to_owned()),
        ),
        (Outcome::Passed, _) if !evaluated || row.window_ns.is_none() => (
            Outcome::Failed,
            Some("the end of training was not evaluated".to_owned()),
        ),
        (outcome, _) => (outcome, row.reason.clone()),
    };
    Verdict { outcome, reason }
}

/// Judges a repeat of collectives: one wrong element makes all of it invalid.
fn judge_collectives(trial: &TrialConfig, record: &RepeatRecord) -> Verdict {
    let row = &record.repeat;
    let wrong = record.collectives.iter().find(|row| row.wrong_elements > 0);
    let (outcome, reason) = match (row.outcome, wrong) {
        (Outcome::Passed, Some(wrong)) => {
            let (count, name) = (wrong.wrong_elements, &wrong.collective);
            let reason = format!(
                "{count} elements of a {name} of {} B were wrong",
                wrong.size_bytes
            );
            (Outcome::Invalid, Some(reason))
        }
        (Outcome::Passed, None) if record.collectives.is_empty() => (
            Outcome::Failed,
            Some("no collective was measured".to_owned()),
        ),
        (Outcome::Passed, None) => match disturbance(row).filter(|_| !trial.measure.smoke) {
            Some(reason) => (Outcome::Disturbed, Some(reason)),
            None => (Outcome::Passed, None),
        },
        (outcome, _) => (outcome, row.reason.clone()),
    };
    Verdict { outcome, reason }
}

/// Judges a repeat whose nodes were timed: as any training, and it has their times.
fn judge_nodes(trial: &TrialConfig, record: &RepeatRecord) -> Verdict {
    let verdict = judge(trial, &record.repeat);
    if verdict.outcome.has_figures() && record.layers.is_empty() {
        return Verdict {
            outcome: Outcome::Failed,
            reason: Some("the time of no node was recorded".to_owned()),
        };
    }
    verdict
}

/// Judges a repeat by its row. What its processes said stands, unless they said that all went well.
pub fn judge(trial: &TrialConfig, row: &RepeatRow) -> Verdict {
    let verdict = |outcome, reason: String| Verdict {
        outcome,
        reason: Some(reason),
    };
    if row.outcome != Outcome::Passed {
        return Verdict {
            outcome: row.outcome,
            reason: row.reason.clone(),
        };
    }
    if row.window_ns.is_none() {
        return verdict(
            Outcome::Failed,
            "no complete window was recorded on all ranks".into(),
        );
    }
    if row.parameters_equal == Some(false) {
        return verdict(
            Outcome::Invalid,
            "the ranks' parameters were not bit-equal after the window".into(),
        );
    }
    if let Some(loss) = row.loss.filter(|loss| !loss.is_finite()) {
        return verdict(Outcome::Diverged, format!("the training loss was {loss}"));
    }
    // Windows of a smoke size are too short for these rules, and labelled so.
    let long_enough = !trial.measure.smoke;
    let disturbed = disturbance(row).filter(|_| long_enough);
    let unsteady = change(row).filter(|_| long_enough);
    let outcome = match (&disturbed, &unsteady) {
        (Some(_), _) => Outcome::Disturbed,
        (None, Some(_)) => Outcome::Unsteady,
        (None, None) => Outcome::Passed,
    };
    let reasons: Vec<String> = disturbed.into_iter().chain(unsteady).collect();
    Verdict {
        outcome,
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
    }
}

/// What makes a window unsteady.
fn change(row: &RepeatRow) -> Option<String> {
    let drift = recorder::drift(row).filter(|drift| drift.abs() > STEADY)?;
    let direction = if drift > 0.0 { "longer" } else { "shorter" };
    let percent = drift.abs() * 100.0;
    Some(format!(
        "steps were {percent:.1} % {direction} in the last third of the window than in the first"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::StrategyConfig;
    use crate::run::mock::{config, repeat_row};

    fn judged(change: fn(&mut RepeatRow), smoke: bool) -> Verdict {
        let mut trial = config(StrategyConfig::Single, 1);
        trial.measure.smoke = smoke;
        let mut row = repeat_row();
        change(&mut row);
        judge(&trial, &row)
    }

    #[test]
    fn a_steady_window_passes() {
        assert_eq!(
            judged(|_| {}, false),
            Verdict {
                outcome: Outcome::Passed,
                reason: None
            }
        );
        assert_eq!(
            judged(|row| row.last_third_ns = Some(1_019_999), false).outcome,
            Outcome::Passed
        );
    }

    #[test]
    fn a_window_that_changes_is_unsteady_unless_it_is_a_smoke_size() {
        let slower = |row: &mut RepeatRow| row.last_third_ns = Some(1_050_000);
        let verdict = judged(slower, false);
        assert_eq!(verdict.outcome, Outcome::Unsteady);
        assert_eq!(
            verdict.reason.unwrap(),
            "steps were 5.0 % longer in the last third of the window than in the first"
        );
        assert_eq!(judged(slower, true).outcome, Outcome::Passed);
        assert_eq!(
            judged(|row| row.last_third_ns = Some(950_000), false).outcome,
            Outcome::Unsteady
        );
    }

    /// A window of 5 s on cores that others used for a share of it, and that were stolen for another.
    fn watched(row: &mut RepeatRow, foreign: f64, stolen: f64) {
        row.watched_ns = Some(5_000_000_000);
        row.foreign_cpu_share = Some(foreign);
        row.steal_share = Some(stolen);
    }

    #[test]
    fn other_load_disturbs_above_its_limit_unless_the_window_is_a_smoke_size() {
        let loud = |row: &mut RepeatRow| watched(row, 0.073, 0.0);
        let verdict = judged(loud, false);
        assert_eq!(verdict.outcome, Outcome::Disturbed);
        assert_eq!(
            verdict.reason.unwrap(),
            "other programs used a core of the ranks for 7.3 % of a timed pass"
        );
        assert_eq!(judged(loud, true).outcome, Outcome::Passed);
        let quiet = |row: &mut RepeatRow| watched(row, 0.019, 0.009);
        assert_eq!(judged(quiet, false).outcome, Outcome::Passed);
        let stolen = |row: &mut RepeatRow| watched(row, 0.0, 0.03);
        assert_eq!(judged(stolen, false).outcome, Outcome::Disturbed);
    }

    #[test]
    fn a_disturbed_window_that_changes_says_both() {
        let verdict = judged(
            |row| {
                watched(row, 0.1, 0.0);
                row.last_third_ns = Some(1_050_000);
            },
            false,
        );
        assert_eq!(verdict.outcome, Outcome::Disturbed);
        let reason = verdict.reason.unwrap();
        assert!(
            reason.contains("other programs") && reason.contains("last third"),
            "{reason}"
        );
    }

    #[test]
    fn a_few_ticks_of_a_short_window_or_an_unwatched_one_are_no_disturbance() {
        let short = |row: &mut RepeatRow| {
            watched(row, 0.10, 0.10);
            row.watched_ns = Some(400_000_000);
        };
        assert_eq!(judged(short, false).outcome, Outcome::Passed);
        assert_eq!(
            judged(|row| row.watched_ns = None, false).outcome,
            Outcome::Passed
        );
    }

    #[test]
    fn what_the_ranks_left_outweighs_an_exit_status_of_zero() {
        assert_eq!(
            judged(|row| row.window_ns = None, true).outcome,
            Outcome::Failed
        );
        assert_eq!(
            judged(|row| row.parameters_equal = Some(false), true).outcome,
            Outcome::Invalid
        );
        assert_eq!(
            judged(|row| row.loss = Some(f64::NAN), true).outcome,
            Outcome::Diverged
        );
    }

    #[test]
    fn a_failure_keeps_its_own_reason() {
        let killed = |row: &mut RepeatRow| {
            row.outcome = Outcome::RankFailed;
            row.reason = Some("rank 1 was killed".into());
            row.window_ns = None;
        };
        let verdict = judged(killed, false);
        assert_eq!(
            (verdict.outcome, verdict.reason.as_deref()),
            (Outcome::RankFailed, Some("rank 1 was killed"))
        );
    }
}
