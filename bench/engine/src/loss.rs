//! Softmax cross-entropy over a batch of logits, and the number of errors.
//!
//! It stands outside the program, since DataParallel computes it on the gathered output. The mean is taken by `scale`:
//! 1/batch for one device, 1/K·1/batch under accumulation. Samples with several labels, as sequences of tokens have, count alike: the
//! mean over a sample's labels comes first. Reference: PyTorch's `nn.CrossEntropyLoss`.
use crate::backend::{Backend, Category, HostSlice, HostSliceMut, Result, Stream};
use crate::kernel::Kernel;
use crate::tensor::{Dtype, Span};

/// The label of a position that is not to be predicted: PyTorch's default `ignore_index`.
pub const UNLABELLED: i32 = -100;

/// Room for the loss of one device's logits.
pub struct Loss {
    classes: usize,
    positions: usize,
    labels: Span,
    losses: Span,
    loss: Span,
    errors: Span,
}

impl Loss {
    /// Room for at most `max_batch` samples of `classes` classes, each with a label for each of `positions`.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &mut dyn Backend,
        classes: usize,
        positions: usize,
        max_batch: usize,
    ) -> Result<Self> {
        let labels = max_batch * positions;
        Ok(Self {
            classes,
            positions,
            labels: backend.allocate(Category::Workspace, Dtype::I32, labels)?,
            losses: backend.allocate(Category::Workspace, Dtype::F32, max_batch)?,
            loss: backend.allocate(Category::Workspace, Dtype::F32, 1)?,
            errors: backend.allocate(Category::Workspace, Dtype::I32, 2)?,
        })
    }

    /// Labels of a sample.
    pub fn positions(&self) -> usize {
        self.positions
    }
    /// i32 `[samples, positions]`: a scatter may write them on the device.
    pub fn labels(&self, samples: usize) -> Span {
        self.labels.first(samples * self.positions)
    }
    /// f32 `[max_batch]`: loss of each sample of the last call.
    pub fn losses(&self) -> Span {
        self.losses
    }
    /// f32, one element: the scaled sum of the last call.
    pub fn loss(&self) -> Span {
        self.loss
    }

    /// Enqueues the labels of a batch on the compute stream.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn upload_labels(&self, backend: &mut dyn Backend, labels: &[i32]) -> Result<()> {
        backend.upload(
            Stream::Compute,
            HostSlice::I32(labels),
            self.labels.first(labels.len()),
        )
    }

    /// Enqueues losses, loss = scale·Σ losses, and d_logits = scale·(softmax − onehot) for `batch` samples; `logits` and
    /// `d_logits` are cut to them. Does not block.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn compute(
        &self,
        backend: &mut dyn Backend,
        logits: Span,
        d_logits: Span,
        batch: usize,
        scale: f32,
    ) -> Result<()> {
        if batch == 0 {
            return backend.launch(
                Stream::Compute,
                Kernel::Fill {
                    to: self.loss,
                    value: 0.0,
                },
            );
        }
        let kernel = Kernel::SoftmaxCrossEntropy {
            logits,
            labels: self.labels(batch),
            losses: self.losses.first(batch),
            loss: self.loss,
            d_logits,
            batch,
            positions: self.positions,
            classes: self.classes,
            scale,
        };
        backend.launch(Stream::Compute, kernel)
    }

    /// The loss of the last call. Blocks.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn read(&self, backend: &mut dyn Backend) -> Result<f32> {
        let mut loss = [0.0];
        backend.download(self.loss, HostSliceMut::F32(&mut loss))?;
        Ok(loss[0])
    }

    /// Counts the labels that are not their row's largest logit, and all labels. Blocks.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn errors(&self, backend: &mut dyn Backend, logits: Span, batch: usize) -> Result<Errors> {
        if batch == 0 {
            return Ok(Errors::default());
        }
        let (labels, errors, classes) = (self.labels(batch), self.errors, self.classes);
        backend.launch(
            Stream::Compute,
            Kernel::CountErrors {
                logits,
                labels,
                errors,
                rows: batch * self.positions,
                classes,
            },
        )?;
        let mut count = [0; 2];
        backend.download(errors, HostSliceMut::I32(&mut count))?;
        let [wrong, labels] = count.map(|count| count as usize);
        Ok(Errors { wrong, labels })
    }
}

/// Predictions that were wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Labels that are not their row's largest logit.
    pub wrong: usize,
    /// All labels.
    pub labels: usize,
}
