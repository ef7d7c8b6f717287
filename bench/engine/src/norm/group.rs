//! Group norm: per sample over the channels of a group and all positions; layer norm is the case of one group, instance norm
//! that of a group per channel.
//!
//! It looks at one sample at a time, or in sequences of tokens at one position, so neither batch nor chunks change its result. γ and β
//! are per channel, or per element for layer norm as PyTorch's `normalized_shape` has it. Reference: Wu and He 2018; PyTorch's `nn.GroupNorm`.
use super::Tail;
use super::batch::Learnable;
use crate::backend::{Backend, Category};
use crate::kernel::{Affine, Kernel};
use crate::layer::{Layer, Result, Step, Wires};
use crate::tensor::{Dtype, Span};

/// What group norm is made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Channels C.
    pub channels: usize,
    /// Positions per sample and channel that are normalized together.
    pub spatial: usize,
    /// Parts of a sample that are normalized each by itself: 1, or its positions.
    pub parts: usize,
    /// Groups G; divides C.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Extent of γ and β.
    pub affine: Affine,
    /// γ.
    pub gamma: Learnable,
    /// β.
    pub beta: Learnable,
    /// `layer-norm`, `instance-norm` or `group-norm`.
    pub kind: &'static str,
    /// What it does of the nodes behind it.
    pub tail: Tail,
}

/// Group norm, layer norm or instance norm.
pub struct GroupNorm {
    settings: Settings,
    /// `[max_batch·G]`.
    mean: Span,
    /// `[max_batch·G]`.
    rstd: Span,
}

impl GroupNorm {
    /// Group norm for at most `max_batch` samples.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(backend: &mut dyn Backend, settings: Settings, max_batch: usize) -> Result<Self> {
        let each = max_batch * settings.parts * settings.groups;
        let kept = backend.allocate(Category::Activations, Dtype::F32, 2 * each)?;
        Ok(Self {
            settings,
            mean: kept.slice(0..each),
            rstd: kept.slice(each..2 * each),
        })
    }
}

impl Layer for GroupNorm {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (s, batch) = (&self.settings, step.batch);
        step.launch(Kernel::GroupNormForward {
            x: wires.cut(wires.inputs[0], batch),
            gamma: s.gamma.value,
            beta: s.beta.value,
            y: wires.cut(wires.output, batch),
            mean: wires.cut(self.mean, batch),
            rstd: wires.cut(self.rstd, batch),
            batch: batch * s.parts,
            spatial: s.spatial,
            channels: s.channels,
            groups: s.groups,
            affine: s.affine,
            eps: s.eps,
            then: s.tail.then(wires, 0..batch),
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (s, batch) = (&self.settings, step.batch);
        // The kernel makes all three gradients in one go, so the program always gives an input gradient where there are γ
        // and β; without them and without one there is nothing to do.
        let Some((d_x, write)) = wires.d_input(batch) else {
            s.tail.gate(step, wires)?;
            return s.tail.pass_on(step, wires);
        };
        step.launch(Kernel::GroupNormBackward {
            x: wires.cut(wires.inputs[0], batch),
            y: s.tail.rectified(wires, batch),
            d_y: wires.cut(wires.d_output, batch),
            gamma: s.gamma.value,
            mean: wires.cut(self.mean, batch),
            rstd: wires.cut(self.rstd, batch),
            d_x,
            d_gamma: s.gamma.gradient,
            d_beta: s.beta.gradient,
            batch: batch * s.parts,
            spatial: s.spatial,
            channels: s.channels,
            groups: s.groups,
            affine: s.affine,
            write,
        })?;
        s.tail.pass_on(step, wires)
    }

    fn kind(&self) -> &'static str {
        self.settings.kind
    }
}
