//! The row of a trial as the runner knows it: what it was and how it ended. Figures are filled from the repeats' rows.
//!
//! Contract: no figure is computed here; [`syncmark_report`] summarises, so that a report that is made again from the
//! records says the same.
use syncmark_engine::model::spec::Norm;
use syncmark_record::rows::{SIDE_BY_SIDE, TrialRow};

use super::cores;
use super::gate::Gate;
use super::standing::{Standing, Unrun};
use crate::plan::config::{
    Backend, DpConfig, SourceConfig, batch_norm_by, compression_name, momentum_name,
    optimizer_name, padding_name, schedule_name,
};
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
    let mut warnings = warnings(trial, cores);
    if plan.scenario.measure.concurrent {
        warnings.push(SIDE_BY_SIDE.into());
    }
    let training = config.work.steps();
    let dp = config.strategy.dp();
    let ddp = config.strategy.ddp().filter(|_| training);
    let caps = config.strategy.bucket_caps().filter(|_| training);
    TrialRow {
        label: trial.label.clone(),
        scenario: plan.scenario.name.clone(),
        kind: config.work.kind().into(),
        variant: trial.variant.clone(),
        model: trial.model.clone(),
        norm: norm_name(config.norm).into(),
        data: source_name(&config.data.source).into(),
        strategy: config.strategy_name().into(),
        launch: config.strategy.launch().map(str::to_owned),
        transport: config.strategy.transport().map(str::to_owned),
        dp_loss: config.strategy.dp_loss().map(str::to_owned),
        dp_transport: config
            .strategy
            .dp_transport()
            .filter(|_| config.backend == Backend::Cuda)
            .map(str::to_owned),
        bucket_cap_bytes: caps.map(|(cap, _)| cap),
        first_bucket_cap_bytes: caps.map(|(_, first)| first),
        overlap: ddp.map(|ddp| ddp.overlap),
        accumulation: training.then_some(config.accumulation as u64),
        no_sync: ddp
            .filter(|_| config.accumulation > 1)
            .map(|ddp| ddp.no_sync),
        compression: ddp.map(|ddp| compression_name(ddp.compression)),
        broadcast_buffers: config.strategy.broadcast_buffers().filter(|_| training),
        device_ids: dp.and_then(DpConfig::order),
        output_device: dp
            .and_then(DpConfig::other_output)
            .map(|device| device as u32),
        optimizer: training.then(|| optimizer_name(&config.optimizer)),
        schedule: training.then(|| schedule_name(&config.schedule)),
        backend: config.backend.name().into(),
        precision: (training && config.backend == Backend::Cuda)
            .then(|| config.precision.name().to_owned()),
        cuda_graph: (training && config.backend == Backend::Cuda).then_some(config.cuda_graph),
        cuda_batch_norm: batch_norm_by(config).map(|by| by.name().to_owned()),
        cuda_matmul: (training && config.backend == Backend::Cuda)
            .then(|| config.cuda_matmul.name().to_owned()),
        devices: config.devices as u32,
        threads: training.then_some(config.threads as u32),
        scaling: if config.scaling == Scaling::Weak {
            "weak"
        } else {
            "strong"
        }
        .into(),
        global_batch: config.step_samples() as u64,
        device_batch: config.device_samples() as u64,
        parameters: trial.parameters,
        normalization_batch: config
            .learning()
            .map(|_| config.normalization_batch() as u64),
        norm_momentum: config.norm_momentum.map(momentum_name),
        norm_padding: config.norm_padding.map(padding_name),
        oversubscribed: cores::oversubscribed(config, cores),
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
    let training = config.work.steps();
    let mut warnings = trial.notes.clone();
    if cores::oversubscribed(config, cores) {
        let threads = match config.threads {
            1 => String::new(),
            threads => format!(" of {threads} threads"),
        };
        warnings.push(format!(
            "oversubscribed: {} devices{threads} on {cores} cores",
            config.devices
        ));
    }
    let gated = training && config.strategy.transport().is_some();
    if let (Gate::None(why), true) = (Gate::of(config), gated) {
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
        Norm::Instance => "instance",
        Norm::Group => "group",
        Norm::Rms => "rms",
    }
}

fn source_name(source: &SourceConfig) -> &'static str {
    match source {
        SourceConfig::Digits => "digits",
        SourceConfig::FashionMnist { .. } => "fashion-mnist",
        SourceConfig::Cifar10 { .. } => "cifar10",
        SourceConfig::Text { .. } => "text",
        SourceConfig::Synthetic | SourceConfig::SyntheticTokens { .. } => "synthetic",
    }
}
