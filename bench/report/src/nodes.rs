//! The nodes of a model: their time, and the share of the ceiling that bounds them.
//!
//! Contract: a time is the median over repeats of a repeat's median call. Matrix products are held against the peak of arithmetic by
//! their operations, everything else against the bandwidth of memory by the fewest bytes that it must move; shares are taken
//! within repeats. A share is never cut off: above 1 the data came from a cache. A node that is executed within another
//! is held together with it. Without ceilings there are rates and no shares.
//! Reference: METHODOLOGY.md, "Cost by node" and "Ceilings".
use std::collections::BTreeMap;

use syncmark_record::rows::{LayerRow, TrialRow};

use crate::{
    ceilings::{MEMORY_READ_WRITE, MULTIPLY_ADD, by_repeat},
    run_data::RunData,
    stats::median,
};

/// What bounds a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bound {
    /// Floating-point operations.
    Arithmetic,
    /// Bytes to and from memory.
    #[default]
    Memory,
}

impl Bound {
    /// Unit of its rates, in thousand millions a second.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Arithmetic => "GFLOP/s",
            Self::Memory => "GB/s",
        }
    }
}

/// One direction of a node, or of a node with those that are executed within it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Held {
    /// Operations or bytes a nanosecond; none where there is nothing to do by formula.
    pub rate: Option<f64>,
    /// Share of the ceiling: median over repeats, smallest and largest. 1 is the ceiling.
    pub share: Option<[f64; 3]>,
    /// Nanoseconds beyond what the work would take at the ceiling, median over repeats; below zero where it took less.
    pub lost: Option<f64>,
}

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
    /// How a convolution is computed: forward, then backward.
    pub algorithms: [Option<String>; 2],
    /// What bounds it.
    pub bound: Bound,
    /// The node that it is executed within.
    pub within: Option<u32>,
    /// Median of a forward call and its spread over repeats, in nanoseconds.
    pub forward: Option<[f64; 3]>,
    /// The same backward.
    pub backward: Option<[f64; 3]>,
    /// How forward stands to its ceiling, those within it included; nothing for a node that is within another.
    pub held_forward: Held,
    /// The same backward.
    pub held_backward: Held,
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

    /// Nanoseconds that forward and backward take beyond their ceilings; one that is faster makes up for nothing.
    pub fn lost(&self) -> Option<f64> {
        let lost = [self.held_forward.lost, self.held_backward.lost];
        let known = lost.iter().flatten().map(|lost| lost.max(0.0));
        lost.iter().any(Option::is_some).then(|| known.sum())
    }
}

/// Median, smallest and largest.
fn spread(values: &[f64]) -> Option<[f64; 3]> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Some([median(values)?, low, high])
}

/// Rows of one node or group in one direction, by repeat.
type Calls<'a> = BTreeMap<u32, Vec<&'a LayerRow>>;

/// The nodes of a trial in the order of the program.
pub fn nodes(data: &RunData, trial: &TrialRow) -> Vec<NodeCost> {
    let own = || data.layers.iter().filter(|row| row.trial == trial.trial);
    let mut nodes: BTreeMap<u32, NodeCost> = BTreeMap::new();
    let mut times: BTreeMap<(u32, bool), Calls<'_>> = BTreeMap::new();
    for row in own() {
        let cost = nodes.entry(row.node).or_insert_with(|| NodeCost {
            node: row.node,
            layer: row.layer.clone(),
            name: row.name.clone(),
            output_shape: row.output_shape.clone(),
            within: row.within,
            ..NodeCost::default()
        });
        if row.flops.is_some() {
            cost.bound = Bound::Arithmetic;
        }
        let forward = row.direction == "forward";
        cost.algorithms[usize::from(!forward)].clone_from(&row.algorithm);
        let calls = times.entry((row.node, forward));
        calls.or_default().entry(row.repeat).or_default().push(row);
    }
    for ((node, forward), calls) in &times {
        let ns = |rows: &Vec<&LayerRow>| rows.iter().map(|row| row.time_ns_p50 as f64).sum();
        let ns: Vec<f64> = calls.values().map(ns).collect();
        let (time, cost) = (spread(&ns), nodes.get_mut(node).expect("it was just made"));
        match forward {
            true => cost.forward = time,
            false => cost.backward = time,
        }
    }
    let mut groups: BTreeMap<(u32, bool), Calls<'_>> = BTreeMap::new();
    for row in own() {
        let leader = row.within.filter(|leader| nodes.contains_key(leader));
        let group = (leader.unwrap_or(row.node), row.direction == "forward");
        let calls = groups.entry(group).or_default();
        calls.entry(row.repeat).or_default().push(row);
    }
    let ceilings = |bound| {
        let name = match bound {
            Bound::Arithmetic => MULTIPLY_ADD,
            Bound::Memory => MEMORY_READ_WRITE,
        };
        by_repeat(data, &trial.trial, name)
    };
    let (arithmetic, memory) = (ceilings(Bound::Arithmetic), ceilings(Bound::Memory));
    for ((leader, forward), calls) in groups {
        let cost = nodes.get_mut(&leader).expect("it has rows");
        let ceilings = match cost.bound {
            Bound::Arithmetic => &arithmetic,
            Bound::Memory => &memory,
        };
        let held = held(cost.bound, &calls, ceilings);
        match forward {
            true => cost.held_forward = held,
            false => cost.held_backward = held,
        }
    }
    nodes.into_values().collect()
}

/// Operations or bytes of a row.
fn amount(bound: Bound, row: &LayerRow) -> f64 {
    let amount = match bound {
        Bound::Arithmetic => row.flops,
        Bound::Memory => row.read_write_bytes,
    };
    amount.unwrap_or(0) as f64
}

fn held(bound: Bound, calls: &Calls<'_>, ceilings: &BTreeMap<u32, f64>) -> Held {
    let (mut rates, mut shares, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for (repeat, rows) in calls {
        let ns: f64 = rows.iter().map(|row| row.time_ns_p50 as f64).sum();
        let amount: f64 = rows.iter().map(|row| amount(bound, row)).sum();
        let rate = (ns > 0.0 && amount > 0.0).then(|| amount / ns);
        rates.extend(rate);
        if let Some(per_second) = ceilings.get(repeat) {
            let ceiling = per_second / 1e9;
            shares.extend(rate.map(|rate| rate / ceiling));
            lost.push(ns - amount / ceiling);
        }
    }
    Held {
        rate: median(&rates),
        share: spread(&shares),
        lost: median(&lost),
    }
}

/// Time of all nodes in milliseconds, by repeat: the sum of their median calls.
pub fn node_sums(data: &RunData, trial: &TrialRow) -> BTreeMap<u32, f64> {
    let mut sums = BTreeMap::new();
    for row in data.layers.iter().filter(|row| row.trial == trial.trial) {
        *sums.entry(row.repeat).or_default() += row.time_ns_p50 as f64 / 1e6;
    }
    sums
}

/// Milliseconds that the matrix products of a step would take at the peak of arithmetic, by repeat.
pub fn arithmetic_floors(data: &RunData, trial: &TrialRow) -> BTreeMap<u32, f64> {
    let peaks = by_repeat(data, &trial.trial, MULTIPLY_ADD);
    let mut flops: BTreeMap<u32, f64> = BTreeMap::new();
    for row in data.layers.iter().filter(|row| row.trial == trial.trial) {
        *flops.entry(row.repeat).or_default() += amount(Bound::Arithmetic, row);
    }
    let floor = |(repeat, flops): (u32, f64)| Some((repeat, flops / peaks.get(&repeat)? * 1e3));
    flops.into_iter().filter_map(floor).collect()
}

/// The nodes that lose most time to their ceilings, the worst first; none where there are no ceilings.
pub fn worst(nodes: &[NodeCost]) -> Vec<&NodeCost> {
    let mut losing: Vec<(f64, &NodeCost)> = nodes
        .iter()
        .filter_map(|node| Some((node.lost().filter(|lost| *lost > 0.0)?, node)))
        .collect();
    losing.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    losing.into_iter().map(|(_, node)| node).collect()
}
