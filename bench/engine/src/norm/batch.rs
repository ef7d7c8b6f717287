//! Batch norm: per channel over the samples and positions of each normalization chunk.
//!
//! Every chunk is normalized by itself and keeps its own mean and reciprocal deviation for backward; running statistics
//! come from chunk 0 alone, as DataParallel keeps those of replica 0. Running variances are stored unbiased.
//! Reference: Ioffe and Szegedy 2015; PyTorch's `nn.BatchNorm2d`.
use std::ops::Range;

use super::Tail;
pub use super::kept::{Learnable, Statistics};
use super::library::Library;
use crate::backend::{Backend, BackendError};
use crate::kernel::{Gate, Kernel};
use crate::layer::{Layer, Mode, NormStatistics, Result, Step, Wires};
use crate::tensor::Span;

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
    /// The token whose positions are left out; the layer's second input is then the tokens, and there is no tail.
    pub padding: Option<usize>,
    /// What it does of the nodes behind it.
    pub tail: Tail,
}

/// Batch norm on one device.
pub struct BatchNorm {
    settings: Settings,
    chunks: Vec<Statistics>,
    /// Who computes it, where that is not our kernels.
    library: Option<Library>,
}

impl BatchNorm {
    /// Batch norm for chunk lists of at most `max_chunks` chunks.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &mut dyn Backend, settings: Settings, max_chunks: usize) -> Result<Self> {
        let chunks = Statistics::allocate(backend, settings.channels, max_chunks)?;
        let library = Library::of(backend, &settings, &chunks)?;
        Ok(Self {
            settings,
            chunks,
            library,
        })
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
        let samples = start..start + samples;
        if let Some(library) = self.library(step.mode) {
            return library.forward(step, wires, (s, &kept), samples, chunk == 0);
        }
        s.take_statistics(step, wires, &kept, samples.clone())?;
        if chunk == 0
            && let Some(update) = s.update_running(&kept, step.mode)
        {
            step.launch(update)?;
        }
        step.launch(s.normalize(wires, samples, [kept.mean, kept.rstd]))
    }

    /// The library, in the modes that are its.
    fn library(&self, mode: Mode) -> Option<&Library> {
        let own = matches!(mode, Mode::Train | Mode::Eval | Mode::Dropout);
        self.library.as_ref().filter(|_| own)
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
        if let Some(library) = self.library(step.mode) {
            return library.backward(step, wires, (s, &kept), samples);
        }
        step.launch(s.backward_reduce(
            wires,
            samples.clone(),
            kept.mean,
            &kept,
            s.gate(kept.rstd),
        ))?;
        s.accumulate_affine(step, &kept)?;
        match s.backward_input(wires, samples, &kept) {
            Some(kernel) => step.launch(kernel),
            None => Ok(()),
        }
    }
}

impl Settings {
    /// The kernel that folds `from` into the running statistics, if `mode` does.
    pub(super) fn update_running(&self, from: &Statistics, mode: Mode) -> Option<Kernel> {
        let momentum = match mode {
            Mode::Train => self.momentum,
            Mode::Reestimate => None,
            Mode::Eval | Mode::Dropout | Mode::BatchStatistics => return None,
        };
        Some(Kernel::UpdateRunning {
            mean: from.mean,
            variance: from.variance,
            count: from.count,
            running_mean: self.running_mean,
            running_variance: self.running_variance,
            tracked: self.tracked,
            momentum,
        })
    }

    /// What the layer keeps and has taken.
    pub(super) fn statistics<'a>(&'a self, chunks: &'a [Statistics]) -> NormStatistics<'a> {
        NormStatistics {
            name: &self.name,
            running_mean: self.running_mean,
            running_variance: self.running_variance,
            chunks,
        }
    }

    /// Enqueues mean, variance, reciprocal deviation and count of some samples.
    pub(super) fn take_statistics(
        &self,
        step: &mut Step<'_>,
        wires: &Wires,
        to: &Statistics,
        samples: Range<usize>,
    ) -> Result<()> {
        let rows = samples.len() * self.spatial;
        let x = wires.part(wires.inputs[0], samples.clone());
        let Statistics {
            mean,
            variance,
            rstd,
            count,
            ..
        } = *to;
        match self.padding {
            None => {
                step.launch(Kernel::BatchStatistics {
                    x,
                    mean,
                    variance,
                    rows,
                })?;
                step.launch(Kernel::Fill {
                    to: count,
                    value: rows as f32,
                })?;
            }
            Some(padding) => step.launch(Kernel::MaskedStatistics {
                x,
                tokens: wires.part(wires.inputs[1], samples),
                padding,
                mean,
                variance,
                count,
                rows,
            })?,
        }
        step.launch(Kernel::ReciprocalDeviation {
            variance,
            rstd,
            eps: self.eps,
        })
    }

    /// The kernel y = γ·(x − mean)·rstd + β of some samples, and what comes behind it.
    pub(super) fn normalize(
        &self,
        wires: &Wires,
        samples: Range<usize>,
        [mean, rstd]: [Span; 2],
    ) -> Kernel {
        let rows = samples.len() * self.spatial;
        let [x, y] = [wires.inputs[0], wires.output].map(|span| wires.part(span, samples.clone()));
        let (gamma, beta) = (self.gamma.value, self.beta.value);
        match self.padding {
            None => Kernel::BatchNormalize {
                x,
                mean,
                rstd,
                gamma,
                beta,
                y,
                rows,
                then: self.tail.then(wires, samples),
            },
            Some(padding) => Kernel::MaskedNormalize {
                x,
                tokens: wires.part(wires.inputs[1], samples),
                padding,
                mean,
                rstd,
                gamma,
                beta,
                y,
                rows,
            },
        }
    }

    /// The kernel that sums dy and dy·(x − mean) over some samples.
    pub(super) fn backward_reduce(
        &self,
        wires: &Wires,
        samples: Range<usize>,
        mean: Span,
        to: &Statistics,
        gate: Gate,
    ) -> Kernel {
        let (rows, sums) = (samples.len() * self.spatial, to.sums);
        let [x, d_y] =
            [wires.inputs[0], wires.d_output].map(|span| wires.part(span, samples.clone()));
        match self.padding {
            None => Kernel::BatchBackwardReduce {
                x,
                d_y,
                mean,
                sums,
                rows,
                gate,
            },
            Some(padding) => Kernel::MaskedBackwardReduce {
                x,
                d_y,
                tokens: wires.part(wires.inputs[1], samples),
                padding,
                mean,
                sums,
                rows,
            },
        }
    }

    /// The kernel of the input's gradient of some samples, if anybody needs it.
    pub(super) fn backward_input(
        &self,
        wires: &Wires,
        samples: Range<usize>,
        kept: &Statistics,
    ) -> Option<Kernel> {
        let (d_x, write) = wires.d_inputs[0]?;
        let rows = samples.len() * self.spatial;
        let [x, d_y, d_x] =
            [wires.inputs[0], wires.d_output, d_x].map(|span| wires.part(span, samples.clone()));
        let Statistics {
            mean,
            rstd,
            sums,
            count,
            ..
        } = *kept;
        let gamma = self.gamma.value;
        Some(match self.padding {
            None => Kernel::BatchBackwardInput {
                x,
                d_y,
                mean,
                rstd,
                gamma,
                sums,
                count,
                d_x,
                rows,
                write,
                gate: self.gate(rstd),
            },
            Some(padding) => Kernel::MaskedBackwardInput {
                x,
                d_y,
                tokens: wires.part(wires.inputs[1], samples),
                padding,
                mean,
                rstd,
                gamma,
                sums,
                count,
                d_x,
                rows,
                write,
            },
        })
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
        step.launch(Kernel::ReciprocalDeviation {
            variance: self.running_variance,
            rstd: kept.rstd,
            eps: self.eps,
        })?;
        step.launch(self.normalize(wires, 0..step.batch, [self.running_mean, kept.rstd]))
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
        let d_y = wires.cut(wires.d_output, step.batch);
        if !self.gamma.value.is_empty() {
            let whole = 0..step.batch;
            step.launch(self.backward_reduce(wires, whole, self.running_mean, kept, Gate::Open))?;
            self.accumulate_affine(step, kept)?;
        }
        let Some((d_x, write)) = wires.d_input(step.batch) else {
            return Ok(());
        };
        let (rstd, gamma) = (kept.rstd, self.gamma.value);
        step.launch(match self.padding {
            None => Kernel::BatchBackwardEval {
                d_y,
                rstd,
                gamma,
                d_x,
                rows,
                write,
            },
            Some(padding) => Kernel::MaskedBackwardEval {
                d_y,
                tokens: wires.cut(wires.inputs[1], step.batch),
                padding,
                rstd,
                gamma,
                d_x,
                rows,
                write,
            },
        })
    }
}

impl Layer for BatchNorm {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        if !step.mode.takes_statistics() {
            let (s, kept) = (&self.settings, &self.chunks[0]);
            return match self.library(step.mode) {
                Some(library) => library.eval(step, wires, (s, kept)),
                None => s.eval(step, wires, kept),
            };
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
        if !step.mode.takes_statistics() {
            return self.settings.eval_backward(step, wires, &self.chunks[0]);
        }
        match self.library(step.mode) {
            Some(_) => {
                self.settings.tail.gate(step, wires)?;
                self.settings.tail.pass_on(step, wires)?;
            }
            None => self.settings.pass_shortcut(step, wires)?,
        }
        let mut start = 0;
        for chunk in 0..step.chunks.len() {
            if step.chunks[chunk] > 0 {
                self.train_chunk_backward(step, wires, chunk, start)?;
            }
            start += step.chunks[chunk];
        }
        Ok(())
    }

    fn statistics(&self) -> Option<NormStatistics<'_>> {
        Some(self.settings.statistics(&self.chunks))
    }

    fn kind(&self) -> &'static str {
        "batch-norm"
    }
}
