//! The table that a run of collectives ends with.
//!
//! Contract: pure; medians over repeats of the rows of `collectives.csv` with their spread, all-reduce first, at the sizes
//! that a reader knows; the report has the charts and the file has every size.
use comfy_table::CellAlignment;
use syncmark_record::rows::{CollectiveRow, TrialRow};
use syncmark_report::ceilings::floor_shares;
use syncmark_report::chart::collectives::rows_of;
use syncmark_report::chart::curves::binary_bytes;
use syncmark_report::format::{bytes, milliseconds, percent, ranged};
use syncmark_report::nccl;
use syncmark_report::run_data::RunData;

use super::progress::outcome_name;
use super::summary::{bordered, spreads_below};

/// Latency, a small bucket, a middle one, bandwidth.
const SIZES: [u64; 6] = [4, 8, 4 << 10, 1 << 20, 64 << 20, 1 << 30];

/// One row for each trial, collective and size, in as many columns as the terminal has, if it is one.
pub fn summary(data: &RunData, width: Option<u16>) -> String {
    let mut table = bordered(width);
    table.set_header([
        "trial",
        "collective",
        "size",
        "time",
        "busbw",
        "of floor",
        "checked",
    ]);
    let trials = data
        .trials
        .iter()
        .filter(|trial| trial.kind == "collectives");
    let mut notes = String::new();
    for trial in trials {
        for (collective, size, rows) in shown(data, trial) {
            let cells = cells(data, trial, collective, size, &rows);
            table.add_row(cells.map(|cell| spreads_below(cell, width)));
        }
        if let Some(reason) = &trial.reason {
            let outcome = outcome_name(trial.outcome);
            notes.push_str(&format!("{}: {outcome}: {reason}\n", trial.label));
        }
    }
    for column in 2..6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    nccl::notes(data)
        .iter()
        .for_each(|note| notes.push_str(&format!("{note}\n")));
    format!(
        "{table}\n{notes}Medians over repeats, with the smallest and largest repeat in brackets; every size stands in collectives.csv. of floor: of what the transport carries between two \
         ranks without a collective.\n"
    )
}

/// What the table has of a trial: a collective, its size and its rows, one a repeat.
fn shown<'a>(data: &'a RunData, trial: &TrialRow) -> Vec<(&'a str, u64, Vec<&'a CollectiveRow>)> {
    let all = rows_of(data, trial).into_iter();
    let mut shown: Vec<_> = all
        .filter(|((_, size), _)| *size == 0 || SIZES.contains(size))
        .map(|((collective, size), rows)| (collective, size, rows))
        .collect();
    shown.sort_by_key(|(collective, ..)| *collective != "all_reduce");
    shown
}

fn cells(
    data: &RunData,
    trial: &TrialRow,
    collective: &str,
    size: u64,
    rows: &[&CollectiveRow],
) -> [String; 7] {
    let times: Vec<f64> = rows
        .iter()
        .map(|row| row.time_ns_p50 as f64 / 1e6)
        .collect();
    let speeds: Vec<f64> = rows
        .iter()
        .filter_map(|row| row.busbw_bytes_per_s)
        .collect();
    let wrong: u64 = rows.iter().map(|row| row.wrong_elements).sum();
    [
        trial.label.clone(),
        collective.replace('_', "-"),
        match size {
            0 => "–".to_owned(),
            size => binary_bytes(size as f64),
        },
        ranged(times, &milliseconds),
        nccl::labelled(ranged(speeds, &|speed| format!("{}/s", bytes(speed))), rows),
        ranged(floor_shares(data, &trial.trial, rows), &percent),
        match wrong {
            0 => "exact".to_owned(),
            wrong => format!("{wrong} wrong"),
        },
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use syncmark_record::RunFolder;

    use super::*;

    /// The sample that the repository ships.
    fn sample() -> RunData {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../reports/sample-collectives");
        RunData::load(&RunFolder::open(&folder).expect("the sample")).expect("its records")
    }

    #[test]
    fn figures_stand_with_their_spread_and_what_the_brackets_are() {
        insta::assert_snapshot!(summary(&sample(), None));
    }

    #[test]
    fn a_terminal_of_120_columns_has_spreads_below_their_figures() {
        let shown = summary(&sample(), Some(120));
        let table: Vec<&str> = shown.lines().filter(|line| line.starts_with('│')).collect();
        assert!(
            table.iter().all(|line| line.chars().count() <= 120),
            "{shown}"
        );
        assert!(
            !shown.contains("s ["),
            "a figure and its spread side by side:\n{shown}"
        );
        assert!(table.iter().any(|line| line.contains("  [")), "{shown}");
    }
}
