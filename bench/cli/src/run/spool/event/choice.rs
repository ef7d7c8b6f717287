//! Text in events: what a library took for an operation, cut into pieces.
//!
//! The text is library, operation, shape, algorithm, bytes of workspace, `deterministic` or nothing, and math, in this order with a tab
//! between each two and a line end behind the last. The pieces of a device's choice follow each other; zeros fill the last one.
use super::{EVENT_BYTES, Fields};

/// Bytes of text in an event.
const PIECE: usize = EVENT_BYTES - 8;

/// A piece of the text of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChoicePiece {
    /// Device or rank.
    pub device: u16,
    /// Number of the choice on this device.
    pub choice: u16,
    /// Of the text.
    pub bytes: [u8; PIECE],
}

/// Cuts a choice's text.
pub fn pieces(device: u16, choice: u16, text: &str) -> impl Iterator<Item = ChoicePiece> + '_ {
    text.as_bytes().chunks(PIECE).map(move |part| {
        let mut bytes = [0; PIECE];
        bytes[..part.len()].copy_from_slice(part);
        ChoicePiece {
            device,
            choice,
            bytes,
        }
    })
}

impl ChoicePiece {
    pub(super) fn encode(self, kind: u8, f: &mut Fields<&mut [u8; EVENT_BYTES]>) {
        f.put([kind, 0])
            .put(self.device.to_le_bytes())
            .put(self.choice.to_le_bytes())
            .put([0; 2])
            .put(self.bytes);
    }

    pub(super) fn decode(f: &mut Fields<&[u8; EVENT_BYTES]>) -> Self {
        f.at = 2;
        let (device, choice) = (f.u16(), f.u16());
        f.at = 8;
        Self {
            device,
            choice,
            bytes: f.take(),
        }
    }
}
