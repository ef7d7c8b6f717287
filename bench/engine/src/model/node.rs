//! What a model is lowered to: a straight line of nodes, and the parameters and buffers that each of them owns.
//!
//! Values are numbered: 0 is the model's input, node `i` makes value `i + 1`. A residual is an [`Op::Add`] of two
//! earlier values. Shapes and names are PyTorch's, as fixed by `scripts/pytorch/model.py`.
use crate::kernel::{Affine, Gelu, Window};
use crate::layout::Layout;
use crate::shape::Shape;

/// One step of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// The values that it reads.
    pub inputs: Vec<usize>,
    /// Shape of its (first) input.
    pub input: Shape,
    /// Shape of the value that it makes.
    pub output: Shape,
    /// Where it stands in the file: `layers[3].residual.body[1] (conv2d)`.
    pub path: String,
}

/// What a node computes, with everything resolved.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// y = x·Wᵀ + b, of each position if there are any.
    Linear {
        /// Whether there is a b.
        bias: bool,
        /// The node whose table is W, if it is not its own.
        tied: Option<usize>,
    },
    /// A row of a table for each token.
    Embedding {
        /// Rows of the table.
        vocabulary: usize,
        /// The token whose row gets no gradient.
        padding: Option<usize>,
    },
    /// A learned vector for each position, added.
    Positions,
    /// Scaled dot-product attention of heads over queries, keys and values that lie side by side. Its second input is the tokens.
    Attention {
        /// Heads.
        heads: usize,
        /// Probability that a weight is zeroed.
        dropout: f32,
        /// The token that nobody looks at.
        padding: Option<usize>,
    },
    /// Cross-correlation.
    Conv2d {
        /// Its geometry.
        window: Window,
        /// Whether there is a bias.
        bias: bool,
    },
    /// max(x, 0).
    Relu,
    /// Gaussian error linear unit.
    Gelu {
        /// Exact, or the approximation.
        formula: Gelu,
    },
    /// Window maximum.
    MaxPool {
        /// Its geometry.
        window: Window,
    },
    /// Window mean.
    AveragePool {
        /// Its geometry.
        window: Window,
        /// Whether padding counts in the divisor.
        count_padding: bool,
    },
    /// Mean over height and width.
    GlobalAveragePool,
    /// From memory order (NHWC) to channel-major features. Only where that moves elements.
    Flatten,
    /// Inverted dropout.
    Dropout {
        /// Probability that an element is zeroed.
        p: f32,
    },
    /// Batch norm, over all ranks if `sync`.
    BatchNorm {
        /// Statistics over all ranks.
        sync: bool,
        /// Added to the variance.
        eps: f32,
        /// Weight of the new batch in the running statistics; none: cumulative average.
        momentum: Option<f32>,
        /// Learnable γ and β.
        affine: bool,
        /// The token that is left out; its second input is then the tokens.
        padding: Option<usize>,
    },
    /// Group norm; layer norm as one group, instance norm as a group per channel.
    GroupNorm {
        /// Which of them the file said.
        kind: GroupKind,
        /// Groups G.
        groups: usize,
        /// Added to the variance.
        eps: f32,
        /// Extent of γ and β.
        affine: Affine,
        /// Whether each position is normalized by itself.
        each_position: bool,
    },
    /// RMS norm.
    RmsNorm {
        /// Added to the mean of the squares.
        eps: f32,
        /// Extent of γ.
        affine: Affine,
        /// Whether each position is normalized by itself.
        each_position: bool,
    },
    /// a + b.
    Add,
}

/// What a file calls a norm over groups of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// `layer-norm`.
    Layer,
    /// `instance-norm`.
    Instance,
    /// `group-norm`.
    Group,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// Uniform within ±1/√fan_in: PyTorch's default for linear and convolution weights and biases.
    Uniform {
        /// Elements that one output sums over.
        fan_in: usize,
    },
    /// γ.
    One,
    /// β.
    Zero,
}

/// A parameter that a node owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterSlot {
    /// `weight` or `bias`.
    pub name: &'static str,
    /// PyTorch's shape.
    pub shape: Vec<usize>,
    /// Order in memory.
    pub layout: Layout,
    /// First values.
    pub init: Init,
}

impl ParameterSlot {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Node {
    /// Channels of running statistics, if the node keeps any.
    pub fn running_channels(&self) -> Option<usize> {
        matches!(self.op, Op::BatchNorm { .. }).then(|| self.input.channels())
    }

    /// Its parameters, in PyTorch's order.
    pub fn parameters(&self) -> Vec<ParameterSlot> {
        match &self.op {
            Op::Linear { bias, tied } => {
                let (outputs, inputs) = (self.output.channels(), self.input.channels());
                let mut slots = weight_and_bias(vec![outputs, inputs], Layout::Same, *bias, inputs);
                if tied.is_some() {
                    slots.remove(0);
                }
                slots
            }
            // Within ±1/√features: about as wide as BERT's normal distribution of deviation 0.02 is at 768.
            Op::Embedding { vocabulary, .. } => {
                let features = self.output.channels();
                weight_and_bias(vec![*vocabulary, features], Layout::Same, false, features)
            }
            Op::Positions => {
                let (features, length) = (self.output.channels(), self.output.spatial());
                weight_and_bias(vec![length, features], Layout::Same, false, features)
            }
            Op::Conv2d { window: w, bias } => {
                let layout = Layout::convolution(w.out_c, w.c, w.kernel);
                weight_and_bias(
                    vec![w.out_c, w.c, w.kernel, w.kernel],
                    layout,
                    *bias,
                    w.c * w.kernel * w.kernel,
                )
            }
            Op::BatchNorm { affine: true, .. }
            | Op::GroupNorm {
                affine: Affine::Channel,
                ..
            } => gamma_and_beta(vec![self.input.channels()], Layout::Same),
            Op::GroupNorm {
                affine: Affine::Element,
                ..
            } => gamma_and_beta(self.input.dimensions(), Layout::activation(self.input, 1)),
            Op::RmsNorm { affine, .. } => {
                let mut slots = match affine {
                    Affine::None => Vec::new(),
                    Affine::Channel => gamma_and_beta(vec![self.input.channels()], Layout::Same),
                    Affine::Element => {
                        gamma_and_beta(self.input.dimensions(), Layout::activation(self.input, 1))
                    }
                };
                slots.truncate(1);
                slots
            }
            _ => Vec::new(),
        }
    }
}

fn weight_and_bias(
    shape: Vec<usize>,
    layout: Layout,
    bias: bool,
    fan_in: usize,
) -> Vec<ParameterSlot> {
    let outputs = shape[0];
    let init = Init::Uniform { fan_in };
    let mut slots = vec![ParameterSlot {
        name: "weight",
        shape,
        layout,
        init,
    }];
    if bias {
        slots.push(ParameterSlot {
            name: "bias",
            shape: vec![outputs],
            layout: Layout::Same,
            init,
        });
    }
    slots
}

fn gamma_and_beta(shape: Vec<usize>, layout: Layout) -> Vec<ParameterSlot> {
    vec![
        ParameterSlot {
            name: "weight",
            shape: shape.clone(),
            layout,
            init: Init::One,
        },
        ParameterSlot {
            name: "bias",
            shape,
            layout,
            init: Init::Zero,
        },
    ]
}

impl Op {
    /// Kind, as in model files.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Embedding { .. } => "embedding",
            Self::Positions => "positions",
            Self::Attention { .. } => "attention",
            Self::Conv2d { .. } => "conv2d",
            Self::Relu => "relu",
            Self::Gelu { .. } => "gelu",
            Self::MaxPool { .. } => "max-pool",
            Self::AveragePool { .. } => "average-pool",
            Self::GlobalAveragePool => "global-average-pool",
            Self::Flatten => "flatten",
            Self::Dropout { .. } => "dropout",
            Self::BatchNorm { sync: false, .. } => "batch-norm",
            Self::BatchNorm { sync: true, .. } => "sync-batch-norm",
            Self::GroupNorm {
                kind: GroupKind::Layer,
                ..
            } => "layer-norm",
            Self::GroupNorm {
                kind: GroupKind::Instance,
                ..
            } => "instance-norm",
            Self::GroupNorm {
                kind: GroupKind::Group,
                ..
            } => "group-norm",
            Self::RmsNorm { .. } => "rms-norm",
            Self::Add => "residual",
        }
    }
}
