//! Holds several GPUs' figures against other programs: what `syncmark run` does once the trials of `kind = "acceptance"` are through.
//!
//! Contract: a comparison that cannot be made is skipped with its reason and never passed; one that was made passes or fails by a tolerance that
//! stands beside it. A machine is accepted by [`Acceptance::accepts`] alone, is remembered where the user's data are, and later runs there take
//! the acceptance into their `environment.json`, so that a report needs nothing but its folder.
//! Reference: METHODOLOGY.md, "Accepting several GPUs".
mod counters;
mod nccl_tests;
mod program;
mod pytorch;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;

use syncmark_engine::backend::cuda::discovery;
use syncmark_record::acceptance::{Acceptance, Check, CheckState};
use syncmark_record::environment::gpu::Cuda;
use syncmark_record::rows::{CollectiveRow, GateRow, TrialRow};
use syncmark_record::{Environment, RunFolder};

use crate::plan::config::{Backend, Work};
use crate::plan::{Plan, Trial};
use crate::run::job::Clock;
use crate::run::signals::Signals;

pub use store::remembered;

/// The file of a run folder.
pub const FILE: &str = "acceptance.json";
/// Where a person reads how each comparison is made.
pub const SCENARIO: &str = "gpu-acceptance";

/// What the comparisons are made from.
pub struct Scene<'a> {
    /// What ran.
    pub plan: &'a Plan,
    /// Its records.
    pub folder: &'a RunFolder,
    /// Its rows of `trials.csv`.
    pub trials: &'a [TrialRow],
    /// The machine.
    pub environment: &'a Environment,
    /// Whether a launcher's agents ran it.
    pub launched: bool,
    /// Ctrl-C.
    pub signals: &'a Signals,
}

/// How a comparison came out, before it has a name.
struct Found {
    state: CheckState,
    words: String,
    figures: BTreeMap<String, f64>,
}

impl Found {
    fn skipped(why: impl Into<String>) -> Self {
        Self {
            state: CheckState::Skipped,
            words: why.into(),
            figures: BTreeMap::new(),
        }
    }

    fn judged<const N: usize>(good: bool, words: String, figures: [(&str, f64); N]) -> Self {
        // JSON has no other numbers.
        let finite = figures.into_iter().filter(|(_, value)| value.is_finite());
        let figures = finite.map(|(name, value)| (name.to_owned(), value));
        Self {
            state: if good {
                CheckState::Passed
            } else {
                CheckState::Failed
            },
            words,
            figures: figures.collect(),
        }
    }
}

impl Scene<'_> {
    fn trial(&self, is: impl Fn(&Trial) -> bool) -> Option<&Trial> {
        self.plan.trials.iter().find(|trial| is(trial))
    }

    /// Whether a trial has figures; why not, where it was planned.
    fn measured(&self, trial: &Trial) -> Result<&TrialRow, String> {
        let row = self.trials.iter().find(|row| row.trial == trial.id);
        let row = row.ok_or_else(|| format!("{} has no row", trial.label))?;
        match row.outcome.has_figures() {
            true => Ok(row),
            false => Err(format!(
                "{} ended otherwise: {}",
                trial.label,
                row.reason.as_deref().unwrap_or("no reason given")
            )),
        }
    }

    /// Devices of the largest trial.
    fn devices(&self) -> usize {
        let devices = self.plan.trials.iter().map(|trial| trial.config.devices);
        devices.max().unwrap_or(0)
    }

    /// Why other programs cannot be started on the same GPUs as the ranks had.
    fn no_gpus_of_their_own(&self) -> Option<String> {
        let on_gpus = |trial: &Trial| trial.config.backend == Backend::Cuda;
        if !self.plan.trials.iter().all(on_gpus) {
            return Some("the trials ran on CPUs".to_owned());
        }
        if self.launched {
            return Some("a launcher's agents ran the trials; start it without one".to_owned());
        }
        match discovery::gpus() {
            Ok(gpus) if gpus >= self.devices() => None,
            Ok(gpus) => Some(format!("{} devices share {gpus} of them", self.devices())),
            Err(lack) => Some(lack.to_string()),
        }
    }
}

/// Makes every comparison; each is announced on stderr unless `quiet`.
pub fn judge(scene: &Scene<'_>, quiet: bool) -> Acceptance {
    let no_gpus = scene.no_gpus_of_their_own();
    type Compare = fn(&Scene<'_>, Option<&str>) -> Found;
    let comparisons: [(&str, bool, Compare); 6] = [
        ("results of collectives over NCCL", true, |scene, _| {
            exact(scene)
        }),
        ("DDP beside one device", true, |scene, _| gates(scene)),
        ("DDP's losses beside PyTorch's", true, pytorch::losses),
        ("DDP's step beside PyTorch's", false, pytorch::step),
        (
            "bus bandwidth beside nccl-tests'",
            false,
            nccl_tests::bandwidth,
        ),
        ("bytes beside NVLink's counters", false, counters::bytes),
    ];
    let mut checks = Vec::new();
    for (name, required, compare) in comparisons {
        if !quiet {
            eprintln!("acceptance: {name} ...");
        }
        let found = match scene.signals.received() {
            0 => compare(scene, no_gpus.as_deref()),
            _ => Found::skipped("interrupted"),
        };
        checks.push(Check {
            name: name.to_owned(),
            state: found.state,
            required,
            words: found.words,
            figures: found.figures,
        });
    }
    let environment = scene.environment;
    let commit = environment.git_commit.as_deref().unwrap_or("unknown");
    let mut acceptance = Acceptance {
        date: crate::run::job::SystemClock::default().utc(),
        scenario: scene.plan.scenario.name.clone(),
        syncmark: format!("{} ({commit})", environment.syncmark_version),
        devices: u32::try_from(scene.devices()).unwrap_or(u32::MAX),
        own_gpus: no_gpus.is_none(),
        checks,
        ..Acceptance::default()
    }
    .on(environment.cuda.as_ref().unwrap_or(&Cuda::default()));
    // Smoke sizes are too short for anything.
    acceptance.accepted = acceptance.accepts() && !scene.plan.scenario.measure.smoke;
    acceptance
}

/// Writes the acceptance into its run folder, and remembers it if it is one.
///
/// # Errors
/// In words, what could not be written.
pub fn keep(acceptance: &Acceptance, folder: &RunFolder) -> Result<Option<PathBuf>, String> {
    let mut text = serde_json::to_vec_pretty(acceptance).expect("an acceptance is plain data");
    text.push(b'\n');
    folder
        .replace(FILE, &text)
        .map_err(|error| format!("cannot write {FILE}: {error}"))?;
    match acceptance.accepted {
        true => store::remember(acceptance, &text).map(Some),
        false => Ok(None),
    }
}

/// What a run ends with.
pub fn summary(acceptance: &Acceptance) -> String {
    let mut text = String::new();
    for check in &acceptance.checks {
        let state = match check.state {
            CheckState::Passed => "passed",
            CheckState::Failed => "FAILED",
            CheckState::Skipped => "skipped",
        };
        text.push_str(&format!("{state}: {}: {}\n", check.name, check.words));
    }
    let verdict = match acceptance.accepted {
        true => "Multi-GPU accepted here; reports of runs on these GPUs say so.",
        false => {
            "Multi-GPU not accepted here: that takes two GPUs or more, every required comparison, none that failed, and no smoke size."
        }
    };
    text.push_str(verdict);
    text.push('\n');
    text
}

/// Whether a comparison came out badly, which a run says with its exit status.
pub fn has_failed(acceptance: &Acceptance) -> bool {
    let failed = |check: &Check| check.state == CheckState::Failed;
    acceptance.checks.iter().any(failed)
}

/// Every element of every result.
fn exact(scene: &Scene<'_>) -> Found {
    let alone = |trial: &Trial| matches!(trial.config.work, Work::Collectives(_));
    let Some(trial) = scene.trial(alone) else {
        return Found::skipped("no trial of collectives was run");
    };
    let rows: Vec<CollectiveRow> = match scene.folder.read() {
        Ok(rows) => rows,
        Err(error) => return Found::skipped(error.to_string()),
    };
    let own = rows
        .iter()
        .filter(|row| row.trial == trial.id && row.transport == "nccl" && row.checked);
    let (count, wrong) = own.fold((0u64, 0u64), |(count, wrong), row| {
        (count + 1, wrong + row.wrong_elements)
    });
    match (scene.measured(trial), count) {
        (Err(why), _) => Found::judged(false, why, [("wrong_elements", wrong as f64)]),
        (_, 0) => Found::skipped("no collective went over NCCL"),
        (Ok(_), _) => Found::judged(
            wrong == 0,
            format!(
                "{wrong} wrong elements at {count} combinations of collective and size; none may be wrong"
            ),
            [("wrong_elements", wrong as f64), ("compared", count as f64)],
        ),
    }
}

/// Each DDP trial's gate.
fn gates(scene: &Scene<'_>) -> Found {
    let rows: Vec<GateRow> = match scene.folder.read() {
        Ok(rows) => rows,
        Err(error) => return Found::skipped(error.to_string()),
    };
    let ddp = |row: &&GateRow| {
        let of = |trial: &&Trial| trial.id == row.trial;
        let trial = scene.plan.trials.iter().find(of);
        trial.is_some_and(|trial| trial.config.strategy.ddp().is_some()) && !row.retried
    };
    let rows: Vec<&GateRow> = rows.iter().filter(ddp).collect();
    if rows.is_empty() {
        return Found::skipped("no gate of DDP was run");
    }
    let worst = rows.iter().filter_map(|row| row.error).fold(0.0, f64::max);
    let tolerance = rows.iter().map(|row| row.tolerance).fold(0.0, f64::max);
    let passed = rows
        .iter()
        .all(|row| row.passed && row.bit_equal != Some(false));
    Found::judged(
        passed,
        format!(
            "{} comparisons of parameters, buffers and optimizer state, the furthest {worst:.2e} away; up to {tolerance:.0e} passes, and ranks must hold the same bits",
            rows.len()
        ),
        [("relative_error", worst), ("tolerance", tolerance)],
    )
}
