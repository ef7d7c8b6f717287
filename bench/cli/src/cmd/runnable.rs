//! What can be known to fail before anything runs: a backend, instructions or files that this machine lacks.
//!
//! Contract: nothing is run and nothing is written. `plan` shows what `run` and `verify` refuse. Exit statuses are those of
//! `syncmark run --help`.
use std::path::Path;

use syncmark_engine::backend::cpu::instructions;

use crate::args::ScenarioArgs;
use crate::error::{CliError, Result};
use crate::plan::backend::Choice;
use crate::plan::config::SourceConfig;
use crate::plan::{Plan, plans};
use crate::run::backend::{self, leave_out_shared_gpus, note_missing_nvtx, note_shared_gpus};
use crate::run::data_folder::DataSet;

/// The plans of the scenarios, all of which have something to run here; `choose` says what `auto` stands for.
///
/// # Errors
/// Exit status 2 for a bad scenario, 4 when nothing of one can run here.
pub fn runnable_plans(
    args: &ScenarioArgs,
    profile: bool,
    choose: &dyn Fn(&Plan) -> Choice,
) -> Result<Vec<Plan>> {
    let plans = plans(args, profile, choose)?;
    plans.into_iter().map(runnable).collect()
}

/// The plan without what this machine cannot do, with notes of what it makes of the rest, if that can run here.
///
/// # Errors
/// As [`check_runnable`].
pub fn runnable(mut plan: Plan) -> Result<Plan> {
    let before = plan.left_out.len();
    leave_out_shared_gpus(&mut plan);
    for left in &plan.left_out[before..] {
        eprintln!(
            "left out here: {}: {}; {}",
            left.what, left.why, left.instead
        );
    }
    check_runnable(&plan)?;
    note_shared_gpus(&mut plan);
    note_missing_nvtx(&mut plan);
    Ok(plan)
}

/// Whether this build and this plan have something to run.
///
/// # Errors
/// Exit status 4 with what is missing.
pub fn check_runnable(plan: &Plan) -> Result<()> {
    backend::require(plan)?;
    instructions::from_environment().map_err(CliError::usage)?;
    for (set, path) in plan
        .trials
        .iter()
        .filter_map(|trial| DataSet::of(&trial.config.data.source))
    {
        set.locate(path)
            .map_err(|missing| CliError::nothing_runs(missing.to_string()).help(missing.help()))?;
    }
    for trial in &plan.trials {
        if let SourceConfig::Text {
            path: Some(path), ..
        } = &trial.config.data.source
            && !Path::new(path).is_file()
        {
            let message = format!("no list of words at {path}");
            let help = "install Debian's package wamerican for /usr/share/dict/words, name another file with a word a line in data.path, or leave \
                        data.path out for the shipped words";
            return Err(CliError::nothing_runs(message).help(help));
        }
    }
    if plan.trials.is_empty() {
        let name = &plan.scenario.name;
        return Err(
            CliError::nothing_runs(format!("scenario {name} has no trial left to run")).help(
                format!("see `syncmark plan {name}` for what is left out and why"),
            ),
        );
    }
    Ok(())
}
