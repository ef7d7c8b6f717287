//! What kernels have besides operands: how they write, shapes of windows, formulas, and what goes before or after them.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tensor::Span;

/// Whether a gradient overwrites its destination (first writer) or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    /// First writer.
    Overwrite,
    /// Any later writer.
    Accumulate,
}

/// Shape of a convolution or of a pooling window, per sample. Square kernel and equal padding on each side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels.
    pub c: usize,
    /// Output height.
    pub out_h: usize,
    /// Output width.
    pub out_w: usize,
    /// Output channels; for pooling equal to `c`.
    pub out_c: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step of the window.
    pub stride: usize,
    /// Zeros (for max pooling: elements that never win; average pooling may leave them out) on each side.
    pub padding: usize,
}

impl Window {
    /// f32 elements of workspace that a convolution kernel may use.
    pub fn workspace(&self) -> usize {
        crate::backend::cpu::conv::workspace(self)
    }

    /// How a convolution of this shape is computed fastest: always the same for the same shape.
    pub fn algorithms(&self) -> ConvAlgorithms {
        crate::backend::cpu::conv::algorithms(self)
    }
}

/// How one direction of a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConvAlgorithm {
    /// From the images where they lie.
    Direct,
    /// As matrix products, over patches that are written out row by row; the input itself where these are single pixels.
    Im2row,
}

impl ConvAlgorithm {
    /// `direct` or `im2row`, as records have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Im2row => "im2row",
        }
    }
}

/// Those of all directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvAlgorithms {
    /// y from x.
    pub forward: ConvAlgorithm,
    /// dx from dy.
    pub backward_input: ConvAlgorithm,
    /// The weights' gradient from x and dy.
    pub backward_weight: ConvAlgorithm,
}

/// Heads of an attention over sequences of tokens, and what they leave out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Positions of a sequence.
    pub length: usize,
    /// Heads.
    pub count: usize,
    /// Elements of a query, of a key and of a value.
    pub size: usize,
    /// The token that nobody looks at; none: everybody looks at everything.
    pub padding: Option<usize>,
    /// Probability that a weight is zeroed; 0 in evaluation.
    pub dropout: f32,
    /// The trial's seed, for dropout.
    pub seed: u64,
    /// Index of the node in its program, for dropout.
    pub node: u32,
}

impl Heads {
    /// f32 elements of workspace that an attention kernel uses: two matrices of scores, and two numbers a position.
    pub const fn workspace(&self) -> usize {
        2 * self.length * self.length + 2 * self.length
    }

    /// i32 elements in which a device may keep, for each sample, which weights dropout kept: a bit for each, in two elements for each 64 keys of a
    /// row. None without dropout.
    pub fn masks(&self) -> usize {
        match self.dropout > 0.0 {
            true => self.count * self.length * 2 * self.length.div_ceil(64),
            false => 0,
        }
    }
}

/// Formula of the Gaussian error linear unit, as PyTorch's `approximate` names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Gelu {
    /// y = x·Φ(x) with Φ(x) = (1 + erf(x/√2))/2.
    #[default]
    None,
    /// y = x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    Tanh,
}

/// Extent of γ and β in group, layer and instance norm, and of γ in RMS norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Affine {
    /// No γ and β (their spans are empty).
    None,
    /// One pair per channel.
    Channel,
    /// One pair per element of a sample, in memory order (NHWC).
    Element,
}

/// What a norm's forward kernel does with its result before it writes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Then {
    /// Added; empty for nothing.
    pub shortcut: Span,
    /// Whether max(·, 0) comes last.
    pub relu: bool,
}

impl Then {
    /// Nothing.
    pub const NOTHING: Self = Self {
        shortcut: Span::EMPTY,
        relu: false,
    };
}

/// Where the rectifier that is part of a batch norm lets gradients through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// There is none, or d_y has been through it.
    Open,
    /// Where γ·(x − mean)·rstd + β, computed again, is positive.
    Again {
        /// β; empty for none.
        beta: Span,
        /// γ; empty for none.
        gamma: Span,
        /// 1/sqrt(variance + eps).
        rstd: Span,
    },
}
