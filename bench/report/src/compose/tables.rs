//! The tables of a report.
//!
//! Contract: an empty measurement is a dash, never a zero, and a trial without figures has its outcome in their place.
use syncmark_record::{
    Outcome,
    rows::{RepeatRow, TrialRow},
};

use crate::{
    analyse::warnings,
    answer::Comparison,
    chart::{
        palette::phase_name,
        series::{Facet, name, whole_setting},
        traffic::{PhaseBytes, bytes_by_phase, phase_order},
    },
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{bytes, or_dash, ratio, spreads, whole, with_spread},
    run_data::{RunData, excluded_reason, outcome_name},
};

/// Says what the brackets are.
pub(super) const SPREAD_NOTE: &str = "Brackets hold the 95 % bootstrap interval over blocks, or, for fewer than 6 repeats, the smallest and largest \
     repeat. A dash was not measured or has no meaning for the trial. Bytes are sent per step over all devices; memory is the peak of the fullest device.";

/// The headline table of one facet.
pub(super) fn headline(facet: &Facet<'_>) -> Table {
    let caption = format!("{}.", facet.title);
    let mut table = Table::new(
        caption,
        &[
            ("trial", Left),
            ("outcome", Left),
            ("repeats", Right),
            ("step (ms)", Right),
            ("samples/s", Right),
            ("efficiency vs single", Right),
            ("efficiency vs independent", Right),
            ("exposed communication (ms)", Right),
            ("bytes/step", Right),
            ("memory", Right),
        ],
    );
    for trial in &facet.trials {
        let mark = if trial.oversubscribed {
            " (oversubscribed)"
        } else {
            ""
        };
        let mut row = vec![
            format!("{}{mark}", name(trial)),
            outcome_name(trial.outcome).to_string(),
        ];
        if excluded_reason(trial).is_none() {
            row.extend(figures(trial));
        } else {
            row.push(match trial.repeats {
                0 => "–".to_string(),
                ended_well => format!("{ended_well} (not used)"),
            });
            row.extend(std::iter::repeat_n("–".to_string(), 7));
        }
        table.push(row);
    }
    table
}

fn figures(t: &TrialRow) -> [String; 8] {
    let [step, samples, single, independent, exposed] = spreads(t);
    [
        t.repeats.to_string(),
        step,
        samples,
        single,
        independent,
        exposed,
        or_dash(t.counted_bytes_per_step, bytes),
        or_dash(t.peak_memory_bytes.map(|b| b as f64), bytes),
    ]
}

/// All fair comparisons.
pub(super) fn comparisons(comparisons: &[Comparison<'_>]) -> Table {
    let mut table = Table::new(
        "Pairs that are equal in everything but the compared factor. The ratio is the first trial's figure over the second's, taken within blocks.",
        &[
            ("trial", Left),
            ("against", Left),
            ("both", Left),
            ("ratio", Right),
            ("repeats", Right),
            ("verdict", Left),
        ],
    );
    for c in comparisons {
        let spread = with_spread(
            Some(c.ratio.value),
            Some(c.ratio.low),
            Some(c.ratio.high),
            ratio,
        );
        table.push(vec![
            c.names[0].clone(),
            c.names[1].clone(),
            c.shared.clone(),
            spread,
            c.ratio.blocks.to_string(),
            c.verdict.clone(),
        ]);
    }
    table
}

/// Bytes of every trial and phase over all ranks, a table a facet.
pub(super) fn bytes_section(data: &RunData, facets: &[Facet<'_>]) -> Vec<Block> {
    let measured = data
        .comm
        .iter()
        .any(|row| row.measured_sent_bytes.is_some());
    let tables: Vec<Table> = facets
        .iter()
        .map(|facet| bytes_table(data, facet, measured))
        .filter(|table| !table.rows.is_empty())
        .collect();
    if tables.is_empty() {
        return Vec::new();
    }
    let counter = if measured {
        "Measured comes from a counter that is not ours."
    } else {
        "There is no independent counter for shared memory and copies, so there is no measured column."
    };
    let uncounted = match data.comm.iter().any(|row| row.sent_bytes.is_none()) {
        true => " What NCCL moves is not counted, and has a prediction alone.",
        false => "",
    };
    let words = format!(
        "Bytes sent per step over all devices. Predicted and counted must agree to the byte, sent and received, over all repeats. {counter}{uncounted}"
    );
    let mut blocks = vec![Block::heading(1, "Bytes"), Block::paragraph(words)];
    blocks.extend(tables.into_iter().map(Block::Table));
    blocks
}

fn bytes_table(data: &RunData, facet: &Facet<'_>, measured: bool) -> Table {
    let mut columns = vec![
        ("trial", Left),
        ("phase", Left),
        ("collective and algorithm", Left),
        ("predicted", Right),
        ("counted", Right),
    ];
    if measured {
        columns.push(("measured", Right));
    }
    columns.push(("agreement", Left));
    let mut table = Table::new(format!("{}.", facet.title), &columns);
    for trial in facet
        .trials
        .iter()
        .filter(|trial| trial.outcome.has_figures())
    {
        let mut phases: Vec<_> = bytes_by_phase(&data.comm, &trial.trial, None)
            .into_iter()
            .collect();
        phases.sort_by_key(|(phase, _)| phase_order(phase));
        for (phase, figures) in phases {
            let mut row = vec![
                name(trial),
                phase_name(&phase),
                algorithms(data, &trial.trial, &phase),
                or_dash(figures.predicted_sent, whole),
                or_dash(figures.sent, whole),
            ];
            if measured {
                row.push(
                    figures
                        .measured_sent
                        .map_or_else(|| "no independent counter".into(), whole),
                );
            }
            row.push(agreement(&figures).into());
            table.push(row);
        }
    }
    table
}

fn agreement(figures: &PhaseBytes) -> &'static str {
    match figures.agrees {
        None if figures.sent.is_none() => "not counted",
        None => "not predicted",
        Some(true) => "equal",
        Some(false) => "differs",
    }
}

fn algorithms(data: &RunData, trial: &str, phase: &str) -> String {
    let mut names: Vec<String> = Vec::new();
    for row in data
        .comm
        .iter()
        .filter(|row| row.trial == trial && row.phase == phase)
    {
        let name = format!("{} {}", row.collective.replace('_', "-"), row.algorithm);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

/// Every trial, with its outcome, reason and warnings.
///
/// Warnings in `shared` stand above all tables, and are not repeated for every trial.
pub(super) fn trials_section(data: &RunData, shared: &[&str]) -> Vec<Block> {
    let mut table = Table::new(
        "",
        &[
            ("id", Left),
            ("trial", Left),
            ("setting", Left),
            ("parameters", Right),
            ("transport", Left),
            ("outcome", Left),
            ("reason and warnings", Left),
        ],
    );
    for (index, trial) in data.trials.iter().enumerate() {
        let setting = whole_setting(trial);
        let repeated = index > 0 && setting == whole_setting(&data.trials[index - 1]);
        let own = warnings(trial)
            .into_iter()
            .filter(|text| !shared.contains(text));
        let remarks: Vec<&str> = trial.reason.as_deref().into_iter().chain(own).collect();
        let parameters = if trial.parameters == 0 {
            "–".into()
        } else {
            whole(trial.parameters as f64)
        };
        table.push(vec![
            trial.trial.clone(),
            name(trial),
            if repeated { "as above".into() } else { setting },
            parameters,
            trial.transport.clone().unwrap_or_else(|| "–".into()),
            outcome_name(trial.outcome).to_string(),
            if remarks.is_empty() {
                "–".into()
            } else {
                remarks.join("; ")
            },
        ]);
    }
    let mut blocks = vec![Block::heading(1, "Trials"), Block::Table(table)];
    let failed = failed_repeats(data);
    if !failed.rows.is_empty() {
        blocks.push(Block::Table(failed));
    }
    blocks
}

/// Repeats that did not pass, one row for all of a trial with the same outcome: the reason is the first one's, which differs
/// from the others' in its figures.
fn failed_repeats(data: &RunData) -> Table {
    let mut table = Table::new(
        "Repeats that did not pass. The reason is the first one's; repeats.csv has that of each.",
        &[
            ("id", Left),
            ("trial", Left),
            ("outcome", Left),
            ("repeats", Left),
            ("reason", Left),
        ],
    );
    for trial in &data.trials {
        let mut outcomes: Vec<(Outcome, Vec<&RepeatRow>)> = Vec::new();
        let own = data.repeats.iter().filter(|row| row.trial == trial.trial);
        for repeat in own.filter(|row| row.outcome != Outcome::Passed) {
            match outcomes
                .iter_mut()
                .find(|(outcome, _)| *outcome == repeat.outcome)
            {
                Some((_, repeats)) => repeats.push(repeat),
                None => outcomes.push((repeat.outcome, vec![repeat])),
            }
        }
        for (outcome, repeats) in outcomes {
            let numbers: Vec<String> = repeats.iter().map(|row| row.repeat.to_string()).collect();
            table.push(vec![
                trial.trial.clone(),
                name(trial),
                outcome_name(outcome).to_string(),
                numbers.join(", "),
                repeats[0].reason.clone().unwrap_or_else(|| "–".into()),
            ]);
        }
    }
    table
}
