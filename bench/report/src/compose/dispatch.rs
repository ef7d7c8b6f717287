//! The host's time beside the GPU's, in words and a table.
//!
//! Contract: shown where steps of the pass `dispatch` were recorded; a sentence only where the scenario asks for it.
use crate::{
    chart::{layers::subject, series::name},
    dispatch::{DispatchCost, dispatch_costs},
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    factor::fair,
    format::{estimated, milliseconds, percent},
    run_data::RunData,
};

/// The factor of a scenario that asks what graphs change.
pub(crate) const CUDA_GRAPH: &str = "train.cuda_graph";

const NOTE: &str = "Host and device, of one step each: medians over the steps of a pass of its own, of the rank whose host takes the largest share of its device's time, and over repeats. Each of these steps \
begins on an idle GPU, so no call waits for room in a stream; the wait lies between steps and is in none of the times. Enqueuing: the host's time from the begin of a step until its last call \
has returned, without the batch. The batch: copying it to where the GPU fetches it from, and enqueuing that. The device: from when the batch has arrived until all else is done, by CUDA events. A host that is \
slower than its GPU keeps it waiting within the step, which is in the device's time: a share near 100 % means that the host decides how long a step takes, and the device alone would take less.";

/// Sentences that answer a scenario about the host's share.
pub(crate) fn dispatch_sentences(data: &RunData) -> Vec<String> {
    let costs = dispatch_costs(data);
    let with = |graph| {
        costs
            .iter()
            .filter(move |cost| cost.trial.cuda_graph == Some(graph))
    };
    let fact = |cost: &DispatchCost<'_>| {
        format!(
            "{} of the device's {}",
            estimated(cost.share, percent),
            estimated(cost.device, milliseconds)
        )
    };
    with(false)
        .map(|one_by_one| {
            let trial = one_by_one.trial;
            let beside = with(true).find(|cost| fair(cost.trial, trial, CUDA_GRAPH));
            let graph = beside.map_or(String::new(), |cost| {
                format!("; as one CUDA graph, {}", fact(cost))
            });
            format!(
                "{}, {}: the host enqueues a step's kernels one by one in {}{graph}.",
                subject(trial),
                name(trial),
                fact(one_by_one)
            )
        })
        .collect()
}

/// The table; empty where nobody told host and device apart.
pub(super) fn blocks(data: &RunData) -> Vec<Block> {
    let costs = dispatch_costs(data);
    if costs.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(
        "A step's time on the host beside its time on the device.",
        &[
            ("model", Left),
            ("trial", Left),
            ("enqueuing (host)", Right),
            ("the batch (host)", Right),
            ("device", Right),
            ("enqueuing, share of the device's time", Right),
        ],
    );
    for cost in &costs {
        table.push(vec![
            subject(cost.trial),
            name(cost.trial),
            estimated(cost.dispatch, milliseconds),
            estimated(cost.upload, milliseconds),
            estimated(cost.device, milliseconds),
            estimated(cost.share, percent),
        ]);
    }
    vec![Block::Table(table), Block::note(NOTE)]
}
