//! What DataParallel gathers on the output device, the loss there, and the gradient that goes back.
//!
//! `gathered`: the outputs of all replicas, one loss over them, its gradient in parts. `replica`: the replicas' losses,
//! their mean, and for each replica the gradient of that mean by its loss, which is 1/replicas. Of K micro-batches each
//! contributes 1/K of that.
use std::ops::Range;

use super::DpLoss;
use crate::backend::{Backend, BackendError, Category, Completion, Stream};
use crate::comm::links::{Copy, Links};
use crate::kernel::{Kernel, Write};
use crate::probe::Phase;
use crate::strategy::Result;
use crate::strategy::micro_batch::Nth;
use crate::strategy::replica::Replica;
use crate::tensor::{Dtype, Span};

/// What one replica contributes.
struct Source {
    /// Its device.
    device: usize,
    from: Span,
    /// Its place in `values`.
    to: Span,
    /// It has been computed.
    after: Completion,
}

/// Which part of what is gathered is a replica's.
#[derive(Clone, Copy)]
struct Parts {
    loss: DpLoss,
    /// Elements that one sample (gathered) or one replica contributes.
    width: usize,
}

impl Parts {
    /// The place of the part of replica `place`, whose chunk has `samples`, as all chunks before it have `chunk`.
    fn of(self, place: usize, chunk: usize, samples: usize) -> Range<usize> {
        match self.loss {
            DpLoss::Gathered => place * chunk * self.width..(place * chunk + samples) * self.width,
            DpLoss::Replica => place..place + 1,
        }
    }
}

/// The gradient of what was gathered, on the output device.
#[derive(Clone, Copy)]
pub(super) struct Gradients {
    parts: Parts,
    all: Span,
}

impl Gradients {
    /// What replica `place` gets back, of a batch of `len` samples in chunks of `chunk`.
    pub(super) fn of(self, place: usize, chunk: usize, len: usize) -> Span {
        let samples = chunk.min(len - place * chunk);
        self.all.slice(self.parts.of(place, chunk, samples))
    }
}

/// Spans on the output device.
pub(super) struct Output {
    parts: Parts,
    /// `[max_batch, classes]`, or a loss for each replica.
    values: Span,
    /// The gradient of `values`.
    gradients: Span,
    /// With `dp_loss = replica`: the mean loss, divided by K.
    mean: Span,
    /// For how many replicas `gradients` was last set.
    replicas: usize,
    /// Of the present step, in the order of the replicas.
    sources: Vec<Source>,
}

impl Output {
    pub(super) fn new(
        replica: &mut Replica,
        max_batch: usize,
        devices: usize,
        loss: DpLoss,
    ) -> Result<Self> {
        // Outputs are of the type of values, losses f32.
        let (width, len, dtype) = match loss {
            DpLoss::Gathered => {
                let classes = replica.program.output_shape().elements();
                let dtype = replica.program.output().dtype();
                (classes, max_batch * classes, dtype)
            }
            DpLoss::Replica => (1, devices, Dtype::F32),
        };
        let backend = &mut *replica.backend;
        let mut allocate = |len| backend.allocate(Category::Workspace, dtype, len);
        let (values, gradients) = (allocate(len)?, allocate(len)?);
        let mean = if loss == DpLoss::Replica {
            allocate(1)?
        } else {
            Span::EMPTY
        };
        Ok(Self {
            parts: Parts { loss, width },
            values,
            gradients,
            mean,
            replicas: 0,
            sources: Vec::with_capacity(devices),
        })
    }

    /// What a replica contributes.
    pub(super) fn source(&self, replica: &Replica, samples: usize) -> Span {
        match self.parts.loss {
            DpLoss::Gathered => replica.program.cut(replica.program.output(), samples),
            DpLoss::Replica => replica.loss.loss(),
        }
    }

    /// Forgets what the last step gathered.
    pub(super) fn begin(&mut self) {
        self.sources.clear();
    }

    /// Adds what replica `place` on `device` contributes once it has done what it does `after`; `chunk` is the size of all chunks
    /// but the last.
    pub(super) fn add(
        &mut self,
        place: usize,
        [chunk, samples]: [usize; 2],
        (device, from): (usize, Span),
        after: &Completion,
    ) {
        let to = self.values.slice(self.parts.of(place, chunk, samples));
        self.sources.push(Source {
            device,
            from,
            to,
            after: after.clone(),
        });
    }

    /// Copies every replica's part to its place: that of the output device `own`, and with `copy` those of the others.
    pub(super) fn gather(
        &self,
        replica: &mut Replica,
        own: usize,
        links: &dyn Links,
        copy: bool,
    ) -> std::result::Result<(), BackendError> {
        let backend = &mut *replica.backend;
        for source in &self.sources {
            let (from, to) = (source.from, source.to);
            if source.device == own {
                let write = Write::Overwrite;
                backend.launch(Stream::Compute, Kernel::Copy { from, to, write })?;
            } else if copy {
                let copy = Copy {
                    phase: Phase::Gather,
                    from: (source.device, from),
                    to: (own, to),
                };
                links.copy(backend, &source.after, copy)?;
            }
        }
        Ok(())
    }

    /// The mean over all samples (gathered) or over the replicas' means, as the micro-batch's part of the step's, and its gradient.
    pub(super) fn compute_loss(
        &mut self,
        replica: &mut Replica,
        nth: Nth,
        len: usize,
        replicas: usize,
    ) -> std::result::Result<(), BackendError> {
        let backend = &mut *replica.backend;
        if self.parts.loss == DpLoss::Replica {
            self.average(backend, nth, replicas)?;
            return replica.report(self.mean, nth);
        }
        let elements = len * self.parts.width;
        let (logits, d_logits) = (self.values.first(elements), self.gradients.first(elements));
        let scale = nth.loss_scale(len);
        replica
            .loss
            .compute(backend, logits, d_logits, len, scale)?;
        replica.report(replica.loss.loss(), nth)
    }

    fn average(
        &mut self,
        backend: &mut dyn Backend,
        nth: Nth,
        replicas: usize,
    ) -> std::result::Result<(), BackendError> {
        let (values, gradients) = (self.values.first(replicas), self.gradients.first(replicas));
        if self.replicas != replicas {
            self.replicas = replicas;
            let each = nth.loss_scale(replicas);
            backend.launch(
                Stream::Compute,
                Kernel::Fill {
                    to: gradients,
                    value: each,
                },
            )?;
        }
        // The mean is the product of the losses with their weights 1/(K·replicas), which are also its gradient.
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

    /// The gradient of what was gathered.
    pub(super) fn gradients(&self) -> Gradients {
        Gradients {
            parts: self.parts,
            all: self.gradients,
        }
    }
}
