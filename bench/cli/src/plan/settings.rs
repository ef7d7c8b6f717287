//! The effective settings of a trial as dotted keys, for `--filter`, labels and tables.
//!
//! Contract: exactly the keys that the trial uses are there, each as a user would write its value, so two
//! trials with equal settings are the same trial.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::plan::config::batch_norm_by;
use crate::plan::config::{
    Backend, CollectivesConfig, DpConfig, SourceConfig, TrialConfig, Work, compression_name,
    momentum_name,
};
use crate::scenario::file::{CudaMatmul, Optimizer, Precision, Scenario, Source};
use crate::scenario::keys::WHOLE_RUN;
use crate::scenario::size::ByteSize;

/// Dotted keys and values.
pub type Settings = BTreeMap<String, String>;

/// The settings of a configuration that was made from this effective scenario.
pub fn settings(scenario: &Scenario, config: &TrialConfig) -> Settings {
    if let Work::Collectives(collectives) = &config.work {
        return of_collectives(scenario, config, collectives);
    }
    let mut settings = Settings::new();
    let sections = [
        ("model", serde_json::to_value(&scenario.model)),
        ("data", serde_json::to_value(&scenario.data)),
        ("train", serde_json::to_value(&scenario.train)),
        ("parallel", serde_json::to_value(&scenario.parallel)),
        ("evaluate", serde_json::to_value(&scenario.evaluate)),
        ("measure", serde_json::to_value(&scenario.measure)),
    ];
    for (section, value) in sections {
        flatten(section, &value.unwrap_or_default(), &mut settings);
    }
    for key in ["model.input", "model.classes", "data.shape", "data.classes"]
        .iter()
        .chain(&WHOLE_RUN)
    {
        settings.remove(*key);
    }
    match config.learning() {
        // How long its steps are timed means nothing to what learns, and evaluation to what is timed.
        Some(_) => {
            settings.retain(|key, _| !key.starts_with("measure.") || key == "measure.timeout")
        }
        None => settings.retain(|key, _| !key.starts_with("evaluate.")),
    }
    if scenario.data.source == Source::Synthetic {
        let shape = Value::from(config.model.input.clone());
        settings.insert("data.shape".to_owned(), word(&shape));
        settings.insert("data.classes".to_owned(), config.model.classes.to_string());
    }
    let norm = serde_json::to_value(config.norm).unwrap_or_default();
    let (dp, ddp) = (config.strategy.dp(), config.strategy.ddp());
    let caps = config.strategy.bucket_caps();
    let (shortest, masking) = match &config.data.source {
        SourceConfig::SyntheticTokens { shortest, masking } => (Some(shortest), Some(masking)),
        SourceConfig::Text { masking, .. } => (None, Some(masking)),
        _ => (None, None),
    };
    settings.retain(|key, _| !key.starts_with("parallel.compression"));
    let effective = [
        ("model.norm", Some(word(&norm))),
        (
            "model.norm_groups",
            config.norm_groups.map(|groups| groups.to_string()),
        ),
        (
            "model.norm_padding",
            config
                .norm_padding
                .map(|padding| word(&serde_json::to_value(padding).unwrap_or_default())),
        ),
        (
            "model.norm_momentum",
            config.norm_momentum.map(momentum_name),
        ),
        // What they did stands in the momentum and in the learning rate.
        ("model.norm_momentum_batch", None),
        ("train.learning_rate_batch", None),
        (
            "train.optimizer.sgd.learning_rate",
            match &config.optimizer {
                Optimizer::Sgd(sgd) => Some(sgd.learning_rate.to_string()),
                Optimizer::Adamw(_) => None,
            },
        ),
        (
            "train.optimizer.adamw.learning_rate",
            match &config.optimizer {
                Optimizer::Adamw(adamw) => Some(adamw.learning_rate.to_string()),
                Optimizer::Sgd(_) => None,
            },
        ),
        (
            "evaluate.dropout_masks",
            config
                .learning()
                .filter(|learning| learning.dropout_masks > 0)
                .map(|learning| learning.dropout_masks.to_string()),
        ),
        ("data.shortest", shortest.map(usize::to_string)),
        (
            "data.hidden",
            masking.map(|masking| masking.share.to_string()),
        ),
        (
            "data.predict",
            masking.map(|masking| word(&serde_json::to_value(masking.predict).unwrap_or_default())),
        ),
        ("parallel.backend", Some(config.backend.name().to_owned())),
        (
            "train.precision",
            (config.backend == Backend::Cuda || config.precision != Precision::Fp32)
                .then(|| config.precision.name().to_owned()),
        ),
        (
            "train.cuda_graph",
            (config.backend == Backend::Cuda || config.cuda_graph)
                .then(|| config.cuda_graph.to_string()),
        ),
        (
            "train.cuda_batch_norm",
            batch_norm_by(config).map(|by| by.name().to_owned()),
        ),
        (
            "train.cuda_matmul",
            (config.backend == Backend::Cuda || config.cuda_matmul != CudaMatmul::Cublas)
                .then(|| config.cuda_matmul.name().to_owned()),
        ),
        (
            "measure.nvtx",
            config.measure.nvtx.then(|| true.to_string()),
        ),
        (
            "parallel.launch",
            config.strategy.launch().map(str::to_owned),
        ),
        (
            "parallel.dp_loss",
            config.strategy.dp_loss().map(str::to_owned),
        ),
        (
            "parallel.dp_transport",
            config
                .strategy
                .dp_transport()
                .filter(|_| config.backend == Backend::Cuda || config.strategy.is_dp_over_nccl())
                .map(str::to_owned),
        ),
        ("parallel.transport", of_ranks(config)),
        (
            "parallel.bucket_cap",
            caps.map(|(cap, _)| ByteSize(cap).to_string()),
        ),
        (
            "parallel.first_bucket_cap",
            caps.map(|(_, first)| ByteSize(first).to_string()),
        ),
        ("parallel.overlap", ddp.map(|ddp| ddp.overlap.to_string())),
        (
            "parallel.no_sync",
            ddp.filter(|_| config.accumulation > 1)
                .map(|ddp| ddp.no_sync.to_string()),
        ),
        (
            "parallel.compression",
            ddp.map(|ddp| compression_name(ddp.compression)),
        ),
        (
            "parallel.broadcast_buffers",
            config.strategy.broadcast_buffers().map(|on| on.to_string()),
        ),
        ("parallel.device_ids", dp.and_then(DpConfig::order)),
        (
            "parallel.output_device",
            dp.and_then(DpConfig::other_output)
                .map(|device| device.to_string()),
        ),
        ("parallel.dim", dp.map(|dp| dp.dim.to_string())),
        (
            "measure.unsynchronized",
            config
                .learning()
                .is_none()
                .then(|| config.measure.unsynchronized.to_string()),
        ),
    ];
    for (key, value) in effective {
        match value {
            Some(value) => settings.insert(key.to_owned(), value),
            None => settings.remove(key),
        };
    }
    settings
}

/// Ranks that only communicate use little.
fn of_collectives(
    scenario: &Scenario,
    config: &TrialConfig,
    collectives: &CollectivesConfig,
) -> Settings {
    let mut settings = Settings::new();
    let own = serde_json::to_value(&scenario.collectives);
    flatten("collectives", &own.unwrap_or_default(), &mut settings);
    let operations = collectives.operations.iter().map(|operation| {
        let name = serde_json::to_value(operation).unwrap_or_default();
        word(&name)
    });
    let others = [
        (
            "collectives.operations",
            operations.collect::<Vec<_>>().join("+"),
        ),
        ("parallel.backend", config.backend.name().to_owned()),
        ("parallel.devices", config.devices.to_string()),
        (
            "parallel.launch",
            config.strategy.launch().unwrap_or_default().to_owned(),
        ),
        ("parallel.transport", of_ranks(config).unwrap_or_default()),
        ("measure.smoke", config.measure.smoke.to_string()),
    ];
    settings.extend(others.map(|(key, value)| (key.to_owned(), value)));
    settings
}

/// The transport between ranks; DP's copies are no choice.
fn of_ranks(config: &TrialConfig) -> Option<String> {
    let transport = config.strategy.transport().map(str::to_owned);
    transport.filter(|_| config.strategy.ranks_transport().is_some())
}

fn flatten(prefix: &str, value: &Value, settings: &mut Settings) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&format!("{prefix}.{key}"), value, settings);
            }
        }
        Value::Null => {}
        other => {
            settings.insert(prefix.to_owned(), word(other));
        }
    }
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// One label for each trial: its strategy in words (such as `ddp-processes ×2`), and what else tells it from the
/// others. A setting that follows from those in the label already, as a batch can from a model, is left out.
pub fn labels(trials: &[(String, &Settings)]) -> Vec<String> {
    let all: BTreeSet<&String> = trials
        .iter()
        .flat_map(|(_, settings)| settings.keys())
        .collect();
    let (front, back): (Vec<&String>, Vec<&String>) =
        all.into_iter().partition(|key| is_plain(key));
    // What is in the label so far; a key that splits none of these groups would tell nothing.
    let mut groups: Vec<Vec<&str>> = trials
        .iter()
        .map(|(strategy, _)| vec![strategy.as_str()])
        .collect();
    let mut splits = |key: &&String| {
        let value = |index: usize| trials[index].1.get(*key);
        let mut first: BTreeMap<Vec<&str>, Option<&String>> = BTreeMap::new();
        let tells = (0..trials.len())
            .any(|i| *first.entry(groups[i].clone()).or_insert(value(i)) != value(i));
        if tells {
            for (index, group) in groups.iter_mut().enumerate() {
                group.push(value(index).map_or("", String::as_str));
            }
        }
        tells
    };
    let front: Vec<&String> = front.into_iter().filter(&mut splits).collect();
    let back: Vec<&String> = back.into_iter().filter(&mut splits).collect();
    let label = |(strategy, settings): &(String, &Settings)| {
        let plain = front.iter().filter_map(|key| settings.get(*key).cloned());
        let named = back
            .iter()
            .filter_map(|key| settings.get(*key).map(|value| named(key, value)));
        plain
            .chain([strategy.clone()])
            .chain(named)
            .collect::<Vec<_>>()
            .join(" ")
    };
    trials.iter().map(label).collect()
}

/// Labels that several trials share, such as those of layers written in place, get the variants' names.
pub fn told_apart<'a>(
    labels: Vec<String>,
    variants: impl Iterator<Item = Option<&'a str>>,
) -> Vec<String> {
    let shared = |label: &String| labels.iter().filter(|other| *other == label).count() > 1;
    let apart = |(label, variant): (&String, Option<&str>)| match variant {
        Some(variant) if shared(label) => format!("{label} {variant}"),
        _ => label.clone(),
    };
    labels.iter().zip(variants).map(apart).collect()
}

/// Whether a value of this key explains itself.
fn is_plain(key: &str) -> bool {
    matches!(key, "model.preset" | "model.norm" | "data.source")
}

fn named(key: &str, value: &str) -> String {
    match key {
        "data.batch_size" => format!("batch {value}"),
        "data.seed" => format!("data-seed {value}"),
        "train.seed" => format!("train-seed {value}"),
        "parallel.scaling" => value.to_owned(),
        "parallel.dp_loss" => format!("loss-{value}"),
        "model.layers" => "in-place".to_owned(),
        "parallel.transport"
        | "parallel.dp_transport"
        | "parallel.compression"
        | "train.precision"
        | "train.cuda_matmul" => value.to_owned(),
        "parallel.bucket_cap" => format!("cap {value}"),
        "parallel.first_bucket_cap" => format!("first {value}"),
        "train.accumulation" => format!("micro-batches {value}"),
        "parallel.threads" => format!("threads {value}"),
        "train.cuda_graph" => on_or_off("graph", value),
        "train.cuda_batch_norm" => format!("{value}-batch-norm"),
        "parallel.overlap" => on_or_off("overlap", value),
        "parallel.no_sync" => on_or_off("no_sync", value),
        "parallel.broadcast_buffers" => on_or_off("buffer-broadcast", value),
        _ => format!("{}={value}", key.rsplit('.').next().unwrap_or(key)),
    }
}

fn on_or_off(what: &str, value: &str) -> String {
    match value {
        "true" => what.to_owned(),
        _ => format!("{what} off"),
    }
}
