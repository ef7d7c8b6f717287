//! What a rank's communicator, or a device's links, counted.
use super::Collective;
use crate::probe::Phase;

/// Totals of the calls of one phase, collective and payload size since the last reset.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// For whom.
    pub phase: Phase,
    /// Which.
    pub collective: Collective,
    /// Algorithm, such as `shared-direct`.
    pub algorithm: &'static str,
    /// Payload of one call in bytes.
    pub size_bytes: u64,
    /// Elements of one call, and bytes of an element.
    pub elements: u64,
    /// Bytes of an element.
    pub element_bytes: u64,
    /// Root of the call where it has one.
    pub root: usize,
    /// Number of calls.
    pub calls: u64,
    /// Bytes sent in all calls, counted where they were copied; none where a library copies out of this program's sight.
    pub sent_bytes: Option<u64>,
    /// As `sent_bytes`, for what was received.
    pub received_bytes: Option<u64>,
    /// Bytes sent in all calls by the kernel's own counters, with the transport's framing; none where there is no
    /// counter that is not ours.
    pub measured_sent_bytes: Option<u64>,
    /// Waiting for the last rank, per call, in nanoseconds: the latest calls, at most 4096. Empty where a call's time cannot be taken
    /// apart.
    pub wait_ns: Vec<u64>,
    /// Moving and combining after that, per call, as `wait_ns`; the whole call where that is empty.
    pub transfer_ns: Vec<u64>,
}
