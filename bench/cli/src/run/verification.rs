//! What `syncmark verify` does: the gate and a few steps of every trial, no timing.
//!
//! Contract: the same jobs and the same rules as a run, but nothing is recorded and no figure is taken, so it can be run on
//! a busy machine. One trial that fails does not keep the others from being tried.
use std::path::Path;
use std::time::Duration;

use syncmark_record::Outcome;
use syncmark_record::rows::GateRow;

use super::gating::{GateEnd, Gating};
use super::job::{Executor, Job, StopError};
use super::ledger::{Verdict, judge};
use super::progress::Progress;
use super::protocol::Purpose;
use super::recorder::{self, RepeatFacts};
use crate::plan::config::{LearningConfig, Length, MeasureConfig, TrialConfig, Work};
use crate::plan::{Plan, Trial};

/// Steps of every trial.
const STEPS: usize = 3;

/// What was found out about one trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// Its label.
    pub label: String,
    /// Its gate in words: the largest error of each stage, or why there is none.
    pub gate: String,
    /// How its steps, or else its gate, ended.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<String>,
}

/// Verifies a plan. The result is shorter than the plan when the user stopped it.
///
/// # Errors
/// [`StopError`] when no job can run.
pub fn verify(
    plan: &Plan,
    executor: &mut dyn Executor,
    progress: &mut dyn Progress,
    scratch: &Path,
) -> Result<Vec<Verified>, StopError> {
    let mut gating = Gating::new(scratch);
    let mut verified = Vec::new();
    progress.begin(plan.trials.len());
    for trial in &plan.trials {
        if executor.interrupted() {
            break;
        }
        progress.start(&trial.label, Duration::ZERO);
        if let Some(reason) = executor.refuses(&trial.config) {
            verified.push(Verified {
                label: trial.label.clone(),
                gate: "not run".into(),
                outcome: Outcome::Skipped,
                reason: Some(reason),
            });
            progress.finish();
            continue;
        }
        let found = match gating.gate(trial, executor)? {
            GateEnd::Interrupted => break,
            GateEnd::Barred {
                outcome, reason, ..
            } => Verified {
                label: trial.label.clone(),
                gate: "failed".into(),
                outcome,
                reason: Some(reason),
            },
            GateEnd::NotNeeded(why) => steps(trial, format!("none: {why}"), executor)?,
            GateEnd::Passed(rows) => steps(trial, describe(&rows), executor)?,
        };
        let interrupted = found.outcome == Outcome::Interrupted;
        progress.finish();
        verified.push(found);
        if interrupted {
            break;
        }
    }
    progress.end();
    Ok(verified)
}

/// `1.4e-5 at step 1, 2.0e-4 at step 3`: the largest error of each stage, from the start that passed.
fn describe(rows: &[GateRow]) -> String {
    let start = rows.last().map_or(0, |row| row.start);
    let error = |row: &GateRow| format!("{:.1e} at step {}", row.error.unwrap_or(0.0), row.steps);
    let passed = rows.iter().filter(|row| row.start == start);
    let stages = passed.map(error).collect::<Vec<_>>().join(", ");
    match start {
        0 => stages,
        _ => format!("{stages} from start {}", start + 1),
    }
}

/// Runs a few steps of a trial's own batch.
fn steps(trial: &Trial, gate: String, executor: &mut dyn Executor) -> Result<Verified, StopError> {
    let config = few_steps(&trial.config);
    let job = Job {
        label: trial.label.clone(),
        trial: config.clone(),
        purpose: Purpose::Measure {
            unsynchronized_first: false,
        },
        repeat: 0,
        timeout: Duration::from_nanos(config.measure.timeout_ns),
    };
    let result = executor.execute(&job)?;
    let facts = RepeatFacts {
        trial: &trial.id,
        config: &config,
        repeat: 0,
        order: 0,
        started: String::new(),
        outcome: result.outcome,
        reason: result.reason,
        unsynchronized_first: None,
        cores: &result.cores,
        clocks: &result.clocks,
        nccl: None,
    };
    let Verdict { outcome, reason } =
        judge(&config, &recorder::record(&facts, &result.events).repeat);
    Ok(Verified {
        label: trial.label.clone(),
        gate,
        outcome,
        reason,
    })
}

/// The trial with a window of a few steps and nothing else.
fn few_steps(trial: &TrialConfig) -> TrialConfig {
    let measure = MeasureConfig {
        steps: STEPS,
        min_time_ns: 0,
        warmup_steps: 0,
        warmup_time_ns: 0,
        timeout_ns: trial.measure.timeout_ns,
        trace_steps: 0,
        unsynchronized: false,
        nvtx: false,
        smoke: true,
    };
    let work = match &trial.work {
        Work::Learning(learning) => Work::Learning(LearningConfig {
            length: Length::Steps(STEPS),
            every: None,
            precise_batches: learning.precise_batches.min(1),
            dropout_masks: learning.dropout_masks.min(1),
            ..learning.clone()
        }),
        other => other.clone(),
    };
    TrialConfig {
        work,
        measure,
        ..trial.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::StrategyConfig;
    use crate::run::mock::{Act, FakeClock, MockExecutor, MockProgress, dp, plan, trial};
    use crate::run::spool::Event;
    use crate::scenario::file::DpLoss;

    fn verified(
        script: &[(&'static str, Act)],
        wrong: Option<&'static str>,
    ) -> Vec<(String, Outcome)> {
        let mut plan = plan(1);
        plan.trials = vec![
            trial("single", StrategyConfig::Single, 1),
            trial("dp", dp(DpLoss::Gathered, 2), 2),
        ];
        let scratch = tempfile::tempdir().unwrap();
        let mut executor = MockExecutor::new(&FakeClock::default(), script);
        executor.wrong = wrong;
        executor.events = vec![vec![Event::Pass {
            pass: 0,
            steps: 3,
            samples: 96,
            start_ns: 0,
            end_ns: 9,
        }]];
        let found = verify(
            &plan,
            &mut executor,
            &mut MockProgress::default(),
            scratch.path(),
        )
        .unwrap();
        found
            .into_iter()
            .map(|found| (found.gate, found.outcome))
            .collect()
    }

    #[test]
    fn every_trial_is_gated_and_run() {
        let found = verified(&[], None);
        assert_eq!(
            found[0],
            (
                "none: one device is the reference itself".into(),
                Outcome::Passed
            )
        );
        assert_eq!(
            found[1],
            ("0.0e0 at step 1, 0.0e0 at step 3".into(), Outcome::Passed)
        );
    }

    #[test]
    fn a_gate_that_fails_and_steps_that_fail_are_told_apart() {
        assert_eq!(
            verified(&[], Some("dp"))[1],
            ("failed".into(), Outcome::Invalid)
        );
        let failed = verified(
            &[("single#0", Act::End(Outcome::Diverged, "loss is NaN"))],
            None,
        );
        assert_eq!(failed[0].1, Outcome::Diverged);
        assert_eq!(failed[1].1, Outcome::Passed, "the others are still tried");
    }

    #[test]
    fn ctrl_c_ends_it() {
        assert_eq!(
            verified(
                &[("single#0", Act::End(Outcome::Interrupted, "ctrl-C"))],
                None
            )
            .len(),
            1
        );
    }
}
