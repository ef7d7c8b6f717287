//! The story of a run: gates first, then blocks of shuffled trials, then what became of each trial.
//!
//! Contract: the conductor decides what runs when and what its end means; it starts no process and writes no file itself,
//! so a mock executor and a fake clock can tell the same story in a test. Rows are handed to the ledger at the end of
//! every repeat, whatever its outcome. The rules for repeats and outcomes stand in [`super::standing`].
use std::path::Path;
use std::time::Duration;

use syncmark_record::rows::{GateRow, TrialRow};
use syncmark_record::{FolderError, Outcome};

use super::gating::{GateEnd, Gating};
use super::job::{Clock, Executor, Job, JobResult, StopError};
use super::ledger::Ledger;
use super::progress::{Estimate, Progress};
use super::protocol::Purpose;
use super::recorder::RepeatFacts;
use super::resume::Done;
use super::standing::{RepeatEnd, Standing, Unrun};
use super::trial_row;
use crate::plan::schedule::schedule;
use crate::plan::{Plan, Trial};

/// What the conductor works with.
pub struct Conductor<'a> {
    /// Runs jobs.
    pub executor: &'a mut dyn Executor,
    /// Writes rows.
    pub ledger: &'a mut dyn Ledger,
    /// Tells the time.
    pub clock: &'a dyn Clock,
    /// Tells the user.
    pub progress: &'a mut dyn Progress,
    /// Where gates dump their tensors.
    pub scratch: &'a Path,
}

/// What became of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// One row per trial in the order of the plan, figures still empty.
    pub trials: Vec<TrialRow>,
    /// The gates.
    pub gates: Vec<GateRow>,
    /// Whether every block was run.
    pub unrun: Unrun,
}

/// Why a run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No further job can run.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// Records cannot be written.
    #[error(transparent)]
    Record(#[from] FolderError),
}

/// Whether the run goes on after a part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    GoOn,
    Interrupted,
}

impl Conductor<'_> {
    /// Runs a plan. What could not be run or written stops the run but loses nothing: [`RunEnd`] tells what there is.
    pub fn run(&mut self, plan: &Plan) -> RunEnd {
        self.finish(plan, &Done::new())
    }

    /// Runs what of a plan is not `done` yet.
    pub fn finish(&mut self, plan: &Plan, done: &Done) -> RunEnd {
        let mut run = Run::new(plan, done);
        self.progress.begin(run.jobs());
        let unrun = match self.gates(plan, &mut run).and_then(|flow| match flow {
            Flow::GoOn => self.blocks(plan, &mut run),
            Flow::Interrupted => Ok(flow),
        }) {
            Ok(Flow::GoOn) => Unrun::Complete,
            Ok(Flow::Interrupted) => Unrun::Interrupted,
            Err(error) => Unrun::Stopped(error.to_string()),
        };
        self.progress.end();
        run.end(plan, self.executor, unrun)
    }

    /// Gates every trial before any is timed, so that no time is spent on results that are wrong.
    fn gates(&mut self, plan: &Plan, run: &mut Run) -> Result<Flow, RunError> {
        let mut gating = Gating::new(self.scratch);
        for (trial, standing) in plan.trials.iter().zip(&mut run.standings) {
            if self.executor.interrupted() {
                return Ok(Flow::Interrupted);
            }
            if let Some(reason) = self.executor.refuses(&trial.config) {
                self.progress
                    .problem(&trial.label, Outcome::Skipped, &reason);
                standing.bar(Outcome::Skipped, reason);
                self.progress.finish();
                continue;
            }
            self.progress
                .start(&format!("{}, gate", trial.label), run.estimate.remaining());
            match gating.gate(trial, self.executor)? {
                GateEnd::NotNeeded(_) => {}
                GateEnd::Passed(rows) => run.gates.extend(rows),
                GateEnd::Barred {
                    rows,
                    outcome,
                    reason,
                } => {
                    self.progress.problem(&trial.label, outcome, &reason);
                    standing.bar(outcome, reason);
                    run.gates.extend(rows);
                }
                GateEnd::Interrupted => return Ok(Flow::Interrupted),
            }
            self.progress.finish();
        }
        self.ledger.gates(&run.gates)?;
        Ok(Flow::GoOn)
    }

    /// Runs the blocks: in each, every trial that is still open once, in shuffled order.
    fn blocks(&mut self, plan: &Plan, run: &mut Run) -> Result<Flow, RunError> {
        for (repeat, block) in (0..).zip(&run.blocks.clone()) {
            for (order, &index) in (0..).zip(block) {
                if self.executor.interrupted() {
                    return Ok(Flow::Interrupted);
                }
                run.estimate.take(index);
                if run.standings[index].is_open() && !run.standings[index].has(repeat) {
                    let end = self.repeat(&plan.trials[index], index, repeat, order, run)?;
                    if end == Outcome::Interrupted {
                        return Ok(Flow::Interrupted);
                    }
                }
                self.progress.finish();
            }
        }
        Ok(Flow::GoOn)
    }

    /// Runs one repeat of one trial and records it.
    fn repeat(
        &mut self,
        trial: &Trial,
        index: usize,
        repeat: u32,
        order: u32,
        run: &mut Run,
    ) -> Result<Outcome, RunError> {
        let what = format!(
            "{}, repeat {} of {}",
            trial.label,
            repeat + 1,
            run.blocks.len()
        );
        self.progress.start(
            &what,
            run.estimate.remaining() + run.estimate.expected(index),
        );
        let (job, unsynchronized_first) = measure_job(trial, repeat);
        let (started, begin) = (self.clock.utc(), self.clock.now());
        let result = self.executor.execute(&job)?;
        if result.outcome == Outcome::Passed {
            run.estimate
                .observe(index, self.clock.now().saturating_sub(begin));
        }
        let facts = repeat_facts(trial, repeat, order, started, unsynchronized_first, &result);
        let end = self.ledger.repeat(&facts, &result.events)?;
        if end.outcome != Outcome::Passed {
            self.progress.problem(
                &what,
                end.outcome,
                end.reason.as_deref().unwrap_or_default(),
            );
        }
        let outcome = end.outcome;
        run.standings[index].add(RepeatEnd {
            repeat,
            outcome,
            reason: end.reason,
        });
        Ok(outcome)
    }
}

/// The measuring job of a repeat. The paired arm comes first in every other repeat, so that what the order does to it
/// cancels over the repeats.
fn measure_job(trial: &Trial, repeat: u32) -> (Job, Option<bool>) {
    let unsynchronized_first = repeat % 2 == 1;
    let job = Job {
        label: trial.label.clone(),
        trial: trial.config.of_repeat(repeat),
        purpose: Purpose::Measure {
            unsynchronized_first,
        },
        repeat,
        timeout: Duration::from_nanos(trial.config.measure.timeout_ns),
    };
    (
        job,
        trial
            .config
            .measure
            .unsynchronized
            .then_some(unsynchronized_first),
    )
}

fn repeat_facts<'a>(
    trial: &'a Trial,
    repeat: u32,
    order: u32,
    started: String,
    unsynchronized_first: Option<bool>,
    result: &'a JobResult,
) -> RepeatFacts<'a> {
    RepeatFacts {
        trial: &trial.id,
        config: &trial.config,
        repeat,
        order,
        started,
        outcome: result.outcome,
        reason: result.reason.clone(),
        unsynchronized_first,
        cores: &result.cores,
        clocks: &result.clocks,
    }
}

/// What is known of a run while it goes on.
struct Run {
    standings: Vec<Standing>,
    gates: Vec<GateRow>,
    blocks: Vec<Vec<usize>>,
    estimate: Estimate,
}

impl Run {
    fn new(plan: &Plan, done: &Done) -> Self {
        let measure = &plan.scenario.measure;
        let standing = |trial: &Trial| {
            let mut standing = Standing::default();
            let ends = done.get(&trial.id).into_iter().flatten().cloned();
            ends.for_each(|end| standing.add(end));
            standing
        };
        let blocks = schedule(plan.trials.len(), measure.repeats, measure.seed);
        let estimate = Estimate::new(
            plan.trials.iter().map(|trial| &trial.config),
            measure.repeats,
        );
        Self {
            standings: plan.trials.iter().map(standing).collect(),
            gates: Vec::new(),
            blocks,
            estimate,
        }
    }

    /// Steps of the progress bar: a gate and the repeats of each trial.
    fn jobs(&self) -> usize {
        self.standings.len() * (1 + self.blocks.len())
    }

    fn end(self, plan: &Plan, executor: &dyn Executor, unrun: Unrun) -> RunEnd {
        let trials = plan.trials.iter().zip(&self.standings);
        let trials = trials.map(|(trial, standing)| {
            let cores = executor.cores(&trial.config);
            trial_row::row(plan, trial, standing, self.blocks.len(), cores, &unrun)
        });
        RunEnd {
            trials: trials.collect(),
            gates: self.gates,
            unrun,
        }
    }
}

#[cfg(test)]
mod tests;
