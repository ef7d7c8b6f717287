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

mod contests;
mod pace;
mod rates;

pub use contests::{Contest, Pair, contests};
pub use pace::{FEWEST_EVALUATIONS, Reached, reached};
pub use rates::{Chosen, chosen, rates_of_their_own};

/// How an optimizer's learning rate begins in the records.
const RATE: &str = "learning_rate=";

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

    /// Whether a trial with them is held against a baseline with them: so where that has batch statistics too.
    pub fn of_both(self, baseline: &str) -> bool {
        self != Self::Stored && baseline == "batch"
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

/// The learning trials with a repeat that finished or diverged: norms in the report's order, each by its normalization batch.
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
    let mut all: Vec<Learned<'_>> = data
        .trials
        .iter()
        .filter(|trial| trial.kind == "learning")
        .filter_map(of_trial)
        .collect();
    let norms: Vec<&str> = all
        .iter()
        .map(|learned| learned.trial.norm.as_str())
        .collect();
    let place = |trial: &TrialRow| norms.iter().position(|norm| *norm == trial.norm);
    all.sort_by_cached_key(|learned| (place(learned.trial), learned.trial.normalization_batch));
    all
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

/// The train/eval gap of batch statistics and that of dropout: a loss in evaluation minus that in the condition of training, within repeats.
pub fn gaps_of(learned: &Learned<'_>) -> [Option<Estimate>; 2] {
    let stored = learned.figure(|row| row.eval_loss);
    let above = |figure: Figure| {
        let differences: Vec<f64> = paired(&stored, &learned.figure(figure))
            .into_iter()
            .map(|(evaluated, trained)| evaluated - trained)
            .collect();
        estimate(&differences)
    };
    [
        above(|row| row.batch_statistics_loss),
        above(|row| row.dropout_loss),
    ]
}

/// How much a trial's error is above another's in the same repeats: the median of the differences. Where the other one has batch statistics
/// too, both have the same.
pub fn difference(
    trial: &Learned<'_>,
    statistics: Statistics,
    baseline: &Learned<'_>,
) -> Option<Estimate> {
    let (own, other) = (
        trial.figure(statistics.error()),
        match statistics.of_both(&baseline.trial.norm) {
            true => baseline.figure(statistics.error()),
            false => baseline.figure(Statistics::Stored.error()),
        },
    );
    let differences: Vec<f64> = paired(&own, &other)
        .into_iter()
        .map(|(a, b)| a - b)
        .collect();
    estimate(&differences)
}

/// The momentum of running statistics in words, where it is not the usual one: three digits tell it.
fn momentum(trial: &TrialRow) -> Option<String> {
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

/// What trials share that are compared with each other: all but norm, normalization batch and how many micro-batches a step is made of, which
/// changes nothing but the normalization batch.
pub fn setting(trial: &TrialRow) -> String {
    with_optimizer(trial, trial.optimizer.as_deref().unwrap_or_default())
}

/// The same but for the learning rate.
fn setting_but_rate(trial: &TrialRow) -> String {
    let optimizer = trial.optimizer.as_deref().unwrap_or_default();
    let words = optimizer.split(' ').filter(|word| !word.starts_with(RATE));
    with_optimizer(trial, &words.collect::<Vec<_>>().join(" "))
}

fn with_optimizer(trial: &TrialRow, optimizer: &str) -> String {
    [
        around(trial),
        optimizer.to_owned(),
        format!("{} samples a step", trial.global_batch),
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

/// The learning rate as recorded.
pub fn rate(trial: &TrialRow) -> Option<&str> {
    let words = trial.optimizer.as_deref()?.split(' ');
    words.filter_map(|word| word.strip_prefix(RATE)).next()
}

/// How the trials of a run are compared: with equal learning rates, or, where the scenario gives every norm one of its own, each with its own.
/// A run that tries several for a norm compares equal ones, since there is nothing to say which of them is meant.
pub fn comparable(all: &[Learned<'_>]) -> fn(&TrialRow) -> String {
    match rates_of_their_own(all) {
        Some(_) => setting_but_rate,
        None => setting,
    }
}

/// What sets trials of one norm apart besides the batch: the momentum of running statistics, and what is done with padding.
pub fn options(trial: &TrialRow) -> Vec<String> {
    momentum(trial).into_iter().chain(padding(trial)).collect()
}

fn padding(trial: &TrialRow) -> Option<String> {
    let how = trial.norm_padding.as_ref()?;
    Some(format!("padding {how}"))
}

/// A norm in words.
pub fn norm_name(norm: &str) -> String {
    match norm {
        "none" => "no norm".to_owned(),
        norm => format!("{norm} norm"),
    }
}

/// Trials as a legend calls them: the norm and what else sets it apart, or the whole label where that is not enough.
pub fn names(all: &[Learned<'_>]) -> Vec<String> {
    let short = |learned: &Learned<'_>| {
        let trial = learned.trial;
        let together = trial
            .normalization_batch
            .filter(|_| learned.has_batch_norms());
        let together = together.map(|own| format!("{own} together"));
        let words = [norm_name(&trial.norm)].into_iter().chain(together);
        words.chain(options(trial)).collect::<Vec<_>>().join(", ")
    };
    let all_short: Vec<String> = all.iter().map(short).collect();
    let unique = |name: &String| all_short.iter().filter(|other| *other == name).count() == 1;
    let name = |(learned, short): (&Learned<'_>, &String)| match unique(short) {
        true => short.clone(),
        false => learned.trial.label.clone(),
    };
    all.iter().zip(&all_short).map(name).collect()
}
