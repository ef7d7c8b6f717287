//! What each node of a model costs, forward and backward, as bars.
//!
//! Contract: the median over repeats of a repeat's median call; the share is that of all nodes together. The bars of a
//! chart are the nodes of one model; what of a step they are says the table beside them.
use std::collections::BTreeMap;

use syncmark_record::rows::{LayerRow, TrialRow};

use super::{
    WIDTH,
    axis::tick_label,
    bars::{Bar, BarChart, Group, Segment},
    legend::{Entry, Sign},
    palette::{Color, Fill},
    series::alert,
};
use crate::{document::Figure, format, run_data::RunData, stats::median};

/// Nodes that are drawn one by one; the cheapest of a longer model are one bar together.
const SHOWN: usize = 40;

/// Medians over repeats of one node.
#[derive(Clone, Debug, Default)]
pub struct NodeCost {
    /// Position in the program.
    pub node: u32,
    /// `conv2d`, `batch-norm`, ...
    pub layer: String,
    /// Name in the model.
    pub name: String,
    /// Per-sample shape of its output.
    pub output_shape: String,
    /// Median of a forward call and its spread over repeats, in nanoseconds.
    pub forward: Option<[f64; 3]>,
    /// The same backward.
    pub backward: Option<[f64; 3]>,
    /// Floating-point operations of a forward call, by formula.
    pub flops: Option<u64>,
    /// Fewest bytes that a forward call reads and writes, by formula.
    pub read_write_bytes: Option<u64>,
}

impl NodeCost {
    /// Forward and backward together, in nanoseconds.
    pub fn total(&self) -> f64 {
        [self.forward, self.backward]
            .iter()
            .flatten()
            .map(|time| time[0])
            .sum()
    }
}

/// The nodes of a trial in the order of the program.
pub fn nodes(data: &RunData, trial: &TrialRow) -> Vec<NodeCost> {
    let mut rows: BTreeMap<(u32, &str), Vec<&LayerRow>> = BTreeMap::new();
    for row in data.layers.iter().filter(|row| row.trial == trial.trial) {
        rows.entry((row.node, &row.direction))
            .or_default()
            .push(row);
    }
    let mut nodes: BTreeMap<u32, NodeCost> = BTreeMap::new();
    for ((node, direction), rows) in rows {
        let times: Vec<f64> = rows.iter().map(|row| row.time_ns_p50 as f64).collect();
        let Some(value) = median(&times) else {
            continue;
        };
        let low = times.iter().copied().fold(f64::INFINITY, f64::min);
        let high = times.iter().copied().fold(0.0, f64::max);
        let cost = nodes.entry(node).or_insert_with(|| NodeCost {
            node,
            layer: rows[0].layer.clone(),
            name: rows[0].name.clone(),
            output_shape: rows[0].output_shape.clone(),
            ..NodeCost::default()
        });
        if direction == "forward" {
            cost.forward = Some([value, low, high]);
            cost.flops = rows[0].flops;
            cost.read_write_bytes = rows[0].read_write_bytes;
        } else {
            cost.backward = Some([value, low, high]);
        }
    }
    nodes.into_values().collect()
}

/// What a trial of this kind is about: `resnet20, batch norm, 32 samples`.
pub fn subject(trial: &TrialRow) -> String {
    let norm = match trial.norm.as_str() {
        "none" => "no norm".to_owned(),
        norm => format!("{norm} norm"),
    };
    let samples = format::count(trial.global_batch as usize, "sample");
    format!("{}, {norm}, {samples}", trial.model)
}

/// Time of all nodes in milliseconds, by repeat: the sum of their median calls.
pub fn node_sums(data: &RunData, trial: &TrialRow) -> BTreeMap<u32, f64> {
    let mut sums = BTreeMap::new();
    for row in data.layers.iter().filter(|row| row.trial == trial.trial) {
        *sums.entry(row.repeat).or_default() += row.time_ns_p50 as f64 / 1e6;
    }
    sums
}

/// One figure a trial of kind `layer-cost`.
pub fn layers(data: &RunData) -> Vec<Figure> {
    data.trials
        .iter()
        .filter(|trial| trial.kind == "layer-cost" && trial.outcome.has_figures())
        .filter_map(|trial| figure(data, trial))
        .collect()
}

fn figure(data: &RunData, trial: &TrialRow) -> Option<Figure> {
    let mut costs = nodes(data, trial);
    let total: f64 = costs.iter().map(NodeCost::total).sum();
    if total <= 0.0 {
        return None;
    }
    let rest = cheapest(&mut costs);
    let mut groups: Vec<Group> = costs.iter().map(|cost| group(cost, total)).collect();
    if let Some((count, time)) = rest {
        groups.push(Group {
            label: format!("{count} cheaper nodes"),
            alert: String::new(),
            bars: vec![bar(&[(time, Color::SILVER)], note(time, total))],
        });
    }
    let title = format!("Time by node, {}", trial.model);
    let subtitle = [subject(trial), trial.backend.clone(), alert(trial)];
    let words: Vec<String> = subtitle.into_iter().filter(|w| !w.is_empty()).collect();
    let chart = BarChart {
        title: title.clone(),
        subtitle: words.join(" · "),
        axis: "time of a call (µs)".into(),
        legend: vec![
            Entry::new(Sign::Area(Fill::solid(Color::SKY)), "forward"),
            Entry::new(Sign::Area(Fill::solid(Color::BLUE)), "backward"),
        ],
        groups,
    };
    let (svg, height) = chart.draw(tick_label);
    let caption = format!(
        "Each node was timed within whole steps, in the order of the program: median call, median over {}, with the smallest and largest \
         repeat in brackets and the share of all nodes. A time includes one reading of the clock.",
        format::count(trial.repeats as usize, "repeat")
    );
    Some(Figure {
        name: format!("layers-{}", super::series::slug(&trial.label)),
        title,
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// Takes the cheapest nodes out of a long model: how many, and their time.
fn cheapest(costs: &mut Vec<NodeCost>) -> Option<(usize, f64)> {
    if costs.len() <= SHOWN {
        return None;
    }
    let mut totals: Vec<f64> = costs.iter().map(NodeCost::total).collect();
    totals.sort_by(|a, b| b.total_cmp(a));
    let least = totals[SHOWN - 1];
    let (mut count, mut time) = (0, 0.0);
    costs.retain(|cost| {
        let keep = cost.total() >= least;
        if !keep {
            count += 1;
            time += cost.total();
        }
        keep
    });
    (count > 0).then_some((count, time))
}

fn group(cost: &NodeCost, total: f64) -> Group {
    let time = |time: Option<[f64; 3]>| time.map_or(0.0, |time| time[0]);
    let segments = [
        (time(cost.forward), Color::SKY),
        (time(cost.backward), Color::BLUE),
    ];
    let ends = |index: usize| -> f64 {
        [cost.forward, cost.backward]
            .iter()
            .flatten()
            .map(|time| time[index])
            .sum()
    };
    let spread = format!(
        "{} [{}, {}]",
        note(cost.total(), total),
        format::significant(ends(1) / 1e3, 3),
        format::significant(ends(2) / 1e3, 3)
    );
    Group {
        label: format!("{} {}", cost.node, cost.name),
        alert: String::new(),
        bars: vec![bar(&segments, spread)],
    }
}

fn bar(segments: &[(f64, Color)], note: String) -> Bar {
    Bar {
        label: String::new(),
        segments: segments
            .iter()
            .map(|(ns, color)| Segment {
                value: ns / 1e3,
                fill: Fill::solid(*color),
            })
            .collect(),
        note,
        height: 12.0,
    }
}

fn note(ns: f64, total: f64) -> String {
    format!(
        "{} µs, {}",
        format::significant(ns / 1e3, 3),
        format::percent(ns / total)
    )
}
