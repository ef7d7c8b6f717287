//! Batch norm: per channel over the samples and positions of each normalization chunk.
//!
//! Every chunk is normalized by itself and keeps its own mean and reciprocal deviation for backward; running statistics
//! come from chunk 0 alone, as DataParallel keeps those of replica 0. Running variances are stored unbiased.
//! Reference: Ioffe and Szegedy 2015; PyTorch's `nn.BatchNorm2d`.
use super::Tail;
use crate::backend::{Backend, BackendError, Category};
use crate::kernel::{Gate, Kernel, Then};
use crate::layer::{Layer, Mode, Result, Step, Wires};
use crate::tensor::{Dtype, Span};

/// γ or β, and its gradient; both empty without affine.
#[derive(Clone, Copy, Debug)]
pub struct Learnable {
    /// The parameter.
    pub value: Span,
    /// Its gradient.
    pub gradient: Span,
}

impl Learnable {
    /// No parameter.
    pub const NONE: Self = Self {
        value: Span::EMPTY,
        gradient: Span::EMPTY,
    };
}

/// What batch norm is made of, apart from what it keeps between forward and backward.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `3.batch-norm`, for messages.
    pub name: String,
    /// Channels C.
    pub channels: usize,
    /// Positions per sample and channel.
    pub spatial: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Weight of the new batch in the running statistics; none: cumulative average.
    pub momentum: Option<f32>,
    /// γ.
    pub gamma: Learnable,
    /// β.
    pub beta: Learnable,
    /// `[C]`.
    pub running_mean: Span,
    /// `[C]`.
    pub running_variance: Span,
    /// i64, one element.
    pub tracked: Span,
    /// What it does of the nodes behind it.
    pub tail: Tail,
}

/// The statistics of one chunk, and room for its sums in backward.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// `[C]`.
    pub mean: Span,
    /// `[C]`, biased.
    pub variance: Span,
    /// `[C]`.
    pub rstd: Span,
    /// `[2C]`: Σ dy and Σ dy·(x − mean).
    pub sums: Span,
    /// One element: values per channel.
    pub count: Span,
}

impl Statistics {
    /// Room for `chunks` chunks of `channels` channels.
    ///
    /// # Errors
    /// Out of memory.
    pub fn allocate(
        backend: &mut dyn Backend,
        channels: usize,
        chunks: usize,
    ) -> Result<Vec<Self>> {
        let each = 5 * channels + 1;
        let all = backend.allocate(Category::Activations, Dtype::F32, chunks * each)?;
        let chunk = |k: usize| {
            let own = all.slice(k * each..(k + 1) * each);
            Self {
                mean: own.slice(0..channels),
                variance: own.slice(channels..2 * channels),
                rstd: own.slice(2 * channels..3 * channels),
                sums: own.slice(3 * channels..5 * channels),
                count: own.slice(5 * channels..each),
            }
        };
        Ok((0..chunks).map(chunk).collect())
    }
}

/// Batch norm on one device.
pub struct BatchNorm {
    settings: Settings,
    chunks: Vec<Statistics>,
}

impl BatchNorm {
    /// Batch norm for chunk lists of at most `max_chunks` chunks.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &mut dyn Backend, settings: Settings, max_chunks: usize) -> Result<Self> {
        let chunks = Statistics::allocate(backend, settings.channels, max_chunks)?;
        Ok(Self { settings, chunks })
    }

    fn train_chunk(
        &self,
        step: &mut Step<'_>,
        wires: &Wires,
        chunk: usize,
        start: usize,
    ) -> Result<()> {
        let (s, kept) = (&self.settings, self.chunks[chunk]);
        let samples = step.chunks[chunk];
        let rows = samples * s.spatial;
        if rows == 1 {
            return Err(BackendError::OneElement {
                layer: s.name.clone(),
                chunk,
                samples,
            });
        }
        let x = wires.part(wires.inputs[0], start..start + samples);
        let y = wires.part(wires.output, start..start + samples);
        step.launch(Kernel::BatchStatistics {
            x,
            mean: kept.mean,
            variance: kept.variance,
            rows,
        })?;
        step.launch(Kernel::ReciprocalDeviation {
            variance: kept.variance,
            rstd: kept.rstd,
            eps: s.eps,
        })?;
        step.launch(Kernel::Fill {
            to: kept.count,
            value: rows as f32,
        })?;
        if chunk == 0 {
            step.launch(s.update_running(&kept))?;
        }
        let then = s.tail.then(wires, start..start + samples);
        step.launch(s.normalize(x, kept.mean, kept.rstd, y, rows, then))
    }

    fn train_chunk_backward(
        &self,
        step: &mut Step<'_>,
        wires: &Wires,
        chunk: usize,
        start: usize,
    ) -> Result<()> {
        let (s, kept) = (&self.settings, self.chunks[chunk]);
        let samples = start..start + step.chunks[chunk];
        let rows = samples.len() * s.spatial;
        let x = wires.part(wires.inputs[0], samples.clone());
        let d_y = wires.part(wires.d_output, samples.clone());
        step.launch(Kernel::BatchBackwardReduce {
            x,
            d_y,
            mean: kept.mean,
            sums: kept.sums,
            rows,
            gate: s.gate(kept.rstd),
        })?;
        s.accumulate_affine(step, &kept)?;
        let Some((d_x, write)) = wires.d_inputs[0] else {
            return Ok(());
        };
        let d_x = wires.part(d_x, samples);
        let Statistics {
            mean,
            rstd,
            sums,
            count,
            ..
        } = kept;
        step.launch(Kernel::BatchBackwardInput {
            x,
            d_y,
            mean,
            rstd,
            gamma: s.gamma.value,
            sums,
            count,
            d_x,
            rows,
            write,
            gate: s.gate(rstd),
        })
    }
}

impl Settings {
    /// The kernel that folds `from` into the running statistics.
    pub(super) fn update_running(&self, from: &Statistics) -> Kernel {
        Kernel::UpdateRunning {
            mean: from.mean,
            variance: from.variance,
            count: from.count,
            running_mean: self.running_mean,
            running_variance: self.running_variance,
            tracked: self.tracked,
            momentum: self.momentum,
        }
    }

    /// The kernel y = γ·(x − mean)·rstd + β.
    pub(super) fn normalize(
        &self,
        x: Span,
        mean: Span,
        rstd: Span,
        y: Span,
        rows: usize,
        then: Then,
    ) -> Kernel {
        Kernel::BatchNormalize {
            x,
            mean,
            rstd,
            gamma: self.gamma.value,
            beta: self.beta.value,
            y,
            rows,
            then,
        }
    }

    /// How backward's kernels find out what passes a rectifier right behind the norm. With an addition between them they cannot:
    /// [`Settings::pass_shortcut`] comes before them.
    pub(super) fn gate(&self, rstd: Span) -> Gate {
        match self.tail {
            Tail::Relu => Gate::Again {
                beta: self.beta.value,
                gamma: self.gamma.value,
                rstd,
            },
            Tail::None | Tail::AddRelu => Gate::Open,
        }
    }

    /// Enqueues what an addition and a rectifier do to the output's gradient in training.
    pub(super) fn pass_shortcut(&self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        if self.tail == Tail::AddRelu {
            self.tail.gate(step, wires)?;
            self.tail.pass_on(step, wires)?;
        }
        Ok(())
    }

    /// Enqueues dγ += Σ dy·x̂ and dβ += Σ dy, from sums that are there already.
    pub(super) fn accumulate_affine(&self, step: &mut Step<'_>, kept: &Statistics) -> Result<()> {
        if self.gamma.value.is_empty() {
            return Ok(());
        }
        step.launch(Kernel::BatchBackwardAffine {
            sums: kept.sums,
            rstd: kept.rstd,
            d_gamma: self.gamma.gradient,
            d_beta: self.beta.gradient,
        })
    }

    /// Evaluation: the running statistics, which do not depend on the chunks.
    pub(super) fn eval(&self, step: &mut Step<'_>, wires: &Wires, kept: &Statistics) -> Result<()> {
        let (x, y) = (
            wires.cut(wires.inputs[0], step.batch),
            wires.cut(wires.output, step.batch),
        );
        step.launch(Kernel::ReciprocalDeviation {
            variance: self.running_variance,
            rstd: kept.rstd,
            eps: self.eps,
        })?;
        step.launch(self.normalize(
            x,
            self.running_mean,
            kept.rstd,
            y,
            step.batch * self.spatial,
            self.tail.then(wires, 0..step.batch),
        ))
    }

    /// Backward of [`Settings::eval`]: the statistics are constants.
    pub(super) fn eval_backward(
        &self,
        step: &mut Step<'_>,
        wires: &Wires,
        kept: &Statistics,
    ) -> Result<()> {
        let rows = step.batch * self.spatial;
        self.tail.gate(step, wires)?;
        self.tail.pass_on(step, wires)?;
        let (x, d_y) = (
            wires.cut(wires.inputs[0], step.batch),
            wires.cut(wires.d_output, step.batch),
        );
        if !self.gamma.value.is_empty() {
            step.launch(Kernel::BatchBackwardReduce {
                x,
                d_y,
                mean: self.running_mean,
                sums: kept.sums,
                rows,
                gate: Gate::Open,
            })?;
            self.accumulate_affine(step, kept)?;
        }
        let Some((d_x, write)) = wires.d_input(step.batch) else {
            return Ok(());
        };
        step.launch(Kernel::BatchBackwardEval {
            d_y,
            rstd: kept.rstd,
            gamma: self.gamma.value,
            d_x,
            rows,
            write,
        })
    }
}

impl Layer for BatchNorm {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        if step.mode == Mode::Eval {
            return self.settings.eval(step, wires, &self.chunks[0]);
        }
        let mut start = 0;
        for chunk in 0..step.chunks.len() {
            if step.chunks[chunk] > 0 {
                self.train_chunk(step, wires, chunk, start)?;
            }
            start += step.chunks[chunk];
        }
        Ok(())
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        if step.mode == Mode::Eval {
            return self.settings.eval_backward(step, wires, &self.chunks[0]);
        }
        self.settings.pass_shortcut(step, wires)?;
        let mut start = 0;
        for chunk in 0..step.chunks.len() {
            if step.chunks[chunk] > 0 {
                self.train_chunk_backward(step, wires, chunk, start)?;
            }
            start += step.chunks[chunk];
        }
        Ok(())
    }

    fn kind(&self) -> &'static str {
        "batch-norm"
    }
}
