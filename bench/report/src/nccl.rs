//! What NCCL took for collectives, and what that makes of their bus bandwidth.
//!
//! Contract: what stands in the records and nothing else. Where switches add, bus bandwidth is in the terms of ranks that send to each other, and
//! may stand above what a link carries: it never stands alone then.
//! Reference: nccl-tests, doc/PERFORMANCE.md; NCCL user guide, "NCCL_ALGO" and "NCCL_PROTO".
use syncmark_record::rows::CollectiveRow;

use crate::run_data::RunData;

/// As `collectives.csv` names the transport.
const TRANSPORT: &str = "nccl";

/// Whether any collective went over NCCL.
pub fn is_in(data: &RunData) -> bool {
    data.collectives
        .iter()
        .any(|row| row.transport == TRANSPORT)
}

/// `NVLS, SIMPLE`: what NCCL took in all of these rows; several where repeats differ, a dash where it is not known.
pub fn took(rows: &[&CollectiveRow]) -> String {
    let mut words: Vec<String> = Vec::new();
    for row in rows {
        if let (Some(algorithm), Some(protocol)) = (&row.nccl_algorithm, &row.nccl_protocol) {
            let word = format!("{algorithm}, {protocol}");
            if !words.contains(&word) {
                words.push(word);
            }
        }
    }
    match words.is_empty() {
        true => "–".to_owned(),
        false => words.join(" or "),
    }
}

/// The algorithm of these rows, if it is one in which switches add: `NVLS` in NVLink's, `COLLNET` in the network's.
pub fn in_switch<'a>(rows: &[&'a CollectiveRow]) -> Option<&'a str> {
    let adds = |name: &&str| name.starts_with("NVLS") || name.starts_with("COLLNET");
    let names = rows.iter().filter_map(|row| row.nccl_algorithm.as_deref());
    names.into_iter().find(adds)
}

/// A bus bandwidth as it is shown of these rows.
pub fn labelled(shown: String, rows: &[&CollectiveRow]) -> String {
    match in_switch(rows) {
        Some(algorithm) => format!("{shown}, by {algorithm}"),
        None => shown,
    }
}

/// What a reader of bus bandwidths must know, if NCCL moved anything.
pub fn notes(data: &RunData) -> Vec<&'static str> {
    let rows: Vec<&CollectiveRow> = data.collectives.iter().collect();
    let mut notes = Vec::new();
    if in_switch(&rows).is_some() {
        notes.push(IN_SWITCH);
    }
    if is_in(data) && rows.iter().all(|row| row.nccl_algorithm.is_none()) {
        notes.push(UNKNOWN);
    } else if is_in(data) {
        notes.push(HOW_KNOWN);
    }
    notes
}

/// For a chart's caption, where one is needed.
pub fn caption(data: &RunData) -> &'static str {
    let rows: Vec<&CollectiveRow> = data.collectives.iter().collect();
    match in_switch(&rows) {
        Some(_) => {
            " Where NCCL took NVLS or COLLNET, switches add, and this is no speed of a wire: see the notes at the table."
        }
        None => "",
    }
}

const IN_SWITCH: &str = "By NVLS, NVLink's switches add up (by COLLNET those of the network): each GPU sends and gets a message about once, where on a ring of n it would \
send it 2(n−1)/n times. Bus bandwidth counts as if on a ring, so it can stand above what the links carry. It tells how long a call took, and is no speed of a wire.";
const HOW_KNOWN: &str = "What NCCL took stands in its log of the same calls, made once more before anything was timed, in processes of their own. A dash: it did \
not say; what goes from one rank to another has no algorithm. Bytes are predicted where it took a ring, and of what goes straight; NCCL's are not counted.";
const UNKNOWN: &str =
    "Which algorithm and protocol NCCL took is not known: its log of the same calls did not say.";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(algorithm: Option<&str>) -> CollectiveRow {
        CollectiveRow {
            trial: "t".into(),
            repeat: 0,
            transport: TRANSPORT.into(),
            launch: "processes".into(),
            ranks: 8,
            collective: "all_reduce".into(),
            algorithm: "nccl".into(),
            elements: 2,
            size_bytes: 8,
            iterations: 1,
            time_ns_p10: 1,
            time_ns_p50: 1,
            time_ns_p90: 1,
            algbw_bytes_per_s: None,
            busbw_bytes_per_s: None,
            checked: true,
            wrong_elements: 0,
            counted_sent_bytes: None,
            predicted_sent_bytes: None,
            measured_sent_bytes: None,
            nccl_algorithm: algorithm.map(str::to_owned),
            nccl_protocol: algorithm.map(|_| "SIMPLE".into()),
        }
    }

    #[test]
    fn bandwidth_of_switches_that_add_never_stands_alone() {
        let shown = |algorithm| labelled("480 GB/s".into(), &[&row(algorithm)]);
        assert_eq!(shown(Some("NVLS_TREE")), "480 GB/s, by NVLS_TREE");
        assert_eq!(shown(Some("COLLNET_CHAIN")), "480 GB/s, by COLLNET_CHAIN");
        assert_eq!(shown(Some("RING")), "480 GB/s");
        assert_eq!(shown(None), "480 GB/s");
    }

    #[test]
    fn what_it_took_is_told_once() {
        let (ring, tree, none) = (row(Some("RING")), row(Some("TREE")), row(None));
        assert_eq!(took(&[&ring, &ring]), "RING, SIMPLE");
        assert_eq!(took(&[&ring, &tree]), "RING, SIMPLE or TREE, SIMPLE");
        assert_eq!(took(&[&none]), "–");
    }
}
