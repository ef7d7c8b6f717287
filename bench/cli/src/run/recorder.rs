//! From the ranks' spools to the rows of one repeat.
//!
//! Contract: a pure fold over events, so that what a killed rank left is recorded exactly like what a finished one left:
//! every finished step becomes a row, and a figure that needs all ranks (the window) stays empty unless all ranks have it.
mod algorithms;
mod ceilings;
mod collectives;
mod comm;
mod devices;
mod disturbance;
mod gpus;
mod layers;
mod learning;
mod steps;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use syncmark_record::folder::RepeatRecord;
use syncmark_record::outcome::Outcome;
use syncmark_record::rows::{CompressionRow, Pass, RepeatRow};

use super::nccl_choices::Choices;
use super::spool::Event;
use crate::plan::config::{TrialConfig, compression_name};

pub use comm::{ALGORITHMS, COLLECTIVES};
pub use devices::core_list;

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
    /// Whose clock each rank's times are on; empty where all are on this host's.
    pub clocks: &'a [String],
    /// What NCCL takes for the trial's calls, where it is known.
    pub nccl: Option<&'a Choices>,
}

impl RepeatFacts<'_> {
    /// The clock of a rank, as in `phases.csv`.
    fn clock(&self, rank: usize) -> &str {
        self.clocks.get(rank).map_or("host", String::as_str)
    }
}

/// Passes in the order of their spool numbers.
pub const PASSES: [Pass; 4] = [
    Pass::Window,
    Pass::Unsynchronized,
    Pass::Traced,
    Pass::Dispatch,
];

/// The number of a pass in a spool.
pub fn pass_number(pass: Pass) -> u8 {
    PASSES
        .iter()
        .position(|p| *p == pass)
        .expect("every pass is listed") as u8
}

/// Folds the events of all ranks (in rank order) into the rows of the repeat.
pub fn record(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> RepeatRecord {
    let gpus = gpus::gpu_rows(facts, ranks);
    RepeatRecord {
        repeat: repeat_row(facts, ranks, gpus::worst(&gpus)),
        steps: steps::step_rows(facts, ranks),
        phases: steps::phase_rows(facts, ranks),
        comm: comm::comm_rows(facts, ranks),
        devices: devices::device_rows(facts, ranks),
        gpus,
        algorithms: algorithms::algorithm_rows(facts, ranks),
        learning: learning::learning_rows(facts, ranks),
        norm_statistics: learning::norm_statistics_rows(facts, ranks),
        collectives: collectives::collective_rows(facts, ranks),
        layers: layers::layer_rows(facts, ranks),
        ceilings: ceilings::ceiling_rows(facts, ranks),
        compression: compression_rows(facts, ranks),
    }
}

fn compression_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<CompressionRow> {
    let ddp = facts.config.strategy.ddp();
    let name = ddp.map_or_else(String::new, |ddp| compression_name(ddp.compression));
    let row = |event: &Event| match *event {
        Event::Compression {
            bucket,
            step,
            relative_error,
            cosine,
            sent_bytes,
            uncompressed_bytes,
        } => Some(CompressionRow {
            trial: facts.trial.to_owned(),
            repeat: facts.repeat,
            step,
            compression: name.clone(),
            bucket: (bucket != u16::MAX).then_some(u32::from(bucket)),
            relative_error,
            cosine,
            sent_bytes,
            uncompressed_bytes,
        }),
        _ => None,
    };
    ranks.iter().flatten().filter_map(row).collect()
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

/// From the first rank past the barrier until the last one's last step, if every rank completed the pass. Times of different
/// clocks have nothing to do with each other: each clock has its own first and last, and the longest counts.
fn whole_pass(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>], pass: Pass) -> Option<Whole> {
    let number = pass_number(pass);
    let mut whole = Whole {
        steps: 0,
        samples: 0,
        wall_ns: 0,
    };
    let mut ends: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (rank, events) in ranks.iter().enumerate() {
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
        let (first, last) = ends.entry(facts.clock(rank)).or_insert((start, end));
        (*first, *last) = ((*first).min(start), (*last).max(end));
        whole.steps = whole.steps.max(steps);
        whole.samples += samples;
        whole.wall_ns = whole.wall_ns.max(last.saturating_sub(*first));
    }
    (!ends.is_empty()).then_some(whole)
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

fn repeat_row(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>], gpus: gpus::Worst) -> RepeatRow {
    let window = whole_pass(facts, ranks, Pass::Window);
    let unsynchronized = whole_pass(facts, ranks, Pass::Unsynchronized);
    let traced = whole_pass(facts, ranks, Pass::Traced);
    let thirds = window.as_ref().and_then(|_| thirds(ranks));
    let warmup = ranks.iter().flatten().find_map(|event| match *event {
        Event::Warmup { steps } => Some(steps),
        _ => None,
    });
    let watched = disturbance::watched(facts, ranks);
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
        watched_ns: watched.map(|w| w.watched_ns),
        foreign_cpu_share: watched.map(|w| w.foreign),
        steal_share: watched.map(|w| w.stolen),
        cpu_pressure_share: watched.and_then(|w| w.pressure),
        involuntary_switches: watched.map(|w| w.involuntary_switches),
        gpu_samples: gpus.samples,
        gpu_clock_spread: gpus.spread,
        gpu_slowdown_share: gpus.slowdown_share,
        gpu_slowdown: gpus.slowdown,
        gpu_foreign_processes: gpus.foreign,
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
