//! The table that a run of collectives ends with.
//!
//! Contract: pure; medians over repeats of the rows of `collectives.csv`, all-reduce first, at the sizes that a reader
//! knows; the report has the charts and the file has every size.
use comfy_table::{CellAlignment, Table};
use syncmark_record::rows::TrialRow;
use syncmark_report::ceilings::floor_shares;
use syncmark_report::chart::collectives::rows_of;
use syncmark_report::chart::curves::binary_bytes;
use syncmark_report::format::{bytes, milliseconds, or_dash, percent};
use syncmark_report::run_data::RunData;
use syncmark_report::stats::median;

use super::progress::outcome_name;
use super::summary::bordered;

/// Latency, a small bucket, a middle one, bandwidth.
const SIZES: [u64; 4] = [4, 4 << 10, 1 << 20, 64 << 20];

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
        add(&mut table, data, trial);
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
    format!(
        "{table}\n{notes}Medians over repeats; every size stands in collectives.csv. of floor: of what the transport carries between two \
         ranks without a collective.\n"
    )
}

fn add(table: &mut Table, data: &RunData, trial: &TrialRow) {
    for ((collective, size), rows) in rows_of(data, trial) {
        if size != 0 && !SIZES.contains(&size) {
            continue;
        }
        let times: Vec<f64> = rows
            .iter()
            .map(|row| row.time_ns_p50 as f64 / 1e6)
            .collect();
        let speeds: Vec<f64> = rows
            .iter()
            .filter_map(|row| row.busbw_bytes_per_s)
            .collect();
        let wrong: u64 = rows.iter().map(|row| row.wrong_elements).sum();
        table.add_row([
            trial.label.clone(),
            collective.replace('_', "-"),
            match size {
                0 => "–".to_owned(),
                size => binary_bytes(size as f64),
            },
            or_dash(median(&times), milliseconds),
            or_dash(median(&speeds), |speed| format!("{}/s", bytes(speed))),
            or_dash(median(&floor_shares(data, &trial.trial, &rows)), percent),
            match wrong {
                0 => "exact".to_owned(),
                wrong => format!("{wrong} wrong"),
            },
        ]);
    }
}
