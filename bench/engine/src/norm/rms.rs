//! RMS norm: each sample over the root of the mean of its squares; no mean is taken away and there is no β.
//!
//! It looks at one sample at a time, or in sequences of tokens at one position, so neither batch nor chunks change its result. γ is per channel, or per element as PyTorch's
//! `normalized_shape` has it. Reference: Zhang and Sennrich 2019; PyTorch's `nn.RMSNorm`.
use super::Tail;
use super::batch::Learnable;
use crate::backend::{Backend, Category};
use crate::kernel::{Affine, Kernel, Write};
use crate::layer::{Layer, Result, Step, Wires};
use crate::tensor::{Dtype, Span};

/// What RMS norm is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Channels C.
    pub channels: usize,
    /// Positions per sample and channel that are normalized together.
    pub spatial: usize,
    /// Parts of a sample that are normalized each by itself: 1, or its positions.
    pub parts: usize,
    /// Added to the mean of the squares.
    pub eps: f32,
    /// Extent of γ.
    pub affine: Affine,
    /// γ.
    pub gamma: Learnable,
    /// What it does of the nodes behind it.
    pub tail: Tail,
}

/// RMS norm.
pub struct RmsNorm {
    settings: Settings,
    /// `[max_batch, parts]`.
    rstd: Span,
}

impl RmsNorm {
    /// RMS norm for at most `max_batch` samples.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &mut dyn Backend, settings: Settings, max_batch: usize) -> Result<Self> {
        let len = max_batch * settings.parts;
        let rstd = backend.allocate(Category::Activations, Dtype::F32, len)?;
        Ok(Self { settings, rstd })
    }
}

impl Layer for RmsNorm {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (s, batch) = (&self.settings, step.batch);
        step.launch(Kernel::RmsNormForward {
            x: wires.cut(wires.inputs[0], batch),
            gamma: s.gamma.value,
            y: wires.cut(wires.output, batch),
            rstd: wires.cut(self.rstd, batch),
            batch: batch * s.parts,
            spatial: s.spatial,
            channels: s.channels,
            affine: s.affine,
            eps: s.eps,
            then: s.tail.then(wires, 0..batch),
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (s, batch) = (&self.settings, step.batch);
        let (d_x, write) = match wires.d_input(batch) {
            Some(wanted) => wanted,
            None if s.gamma.value.is_empty() => {
                s.tail.gate(step, wires)?;
                return s.tail.pass_on(step, wires);
            }
            None => (Span::EMPTY, Write::Overwrite),
        };
        step.launch(Kernel::RmsNormBackward {
            x: wires.cut(wires.inputs[0], batch),
            y: s.tail.rectified(wires, batch),
            d_y: wires.cut(wires.d_output, batch),
            gamma: s.gamma.value,
            rstd: wires.cut(self.rstd, batch),
            d_x,
            d_gamma: s.gamma.gradient,
            batch: batch * s.parts,
            spatial: s.spatial,
            channels: s.channels,
            affine: s.affine,
            write,
        })?;
        s.tail.pass_on(step, wires)
    }

    fn kind(&self) -> &'static str {
        "rms-norm"
    }
}
