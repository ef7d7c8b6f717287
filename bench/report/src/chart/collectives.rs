//! Time and bus bandwidth of every collective against the size of its message.
//!
//! Contract: the median over repeats of a repeat's median call, with the interval (or range) over repeats; calls whose
//! results were not checked or were wrong are not drawn. Bandwidth as nccl-tests defines it: algbw = S / time, busbw =
//! algbw × a factor of the collective and the number of ranks, so that it can be held against a link's speed.
//! Reference: nccl-tests, doc/PERFORMANCE.md.
use std::collections::BTreeMap;

use syncmark_record::rows::{CollectiveRow, TrialRow};

use super::{
    WIDTH,
    curves::{self, Curve, CurvePoint, LOOKS, Plot, Show, binary_bytes},
    legend,
    series::{alert, not_shown_of, way},
};
use crate::{document::Figure, format, nccl, run_data::RunData, stats::bootstrap::estimate};

/// Both figures, if any collective was measured.
pub fn collectives(data: &RunData) -> Vec<Figure> {
    let trials: Vec<&TrialRow> = data
        .trials
        .iter()
        .filter(|trial| trial.kind == "collectives")
        .collect();
    let quantities = [
        Quantity {
            name: "collectives-bandwidth",
            title: "Bus bandwidth against message size",
            axis: "busbw (B / s)",
            show: bytes_per_second,
            value: |row| row.busbw_bytes_per_s,
            of_nccl: Some(nccl::caption),
            words: "Bus bandwidth as nccl-tests defines it: size over time, times a factor of the collective and the number of \
                    ranks; higher is better. Both axes are logarithmic.",
        },
        Quantity {
            name: "collectives-time",
            title: "Time of a call against message size",
            axis: "time of a call",
            show: nanoseconds,
            value: |row| Some(row.time_ns_p50 as f64),
            of_nccl: None,
            words: "Time of one call, back to back, on the slowest rank; lower is better. Both axes are logarithmic: level on the left is \
                    latency, a slope of one on the right is bandwidth.",
        },
    ];
    quantities
        .iter()
        .filter_map(|quantity| figure(data, &trials, quantity))
        .collect()
}

struct Quantity {
    name: &'static str,
    title: &'static str,
    axis: &'static str,
    show: Show,
    value: fn(&CollectiveRow) -> Option<f64>,
    /// What a caption says where NCCL moved the bytes.
    of_nccl: Option<fn(&RunData) -> &'static str>,
    words: &'static str,
}

/// Microseconds or milliseconds, short.
fn nanoseconds(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{} ns", short(ns)),
        ns if ns < 1e6 => format!("{} µs", short(ns / 1e3)),
        ns if ns < 1e9 => format!("{} ms", short(ns / 1e6)),
        ns => format!("{} s", short(ns / 1e9)),
    }
}

fn bytes_per_second(bytes: f64) -> String {
    match bytes {
        bytes if bytes < 1e3 => format!("{} B/s", short(bytes)),
        bytes if bytes < 1e6 => format!("{} kB/s", short(bytes / 1e3)),
        bytes if bytes < 1e9 => format!("{} MB/s", short(bytes / 1e6)),
        bytes => format!("{} GB/s", short(bytes / 1e9)),
    }
}

/// Ticks are powers of ten or two: no digits behind what they have.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn figure(data: &RunData, trials: &[&TrialRow], quantity: &Quantity) -> Option<Figure> {
    let mut operations: Vec<&str> = Vec::new();
    for row in &data.collectives {
        if !operations.contains(&row.collective.as_str()) && row.size_bytes > 0 {
            operations.push(&row.collective);
        }
    }
    let plots: Vec<Plot> = operations
        .iter()
        .map(|operation| Plot {
            title: operation.replace('_', "-"),
            x: ("size", Some(binary_bytes)),
            y: (quantity.axis, Some(quantity.show)),
            curves: curves_of(data, trials, operation, quantity),
            level: None,
        })
        .collect();
    let spread = legend::spread(trials.iter().copied());
    let title = quantity.title;
    let subtitle = subtitle(trials);
    let (svg, height) = curves::draw(title, &subtitle, &plots, 2, spread)?;
    let caption = format!(
        "{} Every call's result was checked element by element, on numbers whose sums are exact, in a pass that is not timed.{}{}",
        quantity.words,
        quantity.of_nccl.map_or("", |of_nccl| of_nccl(data)),
        not_shown_of(trials)
    );
    Some(Figure {
        name: quantity.name.into(),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

fn subtitle(trials: &[&TrialRow]) -> String {
    let mut words: Vec<String> = Vec::new();
    for trial in trials {
        let ranks = format!("{} ranks on {}", trial.devices, trial.backend);
        for word in [ranks, alert(trial)] {
            if !word.is_empty() && !words.contains(&word) {
                words.push(word);
            }
        }
    }
    words.join(" · ")
}

fn curves_of(
    data: &RunData,
    trials: &[&TrialRow],
    operation: &str,
    quantity: &Quantity,
) -> Vec<Curve> {
    let several = trials
        .iter()
        .any(|trial| trial.devices != trials[0].devices);
    let curve = |(index, trial): (usize, &&TrialRow)| {
        let (marker, color) = LOOKS[index % LOOKS.len()];
        let mut by_size: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
        let rows = data.collectives.iter().filter(|row| {
            row.trial == trial.trial
                && row.collective == operation
                && row.size_bytes > 0
                && row.checked
                && row.wrong_elements == 0
        });
        for row in rows.filter(|_| trial.outcome.has_figures()) {
            by_size
                .entry(row.size_bytes)
                .or_default()
                .extend((quantity.value)(row));
        }
        let points = by_size.into_iter().filter_map(|(size, values)| {
            let found = estimate(&values)?;
            Some(CurvePoint {
                x: size as f64,
                value: found.value,
                low: found.low,
                high: found.high,
            })
        });
        let name = match several {
            true => format!("{} ×{}", way(trial), trial.devices),
            false => way(trial),
        };
        Curve {
            name,
            marker,
            color,
            points: points.collect(),
            flat: None,
        }
    };
    trials.iter().enumerate().map(curve).collect()
}

/// One row per collective, size and trial: what the charts show, in numbers.
pub fn rows_of<'a>(
    data: &'a RunData,
    trial: &TrialRow,
) -> BTreeMap<(&'a str, u64), Vec<&'a CollectiveRow>> {
    let mut rows: BTreeMap<(&str, u64), Vec<&CollectiveRow>> = BTreeMap::new();
    for row in data
        .collectives
        .iter()
        .filter(|row| row.trial == trial.trial)
    {
        rows.entry((&row.collective, row.size_bytes))
            .or_default()
            .push(row);
    }
    rows
}

/// The median of a column over repeats, as a table shows it.
pub fn median_of(rows: &[&CollectiveRow], column: fn(&CollectiveRow) -> Option<f64>) -> String {
    let values: Vec<f64> = rows.iter().filter_map(|row| column(row)).collect();
    format::or_dash(crate::stats::median(&values), format::bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        assert_eq!(nanoseconds(1000.0), "1 µs");
        assert_eq!(nanoseconds(100_000_000.0), "100 ms");
        assert_eq!(bytes_per_second(1e9), "1 GB/s");
        assert_eq!(bytes_per_second(0.25e9), "250 MB/s");
    }
}
