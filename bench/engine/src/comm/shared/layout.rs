//! What lies where in a region: a page that says what it is, a line per rank, a line per mailbox, then the slots.
//!
//! All that ranks share besides slots is atomic and valid for any bits; zero is the beginning of everything.
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Size of each of the two slots of a point-to-point mailbox.
pub(super) const MAILBOX_BYTES: usize = 64 << 10;

pub(super) const MAGIC: u64 = 0x7379_6e63_6d61_726b;
pub(super) const VERSION: u32 = 1;
pub(super) const PAGE: usize = 4096;
pub(super) const REASON_BYTES: usize = 1024;

/// First page: what the region is, and whether it was aborted.
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) slot_bytes: AtomicU64,
    pub(super) version: AtomicU32,
    pub(super) world: AtomicU32,
    /// 0: running; 1: a reason is being written; 2: aborted.
    pub(super) abort_state: AtomicU32,
    /// Rank + 1 of who aborted; 0 for a supervisor.
    pub(super) abort_rank: AtomicU32,
    pub(super) reason_len: AtomicU32,
    pub(super) reason: [AtomicU8; REASON_BYTES],
}

/// A futex word with the number of those who may be parked on it.
#[repr(C, align(64))]
pub(super) struct Word {
    pub(super) value: AtomicU32,
    pub(super) parked: AtomicU32,
}

/// What one rank tells the others; nobody else writes it but for [`RankLine::read_from`] and the parked counts.
#[repr(C, align(128))]
pub(super) struct RankLine {
    /// Rounds of collectives that this rank has arrived at.
    pub(super) arrivals: Word,
    /// Host barriers that it has arrived at.
    pub(super) barriers: Word,
    /// What it is doing in the two latest rounds; see [`super::rendezvous::Signature`].
    pub(super) signature: [AtomicU64; 2],
    /// Total elements of a scatter or gather, which only the root knows.
    pub(super) total: [AtomicU64; 2],
    /// What it brings to the two latest host barriers.
    pub(super) word: [AtomicU64; 2],
    /// When it last arrived anywhere.
    pub(super) heartbeat_ns: AtomicU64,
    /// Bytes that other ranks read from this rank's slots: added by the readers.
    pub(super) read_from: AtomicU64,
    /// Not 0 once the rank's communicator is gone.
    pub(super) departed: AtomicU32,
}

/// State of the mailbox of one (sender, receiver) pair.
#[repr(C, align(128))]
pub(super) struct MailLine {
    /// Pieces written; only the sender adds.
    pub(super) written: Word,
    /// Pieces read; only the receiver adds.
    pub(super) read: Word,
    /// Bytes of the whole message that the piece in each slot belongs to.
    pub(super) message_bytes: [AtomicU64; 2],
}

/// Offsets of a region's parts in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) lines: usize,
    pub(super) mail_lines: usize,
    pub(super) slots: usize,
    pub(super) mail_slots: usize,
    pub(super) end: usize,
}

impl Layout {
    pub(super) fn new(world: usize, slot_bytes: usize) -> Self {
        let page = |bytes: usize| bytes.next_multiple_of(PAGE);
        let lines = page(size_of::<Header>());
        let mail_lines = page(lines + world * size_of::<RankLine>());
        let slots = page(mail_lines + world * world * size_of::<MailLine>());
        let mail_slots = slots + world * 2 * slot_bytes;
        let end = mail_slots + world * world * 2 * MAILBOX_BYTES;
        Self {
            lines,
            mail_lines,
            slots,
            mail_slots,
            end,
        }
    }
}
