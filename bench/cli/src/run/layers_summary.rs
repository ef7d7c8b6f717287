//! The nodes that a run of kind `layer-cost` ends with: those that lose most time to their ceilings.
//!
//! Contract: pure; figures of the rows of `layers.csv` and `ceilings.csv` as the report shows them, with their range over repeats. Nothing is shown of a trial
//! whose outcome carries no figure, or beside which no ceiling was measured.
use comfy_table::{CellAlignment, Table};
use syncmark_record::rows::TrialRow;
use syncmark_report::format::{percent, significant, with_spread};
use syncmark_report::nodes::{Held, NodeCost, nodes, worst};
use syncmark_report::run_data::RunData;

use super::summary::{bordered, spreads_below};

/// Nodes of a trial that are shown.
const SHOWN: usize = 6;

/// A table of the worst nodes of all trials; nothing where there is none.
pub fn summary(data: &RunData, width: Option<u16>) -> String {
    let mut table = bordered(width);
    table.set_header([
        "trial",
        "node",
        "forward µs",
        "of ceiling",
        "backward µs",
        "of ceiling",
        "lost µs",
        "of nodes",
    ]);
    let trials = data
        .trials
        .iter()
        .filter(|trial| trial.kind == "layer-cost" && trial.outcome.has_figures());
    trials.for_each(|trial| add(&mut table, data, trial, width));
    if table.is_empty() {
        return String::new();
    }
    for column in 2..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{table}\nThe nodes that take longest beyond what their work would at the ceiling: products at the peak of multiply-adds, all others at \
         the bandwidth of memory (more than 100 %: the data came from a cache). [low, high] is the range over repeats. of nodes: what was lost, of the time of all nodes. Every node \
         stands in report.md.\n"
    )
}

fn add(table: &mut Table, data: &RunData, trial: &TrialRow, width: Option<u16>) {
    let nodes = nodes(data, trial);
    let total: f64 = nodes.iter().map(NodeCost::total).sum();
    let time = |time: Option<[f64; 3]>| ranged(time, |ns| significant(ns / 1e3, 3));
    let share = |held: &Held| ranged(held.share, percent);
    for (index, node) in worst(&nodes).into_iter().take(SHOWN).enumerate() {
        let lost = node.lost().unwrap_or_default();
        let cells = [
            if index == 0 {
                trial.label.clone()
            } else {
                String::new()
            },
            format!("{} {}", node.node, node.name),
            time(node.forward),
            share(&node.held_forward),
            time(node.backward),
            share(&node.held_backward),
            significant(lost / 1e3, 3),
            percent(lost / total),
        ];
        table.add_row(cells.map(|cell| spreads_below(cell, width)));
    }
}

/// Median, smallest and largest as a cell.
fn ranged(value: Option<[f64; 3]>, show: impl Fn(f64) -> String) -> String {
    let part = |index: usize| value.map(|value| value[index]);
    with_spread(part(0), part(1), part(2), show)
}
