//! What a machine could do at best, as a run recorded it beside its measurements.
//!
//! Contract: a figure is held against the ceiling of its own trial and repeat, by the median of the ceiling's windows, because a figure
//! is a median too. A folder without `ceilings.csv` has no ceilings, and nothing is held against anything.
//! Reference: METHODOLOGY.md, "Ceilings".
use std::collections::BTreeMap;

use syncmark_record::rows::{CeilingRow, CollectiveRow};

use crate::{run_data::RunData, stats::median};

/// Peak of arithmetic.
pub const MULTIPLY_ADD: &str = "multiply-add";
/// Bandwidth of memory, read and written.
pub const MEMORY_READ_WRITE: &str = "memory-read-write";

/// Names of the ceilings, and what each means to a reader.
const MEANINGS: [(&str, &str); 8] = [
    (
        MULTIPLY_ADD,
        "f32 fused multiply-adds in registers, 2 operations each: what convolutions and linear layers are held against",
    ),
    (
        "memory-read",
        "reading a working set of 4 times the last-level cache: what reading alone could reach",
    ),
    (
        MEMORY_READ_WRITE,
        "one stream in and one out, bytes of both (lines fetched to be written are not counted): what norms, relu, additions and pools \
         are held against",
    ),
    (
        "tcp-one-way",
        "64 MiB over a loopback socket: what a broadcast, reduce, gather, scatter or send over TCP is held against",
    ),
    (
        "tcp-both-ways",
        "64 MiB each way at once, bytes of one direction: what an all-reduce, all-gather or reduce-scatter over TCP is held against",
    ),
    (
        "tcp-round-trip",
        "4 KiB over a loopback socket and 4 KiB back: twice what a step of a collective over TCP must take",
    ),
    (
        "shared-copy",
        "copying 64 MiB that another core wrote: what collectives over shared memory are held against",
    ),
    (
        "shared-round-trip",
        "a cache line to another core and back, both spinning: twice what telling the other takes at least",
    ),
];

/// What a ceiling means; empty for one that this version does not know.
pub fn meaning(ceiling: &str) -> &'static str {
    let known = MEANINGS.iter().find(|(name, _)| *name == ceiling);
    known.map_or("", |(_, meaning)| meaning)
}

/// Medians of a ceiling of a trial, by repeat.
pub fn by_repeat(data: &RunData, trial: &str, ceiling: &str) -> BTreeMap<u32, f64> {
    let own = data
        .ceilings
        .iter()
        .filter(|row| row.trial == trial && row.ceiling == ceiling && row.median > 0.0);
    own.map(|row| (row.repeat, row.median)).collect()
}

/// The ceiling that a collective's bus bandwidth is held against: of a symmetric one, what two ranks exchange at once; of one
/// with a root, what goes one way.
pub fn floor_of(transport: &str, collective: &str) -> Option<&'static str> {
    let symmetric = matches!(collective, "all_reduce" | "all_gather" | "reduce_scatter");
    match (transport, symmetric) {
        ("shared", _) => Some("shared-copy"),
        ("tcp", true) => Some("tcp-both-ways"),
        ("tcp", false) => Some("tcp-one-way"),
        _ => None,
    }
}

/// Bus bandwidth of a collective over the floor of its repeat, for the rows that have both.
pub fn floor_shares(data: &RunData, trial: &str, rows: &[&CollectiveRow]) -> Vec<f64> {
    let share = |row: &&CollectiveRow| {
        let floor = by_repeat(data, trial, floor_of(&row.transport, &row.collective)?);
        Some(row.busbw_bytes_per_s? / floor.get(&row.repeat)?)
    };
    rows.iter().filter_map(share).collect()
}

/// A ceiling over all repeats of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Pooled<'a> {
    /// The first of its rows: what it is.
    pub row: &'a CeilingRow,
    /// How many there are.
    pub repeats: usize,
    /// Median over repeats of their medians, with the smallest and the largest.
    pub median: [f64; 3],
    /// Medians over repeats of the quartiles of their windows.
    pub quartiles: [f64; 2],
    /// The best window of all.
    pub best: f64,
}

/// The ceilings of a run, each over all trials and repeats that recorded it, in the order of [`meaning`]'s list.
pub fn pooled(data: &RunData) -> Vec<Pooled<'_>> {
    let order = |name: &str| MEANINGS.iter().position(|(known, _)| *known == name);
    let mut rows: BTreeMap<_, Vec<&CeilingRow>> = BTreeMap::new();
    for row in &data.ceilings {
        let key = (order(&row.ceiling), &row.ceiling, row.threads);
        rows.entry(key).or_default().push(row);
    }
    rows.into_values()
        .filter_map(|rows| {
            let of = |column: fn(&CeilingRow) -> f64| -> Vec<f64> {
                rows.iter().map(|row| column(row)).collect()
            };
            let medians = of(|row| row.median);
            let ends = |values: &[f64]| {
                let low = values.iter().copied().fold(f64::INFINITY, f64::min);
                (low, values.iter().copied().fold(0.0, f64::max))
            };
            let (low, high) = ends(&medians);
            let (least, most) = ends(&of(|row| row.best));
            Some(Pooled {
                row: rows[0],
                repeats: rows.len(),
                median: [median(&medians)?, low, high],
                quartiles: [median(&of(|row| row.p25))?, median(&of(|row| row.p75))?],
                best: if rows[0].unit == "ns" { least } else { most },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symmetric_collectives_are_held_against_both_directions() {
        assert_eq!(floor_of("tcp", "all_reduce"), Some("tcp-both-ways"));
        assert_eq!(floor_of("tcp", "broadcast"), Some("tcp-one-way"));
        assert_eq!(floor_of("shared", "gather"), Some("shared-copy"));
        assert_eq!(floor_of("copies", "gather"), None);
        for transport in ["shared", "tcp"] {
            for collective in ["all_reduce", "send_recv"] {
                let floor = floor_of(transport, collective).unwrap();
                assert!(!meaning(floor).is_empty(), "{floor}");
            }
        }
        assert_eq!(meaning("unheard-of"), "");
    }
}
