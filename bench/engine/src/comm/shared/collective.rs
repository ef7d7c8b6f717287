//! The algorithm `shared-direct`: collectives as rounds over the ranks' slots.
//!
//! Every rank writes what others need into its own slot and reads what it needs from theirs. Payloads larger than a
//! slot go in pieces; a piece holds a part of *each* rank's chunk, so that over the whole call every rank combines
//! exactly its chunk of the standard split ([`chunk`]), whatever the slot size. Combination goes in rank order and
//! each element is combined by one rank only, so all ranks end with the same bits.
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::exchange::Exchange;
use super::rendezvous::announced;
use crate::comm::algorithm::Algorithm;
use crate::comm::error::{CommError, invalid};
use crate::comm::number::{Number, scale};
use crate::comm::{Reduce, chunk};

impl Exchange<'_> {
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

    /// Exchanges and combines piece `piece` of the contributions. The own part of the result, whose place is returned,
    /// lies at the start of the own slot of the next round.
    fn reduce_piece<T: Number>(
        &mut self,
        data: &[T],
        piece: usize,
    ) -> Result<Range<usize>, CommError> {
        let (rank, share) = (self.rank(), self.share::<T>());
        self.publish_parts(data, piece);
        let parity = self.meet()?;
        let own = part(data.len(), self.world(), rank, piece, share);
        self.combine(&data[own.clone()], parity, rank * share);
        Ok(own)
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
                let parity = self.meet()?;
                piece.copy_from_slice(self.read(root, parity, 0, piece.len()));
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

    fn all_reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank, share) = (self.world(), self.rank(), self.share::<T>());
        if world == 1 {
            scale(self.call.reduce, data);
            return Ok(());
        }
        for piece in 0..pieces(data.len(), world, share) {
            let own = self.reduce_piece(data, piece)?;
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
            scale(self.call.reduce, to);
            return Ok(());
        }
        let start = chunk(from.len(), world, rank).start;
        for piece in 0..pieces(from.len(), world, share) {
            let own = self.reduce_piece(from, piece)?;
            let len = own.len();
            to[own.start - start..own.end - start].copy_from_slice(self.own_slot(0, len));
        }
        Ok(())
    }

    fn reduce_scatter_in_place<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        if self.world() == 1 {
            scale(self.call.reduce, data);
            return Ok(());
        }
        for piece in 0..pieces(data.len(), self.world(), self.share::<T>()) {
            let own = self.reduce_piece(data, piece)?;
            let len = own.len();
            data[own].copy_from_slice(self.own_slot(0, len));
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
            let parity = self.meet()?;
            for peer in (0..world).filter(|peer| *peer != rank) {
                let theirs = &mut data[piece(peer)];
                theirs.copy_from_slice(self.read(peer, parity, 0, theirs.len()));
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
