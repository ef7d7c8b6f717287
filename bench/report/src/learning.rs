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

/// The trials of a norm as messages call it.
fn norm_in_words(trial: &TrialRow) -> String {
    match &trial.norm_padding {
        Some(padding) => format!("{} norm, padding {padding}", trial.norm),
        None => format!("{} norm", trial.norm),
    }
}

/// What a grid of learning rates found for one norm.
#[derive(Clone, Debug)]
pub struct Chosen<'a> {
    /// The norm, and what else sets its trials apart from others.
    pub norm: String,
    /// The rate as recorded.
    pub rate: &'a str,
    /// Its error with stored statistics.
    pub error: Estimate,
    /// The rate that comes next, and its error.
    pub next: (&'a str, Estimate),
    /// Whether it is the smallest or the largest that was tried.
    pub at_edge: bool,
}

/// For each norm that was tried with several learning rates, all else equal, the one with the smallest median error; of equal ones the smaller.
/// Trials that share a rate as well differ in something else, such as layers: those are no grid.
pub fn chosen<'a>(all: &[Learned<'a>]) -> Vec<Chosen<'a>> {
    type Tried<'a> = Vec<(f64, &'a str, Estimate)>;
    let mut grids: Vec<(String, String, Tried<'a>)> = Vec::new();
    for learned in all {
        let trial = learned.trial;
        let Some((rate, error)) = rate(trial).zip(learned.estimate(Statistics::Stored.error()))
        else {
            continue;
        };
        let Ok(value) = rate.parse::<f64>() else {
            continue;
        };
        let norm = norm_in_words(trial);
        let apart = format!(
            "{norm} · {:?} · {:?} · {}",
            trial.normalization_batch,
            trial.norm_momentum,
            setting_but_rate(trial)
        );
        match grids.iter_mut().find(|(known, ..)| *known == apart) {
            Some((.., tried)) => tried.push((value, rate, error)),
            None => grids.push((apart, norm, vec![(value, rate, error)])),
        }
    }
    let best = |(_, norm, mut tried): (String, String, Tried<'a>)| {
        tried.sort_by(|a, b| a.0.total_cmp(&b.0));
        if tried.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        let ends = [tried.first()?.0, tried.last()?.0];
        tried.sort_by(|a, b| a.2.value.total_cmp(&b.2.value));
        let [(value, rate, error), (_, next, after), ..] = tried[..] else {
            return None;
        };
        Some(Chosen {
            norm,
            rate,
            error,
            next: (next, after),
            at_edge: ends.contains(&value),
        })
    };
    grids.into_iter().filter_map(best).collect()
}

/// The learning rate of each norm, in the order of the trials, where each has one and not all have the same.
pub fn rates_of_their_own<'a>(all: &[Learned<'a>]) -> Option<Vec<(String, &'a str)>> {
    let mut rates: Vec<(String, &str)> = Vec::new();
    for trial in all.iter().map(|learned| learned.trial) {
        let norm = norm_in_words(trial);
        let own = rate(trial)?;
        match rates.iter().find(|(known, _)| *known == norm) {
            Some((_, known)) if *known != own => return None,
            Some(_) => {}
            None => rates.push((norm, own)),
        }
    }
    let differ = rates.iter().any(|(_, own)| *own != rates[0].1);
    differ.then_some(rates)
}

/// A trial, and the one that it is held against.
pub type Pair<'a, 'b> = (&'b Learned<'a>, &'b Learned<'a>);

/// A norm, and the norm that its trials are held against.
#[derive(Clone, Debug)]
pub struct Contest<'a, 'b> {
    /// The norm.
    pub own: &'static str,
    /// The other one.
    pub baseline: &'static str,
    /// Trials of the first, each beside the one of the other that it can be compared with; never none.
    pub pairs: Vec<Pair<'a, 'b>>,
}

/// What can be held against what: batch norm and synchronized batch norm each against group norm, or, in a run without it, layer norm; the
/// synchronized one against the other where each device has as many samples; and last, the norms without batch statistics against that same norm.
pub fn contests<'a, 'b>(all: &'b [Learned<'a>]) -> Vec<Contest<'a, 'b>> {
    type Also = fn(&TrialRow, &TrialRow) -> bool;
    let shared = comparable(all);
    let has_group = all.iter().any(|learned| learned.trial.norm == "group");
    let still = if has_group { "group" } else { "layer" };
    let any: Also = |_, _| true;
    let same_devices: Also = |own, other| {
        let on_a_device = other.normalization_batch;
        on_a_device.map(|batch| batch * u64::from(own.devices)) == own.normalization_batch
    };
    let contest = |(own, baseline, also): (&'static str, &'static str, Also)| {
        let other = |trial: &TrialRow| {
            all.iter().find(|other| {
                let other = other.trial;
                other.norm == baseline && shared(other) == shared(trial) && also(trial, other)
            })
        };
        let pairs: Vec<_> = all
            .iter()
            .filter(|learned| learned.trial.norm == own)
            .filter_map(|learned| Some((learned, other(learned.trial)?)))
            .collect();
        (!pairs.is_empty()).then_some(Contest {
            own,
            baseline,
            pairs,
        })
    };
    let by_batch = [
        ("batch", still, any),
        ("sync-batch", "batch", same_devices),
        ("sync-batch", still, any),
    ];
    let others = ["none", "layer", "instance", "rms"];
    let others = others.into_iter().filter(|own| *own != still);
    by_batch
        .into_iter()
        .chain(others.map(|own| (own, still, any)))
        .filter_map(contest)
        .collect()
}

impl Contest<'_, '_> {
    /// Whether the norm has statistics of batches.
    pub fn by_batch(&self) -> bool {
        matches!(self.own, "batch" | "sync-batch")
    }
}

/// How long a norm took to an error that all reach.
#[derive(Clone, Debug)]
pub struct Reached<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// Steps to the first evaluation at or below it, over the repeats that have one.
    pub steps: Estimate,
    /// Seconds of these steps, where they were recorded.
    pub seconds: Option<Estimate>,
    /// Repeats that have none.
    pub never: usize,
}

/// The error that every trial's median ends at or below, and how long each took to it. None for fewer than two trials, or where there are
/// too few evaluations ([`FEWEST_EVALUATIONS`]) to tell.
pub fn reached<'a>(data: &RunData, all: &[Learned<'a>]) -> Option<(f64, Vec<Reached<'a>>)> {
    let ends: Vec<f64> = all
        .iter()
        .filter_map(|learned| Some(learned.estimate(Statistics::Stored.error())?.value))
        .collect();
    let level = ends
        .iter()
        .copied()
        .reduce(f64::max)
        .filter(|_| all.len() > 1)?;
    let of_trial = |learned: &Learned<'a>| {
        let own = || {
            data.learning.iter().filter(|row| {
                row.trial == learned.trial.trial && learned.ends.contains_key(&row.repeat)
            })
        };
        let mut first: BTreeMap<u32, &LearningRow> = BTreeMap::new();
        for row in own().filter(|row| row.eval_error.is_some_and(|error| error <= level)) {
            let known = first.entry(row.repeat).or_insert(row);
            if row.step < known.step {
                *known = row;
            }
        }
        let steps: Vec<f64> = first.values().map(|row| row.step as f64).collect();
        let seconds: Vec<f64> = first
            .values()
            .filter_map(|row| Some(row.train_ns? as f64 / 1e9))
            .collect();
        let looked_at = own().count() / learned.ends.len().max(1);
        (looked_at >= FEWEST_EVALUATIONS).then_some(())?;
        Some(Reached {
            trial: learned.trial,
            steps: estimate(&steps)?,
            seconds: estimate(&seconds),
            never: learned.ends.len() - first.len(),
        })
    };
    let found: Vec<_> = all.iter().filter_map(of_trial).collect();
    (found.len() == all.len()).then_some((level, found))
}

/// Evaluations of a repeat from which it is told how long a norm took to an error.
pub const FEWEST_EVALUATIONS: usize = 5;

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
        let padding = trial.norm_padding.as_ref();
        let words = [
            Some(norm_name(&trial.norm)),
            together.map(|own| format!("{own} together")),
            momentum(trial),
            padding.map(|how| format!("padding {how}")),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(", ")
    };
    let all_short: Vec<String> = all.iter().map(short).collect();
    let unique = |name: &String| all_short.iter().filter(|other| *other == name).count() == 1;
    let name = |(learned, short): (&Learned<'_>, &String)| match unique(short) {
        true => short.clone(),
        false => learned.trial.label.clone(),
    };
    all.iter().zip(&all_short).map(name).collect()
}
