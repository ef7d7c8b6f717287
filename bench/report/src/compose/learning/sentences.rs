//! The answer of a study of norms.
//!
//! Contract: that of the tables: a norm is said to lose or win only where the interval of the paired differences leaves out 0.
use super::{points, seconds, signed};
use crate::{
    format::{count, estimated, number, percent, whole},
    learning::{
        Contest, Learned, Reached, Statistics, chosen, contests, difference, gaps_of, learned,
        names, norm_name, options, rates_of_their_own, reached, told,
    },
    run_data::RunData,
    stats::Estimate,
};

/// Sentences that answer a study: how far evaluation is from training, where dropout was looked at; at which normalization batches batch norm and
/// synchronized batch norm lose to another norm, with stored statistics and with PreciseBN; and which norm is the first at an error that all repeats reach that learn.
pub(crate) fn learning_sentences(data: &RunData) -> Vec<String> {
    let all = learned(data);
    let contests = contests(&all);
    let mut sentences = gap_sentences(&all);
    sentences.extend(reached(data, &all).map(|(level, found)| pace_sentence(&all, level, &found)));
    for contest in contests.iter().filter(|contest| contest.by_batch()) {
        let both = [Statistics::Stored, Statistics::Precise];
        sentences.extend(
            both.into_iter()
                .filter_map(|statistics| sentence(contest, statistics))
                .flatten(),
        );
    }
    sentences.extend(others_sentence(&contests));
    let diverged: Vec<String> = all
        .iter()
        .filter(|learned| learned.diverged > 0)
        .map(|learned| {
            format!(
                "{} of {}",
                count(learned.diverged, "repeat"),
                learned.trial.label
            )
        })
        .collect();
    if !diverged.is_empty() {
        sentences.push(format!(
            "Diverged: {}; figures are those of the other repeats.",
            diverged.join(", ")
        ));
    }
    if let Some(rates) = rates_of_their_own(&all) {
        let words: Vec<String> = rates
            .iter()
            .map(|(norm, rate)| format!("{norm} {rate}"))
            .collect();
        sentences.push(format!(
            "Each norm has a learning rate of its own: {}.",
            words.join(", ")
        ));
    }
    sentences.extend(grid_sentence(&all));
    if contests.is_empty() && !all.is_empty() {
        let best = |learned: &Learned<'_>| learned.estimate(Statistics::Stored.error());
        let words: Vec<String> = all
            .iter()
            .filter_map(|learned| {
                Some(format!(
                    "{} {}",
                    learned.trial.label,
                    estimated(Some(best(learned)?), percent)
                ))
            })
            .collect();
        sentences.push(format!("Errors after the last step: {}.", words.join("; ")));
    }
    sentences
}

/// What a grid of learning rates found; the rate that comes next says how clear that is.
fn grid_sentence(all: &[Learned<'_>]) -> Option<String> {
    let found = chosen(all);
    if found.is_empty() {
        return None;
    }
    let facts: Vec<String> = found
        .iter()
        .map(|best| {
            format!(
                "{} {} ({}; next {} with {}{})",
                best.norm,
                best.rate,
                estimated(Some(best.error), percent),
                best.next.0,
                estimated(Some(best.next.1), percent),
                match best.at_edge {
                    true => "; at the end of the grid: a better one may lie beyond",
                    false => "",
                }
            )
        })
        .collect();
    Some(format!(
        "Learning rates with the smallest median error, by norm: {}.",
        facts.join("; ")
    ))
}

/// The gaps, where dropout has one: then they are what was asked.
fn gap_sentences(all: &[Learned<'_>]) -> Vec<String> {
    let gaps: Vec<[Option<Estimate>; 2]> = all.iter().map(gaps_of).collect();
    if gaps.iter().all(|[_, dropout]| dropout.is_none()) {
        return Vec::new();
    }
    let names = names(all);
    let facts = |which: usize| -> Vec<String> {
        let own = names.iter().zip(&gaps).filter_map(|(name, gap)| {
            Some(format!("{name} {}", estimated(Some(gap[which]?), signed)))
        });
        own.collect()
    };
    let mut sentences = Vec::new();
    for (which, what) in [(0, "batch statistics"), (1, "dropout")] {
        let facts = facts(which);
        if !facts.is_empty() {
            sentences.push(format!(
                "Loss in evaluation minus loss in the condition of training, of {what}: {}.",
                facts.join("; ")
            ));
        }
    }
    sentences
}

fn pace_sentence(all: &[Learned<'_>], level: f64, found: &[Reached<'_>]) -> String {
    let mut order: Vec<(&Reached<'_>, String)> = found.iter().zip(names(all)).collect();
    let steps = |reached: &Reached<'_>| reached.steps.map_or(f64::INFINITY, |steps| steps.value);
    order.sort_by(|a, b| steps(a.0).total_cmp(&steps(b.0)));
    let fact = |(reached, name): &(&Reached<'_>, String)| {
        let seconds = seconds(reached).map(|s| format!(", {} s", estimated(Some(s), number)));
        match reached.steps {
            Some(steps) => format!(
                "{name} {} steps{}",
                estimated(Some(steps), whole),
                seconds.unwrap_or_default()
            ),
            None => format!("{name} never in {}", count(reached.never, "repeat")),
        }
    };
    let facts: Vec<String> = order.iter().map(fact).collect();
    format!(
        "To an error of {}, which {} at or below: {}.",
        percent(level),
        if found.iter().all(|reached| reached.steps.is_some()) {
            "all repeats end"
        } else {
            "those that learn end"
        },
        facts.join("; ")
    )
}

/// Norms without batch statistics, where each has one trial to hold against another.
fn others_sentence(contests: &[Contest<'_, '_>]) -> Option<String> {
    let others = contests.iter().filter(|contest| !contest.by_batch());
    let fact = |contest: &Contest<'_, '_>| match contest.pairs[..] {
        [(own, other)] => {
            let found = difference(own, Statistics::Stored, other)?;
            let figure = estimated(Some(found), points);
            Some(format!(
                "{} {figure} ({})",
                norm_name(contest.own),
                told(&found)
            ))
        }
        _ => None,
    };
    let facts: Vec<String> = others.filter_map(fact).collect();
    let baseline = contests
        .iter()
        .find(|contest| !contest.by_batch())?
        .baseline;
    (!facts.is_empty()).then(|| {
        format!(
            "Without batch statistics, error minus that of {} in percentage points: {}.",
            norm_name(baseline),
            facts.join("; ")
        )
    })
}

/// The verdict, and the figures that it rests on.
fn sentence(contest: &Contest<'_, '_>, statistics: Statistics) -> Option<[String; 2]> {
    let (name, baseline) = (norm_name(contest.own), norm_name(contest.baseline));
    let pairs = &contest.pairs;
    let mut found: Vec<(u64, String, Estimate)> = pairs
        .iter()
        .filter_map(|(own, other)| {
            let together = own.trial.normalization_batch?;
            let options = options(own.trial);
            let name = match options.is_empty() {
                false => format!("{together} ({})", options.join(", ")),
                true => together.to_string(),
            };
            Some((together, name, difference(own, statistics, other)?))
        })
        .collect();
    found.sort_by_key(|(together, ..)| *together);
    if found.is_empty() {
        return None;
    }
    let facts: Vec<String> = found
        .iter()
        .map(|(_, name, difference)| format!("{name}: {}", estimated(Some(*difference), points)))
        .collect();
    let at = |verdict: &str| {
        let own = found
            .iter()
            .filter(|(.., difference)| told(difference) == verdict);
        let names: Vec<&str> = own.map(|(_, name, _)| name.as_str()).collect();
        names.join(", ")
    };
    let (lost, won) = (at("worse"), at("better"));
    let verdict = match (
        lost.is_empty(),
        found.iter().all(|(.., d)| told(d) == "no verdict"),
    ) {
        (_, true) => {
            format!("there are too few repeats for a verdict on {name} against {baseline}")
        }
        (true, false) => {
            format!("{name} was not seen to lose to {baseline} at any normalization batch")
        }
        (false, false) => {
            format!("{name} loses to {baseline} at normalization batches of {lost}")
        }
    };
    let verdict = match (won.is_empty(), lost.is_empty()) {
        (true, _) => verdict,
        (false, true) => format!(
            "{name}'s error is smaller than {baseline}'s at normalization batches of {won}, and it was not seen to lose at any"
        ),
        (false, false) => format!("{verdict}, and wins at {won}"),
    };
    let both = match statistics.of_both(contest.baseline) {
        true => " of both",
        false => "",
    };
    let statistics = statistics.name();
    Some([
        format!("With {statistics}{both}, {verdict}."),
        format!(
            "The error of {name} minus that of {baseline} with {statistics}{both}, in percentage points, by normalization batch: {}.",
            facts.join("; ")
        ),
    ])
}
