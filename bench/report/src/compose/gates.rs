//! The table of gates: how far each trial agrees with one device, before anything is timed.
//!
//! Contract: every row of `gates.csv`, failed ones first, then those that other initial parameters were tried for, so that no
//! failure hides below passes.
//! Reference: METHODOLOGY.md, "Gates come before timing".
use syncmark_record::rows::GateRow;

use crate::{
    analyse::is_placeholder,
    chart::series::name,
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    run_data::RunData,
};

/// The section; empty where nothing was gated.
pub(super) fn section(data: &RunData) -> Vec<Block> {
    if data.gates.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(
        "Norm-wise relative error of the worst tensor after a few training steps, against one device that normalizes over the same chunks.",
        &[
            ("trial", Left),
            ("reference", Left),
            ("steps", Right),
            ("tensors", Right),
            ("worst tensor", Left),
            ("error", Right),
            ("tolerance", Right),
            ("ranks bit-equal", Left),
            ("gate", Left),
        ],
    );
    let mut gates: Vec<&GateRow> = data.gates.iter().collect();
    let order = |gate: &GateRow| {
        data.trials
            .iter()
            .position(|trial| trial.trial == gate.trial)
    };
    gates.sort_by_key(|gate| (gate.passed, gate.retried, order(gate)));
    for gate in gates {
        table.push(row(data, gate));
    }
    vec![Block::heading(1, "Gates"), Block::Table(table)]
}

fn row(data: &RunData, gate: &GateRow) -> Vec<String> {
    let trial = data.trials.iter().find(|trial| trial.trial == gate.trial);
    let label = trial.filter(|trial| !is_placeholder(trial)).map_or_else(
        || gate.label.clone(),
        |t| format!("{} ({} norm): {}", t.model, t.norm, name(t)),
    );
    let scientific = |x: f64| format!("{x:.1e}");
    let equal = gate
        .bit_equal
        .map_or("–", |equal| if equal { "yes" } else { "no" });
    let verdict = match (&gate.reason, gate.passed) {
        (_, true) => "passed".to_string(),
        (Some(reason), false) if gate.retried => format!("tried again: {reason}"),
        (Some(reason), false) => format!("failed: {reason}"),
        (None, false) => "failed".to_string(),
    };
    vec![
        label,
        gate.reference.clone(),
        gate.steps.to_string(),
        gate.tensors.to_string(),
        gate.worst_tensor.clone().unwrap_or_else(|| "–".into()),
        gate.error.map_or_else(|| "not finite".into(), scientific),
        scientific(gate.tolerance),
        equal.into(),
        verdict,
    ]
}
