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
use super::job::{Clock, Executor, Follow, Job, JobResult, Next, StopError, one_by_one};
use super::ledger::Ledger;
use super::nccl_choices::{self, Asked, Choices};
use super::progress::{Estimate, Progress};
use super::protocol::Purpose;
use super::recorder::RepeatFacts;
use super::resume::Done;
use super::standing::{RepeatEnd, Standing, Unrun};
use super::trial_row;
use crate::plan::config::TrialConfig;
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
        let trials = plan.trials.iter().zip(&mut run.standings);
        for ((trial, standing), choices) in trials.zip(&mut run.choices) {
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
            match nccl_choices::ask(trial, self.executor, self.scratch)? {
                Asked::NotNeeded => {}
                Asked::Known(known) => *choices = Some(known),
                Asked::Unknown(outcome, why) => self.progress.problem(&trial.label, outcome, &why),
                Asked::Interrupted => return Ok(Flow::Interrupted),
            }
            self.progress.finish();
        }
        self.ledger.gates(&run.gates)?;
        Ok(Flow::GoOn)
    }

    /// Runs the blocks: in each, every trial that is still open once, in shuffled order; side by side only where the scenario says so.
    fn blocks(&mut self, plan: &Plan, run: &mut Run) -> Result<Flow, RunError> {
        let seats = run.seats();
        let job = |seat: &Seat| measure_job(&plan.trials[seat.trial], seat.repeat).0;
        let jobs: Vec<Job> = seats.iter().map(job).collect();
        let concurrent = plan.scenario.measure.concurrent;
        let lanes = match concurrent {
            true => lanes(plan, |config| self.executor.cores(config)),
            false => 1,
        };
        let mut following = Following {
            plan,
            run,
            begun: vec![None; seats.len()],
            seats,
            lanes,
            ledger: &mut *self.ledger,
            clock: self.clock,
            progress: &mut *self.progress,
            error: None,
            decided: 0,
            interrupted: false,
        };
        match concurrent {
            true => self.executor.side_by_side(&jobs, &mut following)?,
            false => one_by_one(self.executor, &jobs, &mut following)?,
        }
        let interrupted = following.interrupted || following.decided < jobs.len();
        match following.error {
            Some(error) => Err(error.into()),
            None if interrupted => Ok(Flow::Interrupted),
            None => Ok(Flow::GoOn),
        }
    }
}

/// How many trials of a plan run at a time where they run side by side, by the cores that there are for one.
pub fn lanes(plan: &Plan, cores: impl Fn(&TrialConfig) -> usize) -> u32 {
    let lanes = |trial: &Trial| {
        let own = trial.config.devices.saturating_mul(trial.config.threads);
        cores(&trial.config) / own.max(1)
    };
    let fewest = plan.trials.iter().map(lanes).min().unwrap_or(1);
    u32::try_from(fewest).unwrap_or(u32::MAX).max(1)
}

/// One repeat of one trial in the order of the schedule.
#[derive(Clone, Copy, Debug)]
struct Seat {
    trial: usize,
    repeat: u32,
    /// Place within its block.
    order: u32,
}

/// Follows the repeats of a run and records them.
struct Following<'a> {
    plan: &'a Plan,
    run: &'a mut Run,
    seats: Vec<Seat>,
    /// When each began: for the records, and by the clock.
    begun: Vec<Option<(String, Duration)>>,
    lanes: u32,
    ledger: &'a mut dyn Ledger,
    clock: &'a dyn Clock,
    progress: &'a mut dyn Progress,
    error: Option<FolderError>,
    /// Repeats that started or are no longer wanted.
    decided: usize,
    interrupted: bool,
}

impl Following<'_> {
    fn what(&self, seat: Seat) -> String {
        format!(
            "{}, repeat {} of {}",
            self.plan.trials[seat.trial].label,
            seat.repeat + 1,
            self.run.blocks.len()
        )
    }

    /// Records the end of a repeat.
    fn record(
        &mut self,
        seat: Seat,
        started: String,
        result: &JobResult,
    ) -> Result<Outcome, FolderError> {
        let trial = &self.plan.trials[seat.trial];
        let (_, unsynchronized_first) = measure_job(trial, seat.repeat);
        let facts = repeat_facts(
            trial,
            seat.repeat,
            seat.order,
            started,
            unsynchronized_first,
            result,
            self.run.choices[seat.trial].as_ref(),
        );
        let end = self.ledger.repeat(&facts, &result.events)?;
        if end.outcome != Outcome::Passed {
            let reason = end.reason.as_deref().unwrap_or_default();
            let what = self.what(seat);
            self.progress.problem(&what, end.outcome, reason);
        }
        let outcome = end.outcome;
        self.run.standings[seat.trial].add(RepeatEnd {
            repeat: seat.repeat,
            outcome,
            reason: end.reason,
        });
        Ok(outcome)
    }
}

impl Follow for Following<'_> {
    fn starts(&mut self, index: usize) -> bool {
        let seat = self.seats[index];
        self.decided += 1;
        self.run.estimate.take(seat.trial);
        let standing = &self.run.standings[seat.trial];
        if !standing.is_open() || standing.has(seat.repeat) {
            self.progress.finish();
            return false;
        }
        let remaining = self.run.estimate.remaining() + self.run.estimate.expected(seat.trial);
        let what = self.what(seat);
        self.progress.start(&what, remaining / self.lanes);
        self.begun[index] = Some((self.clock.utc(), self.clock.now()));
        true
    }

    fn ended(&mut self, index: usize, result: JobResult) -> Next {
        let seat = self.seats[index];
        let (started, begin) = self.begun[index].take().unwrap_or_default();
        if result.outcome == Outcome::Passed {
            let took = self.clock.now().saturating_sub(begin);
            self.run.estimate.observe(seat.trial, took);
        }
        match self.record(seat, started, &result) {
            Ok(Outcome::Interrupted) => {
                self.interrupted = true;
                Next::StartNone
            }
            Ok(_) => {
                self.progress.finish();
                Next::GoOn
            }
            Err(error) => {
                self.error = Some(error);
                Next::Abandon
            }
        }
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
    nccl: Option<&'a Choices>,
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
        nccl,
    }
}

/// What is known of a run while it goes on.
struct Run {
    standings: Vec<Standing>,
    /// What NCCL takes for the calls of each trial, where it is known.
    choices: Vec<Option<Choices>>,
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
            choices: vec![None; plan.trials.len()],
            gates: Vec::new(),
            blocks,
            estimate,
        }
    }

    /// All repeats in the order of the schedule.
    fn seats(&self) -> Vec<Seat> {
        let of = |(repeat, block): (u32, &Vec<usize>)| {
            let seat = move |(order, trial): (u32, usize)| Seat {
                trial,
                repeat,
                order,
            };
            (0..).zip(block.clone()).map(seat).collect::<Vec<_>>()
        };
        (0..).zip(&self.blocks).flat_map(of).collect()
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
