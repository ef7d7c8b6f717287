//! `syncmark run SCENARIO...`: measures a scenario and leaves a run folder with its records and its report.
//!
//! Contract: what can be known to fail is found before anything runs; from then on records come first. Rows are on disk
//! at the end of every repeat, figures are computed from those rows, and a report that cannot be made loses nothing.
//! The story of the measuring itself is [`crate::run::conductor`]. Exit statuses are those of `syncmark run --help`.
use std::path::{Path, PathBuf};

use syncmark_record::acceptance::Acceptance;
use syncmark_record::rows::TrialRow;
use syncmark_record::{Environment, FolderError, RunFolder};
use syncmark_report::answer::answer;
use syncmark_report::run_data::RunData;

use crate::acceptance;
use crate::agent::crew::Crew;
use crate::args::RunArgs;
use crate::cmd::launch::{Part, part};
use crate::cmd::print;
use crate::cmd::report::{self, HAS_PDF, Pdf};
use crate::cmd::runnable::{runnable, runnable_plans};
use crate::environment;
use crate::error::{CliError, Result, Status};
use crate::plan::config::Backend;
use crate::plan::{Plan, Trial};
use crate::run::backend;
use crate::run::collectives_summary;
use crate::run::conductor::{Conductor, RunEnd};
use crate::run::job::{Clock, Executor, SystemClock};
use crate::run::layers_summary;
use crate::run::learning_summary;
use crate::run::ledger::FolderLedger;
use crate::run::norms_summary;
use crate::run::progress::Bar;
use crate::run::resume::{Done, choice_as_run, plan_as_run, resume};
use crate::run::signals::Signals;
use crate::run::standing::{Standing, Unrun};
use crate::run::summary::{cautions, summary, terminal_width};
use crate::run::supervise::Supervisor;
use crate::run::trial_row::row;
use crate::scenario::file::Kind;

/// Runs every scenario. The worst status of them counts; ctrl-C ends them all.
///
/// # Errors
/// Exit status 2 for a bad scenario or a folder that cannot be written, 4 when nothing can run here.
pub fn execute(args: &RunArgs) -> Result<Status> {
    let signals = Signals::install()
        .map_err(|error| CliError::failed(format!("failed to take over ctrl-C: {error}")))?;
    let plans = match &args.resume {
        Some(folder) if args.scenario.scenarios.is_empty() => plan_as_run(folder, args)
            .and_then(runnable)
            .map(|plan| vec![plan]),
        Some(folder) => choice_as_run(folder)
            .and_then(|choice| runnable_plans(&args.scenario, args.profile, &|_| choice.clone())),
        None => runnable_plans(&args.scenario, args.profile, &backend::choose),
    };
    let (plans, crew) = match part("run", args.launcher, plans, &signals)? {
        Part::Conduct { plans, crew } => (plans, crew),
        Part::Served(status) => return Ok(status),
    };
    // All folders before any run: the last one being unwritable must not show after hours.
    let folders = match &args.resume {
        None => plans
            .iter()
            .zip(&args.scenario.scenarios)
            .map(|(plan, scenario)| {
                Ok((
                    prepare(plan, scenario, &args.out, crew.as_deref())?,
                    Done::new(),
                ))
            })
            .collect::<Result<Vec<_>>>()?,
        Some(folder) => vec![take_up(&plans, folder, crew.as_deref())?],
    };
    let mut status = Status::Passed;
    for (plan, (folder, done)) in plans.iter().zip(folders) {
        let ended = run(plan, folder, &done, args.quiet, &signals, crew.as_deref())?;
        status = worse(status, ended);
        if ended == Status::Interrupted {
            break;
        }
    }
    Ok(status)
}

/// The folder of the one scenario that is to be finished, and what of it is done.
fn take_up(plans: &[Plan], folder: &Path, crew: Option<&Crew>) -> Result<(RunFolder, Done)> {
    let [plan] = plans else {
        return Err(
            CliError::usage("--resume finishes one run, but there are several scenarios")
                .help("leave them out: the run folder says what was run"),
        );
    };
    // What the scenario's own folder is at is not compared.
    resume(plan, folder, &here(plan, "", crew))
}

/// This machine and build, as a run of `plan` now would record them.
fn here(plan: &Plan, scenario: &str, crew: Option<&Crew>) -> Environment {
    let file = Path::new(scenario);
    let mut environment = environment::capture(environment::Run {
        scenario: &plan.scenario.name,
        scenario_folder: file.is_file().then(|| file.parent()).flatten(),
        command: std::env::args().collect(),
        started: SystemClock::default().utc(),
    });
    environment.launched = crew.map(Crew::record);
    let on_gpus = plan
        .trials
        .iter()
        .filter(|trial| trial.config.backend == Backend::Cuda);
    let devices = on_gpus.map(|trial| trial.config.devices).max().unwrap_or(0);
    environment.acceptance = match &environment.cuda {
        // What compares is not accepted beforehand.
        Some(cuda) if devices > 1 && plan.scenario.kind != Kind::Acceptance => {
            acceptance::remembered(cuda, u32::try_from(devices).unwrap_or(u32::MAX))
        }
        _ => None,
    };
    let auto = plan.auto.as_ref();
    environment.auto_backend = auto.map(|choice| choice.backend.name().to_owned());
    environment
}

/// Makes the run folder with everything that is known before the run.
fn prepare(plan: &Plan, scenario: &str, out: &Path, crew: Option<&Crew>) -> Result<RunFolder> {
    let environment = here(plan, scenario, crew);
    let time = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let make = || -> std::result::Result<RunFolder, FolderError> {
        let folder = RunFolder::create(free_path(
            out,
            &plan.scenario.name,
            &time,
            &environment.host,
        ))?;
        folder.write_scenario(&plan.toml)?;
        folder.write_environment(&environment)?;
        Ok(folder)
    };
    make().map_err(|error| {
        CliError::usage(format!(
            "cannot make a run folder in {}: {error}",
            out.display()
        ))
        .help("give a folder that can be written, and has room, with --out DIR")
    })
}

/// `<out>/<scenario>-<UTC time>-<host>`, with a number if two runs begin in the same second.
fn free_path(out: &Path, scenario: &str, time: &str, host: &str) -> PathBuf {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| {
                if c.is_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect()
    };
    let name = format!("{}-{time}-{}", plain(scenario), plain(host));
    let numbered = (2..).map(|n| format!("{name}-{n}"));
    let mut names = std::iter::once(name.clone())
        .chain(numbered)
        .map(|name| out.join(name));
    names
        .find(|path| !path.exists())
        .unwrap_or_else(|| out.join(name))
}

/// Runs one plan into its folder, reports it, and prints its summary.
fn run(
    plan: &Plan,
    folder: RunFolder,
    done: &Done,
    quiet: bool,
    signals: &Signals,
    crew: Option<&Crew>,
) -> Result<Status> {
    // Where it is the CPU the end says so: nobody is surprised before.
    if let Some(choice) = plan
        .auto
        .as_ref()
        .filter(|auto| auto.backend == Backend::Cuda)
    {
        eprintln!("{}", choice.sentence());
    }
    if let Some(left_out) = left_out(plan).filter(|_| !quiet) {
        eprintln!("{left_out}");
    }
    let on_gpus = |trial: &Trial| trial.config.backend == Backend::Cuda;
    if plan.trials.iter().any(on_gpus)
        && let Err(why) = environment::gpus::nvml()
    {
        eprintln!("GPUs are not watched while they are timed: {why}");
    }
    signals.hold();
    let end = measure(plan, &folder, done, quiet, signals, crew)?;
    if let Some(departure) = crew.and_then(Crew::departure) {
        eprintln!("{departure}");
    }
    signals.release();
    if end.unrun == Unrun::Interrupted {
        let path = folder.path().display();
        eprintln!(
            "interrupted: what was measured until then is in {path}; its report is being made (ctrl-C again leaves it out); --resume {path} finishes it"
        );
    }
    let (trials, written) = write_trials(&folder, &end);
    let accepted = match (plan.scenario.kind, &end.unrun) {
        (Kind::Acceptance, Unrun::Complete) => {
            Some(accept(plan, &folder, &trials, quiet, signals, crew)?)
        }
        _ => None,
    };
    let reported = written.and_then(|()| report::render(folder.path(), pdf()).map(drop));
    print(&closing_words(plan, &folder, &trials))?;
    if let Some(acceptance) = &accepted {
        print(&acceptance::summary(acceptance))?;
    }
    let has_failed = accepted.as_ref().is_some_and(acceptance::has_failed);
    Ok(match (&end.unrun, reported) {
        (Unrun::Interrupted, reported) => {
            complain(reported);
            Status::Interrupted
        }
        (Unrun::Stopped(why), reported) => {
            eprintln!(
                "error: the run stopped: {why}\n  help: what was measured until then is in {}",
                folder.path().display()
            );
            complain(reported);
            Status::TrialFailed
        }
        (Unrun::Complete, Err(error)) => {
            complain(Err(error));
            Status::TrialFailed
        }
        (Unrun::Complete, Ok(())) if has_failed => Status::TrialFailed,
        (Unrun::Complete, Ok(())) if trials.iter().any(|trial| trial.outcome.is_failure()) => {
            Status::TrialFailed
        }
        (Unrun::Complete, Ok(())) => Status::Passed,
    })
}

/// What the plan leaves out: how much, and why.
fn left_out(plan: &Plan) -> Option<String> {
    let mut reasons: Vec<&str> = plan.left_out.iter().map(|left| &*left.why).collect();
    let all = reasons.len();
    reasons.sort_unstable();
    reasons.dedup();
    (all > 0).then(|| {
        format!(
            "{all} combination{} left out, which `syncmark plan` lists: {}",
            if all == 1 { "" } else { "s" },
            reasons.join("; ")
        )
    })
}

/// Holds what was measured against other programs, and writes down how it came out.
fn accept(
    plan: &Plan,
    folder: &RunFolder,
    trials: &[TrialRow],
    quiet: bool,
    signals: &Signals,
    crew: Option<&Crew>,
) -> Result<Acceptance> {
    let failed = |error: FolderError| CliError::failed(format!("cannot read the records: {error}"));
    let Some(mut environment) = folder.environment().map_err(failed)? else {
        return Err(CliError::failed("the run folder has no environment.json"));
    };
    let scene = acceptance::Scene {
        plan,
        folder,
        trials,
        environment: &environment,
        launched: crew.is_some(),
        signals,
    };
    let found = acceptance::judge(&scene, quiet);
    match acceptance::keep(&found, folder) {
        Ok(Some(place)) => eprintln!("remembered in {}", place.display()),
        Ok(None) => {}
        Err(why) => eprintln!("error: {why}"),
    }
    // Its own report says how it came out.
    environment.acceptance = Some(found.clone());
    folder
        .write_environment(&environment)
        .map_err(|error| CliError::failed(format!("cannot write environment.json: {error}")))?;
    Ok(found)
}

/// Lets the conductor work with real processes, real files and real time.
fn measure(
    plan: &Plan,
    folder: &RunFolder,
    done: &Done,
    quiet: bool,
    signals: &Signals,
    crew: Option<&Crew>,
) -> Result<RunEnd> {
    let scratch = folder.path().join(".gates");
    let mut supervisor = Supervisor::new(folder.path().join(".spool"), signals, crew)
        .map_err(|error| CliError::nothing_runs(format!("cannot start processes here: {error}")))?;
    let mut ledger = FolderLedger::new(folder.clone())
        .map_err(|error| CliError::usage(format!("cannot write records: {error}")))?;
    // What the trials are must be on disk before the first of them: a run that is killed leaves a folder that says.
    let planned = plan.scenario.measure.repeats;
    let waiting = |trial: &Trial| {
        row(
            plan,
            trial,
            &Standing::default(),
            planned,
            supervisor.cores(&trial.config),
            &Unrun::Interrupted,
        )
    };
    let rows: Vec<TrialRow> = plan.trials.iter().map(waiting).collect();
    folder
        .write_trials(&rows)
        .map_err(|error| CliError::usage(format!("cannot write records: {error}")))?;
    let end = Conductor {
        executor: &mut supervisor,
        ledger: &mut ledger,
        clock: &SystemClock::default(),
        progress: &mut Bar::new(quiet),
        scratch: &scratch,
    }
    .finish(plan, done);
    // Dumps are removed one by one as they are read; only the empty folder is left.
    let _ = std::fs::remove_dir_all(&scratch);
    Ok(end)
}

/// Fills the trials' figures from the rows on disk and writes `trials.csv`. Rows without figures are better than none.
fn write_trials(folder: &RunFolder, end: &RunEnd) -> (Vec<TrialRow>, Result<()>) {
    let summarise = || -> std::result::Result<Vec<TrialRow>, FolderError> {
        let (repeats, comm, devices) = (folder.read()?, folder.read()?, folder.read()?);
        let mut trials = syncmark_report::summarise(&end.trials, &repeats, &comm, &devices);
        syncmark_report::gpus::warn(&mut trials, &folder.read()?);
        Ok(trials)
    };
    let (trials, read) = match summarise() {
        Ok(trials) => (trials, Ok(())),
        Err(error) => (end.trials.clone(), Err(error)),
    };
    let written = read.and(folder.write_trials(&trials));
    (
        trials,
        written.map_err(|error| {
            CliError::failed(format!("cannot write the summary of the trials: {error}"))
        }),
    )
}

fn pdf() -> Pdf<'static> {
    if HAS_PDF {
        Pdf::Typeset(None)
    } else {
        Pdf::Leave
    }
}

/// The summary table, the answer in words, and where everything is.
fn closing_words(plan: &Plan, folder: &RunFolder, trials: &[TrialRow]) -> String {
    let data = RunData::load(folder).ok();
    let mut text = match (&data, plan.scenario.kind) {
        (Some(data), Kind::Collectives) => {
            format!("{}\n", collectives_summary::summary(data, terminal_width()))
        }
        (Some(data), Kind::Acceptance) => format!(
            "{}\n{}\n",
            summary(trials, terminal_width()),
            collectives_summary::summary(data, terminal_width())
        ),
        (Some(data), Kind::Learning) => {
            format!("{}\n", learning_summary::summary(data, terminal_width()))
        }
        (Some(data), Kind::NormCost) => format!(
            "{}\n{}\n",
            summary(trials, terminal_width()),
            norms_summary::summary(data, terminal_width())
        ),
        (Some(data), Kind::LayerCost) => format!(
            "{}\n{}\n",
            summary(trials, terminal_width()),
            layers_summary::summary(data, terminal_width())
        ),
        _ => format!("{}\n", summary(trials, terminal_width())),
    };
    if let Some(data) = &data {
        answer(data)
            .sentences
            .iter()
            .for_each(|sentence| text.push_str(&format!("{sentence}\n")));
    }
    cautions(trials)
        .iter()
        .for_each(|caution| text.push_str(&format!("warning: {caution}\n")));
    if let Some(choice) = &plan.auto {
        text.push_str(&format!("{}\n", choice.sentence()));
    }
    text.push_str(&format!("\n{}\n", folder.path().display()));
    text
}

/// Says on stderr that the report could not be made; the records are there all the same.
fn complain(reported: Result<()>) {
    if let Err(error) = reported {
        eprint!("{}", error.render(false));
    }
}

/// The status that counts of two.
pub fn worse(a: Status, b: Status) -> Status {
    if (b as u8) > (a as u8) { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_one_second_do_not_meet() {
        let out = tempfile::tempdir().unwrap();
        let path = free_path(out.path(), "dp/vs ddp", "20260102T030405Z", "host.example");
        assert_eq!(
            path.file_name().unwrap(),
            "dp-vs-ddp-20260102T030405Z-host.example"
        );
        std::fs::create_dir(&path).unwrap();
        let path = free_path(out.path(), "dp/vs ddp", "20260102T030405Z", "host.example");
        assert_eq!(
            path.file_name().unwrap(),
            "dp-vs-ddp-20260102T030405Z-host.example-2"
        );
    }

    #[test]
    fn an_interruption_outweighs_a_failure() {
        assert_eq!(
            worse(Status::TrialFailed, Status::Interrupted),
            Status::Interrupted
        );
        assert_eq!(
            worse(Status::TrialFailed, Status::Passed),
            Status::TrialFailed
        );
    }
}
