//! What one layer of a model file becomes, given the shape of its input: its settings checked, its geometry worked out.
//!
//! The defaults are PyTorch's, or those of METHODOLOGY.md, Norms (group norm's G); `scripts/pytorch/layers.py` has the same rules.
use super::error::ModelError;
use super::node::{GroupKind, Node, Op};
use super::spec::{
    AttentionSpec, AveragePoolSpec, BatchNormSpec, Conv2dSpec, EmbeddingSpec, Features,
    GroupNormSpec, InstanceNormSpec, LayerNormAffine, LayerNormSpec, LayerSpec, Momentum, Padding,
    PoolSpec, RmsNormSpec,
};
use crate::kernel::{Affine, Window};
use crate::shape::Shape;

/// Whether the products that sizes and workspaces are computed from stay far from overflow.
pub(super) fn weight_fits(node: &Node) -> bool {
    let limit = crate::shape::MAX_ELEMENTS as u128;
    let product = |factors: &[usize]| {
        factors
            .iter()
            .try_fold(1u128, |p, f| p.checked_mul(*f as u128))
    };
    let fits = |factors: &[usize]| product(factors).is_some_and(|elements| elements <= limit);
    match &node.op {
        Op::Linear { .. } => fits(&[node.input.channels(), node.output.channels()]),
        Op::Embedding { vocabulary, .. } => fits(&[*vocabulary, node.output.channels()]),
        Op::Attention { .. } => fits(&[2, node.input.spatial(), node.input.spatial()]),
        Op::Conv2d { window: w, .. } => {
            fits(&[w.out_c, w.c, w.kernel, w.kernel])
                && fits(&[2, w.out_h, w.out_w, w.kernel, w.kernel, w.c])
        }
        _ => true,
    }
}

/// Whether a layer is a norm with learnable parameters: the convolution or product before it then has no bias by default.
pub(super) fn is_affine(layer: &LayerSpec) -> bool {
    match layer {
        LayerSpec::BatchNorm(spec) | LayerSpec::SyncBatchNorm(spec) => spec.affine,
        LayerSpec::LayerNorm(spec) => spec.affine != LayerNormAffine::None,
        LayerSpec::RmsNorm(spec) => spec.affine != LayerNormAffine::None,
        LayerSpec::InstanceNorm(spec) => spec.affine,
        LayerSpec::GroupNorm(_) => true,
        _ => false,
    }
}

/// Whether a value has positions: an image, or a sequence.
pub(super) fn spatial(input: Shape, here: &str, kind: &str) -> Result<(), ModelError> {
    match input {
        Shape::Image { .. } | Shape::Sequence { .. } => Ok(()),
        Shape::Features(_) => Err(ModelError::NeedsImage {
            path: format!("{here} ({kind})"),
            input,
        }),
    }
}

fn image(input: Shape, here: &str, kind: &str) -> Result<(usize, usize, usize), ModelError> {
    match input {
        Shape::Image { c, h, w } => Ok((c, h, w)),
        Shape::Features(_) | Shape::Sequence { .. } => Err(ModelError::NeedsImage {
            path: format!("{here} ({kind})"),
            input,
        }),
    }
}

pub(super) fn in_range(
    value: f32,
    good: bool,
    path: String,
    key: &'static str,
    allowed: &'static str,
) -> Result<f32, ModelError> {
    if good {
        Ok(value)
    } else {
        Err(ModelError::Range {
            path,
            key,
            value,
            allowed,
        })
    }
}

fn epsilon(eps: f32, path: String) -> Result<f32, ModelError> {
    in_range(
        eps,
        eps > 0.0 && eps.is_finite(),
        path,
        "eps",
        "a positive number, such as 1e-5",
    )
}

/// Output side of a window that slides over `side` with `padding` on both ends; none when it does not fit.
fn slide(side: usize, kernel: usize, stride: usize, padding: usize) -> Option<usize> {
    let room = side
        .checked_add(padding.checked_mul(2)?)?
        .checked_sub(kernel)?;
    Some(room / stride + 1)
}

fn window(
    input: (usize, usize, usize),
    kernel: usize,
    stride: usize,
    padding: usize,
    path: &str,
) -> Result<Window, ModelError> {
    let (c, h, w) = input;
    for (key, value) in [("kernel", kernel), ("stride", stride)] {
        if value == 0 {
            return Err(ModelError::Zero {
                path: path.to_owned(),
                key,
            });
        }
    }
    match (
        slide(h, kernel, stride, padding),
        slide(w, kernel, stride, padding),
    ) {
        (Some(out_h), Some(out_w)) => Ok(Window {
            h,
            w,
            c,
            out_h,
            out_w,
            out_c: c,
            kernel,
            stride,
            padding,
        }),
        _ => {
            let largest = h.min(w).saturating_add(padding.saturating_mul(2));
            let input = Shape::Image { c, h, w };
            Err(ModelError::Kernel {
                path: path.to_owned(),
                kernel,
                input,
                padding,
                largest,
            })
        }
    }
}

pub(super) fn conv2d(
    spec: &Conv2dSpec,
    input: Shape,
    bias: bool,
    here: &str,
) -> Result<(Op, Shape), ModelError> {
    let path = format!("{here} (conv2d)");
    let size = image(input, here, "conv2d")?;
    if spec.channels == 0 {
        return Err(ModelError::Zero {
            path,
            key: "channels",
        });
    }
    let window = Window {
        out_c: spec.channels,
        ..window(size, spec.kernel, spec.stride, spec.padding, &path)?
    };
    let output = Shape::Image {
        c: spec.channels,
        h: window.out_h,
        w: window.out_w,
    };
    Ok((
        Op::Conv2d {
            window,
            bias: spec.bias.unwrap_or(bias),
        },
        output,
    ))
}

/// The window of a pooling, and the shape of its output.
fn pool(
    spec: &PoolSpec,
    input: Shape,
    here: &str,
    kind: &str,
) -> Result<(Window, Shape), ModelError> {
    let path = format!("{here} ({kind})");
    let size = image(input, here, kind)?;
    let (kernel, padding) = (spec.kernel, spec.padding);
    let window = window(size, kernel, spec.stride.unwrap_or(kernel), padding, &path)?;
    if padding > kernel / 2 {
        return Err(ModelError::PoolPadding {
            path,
            kernel,
            padding,
        });
    }
    let output = Shape::Image {
        c: size.0,
        h: window.out_h,
        w: window.out_w,
    };
    Ok((window, output))
}

pub(super) fn max_pool(
    spec: &PoolSpec,
    input: Shape,
    here: &str,
) -> Result<(Op, Shape), ModelError> {
    let (window, output) = pool(spec, input, here, "max-pool")?;
    Ok((Op::MaxPool { window }, output))
}

pub(super) fn average_pool(
    spec: &AveragePoolSpec,
    input: Shape,
    here: &str,
) -> Result<(Op, Shape), ModelError> {
    let sliding = PoolSpec {
        kernel: spec.kernel,
        stride: spec.stride,
        padding: spec.padding,
    };
    let (window, output) = pool(&sliding, input, here, "average-pool")?;
    let count_padding = spec.count_include_pad;
    Ok((
        Op::AveragePool {
            window,
            count_padding,
        },
        output,
    ))
}

/// Batch norm, whose `tokens` are those of the model's embedding.
pub(super) fn batch_norm(
    spec: &BatchNormSpec,
    sync: bool,
    tokens: Option<Tokens>,
    here: &str,
) -> Result<Op, ModelError> {
    let kind = if sync {
        "sync-batch-norm"
    } else {
        "batch-norm"
    };
    let path = || format!("{here} ({kind})");
    let momentum = match spec.momentum {
        Momentum::Cumulative => None,
        Momentum::Exponential(m) => Some(in_range(
            m,
            (0.0..=1.0).contains(&m),
            path(),
            "momentum",
            "0 to 1",
        )?),
    };
    let padding = match (spec.padding, tokens) {
        (Padding::Counted, _) | (Padding::Masked, None) => None,
        (Padding::Masked, Some(tokens)) => Some(
            tokens
                .padding
                .ok_or_else(|| ModelError::NoPadding { path: path() })?,
        ),
    };
    Ok(Op::BatchNorm {
        sync,
        eps: epsilon(spec.eps, path())?,
        momentum,
        affine: spec.affine,
        padding,
    })
}

pub(super) fn layer_norm(
    spec: &LayerNormSpec,
    each_position: bool,
    here: &str,
) -> Result<Op, ModelError> {
    let eps = epsilon(spec.eps, format!("{here} (layer-norm)"))?;
    Ok(Op::GroupNorm {
        kind: GroupKind::Layer,
        groups: 1,
        eps,
        affine: extent(spec.affine, each_position),
        each_position,
    })
}

/// The elements of one position are its channels.
fn extent(affine: LayerNormAffine, each_position: bool) -> Affine {
    match affine {
        LayerNormAffine::Element if !each_position => Affine::Element,
        LayerNormAffine::Channel | LayerNormAffine::Element => Affine::Channel,
        LayerNormAffine::None => Affine::None,
    }
}

pub(super) fn rms_norm(
    spec: &RmsNormSpec,
    each_position: bool,
    here: &str,
) -> Result<Op, ModelError> {
    Ok(Op::RmsNorm {
        eps: epsilon(spec.eps, format!("{here} (rms-norm)"))?,
        affine: extent(spec.affine, each_position),
        each_position,
    })
}

pub(super) fn instance_norm(
    spec: &InstanceNormSpec,
    input: Shape,
    here: &str,
) -> Result<Op, ModelError> {
    let path = format!("{here} (instance-norm)");
    if input.spatial() == 1 {
        return Err(ModelError::OnePosition { path, input });
    }
    Ok(Op::GroupNorm {
        kind: GroupKind::Instance,
        groups: input.channels(),
        eps: epsilon(spec.eps, path)?,
        affine: match spec.affine {
            true => Affine::Channel,
            false => Affine::None,
        },
        each_position: false,
    })
}

pub(super) fn group_norm(
    spec: &GroupNormSpec,
    input: Shape,
    each_position: bool,
    here: &str,
) -> Result<Op, ModelError> {
    let path = format!("{here} (group-norm)");
    let channels = input.channels();
    let groups = spec.groups.unwrap_or((channels / 4).clamp(1, 32));
    if groups == 0 {
        return Err(ModelError::Zero {
            path,
            key: "groups",
        });
    }
    if !channels.is_multiple_of(groups) {
        return Err(ModelError::Groups {
            path,
            groups,
            channels,
        });
    }
    let eps = epsilon(spec.eps.unwrap_or(1e-5), path)?;
    Ok(Op::GroupNorm {
        kind: GroupKind::Group,
        groups,
        eps,
        affine: Affine::Channel,
        each_position,
    })
}

/// The embedding of a model of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    /// Its node.
    pub(super) node: usize,
    pub(super) vocabulary: usize,
    pub(super) features: usize,
    pub(super) padding: Option<usize>,
}

/// An embedding of the model's input, which is `value` 0; `classes` are those of the data.
pub(super) fn embedding(
    spec: &EmbeddingSpec,
    value: usize,
    input: Shape,
    classes: usize,
    here: &str,
) -> Result<(Op, Shape), ModelError> {
    let path = format!("{here} (embedding)");
    let Shape::Features(length) = input else {
        return Err(ModelError::NotTokens { path, input });
    };
    if value != 0 {
        return Err(ModelError::NotTokens { path, input });
    }
    let vocabulary = match spec.vocabulary {
        Features::Classes => classes,
        Features::Count(count) => count,
    };
    for (key, value) in [("vocabulary", vocabulary), ("features", spec.features)] {
        if value == 0 {
            return Err(ModelError::Zero { path, key });
        }
    }
    // Tokens travel as f32, which holds whole numbers up to 2²⁴.
    if vocabulary > 1 << 24 {
        return Err(ModelError::Vocabulary { path });
    }
    if let Some(padding) = spec.padding.filter(|padding| *padding >= vocabulary) {
        return Err(ModelError::Padding {
            path,
            padding,
            vocabulary,
        });
    }
    let output = Shape::Sequence {
        c: spec.features,
        length,
    };
    let padding = spec.padding;
    Ok((
        Op::Embedding {
            vocabulary,
            padding,
        },
        output,
    ))
}

/// The heads of an attention over `features`, and its dropout.
pub(super) fn attention(
    spec: &AttentionSpec,
    features: usize,
    here: &str,
) -> Result<(usize, f32), ModelError> {
    let path = format!("{here} (attention)");
    let heads = spec.heads;
    if heads == 0 {
        return Err(ModelError::Zero { path, key: "heads" });
    }
    if !features.is_multiple_of(heads) {
        return Err(ModelError::Heads {
            path,
            heads,
            features,
        });
    }
    let p = spec.dropout;
    let dropout = in_range(p, (0.0..=1.0).contains(&p), path, "dropout", "0 to 1")?;
    Ok((heads, dropout))
}
