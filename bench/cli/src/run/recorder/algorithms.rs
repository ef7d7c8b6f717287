//! Rows of `algorithms.csv`: pieces of text put together again.
//!
//! Contract: pure. A choice that was cut short, by a kill or a full spool, is no row: a part of a name could pass for another name.
use std::collections::BTreeMap;

use syncmark_record::rows::AlgorithmRow;

use super::RepeatFacts;
use crate::run::spool::Event;

pub(super) fn algorithm_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<AlgorithmRow> {
    let mut texts: BTreeMap<(u16, u16), Vec<u8>> = BTreeMap::new();
    for event in ranks.iter().flatten() {
        if let Event::Choice(piece) = event {
            let text = texts.entry((piece.device, piece.choice)).or_default();
            text.extend(piece.bytes.iter().take_while(|byte| **byte != 0));
        }
    }
    texts
        .into_iter()
        .filter_map(|((device, _), text)| row(facts, device, &text))
        .collect()
}

fn row(facts: &RepeatFacts<'_>, device: u16, text: &[u8]) -> Option<AlgorithmRow> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('\n')?;
    let fields: Vec<&str> = text.split('\t').collect();
    let [
        library,
        operation,
        shape,
        algorithm,
        workspace,
        deterministic,
        math,
    ] = fields[..]
    else {
        return None;
    };
    Some(AlgorithmRow {
        trial: facts.trial.to_owned(),
        repeat: facts.repeat,
        device: u32::from(device),
        library: library.to_owned(),
        operation: operation.to_owned(),
        shape: shape.to_owned(),
        algorithm: algorithm.to_owned(),
        workspace_bytes: workspace.parse().ok()?,
        deterministic: deterministic == "deterministic",
        math: math.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::mock::{config, ddp};
    use crate::run::rank::choices::text;
    use crate::run::recorder::record;
    use crate::run::spool::pieces;
    use crate::scenario::file::Launch;
    use syncmark_engine::backend::cuda::choice::Choice;
    use syncmark_record::Outcome;

    fn choice(shape: &str) -> Choice {
        Choice {
            library: "cuDNN",
            operation: "convolution forward",
            shape: shape.to_owned(),
            algorithm: "FWD_ALGO_IMPLICIT_PRECOMP_GEMM".to_owned(),
            workspace_bytes: 4096,
            deterministic: true,
            math: "TENSOR_OP_MATH".to_owned(),
        }
    }

    fn told(device: u16, choices: &[Choice]) -> Vec<Event> {
        let all = (0..).zip(choices);
        all.flat_map(|(number, choice)| {
            pieces(device, number, &text(choice))
                .map(Event::Choice)
                .collect::<Vec<_>>()
        })
        .collect()
    }

    fn rows(ranks: &[Vec<Event>]) -> Vec<AlgorithmRow> {
        let config = config(ddp(Launch::Processes), 2);
        let facts = RepeatFacts {
            trial: "id",
            config: &config,
            repeat: 4,
            order: 2,
            started: String::new(),
            outcome: Outcome::Passed,
            reason: None,
            unsynchronized_first: None,
            cores: &[],
            clocks: &[],
            nccl: None,
        };
        record(&facts, ranks).algorithms
    }

    /// Long enough for several pieces, with letters of several bytes that a cut can fall into.
    const LONG: &str = "x 128×56×56×64, w 64×3×3×64, stride 1, padding 1, bf16";

    #[test]
    fn choices_of_all_devices_come_back_as_they_were() {
        let short = Choice {
            deterministic: false,
            math: String::new(),
            ..choice("a")
        };
        let ranks = [
            told(0, &[choice(LONG), short.clone()]),
            told(1, &[choice(LONG)]),
        ];
        assert!(ranks[1].len() > 2, "{}", ranks[1].len());
        let rows = rows(&ranks);
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.device, &row.shape[..], row.deterministic, &row.math[..]))
            .collect();
        let long = |device| (device, LONG, true, "TENSOR_OP_MATH");
        assert_eq!(seen, [long(0), (0, "a", false, ""), long(1)]);
        assert_eq!(
            (
                rows[0].repeat,
                rows[0].workspace_bytes,
                &rows[0].library[..]
            ),
            (4, 4096, "cuDNN")
        );
    }

    #[test]
    fn a_choice_that_was_cut_short_is_no_row() {
        let mut events = told(0, &[choice("a"), choice(LONG)]);
        assert_eq!(rows(&[events.clone()]).len(), 2);
        events.pop();
        assert_eq!(rows(&[events]).len(), 1);
        // Even where only the line end is gone.
        let whole = text(&choice("a"));
        let cut = pieces(0, 0, whole.trim_end()).map(Event::Choice).collect();
        assert!(rows(&[cut]).is_empty());
        assert!(rows(&[Vec::new()]).is_empty());
    }
}
