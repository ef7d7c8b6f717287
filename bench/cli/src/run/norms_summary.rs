//! What a run of kind `norm-cost` ends with: the norms' share of a step and of memory's bandwidth.
//!
//! Contract: pure; the figures of the report's table with their spread. Nothing is shown of a trial whose outcome carries no figure.
use comfy_table::CellAlignment;
use syncmark_report::format::{bytes, estimated, or_dash, percent, ratio, significant};
use syncmark_report::norm_cost::{Direction, norm_costs, norm_of};
use syncmark_report::run_data::RunData;
use syncmark_report::stats::Estimate;

use super::summary::{bordered, brackets_of, spreads_below};

/// A table of all norms; nothing where none was timed.
pub fn summary(data: &RunData, width: Option<u16>) -> String {
    let mut table = bordered(width);
    table.set_header([
        "model",
        "norm",
        "forward ms",
        "of bandwidth",
        "backward ms",
        "of bandwidth",
        "of step",
        "beside none",
        "kept",
    ]);
    let time = |direction: &Direction| estimated(direction.time, |ms| significant(ms, 3));
    let share = |estimate: Option<Estimate>| estimated(estimate, percent);
    let costs = norm_costs(data);
    let shown = || costs.iter().filter(|cost| cost.nodes > 0);
    for cost in shown() {
        let cells = [
            cost.trial.model.clone(),
            norm_of(cost.trial),
            time(&cost.forward),
            share(cost.forward.share),
            time(&cost.backward),
            share(cost.backward.share),
            share(cost.of_step),
            estimated(cost.beside_none, ratio),
            or_dash(cost.kept, |kept| bytes(kept as f64)),
        ];
        table.add_row(cells.map(|cell| spreads_below(cell, width)));
    }
    if table.is_empty() {
        return String::new();
    }
    for column in 2..9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let repeats = shown().filter_map(|cost| cost.forward.time.map(|time| time.blocks));
    let brackets = brackets_of(repeats).map_or_else(String::new, |note| format!("{note}\n"));
    format!(
        "{table}\n{brackets}Norms with the rectifiers and additions that their kernels do, in one step on one device. of bandwidth: the fewest bytes over the time, against \
         one stream in and one out of memory. beside none: a whole step over one of the same model without norms. kept: what they keep from forward for backward, by formula.\n"
    )
}
