//! Rows of `devices.csv`: what each device held, and how long it computed.
use syncmark_engine::probe::Phase;
use syncmark_record::rows::DeviceRow;

use super::RepeatFacts;
use crate::run::spool::Event;

pub(super) fn device_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<DeviceRow> {
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
