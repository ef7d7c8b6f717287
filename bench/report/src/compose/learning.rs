//! What was learned, in tables; in words in [`sentences`].
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
        Contest, Learned, Reached, Statistics, contests, difference, gaps_of, learned, names,
        norm_name, reached, told,
    },
    run_data::RunData,
    stats::{Estimate, median},
};

mod sentences;

pub(crate) use sentences::learning_sentences;

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

/// How long each norm took to an error that all reach that learn.
fn pace(all: &[Learned<'_>], level: f64, found: &[Reached<'_>]) -> Table {
    let about = format!(
        "How long each took to the first evaluation with an error of at most {}, which is where the last repeat of those ends that learn (that end nearer to the best trial's end \
         than to the worst error of all evaluations): steps, and seconds of these steps where trials did not run beside each other. Medians over all repeats, no finer \
         than the evaluations.",
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
            estimated(reached.steps, whole),
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
