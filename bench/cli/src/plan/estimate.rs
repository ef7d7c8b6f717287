//! How long a plan will take, before anything is measured.
//!
//! Contract: an estimate with its assumptions in words, never shown as a measurement. It is a lower bound
//! where a model, or a step of many micro-batches, is so slow that `steps` steps do not fit into `min_time`.
use std::time::Duration;

use crate::plan::Plan;
use crate::plan::config::{TrialConfig, Work};

/// Starting the processes of one repeat, building the model, and collecting its records.
const START_UP: Duration = Duration::from_millis(300);
/// Gating one trial, once.
const GATE: Duration = Duration::from_millis(500);

/// What the device, or two ranks, could do at best.
const CEILINGS: Duration = Duration::from_secs(1);

/// Checking and warming up one collective at one size.
const CHECK: Duration = Duration::from_millis(30);

/// What the estimate takes for granted.
pub const ASSUMPTION: &str = "assumes that `steps` steps fit into min_time, that a traced step takes at most min_time / steps, \
0.3 s to start each repeat and 0.5 s for each gate";

/// The expected time of the whole plan.
pub fn expected(plan: &Plan) -> Duration {
    let repeats = u32::try_from(plan.scenario.measure.repeats).unwrap_or(u32::MAX);
    plan.trials.iter().fold(Duration::ZERO, |sum, trial| {
        sum.saturating_add(GATE)
            .saturating_add(repeat(&trial.config).saturating_mul(repeats))
    })
}

/// The expected time of one repeat of one trial.
pub fn repeat(config: &TrialConfig) -> Duration {
    if let Work::Collectives(collectives) = &config.work {
        let cases = collectives.operations.len() * collectives.sizes_bytes.len();
        let case = Duration::from_nanos(collectives.min_time_ns).saturating_add(CHECK);
        return START_UP
            .saturating_add(CEILINGS)
            .saturating_add(case.saturating_mul(cases as u32));
    }
    let measure = &config.measure;
    let window = Duration::from_nanos(measure.min_time_ns);
    let windows = if measure.unsynchronized { 2 } else { 1 };
    if config.work == Work::LayerCost {
        // The pass that times nodes is as long as the window.
        return START_UP
            .saturating_add(CEILINGS)
            .saturating_add(Duration::from_nanos(measure.warmup_time_ns))
            .saturating_add(window.saturating_mul(2));
    }
    let traced = window.as_secs_f64() * measure.trace_steps as f64 / measure.steps.max(1) as f64;
    // Beyond what a duration holds, a plan has other problems than the precision of its estimate.
    let traced = Duration::try_from_secs_f64(traced).unwrap_or(Duration::MAX);
    START_UP
        .saturating_add(Duration::from_nanos(measure.warmup_time_ns))
        .saturating_add(window.saturating_mul(windows))
        .saturating_add(traced)
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
