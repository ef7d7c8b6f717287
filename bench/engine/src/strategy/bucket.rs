//! DDP's buckets: contiguous ranges of the gradient arena that are reduced in one call.
//!
//! The arena is in gradient-ready order, so a bucket needs no copy in or out. A cap is a closing threshold, as in
//! PyTorch's `compute_bucket_assignment_by_size`: a parameter is appended, then the bucket closes once it has reached
//! the cap, so it may overshoot.
use std::ops::Range;

/// Default cap of a bucket.
pub const CAP_BYTES: usize = 25 << 20;
/// Cap of the first bucket, so that communication begins early; only while the cap is left at its default.
pub const FIRST_CAP_BYTES: usize = 1 << 20;

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

    /// Buckets of f32 parameters with `sizes` elements in ready order. Without `cap_bytes` the defaults hold.
    pub fn assign(sizes: &[usize], cap_bytes: Option<usize>) -> Self {
        let cap = cap_bytes.unwrap_or(CAP_BYTES);
        let mut limit = if cap_bytes.is_none() {
            FIRST_CAP_BYTES
        } else {
            cap
        };
        let (mut ends, mut start, mut end) = (Vec::new(), 0, 0);
        for size in sizes {
            end += size;
            if (end - start) * size_of::<f32>() >= limit && end > start {
                ends.push(end);
                (start, limit) = (end, cap);
            }
        }
        if end > start {
            ends.push(end);
        }
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
