//! The memory side of an all-reduce of two ranks: the whole contribution goes out, the other's comes in and is combined.
//!
//! Contract: an element is combined once it has been sent, so no more is received than was sent. Two ranks cannot both be
//! stuck by that: whoever has received as much as it sent, and can send no more, has a peer that received less than it sent.
//! Bytes are combined soon after they were sent and within a core's second-level cache of when they came.
use super::ends::{Ends, MOST, bytes_of, bytes_of_mut, typed};
use crate::comm::Reduce;
use crate::comm::combine::{join_over, scale};
use crate::comm::number::Number;

/// Both ends of one rank.
pub(super) struct Pair<'a, T> {
    data: &'a mut [T],
    staging: &'a mut [T],
    reduce: Reduce,
    /// Whether this rank's contribution comes first.
    first: bool,
    /// Elements that have been scaled, bytes sent, elements combined, bytes that have come and are not combined.
    scaled: usize,
    sent: usize,
    combined: usize,
    part: usize,
}

impl<'a, T: Number> Pair<'a, T> {
    pub(super) fn new(
        data: &'a mut [T],
        staging: &'a mut [u64],
        reduce: Reduce,
        first: bool,
    ) -> Self {
        Self {
            data,
            staging: typed(staging),
            reduce,
            first,
            scaled: 0,
            sent: 0,
            combined: 0,
            part: 0,
        }
    }
}

impl<T: Number> Ends for Pair<'_, T> {
    fn ready(&mut self) -> &[u8] {
        let size = size_of::<T>();
        let end = (self.sent + MOST).min(size_of_val(self.data));
        if self.scaled * size < end {
            let until = end.div_ceil(size);
            scale(self.reduce, &mut self.data[self.scaled..until]);
            self.scaled = until;
        }
        &bytes_of(self.data)[self.sent..end]
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
    }

    fn room(&mut self) -> &mut [u8] {
        let sent = self.sent - self.combined * size_of::<T>();
        let staging = bytes_of_mut(self.staging);
        let end = staging.len().min(sent).max(self.part);
        &mut staging[self.part..end]
    }

    fn arrived(&mut self, bytes: usize) {
        let (filled, size) = (self.part + bytes, size_of::<T>());
        let whole = filled / size;
        let own = &mut self.data[self.combined..self.combined + whole];
        // It was scaled when it was sent.
        let came = &self.staging[..whole];
        join_over(self.reduce, self.first, came, own, |own, to| {
            to.copy_from_slice(own);
        });
        bytes_of_mut(self.staging).copy_within(whole * size..filled, 0);
        self.part = filled - whole * size;
        self.combined += whole;
    }

    fn waits(&self) -> bool {
        self.part == 0 && self.combined == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_comes_than_was_sent_and_halves_of_numbers_wait() {
        let mut data = [1.0_f32, 2.0, 3.0];
        let mut staging = [0; 64];
        let mut ends = Pair::new(&mut data, &mut staging, Reduce::ScaledSum(2.0), true);
        assert!(ends.room().is_empty() && ends.waits());
        assert_eq!(ends.ready(), bytes_of(&[2.0_f32, 4.0, 6.0]));
        ends.sent(6);
        assert_eq!(ends.room().len(), 6);
        let came = [10.0_f32, 20.0, 30.0];
        ends.room().copy_from_slice(&bytes_of(&came)[..6]);
        ends.arrived(6);
        assert!(ends.room().is_empty() && !ends.waits());
        ends.sent(6);
        ends.room().copy_from_slice(&bytes_of(&came)[6..]);
        ends.arrived(6);
        assert!(ends.ready().is_empty());
        assert_eq!(data, [12.0, 24.0, 36.0]);
    }
}
