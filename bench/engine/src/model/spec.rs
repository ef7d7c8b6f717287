//! A model as data: what a file of `scenarios/models` or `[model] layers = [...]` says.
//!
//! Layers are externally tagged: a bare string for a layer without settings, a one-key table otherwise,
//! so that a TOML error keeps the span of the key that is wrong.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::kernel::Gelu;

/// A model file: its layers and the input it expects when the data source leaves the shape open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name used in tables.
    pub name: String,
    /// Per-sample input shape, NCHW without N: `[features]`, `[channels, length]` or `[channels, height, width]`; of tokens
    /// `[length]`.
    pub input: Vec<usize>,
    /// Classes when the data source leaves them open.
    pub classes: usize,
    /// In order of execution.
    pub layers: Vec<LayerSpec>,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LayerSpec {
    /// y = x·Wᵀ + b on `[features]`, or on each position of a sequence of tokens.
    Linear(LinearSpec),
    /// A learned vector for each token: `[length]` to `[features, length]`. Must come first.
    Embedding(EmbeddingSpec),
    /// A learned vector for each position, added.
    Positions,
    /// Multi-head self-attention, with its projections, on a sequence of tokens.
    Attention(AttentionSpec),
    /// Cross-correlation on `[channels, height, width]`.
    Conv2d(Conv2dSpec),
    /// max(x, 0).
    Relu,
    /// x·Φ(x), with Φ the standard normal distribution function.
    Gelu(GeluSpec),
    /// Largest element of each window.
    MaxPool(PoolSpec),
    /// Mean of each window.
    AveragePool(AveragePoolSpec),
    /// Mean over height and width, or over length: `[c, h, w]` to `[c]`.
    GlobalAveragePool,
    /// `[c, h, w]` to `[c·h·w]`, channel-major as in PyTorch; also `[c, length]`.
    Flatten,
    /// Inverted dropout.
    Dropout(DropoutSpec),
    /// The norm that `[model] norm` names; with `none` the layer vanishes.
    Norm,
    /// BatchNorm, whatever `[model] norm` says.
    BatchNorm(BatchNormSpec),
    /// SyncBatchNorm, whatever `[model] norm` says.
    SyncBatchNorm(BatchNormSpec),
    /// LayerNorm over all per-sample dimensions with per-channel affine, or behind an embedding over the features of each position,
    /// whatever `[model] norm` says.
    LayerNorm(LayerNormSpec),
    /// InstanceNorm, whatever `[model] norm` says.
    InstanceNorm(InstanceNormSpec),
    /// GroupNorm; behind an embedding over groups of features of each position; whatever `[model] norm` says.
    GroupNorm(GroupNormSpec),
    /// RMSNorm over what LayerNorm is over, whatever `[model] norm` says.
    RmsNorm(RmsNormSpec),
    /// body(x) + shortcut(x); an empty shortcut is the identity.
    Residual(ResidualSpec),
    /// The layers, `times` times in a row, each with parameters of its own.
    Repeat(RepeatSpec),
}

/// A number of output features.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "serde_json::Value")]
pub enum Features {
    /// The string `"classes"`: as many as the data has classes.
    Classes,
    /// This many.
    Count(usize),
}

/// Settings of a linear layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinearSpec {
    /// Output features, or `"classes"`.
    pub features: Features,
    /// Default: yes, unless a norm with learnable parameters follows directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<bool>,
    /// Whether the weight is the embedding's table, as heads that predict tokens may have it.
    #[serde(default, skip_serializing_if = "is_no")]
    pub tied: bool,
}

/// Settings of an embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingSpec {
    /// Tokens that there are, or `"classes"`: as many as the data has, which then predicts tokens.
    pub vocabulary: Features,
    /// Elements of a token's vector.
    pub features: usize,
    /// The token that fills sequences up, whose vector gets no gradient and that attention does not look at; absent: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub padding: Option<usize>,
}

/// Settings of self-attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    /// Heads; must divide the features.
    pub heads: usize,
    /// Probability that a weight of attention is zeroed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropout: f32,
    /// Whether the projections have a b.
    #[serde(default = "yes")]
    pub bias: bool,
}

/// Settings of a convolution with square kernels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Conv2dSpec {
    /// Output channels.
    pub channels: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step of the window.
    #[serde(default = "one")]
    pub stride: usize,
    /// Zeros on each side.
    #[serde(default)]
    pub padding: usize,
    /// Default: yes, unless a norm with learnable parameters follows directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<bool>,
}

/// Settings of GELU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GeluSpec {
    /// `none`: with the error function; `tanh`: the approximation.
    #[serde(default)]
    pub approximate: Gelu,
}

/// Settings of an average pooling window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AveragePoolSpec {
    /// Side of the window.
    pub kernel: usize,
    /// Step of the window; default: the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Zeros on each side.
    #[serde(default)]
    pub padding: usize,
    /// Whether the divisor counts padding: the kernel's square, as in PyTorch by default. Otherwise only elements of the image.
    #[serde(default = "yes")]
    pub count_include_pad: bool,
}

/// Settings of a pooling window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// Side of the window.
    pub kernel: usize,
    /// Step of the window; default: the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Padding that never wins on each side.
    #[serde(default)]
    pub padding: usize,
}

/// Settings of dropout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropoutSpec {
    /// Probability that an element is zeroed.
    pub p: f32,
}

/// Settings of BatchNorm and SyncBatchNorm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchNormSpec {
    /// Added to the variance.
    pub eps: f32,
    /// Weight of the new batch in the running statistics; `"cumulative"` is written as an absent value in PyTorch.
    pub momentum: Momentum,
    /// Learnable γ and β.
    pub affine: bool,
    /// What padding of sequences of tokens does to the statistics.
    pub padding: Padding,
}

/// What padding does to the statistics of a batch norm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Padding {
    /// It counts like everything else, as in PyTorch.
    #[default]
    Counted,
    /// It is left out, and the norm's output is zero there.
    Masked,
}

/// Settings of LayerNorm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LayerNormSpec {
    /// Added to the variance.
    pub eps: f32,
    /// `channel`: γ and β per channel (the GN paper's comparison); `element`: PyTorch's normalized_shape.
    pub affine: LayerNormAffine,
}

/// Extent of LayerNorm's γ and β, and of RMSNorm's γ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LayerNormAffine {
    /// One pair per channel.
    Channel,
    /// One pair per element of the normalized shape.
    Element,
    /// None.
    None,
}

/// Settings of InstanceNorm, which keeps no running statistics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceNormSpec {
    /// Added to the variance.
    pub eps: f32,
    /// Learnable γ and β per channel. On here; PyTorch's own default is off.
    pub affine: bool,
}

/// Settings of RMSNorm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RmsNormSpec {
    /// Added to the mean of the squares; default 2⁻²³, PyTorch's for f32.
    pub eps: f32,
    /// `channel`: γ per channel; `element`: PyTorch's normalized_shape.
    pub affine: LayerNormAffine,
}

/// Settings of GroupNorm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupNormSpec {
    /// Groups G; default min(32, C/4), at least 1. Must divide the channels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<usize>,
    /// Added to the variance; default 1e-5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f32>,
}

/// Settings of a residual block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResidualSpec {
    /// The branch with the layers.
    pub body: Vec<LayerSpec>,
    /// The other branch; empty is the identity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortcut: Vec<LayerSpec>,
}

/// Settings of a repetition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepeatSpec {
    /// How often.
    pub times: usize,
    /// What.
    pub layers: Vec<LayerSpec>,
}

/// The norm that a model's `norm` layers become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// No norm; the layer before it gets a bias.
    None,
    /// BatchNorm.
    #[default]
    Batch,
    /// SyncBatchNorm.
    SyncBatch,
    /// LayerNorm.
    Layer,
    /// InstanceNorm with γ and β.
    Instance,
    /// GroupNorm.
    Group,
    /// RMSNorm.
    Rms,
}

/// Momentum of running statistics.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "serde_json::Value")]
pub enum Momentum {
    /// rm ← (1−m)·rm + m·μ.
    Exponential(f32),
    /// The string `"cumulative"`: m = 1/num_batches_tracked.
    Cumulative,
}

impl Default for BatchNormSpec {
    fn default() -> Self {
        Self {
            eps: 1e-5,
            momentum: Momentum::Exponential(0.1),
            affine: true,
            padding: Padding::Counted,
        }
    }
}

impl Default for LayerNormSpec {
    fn default() -> Self {
        Self {
            eps: 1e-5,
            affine: LayerNormAffine::Channel,
        }
    }
}

impl Default for InstanceNormSpec {
    fn default() -> Self {
        Self {
            eps: 1e-5,
            affine: true,
        }
    }
}

impl Default for RmsNormSpec {
    fn default() -> Self {
        Self {
            eps: f32::EPSILON,
            affine: LayerNormAffine::Channel,
        }
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn is_no(value: &bool) -> bool {
    !value
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

impl Serialize for Features {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Features::Classes => serializer.serialize_str("classes"),
            Features::Count(n) => serializer.serialize_u64(*n as u64),
        }
    }
}

impl Serialize for Momentum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Momentum::Exponential(m) => serializer.serialize_f32(*m),
            Momentum::Cumulative => serializer.serialize_str("cumulative"),
        }
    }
}

impl<'de> Deserialize<'de> for Features {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Features;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a positive number of features, or \"classes\"")
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Features, E> {
                usize::try_from(v)
                    .ok()
                    .filter(|n| *n > 0)
                    .map(Features::Count)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Signed(v), &self))
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Features, E> {
                i64::try_from(v)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(v), &self))
                    .and_then(|v| self.visit_i64(v))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Features, E> {
                match v {
                    "classes" => Ok(Features::Classes),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<'de> Deserialize<'de> for Momentum {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Momentum;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a momentum between 0 and 1, or \"cumulative\"")
            }
            fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Momentum, E> {
                if (0.0..=1.0).contains(&v) {
                    Ok(Momentum::Exponential(v as f32))
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Float(v), &self))
                }
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Momentum, E> {
                self.visit_f64(v as f64)
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Momentum, E> {
                self.visit_f64(v as f64)
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Momentum, E> {
                match v {
                    "cumulative" => Ok(Momentum::Cumulative),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(v), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
