//! Tables of what is measured beside whole training steps: collectives, nodes of a model, compressed gradients.
//!
//! Contract: the charts show every row; tables show those that a reader looks up, and name the file with all of them.
use std::collections::BTreeMap;

use syncmark_record::rows::{CollectiveRow, TrialRow};

use crate::{
    chart::{
        collectives::rows_of,
        compression::compressed,
        curves::binary_bytes,
        layers::{NodeCost, nodes},
        series::{Facet, name},
    },
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{bytes, milliseconds, number, or_dash, percent, significant, whole},
    run_data::RunData,
    stats::{median, quantile_of_sorted},
};

/// Sizes that stand in the table, as far as they were measured: latency, the middle, bandwidth.
const SIZES: [u64; 4] = [4, 4 << 10, 1 << 20, 64 << 20];

/// Collectives at a few sizes; empty where none was measured.
pub(super) fn collectives(data: &RunData) -> Vec<Block> {
    if data.collectives.is_empty() {
        return Vec::new();
    }
    let measured = data
        .collectives
        .iter()
        .any(|row| row.measured_sent_bytes.is_some());
    let mut columns = vec![
        ("trial", Left),
        ("collective", Left),
        ("size", Right),
        ("time", Right),
        ("algbw", Right),
        ("busbw", Right),
        ("predicted", Right),
        ("counted", Right),
    ];
    if measured {
        columns.push(("measured", Right));
    }
    columns.push(("checked", Left));
    let mut table = Table::new(
        "Medians over repeats, with the smallest and largest repeat in brackets. Bytes are sent per call over all ranks.",
        &columns,
    );
    for trial in data.trials.iter().filter(|t| t.kind == "collectives") {
        for ((collective, size), rows) in rows_of(data, trial) {
            if SIZES.contains(&size) || size == 0 {
                table.push(collective_row(trial, collective, size, &rows, measured));
            }
        }
    }
    vec![
        Block::paragraph(
            "All sizes and percentiles stand in collectives.csv. A barrier has no payload, so it has a time and no bandwidth.",
        ),
        Block::Table(table),
    ]
}

fn collective_row(
    trial: &TrialRow,
    collective: &str,
    size: u64,
    rows: &[&CollectiveRow],
    measured: bool,
) -> Vec<String> {
    let spread = |column: &dyn Fn(&CollectiveRow) -> Option<f64>, show: &dyn Fn(f64) -> String| {
        let mut values: Vec<f64> = rows.iter().filter_map(|row| column(row)).collect();
        values.sort_by(f64::total_cmp);
        match (median(&values), values.first(), values.last()) {
            (Some(middle), Some(low), Some(high)) if values.len() > 1 => {
                format!("{} [{}, {}]", show(middle), show(*low), show(*high))
            }
            (Some(middle), ..) => show(middle),
            _ => "–".into(),
        }
    };
    let per_second = |value: f64| format!("{}/s", bytes(value));
    let bytes_of = |column: &dyn Fn(&CollectiveRow) -> Option<f64>| {
        let values: Vec<f64> = rows.iter().filter_map(|row| column(row)).collect();
        or_dash(median(&values), whole)
    };
    let wrong: u64 = rows.iter().map(|row| row.wrong_elements).sum();
    let checked = match (rows.iter().all(|row| row.checked), wrong) {
        (true, 0) => "exact".to_owned(),
        (true, wrong) => format!("{wrong} elements wrong"),
        (false, _) => "not checked".to_owned(),
    };
    let mut row = vec![
        name(trial),
        collective.replace('_', "-"),
        if size == 0 {
            "–".into()
        } else {
            binary_bytes(size as f64)
        },
        spread(&|row| Some(row.time_ns_p50 as f64 / 1e6), &milliseconds),
        spread(&|row| row.algbw_bytes_per_s, &per_second),
        spread(&|row| row.busbw_bytes_per_s, &per_second),
        bytes_of(&|row| row.predicted_sent_bytes),
        bytes_of(&|row| Some(row.counted_sent_bytes)),
    ];
    if measured {
        row.push(bytes_of(&|row| row.measured_sent_bytes));
    }
    row.push(checked);
    row
}

/// Every node of the models whose nodes were timed.
pub(super) fn layers(data: &RunData) -> Vec<Block> {
    let mut blocks = Vec::new();
    for trial in data.trials.iter().filter(|t| t.kind == "layer-cost") {
        let nodes = nodes(data, trial);
        let total: f64 = nodes.iter().map(NodeCost::total).sum();
        if total <= 0.0 {
            continue;
        }
        blocks.push(Block::Table(kinds_table(trial, &nodes, total)));
        let mut table = Table::new(
            format!("{}: every node, medians over repeats.", name(trial)),
            &[
                ("node", Right),
                ("layer", Left),
                ("output", Left),
                ("forward (µs)", Right),
                ("backward (µs)", Right),
                ("share", Right),
                ("GFLOP/s forward", Right),
                ("GB/s forward, at least", Right),
            ],
        );
        for node in &nodes {
            table.push(node_row(node, total));
        }
        blocks.push(Block::Table(table));
    }
    blocks
}

fn node_row(node: &NodeCost, total: f64) -> Vec<String> {
    let micro =
        |time: Option<[f64; 3]>| or_dash(time.map(|time| time[0] / 1e3), |us| significant(us, 3));
    // Operations per nanosecond are gigaoperations per second, and so are bytes.
    let rate = |amount: Option<u64>| {
        let time = node.forward.map(|time| time[0]).filter(|ns| *ns > 0.0);
        let rate = amount
            .filter(|amount| *amount > 0)
            .zip(time)
            .map(|(amount, ns)| amount as f64 / ns);
        or_dash(rate, |rate| significant(rate, 3))
    };
    vec![
        node.node.to_string(),
        node.name.clone(),
        node.output_shape.clone(),
        micro(node.forward),
        micro(node.backward),
        percent(node.total() / total),
        rate(node.flops),
        rate(node.read_write_bytes),
    ]
}

/// The same by kind of layer: what a model's time goes into.
fn kinds_table(trial: &TrialRow, nodes: &[NodeCost], total: f64) -> Table {
    let mut kinds: BTreeMap<&str, (usize, f64, f64)> = BTreeMap::new();
    for node in nodes {
        let time = |time: Option<[f64; 3]>| time.map_or(0.0, |time| time[0]);
        let kind = kinds.entry(&node.layer).or_default();
        kind.0 += 1;
        kind.1 += time(node.forward);
        kind.2 += time(node.backward);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|(_, a), (_, b)| (b.1 + b.2).total_cmp(&(a.1 + a.2)));
    let mut table = Table::new(
        format!("{}: by kind of layer.", name(trial)),
        &[
            ("layer", Left),
            ("nodes", Right),
            ("forward (µs)", Right),
            ("backward (µs)", Right),
            ("share", Right),
        ],
    );
    for (kind, (count, forward, backward)) in kinds {
        table.push(vec![
            kind.to_owned(),
            count.to_string(),
            number(forward / 1e3),
            number(backward / 1e3),
            percent((forward + backward) / total),
        ]);
    }
    table
}

/// Error and bytes of compressed gradients.
pub(super) fn compression(data: &RunData, facets: &[Facet<'_>]) -> Vec<Block> {
    let mut blocks = Vec::new();
    for facet in facets {
        let points = compressed(data, facet);
        if points.is_empty() {
            continue;
        }
        let mut table = Table::new(
            format!(
                "{}: gradients as used against the exact mean of the ranks' gradients.",
                facet.title
            ),
            &[
                ("trial", Left),
                ("bytes sent, share of uncompressed", Right),
                ("relative error [smallest, largest]", Right),
                ("cosine", Right),
                ("steps", Right),
                ("step (ms)", Right),
            ],
        );
        for point in points {
            let [value, low, high] = point.error;
            table.push(vec![
                name(point.trial),
                percent(point.share),
                format!("{value:.2e} [{low:.2e}, {high:.2e}]"),
                format!("{:.6}", point.cosine),
                point.steps.to_string(),
                or_dash(point.trial.step_ms, number),
            ]);
        }
        blocks.push(Block::Table(table));
    }
    blocks
}

/// Sentences that answer a scenario of collectives: latency and bandwidth of all-reduce for every trial.
pub(crate) fn collective_sentences(data: &RunData) -> Vec<String> {
    let mut sentences = Vec::new();
    for trial in data
        .trials
        .iter()
        .filter(|trial| trial.kind == "collectives" && trial.outcome.has_figures())
    {
        let rows = rows_of(data, trial);
        let of = || {
            rows.iter()
                .filter(|((collective, size), _)| *collective == "all_reduce" && *size > 0)
        };
        let (Some(((_, small), latency)), Some(((_, large), bandwidth))) =
            (of().next(), of().next_back())
        else {
            continue;
        };
        let middle = |rows: &[&CollectiveRow], column: &dyn Fn(&CollectiveRow) -> Option<f64>| {
            let mut values: Vec<f64> = rows.iter().filter_map(|row| column(row)).collect();
            values.sort_by(f64::total_cmp);
            let at = |q| quantile_of_sorted(&values, q);
            Some((median(&values)?, at(0.0)?, at(1.0)?))
        };
        let time = middle(latency, &|row| Some(row.time_ns_p50 as f64 / 1e6));
        let speed = middle(bandwidth, &|row| row.busbw_bytes_per_s);
        if let (Some(time), Some(speed)) = (time, speed) {
            sentences.push(format!(
                "{}: an all-reduce of {} takes {} ({} to {} over repeats); at {} its bus bandwidth is {}/s ({}/s to {}/s).",
                name(trial),
                binary_bytes(*small as f64),
                milliseconds(time.0),
                milliseconds(time.1),
                milliseconds(time.2),
                binary_bytes(*large as f64),
                bytes(speed.0),
                bytes(speed.1),
                bytes(speed.2),
            ));
        }
    }
    sentences
}
