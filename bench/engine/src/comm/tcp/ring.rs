//! The algorithm `ring`: every rank sends to the next and receives from the one before, chunk after chunk.
//!
//! - reduce-scatter: chunk c starts on rank c + 1 and comes round to rank c, each rank adding its own;
//! - all-gather: own block first, then whatever came; all-reduce is the one after the other, in place;
//! - broadcast and reduce are chains from and to the root, in which pieces are passed on as they come;
//! - all-reduce of two ranks: each sends all that it brings and combines all that comes, which moves as many bytes as the
//!   ring does, of which none has to wait for another;
//! - scatter, gather, send and receive take the direct connection; a barrier has no payload.
//!
//! Each element is combined in one order, along the ring, and its result copied, or by two ranks with the same loop over the
//! same operands: all ranks end with the same bits.
//! Reference: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
use std::ops::Range;

use super::ends::{Buffers, InPlace, Passage, Plain, Segments, Through, typed};
use super::flow::{Exchange, STAGING_BYTES, Ways};
use super::pair::Pair;
use crate::comm::algorithm::Algorithm;
use crate::comm::chunk;
use crate::comm::combine::scale;
use crate::comm::error::{CommError, invalid};
use crate::comm::number::Number;

/// No segment: of the direction that a flow does not have.
fn nothing(_: usize) -> Range<usize> {
    0..0
}

impl Exchange<'_> {
    fn world(&self) -> usize {
        self.control.world
    }

    /// The rank `by` places further on.
    fn ahead(&self, by: usize) -> usize {
        (self.control.rank + by) % self.world()
    }

    /// The rank before this one.
    fn previous(&self) -> usize {
        self.ahead(self.world() - 1)
    }

    /// To the next rank and from the one before, as many bytes as said; no message where there is none.
    fn round(&self, out: Option<usize>, into: Option<usize>) -> Ways {
        Ways {
            to: out.map(|bytes| (self.ahead(1), bytes)),
            from: into.map(|bytes| (self.previous(), bytes)),
        }
    }

    /// Segments of `data` around the ring.
    fn circulate<T: Number, O: Fn(usize) -> Range<usize>, I: Fn(usize) -> Range<usize>>(
        &mut self,
        data: &mut [T],
        segments: Segments<O, I>,
    ) -> Result<(), CommError> {
        let (sends, receives) = (segments.out.0 > 0, segments.into.0 > 0);
        let elements = self.tally.elements;
        let mut staging = std::mem::take(&mut self.lines.staging);
        let mut ends = InPlace::new(data, &mut staging, self.call.reduce, segments);
        let (out, into) = ends.totals();
        let ways = self.round(sends.then_some(out), receives.then_some(into));
        let done = self.flow(ways, elements, &mut ends);
        self.lines.staging = staging;
        done.map(|_| ())
    }

    /// Contributions that stay as they are, passed on through a buffer of `room` elements.
    fn pass<T: Number, I: Fn(usize) -> Range<usize>>(
        &mut self,
        from: &[T],
        terminal: &mut [T],
        room: usize,
        passage: Passage<I>,
    ) -> Result<(), CommError> {
        let receives = passage.into.0 > 0;
        let elements = self.tally.elements;
        let words = (room.max(1) * size_of::<T>()).div_ceil(size_of::<u64>());
        if self.lines.buffer.len() < words {
            self.lines.buffer.resize(words, 0);
        }
        let mut staging = std::mem::take(&mut self.lines.staging);
        let mut buffer = std::mem::take(&mut self.lines.buffer);
        let buffers = Buffers {
            from,
            terminal,
            buffer: &mut typed(&mut buffer)[..room.max(1)],
            staging: &mut staging,
        };
        let mut ends = Through::new(buffers, self.call.reduce, passage);
        let (out, into) = ends.totals();
        // Whoever is in the midst sends, if only a message without payload.
        let ways = self.round(Some(out), receives.then_some(into));
        let done = self.flow(ways, elements, &mut ends);
        (self.lines.staging, self.lines.buffer) = (staging, buffer);
        done.map(|_| ())
    }

    /// Each way the whole contribution.
    fn all_reduce_of_two<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (first, elements) = (self.control.rank == 0, self.tally.elements);
        let ways = self.round(Some(size_of_val(data)), Some(size_of_val(data)));
        let mut staging = std::mem::take(&mut self.lines.staging);
        let mut ends = Pair::new(data, &mut staging, self.call.reduce, first);
        let done = self.flow(ways, elements, &mut ends);
        self.lines.staging = staging;
        done.map(|_| ())
    }

    /// Checks what the root says its total is against the own part.
    fn check_part(&mut self, total: u64, len: usize) -> Result<(), CommError> {
        let (rank, total) = (self.control.rank, total as usize);
        self.tally.elements = total;
        let expected = chunk(total, self.world(), rank).len();
        if expected == len {
            return Ok(());
        }
        self.wrong_part(rank, len, total, expected)
    }

    fn wrong_part(
        &self,
        rank: usize,
        len: usize,
        total: usize,
        expected: usize,
    ) -> Result<(), CommError> {
        let problem =
            format!("rank {rank} has {len} elements for its part of {total}, which is {expected}");
        Err(self.control.fail(invalid(self.call.collective, &problem)))
    }
}

impl Algorithm for Exchange<'_> {
    fn rank(&self) -> usize {
        self.control.rank
    }

    /// Dissemination: in round k everyone hears, through others, of 2^k ranks more.
    fn barrier(&mut self) -> Result<(), CommError> {
        let world = self.world();
        let mut distance = 1;
        while distance < world {
            let ways = Ways {
                to: Some((self.ahead(distance), 0)),
                from: Some((self.ahead(world - distance), 0)),
            };
            self.flow(ways, 0, &mut Plain::<f32>::new(&[], &mut []))?;
            distance *= 2;
        }
        Ok(())
    }

    fn broadcast<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (root, len) = (self.call.root, data.len());
        let (first, last) = (self.control.rank == root, self.ahead(1) == root);
        if self.world() == 1 {
            return Ok(());
        }
        let whole = |_: usize| 0..len;
        let segments = Segments {
            out: (usize::from(!last), whole),
            into: (usize::from(!first), whole),
            combined: 0,
            lead: if first { len } else { 0 },
        };
        self.circulate(data, segments)
    }

    fn reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (root, len) = (self.call.root, data.len());
        if self.world() == 1 {
            scale(self.call.reduce, data);
            return Ok(());
        }
        let whole = |_: usize| 0..len;
        if self.control.rank == root {
            let segments = Segments {
                out: (0, nothing),
                into: (1, whole),
                combined: 1,
                lead: 0,
            };
            return self.circulate(data, segments);
        }
        let first = self.previous() == root;
        let passage = Passage {
            lead: if first { 0..len } else { 0..0 },
            into: (usize::from(!first), whole),
            passed: usize::from(!first),
        };
        let room = len.min(STAGING_BYTES / size_of::<T>());
        // A chain, so a small buffer cannot close a circle of ranks that wait for each other.
        self.pass(data, &mut [], room, passage)
    }

    fn all_reduce<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank, len) = (self.world(), self.control.rank, data.len());
        if world == 1 {
            scale(self.call.reduce, data);
            return Ok(());
        }
        if world == 2 {
            return self.all_reduce_of_two(data);
        }
        let part = |place: usize| chunk(len, world, place % world);
        // What comes in is scaled where it is combined; only the chunk that goes out first is not.
        let first = part(rank + world - 1);
        scale(self.call.reduce, &mut data[first.clone()]);
        let steps = 2 * (world - 1);
        let segments = Segments {
            out: (steps, |k| part(rank + 3 * world - 1 - k)),
            into: (steps, |k| part(rank + 3 * world - 2 - k)),
            combined: world - 1,
            lead: first.len(),
        };
        self.circulate(data, segments)
    }

    fn all_gather<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank) = (self.world(), self.control.rank);
        if world == 1 {
            return Ok(());
        }
        let len = data.len() / world;
        let block = |place: usize| (place % world) * len..(place % world + 1) * len;
        let segments = Segments {
            out: (world - 1, |k| block(rank + world - k)),
            into: (world - 1, |k| block(rank + world - 1 - k)),
            combined: 0,
            lead: len,
        };
        self.circulate(data, segments)
    }

    /// The first half of an all-reduce, which leaves sums of some of the ranks in the chunks that are not the own one.
    fn reduce_scatter_in_place<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let (world, rank, len) = (self.world(), self.control.rank, data.len());
        if world == 1 {
            scale(self.call.reduce, data);
            return Ok(());
        }
        let part = |place: usize| chunk(len, world, place % world);
        let first = part(rank + world - 1);
        scale(self.call.reduce, &mut data[first.clone()]);
        let segments = Segments {
            out: (world - 1, |k| part(rank + 2 * world - 1 - k)),
            into: (world - 1, |k| part(rank + 2 * world - 2 - k)),
            combined: world - 1,
            lead: first.len(),
        };
        self.circulate(data, segments)
    }

    fn reduce_scatter<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, len) = (self.world(), self.control.rank, from.len());
        if world == 1 {
            to.copy_from_slice(from);
            scale(self.call.reduce, to);
            return Ok(());
        }
        let part = |place: usize| chunk(len, world, place % world);
        let passage = Passage {
            lead: part(rank + world - 1),
            into: (world - 1, |k| part(rank + 2 * world - 2 - k)),
            passed: world - 2,
        };
        // A circle: a buffer as large as the largest chunk lets every rank take in as much as it has sent.
        self.pass(from, to, chunk(len, world, 0).len(), passage)
    }

    fn scatter<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, root) = (self.world(), self.control.rank, self.call.root);
        if rank != root {
            let ways = Ways {
                to: None,
                from: Some((root, size_of_val(to))),
            };
            let len = to.len();
            let total = self.flow(ways, 0, &mut Plain::new(&[], to))?;
            return self.check_part(total, len);
        }
        to.copy_from_slice(&from[chunk(from.len(), world, rank)]);
        for by in 1..world {
            let peer = self.ahead(by);
            let part = &from[chunk(from.len(), world, peer)];
            let ways = Ways {
                to: Some((peer, size_of_val(part))),
                from: None,
            };
            self.flow(ways, from.len(), &mut Plain::new(part, &mut []))?;
        }
        Ok(())
    }

    fn gather<T: Number>(&mut self, from: &[T], to: &mut [T]) -> Result<(), CommError> {
        let (world, rank, root) = (self.world(), self.control.rank, self.call.root);
        if rank != root {
            let ways = Ways {
                to: Some((root, size_of_val(from))),
                from: Some((root, 0)),
            };
            let total = self.flow(ways, from.len(), &mut Plain::new(from, &mut []))?;
            return self.check_part(total, from.len());
        }
        let total = to.len();
        self.tally.elements = total;
        to[chunk(total, world, rank)].copy_from_slice(from);
        for by in 1..world {
            let peer = self.ahead(by);
            let part = &mut to[chunk(total, world, peer)];
            let (expected, bytes) = (part.len(), size_of_val(part));
            let ways = Ways {
                to: Some((peer, 0)),
                from: Some((peer, bytes)),
            };
            let theirs = self.flow(ways, total, &mut Plain::new(&[], part))? as usize;
            if theirs != expected {
                return self.wrong_part(peer, theirs, total, expected);
            }
        }
        Ok(())
    }

    fn send<T: Number>(&mut self, data: &[T]) -> Result<(), CommError> {
        let ways = Ways {
            to: Some((self.call.root, size_of_val(data))),
            from: None,
        };
        self.flow(ways, data.len(), &mut Plain::new(data, &mut []))
            .map(|_| ())
    }

    fn receive<T: Number>(&mut self, data: &mut [T]) -> Result<(), CommError> {
        let ways = Ways {
            to: None,
            from: Some((self.call.root, size_of_val(data))),
        };
        let len = data.len();
        self.flow(ways, len, &mut Plain::new(&[], data)).map(|_| ())
    }
}
