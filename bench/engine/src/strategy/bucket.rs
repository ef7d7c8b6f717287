//! DDP's buckets: contiguous ranges of the gradient arena that are reduced in one call.
//!
//! The arena is in gradient-ready order, so a bucket needs no copy in or out. A cap is a closing threshold, as in
//! PyTorch's `compute_bucket_assignment_by_size`: a parameter is appended, then the bucket closes once it has reached
//! the cap, so it may overshoot.
use std::ops::Range;

/// When a bucket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketCaps {
    /// A bucket is closed once it holds this much.
    pub bytes: usize,
    /// The same for the first one, so that communication begins early.
    pub first_bytes: usize,
}

impl BucketCaps {
    /// One cap for all: what PyTorch makes of a cap that someone chose.
    pub const fn uniform(bytes: usize) -> Self {
        Self {
            bytes,
            first_bytes: bytes,
        }
    }
}

impl Default for BucketCaps {
    /// PyTorch's: 25 MiB, and 1 MiB for the first.
    fn default() -> Self {
        Self {
            bytes: 25 << 20,
            first_bytes: 1 << 20,
        }
    }
}

/// A division of the gradient arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Ends of the buckets in elements, ascending.
    ends: Vec<usize>,
}

impl Buckets {
    /// One bucket of all elements, as in the first iteration: no overlap with backward.
    pub fn unlimited(elements: usize) -> Self {
        Self {
            ends: if elements == 0 {
                Vec::new()
            } else {
                vec![elements]
            },
        }
    }

    /// Buckets of f32 parameters with `sizes` elements in ready order.
    pub fn assign(sizes: &[usize], caps: BucketCaps) -> Self {
        let mut limit = caps.first_bytes;
        let (mut ends, mut start, mut end) = (Vec::new(), 0, 0);
        for size in sizes {
            end += size;
            if (end - start) * size_of::<f32>() >= limit && end > start {
                ends.push(end);
                (start, limit) = (end, caps.bytes);
            }
        }
        if end > start {
            ends.push(end);
        }
        Self { ends }
    }

    /// The same buckets, each divisible by `parts`: their ends are rounded down, so that at most `parts − 1` elements wait for
    /// the next bucket, and the last one's is rounded up, into the padding of the arena. A bucket that gets nothing is
    /// left out.
    ///
    /// # Panics
    /// When `parts` is 0.
    pub fn divisible(&self, parts: usize) -> Self {
        let mut ends: Vec<usize> = self.ends.iter().map(|end| end / parts * parts).collect();
        if let (Some(last), Some(end)) = (ends.last_mut(), self.ends.last()) {
            *last = end.next_multiple_of(parts);
        }
        ends.dedup();
        ends.retain(|end| *end > 0);
        Self { ends }
    }

    /// From ends that [`Buckets::ends`] gave, of another rank.
    pub fn from_ends(ends: Vec<usize>) -> Self {
        Self { ends }
    }

    /// Ends of the buckets in elements.
    pub fn ends(&self) -> &[usize] {
        &self.ends
    }

    /// Number of buckets.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is nothing to reduce.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Elements of bucket `index`.
    pub fn range(&self, index: usize) -> Range<usize> {
        index.checked_sub(1).map_or(0, |before| self.ends[before])..self.ends[index]
    }
}
