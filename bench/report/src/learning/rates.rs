//! Learning rates: what a grid of them found, and whether each norm has one of its own.
use syncmark_record::rows::TrialRow;

use super::{Learned, Statistics, norm_name, padding, rate, setting_but_rate};
use crate::stats::Estimate;

/// The trials of a norm as sentences call them.
fn name(trial: &TrialRow) -> String {
    let words = [norm_name(&trial.norm)].into_iter().chain(padding(trial));
    words.collect::<Vec<_>>().join(", ")
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
        let norm = name(trial);
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
        let norm = name(trial);
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
