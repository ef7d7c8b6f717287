//! The section on what NVIDIA's libraries took where they were left to choose, and on trials that did not take the same.
//!
//! Contract: nothing where nothing was recorded. Two trials are held against each other in the operations and shapes that both have, at equal
//! precision: what they took there should not differ, whatever else does.
use std::collections::{BTreeMap, BTreeSet};

use syncmark_record::rows::{AlgorithmRow, TrialRow};

use crate::{
    chart::{layers::subject, series::name},
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{bytes, count},
    run_data::RunData,
};

/// Pairs that are named before the rest is only counted.
const MOST_PAIRS: usize = 6;

const NOTE: &str = "What was taken when a shape first came, told at the end of each repeat; algorithms.csv has each shape. Only algorithms that the library calls \
deterministic are taken for convolutions, the first of its own ranking, which may differ between versions of the library and between GPUs. Of cuBLASLt's, which say nothing of that, those are asked for that \
add parts of a sum in a step of their own.";

pub(super) fn section(data: &RunData) -> Vec<Block> {
    if data.algorithms.is_empty() {
        return Vec::new();
    }
    let mut blocks = vec![
        Block::heading(1, "Algorithms of NVIDIA's libraries"),
        Block::Table(table(data)),
        Block::note(NOTE),
    ];
    blocks.extend(unequal(data).into_iter().map(Block::warning));
    blocks
}

/// What tells one row of the table from another, in its order.
type Line<'a> = (&'a str, &'a str, &'a str, &'a str, bool);

/// Shapes and the largest workspace.
type Sum<'a> = (BTreeSet<&'a str>, u64);

fn table(data: &RunData) -> Table {
    let mut table = Table::new(
        "Algorithms that NVIDIA's libraries took, by model, precision and operation, over all trials, repeats and devices.",
        &[
            ("model", Left),
            ("precision", Left),
            ("library", Left),
            ("operation", Left),
            ("algorithm", Left),
            ("multiplies by", Left),
            ("shapes", Right),
            ("largest workspace", Right),
            ("same bits each time", Left),
        ],
    );
    let mut models: Vec<(&str, &str)> = Vec::new();
    for trial in &data.trials {
        let own = (trial.model.as_str(), precision(trial));
        if !models.contains(&own) {
            models.push(own);
        }
    }
    for (model, own_precision) in models {
        let of_model: BTreeSet<&str> = data
            .trials
            .iter()
            .filter(|trial| (trial.model.as_str(), precision(trial)) == (model, own_precision))
            .map(|trial| trial.trial.as_str())
            .collect();
        let mut lines: BTreeMap<Line<'_>, Sum<'_>> = BTreeMap::new();
        let own = |row: &&AlgorithmRow| of_model.contains(row.trial.as_str());
        for row in data.algorithms.iter().filter(own) {
            let line = (
                row.library.as_str(),
                row.operation.as_str(),
                row.algorithm.as_str(),
                row.math.as_str(),
                row.deterministic,
            );
            let (shapes, workspace) = lines.entry(line).or_default();
            shapes.insert(&row.shape);
            *workspace = row.workspace_bytes.max(*workspace);
        }
        for ((library, operation, algorithm, math, deterministic), (shapes, workspace)) in lines {
            table.push(vec![
                model.to_owned(),
                own_precision.to_owned(),
                library.to_owned(),
                operation.to_owned(),
                algorithm.to_owned(),
                dash(math),
                shapes.len().to_string(),
                bytes(workspace as f64),
                if deterministic { "yes" } else { "not said" }.to_owned(),
            ]);
        }
    }
    table
}

fn dash(text: &str) -> String {
    if text.is_empty() { "–" } else { text }.to_owned()
}

fn precision(trial: &TrialRow) -> &str {
    trial.precision.as_deref().unwrap_or("–")
}

/// Library, operation and shape.
type Key<'a> = (&'a str, &'a str, &'a str);

/// Algorithms and how they multiply.
type Took<'a> = BTreeSet<(&'a str, &'a str)>;

/// Sentences about repeats and pairs of trials that took different algorithms for the same.
fn unequal(data: &RunData) -> Vec<String> {
    let mut trials: Vec<(&TrialRow, BTreeMap<Key<'_>, Took<'_>>)> = Vec::new();
    for trial in &data.trials {
        let mut took: BTreeMap<Key<'_>, Took<'_>> = BTreeMap::new();
        let own = |row: &&AlgorithmRow| row.trial == trial.trial;
        for row in data.algorithms.iter().filter(own) {
            took.entry((&row.library, &row.operation, &row.shape))
                .or_default()
                .insert((&row.algorithm, &row.math));
        }
        trials.push((trial, took));
    }
    let called = |trial: &TrialRow| format!("{}, {}", subject(trial), name(trial));
    let mut sentences = Vec::new();
    for (trial, took) in &trials {
        let several = took.values().filter(|took| took.len() > 1).count();
        if several > 0 {
            sentences.push(format!(
                "{}: its repeats or devices took different algorithms for {several} of its {} operations and shapes, so their times are not of \
the same work.",
                called(trial),
                took.len(),
            ));
        }
    }
    let mut pairs = Vec::new();
    for (index, (a, took_a)) in trials.iter().enumerate() {
        let alike =
            |(b, _): &&(&TrialRow, _)| (precision(a), &a.backend) == (precision(b), &b.backend);
        for (b, took_b) in trials[index + 1..].iter().filter(alike) {
            let both = took_a
                .iter()
                .filter_map(|(key, a)| Some((a, took_b.get(key)?)));
            let (shared, different) = both.fold((0, 0), |(shared, different), (a, b)| {
                (shared + 1, different + usize::from(a != b))
            });
            if different > 0 {
                pairs.push(format!(
                    "{} and {} took different algorithms for {different} of the {shared} operations and shapes that both have: a difference between \
them may be that of the algorithms.",
                    called(a),
                    called(b)
                ));
            }
        }
    }
    let more = pairs.len().saturating_sub(MOST_PAIRS);
    pairs.truncate(MOST_PAIRS);
    if more > 0 {
        pairs.push(format!("So did {}.", count(more, "other pair")));
    }
    sentences.extend(pairs);
    sentences
}
