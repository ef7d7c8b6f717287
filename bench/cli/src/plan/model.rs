//! The model of a trial: its layers with the data's input and classes, and what the engine says of them.
//!
//! Contract: what the engine refuses is shown at the layer in the user's file, or at the preset's name. The
//! engine's `model` needs no device, so shapes are checked before anything runs.
use syncmark_engine::data::tokens::PADDING;
use syncmark_engine::data::{cifar10, fashion_mnist, text};
use syncmark_engine::model::spec::{BatchNormSpec, LayerSpec, ModelSpec, Momentum, Norm, Padding};
use syncmark_engine::model::{ModelError, resolve};

use crate::plan::config::{Batch, norm_options};
use crate::scenario::check::Checker;
use crate::scenario::file::{Model, Scenario, Source};
use crate::scenario::preset;
use crate::scenario::problem::Problem;
use crate::scenario::tree::Segment;

/// Name of a model whose layers stand in the scenario.
pub const IN_PLACE: &str = "in-place";

/// Per-sample shape and classes of a data set that has its own; synthetic samples have the model's.
fn of_data(source: Source) -> Option<([usize; 3], usize)> {
    match source {
        Source::Digits => Some(([1, 8, 8], 10)),
        Source::FashionMnist => Some((fashion_mnist::SHAPE, fashion_mnist::CLASSES)),
        Source::Cifar10 => Some((cifar10::SHAPE, cifar10::CLASSES)),
        Source::Text | Source::Synthetic => None,
    }
}

/// The layers of a checked scenario with the input and classes that they get.
///
/// # Errors
/// When neither the data nor the model says what a sample is.
pub fn spec(scenario: &Scenario, checker: &Checker) -> Result<ModelSpec, Problem> {
    let model = &scenario.model;
    let preset = model.preset.as_deref().and_then(preset::model);
    let given = of_data(scenario.data.source);
    let (input, classes) = match (&preset, given) {
        (_, Some((shape, classes))) => (Some(shape.to_vec()), Some(classes)),
        (Some(preset), _) => (Some(preset.input.clone()), Some(preset.classes)),
        (None, _) => (model.input.clone(), model.classes),
    };
    if let Some((shape, _)) = given
        && model.input.as_ref().is_some_and(|input| *input != shape)
    {
        let help = "leave model.input out, or write data.source = \"synthetic\"";
        let message = format!("this data set has images of {shape:?}");
        return Err(checker.problem("model.input", message, help));
    }
    let (mut shape, mut number) = (None, None);
    if scenario.data.source == Source::Synthetic {
        (shape, number) = (scenario.data.shape.clone(), scenario.data.classes);
    }
    let input = shape.or(input).ok_or_else(|| {
        checker.problem(
            "data",
            "nothing says what a synthetic sample is",
            "write shape = [channels, height, width], [channels, length] or [features]",
        )
    })?;
    if scenario.data.source == Source::Text {
        number = Some(text::VOCABULARY);
    }
    let classes = number.or(classes).ok_or_else(|| {
        checker.problem(
            "data",
            "nothing says how many classes synthetic samples have",
            "write classes = 10",
        )
    })?;
    Ok(match preset {
        Some(preset) => ModelSpec {
            input,
            classes,
            ..preset
        },
        None => {
            let layers = model.layers.clone().unwrap_or_default();
            ModelSpec {
                name: IN_PLACE.to_owned(),
                input,
                classes,
                layers,
            }
        }
    })
}

/// Whether the model's input is tokens.
pub fn takes_tokens(spec: &ModelSpec) -> bool {
    any(&spec.layers, &|layer| {
        matches!(layer, LayerSpec::Embedding(_))
    })
}

/// Whether a layer drops something.
pub fn drops(spec: &ModelSpec) -> bool {
    any(&spec.layers, &|layer| match layer {
        LayerSpec::Dropout(dropout) => dropout.p > 0.0,
        LayerSpec::Attention(attention) => attention.dropout > 0.0,
        _ => false,
    })
}

/// What the model's `norm` layers become, and their settings: none where one means nothing, or is the usual one.
#[derive(Clone, Copy, Debug)]
pub struct NormOfModel {
    /// The norm.
    pub norm: Norm,
    /// Its groups.
    pub groups: Option<usize>,
    /// Whether padding counts in it.
    pub padding: Option<Padding>,
    /// Momentum of its running statistics.
    pub momentum: Option<Momentum>,
}

/// What the model's `norm` layers become; `batch` is what they see, in chunks that are normalized together.
pub fn norm(scenario: &Scenario, spec: &ModelSpec, batch: &Batch) -> NormOfModel {
    let norm = match any(&spec.layers, &|layer| *layer == LayerSpec::Norm) {
        true => scenario.model.norm,
        false => Norm::None,
    };
    let of_batches = matches!(norm, Norm::Batch | Norm::SyncBatch);
    let together = match norm {
        Norm::SyncBatch => batch.global,
        _ => batch.chunks.first().copied().unwrap_or(batch.global),
    };
    NormOfModel {
        norm,
        groups: scenario.model.norm_groups.filter(|_| norm == Norm::Group),
        padding: scenario
            .model
            .norm_padding
            .filter(|_| takes_tokens(spec) && of_batches),
        momentum: momentum(&scenario.model, together).filter(|_| of_batches),
    }
}

/// The momentum of running statistics of `together` samples; none if it is the usual one.
fn momentum(model: &Model, together: usize) -> Option<Momentum> {
    let usual = BatchNormSpec::default().momentum;
    let given = model.norm_momentum.unwrap_or(usual);
    let momentum = match (given, model.norm_momentum_batch) {
        (Momentum::Exponential(m), Some(meant_for)) => {
            let kept = (1.0 - f64::from(m)).powf(together as f64 / meant_for as f64);
            Momentum::Exponential((1.0 - kept) as f32)
        }
        (given, _) => given,
    };
    Some(momentum).filter(|momentum| *momentum != usual)
}

/// Whether a collective runs inside a layer.
pub fn synchronizes(spec: &ModelSpec, norm: Norm) -> bool {
    norm == Norm::SyncBatch
        || any(&spec.layers, &|layer| {
            matches!(layer, LayerSpec::SyncBatchNorm(_))
        })
}

/// Whether batch statistics are those of each rank: BatchNorm's are, SyncBatchNorm's are the same everywhere.
pub fn keeps_own_statistics(spec: &ModelSpec, norm: Norm) -> bool {
    norm == Norm::Batch
        || any(&spec.layers, &|layer| {
            matches!(layer, LayerSpec::BatchNorm(_))
        })
}

/// Whether the model has a norm, whatever it is.
pub fn has_norm(spec: &ModelSpec, norm: Norm) -> bool {
    norm != Norm::None
        || any(&spec.layers, &|layer| {
            matches!(
                layer,
                LayerSpec::BatchNorm(_)
                    | LayerSpec::SyncBatchNorm(_)
                    | LayerSpec::LayerNorm(_)
                    | LayerSpec::InstanceNorm(_)
                    | LayerSpec::GroupNorm(_)
                    | LayerSpec::RmsNorm(_)
            )
        })
}

/// The place among the layers of an embedding whose padding token is not that of the data, and the token.
pub fn other_padding(spec: &ModelSpec) -> Option<(usize, usize)> {
    spec.layers
        .iter()
        .enumerate()
        .find_map(|(index, layer)| match layer {
            LayerSpec::Embedding(embedding) => {
                let token = embedding.padding.filter(|token| *token != PADDING)?;
                Some((index, token))
            }
            _ => None,
        })
}

fn any(layers: &[LayerSpec], is: &impl Fn(&LayerSpec) -> bool) -> bool {
    layers.iter().any(|layer| {
        is(layer)
            || match layer {
                LayerSpec::Residual(residual) => {
                    any(&residual.body, is) || any(&residual.shortcut, is)
                }
                LayerSpec::Repeat(repeat) => any(&repeat.layers, is),
                _ => false,
            }
    })
}

/// Scalar parameters of the model.
///
/// # Errors
/// Shapes that do not chain, groups that do not divide, batch statistics of a single element.
pub fn parameters(
    spec: &ModelSpec,
    norm: NormOfModel,
    batch: &Batch,
    checker: &Checker,
) -> Result<u64, Problem> {
    let options = norm_options(norm.groups, norm.padding, norm.momentum);
    let (norm, groups) = (norm.norm, norm.groups);
    let check = || {
        let model = resolve(spec, &spec.input, spec.classes, norm, &options)?;
        model.check_chunk(batch.chunks.iter().copied().min().unwrap_or(0))?;
        if norm == Norm::SyncBatch {
            // It has the samples of all ranks: it is BatchNorm over the global batch.
            resolve(spec, &spec.input, spec.classes, Norm::Batch, &options)?
                .check_chunk(batch.global)?;
        }
        Ok(model.facts().parameters as u64)
    };
    check().map_err(|error| located(&error, spec, groups, checker))
}

/// The engine's message at the value that it is about. It starts with the layer's path in the model file.
fn located(
    error: &ModelError,
    spec: &ModelSpec,
    groups: Option<usize>,
    checker: &Checker,
) -> Problem {
    let message = error.to_string();
    let (what, help) = match message.rsplit_once(": ") {
        Some((what, help)) => (what.to_owned(), help.to_owned()),
        None => (message, "see the model's layers".to_owned()),
    };
    let message = match spec.name.as_str() {
        IN_PLACE => what,
        preset => format!("model `{preset}`: {what}"),
    };
    let key = |key: &str| Segment::Key(key.to_owned());
    let path = match error {
        ModelError::OneElement { .. }
            if checker.says(&[key("train"), key("normalization_batch")]) =>
        {
            vec![key("train"), key("normalization_batch")]
        }
        ModelError::OneElement { .. } => vec![key("data"), key("batch_size")],
        ModelError::Groups { .. } if groups.is_some() => vec![key("model"), key("norm_groups")],
        ModelError::Output { .. } if spec.name == IN_PLACE => vec![key("model"), key("layers")],
        _ if spec.name == IN_PLACE => layer_path(&error.to_string()),
        _ => vec![key("model"), key("preset")],
    };
    checker.problem_at(&path, message, help)
}

/// `model`, `layers`, 3, `residual`, `body`, 1 for `layers[3].residual.body[1] (conv2d): ...`.
fn layer_path(message: &str) -> Vec<Segment> {
    let mut path = vec![Segment::Key("model".to_owned())];
    let end = message.find([' ', ':']).unwrap_or(message.len());
    for part in message[..end].split('.') {
        let (name, index) = match part.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse().ok()),
            None => (part, None),
        };
        path.push(Segment::Key(name.to_owned()));
        path.extend(index.map(Segment::Index));
    }
    path
}
