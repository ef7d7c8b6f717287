//! From the ranks' spools to the rows of one repeat.
//!
//! Contract: a pure fold over events, so that what a killed rank left is recorded exactly like what a finished one left:
//! every finished step becomes a row, and a figure that needs all ranks (the window) stays empty unless all ranks have it.
use syncmark_engine::comm::Collective;
use syncmark_engine::probe::Phase;
use syncmark_record::bytes::Traffic;
use syncmark_record::folder::RepeatRecord;
use syncmark_record::outcome::Outcome;
use syncmark_record::rows::{CommRow, DeviceRow, LearningRow, Pass, PhaseRow, RepeatRow, StepRow};

use super::predict::{self, Expected};
use super::spool::{CommEvent, Event};
use crate::plan::config::{StrategyConfig, TrialConfig};

/// What the conductor knows about a repeat beside its spools.
pub struct RepeatFacts<'a> {
    /// Id of the trial.
    pub trial: &'a str,
    /// Its configuration.
    pub config: &'a TrialConfig,
    /// Repeat, from 0, which is also its block.
    pub repeat: u32,
    /// Position within the block.
    pub order: u32,
    /// UTC, RFC 3339.
    pub started: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<String>,
    /// Whether the arm without synchronization came first; `None` when it did not run.
    pub unsynchronized_first: Option<bool>,
    /// Cores of each device.
    pub cores: &'a [Vec<usize>],
}

/// Passes in the order of their spool numbers.
pub const PASSES: [Pass; 3] = [Pass::Window, Pass::Unsynchronized, Pass::Traced];

/// The number of a pass in a spool.
pub fn pass_number(pass: Pass) -> u8 {
    PASSES
        .iter()
        .position(|p| *p == pass)
        .expect("every pass is listed") as u8
}

/// Folds the events of all ranks (in rank order) into the rows of the repeat.
pub fn record(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> RepeatRecord {
    RepeatRecord {
        repeat: repeat_row(facts, ranks),
        steps: step_rows(facts, ranks),
        phases: phase_rows(facts, ranks),
        comm: comm_rows(facts, ranks),
        devices: device_rows(facts, ranks),
        learning: learning_rows(facts, ranks),
    }
}

/// By how much the mean step time changed from the first to the last third of the window: 0.02 is 2 %.
/// `None` without a complete window.
pub fn drift(row: &RepeatRow) -> Option<f64> {
    let (first, last) = (row.first_third_ns? as f64, row.last_third_ns? as f64);
    (first > 0.0).then(|| last / first - 1.0)
}

/// A pass as all ranks saw it together.
struct Whole {
    steps: u64,
    samples: u64,
    wall_ns: u64,
}

/// From the first rank past the barrier until the last one's last step, if every rank completed the pass.
fn whole_pass(ranks: &[Vec<Event>], pass: Pass) -> Option<Whole> {
    let number = pass_number(pass);
    let mut whole: Option<(Whole, u64, u64)> = None;
    for events in ranks {
        let (steps, samples, start, end) = events.iter().find_map(|event| match *event {
            Event::Pass {
                pass,
                steps,
                samples,
                start_ns,
                end_ns,
            } if pass == number => Some((steps, samples, start_ns, end_ns)),
            _ => None,
        })?;
        let (known, first, last) = whole.unwrap_or((
            Whole {
                steps,
                samples: 0,
                wall_ns: 0,
            },
            start,
            end,
        ));
        let (first, last) = (first.min(start), last.max(end));
        let wall_ns = last.saturating_sub(first);
        whole = Some((
            Whole {
                steps: known.steps.max(steps),
                samples: known.samples + samples,
                wall_ns,
            },
            first,
            last,
        ));
    }
    whole.map(|(whole, ..)| whole)
}

/// `[start, end]` of each step of a pass on one rank, in order.
fn step_times(events: &[Event], pass: Pass) -> Vec<[u64; 2]> {
    let number = pass_number(pass);
    let times = events.iter().filter_map(|event| match *event {
        Event::Step {
            pass,
            start_ns,
            end_ns,
            ..
        } if pass == number => Some([start_ns, end_ns]),
        _ => None,
    });
    times.collect()
}

/// Mean step time in the first and in the last third of the window, on the slowest rank.
fn thirds(ranks: &[Vec<Event>]) -> Option<[u64; 2]> {
    let mean = |steps: &[[u64; 2]]| (steps[steps.len() - 1][1] - steps[0][0]) / steps.len() as u64;
    let of_rank = |events: &Vec<Event>| {
        let times = step_times(events, Pass::Window);
        let third = times.len() / 3;
        (third > 0).then(|| [mean(&times[..third]), mean(&times[times.len() - third..])])
    };
    ranks
        .iter()
        .filter_map(of_rank)
        .max_by_key(|[first, last]| first + last)
}

fn repeat_row(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> RepeatRow {
    let window = whole_pass(ranks, Pass::Window);
    let unsynchronized = whole_pass(ranks, Pass::Unsynchronized);
    let traced = whole_pass(ranks, Pass::Traced);
    let thirds = window.as_ref().and_then(|_| thirds(ranks));
    let warmup = ranks.iter().flatten().find_map(|event| match *event {
        Event::Warmup { steps } => Some(steps),
        _ => None,
    });
    RepeatRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        order: facts.order,
        outcome: facts.outcome,
        reason: facts.reason.clone(),
        started: facts.started.clone(),
        warmup_steps: warmup.unwrap_or(0),
        steps: window
            .as_ref()
            .map_or_else(|| finished_steps(ranks), |w| w.steps),
        samples: window.as_ref().map_or(0, |w| w.samples),
        window_ns: window.map(|w| w.wall_ns),
        unsynchronized_steps: unsynchronized.as_ref().map(|w| w.steps),
        unsynchronized_window_ns: unsynchronized.map(|w| w.wall_ns),
        unsynchronized_order: facts
            .unsynchronized_first
            .map(|first| if first { "before" } else { "after" }.to_owned()),
        traced_steps: traced.as_ref().map(|w| w.steps),
        traced_window_ns: traced.map(|w| w.wall_ns),
        first_third_ns: thirds.map(|t| t[0]),
        last_third_ns: thirds.map(|t| t[1]),
        loss: last_loss(ranks),
        parameters_equal: parameters_equal(ranks),
    }
}

/// Window steps that the furthest rank finished before the repeat broke off.
fn finished_steps(ranks: &[Vec<Event>]) -> u64 {
    ranks
        .iter()
        .map(|events| step_times(events, Pass::Window).len() as u64)
        .max()
        .unwrap_or(0)
}

/// Mean over ranks of the last loss that each reported.
fn last_loss(ranks: &[Vec<Event>]) -> Option<f64> {
    let last = |events: &Vec<Event>| {
        events.iter().rev().find_map(|event| match *event {
            Event::Loss { loss, .. } => Some(loss),
            _ => None,
        })
    };
    let losses: Vec<f64> = ranks.iter().filter_map(last).collect();
    (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64)
}

fn parameters_equal(ranks: &[Vec<Event>]) -> Option<bool> {
    let said = ranks.iter().flatten().filter_map(|event| match *event {
        Event::ParametersEqual { equal } => Some(equal),
        _ => None,
    });
    said.reduce(|a, b| a && b)
}

/// Whether one process drives several devices, so that "rank" in the rows means device.
fn one_controller(config: &TrialConfig) -> bool {
    matches!(config.strategy, StrategyConfig::Dp { .. })
}

fn step_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<StepRow> {
    let mut rows = Vec::new();
    for (rank, events) in ranks.iter().enumerate() {
        for pass in PASSES {
            let devices = if pass == Pass::Traced && one_controller(facts.config) {
                facts.config.devices
            } else {
                1
            };
            for device in 0..devices {
                let device = if one_controller(facts.config) {
                    device
                } else {
                    rank
                };
                rows.extend(rank_steps(facts, events, pass, device));
            }
        }
    }
    rows
}

/// The steps of one pass on one rank or device, with phase totals in the traced pass.
fn rank_steps(facts: &RepeatFacts<'_>, events: &[Event], pass: Pass, rank: usize) -> Vec<StepRow> {
    let number = pass_number(pass);
    let mut rows: Vec<StepRow> = Vec::new();
    let mut origin = None;
    for event in events {
        if let Event::Step {
            pass: p,
            step,
            start_ns,
            end_ns,
            ..
        } = *event
            && p == number
        {
            let origin = *origin.get_or_insert(start_ns);
            rows.push(empty_step(
                facts,
                rank,
                pass,
                step,
                start_ns - origin,
                end_ns - start_ns,
            ));
        }
    }
    if pass == Pass::Traced {
        for event in events {
            if let Event::Span {
                device,
                phase,
                step,
                device_ns,
                ..
            } = *event
                && device as usize == rank
                && let Some(row) = rows.iter_mut().find(|row| row.step == step)
                && let Some(column) = phase_column(row, Phase::ALL[phase as usize])
            {
                *column = Some(column.unwrap_or(0) + (device_ns[1].saturating_sub(device_ns[0])));
            }
        }
    }
    rows
}

fn empty_step(
    facts: &RepeatFacts<'_>,
    rank: usize,
    pass: Pass,
    step: u64,
    start_ns: u64,
    step_ns: u64,
) -> StepRow {
    StepRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        rank: rank as u32,
        pass,
        step,
        start_ns,
        step_ns,
        data_ns: None,
        host_to_device_ns: None,
        scatter_ns: None,
        replicate_ns: None,
        forward_ns: None,
        gather_ns: None,
        loss_ns: None,
        scatter_gradients_ns: None,
        backward_ns: None,
        reduce_ns: None,
        all_reduce_ns: None,
        buffer_broadcast_ns: None,
        sync_batch_norm_ns: None,
        wait_ns: None,
        optimizer_ns: None,
        zero_ns: None,
    }
}

fn phase_column(row: &mut StepRow, phase: Phase) -> Option<&mut Option<u64>> {
    Some(match phase {
        Phase::Data => &mut row.data_ns,
        Phase::HostToDevice => &mut row.host_to_device_ns,
        Phase::Scatter => &mut row.scatter_ns,
        Phase::Replicate => &mut row.replicate_ns,
        Phase::Forward => &mut row.forward_ns,
        Phase::Gather => &mut row.gather_ns,
        Phase::Loss => &mut row.loss_ns,
        Phase::ScatterGradients => &mut row.scatter_gradients_ns,
        Phase::Backward => &mut row.backward_ns,
        Phase::Reduce => &mut row.reduce_ns,
        Phase::AllReduce => &mut row.all_reduce_ns,
        Phase::BufferBroadcast => &mut row.buffer_broadcast_ns,
        Phase::SyncBatchNorm => &mut row.sync_batch_norm_ns,
        Phase::Wait => &mut row.wait_ns,
        Phase::Optimizer => &mut row.optimizer_ns,
        Phase::Zero => &mut row.zero_ns,
        Phase::Setup => return None,
    })
}

const TRACKS: [&str; 3] = ["host", "compute", "communication"];

fn phase_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<PhaseRow> {
    let spans = |event: &Event| match *event {
        Event::Span { device_ns, .. } => Some(device_ns[0]),
        _ => None,
    };
    let Some(origin) = ranks.iter().flatten().filter_map(spans).min() else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (rank, events) in ranks.iter().enumerate() {
        for event in events {
            let Event::Span {
                device,
                track,
                phase,
                bucket,
                step,
                device_ns,
                ..
            } = *event
            else {
                continue;
            };
            rows.push(PhaseRow {
                trial: facts.trial.to_owned(),
                repeat: facts.repeat,
                rank: rank as u32,
                device: u32::from(device),
                track: TRACKS[track as usize].to_owned(),
                phase: Phase::ALL[phase as usize].name().to_owned(),
                bucket: (bucket != u16::MAX).then_some(u32::from(bucket)),
                step,
                start_ns: device_ns[0] - origin,
                end_ns: device_ns[1] - origin,
                clock: "host".to_owned(),
            });
        }
    }
    rows
}

/// One row per counted kind of call, and one per kind that was expected but never counted.
fn comm_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<CommRow> {
    let counted: Vec<&CommEvent> = ranks.iter().flatten().filter_map(comm_event).collect();
    let Some(steps) = counted.iter().map(|comm| comm.steps).max() else {
        return Vec::new();
    };
    let mut expected = predict::step(facts.config);
    let mut rows = Vec::new();
    for comm in counted {
        let key = |e: &Expected| {
            e.device == u32::from(comm.device)
                && e.phase == Phase::ALL[comm.phase as usize]
                && e.collective == COLLECTIVES[comm.collective as usize]
                && e.size_bytes == comm.size_bytes
        };
        let found = expected
            .iter()
            .position(key)
            .map(|i| expected.swap_remove(i));
        let traffic = found.map(|e| e.traffic).unwrap_or_default();
        rows.push(comm_row(facts, comm, traffic));
    }
    for missing in expected {
        rows.push(comm_row(
            facts,
            &never_called(&missing, steps),
            missing.traffic,
        ));
    }
    rows
}

fn comm_event(event: &Event) -> Option<&CommEvent> {
    match event {
        Event::Comm(comm) => Some(comm),
        _ => None,
    }
}

fn never_called(expected: &Expected, steps: u32) -> CommEvent {
    CommEvent {
        device: expected.device as u16,
        phase: expected.phase as u8,
        collective: COLLECTIVES
            .iter()
            .position(|c| *c == expected.collective)
            .expect("every collective is listed") as u8,
        algorithm: u8::from(expected.collective == Collective::Copy),
        element_bytes: 1,
        root: 0,
        size_bytes: expected.size_bytes,
        calls: 0,
        steps,
        sent_bytes: 0,
        received_bytes: 0,
        wait_ns: [u32::MAX; 2],
        transfer_ns: [u32::MAX; 2],
    }
}

/// `predicted` is per step; the row holds the whole window.
fn comm_row(facts: &RepeatFacts<'_>, comm: &CommEvent, predicted: Traffic) -> CommRow {
    let steps = u64::from(comm.steps);
    let quantile = |ns: u32| (comm.calls > 0 && ns != u32::MAX).then_some(u64::from(ns));
    CommRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        rank: u32::from(comm.device),
        phase: Phase::ALL[comm.phase as usize].name().to_owned(),
        collective: COLLECTIVES[comm.collective as usize].name().to_owned(),
        algorithm: ALGORITHMS[comm.algorithm as usize].to_owned(),
        calls: u64::from(comm.calls),
        steps,
        size_bytes: comm.size_bytes,
        payload_bytes: comm.size_bytes
            * if comm.algorithm == 1 {
                steps
            } else {
                u64::from(comm.calls)
            },
        sent_bytes: comm.sent_bytes,
        received_bytes: comm.received_bytes,
        predicted_sent_bytes: Some(predicted.sent * steps),
        predicted_received_bytes: Some(predicted.received * steps),
        measured_sent_bytes: None,
        wait_ns_p50: quantile(comm.wait_ns[0]),
        wait_ns_p90: quantile(comm.wait_ns[1]),
        transfer_ns_p50: quantile(comm.transfer_ns[0]),
        transfer_ns_p90: quantile(comm.transfer_ns[1]),
    }
}

/// Collectives in the order of their spool numbers.
pub const COLLECTIVES: [Collective; 11] = [
    Collective::Barrier,
    Collective::Broadcast,
    Collective::Reduce,
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Scatter,
    Collective::Gather,
    Collective::Send,
    Collective::Receive,
    Collective::Copy,
];

/// Algorithms in the order of their spool numbers.
pub const ALGORITHMS: [&str; 2] = ["shared-direct", "peer-copy"];

fn device_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<DeviceRow> {
    let memory = ranks.iter().flatten().filter_map(|event| match *event {
        Event::Memory { device, bytes } => Some((device, bytes)),
        _ => None,
    });
    let row = |(device, bytes): (u16, [u64; 6])| {
        let [
            parameters,
            gradients,
            optimizer,
            activations,
            buffers,
            workspace,
        ] = bytes;
        DeviceRow {
            trial: facts.trial.to_owned(),
            repeat: facts.repeat,
            device: u32::from(device),
            cores: facts
                .cores
                .get(device as usize)
                .map_or_else(String::new, |cores| core_list(cores)),
            parameters_bytes: parameters,
            gradients_bytes: gradients,
            optimizer_bytes: optimizer,
            activations_bytes: activations,
            buffers_bytes: buffers,
            workspace_bytes: workspace,
            peak_memory_bytes: bytes.iter().sum(),
            busy_ns_per_step: busy_ns_per_step(ranks, device),
        }
    };
    memory.map(row).collect()
}

/// Time per traced step in which the device's compute stream did something other than wait.
fn busy_ns_per_step(ranks: &[Vec<Event>], wanted: u16) -> Option<u64> {
    let (mut busy, mut steps) = (0, std::collections::BTreeSet::new());
    for event in ranks.iter().flatten() {
        if let Event::Span {
            device,
            track: 1,
            phase,
            step,
            device_ns,
            ..
        } = *event
            && device == wanted
        {
            steps.insert(step);
            if Phase::ALL[phase as usize] != Phase::Wait {
                busy += device_ns[1].saturating_sub(device_ns[0]);
            }
        }
    }
    (!steps.is_empty()).then(|| busy / steps.len() as u64)
}

/// `0-3,6`.
pub fn core_list(cores: &[usize]) -> String {
    let mut sorted = cores.to_vec();
    sorted.sort_unstable();
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for core in sorted {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == core => *last = core,
            _ => parts.push((core, core)),
        }
    }
    let text = parts.iter().map(|&(a, b)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    });
    text.collect::<Vec<_>>().join(",")
}

/// Training losses, averaged over ranks, where a trial reports more than the last one.
fn learning_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<LearningRow> {
    let mut by_step: std::collections::BTreeMap<u64, (f64, u32)> =
        std::collections::BTreeMap::new();
    for event in ranks.iter().flatten() {
        if let Event::Loss { step, loss } = *event {
            let entry = by_step.entry(step).or_default();
            *entry = (entry.0 + loss, entry.1 + 1);
        }
    }
    if by_step.len() < 2 {
        return Vec::new();
    }
    let global = facts.config.batch.global as u64;
    let row = |(step, (sum, ranks)): (u64, (f64, u32))| LearningRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        step,
        samples_seen: step * global,
        train_loss: Some(sum / f64::from(ranks)),
        eval_loss: None,
        eval_error: None,
        batch_statistics_loss: None,
        batch_statistics_error: None,
    };
    by_step.into_iter().map(row).collect()
}
