//! What norms cost: their nodes within a step, held against memory's bandwidth, the step beside one without norms, what is
//! kept for backward, and what SyncBatchNorm exchanges.
//!
//! Contract: every figure is taken within a repeat and then summarised over repeats. A norm's time has that of the rectifiers and
//! additions that its kernels do (`within` in `layers.csv`); a model without norms runs those by themselves, so the step beside
//! one without norms is the fair figure of what a norm adds.
//! Reference: METHODOLOGY.md, "Cost of norms".
use std::collections::BTreeMap;

use syncmark_record::rows::{CommRow, LayerRow, TrialRow};

use crate::{
    analyse::{Blocks, paired, values},
    ceilings::{MEMORY_READ_WRITE, by_repeat},
    chart::series::by_cudnn,
    factor::fair,
    run_data::RunData,
    stats::{Estimate, estimate, estimate_ratio, median},
};

/// The factor that sets the trials apart.
const FACTOR: &str = "model.norm";
/// As `comm.csv` calls what SyncBatchNorm exchanges.
const SYNC: &str = "sync_batch_norm";

/// One direction of all norms of a model, in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Direction {
    /// Milliseconds.
    pub time: Option<Estimate>,
    /// Share of the bandwidth of memory.
    pub share: Option<Estimate>,
    /// Milliseconds that the bytes would take at the bandwidth.
    pub at_ceiling: Option<f64>,
}

/// What the norms of one model cost on one device.
#[derive(Clone, Debug)]
pub struct NormCost<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// Its norms.
    pub nodes: usize,
    /// Forward.
    pub forward: Direction,
    /// Backward.
    pub backward: Direction,
    /// Share of the step.
    pub of_step: Option<Estimate>,
    /// The step over that of the same model without norms.
    pub beside_none: Option<Estimate>,
    /// Bytes that the norms keep from forward for backward, by formula.
    pub kept: Option<u64>,
    /// Bytes of values, gradients and statistics beyond those of the same model without norms, as allocated.
    pub activations_beside_none: Option<i64>,
}

/// What SyncBatchNorm costs ranks of DistributedDataParallel.
#[derive(Clone, Debug)]
pub struct SyncCost<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// Collectives of a step.
    pub calls: f64,
    /// Bytes that a rank puts in, of a step.
    pub payload: f64,
    /// Bytes that the rank which sends most sends, of a step; `None` where they cannot be counted.
    pub sent: Option<f64>,
    /// Milliseconds of a step that the rank which waits longest waits for others to arrive: median call times calls.
    pub wait: Option<Estimate>,
    /// Milliseconds of a step that moving and adding takes after that.
    pub transfer: Option<Estimate>,
    /// The step over that with each rank's own statistics.
    pub beside_batch: Option<Estimate>,
}

/// The norm of a trial and whose it is, where that is not the usual: `batch (cuDNN)`.
pub fn norm_of(trial: &TrialRow) -> String {
    match by_cudnn(trial) && trial.norm == "batch" {
        true => format!("{} (cuDNN)", trial.norm),
        false => trial.norm.clone(),
    }
}

/// Rows of norms, and of what is executed within them.
fn rows_of_norms<'a>(data: &'a RunData, trial: &TrialRow) -> Vec<&'a LayerRow> {
    let own = || data.layers.iter().filter(|row| row.trial == trial.trial);
    let is_norm = |row: &&LayerRow| row.layer.ends_with("-norm");
    let norms: Vec<u32> = own().filter(is_norm).map(|row| row.node).collect();
    own()
        .filter(|row| norms.contains(&row.within.unwrap_or(row.node)))
        .collect()
}

fn direction(data: &RunData, trial: &TrialRow, rows: &[&LayerRow], name: &str) -> Direction {
    let (mut times, mut bytes) = (BTreeMap::new(), BTreeMap::new());
    for row in rows.iter().filter(|row| row.direction == name) {
        *times.entry(row.repeat).or_default() += row.time_ns_p50 as f64 / 1e6;
        *bytes.entry(row.repeat).or_default() += row.read_write_bytes.unwrap_or(0) as f64;
    }
    let ceilings = by_repeat(data, &trial.trial, MEMORY_READ_WRITE);
    let floors: BTreeMap<u32, f64> = bytes
        .into_iter()
        .filter_map(|(repeat, bytes): (u32, f64)| {
            Some((repeat, bytes / ceilings.get(&repeat)? * 1e3))
        })
        .collect();
    let shares: Vec<f64> = paired(&floors, &times)
        .into_iter()
        .filter(|(floor, time)| *floor > 0.0 && *time > 0.0)
        .map(|(floor, time)| floor / time)
        .collect();
    Direction {
        time: estimate(&values(&times)),
        share: estimate(&shares),
        at_ceiling: median(&values(&floors)),
    }
}

/// Of one repeat; it is the same in each.
fn kept(rows: &[&LayerRow]) -> Option<u64> {
    let first = rows.first()?.repeat;
    let own = rows.iter().filter(|row| row.repeat == first);
    own.filter_map(|row| row.kept_bytes).reduce(|a, b| a + b)
}

/// The trial that differs in the norm alone.
fn beside<'a>(data: &'a RunData, trial: &TrialRow, norm: &str) -> Option<&'a TrialRow> {
    data.measured().find(|other| {
        (other.norm == norm && other.kind == trial.kind) && fair(trial, other, FACTOR)
    })
}

fn steps(data: &RunData, trial: &TrialRow) -> BTreeMap<u32, f64> {
    Blocks::of(&trial.trial, &data.repeats).step_ms
}

fn step_ratio(data: &RunData, trial: &TrialRow, other: &TrialRow) -> Option<Estimate> {
    estimate_ratio(&paired(&steps(data, trial), &steps(data, other)))
}

/// Bytes of activations; the same in every repeat.
fn activations(data: &RunData, trial: &TrialRow) -> Option<i64> {
    let own = data.devices.iter().find(|row| row.trial == trial.trial)?;
    Some(own.activations_bytes as i64)
}

/// The cost of norms on one device, in the order of the trials; those without norms have a row of nothing.
pub fn norm_costs(data: &RunData) -> Vec<NormCost<'_>> {
    let cost = |trial| {
        let rows = rows_of_norms(data, trial);
        let mut nodes: Vec<u32> = rows
            .iter()
            .filter(|row| row.within.is_none())
            .map(|row| row.node)
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut sums: BTreeMap<u32, f64> = BTreeMap::new();
        for row in &rows {
            *sums.entry(row.repeat).or_default() += row.time_ns_p50 as f64 / 1e6;
        }
        let none = beside(data, trial, "none").filter(|none| none.trial != trial.trial);
        NormCost {
            trial,
            nodes: nodes.len(),
            forward: direction(data, trial, &rows, "forward"),
            backward: direction(data, trial, &rows, "backward"),
            of_step: estimate_ratio(&paired(&sums, &steps(data, trial))),
            beside_none: none.and_then(|none| step_ratio(data, trial, none)),
            kept: kept(&rows),
            activations_beside_none: none
                .and_then(|none| Some(activations(data, trial)? - activations(data, none)?)),
        }
    };
    let mut costs: Vec<NormCost<'_>> = data
        .measured()
        .filter(|trial| trial.kind == "layer-cost")
        .map(cost)
        .collect();
    // Those of a precision side by side, each in the report's order.
    costs.sort_by(|a, b| a.trial.precision.cmp(&b.trial.precision));
    costs
}

/// Costs that share a model, a batch and a precision, side by side.
pub fn by_model<'a, 'b>(costs: &'b [NormCost<'a>]) -> impl Iterator<Item = &'b [NormCost<'a>]> {
    let shared = |cost: &NormCost<'a>| {
        let trial = cost.trial;
        (&trial.model, trial.global_batch, &trial.precision)
    };
    costs.chunk_by(move |a, b| shared(a) == shared(b))
}

/// The cost of SyncBatchNorm among ranks.
pub fn sync_costs(data: &RunData) -> Vec<SyncCost<'_>> {
    data.measured()
        .filter(|trial| trial.kind == "train" && trial.devices > 1)
        .filter_map(|trial| sync_cost(data, trial))
        .collect()
}

fn sync_cost<'a>(data: &'a RunData, trial: &'a TrialRow) -> Option<SyncCost<'a>> {
    // What each rank does in a step, by repeat and rank.
    let mut ranks: BTreeMap<(u32, u32), Vec<&CommRow>> = BTreeMap::new();
    let own = |row: &&CommRow| row.trial == trial.trial && row.phase == SYNC && row.steps > 0;
    for row in data.comm.iter().filter(own) {
        ranks.entry((row.repeat, row.rank)).or_default().push(row);
    }
    let per_step = |rows: &Vec<&CommRow>, of: &dyn Fn(&CommRow) -> f64| -> f64 {
        rows.iter().map(|row| of(row) / row.steps as f64).sum()
    };
    let most = |of: &dyn Fn(&CommRow) -> f64| {
        let all = ranks.values().map(|rows| per_step(rows, of));
        all.reduce(f64::max)
    };
    let longest = |ns: &dyn Fn(&CommRow) -> Option<u64>| {
        let mut longest: BTreeMap<u32, f64> = BTreeMap::new();
        // What nobody measured is not 0: NCCL does not say how long it waits.
        let unknown = |row: &&CommRow| row.calls > 0 && ns(row).is_none();
        if ranks.values().flatten().any(unknown) {
            return None;
        }
        for ((repeat, _), rows) in &ranks {
            let ms = per_step(rows, &|row| {
                row.calls as f64 * ns(row).unwrap_or(0) as f64 / 1e6
            });
            let known = longest.entry(*repeat).or_default();
            *known = known.max(ms);
        }
        estimate(&values(&longest))
    };
    let batch = beside(data, trial, "batch");
    Some(SyncCost {
        trial,
        calls: most(&|row| row.calls as f64)?,
        payload: most(&|row| row.payload_bytes as f64)?,
        sent: if ranks.values().flatten().all(|row| row.sent_bytes.is_some()) {
            most(&|row| row.sent_bytes.unwrap_or(0) as f64)
        } else {
            None
        },
        wait: longest(&|row| row.wait_ns_p50),
        transfer: longest(&|row| row.transfer_ns_p50),
        beside_batch: batch.and_then(|batch| step_ratio(data, trial, batch)),
    })
}
