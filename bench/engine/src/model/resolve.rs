//! From a model file to nodes: shapes are propagated, norms chosen, biases decided, residuals and repeats unrolled.
//!
//! `scripts/pytorch/model.py` follows the same rules. A `linear` or `conv2d` that does not say has a bias, unless the
//! next element of the same list is a norm with learnable parameters (β would absorb it; RMS norm has none, but is treated
//! alike, so that a preset has the same convolutions with every norm). A flatten that moves no element
//! in memory (one channel, or one pixel) becomes no node.
use super::error::ModelError;
use super::layers::{
    average_pool, batch_norm, conv2d, group_norm, in_range, instance_norm, is_affine, layer_norm,
    max_pool, rms_norm, spatial, weight_fits,
};
use super::node::{Node, Op};
use super::spec::{
    BatchNormSpec, Features, GroupNormSpec, InstanceNormSpec, LayerNormSpec, LayerSpec, LinearSpec,
    ModelSpec, Norm, RepeatSpec, ResidualSpec, RmsNormSpec,
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
    /// Shape of the output: `[classes]` for models that were made by [`resolve`].
    pub output: Shape,
    /// Classes of the data.
    pub classes: usize,
    /// What `norm` layers became.
    pub norm: Norm,
    /// In order of execution.
    pub nodes: Vec<Node>,
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
    if model.output != Shape::Features(classes) {
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
    };
    let end = lowering.list(&spec.layers, Value { id: 0, shape }, "layers")?;
    let (name, nodes) = (spec.name.clone(), lowering.nodes);
    Ok(Model {
        name,
        input: shape,
        output: end.shape,
        classes,
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
        let (op, output) = match layer {
            LayerSpec::Linear(spec) => self.linear(spec, input, bias, &here)?,
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
            LayerSpec::BatchNorm(spec) => (batch_norm(spec, false, &here)?, input),
            LayerSpec::SyncBatchNorm(spec) => (batch_norm(spec, true, &here)?, input),
            LayerSpec::LayerNorm(spec) => (layer_norm(spec, &here)?, input),
            LayerSpec::InstanceNorm(spec) => (instance_norm(spec, input, &here)?, input),
            LayerSpec::GroupNorm(spec) => (group_norm(spec, input, &here)?, input),
            LayerSpec::RmsNorm(spec) => (rms_norm(spec, &here)?, input),
            LayerSpec::Norm | LayerSpec::Residual(_) | LayerSpec::Repeat(_) => {
                unreachable!("`list` replaces norms and takes residuals and repeats itself")
            }
        };
        let path = format!("{here} ({})", op.kind());
        self.push(op, vec![value.id], input, output, path)
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
        match input {
            Shape::Image { .. } | Shape::Sequence { .. } => {
                Err(ModelError::NeedsFeatures { path, input })
            }
            Shape::Features(_) if features == 0 => Err(ModelError::Zero {
                path,
                key: "features",
            }),
            Shape::Features(_) => Ok((
                Op::Linear {
                    bias: spec.bias.unwrap_or(bias),
                },
                Shape::Features(features),
            )),
        }
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
