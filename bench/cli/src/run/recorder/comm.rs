//! Rows of `comm.csv`: what was counted in the window, beside what the configuration predicts.
use syncmark_engine::comm::Collective;
use syncmark_engine::probe::Phase;
use syncmark_record::bytes::Traffic;
use syncmark_record::rows::CommRow;

use super::RepeatFacts;
use crate::run::predict::{self, Expected};
use crate::run::spool::{CommEvent, Event};

/// One row per counted kind of call, and one per kind that was expected but never counted.
pub(super) fn comm_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<CommRow> {
    let counted: Vec<_> = ranks.iter().flat_map(|events| counted(events)).collect();
    let Some(steps) = counted.iter().map(|(comm, _)| comm.steps).max() else {
        return Vec::new();
    };
    let mut expected = predict::step(facts.config);
    let algorithm = predict::algorithm(facts.config).name();
    let mut rows = Vec::new();
    for (comm, measured) in counted {
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
        rows.push(comm_row(facts, comm, traffic, measured));
    }
    for missing in expected {
        rows.push(comm_row(
            facts,
            &never_called(&missing, steps, algorithm),
            missing.traffic,
            None,
        ));
    }
    rows
}

/// A rank's totals, each with what a counter that is not ours says of it, which stands right behind it.
fn counted(events: &[Event]) -> Vec<(&CommEvent, Option<u64>)> {
    let totals = events.iter().enumerate();
    totals
        .filter_map(|(at, event)| {
            let Event::Comm(comm) = event else {
                return None;
            };
            let measured = match events.get(at + 1) {
                Some(Event::Measured { sent_bytes }) => Some(*sent_bytes),
                _ => None,
            };
            Some((comm, measured))
        })
        .collect()
}

fn never_called(expected: &Expected, steps: u32, algorithm: &str) -> CommEvent {
    let algorithm = match expected.collective {
        Collective::Copy => "peer-copy",
        _ => algorithm,
    };
    CommEvent {
        device: expected.device as u16,
        phase: expected.phase as u8,
        collective: COLLECTIVES
            .iter()
            .position(|c| *c == expected.collective)
            .expect("every collective is listed") as u8,
        algorithm: ALGORITHMS
            .iter()
            .position(|a| *a == algorithm)
            .expect("every algorithm is listed") as u8,
        element_bytes: 1,
        root: 0,
        size_bytes: expected.size_bytes,
        calls: 0,
        steps,
        sent_bytes: Some(0),
        received_bytes: Some(0),
        wait_ns: [u32::MAX; 2],
        transfer_ns: [u32::MAX; 2],
    }
}

/// `predicted` is per step; the row holds the whole window.
fn comm_row(
    facts: &RepeatFacts<'_>,
    comm: &CommEvent,
    predicted: Traffic,
    measured: Option<u64>,
) -> CommRow {
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
        measured_sent_bytes: measured,
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
pub const ALGORITHMS: [&str; 4] = ["shared-direct", "peer-copy", "ring", "nccl"];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::run::mock;
    use crate::scenario::file::{Launch, Transport};

    /// Every algorithm of the engine has a constant of this name.
    const NAMED: &str = "const ALGORITHM: &str = \"";

    fn named_in(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                named_in(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.lines().filter_map(|line| line.split_once(NAMED));
            found.extend(names.filter_map(|(_, name)| Some(name.split_once('"')?.0.to_owned())));
        }
    }

    /// Numbers are written by one process and read by another, and stand in folders of other days.
    #[test]
    fn every_algorithm_of_the_engine_has_a_spool_number_that_stays() {
        assert_eq!(ALGORITHMS, ["shared-direct", "peer-copy", "ring", "nccl"]);
        let mut found = Vec::new();
        let engine = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/src/comm");
        named_in(&engine, &mut found);
        found.sort_unstable();
        let mut known = ALGORITHMS.map(str::to_owned);
        known.sort_unstable();
        assert_eq!(found, known);
    }

    #[test]
    fn what_is_predicted_has_a_spool_number() {
        for transport in [Transport::Shared, Transport::Tcp, Transport::Nccl] {
            let mut config = mock::config(mock::ddp(Launch::Processes), 2);
            if let crate::plan::config::StrategyConfig::Ddp(ddp) = &mut config.strategy {
                ddp.transport = transport;
            }
            let name = predict::algorithm(&config).name();
            assert!(ALGORITHMS.contains(&name), "{name}");
        }
    }
}
