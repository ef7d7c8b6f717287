//! What a rank's calls moved, kept per phase, collective and payload: the engine's own count of bytes and times.
//!
//! An entry is made (and allocates) when a kind of call occurs for the first time; a steady-state step only adds.
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::comm::error::CommError;
use crate::comm::{Collective, CollectiveCall, Count};
use crate::probe::Phase;

/// Calls of one kind whose times are kept.
pub(crate) const SAMPLES: usize = 4096;

/// What one call did, for the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Elements of the call's payload.
    pub(super) elements: usize,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    /// Bytes that the kernel says left for it, where a kernel counts.
    pub(super) measured_sent_bytes: Option<u64>,
    /// Time spent waiting for ranks that had not come yet.
    pub(super) wait_ns: u64,
}

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
    measured_sent_bytes: Option<u64>,
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
        self.add(key, &tally, [tally.wait_ns, transfer]);
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
        let tally = Tally {
            received_bytes: bytes as u64,
            ..Tally::default()
        };
        self.add(key, &tally, [0, ns]);
    }

    fn add(&mut self, key: Key, tally: &Tally, [wait, transfer]: [u64; 2]) {
        let found = self.entries.iter().position(|entry| entry.key == key);
        let index = found.unwrap_or_else(|| {
            // Not zeros: their pages would come one by one, as steps write to them.
            let ring = || vec![u64::MAX; SAMPLES].into_boxed_slice();
            let entry = Entry {
                key,
                calls: 0,
                sent_bytes: 0,
                received_bytes: 0,
                measured_sent_bytes: None,
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
        entry.sent_bytes += tally.sent_bytes;
        entry.received_bytes += tally.received_bytes;
        if let Some(bytes) = tally.measured_sent_bytes {
            *entry.measured_sent_bytes.get_or_insert(0) += bytes;
        }
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
                sent_bytes: Some(entry.sent_bytes),
                received_bytes: Some(entry.received_bytes),
                measured_sent_bytes: entry.measured_sent_bytes,
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
            entry.measured_sent_bytes = None;
        }
    }
}

/// What a communicator keeps beside its connections: its counts, and why it failed.
pub(crate) struct Books {
    /// Only the stream's thread locks it within a step, so the lock is never contended there.
    ledger: Mutex<Ledger>,
    failure: OnceLock<String>,
}

impl Books {
    pub(crate) fn new(algorithm: &'static str) -> Self {
        Self {
            ledger: Mutex::new(Ledger::new(algorithm)),
            failure: OnceLock::new(),
        }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the first failure; returns the words of this one.
    pub(super) fn fail(&self, error: &CommError) -> String {
        let text = error.to_string();
        let _ = self.failure.set(text.clone());
        text
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }
}
