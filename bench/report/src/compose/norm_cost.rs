//! What norms cost, in words and tables.
//!
//! Contract: shown for the kind `norm-cost`, in place of every node. Nothing is called dearer whose interval includes 1.
use crate::{
    ceilings::pooled,
    chart::{layers::subject, series::name},
    compose::{ceilings, nodes},
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{bytes, estimated, milliseconds, number, or_dash, percent, ratio, whole, with_spread},
    norm_cost::{Direction, NormCost, SyncCost, by_model, norm_costs, norm_of, sync_costs},
    run_data::RunData,
};

const COST_NOTE: &str = "Norms: the medians of their nodes' calls within whole steps, added up, with the rectifiers and additions that their kernels do; of memory's bandwidth: the \
fewest bytes that these must move (METHODOLOGY.md has the table) over their time, against one stream in and one out of memory, measured in the same repeat on the same core. That compares a norm with what its own bytes allow, not norms with each other: batch norm must move 8 passes, the others 5. More than 100 %: the \
data came from a cache, or more is read than written. A step beside one without norms is the ratio of whole steps, without any node timed, within repeats: that is what a norm adds. Kept \
for backward, by formula: the norms' inputs and statistics. Activations: what the arena of values, gradients and statistics holds more than without norms, as allocated; less than nothing where \
what lies between a norm, an addition and a rectifier is never written, while a model without norms writes it.";

const SYNC_NOTE: &str = "SyncBatchNorm among ranks, of one step: its collectives, the bytes that a rank puts in, those that the rank which sends most sends, and the time that the slowest rank waits for the others to \
arrive and then moves and adds: the median call times calls, which leaves out the tail. The ratio is that of whole steps to those of the same ranks with statistics of their own, within repeats.";

/// Sentences that answer a scenario of norms.
pub(crate) fn norm_sentences(data: &RunData) -> Vec<String> {
    let costs = norm_costs(data);
    let mut sentences = Vec::new();
    for group in by_model(&costs) {
        let mut dear: Vec<&NormCost<'_>> = group.iter().filter(|cost| cost.nodes > 0).collect();
        dear.sort_by(|a, b| {
            let step = |cost: &NormCost<'_>| cost.trial.step_ms.unwrap_or(f64::INFINITY);
            step(a).total_cmp(&step(b))
        });
        let facts: Vec<String> = dear.iter().map(|cost| fact(cost)).collect();
        if !facts.is_empty() {
            let (model, samples) = (&group[0].trial.model, group[0].trial.global_batch);
            let precision = match &group[0].trial.precision {
                Some(precision) => format!(" in {precision}"),
                None => String::new(),
            };
            sentences.push(format!(
                "{model}, {samples} samples on one device{precision}, the shortest step first: {}.",
                facts.join("; ")
            ));
        }
    }
    sentences.extend(sync_costs(data).iter().map(sync_sentence));
    sentences
}

fn fact(cost: &NormCost<'_>) -> String {
    let step = match cost.beside_none {
        Some(beside) => format!(
            ", the whole step is {} one without norms",
            estimated(Some(beside), ratio)
        ),
        None => String::new(),
    };
    format!(
        "{} norm's kernels take {} of the step{step}",
        norm_of(cost.trial),
        estimated(cost.of_step, percent)
    )
}

fn sync_sentence(cost: &SyncCost<'_>) -> String {
    let beside = cost.beside_batch.map_or(String::new(), |beside| {
        format!(
            ", and a step is {} one whose ranks have statistics of their own",
            estimated(Some(beside), ratio)
        )
    });
    format!(
        "SyncBatchNorm, {}, {}: {} collectives and {} a step from each rank{beside}.",
        cost.trial.model,
        name(cost.trial),
        whole(cost.calls),
        bytes(cost.payload)
    )
}

/// Tables of norms on one device and among ranks.
pub(super) fn norms(data: &RunData) -> Vec<Block> {
    let (costs, sync) = (norm_costs(data), sync_costs(data));
    let mut blocks = Vec::new();
    if !costs.is_empty() {
        blocks.push(Block::Table(cost_table(&costs)));
        blocks.push(Block::note(COST_NOTE));
        blocks.extend(ceilings::blocks(&pooled(data)));
        blocks.extend(nodes::coverage(data));
    }
    if !sync.is_empty() {
        blocks.push(Block::Table(sync_table(&sync)));
        blocks.push(Block::note(SYNC_NOTE));
    }
    blocks
}

fn cost_table(costs: &[NormCost<'_>]) -> Table {
    let mut table = Table::new(
        "What norms cost on one device, in a step.",
        &[
            ("model", Left),
            ("norms", Right),
            ("forward (ms)", Right),
            ("of memory's bandwidth", Right),
            ("backward (ms)", Right),
            ("of memory's bandwidth", Right),
            ("of the step", Right),
            ("step (ms)", Right),
            ("beside one without norms", Right),
            ("kept for backward", Right),
            ("activations beside none", Right),
        ],
    );
    for cost in costs {
        let direction = |direction: &Direction| {
            [
                estimated(direction.time, number),
                estimated(direction.share, percent),
            ]
        };
        let trial = cost.trial;
        let step = with_spread(trial.step_ms, trial.step_ms_low, trial.step_ms_high, number);
        let [forward, forward_share] = direction(&cost.forward);
        let [backward, backward_share] = direction(&cost.backward);
        table.push(vec![
            subject(trial),
            cost.nodes.to_string(),
            forward,
            forward_share,
            backward,
            backward_share,
            match cost.nodes {
                0 => "–".to_owned(),
                _ => estimated(cost.of_step, percent),
            },
            step,
            estimated(cost.beside_none, ratio),
            or_dash(cost.kept, |kept| bytes(kept as f64)),
            or_dash(cost.activations_beside_none, |more| bytes(more as f64)),
        ]);
    }
    table
}

fn sync_table(costs: &[SyncCost<'_>]) -> Table {
    let mut table = Table::new(
        "What SyncBatchNorm costs among ranks, in a step.",
        &[
            ("trial", Left),
            ("model", Left),
            ("collectives", Right),
            ("put in by a rank", Right),
            ("sent", Right),
            ("waits, typically", Right),
            ("moves and adds, typically", Right),
            ("step (ms)", Right),
            ("beside batch norm", Right),
        ],
    );
    for cost in costs {
        let trial = cost.trial;
        table.push(vec![
            name(trial),
            subject(trial),
            whole(cost.calls),
            bytes(cost.payload),
            or_dash(cost.sent, bytes),
            estimated(cost.wait, milliseconds),
            estimated(cost.transfer, milliseconds),
            with_spread(trial.step_ms, trial.step_ms_low, trial.step_ms_high, number),
            estimated(cost.beside_batch, ratio),
        ]);
    }
    table
}
