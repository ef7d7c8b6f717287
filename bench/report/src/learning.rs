//! What trials of kind `learning` ended with, and how a norm fares against another in the same repeats.
//!
//! Contract: figures are those of the last evaluation of each finished repeat, never of the best one. Repeats are pairs: they share
//! initial parameters, order of samples and what is held out. Errors are shares of labels.
//! Reference: METHODOLOGY.md, "Learning".
use std::collections::BTreeMap;

use syncmark_record::{
    Outcome,
    rows::{LearningRow, TrialRow},
};

use crate::{
    analyse::{paired, values},
    format::significant,
    run_data::RunData,
    stats::{Estimate, Spread, estimate},
};

/// A trial, and its last row of each finished repeat.
#[derive(Clone, Debug)]
pub struct Learned<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// By repeat.
    pub ends: BTreeMap<u32, &'a LearningRow>,
    /// Repeats whose loss left the numbers.
    pub diverged: usize,
}

/// A figure of a row.
pub type Figure = fn(&LearningRow) -> Option<f64>;

/// Which statistics the batch norms of an evaluation had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// The running ones, as training left them.
    Stored,
    /// Those of each batch.
    Batch,
    /// Estimated anew.
    Precise,
}

impl Statistics {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stored, Self::Batch, Self::Precise];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored statistics",
            Self::Batch => "batch statistics",
            Self::Precise => "PreciseBN",
        }
    }

    /// The error with them.
    pub fn error(self) -> Figure {
        match self {
            Self::Stored => |row| row.eval_error,
            Self::Batch => |row| row.batch_statistics_error,
            Self::Precise => |row| row.precise_error,
        }
    }
}

impl Learned<'_> {
    /// A figure by repeat.
    pub fn figure(&self, figure: Figure) -> BTreeMap<u32, f64> {
        // An infinite loss has no place in a median.
        let of = |(repeat, row): (&u32, &&LearningRow)| {
            let value = figure(row).filter(|value| value.is_finite())?;
            Some((*repeat, value))
        };
        self.ends.iter().filter_map(of).collect()
    }

    /// Its median with the spread over repeats.
    pub fn estimate(&self, figure: Figure) -> Option<Estimate> {
        estimate(&values(&self.figure(figure)))
    }

    /// Whether statistics of batches have anything to do with it.
    pub fn has_batch_norms(&self) -> bool {
        let by_name = matches!(self.trial.norm.as_str(), "batch" | "sync-batch");
        let looked_at = |row: &&LearningRow| {
            row.batch_statistics_error.is_some() || row.precise_error.is_some()
        };
        by_name || self.ends.values().any(looked_at)
    }
}

/// The learning trials with a repeat that finished or diverged, in the report's order.
pub fn learned(data: &RunData) -> Vec<Learned<'_>> {
    let of_trial = |trial| {
        let ends = ends(data, trial);
        let diverged = data
            .repeats
            .iter()
            .filter(|row| row.trial == trial.trial && row.outcome == Outcome::Diverged)
            .count();
        (!ends.is_empty() || diverged > 0).then_some(Learned {
            trial,
            ends,
            diverged,
        })
    };
    data.trials
        .iter()
        .filter(|trial| trial.kind == "learning")
        .filter_map(of_trial)
        .collect()
}

/// The last rows of the finished repeats of a trial.
fn ends<'a>(data: &'a RunData, trial: &TrialRow) -> BTreeMap<u32, &'a LearningRow> {
    let finished = |repeat| {
        let of_repeat = data
            .repeats
            .iter()
            .find(|row| row.trial == trial.trial && row.repeat == repeat);
        of_repeat.is_some_and(|row| row.outcome.has_figures())
    };
    let mut ends: BTreeMap<u32, &LearningRow> = BTreeMap::new();
    let own = data.learning.iter().filter(|row| row.trial == trial.trial);
    for row in own.filter(|row| finished(row.repeat)) {
        let end = ends.entry(row.repeat).or_insert(row);
        if row.step > end.step {
            *end = row;
        }
    }
    ends
}

/// How much a trial's error is above another's in the same repeats: the median of the differences.
pub fn difference(
    trial: &Learned<'_>,
    statistics: Statistics,
    baseline: &Learned<'_>,
) -> Option<Estimate> {
    let (own, other) = (
        trial.figure(statistics.error()),
        baseline.figure(Statistics::Stored.error()),
    );
    let differences: Vec<f64> = paired(&own, &other)
        .into_iter()
        .map(|(a, b)| a - b)
        .collect();
    estimate(&differences)
}

/// The momentum of running statistics in words, where it is not the usual one: three digits tell it.
pub fn momentum(trial: &TrialRow) -> Option<String> {
    let written = trial.norm_momentum.as_deref()?;
    let shown = match written.parse::<f64>() {
        Ok(weight) => significant(weight, 3),
        Err(_) => written.to_owned(),
    };
    Some(format!("momentum {shown}"))
}

/// Whether a difference is above 0, below, or cannot be told.
pub fn told(difference: &Estimate) -> &'static str {
    match difference.spread {
        Spread::Range => "no verdict",
        Spread::Interval if difference.low > 0.0 => "worse",
        Spread::Interval if difference.high < 0.0 => "better",
        Spread::Interval => "no difference can be told",
    }
}

/// What trials share that are compared with each other: all but norm and normalization batch.
pub fn setting(trial: &TrialRow) -> String {
    [
        around(trial),
        trial.optimizer.clone().unwrap_or_default(),
        format!("{} samples a step", trial.global_batch),
        format!("{} micro-batches", trial.accumulation.unwrap_or(1)),
    ]
    .join(" · ")
}

/// What they share even where the batch itself differs, and the learning rate with it.
pub fn around(trial: &TrialRow) -> String {
    [
        trial.model.clone(),
        trial.data.clone(),
        trial.schedule.clone().unwrap_or_default(),
        format!(
            "{} {}",
            trial.strategy,
            trial.launch.clone().unwrap_or_default()
        ),
        format!("{} devices", trial.devices),
    ]
    .join(" · ")
}

/// Each trial with batch norm beside the one with group norm that it can be compared with.
pub fn against_group_norm<'a, 'b>(
    all: &'b [Learned<'a>],
) -> Vec<(&'b Learned<'a>, &'b Learned<'a>)> {
    let group = |trial: &TrialRow| {
        all.iter()
            .find(|other| other.trial.norm == "group" && setting(other.trial) == setting(trial))
    };
    all.iter()
        .filter(|learned| learned.trial.norm == "batch")
        .filter_map(|learned| Some((learned, group(learned.trial)?)))
        .collect()
}
