//! What was learned, in words and tables.
//!
//! Contract: the last evaluation counts. A norm is said to lose or win only where the interval of the paired differences leaves out 0.
use std::collections::BTreeSet;

use syncmark_record::rows::NormStatisticsRow;

use crate::{
    analyse::paired,
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{count, estimated, number, or_dash, percent, significant, whole, with_spread},
    learning::{
        Figure, Learned, Pair, Statistics, against, chosen, difference, learned, momentum,
        rates_of_their_own, told,
    },
    run_data::RunData,
    stats::{Estimate, estimate, median},
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
    let (baseline, pairs) = against(&all);
    if !pairs.is_empty() {
        blocks.push(Block::Table(differences(baseline, &pairs)));
        let batches: BTreeSet<_> = pairs
            .iter()
            .map(|(own, _)| own.trial.normalization_batch)
            .collect();
        if batches.len() > 1 && baseline == "group" {
            blocks.push(Block::Table(paper()));
        }
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

fn differences(baseline: &str, pairs: &[Pair<'_, '_>]) -> Table {
    let mut table = Table::new(
        format!(
            "Batch norm's error minus {baseline} norm's in the same repeats, which share initial parameters, order of samples and what is held out: medians of the \
             differences, in percentage points."
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

/// The gap of batch statistics and that of dropout.
fn gaps_of(learned: &Learned<'_>) -> [Option<Estimate>; 2] {
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

/// Sentences that answer a study: at which normalization batches batch norm loses to group norm (or to layer norm, where that is what there is), with
/// stored statistics and with PreciseBN.
pub(crate) fn learning_sentences(data: &RunData) -> Vec<String> {
    let all = learned(data);
    let (baseline, pairs) = against(&all);
    let mut sentences: Vec<String> = [Statistics::Stored, Statistics::Precise]
        .into_iter()
        .filter_map(|statistics| sentence(baseline, &pairs, statistics))
        .collect();
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
    if pairs.is_empty() && !all.is_empty() {
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

fn sentence(baseline: &str, pairs: &[Pair<'_, '_>], statistics: Statistics) -> Option<String> {
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
        (_, true) => "there are too few repeats for a verdict".to_owned(),
        (true, false) => {
            format!("batch norm was not seen to lose to {baseline} norm at any normalization batch")
        }
        (false, false) => {
            format!("batch norm loses to {baseline} norm at normalization batches of {lost}")
        }
    };
    let verdict = match (won.is_empty(), lost.is_empty()) {
        (true, _) => verdict,
        (false, true) => format!(
            "batch norm's error is smaller than {baseline} norm's at normalization batches of {won}, and it was not seen to lose at any"
        ),
        (false, false) => format!("{verdict}, and wins at {won}"),
    };
    Some(format!(
        "With {}, {verdict}. Its error minus {baseline} norm's in percentage points, by normalization batch: {}.",
        statistics.name(),
        facts.join("; ")
    ))
}
