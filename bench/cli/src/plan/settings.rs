//! The effective settings of a trial as dotted keys, for `--filter`, labels and tables.
//!
//! Contract: exactly the keys that the trial uses are there, each as a user would write its value, so two
//! trials with equal settings are the same trial.
use std::collections::BTreeMap;

use serde_json::Value;

use crate::plan::config::TrialConfig;
use crate::scenario::file::{Scenario, Source};
use crate::scenario::keys::WHOLE_RUN;

/// Dotted keys and values.
pub type Settings = BTreeMap<String, String>;

/// The settings of a configuration that was made from this effective scenario.
pub fn settings(scenario: &Scenario, config: &TrialConfig) -> Settings {
    let mut settings = Settings::new();
    let sections = [
        ("model", serde_json::to_value(&scenario.model)),
        ("data", serde_json::to_value(&scenario.data)),
        ("train", serde_json::to_value(&scenario.train)),
        ("parallel", serde_json::to_value(&scenario.parallel)),
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
    if scenario.data.source == Source::Synthetic {
        let shape = Value::from(config.model.input.clone());
        settings.insert("data.shape".to_owned(), word(&shape));
        settings.insert("data.classes".to_owned(), config.model.classes.to_string());
    }
    let norm = serde_json::to_value(config.norm).unwrap_or_default();
    let effective = [
        ("model.norm", Some(word(&norm))),
        (
            "model.norm_groups",
            config.norm_groups.map(|groups| groups.to_string()),
        ),
        ("parallel.backend", Some(config.backend.name().to_owned())),
        (
            "parallel.launch",
            config.strategy.launch().map(str::to_owned),
        ),
        (
            "parallel.dp_loss",
            config.strategy.dp_loss().map(str::to_owned),
        ),
        (
            "measure.unsynchronized",
            Some(config.measure.unsynchronized.to_string()),
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

/// One label for each trial: what it is, and what tells it from the others.
///
/// `variants` are the trials' strategies in words, such as `ddp-processes ×2`; every other setting that is not
/// the same in all trials is added.
pub fn labels(trials: &[(String, &Settings)]) -> Vec<String> {
    let covered = [
        "parallel.strategy",
        "parallel.launch",
        "parallel.devices",
        "measure.unsynchronized",
    ];
    let mut keys: Vec<&String> = trials
        .iter()
        .flat_map(|(_, settings)| settings.keys())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys.retain(|key| {
        // A key that only some trials use tells nothing that their strategy does not, unless its values differ.
        let mut values: Vec<&String> = trials
            .iter()
            .filter_map(|(_, settings)| settings.get(*key))
            .collect();
        values.sort_unstable();
        values.dedup();
        !covered.contains(&key.as_str()) && values.len() > 1
    });
    let (front, back): (Vec<&String>, Vec<&String>) =
        keys.into_iter().partition(|key| is_plain(key));
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

/// Whether a value of this key explains itself.
fn is_plain(key: &str) -> bool {
    matches!(key, "model.preset" | "model.norm" | "data.source")
}

fn named(key: &str, value: &str) -> String {
    match key {
        "data.batch_size" => format!("batch {value}"),
        "parallel.scaling" => value.to_owned(),
        "parallel.dp_loss" => format!("loss-{value}"),
        "model.layers" => "in-place".to_owned(),
        _ => format!("{}={value}", key.rsplit('.').next().unwrap_or(key)),
    }
}
