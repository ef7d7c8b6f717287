//! Rows of `steps.csv` and `phases.csv`: what each rank's steps took, and the spans of the traced ones.
use std::collections::BTreeMap;

use syncmark_engine::probe::Phase;
use syncmark_record::rows::{Pass, PhaseRow, StepRow};

use super::{PASSES, RepeatFacts, pass_number};
use crate::plan::config::{StrategyConfig, TrialConfig};
use crate::run::spool::Event;

/// Whether one process drives several devices, so that "rank" in the rows means device.
fn one_controller(config: &TrialConfig) -> bool {
    matches!(config.strategy, StrategyConfig::Dp { .. })
}

pub(super) fn step_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<StepRow> {
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
    if pass == Pass::Dispatch {
        for event in events {
            if let Event::Dispatch {
                step,
                dispatch_ns,
                upload_ns,
                device_ns,
            } = *event
                && let Some(row) = rows.iter_mut().find(|row| row.step == step)
            {
                row.dispatch_ns = Some(dispatch_ns);
                row.upload_ns = Some(upload_ns);
                row.device_ns = Some(device_ns);
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
        reduce_scatter_ns: None,
        all_gather_ns: None,
        buffer_broadcast_ns: None,
        sync_batch_norm_ns: None,
        wait_ns: None,
        optimizer_ns: None,
        zero_ns: None,
        dispatch_ns: None,
        upload_ns: None,
        device_ns: None,
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
        Phase::ReduceScatter => &mut row.reduce_scatter_ns,
        Phase::AllGather => &mut row.all_gather_ns,
        Phase::BufferBroadcast => &mut row.buffer_broadcast_ns,
        Phase::SyncBatchNorm => &mut row.sync_batch_norm_ns,
        Phase::Wait => &mut row.wait_ns,
        Phase::Optimizer => &mut row.optimizer_ns,
        Phase::Zero => &mut row.zero_ns,
        Phase::Setup => return None,
    })
}

const TRACKS: [&str; 3] = ["host", "compute", "communication"];

pub(super) fn phase_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<PhaseRow> {
    let spans = |event: &Event| match *event {
        Event::Span { device_ns, .. } => Some(device_ns[0]),
        _ => None,
    };
    // Each clock begins at its own first span: the ranks have just left a barrier there.
    let mut origins: BTreeMap<&str, u64> = BTreeMap::new();
    for (rank, events) in ranks.iter().enumerate() {
        if let Some(first) = events.iter().filter_map(spans).min() {
            let origin = origins.entry(facts.clock(rank)).or_insert(first);
            *origin = first.min(*origin);
        }
    }
    let mut rows = Vec::new();
    for (rank, events) in ranks.iter().enumerate() {
        let clock = facts.clock(rank);
        let origin = origins.get(clock).copied().unwrap_or(0);
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
                clock: clock.to_owned(),
            });
        }
    }
    rows
}
