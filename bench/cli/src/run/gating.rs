//! Runs the gates of a plan, each once, and turns a disagreement into words.
//!
//! Contract: a gate is run once for all trials that share it, and a reference once for all gates that share it. A job that
//! fails in a gate bars its trials with that job's own outcome; a disagreement bars them as `invalid`.
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use syncmark_record::Outcome;
use syncmark_record::rows::GateRow;

use super::agreement::{self, Agreement, Dump};
use super::gate::{self, Gate, Pair};
use super::job::{Executor, Job, StopError};
use crate::plan::Trial;

/// How a trial's gate ended.
#[derive(Clone, Debug, PartialEq)]
pub enum GateEnd {
    /// There is nothing to agree with, and why.
    NotNeeded(&'static str),
    /// It agrees.
    Passed(GateRow),
    /// The trial must not be timed.
    Barred {
        /// What was compared, where it came to that.
        row: Option<GateRow>,
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
    gates: HashMap<String, Ended<Agreement>>,
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
            Ended::Done(agreement) => judge(trial, &pair, agreement),
            Ended::Failed(outcome, reason) => GateEnd::Barred {
                row: None,
                outcome,
                reason,
            },
            Ended::Interrupted => GateEnd::Interrupted,
        })
    }

    /// The reference first: without it the strategy's side proves nothing.
    fn run(
        &mut self,
        pair: &Pair,
        trial: &Trial,
        executor: &mut dyn Executor,
    ) -> Result<Ended<Agreement>, StopError> {
        let timeout = Duration::from_nanos(trial.config.measure.timeout_ns);
        let key = pair.reference_key();
        if !self.references.contains_key(&key) {
            let folder = self.folder();
            let ended = match run_side(
                pair.reference_job(&trial.label, &folder, timeout),
                &folder,
                executor,
            )? {
                Ended::Done(mut dumps) => Ended::Done(dumps.swap_remove(0)),
                Ended::Failed(outcome, reason) => {
                    Ended::Failed(outcome, format!("gate, on one device: {reason}"))
                }
                Ended::Interrupted => Ended::Interrupted,
            };
            self.references.insert(key.clone(), ended);
        }
        let reference = match self.references[&key].clone() {
            Ended::Done(dump) => dump,
            Ended::Failed(outcome, reason) => return Ok(Ended::Failed(outcome, reason)),
            Ended::Interrupted => return Ok(Ended::Interrupted),
        };
        let folder = self.folder();
        Ok(
            match run_side(
                pair.strategy_job(&trial.label, &folder, timeout),
                &folder,
                executor,
            )? {
                Ended::Done(dumps) => Ended::Done(agreement::compare(&reference, &dumps)),
                Ended::Failed(outcome, reason) => Ended::Failed(outcome, format!("gate: {reason}")),
                Ended::Interrupted => Ended::Interrupted,
            },
        )
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

/// The row of a gate that was run, and whether it lets its trial pass.
fn judge(trial: &Trial, pair: &Pair, agreement: Agreement) -> GateEnd {
    let row = GateRow {
        trial: trial.id.clone(),
        label: trial.label.clone(),
        reference: pair.reference_name(),
        steps: gate::STEPS,
        tensors: agreement.tensors as u64,
        worst_tensor: agreement.worst_tensor,
        error: agreement.error.is_finite().then_some(agreement.error),
        tolerance: agreement::TOLERANCE,
        bit_equal: agreement.bit_equal,
        passed: agreement.complaint.is_none(),
        reason: agreement.complaint.clone(),
    };
    match agreement.complaint {
        None => GateEnd::Passed(row),
        Some(complaint) => {
            let reason = format!("gate: {complaint} (against {})", row.reference);
            GateEnd::Barred {
                row: Some(row),
                outcome: Outcome::Invalid,
                reason,
            }
        }
    }
}
