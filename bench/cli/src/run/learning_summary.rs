//! The table that a run of kind `learning` ends with: the errors of every trial after its last step.
//!
//! Contract: pure; figures of the rows of `learning.csv` as the report shows them.
use comfy_table::CellAlignment;
use syncmark_report::format::{or_dash, percent, with_spread};
use syncmark_report::learning::{Statistics, learned};
use syncmark_report::run_data::{RunData, outcome_name};

use super::summary::bordered;

/// A table of all trials that learned.
pub fn summary(data: &RunData, width: Option<u16>) -> String {
    let mut table = bordered(width);
    table.set_header([
        "trial",
        "outcome",
        "repeats",
        "together",
        "error, stored",
        "batch",
        "PreciseBN",
        "training",
    ]);
    let all = learned(data);
    for trial in data.trials.iter().filter(|trial| trial.kind == "learning") {
        let found = all
            .iter()
            .find(|learned| learned.trial.trial == trial.trial);
        let error = |figure: syncmark_report::learning::Figure| {
            let found = found.and_then(|learned| learned.estimate(figure));
            let end = |end: fn(&syncmark_report::stats::Estimate) -> f64| found.as_ref().map(end);
            with_spread(end(|e| e.value), end(|e| e.low), end(|e| e.high), percent)
        };
        let together = trial
            .normalization_batch
            .filter(|_| found.is_some_and(syncmark_report::learning::Learned::has_batch_norms));
        table.add_row([
            trial.label.clone(),
            outcome_name(trial.outcome).to_owned(),
            found.map_or(0, |learned| learned.ends.len()).to_string(),
            or_dash(together, |own| own.to_string()),
            error(Statistics::Stored.error()),
            error(Statistics::Batch.error()),
            error(Statistics::Precise.error()),
            error(|row| row.train_eval_error),
        ]);
    }
    for column in 2..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{table}\nErrors after the last step, medians over repeats with their spread. together: samples whose batch statistics are taken together. batch, \
         PreciseBN: with statistics of batches, and with stored ones estimated anew. training: on samples of the training set.\n"
    )
}
