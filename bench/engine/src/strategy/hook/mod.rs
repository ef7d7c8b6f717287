//! DDP's communication hooks: how the gradients of one bucket become their mean over the ranks.
//!
//! Contract: a hook is asked for each bucket once a step, in the order of buckets, as soon as the bucket's gradients are enqueued. It
//! enqueues what compresses on the compute stream, collectives and what follows them on the communication stream, and
//! returns the event after which the bucket holds the mean (or what stands for it). All its memory is allocated when it is built.
//! Traced, what it does on the communication stream counts as the all-reduce of its bucket; compressing lies within backward.
//! Reference: `torch/distributed/algorithms/ddp_comm_hooks/{default_hooks,powerSGD_hook}.py`.
mod factors;
mod halves;
mod power_sgd;

use std::ops::Range;

use super::tracing::{Trace, Watched};
use super::{Result, StrategyError};
use crate::backend::{Backend, BackendError, Event, Stream};
use crate::comm::{Communicator, Reduce};
use crate::kernel::Kernel;
use crate::probe::Phase;
use crate::program::{NamedTensor, Parameter};
use crate::tensor::{Dtype, Span};

use halves::Halves;
use power_sgd::PowerSgd;

/// What gradients are exchanged as.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Compression {
    /// As they are: scaled by 1/N as they enter the sum.
    #[default]
    None,
    /// binary16: rounded, divided by N, summed.
    Fp16,
    /// bfloat16: likewise.
    Bf16,
    /// Low-rank approximations.
    PowerSgd(PowerSgdSettings),
}

/// Settings of PowerSGD, with the meaning and defaults of PyTorch's `PowerSGDState`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerSgdSettings {
    /// Rank of the approximation of each matrix.
    pub rank: usize,
    /// Synchronized steps with plain all-reduce before it starts.
    pub start_step: u64,
    /// A tensor is compressed if that makes it smaller by more than this factor. Tensors of one dimension never are, which follows
    /// from the rule for factors of 1 and more; PyTorch would compress them for smaller factors, to more than their size.
    pub min_compression_rate: f64,
    /// Whether what a step lost is added to the next one's gradient.
    pub error_feedback: bool,
    /// Whether a step starts from the last one's factors.
    pub warm_start: bool,
}

impl Default for PowerSgdSettings {
    fn default() -> Self {
        Self {
            rank: 1,
            start_step: 1000,
            min_compression_rate: 2.0,
            error_feedback: true,
            warm_start: true,
        }
    }
}

/// What a hook is built for.
#[derive(Clone, Copy, Debug)]
pub struct HookPlace<'a> {
    /// The gradient arena.
    pub gradients: Span,
    /// Which parameters' gradients lie where in it.
    pub parameters: &'a [Parameter],
    /// Number of ranks.
    pub world_size: usize,
    /// Seed of PowerSGD's first factors; the same on all ranks.
    pub seed: u64,
    /// i32 `[step, ..]` on the device: every step draws other factors.
    pub state: Span,
}

/// The bucket that a hook is asked to reduce.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Its elements of the gradient arena: whole parameters.
    pub range: Range<usize>,
    /// Its number.
    pub index: usize,
    /// Whether it is the last of its step.
    pub last: bool,
}

/// How one rank reduces its buckets.
pub struct Hook {
    gradients: Span,
    kind: Kind,
}

enum Kind {
    Plain { scale: f32 },
    Halves(Halves),
    PowerSgd(Box<PowerSgd>),
}

impl Hook {
    /// Allocates what the hook needs.
    ///
    /// # Errors
    /// [`StrategyError::Setting`], or no memory.
    pub fn new(
        backend: &mut dyn Backend,
        compression: Compression,
        place: &HookPlace<'_>,
    ) -> Result<Self> {
        let kind = match compression {
            Compression::None => Kind::Plain {
                scale: 1.0 / place.world_size as f32,
            },
            Compression::Fp16 => Kind::Halves(Halves::new(backend, Dtype::F16, place)?),
            Compression::Bf16 => Kind::Halves(Halves::new(backend, Dtype::Bf16, place)?),
            Compression::PowerSgd(settings) => {
                Kind::PowerSgd(Box::new(PowerSgd::new(backend, settings, place)?))
            }
        };
        Ok(Self {
            gradients: place.gradients,
            kind,
        })
    }

    /// What the next step's reductions are made of, where that changes in the course of training: steps of one stage enqueue the same.
    pub(super) fn stage(&self) -> u8 {
        match &self.kind {
            Kind::PowerSgd(power) => power.stage(),
            Kind::Plain { .. } | Kind::Halves(_) => 0,
        }
    }

    /// Counts a step whose reductions are enqueued by a replay.
    pub(super) fn pass_over(&mut self) {
        match &mut self.kind {
            Kind::PowerSgd(power) => power.end_step(),
            Kind::Plain { .. } | Kind::Halves(_) => {}
        }
    }

    /// Enqueues the reduction of a bucket; returns the event of its end.
    ///
    /// # Ordering
    /// After everything that is enqueued on the compute stream; the end lies on the communication stream.
    ///
    /// # Errors
    /// The failure of a stream.
    pub fn reduce(
        &mut self,
        backend: &mut dyn Backend,
        communicator: &mut dyn Communicator,
        bucket: &Bucket,
    ) -> std::result::Result<Event, BackendError> {
        let trace = &mut Trace::new(0);
        self.reduce_traced(backend, communicator, trace, bucket)
    }

    pub(super) fn reduce_traced(
        &mut self,
        backend: &mut dyn Backend,
        communicator: &mut dyn Communicator,
        trace: &mut Trace,
        bucket: &Bucket,
    ) -> std::result::Result<Event, BackendError> {
        let gradients = self.gradients.slice(bucket.range.clone());
        let mut lane = Lane {
            backend,
            communicator,
            trace,
            bucket: Some(bucket.index as u16),
        };
        match &mut self.kind {
            Kind::Plain { scale } => lane.plain(gradients, *scale),
            Kind::Halves(halves) => halves.reduce(&mut lane, gradients, bucket),
            Kind::PowerSgd(power) => power.reduce(&mut lane, bucket),
        }
    }

    /// Remembers what the hook carries from step to step. Blocks.
    ///
    /// # Errors
    /// A device's failure.
    pub fn snapshot(&mut self, backend: &mut dyn Backend) -> Result<()> {
        match &mut self.kind {
            Kind::PowerSgd(power) => power.snapshot(backend),
            Kind::Plain { .. } | Kind::Halves(_) => Ok(()),
        }
    }

    /// Goes back to the snapshot. Blocks.
    ///
    /// # Errors
    /// [`StrategyError::NoSnapshot`], or a device's failure.
    pub fn restore(&mut self, backend: &mut dyn Backend) -> Result<()> {
        match &mut self.kind {
            Kind::PowerSgd(power) => power.restore(backend),
            Kind::Plain { .. } | Kind::Halves(_) => Ok(()),
        }
    }

    /// PowerSGD's state in PyTorch's order of elements: `error.<parameter>` and, of compressed ones, `p.<parameter>` `[n, rank]`
    /// and `q.<parameter>` `[m, rank]`. Nothing of other hooks. Blocks.
    ///
    /// # Errors
    /// A device's failure.
    pub fn export(&self, backend: &mut dyn Backend) -> Result<Vec<NamedTensor>> {
        match &self.kind {
            Kind::PowerSgd(power) => power.export(backend),
            Kind::Plain { .. } | Kind::Halves(_) => Ok(Vec::new()),
        }
    }

    /// Takes over the factors `q.<parameter>` of every compressed tensor, in place of random ones. Blocks.
    ///
    /// # Errors
    /// [`StrategyError::Setting`] where one is missing or of another size; a device's failure.
    pub fn import_factors(
        &mut self,
        backend: &mut dyn Backend,
        tensors: &[NamedTensor],
    ) -> Result<()> {
        match &mut self.kind {
            Kind::PowerSgd(power) => power.import_factors(backend, tensors),
            Kind::Plain { .. } | Kind::Halves(_) => Err(StrategyError::Setting {
                setting: "compression",
                value: "not PowerSGD".to_owned(),
                expected: "PowerSGD, which alone has factors",
            }),
        }
    }
}

/// What a hook works with while it enqueues one bucket.
struct Lane<'a> {
    backend: &'a mut dyn Backend,
    communicator: &'a mut dyn Communicator,
    trace: &'a mut Trace,
    bucket: Option<u16>,
}

impl Lane<'_> {
    /// A kernel before the collectives.
    fn compute(&mut self, kernel: Kernel) -> std::result::Result<(), BackendError> {
        self.backend.launch(Stream::Compute, kernel)
    }

    /// The mean, scaled as it enters the sum.
    fn plain(&mut self, span: Span, scale: f32) -> std::result::Result<Event, BackendError> {
        let after = self.backend.record(Stream::Compute);
        self.all_reduce(span, Reduce::ScaledSum(scale), after)
    }

    /// Enqueues a collective behind `after` and all that the communication stream holds; nothing for no elements.
    fn all_reduce(
        &mut self,
        span: Span,
        reduce: Reduce,
        after: Event,
    ) -> std::result::Result<Event, BackendError> {
        if span.is_empty() {
            return Ok(after);
        }
        let mut watched = Watched {
            inner: &mut *self.communicator,
            trace: &mut *self.trace,
            bucket: self.bucket,
        };
        watched.all_reduce(&mut *self.backend, Phase::AllReduce, span, reduce, after)
    }

    /// Enqueues kernels behind all that the communication stream holds; returns their end.
    fn then(
        &mut self,
        launch: impl FnOnce(&mut Launcher<'_>) -> std::result::Result<(), BackendError>,
    ) -> std::result::Result<Event, BackendError> {
        let opened = self
            .trace
            .open_on(&mut *self.backend, Stream::Communication);
        launch(&mut Launcher(&mut *self.backend))?;
        self.trace
            .close_bucket(&mut *self.backend, Phase::AllReduce, self.bucket, opened);
        Ok(self.backend.record(Stream::Communication))
    }
}

/// Kernels on the communication stream.
struct Launcher<'a>(&'a mut dyn Backend);

impl Launcher<'_> {
    fn run(&mut self, kernel: Kernel) -> std::result::Result<(), BackendError> {
        self.0.launch(Stream::Communication, kernel)
    }
}
