//! Taking up a run that was interrupted: which of its repeats stand, and whether this is the same run.
//!
//! Contract: nothing is measured twice and nothing is mixed. Another scenario, another machine or another build is refused, with
//! the difference. The folder itself says what was run, so no scenario has to be given. Repeats that came to an end stay, however
//! they ended; what is left of an interrupted one is taken out and
//! measured again.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::Parser;
use syncmark_record::rows::RepeatRow;
use syncmark_record::{Environment, FolderError, Outcome, RunFolder};

use super::standing::RepeatEnd;
use crate::args::{Cli, Command, RunArgs, ScenarioArgs};
use crate::error::{CliError, Result};
use crate::plan::backend::Choice;
use crate::plan::build::Request;
use crate::plan::config::Backend;
use crate::plan::{Plan, with_choice};

/// Lines of a difference that are shown of each side.
const SHOWN: usize = 8;

/// Repeats that stand, by trial.
pub type Done = BTreeMap<String, Vec<RepeatEnd>>;

/// The plan of the run in a folder, by its own records: the scenario with its overrides, and the filters of its command line.
///
/// # Errors
/// Exit status 2 with what the folder lacks, or with overrides that came beside `--resume`.
pub fn plan_as_run(path: &Path, beside: &RunArgs) -> Result<Plan> {
    let ScenarioArgs {
        overrides,
        filters,
        backend,
        ..
    } = &beside.scenario;
    if !overrides.is_empty() || !filters.is_empty() || backend.is_some() || beside.profile {
        let message = "an interrupted run is finished as it was begun, so nothing of it can be set or filtered";
        let help = "leave --set, --filter, --backend and --profile out, or start a new run without --resume";
        return Err(CliError::usage(message).help(help));
    }
    let (_, text, environment) = recorded(path)?;
    let filters = match Cli::try_parse_from(&environment.command) {
        Ok(Cli {
            command: Command::Run(args),
        }) => args.scenario.filters,
        _ => {
            let message = format!(
                "cannot resume: the command in {} is no `syncmark run` of this version: {}",
                path.join("environment.json").display(),
                environment.command.join(" ")
            );
            let help = "give the scenario, its overrides and its filters beside --resume";
            return Err(CliError::usage(message).help(help));
        }
    };
    let choice = chosen(&environment);
    let request = Request {
        name: path.join("scenario.toml").display().to_string(),
        text,
        filters,
        as_run: true,
        ..Request::default()
    };
    with_choice(request, &|_| choice.clone())
}

/// What `auto` stood for in the run in a folder: a run is finished with the backend that it was begun with.
///
/// # Errors
/// Exit status 2 with what the folder lacks.
pub fn choice_as_run(path: &Path) -> Result<Choice> {
    recorded(path).map(|(_, _, environment)| chosen(&environment))
}

fn chosen(environment: &Environment) -> Choice {
    let backend = match environment.auto_backend.as_deref() {
        Some("cuda") => Backend::Cuda,
        // Also of folders that do not say: there was no other.
        _ => Backend::Cpu,
    };
    Choice {
        backend,
        why: "stays with what the run was begun with".to_owned(),
    }
}

/// A run folder, the scenario that it was run with, and where.
fn recorded(path: &Path) -> Result<(RunFolder, String, Environment)> {
    let lacks = |what: &str, unknown: &str| {
        CliError::usage(format!(
            "cannot resume: {} holds no {what}, so nobody knows {unknown}",
            path.display()
        ))
    };
    let folder = RunFolder::open(path).map_err(unusable)?;
    let scenario = folder.scenario().map_err(unusable)?;
    let environment = folder.environment().map_err(unusable)?;
    let scenario = scenario.ok_or_else(|| lacks("scenario.toml", "what was run"))?;
    let environment = environment.ok_or_else(|| lacks("environment.json", "where it was run"))?;
    Ok((folder, scenario, environment))
}

fn unusable(error: FolderError) -> CliError {
    CliError::usage(format!("cannot resume: {error}"))
}

/// Opens `path`, checks that it holds `plan`'s run on this machine, and takes out what did not come to its end.
///
/// # Errors
/// Exit status 2 with what differs, or why the folder cannot be used.
pub fn resume(plan: &Plan, path: &Path, here: &Environment) -> Result<(RunFolder, Done)> {
    let (folder, scenario, mut environment) = recorded(path)?;
    if scenario != plan.toml {
        return Err(CliError::usage(format!(
            "cannot resume: the scenario is not the one that {} was run with\n{}",
            path.display(),
            difference(&scenario, &plan.toml)
        ))
        .help("leave the scenario out to finish the run as it was begun, or start a new one without --resume"));
    }
    let on_gpus = |plan: &Plan| {
        let mut trials = plan.trials.iter();
        trials.any(|trial| trial.config.backend == Backend::Cuda)
    };
    let mut differences = elsewhere(&environment, here);
    if on_gpus(plan) {
        differences.extend(other_gpus(&environment, here));
    }
    if !differences.is_empty() {
        return Err(CliError::usage(format!(
            "cannot resume: {} was run elsewhere: {}",
            path.display(),
            differences.join("; ")
        ))
        .help("figures of two machines or builds do not mix: start a new run without --resume, and compare the two"));
    }
    let done = standing(plan, &folder).map_err(unusable)?;
    let kept: BTreeSet<(String, u32)> = done
        .iter()
        .flat_map(|(trial, ends)| ends.iter().map(|end| (trial.clone(), end.repeat)))
        .collect();
    folder.keep_repeats(&kept).map_err(unusable)?;
    environment.resumed.push(here.started.clone());
    folder.write_environment(&environment).map_err(unusable)?;
    Ok((folder, done))
}

/// The repeats of the plan's trials that came to an end.
fn standing(plan: &Plan, folder: &RunFolder) -> std::result::Result<Done, FolderError> {
    let planned = plan.scenario.measure.repeats as u32;
    let known: BTreeSet<&str> = plan.trials.iter().map(|trial| trial.id.as_str()).collect();
    let mut done = Done::new();
    for row in folder.rows::<RepeatRow>()? {
        let row = row?;
        let ended = row.outcome != Outcome::Interrupted;
        if ended && row.repeat < planned && known.contains(row.trial.as_str()) {
            done.entry(row.trial).or_default().push(RepeatEnd {
                repeat: row.repeat,
                outcome: row.outcome,
                reason: row.reason,
            });
        }
    }
    Ok(done)
}

/// What of machine and build differs.
fn elsewhere(then: &Environment, here: &Environment) -> Vec<String> {
    type Part = fn(&Environment) -> String;
    let parts: [(&str, Part); 10] = [
        ("host", |e| e.host.clone()),
        ("CPU", |e| e.cpu_model.clone()),
        ("cores", |e| format!("{:?}", e.affinity)),
        ("limit of cores", |e| format!("{:?}", e.cpu_limit_cores)),
        ("instructions", |e| format!("{:?}", e.kernel_instructions)),
        ("syncmark", |e| e.syncmark_version.clone()),
        ("commit", |e| format!("{:?}", e.git_commit)),
        ("build", |e| format!("{:?}", e.build)),
        ("compiler", |e| format!("{:?}", e.rustc_version)),
        ("launcher", |e| {
            let agents = e.launched.iter().flat_map(|launched| &launched.agents);
            format!(
                "{:?}",
                agents
                    .map(|agent| (agent.rank, &agent.host))
                    .collect::<Vec<_>>()
            )
        }),
    ];
    parts
        .into_iter()
        .map(|(what, part)| (what, part(then), part(here)))
        .filter(|(_, then, here)| then != here)
        .map(|(what, then, here)| format!("{what} was {then} and is {here}"))
        .collect()
}

/// What of GPUs and driver differs, which matters to trials on them alone.
fn other_gpus(then: &Environment, here: &Environment) -> Vec<String> {
    let parts = |environment: &Environment| {
        let cuda = environment.cuda.clone().unwrap_or_default();
        let gpus = cuda
            .gpus
            .iter()
            .map(|gpu| gpu.uuid.as_ref().unwrap_or(&gpu.name).clone());
        let libraries = cuda.libraries.iter().map(|library| library.version.clone());
        [
            ("GPUs", format!("{:?}", gpus.collect::<Vec<_>>())),
            ("NVIDIA driver", format!("{:?}", cuda.driver)),
            (
                "NVIDIA's libraries",
                format!("{:?}", libraries.collect::<Vec<_>>()),
            ),
        ]
    };
    parts(then)
        .into_iter()
        .zip(parts(here))
        .filter(|((_, then), (_, here))| then != here)
        .map(|((what, then), (_, here))| format!("{what} was {then} and is {here}"))
        .collect()
}

/// Keys that only one of two scenarios has, or has otherwise.
fn difference(then: &str, now: &str) -> String {
    let (then, now) = (flat(then), flat(now));
    let only = |of: &[String], others: &[String], sign: char| {
        let own: Vec<&String> = of.iter().filter(|line| !others.contains(line)).collect();
        let mut shown: Vec<String> = own
            .iter()
            .take(SHOWN)
            .map(|line| format!("  {sign} {line}"))
            .collect();
        if own.len() > SHOWN {
            shown.push(format!("  {sign} and {} more lines", own.len() - SHOWN));
        }
        shown
    };
    let lines = [only(&then, &now, '-'), only(&now, &then, '+')].concat();
    match lines.is_empty() {
        true => "  all keys have the values that they had: they stand in another order, or comments or filters changed".to_owned(),
        false => lines.join("\n"),
    }
}

/// A line for each key of a scenario, with its whole path: comments and the way it is written are no difference.
fn flat(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    match text.parse::<toml::Table>() {
        Ok(table) => flatten("", &toml::Value::Table(table), &mut lines),
        // A folder that somebody edited by hand.
        Err(_) => lines.extend(text.lines().map(str::to_owned)),
    }
    lines
}

fn flatten(path: &str, value: &toml::Value, lines: &mut Vec<String>) {
    let below = |key: &str| match path.is_empty() {
        true => key.to_owned(),
        false => format!("{path}.{key}"),
    };
    match value {
        toml::Value::Table(table) => table
            .iter()
            .for_each(|(key, value)| flatten(&below(&quoted(key)), value, lines)),
        toml::Value::Array(values) if values.iter().any(toml::Value::is_table) => values
            .iter()
            .enumerate()
            .for_each(|(index, value)| flatten(&format!("{path}[{index}]"), value, lines)),
        value => lines.push(format!("{path} = {value}")),
    }
}

/// The key of a sweep has dots of its own.
fn quoted(key: &str) -> String {
    match key.contains('.') {
        true => format!("\"{key}\""),
        false => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use syncmark_record::environment::gpu::{Cuda, Gpu};

    use super::*;
    use crate::environment::{Root, describe};

    #[test]
    fn auto_stays_what_it_was() {
        let mut environment = describe(&Root::at("/nonexistent"), []);
        assert_eq!(
            chosen(&environment).backend,
            Backend::Cpu,
            "an older folder"
        );
        environment.auto_backend = Some("cuda".into());
        let choice = chosen(&environment);
        assert_eq!(choice.backend, Backend::Cuda);
        assert_eq!(
            choice.sentence(),
            "Backend cuda: `auto` stays with what the run was begun with."
        );
    }

    #[test]
    fn other_gpus_and_drivers_are_told() {
        let cuda = |driver: &str, uuid: &str| Cuda {
            driver: Some(driver.into()),
            gpus: vec![Gpu {
                uuid: Some(uuid.into()),
                ..Gpu::default()
            }],
            ..Cuda::default()
        };
        let mut then = describe(&Root::at("/nonexistent"), []);
        let mut here = then.clone();
        assert!(other_gpus(&then, &here).is_empty());
        then.cuda = Some(cuda("580.65", "GPU-1"));
        here.cuda = Some(cuda("580.82", "GPU-1"));
        let told = other_gpus(&then, &here);
        assert_eq!(
            told,
            ["NVIDIA driver was Some(\"580.65\") and is Some(\"580.82\")"]
        );
        here.cuda = Some(cuda("580.65", "GPU-2"));
        assert!(other_gpus(&then, &here)[0].starts_with("GPUs was"));
    }

    #[test]
    fn a_difference_shows_the_lines_of_both_sides() {
        let (then, now) = ("a = 1\nb = 2\nc = 3\n", "a = 1\nb = 4\nc = 3\n");
        assert_eq!(difference(then, now), "  - b = 2\n  + b = 4");
        let (then, now) = (
            "# how long\n[train]\nsteps = 4\n[sweep]\n\"model.norm\" = [\"batch\"]",
            "train = { steps = 5 }\n# another\nsweep = { \"model.norm\" = [ \"batch\" ] }\n[[variant]]\nname = \"a\"",
        );
        assert_eq!(
            difference(then, now),
            "  - train.steps = 4\n  + train.steps = 5\n  + variant[0].name = \"a\""
        );
        assert!(difference("a = 1\nb = 2", "b = 2\na = 1 # one").contains("all keys have"));
        let long: String = (0..20).map(|n| format!("x{n} = 1\n")).collect();
        assert!(difference(&long, "").ends_with("- and 12 more lines"));
    }
}
