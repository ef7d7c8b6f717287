//! What a rank's calls moved, kept per phase, collective and payload: the engine's own count of bytes and times.
//!
//! An entry is made (and allocates) when a kind of call occurs for the first time; a steady-state step only adds.
use super::exchange::Tally;
use crate::comm::{Collective, CollectiveCall, Count};
use crate::probe::Phase;

/// Calls of one kind whose times are kept.
pub(crate) const SAMPLES: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    phase: Phase,
    collective: Collective,
    elements: u64,
    element_bytes: u64,
    root: usize,
}

struct Entry {
    key: Key,
    calls: u64,
    sent_bytes: u64,
    received_bytes: u64,
    /// Rings: the sample of call `i` is at `i % SAMPLES`.
    wait_ns: Box<[u64]>,
    transfer_ns: Box<[u64]>,
}

/// Counts of one rank or device.
pub(crate) struct Ledger {
    algorithm: &'static str,
    entries: Vec<Entry>,
}

impl Ledger {
    pub(crate) fn new(algorithm: &'static str) -> Self {
        Self {
            algorithm,
            entries: Vec::with_capacity(64),
        }
    }

    /// Enters one call that took `total_ns` with its waiting.
    pub(super) fn enter(&mut self, call: &CollectiveCall, tally: Tally, total_ns: u64) {
        let key = Key {
            phase: call.phase,
            collective: call.collective,
            elements: tally.elements as u64,
            element_bytes: call.from.dtype().size() as u64,
            root: call.root,
        };
        let transfer = total_ns.saturating_sub(tally.wait_ns);
        self.add(
            key,
            tally.sent_bytes,
            tally.received_bytes,
            [tally.wait_ns, transfer],
        );
    }

    /// Enters one copy of `bytes` from device `source` to the ledger's own.
    pub(crate) fn enter_copy(
        &mut self,
        phase: Phase,
        source: usize,
        element_bytes: usize,
        bytes: usize,
        ns: u64,
    ) {
        let (elements, element_bytes) = ((bytes / element_bytes) as u64, element_bytes as u64);
        let key = Key {
            phase,
            collective: Collective::Copy,
            elements,
            element_bytes,
            root: source,
        };
        self.add(key, 0, bytes as u64, [0, ns]);
    }

    fn add(&mut self, key: Key, sent: u64, received: u64, [wait, transfer]: [u64; 2]) {
        let found = self.entries.iter().position(|entry| entry.key == key);
        let index = found.unwrap_or_else(|| {
            let ring = || vec![0; SAMPLES].into_boxed_slice();
            let entry = Entry {
                key,
                calls: 0,
                sent_bytes: 0,
                received_bytes: 0,
                wait_ns: ring(),
                transfer_ns: ring(),
            };
            self.entries.push(entry);
            self.entries.len() - 1
        });
        let entry = &mut self.entries[index];
        let at = entry.calls as usize % SAMPLES;
        entry.wait_ns[at] = wait;
        entry.transfer_ns[at] = transfer;
        entry.calls += 1;
        entry.sent_bytes += sent;
        entry.received_bytes += received;
    }

    /// Totals since the last reset.
    pub(crate) fn counts(&self) -> Vec<Count> {
        let used = self.entries.iter().filter(|entry| entry.calls > 0);
        let count = |entry: &Entry| {
            let kept = (entry.calls as usize).min(SAMPLES);
            Count {
                phase: entry.key.phase,
                collective: entry.key.collective,
                algorithm: self.algorithm,
                size_bytes: entry.key.elements * entry.key.element_bytes,
                elements: entry.key.elements,
                element_bytes: entry.key.element_bytes,
                root: entry.key.root,
                calls: entry.calls,
                sent_bytes: entry.sent_bytes,
                received_bytes: entry.received_bytes,
                wait_ns: entry.wait_ns[..kept].to_vec(),
                transfer_ns: entry.transfer_ns[..kept].to_vec(),
            }
        };
        used.map(count).collect()
    }

    /// Forgets the totals, keeps the entries, so that the next step does not allocate.
    pub(crate) fn reset(&mut self) {
        for entry in &mut self.entries {
            (entry.calls, entry.sent_bytes, entry.received_bytes) = (0, 0, 0);
        }
    }
}
