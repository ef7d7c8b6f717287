//! Tables of what is measured beside whole training steps: collectives and compressed gradients.
//!
//! Contract: the charts show every row; tables show those that a reader looks up, and name the file with all of them.
use syncmark_record::rows::{CollectiveRow, TrialRow};

use crate::{
    ceilings::{floor_shares, pooled},
    chart::{
        collectives::rows_of,
        compression::compressed,
        curves::binary_bytes,
        series::{Facet, name},
    },
    compose::ceilings,
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{bytes, milliseconds, number, or_dash, percent, ranged, whole},
    nccl,
    run_data::RunData,
    stats::{median, quantile_of_sorted},
};

/// Sizes that stand in the table, as far as they were measured: latency, the middle, bandwidth.
const SIZES: [u64; 6] = [4, 8, 4 << 10, 1 << 20, 64 << 20, 1 << 30];

/// Collectives at a few sizes; empty where none was measured.
pub(super) fn collectives(data: &RunData) -> Vec<Block> {
    if data.collectives.is_empty() {
        return Vec::new();
    }
    let measured = data
        .collectives
        .iter()
        .any(|row| row.measured_sent_bytes.is_some());
    let held = !data.ceilings.is_empty();
    let mut columns = vec![
        ("trial", Left),
        ("collective", Left),
        ("size", Right),
        ("time", Right),
        ("algbw", Right),
        ("busbw", Right),
    ];
    if held {
        columns.push(("busbw, share of the floor", Right));
    }
    if nccl::is_in(data) {
        columns.push(("NCCL took", Left));
    }
    columns.extend([("predicted", Right), ("counted", Right)]);
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
                let floor = held.then(|| ranged(floor_shares(data, &trial.trial, &rows), &percent));
                let took = nccl::is_in(data).then(|| nccl::took(&rows));
                let further = floor.into_iter().chain(took).collect();
                table.push(collective_row(
                    trial, collective, size, &rows, further, measured,
                ));
            }
        }
    }
    let mut blocks = vec![
        Block::paragraph(
            "All sizes and percentiles stand in collectives.csv. A barrier has no payload, so it has a time and no bandwidth.",
        ),
        Block::Table(table),
    ];
    blocks.extend(nccl::notes(data).into_iter().map(Block::note));
    if held {
        blocks.push(Block::note(FLOOR_NOTE));
        blocks.extend(ceilings::blocks(&pooled(data)));
    }
    blocks
}

/// What the column of floors means.
const FLOOR_NOTE: &str = "The floor is what the transport carries without a collective, between the first two ranks' cores alone, measured before \
the calls of each repeat: over TCP a raw loopback socket, one way or both ways at once as the collective needs it; in shared memory one core's copy \
of 64 MiB that the other wrote. Reductions, checks and waiting are the collective's own. More than 100 %: the data came from a cache, as small messages do.";

fn collective_row(
    trial: &TrialRow,
    collective: &str,
    size: u64,
    rows: &[&CollectiveRow],
    further: Vec<String>,
    measured: bool,
) -> Vec<String> {
    let spread = |column: &dyn Fn(&CollectiveRow) -> Option<f64>, show: &dyn Fn(f64) -> String| {
        ranged(rows.iter().filter_map(|row| column(row)).collect(), show)
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
        nccl::labelled(spread(&|row| row.busbw_bytes_per_s, &per_second), rows),
    ];
    row.extend(further);
    row.push(bytes_of(&|row| row.predicted_sent_bytes));
    row.push(bytes_of(&|row| row.counted_sent_bytes));
    if measured {
        row.push(bytes_of(&|row| row.measured_sent_bytes));
    }
    row.push(checked);
    row
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
                ("checked after steps", Right),
                ("checks", Right),
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
                match point.after {
                    (first, last) if first == last => first.to_string(),
                    (first, last) => format!("{first} to {last}"),
                },
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
            let ends = |low: String, high: String| match trial.repeats {
                1 => " in its one repeat".to_owned(),
                _ => format!(" ({low} to {high} over repeats)"),
            };
            let per_second = |speed| format!("{}/s", bytes(speed));
            let no_wire = match nccl::in_switch(bandwidth) {
                Some(algorithm) => {
                    format!(" (by {algorithm}: switches add, so it is no speed of a wire)")
                }
                None => String::new(),
            };
            sentences.push(format!(
                "{}: an all-reduce of {} takes {}{}; at {} its bus bandwidth is {}{}{no_wire}.",
                name(trial),
                binary_bytes(*small as f64),
                milliseconds(time.0),
                ends(milliseconds(time.1), milliseconds(time.2)),
                binary_bytes(*large as f64),
                per_second(speed.0),
                ends(per_second(speed.1), per_second(speed.2)),
            ));
        }
    }
    sentences
}
