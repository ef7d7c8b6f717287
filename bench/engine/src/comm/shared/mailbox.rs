//! Send and receive: a mailbox of two slots for each ordered pair of ranks.
//!
//! Only the two ranks concerned take part, so this stands beside the rounds of [`super::rendezvous`]: the sender waits
//! while both slots are full, the receiver while both are empty. Each piece carries the size of its whole message, so
//! that a receive of another size than the send is an error on the receiver instead of a torn message.
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layout::{MAILBOX_BYTES, Word};
use super::rendezvous::{Meeting, Wait, advance};
use crate::comm::error::CommError;
use crate::comm::number::Number;
use crate::probe::now_ns;

/// Sends `data` to `peer`; returns the nanoseconds waited for room. The bytes are in the mailbox when it returns.
pub(super) fn send<T: Number>(
    meeting: &Meeting<'_>,
    peer: usize,
    data: &[T],
) -> Result<u64, CommError> {
    let (region, rank) = (meeting.region, meeting.rank);
    meeting.refuse_aborted()?;
    let line = region.mail(rank, peer);
    let mut waited = 0;
    for piece in data.chunks(MAILBOX_BYTES / size_of::<T>()) {
        let written = line.written.value.load(Ordering::Relaxed);
        waited += wait(meeting, peer, &line.read.0, written.wrapping_sub(1), || {
            format!("send to rank {peer}")
        })?;
        let slot = (written & 1) as usize;
        line.message_bytes[slot].store(size_of_val(data) as u64, Ordering::Relaxed);
        // SAFETY: the receiver has read all but at most one piece, and that one lies in the other slot; only this
        // rank writes to this mailbox. A piece fits a slot, and slots are page-aligned.
        unsafe {
            let to = region.mail_slot(rank, peer, slot).cast::<T>();
            std::ptr::copy_nonoverlapping(piece.as_ptr(), to, piece.len());
        }
        advance(region, &line.written);
    }
    Ok(waited)
}

/// Receives `data` from `peer`; returns the nanoseconds waited for it.
pub(super) fn receive<T: Number>(
    meeting: &Meeting<'_>,
    peer: usize,
    data: &mut [T],
) -> Result<u64, CommError> {
    let (region, rank) = (meeting.region, meeting.rank);
    meeting.refuse_aborted()?;
    let line = region.mail(peer, rank);
    let (mut waited, bytes) = (0, size_of_val(data) as u64);
    for piece in data.chunks_mut(MAILBOX_BYTES / size_of::<T>()) {
        let read = line.read.0.value.load(Ordering::Relaxed);
        waited += wait(meeting, peer, &line.written, read.wrapping_add(1), || {
            format!("receive from rank {peer}")
        })?;
        let slot = (read & 1) as usize;
        let message = line.message_bytes[slot].load(Ordering::Relaxed);
        if message != bytes {
            let (ours, theirs) = (
                format!("receive of {bytes} bytes"),
                format!("send of {message} bytes"),
            );
            let error = CommError::Mismatch {
                rank,
                peer,
                ours,
                theirs,
            };
            region.abort(Some(rank), &error.to_string());
            return Err(error);
        }
        // SAFETY: the sender has written this piece, and does not write its slot again before `read` advances.
        unsafe {
            let from = region.mail_slot(peer, rank, slot).cast::<T>();
            std::ptr::copy_nonoverlapping(from.cast_const(), piece.as_mut_ptr(), piece.len());
        }
        region
            .line(peer)
            .read_from
            .0
            .fetch_add(size_of_val(piece) as u64, Ordering::Relaxed);
        advance(region, &line.read.0);
    }
    Ok(waited)
}

/// Waits until `word`, which `peer` advances, has reached `target`.
fn wait(
    meeting: &Meeting<'_>,
    peer: usize,
    word: &Word,
    target: u32,
    call: impl Fn() -> String,
) -> Result<u64, CommError> {
    let begin = now_ns();
    meeting.fault.point();
    meeting
        .region
        .line(meeting.rank)
        .heartbeat_ns
        .store(begin, Ordering::Relaxed);
    let limit = meeting
        .waiting
        .timeout
        .min(Duration::from_secs(u64::from(u32::MAX)));
    let wait = Wait {
        region: meeting.region,
        owner: peer,
        waiting: meeting.waiting,
        deadline_ns: begin + limit.as_nanos() as u64,
    };
    wait.until(word, target)
        .map_err(|missed| meeting.fail(missed, vec![peer], call()))?;
    Ok(now_ns() - begin)
}
