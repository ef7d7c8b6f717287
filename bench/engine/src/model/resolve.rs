//! From a model file to nodes: shapes are propagated, norms chosen, biases decided, residuals and repeats unrolled.
//!
//! `scripts/pytorch/model.py` follows the same rules. A `linear` or `conv2d` that does not say has a bias, unless the
//! next element of the same list is a norm with learnable parameters (β would absorb it; RMS norm has none, but is treated
//! alike, so that a preset has the same convolutions with every norm). A flatten that moves no element
//! in memory (one channel, or one pixel) becomes no node.
use super::error::ModelError;
use super::layers::{
    Tokens, attention, average_pool, batch_norm, conv2d, embedding, group_norm, in_range,
    instance_norm, is_affine, layer_norm, max_pool, rms_norm, spatial, weight_fits,
};
use super::node::{Node, Op};
use super::spec::{
    AttentionSpec, BatchNormSpec, Features, GroupNormSpec, InstanceNormSpec, LayerNormSpec,
    LayerSpec, LinearSpec, ModelSpec, Norm, RepeatSpec, ResidualSpec, RmsNormSpec,
};
use crate::layout::Layout;
use crate::shape::Shape;

/// More layers than this cannot be meant.
const MAX_NODES: usize = 4096;

/// A model whose every layer has its shapes: what [`crate::program::Program`] is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Name of the model file.
    pub name: String,
    /// Shape of a sample.
    pub input: Shape,
    /// Shape of the output: `[classes]` for models that were made by [`resolve`], or `[classes, length]` for those of tokens.
    pub output: Shape,
    /// Classes of the data.
    pub classes: usize,
    /// The vocabulary, where the model's input is tokens.
    pub vocabulary: Option<usize>,
    /// What `norm` layers became.
    pub norm: Norm,
    /// In order of execution.
    pub nodes: Vec<Node>,
}

impl Model {
    /// Labels of a sample: 1, or of tokens one for each position of the output.
    pub fn labels_per_sample(&self) -> usize {
        self.output.spatial()
    }
}

/// Settings of the layers that `norm` stands for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NormOptions {
    /// Of batch and sync-batch.
    pub batch: BatchNormSpec,
    /// Of layer.
    pub layer: LayerNormSpec,
    /// Of instance.
    pub instance: InstanceNormSpec,
    /// Of group.
    pub group: GroupNormSpec,
    /// Of rms.
    pub rms: RmsNormSpec,
}

/// Lowers `spec` for samples of `input` (NCHW without N) and data with `classes` classes.
///
/// # Errors
/// A [`ModelError`] that names the layer; [`ModelError::Output`] when the output is not `[classes]`.
pub fn resolve(
    spec: &ModelSpec,
    input: &[usize],
    classes: usize,
    norm: Norm,
    options: &NormOptions,
) -> Result<Model, ModelError> {
    let model = lower(spec, input, classes, norm, options)?;
    let fits = match model.output {
        Shape::Features(features) => features == classes,
        Shape::Sequence { c, .. } => c == classes && model.vocabulary.is_some(),
        Shape::Image { .. } => false,
    };
    if !fits {
        return Err(ModelError::Output {
            output: model.output,
            classes,
        });
    }
    Ok(model)
}

/// As [`resolve`], for parts of a model, whose output need not be `[classes]`.
///
/// # Errors
/// A [`ModelError`] that names the layer.
pub fn lower(
    spec: &ModelSpec,
    input: &[usize],
    classes: usize,
    norm: Norm,
    options: &NormOptions,
) -> Result<Model, ModelError> {
    let shape = Shape::from_dimensions(input).ok_or_else(|| ModelError::Input {
        dimensions: input.to_vec(),
    })?;
    let mut lowering = Lowering {
        classes,
        norm,
        options,
        nodes: Vec::new(),
        tokens: None,
    };
    let end = lowering.list(&spec.layers, Value { id: 0, shape }, "layers")?;
    let (name, nodes) = (spec.name.clone(), lowering.nodes);
    Ok(Model {
        name,
        input: shape,
        output: end.shape,
        classes,
        vocabulary: lowering.tokens.map(|tokens| tokens.vocabulary),
        norm,
        nodes,
    })
}

/// A value on its way through the layers.
#[derive(Clone, Copy)]
struct Value {
    id: usize,
    shape: Shape,
}

struct Lowering<'a> {
    classes: usize,
    norm: Norm,
    options: &'a NormOptions,
    nodes: Vec<Node>,
    /// Known from the embedding on.
    tokens: Option<Tokens>,
}

impl Lowering<'_> {
    fn list(
        &mut self,
        layers: &[LayerSpec],
        mut value: Value,
        path: &str,
    ) -> Result<Value, ModelError> {
        // Indices are those of the file, so that a message leads to the line that is wrong.
        let resolved: Vec<(usize, LayerSpec)> = layers
            .iter()
            .enumerate()
            .filter_map(|(i, layer)| Some((i, self.choose_norm(layer)?)))
            .collect();
        if layers.is_empty() {
            return Err(ModelError::Empty {
                path: path.to_owned(),
            });
        }
        for (position, (index, layer)) in resolved.iter().enumerate() {
            let bias = !resolved
                .get(position + 1)
                .is_some_and(|(_, next)| is_affine(next));
            let here = format!("{path}[{index}]");
            value = match layer {
                LayerSpec::Residual(residual) => self.residual(residual, value, &here)?,
                LayerSpec::Repeat(repeat) => self.repeat(repeat, value, &here)?,
                LayerSpec::Attention(attention) => self.attention(attention, value, &here)?,
                layer => self.simple(layer, value, here, bias)?,
            };
        }
        Ok(value)
    }

    /// What a `norm` layer stands for; none when it vanishes. Other layers stay as they are.
    fn choose_norm(&self, layer: &LayerSpec) -> Option<LayerSpec> {
        if *layer != LayerSpec::Norm {
            return Some(layer.clone());
        }
        match self.norm {
            Norm::None => None,
            Norm::Batch => Some(LayerSpec::BatchNorm(self.options.batch.clone())),
            Norm::SyncBatch => Some(LayerSpec::SyncBatchNorm(self.options.batch.clone())),
            Norm::Layer => Some(LayerSpec::LayerNorm(self.options.layer.clone())),
            Norm::Instance => Some(LayerSpec::InstanceNorm(self.options.instance.clone())),
            Norm::Rms => Some(LayerSpec::RmsNorm(self.options.rms.clone())),
            Norm::Group => Some(LayerSpec::GroupNorm(self.options.group.clone())),
        }
    }

    fn residual(
        &mut self,
        spec: &ResidualSpec,
        value: Value,
        path: &str,
    ) -> Result<Value, ModelError> {
        let body = self.list(&spec.body, value, &format!("{path}.residual.body"))?;
        let shortcut = if spec.shortcut.is_empty() {
            value
        } else {
            self.list(&spec.shortcut, value, &format!("{path}.residual.shortcut"))?
        };
        let path = format!("{path} (residual)");
        if body.shape != shortcut.shape {
            return Err(ModelError::Branches {
                path,
                body: body.shape,
                shortcut: shortcut.shape,
            });
        }
        self.push(
            Op::Add,
            vec![body.id, shortcut.id],
            body.shape,
            body.shape,
            path,
        )
    }

    fn repeat(
        &mut self,
        spec: &RepeatSpec,
        mut value: Value,
        path: &str,
    ) -> Result<Value, ModelError> {
        if spec.times == 0 {
            return Err(ModelError::Zero {
                path: format!("{path} (repeat)"),
                key: "times",
            });
        }
        for _ in 0..spec.times {
            let before = (self.nodes.len(), value.shape);
            value = self.list(&spec.layers, value, &format!("{path}.repeat.layers"))?;
            // Only norms that vanish, or flattens that move nothing: more rounds would change nothing either.
            if (self.nodes.len(), value.shape) == before {
                break;
            }
        }
        Ok(value)
    }

    fn simple(
        &mut self,
        layer: &LayerSpec,
        value: Value,
        here: String,
        bias: bool,
    ) -> Result<Value, ModelError> {
        let input = value.shape;
        let mut inputs = vec![value.id];
        // What an embedding has made are sequences, and norms that know no batch take each position by itself.
        let each_position = matches!(input, Shape::Sequence { .. }) && self.tokens.is_some();
        let (op, output) = match layer {
            LayerSpec::Linear(spec) => self.linear(spec, input, bias, &here)?,
            LayerSpec::Embedding(spec) => {
                let (op, output) = embedding(spec, value.id, input, self.classes, &here)?;
                if let Op::Embedding {
                    vocabulary,
                    padding,
                } = op
                {
                    self.tokens = Some(Tokens {
                        node: self.nodes.len(),
                        vocabulary,
                        features: output.channels(),
                        padding,
                    });
                }
                (op, output)
            }
            LayerSpec::Positions => {
                self.tokens(input, &here, "positions")?;
                (Op::Positions, input)
            }
            LayerSpec::Conv2d(spec) => conv2d(spec, input, bias, &here)?,
            LayerSpec::Relu => (Op::Relu, input),
            LayerSpec::Gelu(spec) => (
                Op::Gelu {
                    formula: spec.approximate,
                },
                input,
            ),
            LayerSpec::MaxPool(spec) => max_pool(spec, input, &here)?,
            LayerSpec::AveragePool(spec) => average_pool(spec, input, &here)?,
            LayerSpec::GlobalAveragePool => {
                spatial(input, &here, "global-average-pool")?;
                (Op::GlobalAveragePool, Shape::Features(input.channels()))
            }
            LayerSpec::Flatten => {
                spatial(input, &here, "flatten")?;
                let shape = Shape::Features(input.elements());
                if Layout::activation(input, 1) == Layout::Same {
                    return Ok(Value { shape, ..value });
                }
                (Op::Flatten, shape)
            }
            LayerSpec::Dropout(spec) => {
                let path = format!("{here} (dropout)");
                (
                    Op::Dropout {
                        p: in_range(spec.p, (0.0..=1.0).contains(&spec.p), path, "p", "0 to 1")?,
                    },
                    input,
                )
            }
            LayerSpec::BatchNorm(spec) => (self.batch_norm(spec, false, input, &here)?, input),
            LayerSpec::SyncBatchNorm(spec) => (self.batch_norm(spec, true, input, &here)?, input),
            LayerSpec::LayerNorm(spec) => (layer_norm(spec, each_position, &here)?, input),
            LayerSpec::InstanceNorm(spec) => (instance_norm(spec, input, &here)?, input),
            LayerSpec::GroupNorm(spec) => (group_norm(spec, input, each_position, &here)?, input),
            LayerSpec::RmsNorm(spec) => (rms_norm(spec, each_position, &here)?, input),
            LayerSpec::Norm
            | LayerSpec::Residual(_)
            | LayerSpec::Repeat(_)
            | LayerSpec::Attention(_) => {
                unreachable!("`list` replaces norms and takes layers of several nodes itself")
            }
        };
        if matches!(
            op,
            Op::BatchNorm {
                padding: Some(_),
                ..
            }
        ) {
            inputs.push(0);
        }
        let path = format!("{here} ({})", op.kind());
        self.push(op, inputs, input, output, path)
    }

    /// The embedding, for a layer that needs what comes of it.
    fn tokens(&self, input: Shape, here: &str, kind: &str) -> Result<Tokens, ModelError> {
        self.tokens
            .filter(|_| matches!(input, Shape::Sequence { .. }))
            .ok_or_else(|| ModelError::NeedsTokens {
                path: format!("{here} ({kind})"),
            })
    }

    /// Batch norm; padding can only be left out of sequences.
    fn batch_norm(
        &self,
        spec: &BatchNormSpec,
        sync: bool,
        input: Shape,
        here: &str,
    ) -> Result<Op, ModelError> {
        let sequence = matches!(input, Shape::Sequence { .. });
        batch_norm(spec, sync, self.tokens.filter(|_| sequence), here)
    }

    /// Queries, keys and values side by side from one product, attention, and the product of its output.
    fn attention(
        &mut self,
        spec: &AttentionSpec,
        value: Value,
        here: &str,
    ) -> Result<Value, ModelError> {
        let tokens = self.tokens(value.shape, here, "attention")?;
        let (features, length) = (value.shape.channels(), value.shape.spatial());
        let (heads, dropout) = attention(spec, features, here)?;
        let path = || format!("{here} (attention)");
        let wide = Shape::Sequence {
            c: features.saturating_mul(3),
            length,
        };
        let linear = Op::Linear {
            bias: spec.bias,
            tied: None,
        };
        let projected = self.push(linear.clone(), vec![value.id], value.shape, wide, path())?;
        let op = Op::Attention {
            heads,
            dropout,
            padding: tokens.padding,
        };
        // The tokens, value 0, say where padding is.
        let mixed = self.push(op, vec![projected.id, 0], wide, value.shape, path())?;
        self.push(linear, vec![mixed.id], value.shape, value.shape, path())
    }

    fn linear(
        &self,
        spec: &LinearSpec,
        input: Shape,
        bias: bool,
        here: &str,
    ) -> Result<(Op, Shape), ModelError> {
        let path = format!("{here} (linear)");
        let features = match spec.features {
            Features::Classes => self.classes,
            Features::Count(features) => features,
        };
        if features == 0 {
            let key = "features";
            return Err(ModelError::Zero { path, key });
        }
        let output = match input {
            Shape::Features(_) => Shape::Features(features),
            Shape::Sequence { length, .. } if self.tokens.is_some() => Shape::Sequence {
                c: features,
                length,
            },
            Shape::Image { .. } | Shape::Sequence { .. } => {
                return Err(ModelError::NeedsFeatures { path, input });
            }
        };
        let tied = match (spec.tied, self.tokens) {
            (false, _) => None,
            (true, None) => return Err(ModelError::NeedsTokens { path }),
            (true, Some(tokens)) => {
                let (vocabulary, table, inputs) =
                    (tokens.vocabulary, tokens.features, input.channels());
                if (vocabulary, table) != (features, inputs) {
                    return Err(ModelError::Tied {
                        path,
                        vocabulary,
                        table,
                        outputs: features,
                        inputs,
                    });
                }
                Some(tokens.node)
            }
        };
        let bias = spec.bias.unwrap_or(bias);
        Ok((Op::Linear { bias, tied }, output))
    }

    fn push(
        &mut self,
        op: Op,
        inputs: Vec<usize>,
        input: Shape,
        output: Shape,
        path: String,
    ) -> Result<Value, ModelError> {
        if self.nodes.len() == MAX_NODES {
            return Err(ModelError::TooManyLayers {
                path,
                limit: MAX_NODES,
            });
        }
        if output.checked_elements().is_none() {
            return Err(ModelError::TooLarge {
                path,
                what: "the output",
            });
        }
        let node = Node {
            op,
            inputs,
            input,
            output,
            path,
        };
        if !weight_fits(&node) {
            return Err(ModelError::TooLarge {
                path: node.path,
                what: "the weight",
            });
        }
        self.nodes.push(node);
        Ok(Value {
            id: self.nodes.len(),
            shape: output,
        })
    }
}
