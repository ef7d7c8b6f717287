//! Batches in host memory, made on the calling thread, into buffers that are used again: loading allocates nothing.
use std::sync::Arc;

use super::{Dataset, HostBatch, Sampler};

/// Why there are no batches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoaderError {
    /// A batch of nothing.
    #[error("batch size 0: write at least 1")]
    NoBatch,
    /// An epoch without a batch.
    #[error(
        "an epoch has {samples} samples per device, fewer than the batch size {batch_size}: lower it"
    )]
    TooFew {
        /// Samples of an epoch.
        samples: usize,
        /// Samples of a batch.
        batch_size: usize,
    },
}

/// Which batch of which epoch a loader is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    epoch: u64,
    position: usize,
}

/// Goes through a data set in batches, epoch after epoch.
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    sampler: Box<dyn Sampler>,
    batch_size: usize,
    drop_last: bool,
    epoch: u64,
    position: usize,
    order: Vec<usize>,
    inputs: Vec<f32>,
    labels: Vec<i32>,
}

impl Loader {
    /// A loader at the start of epoch 0. With `drop_last` an epoch ends before a batch that is not full.
    ///
    /// # Errors
    /// [`LoaderError`] when an epoch would have no batch.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        sampler: Box<dyn Sampler>,
        batch_size: usize,
        drop_last: bool,
    ) -> Result<Self, LoaderError> {
        let samples = sampler.len();
        if batch_size == 0 {
            return Err(LoaderError::NoBatch);
        }
        if samples < if drop_last { batch_size } else { 1 } {
            return Err(LoaderError::TooFew {
                samples,
                batch_size,
            });
        }
        let elements = dataset.shape().elements();
        let mut loader = Self {
            epoch: 0,
            position: 0,
            order: Vec::new(),
            inputs: vec![0.0; batch_size * elements],
            labels: vec![0; batch_size * dataset.labels_per_sample()],
            dataset,
            sampler,
            batch_size,
            drop_last,
        };
        loader.begin(0);
        Ok(loader)
    }

    /// The data set that it goes through.
    pub fn dataset(&self) -> Arc<dyn Dataset> {
        Arc::clone(&self.dataset)
    }
    /// Batches of an epoch.
    pub fn batches(&self) -> usize {
        let samples = self.order.len();
        if self.drop_last {
            samples / self.batch_size
        } else {
            samples.div_ceil(self.batch_size)
        }
    }
    /// The epoch of the next batch, unless this one is at its end.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Goes to the start of `epoch`.
    pub fn begin(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.position = 0;
        self.sampler.indices(epoch, &mut self.order);
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        Place {
            epoch: self.epoch,
            position: self.position,
        }
    }

    /// Goes to where it was: the batches that followed then follow again.
    pub fn return_to(&mut self, place: Place) {
        self.begin(place.epoch);
        self.position = place.position;
    }

    /// The next batch; after the last of an epoch, the first of the next epoch.
    pub fn next_batch(&mut self) -> HostBatch<'_> {
        if self.remaining() == 0 {
            self.begin(self.epoch + 1);
        }
        self.load()
    }

    /// As [`Loader::next_batch`], into buffers that are exchanged for the loader's own; those may be empty. Returns the batch's samples.
    pub(super) fn next_into(&mut self, inputs: &mut Vec<f32>, labels: &mut Vec<i32>) -> usize {
        let len = self.next_batch().len;
        let sizes = (self.inputs.len(), self.labels.len());
        std::mem::swap(&mut self.inputs, inputs);
        std::mem::swap(&mut self.labels, labels);
        self.inputs.resize(sizes.0, 0.0);
        self.labels.resize(sizes.1, 0);
        len
    }

    /// The next batch of this epoch.
    pub fn next_in_epoch(&mut self) -> Option<HostBatch<'_>> {
        (self.remaining() > 0).then(|| self.load())
    }

    /// Samples of the next batch of this epoch.
    fn remaining(&self) -> usize {
        let left = (self.order.len() - self.position).min(self.batch_size);
        if self.drop_last && left < self.batch_size {
            0
        } else {
            left
        }
    }

    fn load(&mut self) -> HostBatch<'_> {
        let len = self.remaining();
        let elements = self.inputs.len() / self.batch_size;
        let per_sample = self.labels.len() / self.batch_size;
        let indices = &self.order[self.position..self.position + len];
        for ((index, input), labels) in indices
            .iter()
            .zip(self.inputs.chunks_exact_mut(elements))
            .zip(self.labels.chunks_exact_mut(per_sample))
        {
            self.dataset.write(*index, input);
            self.dataset.write_labels(*index, labels);
        }
        self.position += len;
        HostBatch {
            inputs: &self.inputs[..len * elements],
            labels: &self.labels[..len * per_sample],
            len,
        }
    }
}
