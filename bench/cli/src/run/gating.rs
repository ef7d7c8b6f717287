//! Runs the gates of a plan, each once, and turns a disagreement into words.
//!
//! Contract: a gate is run once for all trials that share it, and a reference once for all gates that share it. Where rounding can make a
//! gate fail that has nothing wrong, it is tried from other initial parameters, and what was tried is recorded. A job that
//! fails in a gate bars its trials with that job's own outcome; a disagreement bars them as `invalid`.
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use syncmark_record::Outcome;
use syncmark_record::rows::GateRow;

use super::agreement::{self, Agreement, Dump};
use super::gate::{Gate, Pair, STRAY, Stage};
use super::job::{Executor, Job, StopError};
use crate::plan::Trial;

/// How a trial's gate ended.
#[derive(Clone, Debug, PartialEq)]
pub enum GateEnd {
    /// There is nothing to agree with, and why.
    NotNeeded(&'static str),
    /// It agrees at every stage.
    Passed(Vec<GateRow>),
    /// The trial must not be timed.
    Barred {
        /// What was compared, as far as it came to that.
        rows: Vec<GateRow>,
        /// `invalid`, or how a job of the gate ended.
        outcome: Outcome,
        /// Why.
        reason: String,
    },
    /// The user stopped the run.
    Interrupted,
}

/// How one side or a whole gate ended, before it is told of a trial.
#[derive(Clone, Debug)]
enum Ended<T> {
    Done(T),
    Failed(Outcome, String),
    Interrupted,
}

/// The gates run so far.
pub struct Gating<'a> {
    scratch: &'a Path,
    /// Of each start that was tried, how far its stages agreed.
    gates: HashMap<String, Ended<Vec<Vec<Agreement>>>>,
    references: HashMap<String, Ended<Dump>>,
    jobs: usize,
}

impl<'a> Gating<'a> {
    /// None so far; dumps go below `scratch`, and are removed once they are read.
    pub fn new(scratch: &'a Path) -> Self {
        Self {
            scratch,
            gates: HashMap::new(),
            references: HashMap::new(),
            jobs: 0,
        }
    }

    /// Gates a trial.
    ///
    /// # Errors
    /// [`StopError`] when no job can run any more.
    pub fn gate(
        &mut self,
        trial: &Trial,
        executor: &mut dyn Executor,
    ) -> Result<GateEnd, StopError> {
        let pair = match Gate::of(&trial.config) {
            Gate::Needed(pair) => pair,
            Gate::None(why) => return Ok(GateEnd::NotNeeded(why)),
        };
        let key = pair.key();
        if !self.gates.contains_key(&key) {
            let ended = self.run(&pair, trial, executor)?;
            self.gates.insert(key.clone(), ended);
        }
        Ok(match self.gates[&key].clone() {
            Ended::Done(starts) => judge(trial, &pair, starts),
            Ended::Failed(outcome, reason) => GateEnd::Barred {
                rows: Vec::new(),
                outcome,
                reason,
            },
            Ended::Interrupted => GateEnd::Interrupted,
        })
    }

    /// Tries one start after the other, until one agrees or the error of one is too large for another try.
    fn run(
        &mut self,
        pair: &Pair,
        trial: &Trial,
        executor: &mut dyn Executor,
    ) -> Result<Ended<Vec<Vec<Agreement>>>, StopError> {
        let mut starts = Vec::new();
        for start in 0..pair.starts() {
            let stages = match self.stages(&pair.from_start(start), trial, executor)? {
                Ended::Done(stages) => stages,
                Ended::Failed(outcome, reason) => return Ok(Ended::Failed(outcome, reason)),
                Ended::Interrupted => return Ok(Ended::Interrupted),
            };
            let again = stages
                .last()
                .is_some_and(|last| last.only_error && last.error <= STRAY);
            starts.push(stages);
            if !again {
                break;
            }
        }
        Ok(Ended::Done(starts))
    }

    /// Runs the stages in order, until one disagrees or cannot be run.
    fn stages(
        &mut self,
        pair: &Pair,
        trial: &Trial,
        executor: &mut dyn Executor,
    ) -> Result<Ended<Vec<Agreement>>, StopError> {
        let mut agreements = Vec::new();
        for stage in pair.stages() {
            match self.stage(stage, pair, trial, executor)? {
                Ended::Done(agreement) => agreements.push(agreement),
                Ended::Failed(outcome, reason) => return Ok(Ended::Failed(outcome, reason)),
                Ended::Interrupted => return Ok(Ended::Interrupted),
            }
            if agreements
                .last()
                .is_some_and(|last| last.complaint.is_some())
            {
                break;
            }
        }
        Ok(Ended::Done(agreements))
    }

    /// The reference first: without it the strategy's side proves nothing.
    fn stage(
        &mut self,
        stage: Stage,
        pair: &Pair,
        trial: &Trial,
        executor: &mut dyn Executor,
    ) -> Result<Ended<Agreement>, StopError> {
        let reference = match self.reference(stage, pair, trial, executor)? {
            Ended::Done(dump) => dump,
            Ended::Failed(outcome, reason) => {
                return Ok(Ended::Failed(
                    outcome,
                    format!("gate, on one device: {reason}"),
                ));
            }
            Ended::Interrupted => return Ok(Ended::Interrupted),
        };
        let folder = self.folder();
        let job = pair.strategy_job(stage, &trial.label, &folder);
        Ok(match run_side(job, &folder, executor)? {
            Ended::Done(dumps) => {
                Ended::Done(agreement::compare(&reference, &dumps, stage.tolerance))
            }
            Ended::Failed(outcome, reason) => Ended::Failed(outcome, format!("gate: {reason}")),
            Ended::Interrupted => Ended::Interrupted,
        })
    }

    /// What one device holds after a stage's steps, run at most once.
    fn reference(
        &mut self,
        stage: Stage,
        pair: &Pair,
        trial: &Trial,
        executor: &mut dyn Executor,
    ) -> Result<Ended<Dump>, StopError> {
        let key = pair.reference_key(stage);
        if !self.references.contains_key(&key) {
            let folder = self.folder();
            let job = pair.reference_job(stage, &trial.label, &folder);
            let ended = match run_side(job, &folder, executor)? {
                Ended::Done(mut dumps) => Ended::Done(dumps.swap_remove(0)),
                Ended::Failed(outcome, reason) => Ended::Failed(outcome, reason),
                Ended::Interrupted => Ended::Interrupted,
            };
            self.references.insert(key.clone(), ended);
        }
        Ok(self.references[&key].clone())
    }

    fn folder(&mut self) -> PathBuf {
        self.jobs += 1;
        self.scratch.join(format!("gate{}", self.jobs))
    }
}

/// Runs one side of a gate and reads its dumps.
fn run_side(
    (job, outputs): (Job, Vec<PathBuf>),
    folder: &Path,
    executor: &mut dyn Executor,
) -> Result<Ended<Vec<Dump>>, StopError> {
    let system = |source| StopError::System {
        what: "make a folder for the tensors of a gate",
        source,
    };
    std::fs::create_dir_all(folder).map_err(system)?;
    let result = executor.execute(&job);
    let dumps: Result<Vec<Dump>, _> = outputs.iter().map(|path| Dump::read(path)).collect();
    // The dumps are in memory now; what cannot be removed here goes with the scratch folder.
    let _ = std::fs::remove_dir_all(folder);
    let result = result?;
    Ok(match (result.outcome, dumps) {
        (Outcome::Passed, Ok(dumps)) => Ended::Done(dumps),
        (Outcome::Passed, Err(error)) => Ended::Failed(Outcome::Failed, error.to_string()),
        (Outcome::Interrupted, _) => Ended::Interrupted,
        (outcome, _) => Ended::Failed(
            outcome,
            result
                .reason
                .unwrap_or_else(|| "no reason was given".into()),
        ),
    })
}

/// The rows of a gate that was run, and whether it lets its trial pass.
fn judge(trial: &Trial, pair: &Pair, starts: Vec<Vec<Agreement>>) -> GateEnd {
    let last = starts.len().saturating_sub(1);
    let mut rows = Vec::new();
    for (start, agreements) in starts.into_iter().enumerate() {
        for (stage, agreement) in pair.stages().into_iter().zip(agreements) {
            let mut row = row(trial, pair, stage, agreement);
            row.start = start as u32;
            row.retried = start < last && !row.passed;
            rows.push(row);
        }
    }
    let complaint = rows
        .iter()
        .filter(|row| !row.retried)
        .find_map(|row| Some((row.steps, row.reason.clone()?)));
    match complaint {
        None => GateEnd::Passed(rows),
        Some((step, complaint)) => {
            let reference = pair.reference_name();
            let tried = match last {
                0 => String::new(),
                more => format!(", as from {more} other initial parameters"),
            };
            let reason = format!("gate at step {step}: {complaint} (against {reference}{tried})");
            GateEnd::Barred {
                rows,
                outcome: Outcome::Invalid,
                reason,
            }
        }
    }
}

fn row(trial: &Trial, pair: &Pair, stage: Stage, agreement: Agreement) -> GateRow {
    GateRow {
        trial: trial.id.clone(),
        label: trial.label.clone(),
        reference: pair.reference_name(),
        steps: stage.steps,
        tensors: agreement.tensors as u64,
        worst_tensor: agreement.worst_tensor,
        error: agreement.error.is_finite().then_some(agreement.error),
        tolerance: stage.tolerance,
        bit_equal: agreement.bit_equal,
        passed: agreement.complaint.is_none(),
        reason: agreement.complaint,
        start: 0,
        retried: false,
    }
}
