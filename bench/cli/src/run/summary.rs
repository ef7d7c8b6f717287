//! The table that a run ends with, as text for a terminal.
//!
//! Contract: pure; every figure comes from the rows that `trials.csv` holds, so the table and the report agree. A trial
//! whose outcome carries no figure shows none, and its reason stands below the table.
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use syncmark_record::Outcome;
use syncmark_record::rows::TrialRow;
use syncmark_report::analyse::BYTES_DIFFER;
use syncmark_report::format::{bytes, spreads};
use syncmark_report::stats::{Spread, spread_of};

use super::progress::outcome_name;

/// Columns of numbers.
const RIGHT: std::ops::Range<usize> = 2..9;

/// Columns of a terminal from which figures and spreads of a table of nine columns stand side by side.
const ROOMY: u16 = 180;

/// How much room a table takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Everything on one line.
    Wide,
    /// Short headers, spreads below their figures.
    Narrow,
    /// As narrow, without the last columns.
    Narrowest,
}

impl Layout {
    fn header(self) -> &'static [&'static str] {
        match self {
            Self::Wide => &[
                "trial",
                "outcome",
                "repeats",
                "step ms",
                "samples/s",
                "vs single",
                "vs independent",
                "exposed ms",
                "bytes/step",
            ],
            Self::Narrow => &[
                "trial",
                "outcome",
                "n",
                "step ms",
                "samples/s",
                "/single",
                "/indep.",
                "exposed",
                "bytes",
            ],
            Self::Narrowest => &["trial", "outcome", "n", "step ms", "samples/s"],
        }
    }

    /// What the short headers mean.
    fn legend(self) -> Option<&'static str> {
        match self {
            Self::Wide => None,
            Self::Narrow => Some(
                "n: repeats; /single and /indep.: efficiency; exposed: communication in ms; bytes: a step's, as predicted unless it says.",
            ),
            Self::Narrowest => {
                Some("n: repeats; the other columns need a wider terminal and stand in report.md.")
            }
        }
    }
}

/// The table of a run's trials, and below it what did not pass and what the brackets are. It takes the widest layout that
/// fits `width`; none is a terminal's, or something that does not wrap lines.
pub fn summary(trials: &[TrialRow], width: Option<u16>) -> String {
    let fits = |layout: &Layout| {
        let widest = |table: Table| table.lines().map(|line| line.chars().count()).max();
        width.is_none_or(|width| widest(table(trials, *layout)) <= Some(width.into()))
    };
    let layouts = [Layout::Wide, Layout::Narrow, Layout::Narrowest];
    let layout = layouts.into_iter().find(fits);
    let mut shown = table(trials, layout.unwrap_or(Layout::Narrowest));
    if layout.is_none() {
        fit(&mut shown, width);
    }
    let mut text = format!("{shown}\n");
    let legend = layout
        .unwrap_or(Layout::Narrowest)
        .legend()
        .map(str::to_owned);
    for note in legend
        .into_iter()
        .chain(spread_note(trials))
        .chain(reasons(trials))
    {
        text.push_str(&note);
        text.push('\n');
    }
    text
}

/// An empty table within borders, no wider than `width`.
pub fn bordered(width: Option<u16>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    fit(&mut table, width);
    table
}

/// Lets a table break its lines at `width`; without one it has no need to.
pub fn fit(table: &mut Table, width: Option<u16>) {
    table.set_content_arrangement(ContentArrangement::Disabled);
    if let Some(width) = width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
    }
}

/// Width of the terminal on stdout, if that is one and says: those that a launcher makes have none.
pub fn terminal_width() -> Option<u16> {
    Table::new().width().filter(|width| *width > 0)
}

fn table(trials: &[TrialRow], layout: Layout) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(layout.header());
    for trial in trials {
        let cells = cells(trial).into_iter().enumerate();
        let cells = cells.map(|(column, cell)| match layout {
            Layout::Wide => cell,
            _ if column == 0 => cell.replace(" (", "\n("),
            _ => cell.replace(" [", "\n[").replace(AS_PREDICTED, ""),
        });
        table.add_row(cells.take(layout.header().len()));
    }
    if layout != Layout::Wide {
        for column in table.column_iter_mut() {
            column.set_padding((1, 0));
        }
    }
    for column in RIGHT {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
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
    let outcome = [label, outcome_name(t.outcome), t.repeats.to_string()];
    let mut cells = outcome.into_iter().chain(spreads(t)).chain([traffic(t)]);
    std::array::from_fn(|_| cells.next().unwrap_or_default())
}

/// What stands behind counted bytes that are the predicted ones.
const AS_PREDICTED: &str = " = predicted";

/// Counted bytes of a step, and whether they are what the formula says.
fn traffic(trial: &TrialRow) -> String {
    let differs = syncmark_report::analyse::warnings(trial).contains(&BYTES_DIFFER);
    match (trial.counted_bytes_per_step, trial.predicted_bytes_per_step) {
        (Some(counted), Some(predicted)) if counted == predicted && !differs => {
            format!("{}{AS_PREDICTED}", bytes(counted))
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
    brackets(has("interval"), has("range")).map(str::to_owned)
}

/// What the brackets of a table are that has intervals, ranges or both.
pub fn brackets(intervals: bool, ranges: bool) -> Option<&'static str> {
    match (intervals, ranges) {
        (true, false) => Some("[low, high] is the 95 % bootstrap interval over blocks."),
        (false, true) => Some(
            "[low, high] is the range over repeats: fewer than 6 give no interval and no verdict.",
        ),
        (true, true) => Some(
            "[low, high] is the 95 % bootstrap interval over blocks, or the range with fewer than 6 repeats.",
        ),
        (false, false) => None,
    }
}

/// What the brackets of figures are of so many repeats each; nothing where none has a spread.
pub fn brackets_of(repeats: impl IntoIterator<Item = usize>) -> Option<&'static str> {
    let mut kinds = [false; 2];
    for repeats in repeats.into_iter().filter(|repeats| *repeats > 1) {
        kinds[usize::from(spread_of(repeats) == Spread::Range)] = true;
    }
    brackets(kinds[0], kinds[1])
}

/// Puts spreads below their figures where a terminal has little room.
pub fn spreads_below(cell: String, width: Option<u16>) -> String {
    match width {
        Some(width) if width < ROOMY => cell.replace(" [", "\n["),
        _ => cell,
    }
}

/// Labels of one line before the rest are counted.
const LABELS: usize = 4;

/// Why trials did not simply pass: a line for each outcome and reason, with the trials that it holds for.
fn reasons(trials: &[TrialRow]) -> Vec<String> {
    let mut found: Vec<(Outcome, &str, Vec<&str>)> = Vec::new();
    for trial in trials {
        let Some(reason) = trial.reason.as_deref() else {
            continue;
        };
        let known = found
            .iter_mut()
            .find(|(outcome, known, _)| *outcome == trial.outcome && *known == reason);
        match known {
            Some((.., labels)) => labels.push(&trial.label),
            None => found.push((trial.outcome, reason, vec![&trial.label])),
        }
    }
    let line = |(outcome, reason, labels): (Outcome, &str, Vec<&str>)| {
        let who = match labels.len() {
            all if all == trials.len() && all > 1 => format!("all {all} trials"),
            all if all > LABELS => {
                format!(
                    "{} and {} others",
                    labels[..LABELS].join(", "),
                    all - LABELS
                )
            }
            _ => labels.join(", "),
        };
        format!("{who}: {}: {reason}", outcome_name(outcome))
    };
    found.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
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
        insta::assert_snapshot!(summary(&[passed(), failed], None));
    }

    #[test]
    fn a_narrow_terminal_gets_whole_words() {
        let trials = [passed(), trial_row("independent ×2", Outcome::Passed)];
        let words = |text: &str| -> Vec<String> {
            let words = text.split(|c: char| c.is_whitespace() || "│┌┐└┘─═╞╡".contains(c));
            words
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect()
        };
        for width in [100, 80, 60] {
            let text = summary(&trials, Some(width));
            let lines = text.lines().take_while(|line| !line.starts_with("n:"));
            let table: String = lines.map(|line| format!("{line}\n")).collect();
            assert!(
                table
                    .lines()
                    .all(|line| line.chars().count() <= width.into()),
                "{text}"
            );
            for word in [
                "independent",
                "ddp-processes",
                "samples/s",
                "12.35",
                "[4923,",
                "5333]",
                "passed",
            ] {
                assert!(
                    words(&table).iter().any(|known| known == word),
                    "{word} in {text}"
                );
            }
        }
        assert!(summary(&trials, Some(100)).contains("/indep."));
        assert!(
            summary(&trials, Some(30)).lines().count() > 10,
            "not even words fit"
        );
    }

    #[test]
    fn trials_that_ended_alike_share_a_line() {
        let reason = Some("the run was interrupted before its first repeat".to_owned());
        let interrupted: Vec<TrialRow> = (0..7)
            .map(|n| TrialRow {
                reason: reason.clone(),
                ..trial_row(&format!("t{n}"), Outcome::Interrupted)
            })
            .collect();
        let words = "interrupted: the run was interrupted before its first repeat";
        assert_eq!(reasons(&interrupted), [format!("all 7 trials: {words}")]);
        let some = [&[passed()], &interrupted[..]].concat();
        assert_eq!(
            reasons(&some),
            [format!("t0, t1, t2, t3 and 3 others: {words}")]
        );
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
