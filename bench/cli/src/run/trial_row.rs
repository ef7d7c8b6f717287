//! The row of a trial as the runner knows it: what it was and how it ended. Figures are filled from the repeats' rows.
//!
//! Contract: no figure is computed here; [`syncmark_report`] summarises, so that a report that is made again from the
//! records says the same.
use syncmark_engine::model::spec::Norm;
use syncmark_record::rows::TrialRow;

use super::cores;
use super::gate::Gate;
use super::standing::{Standing, Unrun};
use crate::plan::config::{SourceConfig, StrategyConfig, TrialConfig};
use crate::plan::{Plan, Trial};
use crate::scenario::file::Scaling;

/// The row of `trial`, with its figures empty.
pub fn row(
    plan: &Plan,
    trial: &Trial,
    standing: &Standing,
    planned: usize,
    cores: usize,
    unrun: &Unrun,
) -> TrialRow {
    let config = &trial.config;
    let (outcome, reason) = standing.outcome(planned, unrun);
    let warnings = warnings(trial, cores);
    TrialRow {
        label: trial.label.clone(),
        scenario: plan.scenario.name.clone(),
        kind: "train".into(),
        variant: trial.variant.clone(),
        model: trial.model.clone(),
        norm: norm_name(config.norm).into(),
        data: source_name(&config.data.source).into(),
        strategy: config.strategy.name().into(),
        launch: config.strategy.launch().map(str::to_owned),
        transport: transport(config).map(str::to_owned),
        dp_loss: config.strategy.dp_loss().map(str::to_owned),
        backend: config.backend.name().into(),
        devices: config.devices as u32,
        scaling: if config.scaling == Scaling::Weak {
            "weak"
        } else {
            "strong"
        }
        .into(),
        global_batch: config.batch.global as u64,
        device_batch: config.device_batch() as u64,
        parameters: trial.parameters,
        oversubscribed: cores::oversubscribed(config.devices, cores),
        outcome,
        reason,
        repeats: standing.with_figures() as u32,
        warnings: (!warnings.is_empty()).then(|| warnings.join("; ")),
        ..TrialRow::unknown(&trial.id)
    }
}

/// What a reader must know before trusting the row.
fn warnings(trial: &Trial, cores: usize) -> Vec<String> {
    let config = &trial.config;
    let mut warnings = trial.notes.clone();
    if cores::oversubscribed(config.devices, cores) {
        warnings.push(format!(
            "oversubscribed: {} devices on {cores} cores",
            config.devices
        ));
    }
    if let (Gate::None(why), StrategyConfig::Dp { .. } | StrategyConfig::Ddp { .. }) =
        (Gate::of(config), config.strategy)
    {
        warnings.push(format!("not gated: {why}"));
    }
    warnings
}

fn norm_name(norm: Norm) -> &'static str {
    match norm {
        Norm::None => "none",
        Norm::Batch => "batch",
        Norm::SyncBatch => "sync-batch",
        Norm::Layer => "layer",
        Norm::Group => "group",
    }
}

fn source_name(source: &SourceConfig) -> &'static str {
    match source {
        SourceConfig::Digits => "digits",
        SourceConfig::Synthetic => "synthetic",
    }
}

/// How ranks or devices exchange bytes, where they do.
fn transport(config: &TrialConfig) -> Option<&'static str> {
    match config.strategy {
        StrategyConfig::Single | StrategyConfig::Independent => None,
        StrategyConfig::Dp { .. } => Some("copies"),
        StrategyConfig::Ddp { .. } => Some("shared"),
    }
}
