//! The memory at the two ends of a flow: where its bytes are taken from, and what becomes of those that come in.
//!
//! A flow asks for bytes that are ready and for room, in order; what may be sent can depend on what has arrived, which is
//! how a ring passes pieces on while others still come. Nothing here allocates: staging belongs to the communicator.
use std::ops::Range;

use crate::comm::Reduce;
use crate::comm::combine::{meet, scale};
use crate::comm::number::Number;

/// Most bytes that one call of the system is given: larger ones would leave the other direction waiting.
pub(super) const MOST: usize = 1 << 20;

/// The memory side of a flow.
pub(super) trait Ends {
    /// Bytes that may be sent next; empty while they depend on what has not come.
    fn ready(&mut self) -> &[u8];
    /// So many of them were sent.
    fn sent(&mut self, bytes: usize);
    /// Where the next bytes go; empty while what came before has to be sent first.
    fn room(&mut self) -> &mut [u8];
    /// So many were written there.
    fn arrived(&mut self, bytes: usize);
    /// Whether some rank on whose payload this one depends has not been heard of yet. To be without anything to do then
    /// is to wait for a late rank; later it is to wait for bytes under way.
    fn waits(&self) -> bool;
}

/// The bytes of numbers.
pub(super) fn bytes_of<T: Number>(values: &[T]) -> &[u8] {
    // SAFETY: numbers are plain old data without padding, and any byte may be read.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of numbers, to write.
pub(super) fn bytes_of_mut<T: Number>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bits are a number.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Staging as numbers.
pub(super) fn typed<T: Number>(words: &mut [u64]) -> &mut [T] {
    let len = size_of_val(words) / size_of::<T>();
    // SAFETY: words are aligned for every number and hold so many; any bits are a number.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), len) }
}

/// One range out, one in, neither depending on the other.
pub(super) struct Plain<'a, T> {
    out: &'a [T],
    into: &'a mut [T],
    sent: usize,
    arrived: usize,
}

impl<'a, T: Number> Plain<'a, T> {
    pub(super) fn new(out: &'a [T], into: &'a mut [T]) -> Self {
        Self {
            out,
            into,
            sent: 0,
            arrived: 0,
        }
    }
}

impl<T: Number> Ends for Plain<'_, T> {
    fn ready(&mut self) -> &[u8] {
        let left = &bytes_of(self.out)[self.sent..];
        &left[..left.len().min(MOST)]
    }
    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }
    fn room(&mut self) -> &mut [u8] {
        let left = &mut bytes_of_mut(self.into)[self.arrived..];
        let len = left.len().min(MOST);
        &mut left[..len]
    }
    fn arrived(&mut self, bytes: usize) {
        self.arrived += bytes;
    }
    fn waits(&self) -> bool {
        self.arrived == 0
    }
}

/// A place in a list of segments, in bytes.
#[derive(Clone, Copy, Default)]
struct Cursor {
    segment: usize,
    offset: usize,
}

impl Cursor {
    /// Whether nothing of segment `last` has come.
    fn before(&self, last: usize) -> bool {
        self.segment < last || (self.segment == last && self.offset == 0)
    }

    /// Moves on by `bytes`, and past segments that are finished or empty, as long as there are more than `segment`.
    fn advance<T>(&mut self, bytes: usize, segments: usize, of: &impl Fn(usize) -> Range<usize>) {
        self.offset += bytes;
        while self.segment < segments && self.offset == of(self.segment).len() * size_of::<T>() {
            *self = Self {
                segment: self.segment + 1,
                offset: 0,
            };
        }
    }
}

/// Segments of a buffer that go out and come in, in order; each but the first goes out after it came in.
pub(super) struct InPlace<'a, T, O, I> {
    data: &'a mut [T],
    staging: &'a mut [T],
    reduce: Reduce,
    /// Segments out and in, and how many of the latter are combined with what is there; the rest replace it.
    out: O,
    into: I,
    segments: [usize; 2],
    combined: usize,
    /// Bytes that can be sent more than have arrived: the first segment.
    lead: usize,
    sent: usize,
    complete: usize,
    /// Bytes in staging that are no whole number yet.
    part: usize,
    out_at: Cursor,
    in_at: Cursor,
}

/// What an [`InPlace`] is made of.
pub(super) struct Segments<O, I> {
    /// Number of segments that go out, and which the k-th is.
    pub(super) out: (usize, O),
    /// Number of segments that come in, and which the k-th is.
    pub(super) into: (usize, I),
    /// How many of the latter are combined.
    pub(super) combined: usize,
    /// Elements that can be sent before any came.
    pub(super) lead: usize,
}

impl<'a, T: Number, O: Fn(usize) -> Range<usize>, I: Fn(usize) -> Range<usize>>
    InPlace<'a, T, O, I>
{
    pub(super) fn new(
        data: &'a mut [T],
        staging: &'a mut [u64],
        reduce: Reduce,
        segments: Segments<O, I>,
    ) -> Self {
        let Segments {
            out: (outs, out),
            into: (ins, into),
            combined,
            lead,
        } = segments;
        let mut ends = Self {
            data,
            staging: typed(staging),
            reduce,
            out,
            into,
            segments: [outs, ins],
            combined,
            lead: lead * size_of::<T>(),
            sent: 0,
            complete: 0,
            part: 0,
            out_at: Cursor::default(),
            in_at: Cursor::default(),
        };
        ends.out_at.advance::<T>(0, outs, &ends.out);
        ends.in_at.advance::<T>(0, ins, &ends.into);
        ends
    }

    /// Bytes that go out and come in over the whole flow.
    pub(super) fn totals(&self) -> (usize, usize) {
        let out = (0..self.segments[0])
            .map(|k| (self.out)(k).len())
            .sum::<usize>();
        let into = (0..self.segments[1])
            .map(|k| (self.into)(k).len())
            .sum::<usize>();
        (out * size_of::<T>(), into * size_of::<T>())
    }
}

impl<T: Number, O: Fn(usize) -> Range<usize>, I: Fn(usize) -> Range<usize>> Ends
    for InPlace<'_, T, O, I>
{
    fn ready(&mut self) -> &[u8] {
        if self.out_at.segment == self.segments[0] {
            return &[];
        }
        let left = &bytes_of(&self.data[(self.out)(self.out_at.segment)])[self.out_at.offset..];
        let allowed = self.lead + self.complete - self.sent;
        &left[..left.len().min(allowed).min(MOST)]
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        self.out_at.advance::<T>(bytes, self.segments[0], &self.out);
    }

    fn room(&mut self) -> &mut [u8] {
        if self.in_at.segment == self.segments[1] {
            return &mut [];
        }
        let segment = (self.into)(self.in_at.segment);
        if self.in_at.segment >= self.combined {
            let left = &mut bytes_of_mut(&mut self.data[segment])[self.in_at.offset..];
            let len = left.len().min(MOST);
            return &mut left[..len];
        }
        let left = segment.len() * size_of::<T>() - self.in_at.offset;
        let staging = bytes_of_mut(self.staging);
        let end = staging.len().min(left);
        &mut staging[self.part..end]
    }

    fn arrived(&mut self, bytes: usize) {
        if self.in_at.segment >= self.combined {
            self.complete += bytes;
            self.in_at.advance::<T>(bytes, self.segments[1], &self.into);
            return;
        }
        let (filled, size) = (self.part + bytes, size_of::<T>());
        let whole = filled / size;
        let start = (self.into)(self.in_at.segment).start + self.in_at.offset / size;
        meet(
            self.reduce,
            &self.staging[..whole],
            &mut self.data[start..start + whole],
        );
        bytes_of_mut(self.staging).copy_within(whole * size..filled, 0);
        self.part = filled - whole * size;
        self.complete += whole * size;
        self.in_at
            .advance::<T>(whole * size, self.segments[1], &self.into);
    }

    /// The k-th segment that comes first passed by k other ranks: those that are combined, or all where none is.
    fn waits(&self) -> bool {
        let awaited = match self.combined {
            0 => self.segments[1],
            combined => combined,
        };
        self.part == 0 && self.in_at.before(awaited.saturating_sub(1))
    }
}

/// Contributions that stay as they are: what is passed on goes through a buffer that is used round and round.
///
/// First `lead` (scaled) goes out, then every segment that came in, combined with the own one; the last `terminal`
/// elements that come in stay here instead.
pub(super) struct Through<'a, T, I> {
    from: &'a [T],
    buffer: &'a mut [T],
    staging: &'a mut [T],
    terminal: &'a mut [T],
    reduce: Reduce,
    lead: Range<usize>,
    into: I,
    segments: usize,
    /// Segments that are passed on.
    passed: usize,
    /// Elements put into the buffer, bytes sent from it.
    put: usize,
    sent: usize,
    part: usize,
    in_at: Cursor,
}

/// What a [`Through`] is made of.
pub(super) struct Passage<I> {
    /// What of the own contribution goes out first.
    pub(super) lead: Range<usize>,
    /// Number of segments that come in, and which part of the contribution the k-th meets.
    pub(super) into: (usize, I),
    /// How many of them are passed on.
    pub(super) passed: usize,
}

/// The memory that a [`Through`] works with.
pub(super) struct Buffers<'a, T> {
    /// The own contribution.
    pub(super) from: &'a [T],
    /// Where what stays here goes.
    pub(super) terminal: &'a mut [T],
    /// Holds what is to be passed on.
    pub(super) buffer: &'a mut [T],
    /// Holds what has just come.
    pub(super) staging: &'a mut [u64],
}

impl<'a, T: Number, I: Fn(usize) -> Range<usize>> Through<'a, T, I> {
    pub(super) fn new(buffers: Buffers<'a, T>, reduce: Reduce, passage: Passage<I>) -> Self {
        let (segments, into) = passage.into;
        let mut ends = Self {
            from: buffers.from,
            buffer: buffers.buffer,
            staging: typed(buffers.staging),
            terminal: buffers.terminal,
            reduce,
            lead: passage.lead,
            into,
            segments,
            passed: passage.passed,
            put: 0,
            sent: 0,
            part: 0,
            in_at: Cursor::default(),
        };
        ends.in_at.advance::<T>(0, segments, &ends.into);
        ends
    }

    /// Bytes that go out and come in over the whole flow.
    pub(super) fn totals(&self) -> (usize, usize) {
        let len = |segments: Range<usize>| segments.map(|k| (self.into)(k).len()).sum::<usize>();
        let (out, into) = (self.lead.len() + len(0..self.passed), len(0..self.segments));
        (out * size_of::<T>(), into * size_of::<T>())
    }

    /// Elements for which the buffer has room: those in it that are not wholly sent keep their place.
    fn free(&self) -> usize {
        self.buffer.len() - (self.put - self.sent / size_of::<T>())
    }

    /// Puts as much of the lead into the buffer as fits.
    fn put_lead(&mut self) {
        while self.put < self.lead.len() && self.free() > 0 {
            let at = self.put % self.buffer.len();
            let len = (self.lead.len() - self.put)
                .min(self.free())
                .min(self.buffer.len() - at);
            let start = self.lead.start + self.put;
            let to = &mut self.buffer[at..at + len];
            to.copy_from_slice(&self.from[start..start + len]);
            scale(self.reduce, to);
            self.put += len;
        }
    }

    /// Combines the first `whole` numbers of staging, from element `start` of the contribution on, into the buffer.
    fn pass_on(&mut self, mut start: usize, whole: usize) {
        let mut done = 0;
        while done < whole {
            let at = self.put % self.buffer.len();
            let len = (whole - done).min(self.buffer.len() - at);
            let to = &mut self.buffer[at..at + len];
            to.copy_from_slice(&self.from[start..start + len]);
            meet(self.reduce, &self.staging[done..done + len], to);
            self.put += len;
            done += len;
            start += len;
        }
    }
}

impl<T: Number, I: Fn(usize) -> Range<usize>> Ends for Through<'_, T, I> {
    fn ready(&mut self) -> &[u8] {
        self.put_lead();
        let size = size_of::<T>();
        let left = self.put * size - self.sent;
        if left == 0 {
            return &[];
        }
        let at = self.sent % size_of_val(self.buffer);
        let bytes = &bytes_of(self.buffer)[at..];
        &bytes[..bytes.len().min(left).min(MOST)]
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    fn room(&mut self) -> &mut [u8] {
        self.put_lead();
        if self.in_at.segment == self.segments || self.put < self.lead.len() {
            return &mut [];
        }
        let size = size_of::<T>();
        let mut end = (self.into)(self.in_at.segment).len() * size - self.in_at.offset;
        if self.in_at.segment < self.passed {
            end = end.min(self.free() * size);
        }
        let staging = bytes_of_mut(self.staging);
        let end = end.min(staging.len()).max(self.part);
        &mut staging[self.part..end]
    }

    fn arrived(&mut self, bytes: usize) {
        let (filled, size) = (self.part + bytes, size_of::<T>());
        let whole = filled / size;
        let offset = self.in_at.offset / size;
        let start = (self.into)(self.in_at.segment).start + offset;
        if self.in_at.segment < self.passed {
            self.pass_on(start, whole);
        } else {
            let to = &mut self.terminal[offset..offset + whole];
            to.copy_from_slice(&self.from[start..start + whole]);
            meet(self.reduce, &self.staging[..whole], to);
        }
        bytes_of_mut(self.staging).copy_within(whole * size..filled, 0);
        self.part = filled - whole * size;
        self.in_at
            .advance::<T>(whole * size, self.segments, &self.into);
    }

    fn waits(&self) -> bool {
        self.part == 0 && self.in_at.before(self.segments.saturating_sub(1))
    }
}
