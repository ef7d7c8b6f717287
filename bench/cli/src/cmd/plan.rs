//! `syncmark plan SCENARIO...`: the trials, what is left out and why, and the expected time; runs nothing.
use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};

use crate::args::PlanArgs;
use crate::cmd::print;
use crate::cmd::runnable::check_runnable;
use crate::error::{Result, Status};
use crate::plan::config::Backend;
use crate::plan::{Plan, Trial, estimate, plans};
use crate::run::backend::{self, leave_out_shared_gpus, note_missing_nvtx, note_shared_gpus};
use crate::run::conductor::lanes;
use crate::run::cores;

/// Prints the plans.
///
/// # Errors
/// Anything wrong with a scenario or an argument; a stdout that cannot be written.
pub fn execute(args: &PlanArgs) -> Result<Status> {
    let mut plans = plans(&args.scenario, args.profile, &backend::choose)?;
    plans.iter_mut().for_each(leave_out_shared_gpus);
    plans.iter_mut().for_each(note_shared_gpus);
    plans.iter_mut().for_each(note_missing_nvtx);
    let texts = plans.iter().map(|plan| describe(plan) + &here(plan));
    let texts: Vec<String> = texts.collect();
    print(&texts.join("\n"))
}

/// What `run` would say to the plan on this machine: the only part that another machine has otherwise.
fn here(plan: &Plan) -> String {
    let mut text = String::new();
    if let Some(choice) = &plan.auto {
        let _ = writeln!(text, "\n{}", choice.sentence());
    }
    if let Err(error) = check_runnable(plan) {
        let _ = writeln!(text, "\n`syncmark run` would refuse it here:");
        text.push_str(&error.render(false));
    }
    let Ok(cores) = cores::usable() else {
        return text;
    };
    let lanes = lanes(plan, |_| cores.len());
    if plan.scenario.measure.concurrent && lanes > 1 {
        let _ = writeln!(
            text,
            "\n{lanes} trials run side by side here, on {}: about {}.",
            count(cores.len(), "core"),
            estimate::in_words(estimate::expected(plan) / lanes)
        );
    }
    // A GPU's device computes on no core.
    let crowded = |trial: &&Trial| {
        trial.config.backend == Backend::Cpu && cores::oversubscribed(&trial.config, cores.len())
    };
    let crowded = plan.trials.iter().filter(crowded).count();
    if crowded > 0 {
        let _ = writeln!(
            text,
            "\n{} would be oversubscribed here: more compute threads than the {} that may be used.",
            count(crowded, "trial"),
            count(cores.len(), "core")
        );
    }
    text
}

/// A plan as text.
pub fn describe(plan: &Plan) -> String {
    let measure = &plan.scenario.measure;
    let mut text = format!(
        "{}: {}\n\n{}\n\n",
        plan.scenario.name,
        plan.scenario.question,
        table(&plan.trials)
    );
    let (trials, repeats) = (plan.trials.len(), measure.repeats);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{} × {}, in blocks shuffled by seed {}; about {} ({}).",
        count(trials, "trial"),
        count(repeats, "repeat"),
        measure.seed,
        estimate::in_words(estimate::expected(plan)),
        estimate::assumption(plan),
    );
    if repeats < 6 {
        let _ = writeln!(
            text,
            "Fewer than 6 repeats give a range: no interval and no verdict."
        );
    }
    if !plan.left_out.is_empty() {
        let _ = writeln!(text, "\nLeft out:");
        for left in &plan.left_out {
            let _ = writeln!(text, "  {}: {}", left.what, left.why);
        }
    }
    if !plan.merged.is_empty() {
        let _ = writeln!(
            text,
            "\nEqual to a trial above, once the keys they do not use are dropped:"
        );
        for merged in &plan.merged {
            let _ = writeln!(text, "  {} is {}", merged.what, merged.into);
        }
    }
    let notes: Vec<(&Trial, &String)> = plan
        .trials
        .iter()
        .flat_map(|trial| trial.notes.iter().map(move |note| (trial, note)))
        .collect();
    if !notes.is_empty() {
        let _ = writeln!(text, "\nNotes:");
        write_notes(&notes, plan.trials.len(), &mut text);
    }
    text
}

/// A note that all trials share is written once.
fn write_notes(notes: &[(&Trial, &String)], trials: usize, text: &mut String) {
    let mut shared: Vec<&String> = Vec::new();
    for (trial, note) in notes {
        if notes.iter().filter(|(_, other)| other == note).count() < trials || trials == 1 {
            let _ = writeln!(text, "  {}: {note}", trial.label);
        } else if !shared.contains(note) {
            shared.push(note);
            let _ = writeln!(text, "  all trials: {note}");
        }
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn table(trials: &[Trial]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header([
        "id",
        "trial",
        "model",
        "parameters",
        "norm",
        "data",
        "N",
        "batch",
        "per device",
    ]);
    for trial in trials {
        let config = &trial.config;
        let setting = |key: &str| trial.settings.get(key).cloned().unwrap_or_default();
        table.add_row([
            trial.id.clone(),
            trial.label.clone(),
            trial.model.clone(),
            trial.parameters.to_string(),
            setting("model.norm"),
            setting("data.source"),
            config.devices.to_string(),
            config.step_samples().to_string(),
            config.device_samples().to_string(),
        ]);
    }
    for column in [3, 6, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
