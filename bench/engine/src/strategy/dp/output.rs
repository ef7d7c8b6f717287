//! What DataParallel gathers on device 0, the loss there, and the gradient that goes back.
//!
//! `gathered`: the outputs of all replicas, one loss over them, its gradient in parts. `replica`: the replicas' losses,
//! their mean, and for each replica the gradient of that mean by its loss, which is 1/replicas.
use super::DpLoss;
use super::device::Device;
use crate::backend::{Backend, BackendError, Category, Stream};
use crate::comm::links::{Copy, Links};
use crate::kernel::{Kernel, Write};
use crate::probe::Phase;
use crate::strategy::Result;
use crate::strategy::replica::Replica;
use crate::tensor::{Dtype, Span};

/// Spans on device 0.
pub(super) struct Output {
    loss: DpLoss,
    /// Elements that one sample (gathered) or one replica contributes.
    width: usize,
    /// `[max_batch, classes]`, or a loss for each replica.
    values: Span,
    /// The gradient of `values`.
    gradients: Span,
    /// With `dp_loss = replica`: the mean loss.
    mean: Span,
    /// For how many replicas `gradients` was last set.
    replicas: usize,
}

impl Output {
    pub(super) fn new(
        first: &mut Replica,
        max_batch: usize,
        devices: usize,
        loss: DpLoss,
    ) -> Result<Self> {
        let (width, len) = match loss {
            DpLoss::Gathered => {
                let classes = first.program.output_shape().elements();
                (classes, max_batch * classes)
            }
            DpLoss::Replica => (1, devices),
        };
        let mut allocate = |len| first.backend.allocate(Category::Workspace, Dtype::F32, len);
        let (values, gradients) = (allocate(len)?, allocate(len)?);
        let mean = if loss == DpLoss::Replica {
            allocate(1)?
        } else {
            Span::EMPTY
        };
        if loss == DpLoss::Replica {
            first.reported = mean;
        }
        Ok(Self {
            loss,
            width,
            values,
            gradients,
            mean,
            replicas: 0,
        })
    }

    /// The place of device `device`'s part.
    fn place(&self, device: usize, chunk: usize, samples: usize) -> std::ops::Range<usize> {
        match self.loss {
            DpLoss::Gathered => {
                device * chunk * self.width..(device * chunk + samples) * self.width
            }
            DpLoss::Replica => device..device + 1,
        }
    }

    /// What a device contributes.
    fn source(&self, device: &Replica, samples: usize) -> Span {
        match self.loss {
            DpLoss::Gathered => device.program.cut(device.program.output(), samples),
            DpLoss::Replica => device.loss.loss(),
        }
    }

    /// Copies every replica's part to its place; `chunk` is the size of all chunks but the last.
    pub(super) fn gather<'a>(
        &self,
        first: &mut Replica,
        others: impl Iterator<Item = &'a Device>,
        links: &dyn Links,
        chunk: usize,
        copy: bool,
    ) -> std::result::Result<(), BackendError> {
        let own = Kernel::Copy {
            from: self.source(first, chunk),
            to: self.values.slice(self.place(0, chunk, chunk)),
            write: Write::Overwrite,
        };
        first.backend.launch(Stream::Compute, own)?;
        for other in others.filter(|_| copy) {
            let from = (other.index, self.source(&other.replica, other.len));
            let to = (
                0,
                self.values.slice(self.place(other.index, chunk, other.len)),
            );
            links.copy(
                &mut *first.backend,
                other.done(),
                Copy {
                    phase: Phase::Gather,
                    from,
                    to,
                },
            )?;
        }
        Ok(())
    }

    /// The mean over all samples (gathered) or over the replicas' means, and its gradient.
    pub(super) fn compute_loss(
        &mut self,
        first: &mut Replica,
        len: usize,
        replicas: usize,
    ) -> Result<()> {
        let backend = &mut *first.backend;
        match self.loss {
            DpLoss::Gathered => {
                let elements = len * self.width;
                let (logits, d_logits) =
                    (self.values.first(elements), self.gradients.first(elements));
                first
                    .loss
                    .compute(backend, logits, d_logits, len, 1.0 / len as f32)?;
            }
            DpLoss::Replica => self.average(backend, replicas)?,
        }
        Ok(())
    }

    fn average(
        &mut self,
        backend: &mut dyn Backend,
        replicas: usize,
    ) -> std::result::Result<(), BackendError> {
        let (values, gradients) = (self.values.first(replicas), self.gradients.first(replicas));
        if self.replicas != replicas {
            self.replicas = replicas;
            let each = 1.0 / replicas as f32;
            backend.launch(
                Stream::Compute,
                Kernel::Fill {
                    to: gradients,
                    value: each,
                },
            )?;
        }
        // The mean is the product of the losses with their weights 1/replicas, which are also its gradient.
        let mean = Kernel::Matmul {
            a: values,
            b: gradients,
            c: self.mean,
            m: 1,
            n: 1,
            k: replicas,
            transpose_a: false,
            transpose_b: false,
            write: Write::Overwrite,
        };
        backend.launch(Stream::Compute, mean)
    }

    /// What device `device` gets back.
    pub(super) fn gradient_for(&self, device: usize, chunk: usize, len: usize) -> Span {
        let samples = chunk.min(len - device * chunk);
        self.gradients.slice(self.place(device, chunk, samples))
    }
}
