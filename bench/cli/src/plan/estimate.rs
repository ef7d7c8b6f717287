//! How long a plan will take, before anything is measured.
//!
//! Contract: an estimate with its assumptions in words, never shown as a measurement. It is a lower bound
//! where a model, or a step of many micro-batches, is so slow that `steps` steps do not fit into `min_time`.
use std::time::Duration;

use syncmark_engine::data::{cifar10, fashion_mnist};

use crate::plan::config::{Backend, Length, SourceConfig, TrialConfig, Work};
use crate::plan::{Plan, Trial};
use crate::scenario::check::DIGITS;
use crate::scenario::file::Kind;

/// Starting the processes of one repeat, building the model, and collecting its records.
const START_UP: Duration = Duration::from_millis(300);
/// Gating one trial, once.
const GATE: Duration = Duration::from_millis(500);
/// The same on GPUs, where processes load NVIDIA's libraries and our kernels first: of smoke sizes on an H200 some 1.2 s lay between the starts of repeats
/// whose windows took tenths of a second.
const START_UP_ON_GPUS: Duration = Duration::from_millis(1200);
/// A gate starts processes twice, for the trial and for its reference.
const GATE_ON_GPUS: Duration = Duration::from_secs(3);
/// What else acceptance starts on GPUs: PyTorch's ranks, twice, and collectives.
const OTHER_PROGRAMS: Duration = Duration::from_secs(90);

/// What the device, or two ranks, could do at best.
const CEILINGS: Duration = Duration::from_secs(1);

/// Checking and warming up one collective at one size.
const CHECK: Duration = Duration::from_millis(30);

/// A step of a trial that learns.
const LEARNING_STEP: Duration = Duration::from_millis(20);

/// Words of the shipped list without the tenth for testing, where the model takes the longest.
const SHIPPED_WORDS: usize = 3585;

/// Samples of data whose size is only known once it is read.
const UNKNOWN_SAMPLES: usize = 60_000;

/// What the estimate takes for granted.
pub fn assumption(plan: &Plan) -> String {
    let learning = |trial: &Trial| trial.config.learning().is_some();
    let steps = if plan.trials.iter().any(learning) {
        "assumes one trial at a time, 20 ms a step, 60,000 samples where data is read from a path,"
    } else {
        "assumes that `steps` steps fit into min_time, that a traced step takes at most min_time / steps,"
    };
    let starts = if plan.trials.iter().any(|trial| on_gpus(&trial.config)) {
        "1.2 s to start each repeat on GPUs and 3 s for each gate, with kernels compiled before"
    } else {
        "0.3 s to start each repeat and 0.5 s for each gate"
    };
    let others = match plan.scenario.kind {
        Kind::Acceptance => ", 90 s for the programs that it is held against",
        _ => "",
    };
    format!("{steps} {starts}{others}")
}

fn on_gpus(config: &TrialConfig) -> bool {
    config.backend == Backend::Cuda
}

/// The expected time of the whole plan.
pub fn expected(plan: &Plan) -> Duration {
    let repeats = u32::try_from(plan.scenario.measure.repeats).unwrap_or(u32::MAX);
    let others = match plan.scenario.kind {
        Kind::Acceptance => OTHER_PROGRAMS,
        _ => Duration::ZERO,
    };
    plan.trials.iter().fold(others, |sum, trial| {
        let gate = if on_gpus(&trial.config) {
            GATE_ON_GPUS
        } else {
            GATE
        };
        sum.saturating_add(gate)
            .saturating_add(repeat(&trial.config).saturating_mul(repeats))
    })
}

/// The expected time of one repeat of one trial.
pub fn repeat(config: &TrialConfig) -> Duration {
    let start_up = if on_gpus(config) {
        START_UP_ON_GPUS
    } else {
        START_UP
    };
    if let Work::Collectives(collectives) = &config.work {
        let cases = collectives.operations.len() * collectives.sizes_bytes.len();
        let case = Duration::from_nanos(collectives.min_time_ns).saturating_add(CHECK);
        return start_up
            .saturating_add(CEILINGS)
            .saturating_add(case.saturating_mul(cases as u32));
    }
    if let Some(learning) = config.learning() {
        let steps = match learning.length {
            Length::Steps(steps) => steps,
            Length::Epochs(epochs) => {
                let samples = samples(&config.data.source) as f64 * (1.0 - learning.validation);
                let epoch = samples as usize / config.step_samples().max(1);
                epochs.saturating_mul(epoch.max(1))
            }
        };
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        return start_up.saturating_add(LEARNING_STEP.saturating_mul(steps));
    }
    let measure = &config.measure;
    let window = Duration::from_nanos(measure.min_time_ns);
    let windows = if measure.unsynchronized { 2 } else { 1 };
    if config.work == Work::LayerCost {
        // The pass that times nodes is as long as the window.
        return start_up
            .saturating_add(CEILINGS)
            .saturating_add(Duration::from_nanos(measure.warmup_time_ns))
            .saturating_add(window.saturating_mul(2));
    }
    let traced = window.as_secs_f64() * measure.trace_steps as f64 / measure.steps.max(1) as f64;
    // Beyond what a duration holds, a plan has other problems than the precision of its estimate.
    let traced = Duration::try_from_secs_f64(traced).unwrap_or(Duration::MAX);
    start_up
        .saturating_add(Duration::from_nanos(measure.warmup_time_ns))
        .saturating_add(window.saturating_mul(windows))
        .saturating_add(traced)
}

/// Training samples.
fn samples(source: &SourceConfig) -> usize {
    match source {
        SourceConfig::Digits => DIGITS,
        SourceConfig::FashionMnist { .. } => fashion_mnist::TRAINING,
        SourceConfig::Cifar10 { .. } => cifar10::TRAINING,
        SourceConfig::Text { path: None, .. } => SHIPPED_WORDS,
        SourceConfig::Text { path: Some(_), .. }
        | SourceConfig::Synthetic
        | SourceConfig::SyntheticTokens { .. } => UNKNOWN_SAMPLES,
    }
}

/// `1 h 40 min`, `12 min`, `48 s`: two significant parts at most.
pub fn in_words(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}
