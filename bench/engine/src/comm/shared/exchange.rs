//! One call of a collective under way: its rounds, its slots, and what it moves.
//!
//! Bytes are counted here, at the copies: what a rank writes for `k` readers is `k` times sent, what it reads from
//! another's slot is received. What collectives do with it is in [`super::collective`]; who may touch which slot when
//! is in [`super::rendezvous`].
use std::sync::atomic::Ordering;

use super::rendezvous::{Lane, Meeting};
use crate::backend::HostMemory;
use crate::comm::algorithm::perform;
use crate::comm::error::CommError;
use crate::comm::ledger::Tally;
use crate::comm::number::Number;
use crate::comm::signature::Signature;
use crate::comm::{Collective, CollectiveCall, Reduce};

/// A call under way.
pub(super) struct Exchange<'a> {
    pub(super) meeting: Meeting<'a>,
    pub(super) call: CollectiveCall,
    signature: Signature,
    met: bool,
    pub(super) tally: Tally,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(meeting: Meeting<'a>, call: CollectiveCall) -> Self {
        // Only the root of a scatter or gather knows the total; it announces that, and everyone checks its own part.
        let elements = match call.collective {
            Collective::Scatter | Collective::Gather => 0,
            _ => call.from.len(),
        };
        let signature = Signature::new(
            call.collective,
            call.root,
            call.from.dtype(),
            call.reduce,
            elements,
        );
        Self {
            meeting,
            call,
            signature,
            met: false,
            tally: Tally {
                elements: call.from.len(),
                ..Tally::default()
            },
        }
    }

    /// Runs the call; `memory` is that of the rank's device.
    ///
    /// # Safety
    /// Nobody else touches the call's spans until it returns.
    pub(super) unsafe fn run(mut self, memory: &HostMemory) -> Result<Tally, CommError> {
        let call = self.call;
        // SAFETY: the caller's promise.
        unsafe { perform(&mut self, &call, memory)? };
        Ok(self.tally)
    }

    pub(super) fn world(&self) -> usize {
        self.meeting.region.world_size()
    }

    /// The parity of the round that comes next.
    pub(super) fn parity(&self) -> usize {
        (self.meeting.round(Lane::Stream) & 1) as usize
    }

    /// Announces the call, meets all ranks, and returns the parity of the round that they met in.
    pub(super) fn meet(&mut self) -> Result<usize, CommError> {
        let parity = self.parity();
        self.meeting.fault.point();
        self.meeting.region.line(self.meeting.rank).signature[parity]
            .store(self.signature.0, Ordering::Relaxed);
        let (call, elements) = (self.call, self.tally.elements);
        let waited = self.meeting.meet(Lane::Stream, &|| {
            format!(
                "{} of {} elements ({})",
                call.collective.name(),
                elements,
                call.phase.name()
            )
        })?;
        if !self.met {
            self.met = true;
            self.tally.wait_ns = waited;
        }
        self.meeting.fault.point();
        self.meeting.compare(parity, self.signature)?;
        Ok(parity)
    }

    /// The `len` elements from element `at` of a slot.
    fn slot<T: Number>(&self, rank: usize, parity: usize, at: usize, len: usize) -> *mut T {
        assert!(
            (at + len) * size_of::<T>() <= self.meeting.region.slot_bytes(),
            "a piece leaves its slot"
        );
        // Within the slot, as just checked; slots are page-aligned.
        self.meeting
            .region
            .slot(rank, parity)
            .cast::<T>()
            .wrapping_add(at)
    }

    /// The own slot of the round that comes next.
    pub(super) fn own_slot<T: Number>(&mut self, at: usize, len: usize) -> &mut [T] {
        let slot = self.slot::<T>(self.meeting.rank, self.parity(), at, len);
        // SAFETY: only this rank writes its slots, and everyone has read what the slot of this parity held (see
        // `rendezvous`); `&mut self` keeps this rank from making a second slice.
        unsafe { std::slice::from_raw_parts_mut(slot, len) }
    }

    /// Writes `values`, scaled if the call says so, for `readers` others.
    pub(super) fn publish<T: Number>(&mut self, at: usize, values: &[T], readers: usize) {
        let reduce = self.call.reduce;
        let slot = self.own_slot::<T>(at, values.len());
        match reduce {
            Reduce::ScaledSum(factor) => slot
                .iter_mut()
                .zip(values)
                .for_each(|(to, from)| *to = from.scaled(factor)),
            Reduce::Sum | Reduce::Max => slot.copy_from_slice(values),
        }
        self.sent::<T>(values.len(), readers);
    }

    pub(super) fn sent<T>(&mut self, elements: usize, readers: usize) {
        self.tally.sent_bytes += (elements * size_of::<T>() * readers) as u64;
    }

    /// What `rank` published in the round of `parity`; counted as received, and as read from that rank.
    pub(super) fn read<T: Number>(
        &mut self,
        rank: usize,
        parity: usize,
        at: usize,
        len: usize,
    ) -> &'a [T] {
        let bytes = (len * size_of::<T>()) as u64;
        self.tally.received_bytes += bytes;
        self.meeting
            .region
            .line(rank)
            .read_from
            .fetch_add(bytes, Ordering::Relaxed);
        let slot = self.slot::<T>(rank, parity, at, len);
        // SAFETY: the writer has arrived at the round, and does not write this parity again before this rank arrives
        // at the next round; the callers drop the slice before that.
        unsafe { std::slice::from_raw_parts(slot, len) }
    }

    /// Elements of `T` that a slot holds.
    pub(super) fn capacity<T>(&self) -> usize {
        self.meeting.region.slot_bytes() / size_of::<T>()
    }

    /// Elements of each rank's chunk that a piece holds.
    pub(super) fn share<T>(&self) -> usize {
        self.capacity::<T>() / self.world()
    }
}
