//! From repeats to the figures of a trial.
//!
//! Contract: a figure stands only where the outcome allows one, and every ratio is taken within blocks (equal repeat
//! numbers). A trial without finished repeats keeps what its row says. Applying [`summarise`] twice changes nothing.
//! Reference: METHODOLOGY.md, "Headline throughput" to "Bytes, three ways".
use std::collections::BTreeMap;

use syncmark_record::{
    Outcome,
    disturbance::disturbance,
    outcome::of_repeats,
    rows::{CommRow, DeviceRow, RepeatRow, TrialRow},
};

use crate::stats::{Estimate, estimate, estimate_ratio, median, spread_of};

/// The warning of a trial whose counted bytes are not the predicted ones.
pub const BYTES_DIFFER: &str = "counted bytes differ from predicted bytes in a call of some rank";

/// The warning of a trial whose windows are too short to be called disturbed, but were.
const UNJUDGED_LOAD: &str = "other load or slowed GPUs in windows of a smoke size, which are not judged by it: foreign_cpu_share, steal_share and gpu_* in repeats.csv";

/// Share by which a figure may pass what is possible before the trial is marked: more is not noise of the middle.
const IMPLAUSIBLE: f64 = 0.05;

/// The least slowdown of the traced pass that is worth a warning.
const SLOW_TRACE: f64 = 1.10;

/// Per-block values of one trial.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blocks {
    /// Window time per step in milliseconds, by repeat.
    pub step_ms: BTreeMap<u32, f64>,
    /// Samples over window time, by repeat.
    pub samples_per_s: BTreeMap<u32, f64>,
    /// Step time minus that without synchronization in milliseconds, by repeat.
    pub exposed_ms: BTreeMap<u32, f64>,
    /// Traced step time over window step time, by repeat.
    pub tracing: BTreeMap<u32, f64>,
}

impl Blocks {
    /// Collects the blocks of a trial from its finished repeats.
    pub fn of(trial: &str, repeats: &[RepeatRow]) -> Self {
        let mut blocks = Self::default();
        for row in repeats
            .iter()
            .filter(|row| row.trial == trial && row.outcome.has_figures())
        {
            let Some(step_ms) = per_step_ms(row.window_ns, Some(row.steps)) else {
                continue;
            };
            let window_s = step_ms * row.steps as f64 / 1e3;
            blocks.step_ms.insert(row.repeat, step_ms);
            blocks
                .samples_per_s
                .insert(row.repeat, row.samples as f64 / window_s);
            if let Some(alone) = per_step_ms(row.unsynchronized_window_ns, row.unsynchronized_steps)
            {
                blocks.exposed_ms.insert(row.repeat, step_ms - alone);
            }
            if let Some(traced) = per_step_ms(row.traced_window_ns, row.traced_steps) {
                blocks.tracing.insert(row.repeat, traced / step_ms);
            }
        }
        blocks
    }
}

fn per_step_ms(window_ns: Option<u64>, steps: Option<u64>) -> Option<f64> {
    match (window_ns, steps) {
        (Some(ns), Some(steps)) if ns > 0 && steps > 0 => Some(ns as f64 / steps as f64 / 1e6),
        _ => None,
    }
}

/// The values of a metric, without their block numbers.
pub fn values(blocks: &BTreeMap<u32, f64>) -> Vec<f64> {
    blocks.values().copied().collect()
}

/// Pairs of the blocks that both have.
pub fn paired(above: &BTreeMap<u32, f64>, below: &BTreeMap<u32, f64>) -> Vec<(f64, f64)> {
    above
        .iter()
        .filter_map(|(block, value)| Some((*value, *below.get(block)?)))
        .collect()
}

/// Fills the figures of every trial from its repeats, communication and devices. Identity columns, outcome and
/// reason stay, except that a trial recorded as interrupted, whose finished repeats all passed, is shown with those
/// repeats and a warning that says so.
pub fn summarise(
    trials: &[TrialRow],
    repeats: &[RepeatRow],
    comm: &[CommRow],
    devices: &[DeviceRow],
) -> Vec<TrialRow> {
    let blocks: BTreeMap<&str, Blocks> = trials
        .iter()
        .map(|trial| (trial.trial.as_str(), Blocks::of(&trial.trial, repeats)))
        .collect();
    let settled: Vec<TrialRow> = trials.iter().map(|trial| settle(trial, repeats)).collect();
    settled
        .iter()
        .map(|trial| {
            let own = &blocks[trial.trial.as_str()];
            if trial.kind == "collectives" {
                return beside_training(trial, repeats);
            }
            if own.step_ms.is_empty() {
                return without_repeats(trial);
            }
            let mut row = without_figures(trial);
            row.repeats = own.step_ms.len() as u32;
            if trial.outcome.has_figures() {
                fill_times(&mut row, own);
                fill_efficiency(&mut row, own, &settled, &blocks);
                fill_bytes(&mut row, comm);
                row.peak_memory_bytes = devices
                    .iter()
                    .filter(|d| d.trial == row.trial)
                    .map(|d| d.peak_memory_bytes)
                    .max();
                fill_warnings(&mut row, repeats, comm);
            }
            row
        })
        .collect()
}

/// Whether a trial is there for its training steps. Other kinds have files of their own for their figures.
pub fn trains(trial: &TrialRow) -> bool {
    !matches!(
        trial.kind.as_str(),
        "collectives" | "layer-cost" | "learning"
    )
}

/// A trial without steps: how many of its repeats have figures, and what their spread is.
fn beside_training(trial: &TrialRow, repeats: &[RepeatRow]) -> TrialRow {
    let finished = repeats
        .iter()
        .filter(|repeat| repeat.trial == trial.trial && repeat.outcome.has_figures())
        .count();
    TrialRow {
        repeats: finished as u32,
        spread: (finished > 0).then(|| spread_of(finished).name().to_owned()),
        ..trial.clone()
    }
}

/// Gives an interrupted trial the outcome of its finished repeats.
fn settle(trial: &TrialRow, repeats: &[RepeatRow]) -> TrialRow {
    let mut row = trial.clone();
    if row.outcome != Outcome::Interrupted {
        return row;
    }
    let own = || repeats.iter().filter(|repeat| repeat.trial == row.trial);
    let finished = own().filter(|repeat| repeat.outcome.has_figures()).count();
    let failed = own().find(|repeat| repeat.outcome.is_failure());
    if let Some(failed) = failed {
        (row.outcome, row.reason) = (failed.outcome, failed.reason.clone());
    } else if finished > 0 {
        row.outcome = of_repeats(own().map(|repeat| repeat.outcome));
        row.reason = None;
        if is_placeholder(trial) {
            return row;
        }
        let text = format!(
            "the run was interrupted: figures are of the {} that finished",
            crate::format::count(finished, "repeat")
        );
        row.warnings = Some(with_warning(row.warnings.take(), &text));
    }
    row
}

/// A row without repeats keeps figures that its writer had, if its outcome allows any.
fn without_repeats(trial: &TrialRow) -> TrialRow {
    if trial.outcome.has_figures() {
        trial.clone()
    } else {
        without_figures(trial)
    }
}

fn without_figures(trial: &TrialRow) -> TrialRow {
    TrialRow {
        repeats: 0,
        spread: None,
        step_ms: None,
        step_ms_low: None,
        step_ms_high: None,
        samples_per_s: None,
        samples_per_s_low: None,
        samples_per_s_high: None,
        efficiency_single: None,
        efficiency_single_low: None,
        efficiency_single_high: None,
        efficiency_independent: None,
        efficiency_independent_low: None,
        efficiency_independent_high: None,
        exposed_communication_ms: None,
        exposed_communication_ms_low: None,
        exposed_communication_ms_high: None,
        predicted_bytes_per_step: None,
        counted_bytes_per_step: None,
        measured_bytes_per_step: None,
        peak_memory_bytes: None,
        tracing_slowdown: None,
        ..trial.clone()
    }
}

/// Spreads an estimate over the three columns of a figure.
fn columns(estimate: Option<Estimate>) -> (Option<f64>, Option<f64>, Option<f64>) {
    (
        estimate.map(|e| e.value),
        estimate.map(|e| e.low),
        estimate.map(|e| e.high),
    )
}

fn fill_times(row: &mut TrialRow, own: &Blocks) {
    let step = estimate(&values(&own.step_ms));
    row.repeats = own.step_ms.len() as u32;
    row.spread = step.map(|e| e.spread.name().into());
    (row.step_ms, row.step_ms_low, row.step_ms_high) = columns(step);
    (
        row.samples_per_s,
        row.samples_per_s_low,
        row.samples_per_s_high,
    ) = columns(estimate(&values(&own.samples_per_s)));
    (
        row.exposed_communication_ms,
        row.exposed_communication_ms_low,
        row.exposed_communication_ms_high,
    ) = columns(estimate(&values(&own.exposed_ms)));
    row.tracing_slowdown = median(&values(&own.tracing));
}

/// [`columns`] of a ratio to another trial, of which the two may have fewer blocks in common than this one has: an interval
/// and a range do not stand in one row, so the ratio then has neither.
fn ratio_columns(
    row: &TrialRow,
    ratio: Option<Estimate>,
) -> (Option<f64>, Option<f64>, Option<f64>) {
    match ratio {
        Some(ratio) if row.spread.as_deref() != Some(ratio.spread.name()) => {
            (Some(ratio.value), None, None)
        }
        ratio => columns(ratio),
    }
}

fn fill_efficiency(
    row: &mut TrialRow,
    own: &Blocks,
    trials: &[TrialRow],
    blocks: &BTreeMap<&str, Blocks>,
) {
    let against = |other: Option<&TrialRow>, times: f64| {
        let other = &blocks[other?.trial.as_str()].samples_per_s;
        let pairs: Vec<_> = paired(&own.samples_per_s, other)
            .into_iter()
            .map(|(above, below)| (above, below * times))
            .collect();
        estimate_ratio(&pairs)
    };
    let single = against(reference(row, trials, "single"), f64::from(row.devices));
    (
        row.efficiency_single,
        row.efficiency_single_low,
        row.efficiency_single_high,
    ) = ratio_columns(row, single);
    let independent = against(reference(row, trials, "independent"), 1.0);
    (
        row.efficiency_independent,
        row.efficiency_independent_low,
        row.efficiency_independent_high,
    ) = ratio_columns(row, independent);
    let few = |ratio: Option<Estimate>| {
        ratio.filter(|ratio| row.spread.as_deref() != Some(ratio.spread.name()))
    };
    if let Some(ratio) = few(single).or(few(independent)) {
        let text = format!(
            "efficiency without an interval: only {} in common with the trial that it is taken against",
            crate::format::count(ratio.blocks, "repeat")
        );
        row.warnings = Some(with_warning(row.warnings.take(), &text));
    }
}

/// How the replicas of a trial run. DP has one process, and so had `independent` before it could be launched otherwise.
fn launched(row: &TrialRow) -> &str {
    row.launch.as_deref().unwrap_or("threads")
}

/// The trial that efficiency is taken against: `single` on one device, or `independent` on as many devices and launched alike, of the
/// same model, norm, data, backend, optimizer and number of micro-batches, with the same work a device (weak) or the same whole (strong).
pub(crate) fn reference<'a>(
    row: &TrialRow,
    trials: &'a [TrialRow],
    strategy: &str,
) -> Option<&'a TrialRow> {
    // Against another trial of its kind (launched otherwise, scaled otherwise) a reference's ratio would be noise with a name.
    if row.strategy == "single" || row.strategy == strategy {
        return None;
    }
    let devices = if strategy == "single" { 1 } else { row.devices };
    let work = |trial: &TrialRow| {
        if row.scaling == "strong" {
            trial.global_batch
        } else {
            trial.global_batch / u64::from(trial.devices.max(1))
        }
    };
    let same_setting = |other: &&TrialRow| {
        (
            &other.kind,
            &other.model,
            &other.norm,
            &other.data,
            &other.backend,
            other.accumulation,
            other.threads,
            &other.optimizer,
            &other.schedule,
        ) == (
            &row.kind,
            &row.model,
            &row.norm,
            &row.data,
            &row.backend,
            row.accumulation,
            row.threads,
            &row.optimizer,
            &row.schedule,
        )
    };
    let matching = trials.iter().filter(same_setting).filter(|other| {
        other.strategy == strategy
            && other.outcome.has_figures()
            && other.devices == devices
            && work(other) == work(row)
            && (strategy == "single" || launched(other) == launched(row))
    });
    let candidates: Vec<&TrialRow> = matching.collect();
    // On one device weak and strong scaling are the same work under two names: the own name is meant.
    only(&candidates, |other| other.scaling == row.scaling)
        .or_else(|| only(&candidates, |other| other.variant == row.variant))
        .or_else(|| only(&candidates, |_| true))
}

/// The one candidate of this kind. Several differ in something that the columns do not show, so none is a fair reference.
fn only<'a>(
    candidates: &[&'a TrialRow],
    is_meant: impl Fn(&TrialRow) -> bool,
) -> Option<&'a TrialRow> {
    let mut meant = candidates.iter().filter(|other| is_meant(other));
    meant.next().filter(|_| meant.next().is_none()).copied()
}

/// Bytes sent per step over all ranks. Each repeat has its own number of steps.
fn fill_bytes(row: &mut TrialRow, comm: &[CommRow]) {
    let own: Vec<&CommRow> = comm
        .iter()
        .filter(|c| c.trial == row.trial && c.steps > 0)
        .collect();
    let per_step = |bytes: &dyn Fn(&CommRow) -> Option<u64>| {
        let mut repeats: BTreeMap<u32, f64> = BTreeMap::new();
        for c in &own {
            *repeats.entry(c.repeat).or_default() += bytes(c)? as f64 / c.steps as f64;
        }
        median(&values(&repeats))
    };
    row.counted_bytes_per_step = per_step(&|c| c.sent_bytes);
    row.predicted_bytes_per_step = per_step(&|c| c.predicted_sent_bytes);
    row.measured_bytes_per_step = per_step(&|c| c.measured_sent_bytes);
}

/// Counted bytes that all ranks of a trial sent in a step, by repeat; nothing where they cannot be counted.
pub(crate) fn sent_per_step(trial: &str, comm: &[CommRow]) -> BTreeMap<u32, f64> {
    let mut repeats = BTreeMap::new();
    for row in comm.iter().filter(|c| c.trial == trial && c.steps > 0) {
        let Some(sent) = row.sent_bytes else {
            return BTreeMap::new();
        };
        *repeats.entry(row.repeat).or_default() += sent as f64 / row.steps as f64;
    }
    repeats
}

fn fill_warnings(row: &mut TrialRow, repeats: &[RepeatRow], comm: &[CommRow]) {
    let known = row.warnings.clone().unwrap_or_default();
    let mut add = |text: &str| row.warnings = Some(with_warning(row.warnings.take(), text));
    if row.oversubscribed && !known.contains("oversubscribed") {
        add("oversubscribed: more compute threads than cores, so they wait for each other");
    }
    if repeats
        .iter()
        .any(|r| r.trial == row.trial && r.parameters_equal == Some(false))
    {
        add("ranks ended with different parameters");
    }
    let own = || {
        repeats
            .iter()
            .filter(|r| r.trial == row.trial && r.outcome.has_figures())
    };
    if own().any(|r| r.outcome != Outcome::Disturbed && disturbance(r).is_some()) {
        add(UNJUDGED_LOAD);
    }
    let watched = |r: &RepeatRow| r.watched_ns.is_some();
    if !own().any(watched) && repeats.iter().any(watched) {
        add(
            "not watched for other load: several processes share a core, or the machine does not say",
        );
    }
    if comm_differs(comm, &row.trial) {
        add(BYTES_DIFFER);
    }
    if row
        .efficiency_independent_low
        .is_some_and(|low| row.devices > 1 && low > 1.0 + IMPLAUSIBLE)
    {
        add(
            "faster than replicas that never synchronize: other load or a changing clock is in these figures",
        );
    }
    if let (Some(exposed), Some(step)) = (row.exposed_communication_ms, row.step_ms)
        && exposed < -IMPLAUSIBLE * step
    {
        add(
            "slower without synchronization than with it: other load or a changing clock is in these figures",
        );
    }
    if row
        .tracing_slowdown
        .is_some_and(|slowdown| slowdown > SLOW_TRACE)
    {
        add("tracing slowed steps by more than 10 %: read phase times as shares, not as durations");
    }
}

/// Whether any row of a trial that counts counts other bytes than were predicted for it, in either direction and by a single byte. Row
/// by row: over ranks and sizes a call of the wrong size could make up for one that never came.
fn comm_differs(comm: &[CommRow], trial: &str) -> bool {
    let differs = |counted: Option<u64>, predicted: Option<u64>| {
        counted
            .zip(predicted)
            .is_some_and(|(counted, bytes)| bytes != counted)
    };
    comm.iter().filter(|row| row.trial == trial).any(|row| {
        differs(row.sent_bytes, row.predicted_sent_bytes)
            || differs(row.received_bytes, row.predicted_received_bytes)
    })
}

/// Adds a warning to a list separated by `; `, once.
pub(crate) fn with_warning(list: Option<String>, text: &str) -> String {
    match list {
        Some(list) if list.split("; ").any(|known| known == text) => list,
        Some(list) if !list.is_empty() => format!("{list}; {text}"),
        _ => text.into(),
    }
}

/// The warnings of a trial, without those that another one begins with and says more.
pub fn warnings(trial: &TrialRow) -> Vec<&str> {
    let all: Vec<&str> = trial
        .warnings
        .iter()
        .flat_map(|list| list.split("; "))
        .filter(|text| !text.is_empty())
        .collect();
    let longer = |text: &str| {
        all.iter()
            .any(|other| other.len() > text.len() && other.starts_with(text))
    };
    all.iter().copied().filter(|text| !longer(text)).collect()
}

/// A trial of which only the id is known, because `trials.csv` is gone.
pub fn placeholder_trial(id: &str) -> TrialRow {
    TrialRow {
        variant: Some(id.into()),
        reason: Some("the trial's description is gone with trials.csv".into()),
        ..TrialRow::unknown(id)
    }
}

/// Whether a trial is one of those: its settings are not known, and must not be shown as if they were.
pub fn is_placeholder(trial: &TrialRow) -> bool {
    trial.kind == "unknown"
}
