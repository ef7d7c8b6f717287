//! What is shipped in the binary: model presets and scenarios, so that a copied binary needs no files.
//!
//! Contract: a scenario is named, or given as a path; a name of a shipped one wins over a file of that name
//! (`./name` reaches the file). Models are named only. The texts are those of the folder `scenarios`.
use std::io::ErrorKind;
use std::path::Path;

use syncmark_engine::model::spec::ModelSpec;

use crate::error::{CliError, Result};
use crate::scenario::problem::closest;
use crate::scenario::read::read;
use crate::scenario::tree::Node;

/// Names and texts of the model presets.
pub const MODELS: [(&str, &str); 9] = [
    ("mlp", include_str!("../../../../scenarios/models/mlp.toml")),
    (
        "convnet",
        include_str!("../../../../scenarios/models/convnet.toml"),
    ),
    (
        "resnet20",
        include_str!("../../../../scenarios/models/resnet20.toml"),
    ),
    (
        "resnet18",
        include_str!("../../../../scenarios/models/resnet18.toml"),
    ),
    (
        "resnet50",
        include_str!("../../../../scenarios/models/resnet50.toml"),
    ),
    (
        "char-encoder",
        include_str!("../../../../scenarios/models/char-encoder.toml"),
    ),
    (
        "bert-mini",
        include_str!("../../../../scenarios/models/bert-mini.toml"),
    ),
    (
        "bert-mini-tied",
        include_str!("../../../../scenarios/models/bert-mini-tied.toml"),
    ),
    (
        "bert-base",
        include_str!("../../../../scenarios/models/bert-base.toml"),
    ),
];

/// Names and texts of the shipped scenarios.
pub const SCENARIOS: [(&str, &str); 50] = [
    (
        "quickstart",
        include_str!("../../../../scenarios/quickstart.toml"),
    ),
    (
        "dp-vs-ddp",
        include_str!("../../../../scenarios/dp-vs-ddp.toml"),
    ),
    (
        "dp-vs-ddp-smoke",
        include_str!("../../../../scenarios/dp-vs-ddp-smoke.toml"),
    ),
    (
        "collectives",
        include_str!("../../../../scenarios/collectives.toml"),
    ),
    (
        "collectives-smoke",
        include_str!("../../../../scenarios/collectives-smoke.toml"),
    ),
    (
        "bn-batch-size",
        include_str!("../../../../scenarios/bn-batch-size.toml"),
    ),
    (
        "bn-batch-size-paper",
        include_str!("../../../../scenarios/bn-batch-size-paper.toml"),
    ),
    (
        "norm-text",
        include_str!("../../../../scenarios/norm-text.toml"),
    ),
    (
        "norm-cost",
        include_str!("../../../../scenarios/norm-cost.toml"),
    ),
    (
        "norm-cost-smoke",
        include_str!("../../../../scenarios/norm-cost-smoke.toml"),
    ),
    (
        "layer-cost",
        include_str!("../../../../scenarios/layer-cost.toml"),
    ),
    (
        "layer-cost-smoke",
        include_str!("../../../../scenarios/layer-cost-smoke.toml"),
    ),
    (
        "scaling",
        include_str!("../../../../scenarios/scaling.toml"),
    ),
    (
        "scaling-smoke",
        include_str!("../../../../scenarios/scaling-smoke.toml"),
    ),
    (
        "batch-size",
        include_str!("../../../../scenarios/batch-size.toml"),
    ),
    (
        "batch-size-smoke",
        include_str!("../../../../scenarios/batch-size-smoke.toml"),
    ),
    (
        "communication-volume",
        include_str!("../../../../scenarios/communication-volume.toml"),
    ),
    (
        "communication-volume-smoke",
        include_str!("../../../../scenarios/communication-volume-smoke.toml"),
    ),
    (
        "bucket-size",
        include_str!("../../../../scenarios/bucket-size.toml"),
    ),
    (
        "bucket-size-smoke",
        include_str!("../../../../scenarios/bucket-size-smoke.toml"),
    ),
    (
        "compression",
        include_str!("../../../../scenarios/compression.toml"),
    ),
    (
        "compression-smoke",
        include_str!("../../../../scenarios/compression-smoke.toml"),
    ),
    (
        "accumulation",
        include_str!("../../../../scenarios/accumulation.toml"),
    ),
    (
        "accumulation-smoke",
        include_str!("../../../../scenarios/accumulation-smoke.toml"),
    ),
    ("zero1", include_str!("../../../../scenarios/zero1.toml")),
    (
        "zero1-smoke",
        include_str!("../../../../scenarios/zero1-smoke.toml"),
    ),
    (
        "transports",
        include_str!("../../../../scenarios/transports.toml"),
    ),
    (
        "transports-smoke",
        include_str!("../../../../scenarios/transports-smoke.toml"),
    ),
    (
        "bn-batch-size-smoke",
        include_str!("../../../../scenarios/bn-batch-size-smoke.toml"),
    ),
    (
        "norm-text-smoke",
        include_str!("../../../../scenarios/norm-text-smoke.toml"),
    ),
    (
        "bn-batch-size-rates",
        include_str!("../../../../scenarios/bn-batch-size-rates.toml"),
    ),
    (
        "bn-batch-size-paper-arm",
        include_str!("../../../../scenarios/bn-batch-size-paper-arm.toml"),
    ),
    (
        "bn-batch-size-paper-arm-smoke",
        include_str!("../../../../scenarios/bn-batch-size-paper-arm-smoke.toml"),
    ),
    (
        "norm-convergence",
        include_str!("../../../../scenarios/norm-convergence.toml"),
    ),
    (
        "norm-convergence-smoke",
        include_str!("../../../../scenarios/norm-convergence-smoke.toml"),
    ),
    (
        "norm-text-rates",
        include_str!("../../../../scenarios/norm-text-rates.toml"),
    ),
    (
        "sync-bn",
        include_str!("../../../../scenarios/sync-bn.toml"),
    ),
    (
        "sync-bn-smoke",
        include_str!("../../../../scenarios/sync-bn-smoke.toml"),
    ),
    (
        "train-eval-gap",
        include_str!("../../../../scenarios/train-eval-gap.toml"),
    ),
    (
        "train-eval-gap-smoke",
        include_str!("../../../../scenarios/train-eval-gap-smoke.toml"),
    ),
    (
        "gpu-dp-vs-ddp",
        include_str!("../../../../scenarios/gpu-dp-vs-ddp.toml"),
    ),
    (
        "gpu-dp-vs-ddp-smoke",
        include_str!("../../../../scenarios/gpu-dp-vs-ddp-smoke.toml"),
    ),
    (
        "gpu-acceptance",
        include_str!("../../../../scenarios/gpu-acceptance.toml"),
    ),
    (
        "gpu-acceptance-smoke",
        include_str!("../../../../scenarios/gpu-acceptance-smoke.toml"),
    ),
    (
        "gpu-collectives",
        include_str!("../../../../scenarios/gpu-collectives.toml"),
    ),
    (
        "gpu-collectives-smoke",
        include_str!("../../../../scenarios/gpu-collectives-smoke.toml"),
    ),
    (
        "gpu-norm-cost",
        include_str!("../../../../scenarios/gpu-norm-cost.toml"),
    ),
    (
        "gpu-norm-cost-smoke",
        include_str!("../../../../scenarios/gpu-norm-cost-smoke.toml"),
    ),
    (
        "gpu-dispatch",
        include_str!("../../../../scenarios/gpu-dispatch.toml"),
    ),
    (
        "gpu-dispatch-smoke",
        include_str!("../../../../scenarios/gpu-dispatch-smoke.toml"),
    ),
];

/// The model of a preset; none for an unknown name.
pub fn model(name: &str) -> Option<ModelSpec> {
    let (_, text) = MODELS.iter().find(|(preset, _)| *preset == name)?;
    // A test reads every preset, so a shipped one is never silently unknown.
    Node::parse(text, 0).and_then(|tree| read(&tree)).ok()
}

/// Name (for messages) and text of a scenario that was named or given as a path.
///
/// # Errors
/// When it is neither a shipped scenario nor a readable UTF-8 file.
pub fn scenario(argument: &str) -> Result<(String, String)> {
    if let Some((name, text)) = SCENARIOS.iter().find(|(name, _)| *name == argument) {
        return Ok((format!("{name}.toml (shipped)"), (*text).to_owned()));
    }
    match std::fs::read_to_string(Path::new(argument)) {
        Ok(text) => Ok((argument.to_owned(), text)),
        Err(error) => Err(unreadable(argument, &error)),
    }
}

fn unreadable(argument: &str, error: &std::io::Error) -> CliError {
    let names: Vec<String> = SCENARIOS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    match error.kind() {
        ErrorKind::NotFound => {
            let guess = closest(argument, &names).map(|name| format!("did you mean `{name}`? "));
            CliError::usage(format!(
                "there is no scenario `{argument}`: no such file, and none of that name is shipped"
            ))
            .help(format!(
                "{}shipped scenarios: {}",
                guess.unwrap_or_default(),
                names.join(", ")
            ))
        }
        ErrorKind::InvalidData => {
            CliError::usage(format!("the scenario `{argument}` is no UTF-8 text"))
        }
        ErrorKind::IsADirectory => {
            CliError::usage(format!("the scenario `{argument}` is a folder"))
                .help("give a TOML file; to render a run folder again, use `syncmark report`")
        }
        _ => CliError::usage(format!("the scenario `{argument}` cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_reads_and_bears_its_name() {
        for (name, text) in MODELS {
            let tree = Node::parse(text, 0).unwrap();
            let spec: ModelSpec = read(&tree).unwrap_or_else(|problem| panic!("{name}: {problem}"));
            assert_eq!(spec.name, name);
        }
    }
}
