//! What can be said about a model without a device: its layers, shapes and sizes.
use super::error::ModelError;
use super::node::{Node, Op, ParameterSlot};
use super::resolve::{Model, NormOptions, resolve};
use super::spec::{ModelSpec, Norm};
use crate::shape::Shape;

/// A model in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// Trainable elements.
    pub parameters: usize,
    /// Bytes of the parameters, which are f32: P of METHODOLOGY.md.
    pub parameter_bytes: usize,
    /// Bytes of running means, variances (f32) and `num_batches_tracked` (i64): F of METHODOLOGY.md.
    pub buffer_bytes: usize,
    /// Elements of all values of one sample: what forward keeps for backward.
    pub activations: usize,
    /// Output of one sample.
    pub output: Shape,
    /// In order of execution.
    pub layers: Vec<LayerFacts>,
}

/// A lowered layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerFacts {
    /// Where it stands in the file.
    pub path: String,
    /// Kind, as in model files.
    pub kind: &'static str,
    /// Shape of its output.
    pub output: Shape,
    /// Trainable elements.
    pub parameters: usize,
}

/// Resolves a model and, where `smallest_chunk` is given, checks that batch statistics over so many samples of a rank or
/// normalization chunk exist.
///
/// # Errors
/// A [`ModelError`] that names the layer.
pub fn check(
    spec: &ModelSpec,
    input: &[usize],
    classes: usize,
    norm: Norm,
    smallest_chunk: Option<usize>,
) -> Result<ModelFacts, ModelError> {
    let model = resolve(spec, input, classes, norm, &NormOptions::default())?;
    if let Some(samples) = smallest_chunk {
        model.check_chunk(samples)?;
    }
    Ok(model.facts())
}

impl Model {
    /// Its sizes.
    pub fn facts(&self) -> ModelFacts {
        let layers: Vec<LayerFacts> = self.nodes.iter().map(layer_facts).collect();
        let parameters = layers.iter().map(|layer| layer.parameters).sum();
        let running = self.nodes.iter().filter_map(Node::running_channels);
        ModelFacts {
            parameters,
            parameter_bytes: parameters * size_of::<f32>(),
            buffer_bytes: running
                .map(|channels| 2 * channels * size_of::<f32>() + size_of::<i64>())
                .sum(),
            activations: self.input.elements()
                + self
                    .nodes
                    .iter()
                    .map(|node| node.output.elements())
                    .sum::<usize>(),
            output: self.output,
            layers,
        }
    }

    /// Whether a training step can normalize a chunk of `samples` samples. SyncBN is not checked: it has the other ranks.
    ///
    /// # Errors
    /// [`ModelError::OneElement`].
    pub fn check_chunk(&self, samples: usize) -> Result<(), ModelError> {
        for node in &self.nodes {
            if matches!(node.op, Op::BatchNorm { sync: false, .. })
                && samples * node.input.spatial() == 1
            {
                return Err(ModelError::OneElement {
                    path: node.path.clone(),
                    samples,
                    input: node.input,
                });
            }
        }
        Ok(())
    }
}

pub(super) fn layer_facts(node: &Node) -> LayerFacts {
    let parameters = node.parameters().iter().map(ParameterSlot::elements).sum();
    LayerFacts {
        path: node.path.clone(),
        kind: node.op.kind(),
        output: node.output,
        parameters,
    }
}
