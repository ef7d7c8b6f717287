//! Data sets, the order they are gone through, and batches in host memory.
//!
//! Everything is a function of seed, epoch and index, so that any rank can make any sample. Inputs are written NHWC.
pub mod ahead;
pub mod cifar10;
pub mod digits;
pub mod fashion_mnist;
pub mod files;
pub mod idx;
pub mod loader;
pub mod pixels;
pub mod resident;
pub mod sampler;
pub mod subset;
pub mod synthetic;
pub mod text;
pub mod tokens;

use crate::shape::Shape;

pub use ahead::{Ahead, Batches};
pub use digits::{Digits, DigitsError, Split};
pub use files::FilesError;
pub use idx::IdxError;
pub use loader::{Loader, LoaderError, Place};
pub use pixels::Pixels;
pub use resident::Resident;
pub use sampler::{Distributed, Random, RankOrder, Sampler, Sequential};
pub use subset::Subset;
pub use synthetic::Synthetic;
pub use text::Words;
pub use tokens::{Masking, Predict, SyntheticTokens};

/// Labelled samples.
pub trait Dataset: Send + Sync {
    /// Number of samples.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Shape of an input.
    fn shape(&self) -> Shape;
    /// Number of classes.
    fn classes(&self) -> usize;
    /// Writes the input of sample `index` in memory order (NHWC).
    ///
    /// # Panics
    /// When there is no such sample or `to` has the wrong length: bugs of the caller.
    fn write(&self, index: usize, to: &mut [f32]);
    /// Labels of a sample: 1, or one for each position of a sequence of tokens.
    fn labels_per_sample(&self) -> usize {
        1
    }
    /// Writes the labels of sample `index`: from 0 to classes − 1, or [`crate::loss::UNLABELLED`] for a position that is not to be predicted.
    ///
    /// # Panics
    /// As [`Dataset::write`].
    fn write_labels(&self, index: usize, to: &mut [i32]);
    /// The label of sample `index`, where it has one.
    ///
    /// # Panics
    /// As [`Dataset::write`], or when it has several.
    fn label(&self, index: usize) -> i32 {
        let mut label = [0];
        self.write_labels(index, &mut label);
        label[0]
    }
}

/// A batch in host memory.
#[derive(Clone, Copy, Debug)]
pub struct HostBatch<'a> {
    /// `[len, h, w, c]` or `[len, features]`; tokens `[len, length]`.
    pub inputs: &'a [f32],
    /// `[len]`, or of tokens `[len, length]`.
    pub labels: &'a [i32],
    /// Samples.
    pub len: usize,
}

impl<'a> HostBatch<'a> {
    /// The samples `range` of it.
    ///
    /// # Panics
    /// When there are no such samples: a bug of the caller.
    pub fn part(&self, range: std::ops::Range<usize>) -> HostBatch<'a> {
        let each = |all: usize| all.checked_div(self.len).unwrap_or(0);
        let (elements, labels) = (each(self.inputs.len()), each(self.labels.len()));
        HostBatch {
            inputs: &self.inputs[range.start * elements..range.end * elements],
            labels: &self.labels[range.start * labels..range.end * labels],
            len: range.len(),
        }
    }
}
