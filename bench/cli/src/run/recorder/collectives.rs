//! Rows of `collectives.csv`: a time and a check become a row with its bandwidths and its predicted bytes.
//!
//! Contract: a time without its check is no row: nothing is shown that was not compared.
use syncmark_engine::comm::Collective;
use syncmark_record::bytes::collective::bus_factor;
use syncmark_record::bytes::{self, Algorithm, Call};
use syncmark_record::rows::CollectiveRow;

use super::{ALGORITHMS, COLLECTIVES, RepeatFacts};
use crate::run::spool::Event;

pub(super) fn collective_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<CollectiveRow> {
    let events = ranks.iter().flatten();
    let mut rows = Vec::new();
    let mut time = None;
    for event in events {
        match (event, time.take()) {
            (Event::CollectiveTime { .. }, _) => time = Some(*event),
            (Event::CollectiveCheck { .. }, Some(time)) => rows.extend(row(facts, &time, event)),
            (_, kept) => time = kept,
        }
    }
    rows
}

fn row(facts: &RepeatFacts<'_>, time: &Event, check: &Event) -> Option<CollectiveRow> {
    let Event::CollectiveTime {
        collective,
        algorithm,
        elements,
        size_bytes,
        iterations,
        time_ns: [p10, p50, p90],
    } = *time
    else {
        return None;
    };
    let Event::CollectiveCheck {
        collective: checked,
        elements: compared,
        wrong,
        calls,
        sent_bytes,
        measured_sent_bytes,
    } = *check
    else {
        return None;
    };
    if (checked, compared) != (collective, elements) {
        return None;
    }
    let strategy = &facts.config.strategy;
    let ranks = facts.config.devices as u64;
    let collective = COLLECTIVES[collective as usize];
    let algorithm = ALGORITHMS[algorithm as usize];
    let formula = formula(collective, ranks);
    let algbw = (size_bytes > 0 && p50 > 0).then(|| size_bytes as f64 / (p50 as f64 / 1e9));
    let per_call = |bytes: u64| bytes as f64 / calls.max(1) as f64;
    Some(CollectiveRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        transport: strategy.transport().unwrap_or_default().to_owned(),
        launch: strategy.launch().unwrap_or_default().to_owned(),
        ranks: facts.config.devices as u32,
        collective: name(collective).to_owned(),
        algorithm: algorithm.to_owned(),
        elements,
        size_bytes,
        iterations,
        time_ns_p10: p10,
        time_ns_p50: p50,
        time_ns_p90: p90,
        algbw_bytes_per_s: algbw,
        busbw_bytes_per_s: algbw.map(|algbw| algbw * bus_factor(formula, ranks)),
        checked: true,
        wrong_elements: wrong,
        counted_sent_bytes: sent_bytes.map(per_call),
        predicted_sent_bytes: predicted(formula, algorithm, elements, ranks),
        measured_sent_bytes: measured_sent_bytes
            .filter(|_| collective != Collective::Barrier)
            .map(per_call),
    })
}

/// A send is timed together with its receive.
fn name(collective: Collective) -> &'static str {
    match collective {
        Collective::Send => "send_recv",
        other => other.name(),
    }
}

fn formula(collective: Collective, ranks: u64) -> bytes::Collective {
    match collective {
        Collective::Broadcast => bytes::Collective::Broadcast { root: 0 },
        Collective::Reduce => bytes::Collective::Reduce { root: 0 },
        Collective::AllGather => bytes::Collective::AllGather,
        Collective::ReduceScatter => bytes::Collective::ReduceScatter,
        Collective::Scatter => bytes::Collective::Scatter { root: 0 },
        Collective::Gather => bytes::Collective::Gather { root: 0 },
        Collective::Send | Collective::Receive => bytes::Collective::SendRecv {
            from: 0,
            to: ranks - 1,
        },
        Collective::Barrier => bytes::Collective::Barrier,
        Collective::AllReduce | Collective::Copy => bytes::Collective::AllReduce,
    }
}

/// Over all ranks and per call. The formulas count an all-gather's elements per rank, nccl-tests over all of them.
fn predicted(
    collective: bytes::Collective,
    algorithm: &str,
    elements: u64,
    ranks: u64,
) -> Option<f64> {
    let elements = match collective {
        bytes::Collective::AllGather => elements / ranks,
        _ => elements,
    };
    let call = Call {
        collective,
        algorithm: Algorithm::from_name(algorithm)?,
        elements,
        element_bytes: size_of::<f32>() as u64,
        ranks,
    };
    Some(call.total()?.sent as f64)
}
