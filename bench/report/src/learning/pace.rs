//! How fast norms learn: steps and seconds to an error that all of them reach that learn at all.
use std::collections::BTreeMap;

use syncmark_record::rows::{LearningRow, TrialRow};

use super::{Learned, Statistics};
use crate::{
    run_data::RunData,
    stats::{Estimate, estimate},
};

/// Evaluations of a repeat from which it is told how long a norm took to an error.
pub const FEWEST_EVALUATIONS: usize = 5;

/// How long a norm took to that error.
#[derive(Clone, Debug)]
pub struct Reached<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// Steps to the first evaluation at or below it; none unless every repeat has one.
    pub steps: Option<Estimate>,
    /// Seconds of these steps, where there are any and they were recorded.
    pub seconds: Option<Estimate>,
    /// Repeats that have none.
    pub never: usize,
}

/// The error that every repeat ends at or below that learns, and how long each trial took to it. None for fewer than two trials, or where
/// there are too few evaluations ([`FEWEST_EVALUATIONS`]) to tell.
///
/// A repeat learns if it ends nearer to the end of the best trial (median) than to the worst error of all evaluations. One that does not
/// would set a level that the others pass at their first look, which would tell nothing of their pace. No repeat that learns is left out, so
/// that no median is one of the fast alone.
pub fn reached<'a>(data: &RunData, all: &[Learned<'a>]) -> Option<(f64, Vec<Reached<'a>>)> {
    let error = Statistics::Stored.error();
    let medians = all.iter().filter_map(|learned| learned.estimate(error));
    let best = medians.map(|median| median.value).reduce(f64::min)?;
    let errors = data.learning.iter().filter_map(|row| row.eval_error);
    let learns = f64::midpoint(best, errors.reduce(f64::max)?);
    let level = all
        .iter()
        .flat_map(|learned| learned.figure(error).into_values())
        .filter(|end| *end <= learns)
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
        let never = learned.ends.len() - first.len();
        let looked_at = own().count() / learned.ends.len().max(1);
        (looked_at >= FEWEST_EVALUATIONS).then_some(())?;
        Some(Reached {
            trial: learned.trial,
            steps: estimate(&steps).filter(|_| never == 0),
            seconds: estimate(&seconds).filter(|_| never == 0),
            never,
        })
    };
    let found: Vec<_> = all.iter().filter_map(of_trial).collect();
    (found.len() == all.len()).then_some((level, found))
}
