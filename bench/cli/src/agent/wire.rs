//! Frames on a control connection.
//!
//! Contract: each side first sends [`PREAMBLE`]; then frames of a length (u32, little-endian, of what follows it), a kind
//! (one byte) and a payload. `J` is one message as JSON, `D` a piece of the file that was announced last. A reader never
//! blocks and never takes more than [`MAX_FRAME`] bytes for a frame, so a stranger cannot make it ask for memory.
use std::io::{self, Write};
use std::net::TcpStream;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// First bytes of each direction; the digit is the version of the framing.
pub const PREAMBLE: [u8; 8] = *b"SMAGENT1";
/// Longest frame. A model of a thousand layers is a tenth of it.
pub const MAX_FRAME: usize = 16 << 20;
/// Bytes of a file in one frame.
pub const PIECE: usize = 1 << 20;
/// Bytes taken from a connection at once, so that one that never stops sending cannot hold up the others.
const TURN: usize = 8 << 20;

const JSON: u8 = b'J';
const DATA: u8 = b'D';

/// What came in one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<M> {
    /// A message.
    Message(M),
    /// A piece of a file.
    Data(Vec<u8>),
}

/// Why a connection cannot be read any further.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side does not speak this protocol.
    #[error("it does not speak syncmark's agent protocol")]
    Foreign,
    /// A frame of impossible length or kind, or a message that nobody knows.
    #[error("it sent something that is no message: {0}")]
    Garbled(String),
    /// The system said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Puts frames together from what a connection has delivered so far.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    read: usize,
    greeted: bool,
    closed: bool,
}

impl Inbox {
    /// Takes what there is. Never blocks.
    ///
    /// # Errors
    /// What recv(2) says.
    pub fn fill(&mut self, stream: &TcpStream) -> io::Result<()> {
        let mut piece = [0_u8; 64 << 10];
        let mut taken = 0;
        while !self.closed && taken < TURN {
            match rustix::net::recv(stream, &mut piece[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.closed = true,
                Ok((read, _)) => {
                    self.bytes.extend_from_slice(&piece[..read]);
                    taken += read;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether the other side has closed the connection; frames may still be waiting here.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// [`WireError`]; nothing further can be read then.
    pub fn next_frame<M: DeserializeOwned>(&mut self) -> Result<Option<Frame<M>>, WireError> {
        if !self.greeted {
            let seen = self.bytes.len().min(PREAMBLE.len());
            if self.bytes[..seen] != PREAMBLE[..seen] {
                return Err(WireError::Foreign);
            }
            if seen < PREAMBLE.len() {
                return Ok(None);
            }
            (self.greeted, self.read) = (true, PREAMBLE.len());
        }
        let waiting = &self.bytes[self.read..];
        let Some((head, rest)) = waiting.split_first_chunk::<4>() else {
            return Ok(self.nothing());
        };
        let length = u32::from_le_bytes(*head) as usize;
        if !(1..=MAX_FRAME).contains(&length) {
            return Err(WireError::Garbled(format!("a frame of {length} bytes")));
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(self.nothing());
        };
        let frame = decode(frame[0], &frame[1..])?;
        self.read += head.len() + length;
        Ok(Some(frame))
    }

    /// Forgets what was read, now that a part of a frame is all that is left.
    fn nothing<M>(&mut self) -> Option<Frame<M>> {
        self.bytes.drain(..self.read);
        self.read = 0;
        None
    }
}

fn decode<M: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<Frame<M>, WireError> {
    match kind {
        JSON => serde_json::from_slice(payload)
            .map(Frame::Message)
            .map_err(|error| WireError::Garbled(error.to_string())),
        DATA => Ok(Frame::Data(payload.to_vec())),
        other => Err(WireError::Garbled(format!("a frame of kind {other}"))),
    }
}

/// Sends a message. Blocks while the other side does not read, as long as the connection's own limit lets it.
///
/// # Errors
/// What send(2) says.
pub fn send(mut stream: &TcpStream, message: &impl Serialize) -> io::Result<()> {
    let payload = serde_json::to_vec(message).map_err(io::Error::other)?;
    stream.write_all(&frame(JSON, &payload)?)
}

/// Sends a piece of a file.
///
/// # Errors
/// What send(2) says.
pub fn send_data(mut stream: &TcpStream, piece: &[u8]) -> io::Result<()> {
    stream.write_all(&frame(DATA, piece)?)
}

fn frame(kind: u8, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = payload.len() + 1;
    if length > MAX_FRAME {
        return Err(io::Error::other(format!(
            "a frame of {length} bytes, but {MAX_FRAME} are the most"
        )));
    }
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(bytes: &[u8]) -> Inbox {
        Inbox {
            bytes: bytes.to_vec(),
            ..Inbox::default()
        }
    }

    #[test]
    fn frames_are_put_together_from_single_bytes() {
        let mut bytes = PREAMBLE.to_vec();
        bytes.extend(frame(JSON, b"\"one\"").unwrap());
        bytes.extend(frame(DATA, &[1, 2]).unwrap());
        bytes.extend(frame(JSON, b"\"two\"").unwrap());
        let (mut inbox, mut seen) = (inbox(&[]), Vec::new());
        for byte in bytes {
            inbox.bytes.push(byte);
            while let Some(frame) = inbox.next_frame::<String>().unwrap() {
                seen.push(frame);
            }
        }
        let wanted = [
            Frame::Message("one".into()),
            Frame::Data(vec![1, 2]),
            Frame::Message("two".into()),
        ];
        assert_eq!(seen, wanted);
        assert!(inbox.bytes.is_empty(), "what was read is forgotten");
    }

    #[test]
    fn a_stranger_is_known_by_its_first_byte() {
        assert!(matches!(
            inbox(b"GET /").next_frame::<String>(),
            Err(WireError::Foreign)
        ));
        assert!(matches!(inbox(b"SMAG").next_frame::<String>(), Ok(None)));
    }

    #[test]
    fn impossible_frames_are_refused_before_they_are_read() {
        for frame in [
            &[0, 0, 0, 0][..],
            &[255, 255, 255, 255],
            &[1, 0, 0, 0, b'X'],
            &[2, 0, 0, 0, b'J', b'{'],
        ] {
            let bytes = [&PREAMBLE[..], frame].concat();
            assert!(
                matches!(
                    inbox(&bytes).next_frame::<String>(),
                    Err(WireError::Garbled(_))
                ),
                "{frame:?}"
            );
        }
    }
}
