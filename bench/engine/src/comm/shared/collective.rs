//! The algorithm `shared-direct`: collectives as rounds over the ranks' slots.
//!
//! Every rank writes what others need into its own slot and reads what it needs from theirs. Payloads larger than a
//! slot go in pieces; a piece holds a part of *each* rank's chunk, so that over the whole call every rank combines
//! exactly its chunk of the standard split ([`chunk`]), whatever the slot size. Combination goes in rank order and
//! each element is combined by one rank only, so all ranks end with the same bits. Bytes are counted here, at the
//! copies: what a rank writes for `k` readers is `k` times sent, what it reads from another's slot is received.
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::rendezvous::{CommError, Lane, Meeting, Signature, announced};
use crate::backend::HostMemory;
use crate::backend::cpu::memory::Element;
use crate::comm::{Collective, CollectiveCall, Reduce, chunk};
use crate::tensor::{Dtype, Span};

/// What one call did, for the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Elements of the call's payload.
    pub(super) elements: usize,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    /// Time until the last rank had arrived for the first time.
    pub(super) wait_ns: u64,
}

/// Arithmetic of what can be reduced.
pub(super) trait Number: Element {
    fn add(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    /// Times the factor of [`Reduce::ScaledSum`], which only floats have.
    fn scaled(self, factor: f32) -> Self;
}

impl Number for f32 {
    fn add(self, other: Self) -> Self {
        self + other
    }
    fn larger(self, other: Self) -> Self {
        // A NaN must reach every rank: divergence may not be hidden by the reduction.
        if self.is_nan() || self > other {
            self
        } else {
            other
        }
    }
    fn scaled(self, factor: f32) -> Self {
        self * factor
    }
}

macro_rules! integer {
    ($($kind:ty),*) => {$(
        impl Number for $kind {
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            fn scaled(self, _: f32) -> Self {
                self
            }
        }
    )*};
}
integer!(i32, i64);

/// A call under way.
pub(super) struct Exchange<'a> {
    pub(super) meeting: Meeting<'a>,
    pub(super) call: CollectiveCall,
    signature: Signature,
    met: bool,
    tally: Tally,
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
        // SAFETY: the caller's promise.
        unsafe {
            match self.call.from.dtype() {
                Dtype::F32 => self.run_typed::<f32>(memory)?,
                Dtype::I32 => self.run_typed::<i32>(memory)?,
                Dtype::I64 => self.run_typed::<i64>(memory)?,
            }
        }
        Ok(self.tally)
    }

    /// # Safety
    /// As [`Exchange::run`].
    unsafe fn run_typed<T: Number>(&mut self, memory: &HostMemory) -> Result<(), CommError> {
        let CollectiveCall {
            collective,
            from,
            to,
            ..
        } = self.call;
        // SAFETY: the caller keeps others off the spans; in-place calls take one slice only, and for the others
        // `SharedCommunicator::enqueue` has refused spans that overlap.
        unsafe {
            match collective {
                Collective::Barrier => self.meet().map(|_| ()),
                Collective::Broadcast => self.broadcast(memory.write::<T>(to)),
                Collective::Reduce => self.reduce(memory.write::<T>(to)),
                Collective::AllReduce => self.all_reduce(memory.write::<T>(to)),
                Collective::AllGather => {
                    self.all_gather(memory.read::<T>(from), memory.write::<T>(to))
                }
                Collective::ReduceScatter => {
                    self.reduce_scatter(memory.read::<T>(from), memory.write::<T>(to))
                }
                Collective::Scatter => self.scatter(
                    memory.read::<T>(self.only_on_root(from)),
                    memory.write::<T>(to),
                ),
                Collective::Gather => self.gather(
                    memory.read::<T>(from),
                    memory.write::<T>(self.only_on_root(to)),
                ),
                Collective::Send => self.send(memory.read::<T>(from)),
                Collective::Receive => self.receive(memory.write::<T>(to)),
                Collective::Copy => Err(invalid(
                    collective,
                    "a copy between devices is not a collective",
                )),
            }
        }
    }

    fn only_on_root(&self, span: Span) -> Span {
        if self.meeting.rank == self.call.root {
            span
        } else {
            span.first(0)
        }
    }

    fn rank(&self) -> usize {
        self.meeting.rank
    }

    fn world(&self) -> usize {
        self.meeting.region.world_size()
    }

    /// The parity of the round that comes next.
    fn parity(&self) -> usize {
        (self.meeting.round(Lane::Stream) & 1) as usize
    }

    /// Announces the call, meets all ranks, and returns the parity of the round that they met in.
    fn meet(&mut self) -> Result<usize, CommError> {
        let parity = self.parity();
        self.meeting.region.line(self.rank()).signature[parity]
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
    fn own_slot<T: Number>(&mut self, at: usize, len: usize) -> &mut [T] {
        let slot = self.slot::<T>(self.rank(), self.parity(), at, len);
        // SAFETY: only this rank writes its slots, and everyone has read what the slot of this parity held (see
        // `rendezvous`); `&mut self` keeps this rank from making a second slice.
        unsafe { std::slice::from_raw_parts_mut(slot, len) }
    }

    /// Writes `values`, scaled if the call says so, for `readers` others.
    fn publish<T: Number>(&mut self, at: usize, values: &[T], readers: usize) {
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

    fn sent<T>(&mut self, elements: usize, readers: usize) {
        self.tally.sent_bytes += (elements * size_of::<T>() * readers) as u64;
    }

    /// What `rank` published in the round of `parity`; counted as received, and as read from that rank.
    fn read<T: Number>(&mut self, rank: usize, parity: usize, at: usize, len: usize) -> &'a [T] {
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
    fn capacity<T>(&self) -> usize {
        self.meeting.region.slot_bytes() / size_of::<T>()
    }

    /// Elements of each rank's chunk that a piece holds.
    fn share<T>(&self) -> usize {
        self.capacity::<T>() / self.world()
    }

    fn broadcast<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let root = self.call.root;
        let others = self.world() - 1;
        if others == 0 {
            return Ok(());
        }
        for piece in data.chunks_mut(self.capacity::<T>()) {
            if self.rank() == root {
                self.publish(0, piece, others);
                self.meet()?;
            } else {
                let parity = self.meet()?;
                piece.copy_from_slice(self.read(root, parity, 0, piece.len()));
            }
        }
        Ok(())
    }

    fn reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        if self.world() == 1 {
            return self.alone(data);
        }
        for piece in data.chunks_mut(self.capacity::<T>()) {
            if self.rank() == self.call.root {
                let parity = self.meet()?;
                self.combine(piece, parity, 0);
                let len = piece.len();
                piece.copy_from_slice(self.own_slot(0, len));
            } else {
                self.publish(0, piece, 1);
                self.meet()?;
            }
        }
        Ok(())
    }

    /// Combines the contributions to one piece in rank order: those of others from element `at` of their slots, the
    /// own one from `own`. The result lies at the start of the own slot of the next round.
    fn combine<T: Number>(&mut self, own: &[T], parity: usize, at: usize) {
        let (reduce, len) = (self.call.reduce, own.len());
        for rank in 0..self.world() {
            let mine = rank == self.rank();
            let source = if mine {
                own
            } else {
                self.read(rank, parity, at, len)
            };
            let result = self.own_slot::<T>(0, len).iter_mut().zip(source);
            match (reduce, rank == 0) {
                (Reduce::ScaledSum(factor), true) if mine => {
                    result.for_each(|(to, from)| *to = from.scaled(factor))
                }
                (Reduce::ScaledSum(factor), false) if mine => {
                    result.for_each(|(to, from)| *to = to.add(from.scaled(factor)));
                }
                (_, true) => result.for_each(|(to, from)| *to = *from),
                (Reduce::Sum | Reduce::ScaledSum(_), false) => {
                    result.for_each(|(to, from)| *to = to.add(*from))
                }
                (Reduce::Max, false) => result.for_each(|(to, from)| *to = to.larger(*from)),
            }
        }
    }

    /// What a reduction of one contribution leaves.
    fn alone<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        if let Reduce::ScaledSum(factor) = self.call.reduce
            && factor != 1.0
        {
            data.iter_mut()
                .for_each(|value| *value = value.scaled(factor));
        }
        Ok(())
    }

    /// Publishes to every other rank its part of the contribution for piece `piece`.
    fn publish_parts<T: Number>(&mut self, data: &[T], piece: usize) {
        let (world, share) = (self.world(), self.share::<T>());
        let rank = self.rank();
        for peer in (0..world).filter(|peer| *peer != rank) {
            self.publish(
                peer * share,
                &data[part(data.len(), world, peer, piece, share)],
                1,
            );
        }
    }

    fn all_reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank, share) = (self.world(), self.rank(), self.share::<T>());
        if world == 1 {
            return self.alone(data);
        }
        for piece in 0..pieces(data.len(), world, share) {
            self.publish_parts(data, piece);
            let parity = self.meet()?;
            let own = part(data.len(), world, rank, piece, share);
            self.combine(&data[own.clone()], parity, rank * share);
            data[own.clone()].copy_from_slice(self.own_slot(0, own.len()));
            self.sent::<T>(own.len(), world - 1);
            let parity = self.meet()?;
            for peer in (0..world).filter(|peer| *peer != rank) {
                let theirs = part(data.len(), world, peer, piece, share);
                data[theirs.clone()].copy_from_slice(self.read(peer, parity, 0, theirs.len()));
            }
        }
        Ok(())
    }

    fn reduce_scatter<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, share) = (self.world(), self.rank(), self.share::<T>());
        if world == 1 {
            to.copy_from_slice(from);
            return self.alone(to);
        }
        let start = chunk(from.len(), world, rank).start;
        for piece in 0..pieces(from.len(), world, share) {
            self.publish_parts(from, piece);
            let parity = self.meet()?;
            let own = part(from.len(), world, rank, piece, share);
            self.combine(&from[own.clone()], parity, rank * share);
            let len = own.len();
            to[own.start - start..own.end - start].copy_from_slice(self.own_slot(0, len));
        }
        Ok(())
    }

    fn all_gather<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, len) = (self.world(), self.rank(), from.len());
        to[rank * len..(rank + 1) * len].copy_from_slice(from);
        if world == 1 {
            return Ok(());
        }
        let capacity = self.capacity::<T>();
        for (piece, values) in from.chunks(capacity).enumerate() {
            self.publish(0, values, world - 1);
            let parity = self.meet()?;
            for peer in (0..world).filter(|peer| *peer != rank) {
                let start = peer * len + piece * capacity;
                to[start..start + values.len()].copy_from_slice(self.read(
                    peer,
                    parity,
                    0,
                    values.len(),
                ));
            }
        }
        Ok(())
    }

    /// Meets once so that all learn the root's total, and checks the own part (`len` elements) against it.
    fn meet_for_total(&mut self, total: usize, len: usize) -> Result<usize, CommError> {
        let (rank, root) = (self.rank(), self.call.root);
        let parity = self.parity();
        if rank == root {
            self.meeting.region.line(rank).total[parity].store(total as u64, Ordering::Relaxed);
        }
        self.meet()?;
        let total = announced(&self.meeting.region.line(root).total, parity) as usize;
        self.tally.elements = total;
        let expected = chunk(total, self.world(), rank).len();
        if expected == len {
            return Ok(total);
        }
        let problem =
            format!("rank {rank} has {len} elements for its part of {total}, which is {expected}");
        self.meeting.region.abort(
            Some(rank),
            &format!("{}: {problem}", self.call.collective.name()),
        );
        Err(invalid(self.call.collective, &problem))
    }

    fn scatter<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, root, share) =
            (self.world(), self.rank(), self.call.root, self.share::<T>());
        let total = self.meet_for_total(from.len(), to.len())?;
        if rank == root {
            to.copy_from_slice(&from[chunk(total, world, rank)]);
        }
        if world == 1 {
            return Ok(());
        }
        let start = chunk(total, world, rank).start;
        for piece in 0..pieces(total, world, share) {
            if rank == root {
                self.publish_parts(from, piece);
                self.meet()?;
            } else {
                let parity = self.meet()?;
                let own = part(total, world, rank, piece, share);
                to[own.start - start..own.end - start].copy_from_slice(self.read(
                    root,
                    parity,
                    rank * share,
                    own.len(),
                ));
            }
        }
        Ok(())
    }

    fn gather<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, root, share) =
            (self.world(), self.rank(), self.call.root, self.share::<T>());
        let total = self.meet_for_total(to.len(), from.len())?;
        let own = chunk(total, world, rank);
        if rank == root {
            to[own.clone()].copy_from_slice(from);
        }
        if world == 1 {
            return Ok(());
        }
        for piece in 0..pieces(total, world, share) {
            if rank == root {
                let parity = self.meet()?;
                for peer in (0..world).filter(|peer| *peer != root) {
                    let theirs = part(total, world, peer, piece, share);
                    to[theirs.clone()].copy_from_slice(self.read(peer, parity, 0, theirs.len()));
                }
            } else {
                let mine = part(total, world, rank, piece, share);
                self.publish(0, &from[mine.start - own.start..mine.end - own.start], 1);
                self.meet()?;
            }
        }
        Ok(())
    }

    fn send<T: Number>(&mut self, data: &[T]) -> Result<(), CommError> {
        let outcome = super::mailbox::send(&self.meeting, self.call.root, data)?;
        self.sent::<T>(data.len(), 1);
        self.tally.wait_ns = outcome;
        Ok(())
    }

    fn receive<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        self.tally.wait_ns = super::mailbox::receive(&self.meeting, self.call.root, data)?;
        self.tally.received_bytes += size_of_val(data) as u64;
        Ok(())
    }
}

pub(super) fn invalid(collective: Collective, problem: &str) -> CommError {
    CommError::Invalid {
        call: collective.name(),
        problem: problem.to_owned(),
    }
}

/// Pieces that `len` elements go in when a piece holds `share` elements of every rank's chunk.
fn pieces(len: usize, world: usize, share: usize) -> usize {
    chunk(len, world, 0).len().div_ceil(share)
}

/// The part of rank `rank`'s chunk that goes with piece `piece`.
fn part(len: usize, world: usize, rank: usize, piece: usize, share: usize) -> Range<usize> {
    let whole = chunk(len, world, rank);
    let start = (whole.start + piece * share).min(whole.end);
    start..(start + share).min(whole.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_tile_the_standard_split() {
        for world in 1..=5 {
            for share in [1, 2, 7] {
                for len in 0..60 {
                    for rank in 0..world {
                        let mut next = chunk(len, world, rank).start;
                        for piece in 0..pieces(len, world, share) {
                            let part = part(len, world, rank, piece, share);
                            assert_eq!(part.start, next.min(chunk(len, world, rank).end));
                            assert!(part.len() <= share);
                            next = part.end;
                        }
                        assert_eq!(next, chunk(len, world, rank).end);
                    }
                }
            }
        }
    }

    #[test]
    fn the_larger_of_a_nan_and_a_number_is_nan() {
        assert!(Number::larger(f32::NAN, 1.0).is_nan());
        assert!(Number::larger(1.0, f32::NAN).is_nan());
        assert_eq!(Number::larger(-1.0_f32, 2.0), 2.0);
    }
}
