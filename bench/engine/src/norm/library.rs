//! Batch norm by a library of the device (cuDNN) in place of our kernels, where the device asks for that.
//!
//! Contract: what [`super::batch`] computes, by one call forward and one backward for each chunk, in training and forward in evaluation;
//! its other modes, which nobody times, keep our kernels. A rectifier and an addition behind the norm are kernels of their own, on the
//! norm's output in place: the library's gradient is taken of what they let through.
use std::ops::Range;

use super::Tail;
use super::batch::{Learnable, Settings, Statistics};
use crate::backend::{Backend, Category, Stream};
use crate::kernel::{Kernel, Write};
use crate::layer::{Result, Step, Wires};
use crate::tensor::{Dtype, Span};

/// What the library is given beside what our kernels are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Library {
    gamma: Learnable,
    beta: Learnable,
    momentum: f32,
}

impl Library {
    /// None where the device has our kernels do it, or the library has no such norm: a cumulative average, or padding to leave out.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn of(
        backend: &mut dyn Backend,
        settings: &Settings,
        chunks: &[Statistics],
    ) -> Result<Option<Self>> {
        let (Some(momentum), None) = (settings.momentum, settings.padding) else {
            return Ok(None);
        };
        if !backend.library_batch_norm() {
            return Ok(None);
        }
        // Steps are counted by a kernel that does nothing where there was no row. A chunk without samples is never counted.
        if let Some(first) = chunks.first() {
            let (to, value) = (first.count, 1.0);
            backend.launch(Stream::Compute, Kernel::Fill { to, value })?;
        }
        let (gamma, beta) = match settings.gamma.value.is_empty() {
            false => (settings.gamma, settings.beta),
            true => none(backend, settings.channels)?,
        };
        Ok(Some(Self {
            gamma,
            beta,
            momentum,
        }))
    }

    /// Forward of a chunk in training; `stored` says whether the running statistics take it in.
    pub(super) fn forward(
        &self,
        step: &mut Step<'_>,
        wires: &Wires,
        (s, kept): (&Settings, &Statistics),
        samples: Range<usize>,
        stored: bool,
    ) -> Result<()> {
        let [x, y] = [wires.inputs[0], wires.output].map(|span| wires.part(span, samples.clone()));
        let running = |span| if stored { span } else { Span::EMPTY };
        step.launch(Kernel::LibraryBatchNorm {
            x,
            gamma: self.gamma.value,
            beta: self.beta.value,
            y,
            mean: kept.mean,
            rstd: kept.rstd,
            running_mean: running(s.running_mean),
            running_variance: running(s.running_variance),
            samples: samples.len(),
            spatial: s.spatial,
            eps: s.eps,
            momentum: self.momentum,
        })?;
        if stored {
            count(step, s, kept)?;
        }
        behind(step, wires, s.tail, samples)
    }

    /// Backward of a chunk, of an output gradient that has been through what is behind the norm.
    pub(super) fn backward(
        &self,
        step: &mut Step<'_>,
        wires: &Wires,
        (s, kept): (&Settings, &Statistics),
        samples: Range<usize>,
    ) -> Result<()> {
        let part = |span| wires.part(span, samples.clone());
        let wanted = wires.d_inputs[0];
        let (d_x, write) = wanted.unwrap_or((Span::EMPTY, Write::Overwrite));
        step.launch(Kernel::LibraryBatchNormBackward {
            x: part(wires.inputs[0]),
            d_y: part(wires.d_output),
            gamma: self.gamma.value,
            mean: kept.mean,
            rstd: kept.rstd,
            d_gamma: self.gamma.gradient,
            d_beta: self.beta.gradient,
            d_x: wanted.map_or(d_x, |(d_x, _)| part(d_x)),
            samples: samples.len(),
            spatial: s.spatial,
            eps: s.eps,
            write,
        })
    }

    /// Forward in evaluation mode. Backward there is our kernels', which take the reciprocal deviation.
    pub(super) fn eval(
        &self,
        step: &mut Step<'_>,
        wires: &Wires,
        (s, kept): (&Settings, &Statistics),
    ) -> Result<()> {
        let samples = 0..step.batch;
        let [x, y] = [wires.inputs[0], wires.output].map(|span| wires.part(span, samples.clone()));
        step.launch(Kernel::ReciprocalDeviation {
            variance: s.running_variance,
            rstd: kept.rstd,
            eps: s.eps,
        })?;
        step.launch(Kernel::LibraryBatchNormEval {
            x,
            gamma: self.gamma.value,
            beta: self.beta.value,
            running_mean: s.running_mean,
            running_variance: s.running_variance,
            y,
            samples: samples.len(),
            spatial: s.spatial,
            eps: s.eps,
        })?;
        behind(step, wires, s.tail, samples)
    }
}

/// γ = 1 and β = 0 for a norm that has neither, with gradients that nobody reads.
fn none(backend: &mut dyn Backend, channels: usize) -> Result<(Learnable, Learnable)> {
    let all = backend.allocate(Category::Workspace, Dtype::F32, 4 * channels)?;
    let part = |index: usize| all.slice(index * channels..(index + 1) * channels);
    let (to, value) = (part(0), 1.0);
    backend.launch(Stream::Compute, Kernel::Fill { to, value })?;
    let learnable = |value, gradient| Learnable {
        value: part(value),
        gradient: part(gradient),
    };
    Ok((learnable(0, 2), learnable(1, 3)))
}

/// Counts a batch that the running statistics have taken in.
fn count(step: &mut Step<'_>, s: &Settings, kept: &Statistics) -> Result<()> {
    step.launch(Kernel::UpdateRunning {
        mean: Span::EMPTY,
        variance: Span::EMPTY,
        count: kept.count,
        running_mean: Span::EMPTY,
        running_variance: Span::EMPTY,
        tracked: s.tracked,
        momentum: s.momentum,
    })
}

/// Addition and rectifier behind the norm, on its output.
fn behind(step: &mut Step<'_>, wires: &Wires, tail: Tail, samples: Range<usize>) -> Result<()> {
    let y = wires.part(wires.output, samples.clone());
    let shortcut = match tail {
        Tail::None => return Ok(()),
        Tail::Relu => Span::EMPTY,
        Tail::AddRelu => wires.part(wires.inputs[1], samples),
    };
    step.launch(Kernel::Rectify { y, shortcut })
}
