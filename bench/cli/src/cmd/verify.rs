//! `syncmark verify SCENARIO...`: the gate and a few steps of every trial, no timing and no records.
//!
//! Contract: exit status 0 means that every trial of the scenarios runs here and trains like one device does.

use crate::agent::crew::Crew;
use crate::args::VerifyArgs;
use crate::cmd::launch::{Part, part};
use crate::cmd::print;
use crate::cmd::run::worse;
use crate::cmd::runnable::runnable_plans;
use crate::error::{CliError, Result, Status};
use crate::plan::Plan;
use crate::run::backend;
use crate::run::progress::{Bar, outcome_name};
use crate::run::signals::Signals;
use crate::run::summary::{bordered, terminal_width};
use crate::run::supervise::Supervisor;
use crate::run::verification::{Verified, verify};

/// Verifies every scenario.
///
/// # Errors
/// Exit status 2 for a bad scenario, 4 when nothing can run here, 1 when no process can be started any more.
pub fn execute(args: &VerifyArgs) -> Result<Status> {
    let signals = Signals::install()
        .map_err(|error| CliError::failed(format!("failed to take over ctrl-C: {error}")))?;
    let plans = runnable_plans(&args.scenario, false, &backend::choose);
    let (plans, crew) = match part("verify", args.launcher, plans, &signals)? {
        Part::Conduct { plans, crew } => (plans, crew),
        Part::Served(status) => return Ok(status),
    };
    let mut status = Status::Passed;
    for plan in &plans {
        let verified = one(plan, args.quiet, &signals, crew.as_deref())?;
        print(&describe(plan, &verified))?;
        status = worse(status, status_of(plan, &verified));
        if status == Status::Interrupted {
            break;
        }
    }
    Ok(status)
}

fn one(plan: &Plan, quiet: bool, signals: &Signals, crew: Option<&Crew>) -> Result<Vec<Verified>> {
    let scratch = tempfile::tempdir().map_err(|error| {
        CliError::failed(format!("cannot make a folder for the spools: {error}"))
            .help("set TMPDIR to a folder with room")
    })?;
    let mut supervisor = Supervisor::new(scratch.path().join("spool"), signals, crew)
        .map_err(|error| CliError::nothing_runs(format!("cannot start processes here: {error}")))?;
    verify(
        plan,
        &mut supervisor,
        &mut Bar::new(quiet),
        &scratch.path().join("gates"),
    )
    .map_err(|error| CliError::failed(error.to_string()))
}

fn status_of(plan: &Plan, verified: &[Verified]) -> Status {
    if verified.len() < plan.trials.len()
        || verified
            .iter()
            .any(|v| v.outcome == syncmark_record::Outcome::Interrupted)
    {
        Status::Interrupted
    } else if verified.iter().any(|found| found.outcome.is_failure()) {
        Status::TrialFailed
    } else {
        Status::Passed
    }
}

/// The table of what was found.
fn describe(plan: &Plan, verified: &[Verified]) -> String {
    let mut table = bordered(terminal_width());
    table.set_header(["trial", "gate: largest error", "3 steps"]);
    for found in verified {
        table.add_row([
            found.label.clone(),
            found.gate.clone(),
            outcome_name(found.outcome),
        ]);
    }
    let mut text = format!("{}\n{table}\n", plan.scenario.name);
    for found in verified {
        if let Some(reason) = &found.reason {
            text.push_str(&format!(
                "{}: {}: {reason}\n",
                found.label,
                outcome_name(found.outcome)
            ));
        }
    }
    if let Some(choice) = &plan.auto {
        text.push_str(&format!("{}\n", choice.sentence()));
    }
    if verified.len() < plan.trials.len() {
        text.push_str(&format!(
            "interrupted after {} of {} trials\n",
            verified.len(),
            plan.trials.len()
        ));
    }
    text
}
