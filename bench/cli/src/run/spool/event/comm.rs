//! What was sent and received, as an event.
use super::{EVENT_BYTES, Fields};

/// Totals of one phase, collective, size and root on one device or rank, over the window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommEvent {
    /// Device or rank.
    pub device: u16,
    /// Index into the engine's phases.
    pub phase: u8,
    /// Index into the engine's collectives.
    pub collective: u8,
    /// 0 `shared-direct`, 1 `peer-copy`, 2 `ring`.
    pub algorithm: u8,
    /// Bytes of an element.
    pub element_bytes: u8,
    /// Root of the collective.
    pub root: u32,
    /// Payload of one call; of `peer-copy` the payload of a step.
    pub size_bytes: u64,
    /// Calls.
    pub calls: u32,
    /// Steps of the window.
    pub steps: u32,
    /// Sent in all calls; none where that is not counted.
    pub sent_bytes: Option<u64>,
    /// As `sent_bytes`, received.
    pub received_bytes: Option<u64>,
    /// p50 and p90 of waiting for the last rank.
    pub wait_ns: [u32; 2],
    /// p50 and p90 of moving bytes.
    pub transfer_ns: [u32; 2],
}

impl CommEvent {
    pub(super) fn encode(self, kind: u8, f: &mut Fields<&mut [u8; EVENT_BYTES]>) {
        f.put([
            kind,
            self.phase,
            self.collective,
            self.algorithm,
            self.element_bytes,
            u8::from(self.sent_bytes.is_some()) | u8::from(self.received_bytes.is_some()) << 1,
        ])
        .put(self.device.to_le_bytes())
        .put(self.root.to_le_bytes())
        .put(self.calls.to_le_bytes())
        .put(self.steps.to_le_bytes())
        .words(&[
            self.size_bytes,
            self.sent_bytes.unwrap_or(0),
            self.received_bytes.unwrap_or(0),
        ]);
        for value in self.wait_ns.into_iter().chain(self.transfer_ns) {
            f.put(value.to_le_bytes());
        }
    }

    pub(super) fn decode(f: &mut Fields<&[u8; EVENT_BYTES]>) -> Self {
        let (phase, collective, algorithm, element_bytes) = (f.u8(), f.u8(), f.u8(), f.u8());
        let counted = f.u8();
        f.at = 6;
        Self {
            phase,
            collective,
            algorithm,
            element_bytes,
            device: f.u16(),
            root: f.u32(),
            calls: f.u32(),
            steps: f.u32(),
            size_bytes: f.u64(),
            sent_bytes: Some(f.u64()).filter(|_| counted & 1 != 0),
            received_bytes: Some(f.u64()).filter(|_| counted & 2 != 0),
            wait_ns: [f.u32(), f.u32()],
            transfer_ns: [f.u32(), f.u32()],
        }
    }
}
