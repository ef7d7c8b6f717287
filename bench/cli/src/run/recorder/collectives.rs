//! Rows of `collectives.csv`: a time and a check become a row with its bandwidths and its predicted bytes.
//!
//! Contract: a time without its check is no row: nothing is shown that was not compared.
use syncmark_engine::comm::{Collective, nccl};
use syncmark_record::bytes::collective::bus_factor;
use syncmark_record::bytes::{self, Algorithm, Call};
use syncmark_record::rows::CollectiveRow;

use super::{ALGORITHMS, COLLECTIVES, RepeatFacts};
use crate::run::nccl_choices::Choice;
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
    let choice = facts
        .nccl
        .and_then(|known| known.of_call(collective, size_bytes, ranks));
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
        predicted_sent_bytes: predicted(
            formula,
            summed_over(algorithm, collective, choice),
            elements,
            ranks,
        ),
        measured_sent_bytes: measured_sent_bytes
            .filter(|_| collective != Collective::Barrier)
            .map(per_call),
        nccl_algorithm: choice.map(|choice| choice.algorithm.clone()),
        nccl_protocol: choice.map(|choice| choice.protocol.clone()),
    })
}

/// The algorithm whose chunks are summed over: of NCCL a ring where it says that it takes one, and what goes straight from rank to rank.
/// Its others have no formula here.
fn summed_over<'a>(algorithm: &'a str, collective: Collective, choice: Option<&Choice>) -> &'a str {
    let straight = matches!(
        collective,
        Collective::Send | Collective::Scatter | Collective::Gather
    );
    let ring = straight || choice.is_some_and(|choice| choice.algorithm == "RING");
    match algorithm == nccl::ALGORITHM && ring {
        true => Algorithm::Ring.name(),
        false => algorithm,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::mock;
    use crate::run::nccl_choices::Choices;
    use crate::scenario::file::Transport;
    use syncmark_record::Outcome;

    /// The row of a call of 4 KiB over NCCL between two ranks, where its log says `taken` of all-reduce.
    fn of_call(collective: Collective, taken: &str) -> CollectiveRow {
        let trial = mock::collectives(Transport::Nccl);
        let log =
            format!("NCCL INFO AllReduce: 4096 Bytes -> Algo {taken} channel{{Lo..Hi}}={{0..1}}");
        let choices = Choices::of_log(&log);
        let facts = RepeatFacts {
            trial: "id",
            config: &trial.config,
            repeat: 0,
            order: 0,
            started: String::new(),
            outcome: Outcome::Passed,
            reason: None,
            unsynchronized_first: None,
            cores: &[],
            clocks: &[],
            nccl: Some(&choices),
        };
        let place = |known: Option<usize>| known.expect("it is listed") as u8;
        let collective = place(COLLECTIVES.iter().position(|known| *known == collective));
        let algorithm = place(
            ALGORITHMS
                .iter()
                .position(|known| *known == nccl::ALGORITHM),
        );
        let time = Event::CollectiveTime {
            collective,
            algorithm,
            elements: 1024,
            size_bytes: 4096,
            iterations: 10,
            time_ns: [1, 2, 3],
        };
        let check = Event::CollectiveCheck {
            collective,
            elements: 1024,
            wrong: 0,
            calls: 10,
            sent_bytes: None,
            measured_sent_bytes: None,
        };
        collective_rows(&facts, &[vec![time, check]]).remove(0)
    }

    #[test]
    fn bytes_of_nccl_are_predicted_where_it_takes_a_ring() {
        let ring = of_call(Collective::AllReduce, "RING proto LL");
        let said = (
            ring.nccl_algorithm.as_deref(),
            ring.nccl_protocol.as_deref(),
        );
        assert_eq!(said, (Some("RING"), Some("LL")));
        // Each of two ranks sends half of it twice.
        assert_eq!(ring.predicted_sent_bytes, Some(2.0 * 4096.0));
        let switch = of_call(Collective::AllReduce, "NVLS proto SIMPLE");
        assert_eq!(switch.nccl_algorithm.as_deref(), Some("NVLS"));
        assert_eq!(switch.predicted_sent_bytes, None);
        let send = of_call(Collective::Send, "NVLS proto SIMPLE");
        assert_eq!(send.nccl_algorithm, None);
        assert_eq!(send.predicted_sent_bytes, Some(4096.0));
        let unknown = of_call(Collective::Reduce, "RING proto LL");
        assert_eq!(
            (unknown.nccl_algorithm, unknown.predicted_sent_bytes),
            (None, None)
        );
    }
}
