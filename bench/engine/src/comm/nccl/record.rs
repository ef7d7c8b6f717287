//! What a rank called and how long it took, per phase, collective and payload.
//!
//! Contract: NCCL copies on the GPU and on threads of its own, out of this program's sight, and what cannot be counted where it is
//! copied is not counted: sent and received bytes are none. Payloads, calls and times are known. A call's time is from the event before
//! it to the event after it on the communication stream, so it has the waiting for the last rank in it. A call within a graph has no time:
//! it counts, and there are fewer times than calls. An entry is made when a kind of
//! call occurs for the first time; a steady-state step only adds.
use std::collections::VecDeque;

use super::device::Interval;
use crate::comm::ledger::SAMPLES;
use crate::comm::{Collective, CollectiveCall, Count};
use crate::probe::Phase;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    phase: Phase,
    collective: Collective,
    elements: usize,
    element_bytes: usize,
    root: usize,
}

struct Entry {
    key: Key,
    calls: u64,
    /// The latest, at most [`SAMPLES`]; the device knows their times after a synchronize.
    latest: VecDeque<Interval>,
}

/// Calls of one rank.
#[derive(Default)]
pub(super) struct Record {
    entries: Vec<Entry>,
}

impl Record {
    pub(super) fn enter(&mut self, call: &CollectiveCall, interval: Option<Interval>) {
        let key = Key {
            phase: call.phase,
            collective: call.collective,
            elements: elements(call),
            element_bytes: call.from.dtype().size(),
            root: call.root,
        };
        let found = self.entries.iter().position(|entry| entry.key == key);
        let index = found.unwrap_or_else(|| {
            self.entries.push(Entry {
                key,
                calls: 0,
                latest: VecDeque::with_capacity(SAMPLES),
            });
            self.entries.len() - 1
        });
        let entry = &mut self.entries[index];
        entry.calls += 1;
        let Some(interval) = interval else {
            return;
        };
        if entry.latest.len() == SAMPLES {
            entry.latest.pop_front();
        }
        entry.latest.push_back(interval);
    }

    /// Totals since the last reset.
    pub(super) fn counts(&self) -> Vec<Count> {
        let used = self.entries.iter().filter(|entry| entry.calls > 0);
        let count = |entry: &Entry| {
            let (elements, element_bytes) =
                (entry.key.elements as u64, entry.key.element_bytes as u64);
            Count {
                phase: entry.key.phase,
                collective: entry.key.collective,
                algorithm: super::ALGORITHM,
                size_bytes: elements * element_bytes,
                elements,
                element_bytes,
                root: entry.key.root,
                calls: entry.calls,
                sent_bytes: None,
                received_bytes: None,
                measured_sent_bytes: None,
                wait_ns: Vec::new(),
                transfer_ns: entry
                    .latest
                    .iter()
                    .filter_map(Interval::elapsed_ns)
                    .collect(),
            }
        };
        used.map(count).collect()
    }

    /// Forgets the totals, keeps the entries.
    pub(super) fn reset(&mut self) {
        for entry in &mut self.entries {
            entry.calls = 0;
            entry.latest.clear();
        }
    }
}

/// Elements of a call's payload. Of a scatter only the root knows all of it; the others enter their own part.
pub(super) fn elements(call: &CollectiveCall) -> usize {
    match call.collective {
        Collective::Scatter | Collective::Gather => call.from.len().max(call.to.len()),
        _ => call.from.len(),
    }
}
