//! What was learned, in words and tables.
//!
//! Contract: the last evaluation counts. A norm is said to lose or win only where the interval of the paired differences leaves out 0.
use std::collections::BTreeSet;

use syncmark_record::rows::{NormStatisticsRow, SIDE_BY_SIDE};

use crate::{
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{count, estimated, number, or_dash, percent, significant, whole, with_spread},
    learning::{
        Contest, Learned, Reached, Statistics, chosen, contests, difference, gaps_of, learned,
        momentum, names, norm_name, rates_of_their_own, reached, told,
    },
    run_data::RunData,
    stats::{Estimate, median},
};

const TABLE: &str = "Errors are the share of labels that are not predicted, after the last step: medians over repeats, each with seeds of its own, \
with their spread. Stored: with the running statistics. Batch: with those of batches as large as the normalization batch. PreciseBN: with stored statistics that \
were estimated anew from training batches, weights unchanged.";

const PAPER: &str = "Second-hand, for orientation, not measured here: validation error in per cent of ResNet-50 on ImageNet by images per GPU, as the group norm paper \
gives it (Wu and He 2018, https://arxiv.org/abs/1803.08494). Small data may show the order and the shape, not these values.";

/// Images per GPU, errors of batch norm and of group norm.
const PAPER_ERRORS: [(u32, f64, f64); 5] = [
    (32, 23.6, 24.1),
    (16, 23.7, 24.2),
    (8, 24.8, 24.0),
    (4, 27.3, 24.2),
    (2, 34.7, 24.1),
];

const GAPS: &str = "The train/eval gap: what a loss in evaluation is above that in a condition of training, on the same samples and weights, within repeats. Of batch \
statistics: with stored ones minus with those of batches, dropout off. Of dropout: without it minus with it, over masks of its own, statistics stored. Below 0 evaluation is the milder one.";

const NOISE: &str = "How far the statistics of batches are from the stored ones after the last step, on training samples: means over channels and batches, medians \
over layers (smallest and largest layer). Mean: (batch mean − stored mean)² / stored variance. Variance: (ln batch variance − ln stored variance)². Every layer stands in \
norm_statistics.csv.";

/// The tables; empty without a trial that learned.
pub(super) fn blocks(data: &RunData) -> Vec<Block> {
    let all = learned(data);
    if all.is_empty() {
        return Vec::new();
    }
    let mut blocks = vec![Block::Table(ends(&all))];
    for contest in contests(&all) {
        blocks.push(Block::Table(differences(&contest)));
        let batches: BTreeSet<_> = contest
            .pairs
            .iter()
            .map(|(own, _)| own.trial.normalization_batch)
            .collect();
        if batches.len() > 1 && (contest.own, contest.baseline) == ("batch", "group") {
            blocks.push(Block::Table(paper()));
        }
    }
    if let Some((level, found)) = reached(data, &all) {
        blocks.push(Block::Table(pace(&all, level, &found)));
    }
    let gaps: Vec<[Option<Estimate>; 2]> = all.iter().map(gaps_of).collect();
    if gaps.iter().flatten().any(Option::is_some) {
        blocks.push(Block::Table(gap_table(&all, gaps)));
    }
    if !data.norm_statistics.is_empty() {
        blocks.push(Block::Table(noise(data, &all)));
    }
    blocks
}

fn ends(all: &[Learned<'_>]) -> Table {
    let mut table = Table::new(
        TABLE,
        &[
            ("trial", Left),
            ("norm", Left),
            ("together", Right),
            ("repeats", Right),
            ("error, stored", Right),
            ("batch", Right),
            ("PreciseBN", Right),
            ("on training samples", Right),
            ("loss", Right),
            ("steps", Right),
        ],
    );
    for learned in all {
        let trial = learned.trial;
        let error =
            |statistics: Statistics| estimated(learned.estimate(statistics.error()), percent);
        let repeats = match learned.diverged {
            0 => learned.ends.len().to_string(),
            diverged => format!("{}, and {diverged} diverged", learned.ends.len()),
        };
        table.push(vec![
            trial.label.clone(),
            trial.norm.clone(),
            or_dash(
                trial
                    .normalization_batch
                    .filter(|_| learned.has_batch_norms()),
                |own| own.to_string(),
            ),
            repeats,
            error(Statistics::Stored),
            error(Statistics::Batch),
            error(Statistics::Precise),
            estimated(learned.estimate(|row| row.train_eval_error), percent),
            estimated(learned.estimate(|row| row.eval_loss), number),
            or_dash(median(&steps(learned)), whole),
        ]);
    }
    table
}

fn steps(learned: &Learned<'_>) -> Vec<f64> {
    learned.ends.values().map(|row| row.step as f64).collect()
}

fn points(difference: f64) -> String {
    format!("{:+.2}", 100.0 * difference)
}

fn differences(contest: &Contest<'_, '_>) -> Table {
    let Contest {
        own,
        baseline,
        pairs,
    } = contest;
    let (name, other) = (norm_name(own), norm_name(baseline));
    let whose = match Statistics::Precise.of_both(baseline) {
        true => " PreciseBN is that of both.",
        false => "",
    };
    let mut table = Table::new(
        format!(
            "The error of {name} minus that of {other} in the same repeats, which share initial parameters, order of samples and what is held out: medians of the \
             differences, in percentage points.{whose}"
        ),
        &[
            ("trial", Left),
            ("together", Right),
            ("pairs", Right),
            ("stored", Right),
            ("", Left),
            ("PreciseBN", Right),
            ("", Left),
        ],
    );
    for (own, other) in pairs {
        let of = |statistics| difference(own, statistics, other);
        let (stored, precise) = (of(Statistics::Stored), of(Statistics::Precise));
        let words =
            |difference: &Option<Estimate>| or_dash(difference.as_ref(), |d| told(d).to_owned());
        table.push(vec![
            own.trial.label.clone(),
            or_dash(own.trial.normalization_batch, |own| own.to_string()),
            or_dash(stored.as_ref(), |d| d.blocks.to_string()),
            estimated(stored, points),
            words(&stored),
            estimated(precise, points),
            words(&precise),
        ]);
    }
    table
}

/// How long each norm took to an error that all reach.
fn pace(all: &[Learned<'_>], level: f64, found: &[Reached<'_>]) -> Table {
    let about = format!(
        "How long each took to the first evaluation with an error of at most {}, which is where the last of them ends (median): steps, and seconds of these steps where \
         trials did not run beside each other. Medians over the repeats that reached it, no finer than the evaluations.",
        percent(level)
    );
    let columns = [
        ("trial", Left),
        ("steps", Right),
        ("seconds", Right),
        ("never reached in", Right),
    ];
    let mut table = Table::new(about, &columns);
    for (reached, name) in found.iter().zip(names(all)) {
        let never = match reached.never {
            0 => "–".to_owned(),
            never => count(never, "repeat"),
        };
        table.push(vec![
            name,
            estimated(Some(reached.steps), whole),
            estimated(seconds(reached), number),
            never,
        ]);
    }
    table
}

/// Seconds that may be compared.
fn seconds(reached: &Reached<'_>) -> Option<Estimate> {
    let warnings = reached.trial.warnings.as_deref().unwrap_or_default();
    reached.seconds.filter(|_| !warnings.contains(SIDE_BY_SIDE))
}

fn paper() -> Table {
    let columns = [
        ("images", Right),
        ("batch norm", Right),
        ("group norm", Right),
    ];
    let mut table = Table::new(PAPER, &columns);
    for (images, batch, group) in PAPER_ERRORS {
        table.push(vec![
            images.to_string(),
            format!("{batch:.1}"),
            format!("{group:.1}"),
        ]);
    }
    table
}

fn gap_table(all: &[Learned<'_>], gaps: Vec<[Option<Estimate>; 2]>) -> Table {
    let mut table = Table::new(
        GAPS,
        &[
            ("trial", Left),
            ("together", Right),
            ("loss, stored", Right),
            ("gap of batch statistics", Right),
            ("loss with dropout", Right),
            ("gap of dropout", Right),
        ],
    );
    for (learned, [batch, dropout]) in all.iter().zip(gaps) {
        if batch.is_none() && dropout.is_none() {
            continue;
        }
        let own = learned
            .trial
            .normalization_batch
            .filter(|_| learned.has_batch_norms());
        table.push(vec![
            learned.trial.label.clone(),
            or_dash(own, |own| own.to_string()),
            estimated(learned.estimate(|row| row.eval_loss), number),
            estimated(batch, signed),
            estimated(learned.estimate(|row| row.dropout_loss), number),
            estimated(dropout, signed),
        ]);
    }
    table
}

fn signed(value: f64) -> String {
    format!("{value:+.4}")
}

fn noise(data: &RunData, all: &[Learned<'_>]) -> Table {
    let mut table = Table::new(
        NOISE,
        &[
            ("trial", Left),
            ("together", Right),
            ("layers", Right),
            ("values of a statistic", Right),
            ("mean", Right),
            ("variance", Right),
        ],
    );
    for learned in all {
        let rows: Vec<&NormStatisticsRow> = data
            .norm_statistics
            .iter()
            .filter(|row| {
                row.trial == learned.trial.trial && learned.ends.contains_key(&row.repeat)
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        let layers = rows.iter().map(|row| row.layer + 1).max().unwrap_or(0);
        // Over repeats first, then over layers.
        let by_layer = |figure: fn(&NormStatisticsRow) -> f64| -> Vec<f64> {
            let of_layer = |layer: u32| {
                let own = rows.iter().filter(|row| row.layer == layer);
                median(&own.map(|row| figure(row)).collect::<Vec<_>>())
            };
            (0..layers).filter_map(of_layer).collect()
        };
        let show = |figure: fn(&NormStatisticsRow) -> f64| {
            let values = by_layer(figure);
            let ends = |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick);
            with_spread(median(&values), ends(f64::min), ends(f64::max), |value| {
                significant(value, 3)
            })
        };
        table.push(vec![
            learned.trial.label.clone(),
            or_dash(learned.trial.normalization_batch, |own| own.to_string()),
            layers.to_string(),
            show(|row| row.values),
            show(|row| row.mean_noise),
            show(|row| row.variance_noise),
        ]);
    }
    table
}

/// Sentences that answer a study: how far evaluation is from training, where dropout was looked at; at which normalization batches batch norm and
/// synchronized batch norm lose to another norm, with stored statistics and with PreciseBN; and which norm is the first at an error that all reach.
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
    order.sort_by(|a, b| a.0.steps.value.total_cmp(&b.0.steps.value));
    let fact = |(reached, name): &(&Reached<'_>, String)| {
        let seconds = seconds(reached).map(|s| format!(", {} s", estimated(Some(s), number)));
        format!(
            "{name} {} steps{}",
            estimated(Some(reached.steps), whole),
            seconds.unwrap_or_default()
        )
    };
    let facts: Vec<String> = order.iter().map(fact).collect();
    format!(
        "To an error of {}, which all end at or below: {}.",
        percent(level),
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
            let padding = own.trial.norm_padding.as_ref();
            let options = [
                momentum(own.trial),
                padding.map(|how| format!("padding {how}")),
            ];
            let options: Vec<String> = options.into_iter().flatten().collect();
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
