//! What lies where in a region: a page that says what it is, a line per rank, a line per mailbox, then the slots.
//!
//! All that ranks share besides slots is atomic and valid for any bits; zero is the beginning of everything.
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Size of each of the two slots of a point-to-point mailbox.
pub(super) const MAILBOX_BYTES: usize = 64 << 10;

pub(super) const MAGIC: u64 = 0x7379_6e63_6d61_726b;
pub(super) const VERSION: u32 = 2;
/// Rounds that ranks can be apart in what they have written and read, and slots of each rank; see [`super::rendezvous`].
pub(super) const ROUNDS: usize = 4;
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
#[repr(C)]
pub(super) struct Word {
    pub(super) value: AtomicU32,
    pub(super) parked: AtomicU32,
}

/// What one rank tells the others; nobody else writes it but for [`RankLine::read_from`] and the parked counts. What is
/// read together lies in one cache line, and what others write in one of its own.
#[repr(C, align(128))]
pub(super) struct RankLine {
    /// Rounds of collectives that this rank has arrived at.
    pub(super) arrivals: Word,
    /// When it last arrived anywhere.
    pub(super) heartbeat_ns: AtomicU64,
    /// What it is doing in its latest rounds; see [`crate::comm::signature::Signature`].
    pub(super) signature: [AtomicU64; ROUNDS],
    /// Not 0 once the rank's communicator is gone.
    pub(super) departed: AtomicU32,
    pub(super) read_from: ReadFrom,
    /// Host barriers that it has arrived at.
    pub(super) barriers: Word,
    /// What it brings to the two latest host barriers.
    pub(super) word: [AtomicU64; 2],
    /// Total elements of a scatter or gather, which only the root knows, in its latest rounds.
    pub(super) total: [AtomicU64; ROUNDS],
}

/// Bytes that other ranks read from a rank's slots: added by the readers.
#[repr(C, align(64))]
pub(super) struct ReadFrom(pub(super) AtomicU64);

/// State of the mailbox of one (sender, receiver) pair.
#[repr(C, align(128))]
pub(super) struct MailLine {
    /// Pieces written; only the sender adds.
    pub(super) written: Word,
    /// Bytes of the whole message that the piece in each slot belongs to.
    pub(super) message_bytes: [AtomicU64; 2],
    pub(super) read: Read,
}

/// Pieces read; only the receiver adds.
#[repr(C, align(64))]
pub(super) struct Read(pub(super) Word);

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
        let mail_slots = slots + world * ROUNDS * slot_bytes;
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
