//! Cost by node in words and tables: every node, what the nodes of one kind cost together, and what of a step they cover.
//!
//! Contract: a repeat's sum is that of its nodes' median calls; it stands beside the repeat's step as any window measures
//! it. What is missing to the step is not attributed to any node. Shares of ceilings stand where ceilings were measured.
use std::collections::BTreeMap;

use syncmark_record::rows::TrialRow;

use crate::{
    analyse::{Blocks, paired, values},
    ceilings::pooled,
    chart::layers::subject,
    compose::ceilings,
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{milliseconds, number, or_dash, percent, significant, with_spread},
    nodes::{Held, NodeCost, arithmetic_floors, node_sums, nodes, worst},
    run_data::RunData,
    stats::{Estimate, estimate, estimate_ratio},
};

/// What the table of sums leaves open.
const COVERED_NOTE: &str = "A step is the window's time over its steps, without any node timed. Nodes are the sum of their median calls, timed \
within whole steps in a pass of its own; what is missing to the step is the loss, the optimizer, loading and copying the batch, and calls slower than \
the median. The clock's column is a step of that pass over a step of the window: what taking the time of every node costs.";

/// What the columns of shares mean.
const SHARE_NOTE: &str = "Rate and share: conv2d and linear by their operations, held against the peak of multiply-adds; all others by the \
fewest bytes that they must read and write (METHODOLOGY.md has the table), held against the bandwidth of one stream in and one out of memory. More than \
100 %: the data came from a cache, which that bandwidth knows nothing of. A dash: nothing to compute or to move by formula. Lost is the time of forward and backward \
beyond what the work would take at its ceiling. Both ceilings were measured in the same repeat, on the same core. Computed: how a convolution is, forward and backward; its shape decides (METHODOLOGY.md).";

/// A trial whose nodes were timed.
struct Timed<'a> {
    trial: &'a TrialRow,
    nodes: Vec<NodeCost>,
    /// Time of all nodes in milliseconds.
    sum: Option<Estimate>,
    /// That over the step's, within repeats.
    share: Option<Estimate>,
    /// Milliseconds of its products at the peak of arithmetic, and what of the step that is, within repeats.
    floor: Option<[Estimate; 2]>,
}

fn timed(data: &RunData) -> Vec<Timed<'_>> {
    let of_trial = |trial| {
        let nodes = nodes(data, trial);
        let sums = node_sums(data, trial);
        let steps = Blocks::of(&trial.trial, &data.repeats).step_ms;
        let floors = arithmetic_floors(data, trial);
        let floor = || {
            let floor = estimate(&values(&floors)).filter(|floor| floor.value > 0.0)?;
            Some([floor, estimate_ratio(&paired(&floors, &steps))?])
        };
        (nodes.iter().map(NodeCost::total).sum::<f64>() > 0.0).then(|| Timed {
            trial,
            nodes,
            sum: estimate(&values(&sums)),
            share: estimate_ratio(&paired(&sums, &steps)),
            floor: floor(),
        })
    };
    data.trials
        .iter()
        .filter(|trial| trial.kind == "layer-cost" && trial.outcome.has_figures())
        .filter_map(of_trial)
        .collect()
}

/// The nodes of one kind together.
struct KindCost<'a> {
    layer: &'a str,
    nodes: usize,
    /// Nanoseconds.
    forward: f64,
    backward: f64,
}

impl KindCost<'_> {
    fn total(&self) -> f64 {
        self.forward + self.backward
    }
}

/// The kinds of a model, the dearest first.
fn by_kind(nodes: &[NodeCost]) -> Vec<KindCost<'_>> {
    let mut kinds: BTreeMap<&str, KindCost<'_>> = BTreeMap::new();
    for node in nodes {
        let time = |time: Option<[f64; 3]>| time.map_or(0.0, |time| time[0]);
        let kind = kinds.entry(&node.layer).or_insert(KindCost {
            layer: &node.layer,
            nodes: 0,
            forward: 0.0,
            backward: 0.0,
        });
        kind.nodes += 1;
        kind.forward += time(node.forward);
        kind.backward += time(node.backward);
    }
    let mut kinds: Vec<_> = kinds.into_values().collect();
    kinds.sort_by(|a, b| b.total().total_cmp(&a.total()));
    kinds
}

/// Sentences that answer a scenario of nodes: what the step takes, what of it the nodes are, and which kinds and node lead.
pub(crate) fn node_sentences(data: &RunData) -> Vec<String> {
    timed(data).iter().filter_map(sentence).collect()
}

fn sentence(timed: &Timed<'_>) -> Option<String> {
    let Timed { trial, nodes, .. } = timed;
    let total: f64 = nodes.iter().map(NodeCost::total).sum();
    let kinds: Vec<String> = by_kind(nodes)
        .iter()
        .take(3)
        .map(|kind| format!("{} {}", kind.layer, percent(kind.total() / total)))
        .collect();
    let dearest = nodes
        .iter()
        .max_by(|a, b| a.total().total_cmp(&b.total()))?;
    let share = timed.share?;
    // The spread of one repeat is none.
    let several = trial.repeats > 1;
    let ends = |low: String, high: String| match several {
        true => format!(" ({low} to {high})"),
        false => String::new(),
    };
    let of_step = match (trial.step_ms_low, trial.step_ms_high) {
        (Some(low), Some(high)) => ends(milliseconds(low), milliseconds(high)),
        _ => String::new(),
    };
    let floor = timed.floor.map_or(String::new(), |[floor, share]| {
        format!(
            " Its products alone would take {}{} at the peak that was measured beside it: {} of the step{}.",
            milliseconds(floor.value),
            ends(milliseconds(floor.low), milliseconds(floor.high)),
            percent(share.value),
            ends(percent(share.low), percent(share.high))
        )
    });
    Some(format!(
        "{}: a step takes {}{of_step}, and its nodes are {} of it{}. Of the nodes' time, {}; the dearest is node {}, {}, with {}.{floor}{}",
        subject(trial),
        milliseconds(trial.step_ms?),
        percent(share.value),
        ends(percent(share.low), percent(share.high)),
        kinds.join(", "),
        dearest.node,
        dearest.name,
        percent(dearest.total() / total),
        worst_words(nodes)
    ))
}

/// Where most is left to be won.
fn worst_words(nodes: &[NodeCost]) -> String {
    let worst = worst(nodes);
    let named = worst.iter().take(3).map(|node| {
        let lost = node.lost().unwrap_or_default();
        format!(
            "node {}, {} ({})",
            node.node,
            node.name,
            milliseconds(lost / 1e6)
        )
    });
    match worst.len() {
        0 => String::new(),
        _ => format!(
            " Most time beyond their ceilings: {}.",
            named.collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Steps beside the sums of their nodes.
fn covered_table(timed: &[Timed<'_>]) -> Table {
    let held = timed.iter().any(|timed| timed.floor.is_some());
    let mut columns = vec![
        ("model", Left),
        ("nodes", Right),
        ("step (ms)", Right),
        ("sum of nodes (ms)", Right),
        ("share of the step", Right),
        ("with the clock", Right),
    ];
    if held {
        columns.push(("products at the peak (ms)", Right));
        columns.push(("of the step", Right));
    }
    let mut table = Table::new("Whole steps, and what of them their nodes are.", &columns);
    let spread = |e: Option<Estimate>, show: &dyn Fn(f64) -> String| {
        with_spread(
            e.map(|e| e.value),
            e.map(|e| e.low),
            e.map(|e| e.high),
            show,
        )
    };
    for Timed {
        trial,
        nodes,
        sum,
        share,
        floor,
    } in timed
    {
        let mut row = vec![
            subject(trial),
            nodes.len().to_string(),
            with_spread(trial.step_ms, trial.step_ms_low, trial.step_ms_high, number),
            spread(*sum, &number),
            spread(*share, &percent),
            or_dash(trial.tracing_slowdown, |slowdown| format!("{slowdown:.3}×")),
        ];
        if held {
            row.push(spread(floor.map(|[floor, _]| floor), &number));
            row.push(spread(floor.map(|[_, share]| share), &percent));
        }
        table.push(row);
    }
    table
}

/// What of their steps the nodes of all trials are.
pub(super) fn coverage(data: &RunData) -> Vec<Block> {
    let timed = timed(data);
    if timed.is_empty() {
        return Vec::new();
    }
    vec![
        Block::Table(covered_table(&timed)),
        Block::note(COVERED_NOTE),
    ]
}

/// Every node of the models whose nodes were timed.
pub(super) fn layers(data: &RunData) -> Vec<Block> {
    let mut blocks = Vec::new();
    let timed: Vec<Timed<'_>> = timed(data);
    if timed.is_empty() {
        return blocks;
    }
    blocks.push(Block::Table(covered_table(&timed)));
    blocks.push(Block::note(COVERED_NOTE));
    blocks.extend(ceilings::blocks(&pooled(data)));
    for Timed { trial, nodes, .. } in &timed {
        let total: f64 = nodes.iter().map(NodeCost::total).sum();
        blocks.push(Block::Table(kinds_table(trial, nodes, total)));
        blocks.push(Block::Table(every_node(trial, nodes, total)));
    }
    if timed.iter().any(|timed| timed.floor.is_some()) {
        blocks.push(Block::note(SHARE_NOTE));
    }
    blocks
}

fn every_node(trial: &TrialRow, nodes: &[NodeCost], total: f64) -> Table {
    let brackets = match trial.repeats {
        1 => "one repeat",
        _ => "medians over repeats, with the smallest and largest repeat in brackets",
    };
    let chosen = nodes.iter().any(|node| node.algorithms[0].is_some());
    let mut columns = vec![
        ("node", Right),
        ("layer", Left),
        ("output", Left),
        ("forward (µs)", Right),
        ("forward: rate, share of its ceiling", Right),
        ("backward (µs)", Right),
        ("backward: rate, share of its ceiling", Right),
        ("of all nodes", Right),
        ("lost (µs)", Right),
    ];
    if chosen {
        columns.push(("computed", Left));
    }
    let title = format!("{}: every node, {brackets}.", subject(trial));
    let mut table = Table::new(title, &columns);
    for node in nodes {
        let mut row = node_row(node, total);
        if chosen {
            let algorithms: Vec<&str> = node
                .algorithms
                .iter()
                .flatten()
                .map(String::as_str)
                .collect();
            row.push(or_dash(
                (!algorithms.is_empty()).then(|| algorithms.join("; ")),
                |words| words,
            ));
        }
        table.push(row);
    }
    table
}

fn node_row(node: &NodeCost, total: f64) -> Vec<String> {
    let micro = |time: Option<[f64; 3]>| {
        let [value, low, high] = [0, 1, 2].map(|index| time.map(|time| time[index] / 1e3));
        with_spread(value, low, high, |us| significant(us, 3))
    };
    let held = |held: &Held| match node.within {
        Some(leader) => format!("in node {leader}"),
        None => rate_and_share(node, held),
    };
    vec![
        node.node.to_string(),
        node.name.clone(),
        node.output_shape.clone(),
        micro(node.forward),
        held(&node.held_forward),
        micro(node.backward),
        held(&node.held_backward),
        percent(node.total() / total),
        or_dash(node.lost(), |ns| significant(ns / 1e3, 3)),
    ]
}

/// `41.2 GFLOP/s, 61.0 %`; without ceilings the rate alone.
fn rate_and_share(node: &NodeCost, held: &Held) -> String {
    let rate = or_dash(held.rate, |rate| {
        format!("{} {}", significant(rate, 3), node.bound.unit())
    });
    match held.share {
        Some([share, ..]) => format!("{rate}, {}", percent(share)),
        None => rate,
    }
}

/// The same by kind of layer: what a model's time goes into.
fn kinds_table(trial: &TrialRow, nodes: &[NodeCost], total: f64) -> Table {
    let mut table = Table::new(
        format!("{}: by kind of layer.", subject(trial)),
        &[
            ("layer", Left),
            ("nodes", Right),
            ("forward (µs)", Right),
            ("backward (µs)", Right),
            ("share", Right),
        ],
    );
    for kind in by_kind(nodes) {
        table.push(vec![
            kind.layer.to_owned(),
            kind.nodes.to_string(),
            number(kind.forward / 1e3),
            number(kind.backward / 1e3),
            percent(kind.total() / total),
        ]);
    }
    table
}
