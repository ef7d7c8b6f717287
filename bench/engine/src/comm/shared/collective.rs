//! The algorithm `shared-direct`: collectives as rounds over the ranks' slots.
//!
//! Every rank writes what others need into its own slot and reads what it needs from theirs. Payloads larger than a
//! slot go in pieces; a piece holds a part of *each* rank's chunk, so that over the whole call every rank combines
//! exactly its chunk of the standard split ([`chunk`]), whatever the slot size. Combination goes in rank order and
//! each element is combined by one rank only, so all ranks end with the same bits.
//!
//! Two ranks reduce to all otherwise: each reads the whole contribution of the other, which is as much as it would send
//! of its own and read of the result, and meets it once instead of twice. Both run the same loop over the same operands.
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::exchange::Exchange;
use super::rendezvous::announced;
use crate::comm::algorithm::Algorithm;
use crate::comm::chunk;
use crate::comm::combine::{append, append_own, enter, join_over, scale};
use crate::comm::error::{CommError, invalid};
use crate::comm::number::Number;

/// Elements that are combined at a time, on the stack: they stay in the first-level cache from the first to the last rank.
const BLOCK: usize = 512;
/// Bytes that two ranks exchange at a time: what a rank touches between two meetings stays in its second-level cache.
const PIECE_BYTES: usize = 256 << 10;

impl Exchange<'_> {
    /// Combines the contributions to one piece in rank order: those of others from element `at` of their slots, the
    /// own one from `result`, which it becomes. Where `publish` says so it goes to the own slot of the next round as well.
    fn combine<T: Number>(
        &mut self,
        result: &mut [T],
        place: usize,
        at: usize,
        publish: Option<usize>,
    ) {
        let (rank, world, reduce) = (self.rank(), self.world(), self.call.reduce);
        let Some(any) = result.first().copied() else {
            return;
        };
        for peer in (0..world).filter(|peer| *peer != rank) {
            self.received::<T>(peer, result.len());
        }
        let mut sum = [any; BLOCK];
        for (index, own) in result.chunks_mut(BLOCK).enumerate() {
            let (start, len) = (index * BLOCK, own.len());
            let sum = &mut sum[..len];
            for peer in 0..world {
                match (peer == rank, peer == 0) {
                    (true, true) => enter(reduce, own, sum),
                    (true, false) => append_own(reduce, sum, own),
                    (false, true) => sum.copy_from_slice(self.peek(peer, place, at + start, len)),
                    (false, false) => append(reduce, sum, self.peek(peer, place, at + start, len)),
                }
            }
            own.copy_from_slice(sum);
            if let Some(at) = publish {
                self.own_slot::<T>(at + start, len).copy_from_slice(sum);
            }
        }
    }

    /// All-reduce of two ranks. A piece is published before the one before it is read, so that neither rank waits while
    /// the other copies.
    fn all_reduce_of_two<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (peer, len) = (1 - self.rank(), data.len());
        let piece = self.capacity::<T>().min(PIECE_BYTES / size_of::<T>());
        if len == 0 {
            return Ok(());
        }
        let range = |start: usize| start.min(len)..(start + piece).min(len);
        self.publish(0, &data[range(0)], 1);
        let mut place = self.meet()?;
        for start in (0..len).step_by(piece) {
            let next = range(start + piece);
            if !next.is_empty() {
                self.publish(0, &data[next.clone()], 1);
                self.arrive()?;
            }
            let to = &mut data[range(start)];
            self.received::<T>(peer, to.len());
            let (reduce, came) = (self.call.reduce, self.peek(peer, place, 0, to.len()));
            // The own contribution from where it lies, which this rank's caches hold: its slot went to the other's.
            join_over(reduce, peer == 1, came, to, |own, to| {
                enter(reduce, own, to);
            });
            if !next.is_empty() {
                place = self.join()?;
            }
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

    /// Exchanges piece `piece` of the contributions and returns the place of the own part and of the round.
    fn exchange_piece<T: Number>(
        &mut self,
        data: &[T],
        piece: usize,
    ) -> Result<(Range<usize>, usize), CommError> {
        let (rank, share) = (self.rank(), self.share::<T>());
        self.publish_parts(data, piece);
        let place = self.meet()?;
        Ok((part(data.len(), self.world(), rank, piece, share), place))
    }

    /// Meets once so that all learn the root's total, and checks the own part (`len` elements) against it.
    fn meet_for_total(&mut self, total: usize, len: usize) -> Result<usize, CommError> {
        let (rank, root) = (self.rank(), self.call.root);
        let place = self.next();
        if rank == root {
            self.meeting.region.line(rank).total[place].store(total as u64, Ordering::Relaxed);
        }
        self.meet()?;
        let total = announced(&self.meeting.region.line(root).total, place) as usize;
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
}

impl Algorithm for Exchange<'_> {
    fn rank(&self) -> usize {
        self.meeting.rank
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        self.meet().map(|_| ())
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
                let place = self.meet()?;
                piece.copy_from_slice(self.read(root, place, 0, piece.len()));
            }
        }
        Ok(())
    }

    fn reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        if self.world() == 1 {
            scale(self.call.reduce, data);
            return Ok(());
        }
        for piece in data.chunks_mut(self.capacity::<T>()) {
            if self.rank() == self.call.root {
                let place = self.meet()?;
                self.combine(piece, place, 0, None);
            } else {
                self.publish(0, piece, 1);
                self.meet()?;
            }
        }
        Ok(())
    }

    /// A round carries the parts of one piece and the results of the piece before.
    fn all_reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank, share) = (self.world(), self.rank(), self.share::<T>());
        match world {
            1 => {
                scale(self.call.reduce, data);
                return Ok(());
            }
            2 => return self.all_reduce_of_two(data),
            _ => {}
        }
        let (len, pieces) = (data.len(), pieces(data.len(), world, share));
        if pieces == 0 {
            return Ok(());
        }
        self.publish_parts(data, 0);
        for piece in 0..=pieces {
            let place = self.meet()?;
            if piece < pieces {
                let own = part(len, world, rank, piece, share);
                let result = &mut data[own];
                self.combine(result, place, rank * share, Some(rank * share));
                self.sent::<T>(result.len(), world - 1);
            }
            if piece + 1 < pieces {
                self.publish_parts(data, piece + 1);
            }
            let Some(before) = piece.checked_sub(1) else {
                continue;
            };
            for peer in (0..world).filter(|peer| *peer != rank) {
                let theirs = &mut data[part(len, world, peer, before, share)];
                theirs.copy_from_slice(self.read(peer, place, peer * share, theirs.len()));
            }
        }
        Ok(())
    }

    fn reduce_scatter<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, share) = (self.world(), self.rank(), self.share::<T>());
        if world == 1 {
            to.copy_from_slice(from);
            scale(self.call.reduce, to);
            return Ok(());
        }
        let start = chunk(from.len(), world, rank).start;
        for piece in 0..pieces(from.len(), world, share) {
            let (own, place) = self.exchange_piece(from, piece)?;
            let result = &mut to[own.start - start..own.end - start];
            result.copy_from_slice(&from[own]);
            self.combine(result, place, rank * share, None);
        }
        Ok(())
    }

    fn reduce_scatter_in_place<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank, share) = (self.world(), self.rank(), self.share::<T>());
        if world == 1 {
            scale(self.call.reduce, data);
            return Ok(());
        }
        for piece in 0..pieces(data.len(), world, share) {
            let (own, place) = self.exchange_piece(data, piece)?;
            self.combine(&mut data[own], place, rank * share, None);
        }
        Ok(())
    }

    fn all_gather<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank) = (self.world(), self.rank());
        if world == 1 {
            return Ok(());
        }
        let (len, capacity) = (data.len() / world, self.capacity::<T>());
        for start in (0..len).step_by(capacity) {
            let piece = |peer: usize| peer * len + start..peer * len + (start + capacity).min(len);
            self.publish(0, &data[piece(rank)], world - 1);
            let place = self.meet()?;
            for peer in (0..world).filter(|peer| *peer != rank) {
                let theirs = &mut data[piece(peer)];
                theirs.copy_from_slice(self.read(peer, place, 0, theirs.len()));
            }
        }
        Ok(())
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
                let place = self.meet()?;
                let own = part(total, world, rank, piece, share);
                to[own.start - start..own.end - start].copy_from_slice(self.read(
                    root,
                    place,
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
                let place = self.meet()?;
                for peer in (0..world).filter(|peer| *peer != root) {
                    let theirs = part(total, world, peer, piece, share);
                    to[theirs.clone()].copy_from_slice(self.read(peer, place, 0, theirs.len()));
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
}
