//! Some samples of a data set, and how a part of it is held out for validation.
//!
//! What is held out depends on the number of samples and the share alone, so that all trials of a study validate on the same
//! samples, whatever their seeds.
use std::sync::Arc;

use super::{Dataset, Random, Sampler};
use crate::shape::Shape;

/// Seed of the permutation whose head is held out: a constant, and no trial's.
const HELD_OUT_SEED: u64 = 0x5e1d_0a7a;

/// Samples of another data set.
#[derive(Clone)]
pub struct Subset {
    whole: Arc<dyn Dataset>,
    samples: Vec<usize>,
}

impl Subset {
    /// The samples `samples` of `whole`, in this order.
    pub fn new(whole: Arc<dyn Dataset>, samples: Vec<usize>) -> Self {
        Self { whole, samples }
    }

    /// At most the first `most` samples of `whole`.
    pub fn first(whole: Arc<dyn Dataset>, most: usize) -> Self {
        let samples = (0..whole.len().min(most)).collect();
        Self::new(whole, samples)
    }

    /// `whole` without a share of it that is held out, and that share: of `share`·len samples, rounded, each in the order of the whole.
    pub fn hold_out(whole: &Arc<dyn Dataset>, share: f64) -> [Self; 2] {
        let len = whole.len();
        let count = ((len as f64 * share).round() as usize).min(len);
        let mut order = Vec::new();
        Random {
            len,
            seed: HELD_OUT_SEED,
        }
        .indices(0, &mut order);
        let mut kept = order.split_off(count);
        kept.sort_unstable();
        order.sort_unstable();
        [kept, order].map(|samples| Self::new(Arc::clone(whole), samples))
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.samples.len()
    }
    fn shape(&self) -> Shape {
        self.whole.shape()
    }
    fn classes(&self) -> usize {
        self.whole.classes()
    }
    fn write(&self, index: usize, to: &mut [f32]) {
        self.whole.write(self.samples[index], to);
    }
    fn labels_per_sample(&self) -> usize {
        self.whole.labels_per_sample()
    }
    fn write_labels(&self, index: usize, to: &mut [i32]) {
        self.whole.write_labels(self.samples[index], to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Synthetic;

    #[test]
    fn what_is_held_out_is_not_kept_and_nothing_is_lost() {
        let whole: Arc<dyn Dataset> = Arc::new(Synthetic {
            len: 103,
            shape: Shape::Features(2),
            classes: 1000,
            seed: 3,
        });
        let [kept, held] = Subset::hold_out(&whole, 0.1);
        assert_eq!((kept.len(), held.len()), (93, 10));
        let mut all = [&kept.samples[..], &held.samples[..]].concat();
        assert!(kept.samples.is_sorted() && held.samples.is_sorted());
        all.sort_unstable();
        assert!(all.into_iter().eq(0..103));
        assert_eq!(held.label(3), whole.label(held.samples[3]));
        let again = Subset::hold_out(&whole, 0.1);
        assert_eq!(again[1].samples, held.samples);
        let [all, none] = Subset::hold_out(&whole, 0.0);
        assert_eq!((all.len(), none.len()), (103, 0));
        assert_eq!(Subset::first(whole, 7).len(), 7);
    }
}
