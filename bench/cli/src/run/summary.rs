//! The table that a run ends with, as text for a terminal.
//!
//! Contract: pure; every figure comes from the rows that `trials.csv` holds, so the table and the report agree. A trial
//! whose outcome carries no figure shows none, and its reason stands below the table.
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use syncmark_record::rows::TrialRow;
use syncmark_report::analyse::BYTES_DIFFER;
use syncmark_report::format::{bytes, number, or_dash, percent, with_spread};

use super::progress::outcome_name;

const HEADER: [&str; 9] = [
    "trial",
    "outcome",
    "repeats",
    "step ms",
    "samples/s",
    "vs single",
    "vs independent",
    "exposed ms",
    "bytes/step",
];

/// Columns of numbers.
const RIGHT: std::ops::Range<usize> = 2..9;

/// The table of a run's trials, and below it what did not pass and what the brackets are.
pub fn summary(trials: &[TrialRow]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(HEADER);
    for trial in trials {
        table.add_row(cells(trial));
    }
    for column in RIGHT {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = format!("{table}\n");
    for note in spread_note(trials).into_iter().chain(reasons(trials)) {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

/// What a reader must know before trusting a figure: each warning once, with the trials that it is about.
pub fn cautions(trials: &[TrialRow]) -> Vec<String> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for trial in trials {
        for warning in syncmark_report::analyse::warnings(trial) {
            match found.iter_mut().find(|(known, _)| *known == warning) {
                Some((_, labels)) => labels.push(&trial.label),
                None => found.push((warning, vec![&trial.label])),
            }
        }
    }
    let sentence = |(warning, labels): (&str, Vec<&str>)| match labels.len() {
        all if all == trials.len() => format!("all trials: {warning}"),
        _ => format!("{}: {warning}", labels.join(", ")),
    };
    found.into_iter().map(sentence).collect()
}

fn cells(trial: &TrialRow) -> [String; 9] {
    let label = if trial.oversubscribed {
        format!("{} (oversubscribed)", trial.label)
    } else {
        trial.label.clone()
    };
    let t = trial;
    let figures = [
        with_spread(t.step_ms, t.step_ms_low, t.step_ms_high, number),
        with_spread(
            t.samples_per_s,
            t.samples_per_s_low,
            t.samples_per_s_high,
            number,
        ),
        or_dash(t.efficiency_single, percent),
        or_dash(t.efficiency_independent, percent),
        or_dash(t.exposed_communication_ms, number),
        traffic(t),
    ];
    let outcome = [label, outcome_name(t.outcome), t.repeats.to_string()];
    let mut cells = outcome.into_iter().chain(figures);
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

/// Counted bytes of a step, and whether they are what the formula says.
fn traffic(trial: &TrialRow) -> String {
    let differs = syncmark_report::analyse::warnings(trial).contains(&BYTES_DIFFER);
    match (trial.counted_bytes_per_step, trial.predicted_bytes_per_step) {
        (Some(counted), Some(predicted)) if counted == predicted && !differs => {
            format!("{} = predicted", bytes(counted))
        }
        (Some(counted), Some(predicted)) => format!("{counted} B, predicted {predicted} B"),
        (Some(counted), None) => bytes(counted),
        (None, _) => "–".into(),
    }
}

fn spread_note(trials: &[TrialRow]) -> Option<String> {
    let has = |spread: &str| {
        trials
            .iter()
            .any(|trial| trial.spread.as_deref() == Some(spread))
    };
    match (has("interval"), has("range")) {
        (true, false) => Some("[low, high] is the 95 % bootstrap interval over blocks.".into()),
        (false, true) => {
            Some("[low, high] is the range over repeats: fewer than 6 give no interval and no verdict.".into())
        }
        (true, true) => Some("[low, high] is the 95 % bootstrap interval over blocks, or the range with fewer than 6 repeats.".into()),
        (false, false) => None,
    }
}

fn reasons(trials: &[TrialRow]) -> impl Iterator<Item = String> {
    trials.iter().filter_map(|trial| {
        let reason = trial.reason.as_ref()?;
        Some(format!(
            "{}: {}: {reason}",
            trial.label,
            outcome_name(trial.outcome)
        ))
    })
}

#[cfg(test)]
mod tests {
    use syncmark_record::Outcome;

    use super::*;
    use crate::run::mock::trial_row;

    fn passed() -> TrialRow {
        TrialRow {
            repeats: 3,
            spread: Some("range".into()),
            step_ms: Some(12.345),
            step_ms_low: Some(12.0),
            step_ms_high: Some(13.0),
            samples_per_s: Some(5184.3),
            samples_per_s_low: Some(4923.0),
            samples_per_s_high: Some(5333.0),
            efficiency_single: Some(0.812),
            exposed_communication_ms: Some(0.71),
            counted_bytes_per_step: Some(1_234_568.0),
            predicted_bytes_per_step: Some(1_234_568.0),
            ..trial_row("ddp-processes ×2", Outcome::Passed)
        }
    }

    #[test]
    fn a_summary_shows_figures_reasons_and_what_the_brackets_are() {
        let failed = TrialRow {
            reason: Some("repeat 1: rank 1 (process 4711) was killed by signal 9 (SIGKILL); 2 of 3 repeats ended well".into()),
            repeats: 2,
            oversubscribed: true,
            ..trial_row("dp ×4", Outcome::RankFailed)
        };
        insta::assert_snapshot!(summary(&[passed(), failed]));
    }

    #[test]
    fn counted_bytes_that_differ_from_the_formula_show_to_the_byte() {
        let row = TrialRow {
            predicted_bytes_per_step: Some(1_234_567.0),
            ..passed()
        };
        assert_eq!(traffic(&row), "1234568 B, predicted 1234567 B");
    }
}
