//! Taking up a run that was interrupted: which of its repeats stand, and whether this is the same run.
//!
//! Contract: nothing is measured twice and nothing is mixed. Another scenario, another machine or another build is refused, with
//! the difference. Repeats that came to an end stay, however they ended; what is left of an interrupted one is taken out and
//! measured again.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syncmark_record::rows::RepeatRow;
use syncmark_record::{Environment, FolderError, Outcome, RunFolder};

use super::standing::RepeatEnd;
use crate::error::{CliError, Result};
use crate::plan::Plan;

/// Lines of a difference that are shown of each side.
const SHOWN: usize = 8;

/// Repeats that stand, by trial.
pub type Done = BTreeMap<String, Vec<RepeatEnd>>;

/// Opens `path`, checks that it holds `plan`'s run on this machine, and takes out what did not come to its end.
///
/// # Errors
/// Exit status 2 with what differs, or why the folder cannot be used.
pub fn resume(plan: &Plan, path: &Path, here: &Environment) -> Result<(RunFolder, Done)> {
    let unusable = |error: FolderError| CliError::usage(format!("cannot resume: {error}"));
    let folder = RunFolder::open(path).map_err(unusable)?;
    let Some(scenario) = folder.scenario().map_err(unusable)? else {
        return Err(CliError::usage(format!(
            "cannot resume: {} holds no scenario.toml, so nobody knows what was run",
            path.display()
        )));
    };
    if scenario != plan.toml {
        return Err(CliError::usage(format!(
            "cannot resume: the scenario is not the one that {} was run with\n{}",
            path.display(),
            difference(&scenario, &plan.toml)
        ))
        .help("give the same scenario and overrides, or start a new run without --resume"));
    }
    let Some(mut environment) = folder.environment().map_err(unusable)? else {
        return Err(CliError::usage(format!(
            "cannot resume: {} holds no environment.json, so nobody knows where it was run",
            path.display()
        )));
    };
    let differences = elsewhere(&environment, here);
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

/// Lines that only one of two texts has.
fn difference(then: &str, now: &str) -> String {
    let only = |of: &str, other: &str, sign: char| {
        let others: BTreeSet<&str> = other.lines().collect();
        let own: Vec<&str> = of.lines().filter(|line| !others.contains(line)).collect();
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
    let lines = [only(then, now, '-'), only(now, then, '+')].concat();
    match lines.is_empty() {
        true => "  the lines are the same, in another order".to_owned(),
        false => lines.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_the_lines_of_both_sides() {
        let (then, now) = ("a = 1\nb = 2\nc = 3\n", "a = 1\nb = 4\nc = 3\n");
        assert_eq!(difference(then, now), "  - b = 2\n  + b = 4");
        assert_eq!(
            difference("a\nb\n", "b\na\n"),
            "  the lines are the same, in another order"
        );
        let long: String = (0..20).map(|n| format!("x{n} = 1\n")).collect();
        assert!(difference(&long, "").ends_with("- and 12 more lines"));
    }
}
