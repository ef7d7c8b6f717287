//! What goes over the connections beside payload: hellos, the table of addresses, control frames, and the header that
//! opens every message of a collective.
//!
//! Contract: little-endian, fixed sizes, version first. A message's header is [`HEADER_BYTES`] long; it is the whole
//! framing of the data connections, and the only bytes on them that are not payload.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Version of everything in this file; ranks refuse any other.
pub const VERSION: u32 = 2;
pub(super) const MAGIC: [u8; 8] = *b"syncmark";
/// Bytes of a [`Hello`].
pub(super) const HELLO_BYTES: usize = 64;
/// Bytes of an address in the table.
pub(super) const ADDRESS_BYTES: usize = 24;
/// Bytes of framing that each message of a collective carries on a data connection.
pub const HEADER_BYTES: usize = 24;
/// Longest text that a refusal or an abort carries.
pub(super) const TEXT_BYTES: usize = 1024;

/// Reads and writes fields one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.bytes.split_at(N);
        self.bytes = rest;
        field.try_into().expect("split to this length")
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

fn fill<const N: usize>(fields: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    for field in fields {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    }
    bytes
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To rank 0: joins the job, and stays as the control connection.
    Join,
    /// Between two ranks: carries payload.
    Data,
}

/// The first bytes on every connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: u32,
    pub(super) purpose: Purpose,
    pub(super) token: u64,
    pub(super) rank: u32,
    pub(super) world: u32,
    /// Where the sender takes data connections.
    pub(super) listens: SocketAddr,
}

impl Hello {
    pub(super) fn encode(&self) -> [u8; HELLO_BYTES] {
        fill(&[
            &MAGIC,
            &self.version.to_le_bytes(),
            &(self.purpose as u32).to_le_bytes(),
            &self.token.to_le_bytes(),
            &self.rank.to_le_bytes(),
            &self.world.to_le_bytes(),
            &encode_address(self.listens),
        ])
    }

    /// `None` for what is no hello of any version.
    pub(super) fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let mut fields = Fields {
            bytes: bytes.strip_prefix(&MAGIC)?,
        };
        let version = fields.u32();
        let purpose = match fields.u32() {
            0 => Purpose::Join,
            1 => Purpose::Data,
            _ => return None,
        };
        Some(Self {
            version,
            purpose,
            token: fields.u64(),
            rank: fields.u32(),
            world: fields.u32(),
            listens: decode_address(&fields.take()),
        })
    }
}

pub(super) fn encode_address(address: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let (ip, scope) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
    };
    fill(&[
        &ip.octets(),
        &address.port().to_le_bytes(),
        &[u8::from(address.is_ipv4()), 0],
        &scope.to_le_bytes(),
    ])
}

pub(super) fn decode_address(bytes: &[u8; ADDRESS_BYTES]) -> SocketAddr {
    let mut fields = Fields { bytes };
    let ip = Ipv6Addr::from(fields.take::<16>());
    let port = u16::from_le_bytes(fields.take());
    let [v4, _] = fields.take();
    match (v4, ip.to_ipv4_mapped()) {
        (1, Some(ip)) => SocketAddr::new(IpAddr::V4(ip), port),
        _ => SocketAddr::V6(std::net::SocketAddrV6::new(ip, port, 0, fields.u32())),
    }
}

/// Any address of the family of `like`: what a listener binds when nothing better is known.
pub(super) fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    }
}

/// What rank 0 answers to a hello: code and length of what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The table of addresses follows.
    Table,
    /// A sentence follows: the job is not joined.
    Refused,
}

pub(super) fn encode_answer(answer: Answer, len: usize) -> [u8; 8] {
    fill(&[&(answer as u32).to_le_bytes(), &(len as u32).to_le_bytes()])
}

pub(super) fn decode_answer(bytes: &[u8; 8]) -> Option<(Answer, usize)> {
    let mut fields = Fields { bytes };
    let answer = match fields.u32() {
        0 => Answer::Table,
        1 => Answer::Refused,
        _ => return None,
    };
    Some((answer, fields.u32() as usize))
}

/// Bytes of a control frame, not counting the text that some carry.
pub(super) const FRAME_BYTES: usize = 24;

/// What ranks tell rank 0, and rank 0 tells them, on control connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// This rank has come to host barrier `number`.
    Arrive { number: u64 },
    /// All ranks have; rank 0 brought `word`.
    Release { number: u64, word: u64 },
    /// `by` (none: a supervisor) stops the job; so many bytes of text follow.
    Abort { by: Option<usize>, len: usize },
    /// This rank leaves in good order.
    Leave,
    /// This rank's time limit has passed while it waited for `peer`; so many bytes of text say in which call.
    Stuck { peer: usize, len: usize },
}

impl Frame {
    pub(super) fn encode(self) -> [u8; FRAME_BYTES] {
        let (kind, a, b): (u64, u64, u64) = match self {
            Self::Arrive { number } => (0, number, 0),
            Self::Release { number, word } => (1, number, word),
            Self::Abort { by, len } => (2, by.map_or(0, |by| by as u64 + 1), len as u64),
            Self::Leave => (3, 0, 0),
            Self::Stuck { peer, len } => (4, peer as u64, len as u64),
        };
        fill(&[&kind.to_le_bytes(), &a.to_le_bytes(), &b.to_le_bytes()])
    }

    pub(super) fn decode(bytes: &[u8; FRAME_BYTES]) -> Option<Self> {
        let mut fields = Fields { bytes };
        let (kind, a, b) = (fields.u64(), fields.u64(), fields.u64());
        Some(match kind {
            0 => Self::Arrive { number: a },
            1 => Self::Release { number: a, word: b },
            2 => Self::Abort {
                by: (a as usize).checked_sub(1),
                len: (b as usize).min(TEXT_BYTES),
            },
            3 => Self::Leave,
            4 => Self::Stuck {
                peer: a as usize,
                len: (b as usize).min(TEXT_BYTES),
            },
            _ => return None,
        })
    }
}

/// What opens a message of a collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// What the sender calls: [`crate::comm::signature::Signature`].
    pub(super) signature: u64,
    /// Elements of scatter's or gather's whole payload from the root, of its own part from others.
    pub(super) elements: u64,
    /// Messages that the sender has sent on this connection before.
    pub(super) number: u64,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        fill(&[
            &self.signature.to_le_bytes(),
            &self.elements.to_le_bytes(),
            &self.number.to_le_bytes(),
        ])
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields { bytes };
        Self {
            signature: fields.u64(),
            elements: fields.u64(),
            number: fields.u64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for listens in ["127.0.0.1:5", "[::1]:65535", "10.1.2.3:80"] {
            let hello = Hello {
                version: 7,
                purpose: Purpose::Data,
                token: u64::MAX - 3,
                rank: 2,
                world: 9,
                listens: listens.parse().unwrap(),
            };
            assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        }
        for frame in [
            Frame::Arrive { number: 3 },
            Frame::Release {
                number: 4,
                word: u64::MAX,
            },
            Frame::Abort { by: None, len: 5 },
            Frame::Abort {
                by: Some(0),
                len: 0,
            },
            Frame::Leave,
            Frame::Stuck { peer: 2, len: 9 },
        ] {
            assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        }
        let header = Header {
            signature: 1,
            elements: 2,
            number: 3,
        };
        assert_eq!(Header::decode(&header.encode()), header);
        for answer in [Answer::Table, Answer::Refused] {
            assert_eq!(decode_answer(&encode_answer(answer, 8)), Some((answer, 8)));
        }
    }

    #[test]
    fn what_is_not_ours_is_nothing() {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..16].copy_from_slice(b"GET / HTTP/1.1\r\n");
        assert_eq!(Hello::decode(&bytes), None);
        assert_eq!(Frame::decode(&[9; FRAME_BYTES]), None);
    }
}
