//! One call of a collective under way: its rounds, its slots, and what it moves.
//!
//! Bytes are counted here, at the copies: what a rank writes for `k` readers is `k` times sent, what it reads from
//! another's slot is received. What collectives do with it is in [`super::collective`]; who may touch which slot when
//! is in [`super::rendezvous`].
use std::sync::atomic::Ordering;

use super::rendezvous::{Lane, Meeting, place};
use crate::backend::HostMemory;
use crate::comm::algorithm::perform;
use crate::comm::combine::enter;
use crate::comm::error::CommError;
use crate::comm::ledger::Tally;
use crate::comm::number::Number;
use crate::comm::signature::Signature;
use crate::comm::{Collective, CollectiveCall};

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

    /// Where the round that comes next lies.
    pub(super) fn next(&self) -> usize {
        place(self.meeting.round(Lane::Stream))
    }

    /// Announces the call, meets all ranks, and returns where the round lies that they met in.
    pub(super) fn meet(&mut self) -> Result<usize, CommError> {
        self.arrive()?;
        self.join()
    }

    /// Announces the call and arrives at the next round.
    pub(super) fn arrive(&mut self) -> Result<(), CommError> {
        self.meeting.fault.point();
        self.meeting.region.line(self.meeting.rank).signature[self.next()]
            .store(self.signature.0, Ordering::Relaxed);
        self.meeting.arrive(Lane::Stream)
    }

    /// Waits until all others have arrived at the round that this rank came to last, and returns where that lies.
    pub(super) fn join(&mut self) -> Result<usize, CommError> {
        let place = place(self.meeting.round(Lane::Stream).wrapping_sub(1));
        let (call, elements) = (self.call, self.tally.elements);
        let waited = self.meeting.join(Lane::Stream, &|| {
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
        self.meeting.compare(place, self.signature)?;
        Ok(place)
    }

    /// The `len` elements from element `at` of a slot.
    fn slot<T: Number>(&self, rank: usize, place: usize, at: usize, len: usize) -> *mut T {
        assert!(
            (at + len) * size_of::<T>() <= self.meeting.region.slot_bytes(),
            "a piece leaves its slot"
        );
        // Within the slot, as just checked; slots are page-aligned.
        self.meeting
            .region
            .slot(rank, place)
            .cast::<T>()
            .wrapping_add(at)
    }

    /// The own slot of the round that comes next.
    pub(super) fn own_slot<T: Number>(&mut self, at: usize, len: usize) -> &mut [T] {
        let slot = self.slot::<T>(self.meeting.rank, self.next(), at, len);
        // SAFETY: only this rank writes its slots, and everyone has read what this slot held (see `rendezvous`);
        // `&mut self` keeps this rank from making a second slice, and those of `peek` lie in slots of earlier rounds.
        unsafe { std::slice::from_raw_parts_mut(slot, len) }
    }

    /// Writes `values`, scaled if the call says so, for `readers` others.
    pub(super) fn publish<T: Number>(&mut self, at: usize, values: &[T], readers: usize) {
        let reduce = self.call.reduce;
        enter(reduce, values, self.own_slot::<T>(at, values.len()));
        self.sent::<T>(values.len(), readers);
    }

    pub(super) fn sent<T>(&mut self, elements: usize, readers: usize) {
        self.tally.sent_bytes += (elements * size_of::<T>() * readers) as u64;
    }

    /// What `rank` published in the round at `place`; counted as received, and as read from that rank.
    pub(super) fn read<T: Number>(
        &mut self,
        rank: usize,
        place: usize,
        at: usize,
        len: usize,
    ) -> &'a [T] {
        self.received::<T>(rank, len);
        self.peek(rank, place, at, len)
    }

    /// Counts so many elements as received, and as read from `rank`.
    pub(super) fn received<T>(&mut self, rank: usize, elements: usize) {
        let bytes = (elements * size_of::<T>()) as u64;
        self.tally.received_bytes += bytes;
        let line = self.meeting.region.line(rank);
        line.read_from.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What `rank` published in the round at `place`, not counted.
    pub(super) fn peek<T: Number>(
        &self,
        rank: usize,
        place: usize,
        at: usize,
        len: usize,
    ) -> &'a [T] {
        let slot = self.slot::<T>(rank, place, at, len);
        // SAFETY: the writer has arrived at the round, and does not write this slot again before this rank has arrived
        // two rounds later; the callers drop the slice before that.
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
