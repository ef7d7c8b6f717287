//! Charts of what was learned: error against the normalization batch, and learning curves.
//!
//! Contract: medians over finished repeats with their spread, at the last evaluation or at each; norms that no batch matters to are drawn
//! over the batches of the others.
use std::collections::{BTreeMap, BTreeSet};

use syncmark_record::rows::{LearningRow, SIDE_BY_SIDE, TrialRow};

use super::{
    WIDTH,
    curves::{self, Curve, CurvePoint, LOOKS, Plot},
    legend,
};
use crate::{
    document,
    learning::{Figure, Learned, Statistics, around, comparable, learned, momentum},
    run_data::RunData,
    stats::{Estimate, estimate, median},
};

/// More curves than this in one chart cannot be told apart; the tables have them all.
const MOST_CURVES: usize = LOOKS.len();

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

fn point(x: f64, found: &Estimate, scale: f64) -> CurvePoint {
    CurvePoint {
        x,
        value: scale * found.value,
        low: scale * found.low,
        high: scale * found.high,
    }
}

/// The charts; none without a trial that learned.
pub fn learning(data: &RunData) -> Vec<document::Figure> {
    let all = learned(data);
    [
        against_batch(&all),
        gap(&all),
        super::noise::noise(data),
        learning_curves(data, &all),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Error against the normalization batch, where at least two were tried.
fn against_batch(all: &[Learned<'_>]) -> Option<document::Figure> {
    // What is over all ranks does not depend on a device's batch either.
    let own = |learned: &Learned<'_>| {
        learned
            .trial
            .normalization_batch
            .filter(|_| learned.trial.norm == "batch")
    };
    let batches: BTreeSet<u64> = all.iter().filter_map(own).collect();
    if batches.len() < 2 {
        return None;
    }
    if several(all.iter(), comparable(all)) {
        return against_own_batch(all);
    }
    let mut curves: BTreeMap<String, Vec<CurvePoint>> = BTreeMap::new();
    for learned in all {
        match own(learned) {
            Some(batch) => {
                for statistics in Statistics::ALL {
                    if let Some(found) = learned.estimate(statistics.error()) {
                        curves
                            .entry(name(learned, statistics))
                            .or_default()
                            .push(point(batch as f64, &found, 100.0));
                    }
                }
            }
            None => {
                if let Some(found) = learned.estimate(Statistics::Stored.error()) {
                    let points = batches
                        .iter()
                        .map(|batch| point(*batch as f64, &found, 100.0));
                    curves
                        .entry(format!("{} norm", learned.trial.norm))
                        .or_default()
                        .extend(points);
                }
            }
        }
    }
    let curves = looks(curves);
    let caption = "Error after the last step against how many samples share batch statistics; global batch, updates, order and initial parameters are the same. \
                   Norms without batch statistics do not depend on it: they trained once a repeat, and their line is drawn over all.";
    figure(all, "Error against normalization batch", caption, |title| {
        Plot {
            title: title.to_owned(),
            x: ("samples normalized together", Some(whole)),
            y: ("error (%)", None),
            curves,
            level: None,
        }
    })
}

/// The same where the batch itself differs, and so the learning rate or the number of updates: every norm then has a point for each.
fn against_own_batch(all: &[Learned<'_>]) -> Option<document::Figure> {
    if several(all.iter(), around) {
        return None;
    }
    let mut curves: BTreeMap<String, Vec<CurvePoint>> = BTreeMap::new();
    for learned in all {
        let by_batch = learned.trial.norm == "batch";
        for statistics in Statistics::ALL {
            if !by_batch && statistics != Statistics::Stored {
                continue;
            }
            if let Some(found) = learned.estimate(statistics.error()) {
                let name = match by_batch {
                    true => name(learned, statistics),
                    false => format!("{} norm", learned.trial.norm),
                };
                let batch = learned.trial.global_batch as f64;
                curves
                    .entry(name)
                    .or_default()
                    .push(point(batch, &found, 100.0));
            }
        }
    }
    let curves = looks(curves);
    let caption = "Error after the last step against the samples of a step. The batch itself differs, and with it learning rate or updates as the table of trials says: \
                   what is seen is not the statistics' doing alone.";
    figure(all, "Error against batch", caption, |title| Plot {
        title: title.to_owned(),
        x: ("samples of a step", Some(whole)),
        y: ("error (%)", None),
        curves,
        level: None,
    })
}

/// A batch norm's curve.
fn name(learned: &Learned<'_>, statistics: Statistics) -> String {
    let padding = learned.trial.norm_padding.as_ref();
    let words = [
        Some(format!("{} norm", learned.trial.norm)),
        momentum(learned.trial),
        padding.map(|how| format!("padding {how}")),
        Some(statistics.name().to_owned()),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Loss with stored and with batch statistics, against the normalization batch: what is between them is the train/eval gap.
fn gap(all: &[Learned<'_>]) -> Option<document::Figure> {
    let losses: [(Statistics, Figure); 2] = [
        (Statistics::Stored, |row| row.eval_loss),
        (Statistics::Batch, |row| row.batch_statistics_loss),
    ];
    let mut curves: BTreeMap<String, Vec<CurvePoint>> = BTreeMap::new();
    for learned in all.iter().filter(|learned| learned.trial.norm == "batch") {
        for (statistics, loss) in losses {
            let batch = learned.trial.normalization_batch;
            if let (Some(batch), Some(found)) = (batch, learned.estimate(loss)) {
                curves
                    .entry(name(learned, statistics))
                    .or_default()
                    .push(point(batch as f64, &found, 1.0));
            }
        }
    }
    let drawn = all.iter().filter(|learned| learned.trial.norm == "batch");
    if curves.values().all(|points| points.len() < 2) || several(drawn, comparable(all)) {
        return None;
    }
    let curves = looks(curves);
    let caption = "The train/eval gap: the loss with stored statistics and that with the statistics of each batch, on the same samples and weights, dropout off. Where the \
                   first is above the second, the stored statistics serve the model worse than those of a batch.";
    figure(all, "Train and eval gap", caption, |title| Plot {
        title: title.to_owned(),
        x: ("samples normalized together", Some(whole)),
        y: ("loss", None),
        curves,
        level: None,
    })
}

/// Whether trials differ in what they should share: then they have no axis to share.
fn several<'a, 'b: 'a>(
    all: impl Iterator<Item = &'a Learned<'b>>,
    shared: fn(&TrialRow) -> String,
) -> bool {
    let all: BTreeSet<String> = all.map(|learned| shared(learned.trial)).collect();
    all.len() > 1
}

fn looks(curves: BTreeMap<String, Vec<CurvePoint>>) -> Vec<Curve> {
    let look = |(index, (name, mut points)): (usize, (String, Vec<CurvePoint>))| {
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        let (marker, color) = LOOKS[index % LOOKS.len()];
        Curve {
            name,
            marker,
            color,
            points,
        }
    };
    curves.into_iter().enumerate().map(look).collect()
}

/// Loss and error against steps, and error against seconds where these may be compared.
fn learning_curves(data: &RunData, all: &[Learned<'_>]) -> Option<document::Figure> {
    if all.len() > MOST_CURVES {
        return None;
    }
    let curves = |figure: Figure, scale: f64, axis: Axis| {
        let of = |(index, learned): (usize, &Learned<'_>)| {
            let (marker, color) = LOOKS[index % LOOKS.len()];
            Curve {
                name: learned.trial.label.clone(),
                marker,
                color,
                points: by_step(data, learned, figure, scale, axis),
            }
        };
        all.iter().enumerate().map(of).collect::<Vec<_>>()
    };
    let plot = |title: &str, axis: &'static str, x: &'static str, curves| Plot {
        title: title.to_owned(),
        x: (x, None),
        y: (axis, None),
        curves,
        level: None,
    };
    let error: Figure = |row| row.eval_error;
    let mut plots = vec![
        plot(
            "error",
            "error (%)",
            "steps",
            curves(error, 100.0, Axis::Steps),
        ),
        plot(
            "training loss",
            "loss since the last evaluation",
            "steps",
            curves(|row| row.train_loss, 1.0, Axis::Steps),
        ),
    ];
    let beside_others = |learned: &Learned<'_>| {
        let warnings = learned.trial.warnings.as_deref().unwrap_or_default();
        warnings.contains(SIDE_BY_SIDE)
    };
    if !all.iter().any(beside_others) {
        plots.push(plot(
            "error by time",
            "error (%)",
            "seconds of training steps",
            curves(error, 100.0, Axis::Seconds),
        ));
    }
    let subtitle = subtitle(all);
    let trials = all.iter().map(|learned| learned.trial);
    let (svg, height) = curves::draw(
        "Learning curves",
        &subtitle,
        &plots,
        2,
        legend::spread(trials),
    )?;
    Some(document::Figure {
        name: "learning-curves".into(),
        title: "Learning curves".into(),
        caption:
            "Medians over repeats with their spread at each evaluation, with stored statistics. Seconds are those of the training steps alone, where trials did not run beside each other."
                .into(),
        svg,
        width: WIDTH,
        height,
    })
}

/// What a learning curve is drawn against.
#[derive(Clone, Copy)]
enum Axis {
    Steps,
    /// Medians over repeats of what the steps took so far.
    Seconds,
}

fn by_step(
    data: &RunData,
    learned: &Learned<'_>,
    figure: Figure,
    scale: f64,
    axis: Axis,
) -> Vec<CurvePoint> {
    let mut steps: BTreeMap<u64, [Vec<f64>; 2]> = BTreeMap::new();
    let own = |row: &&LearningRow| {
        row.trial == learned.trial.trial && learned.ends.contains_key(&row.repeat)
    };
    for row in data.learning.iter().filter(own) {
        let [values, seconds] = steps.entry(row.step).or_default();
        values.extend(figure(row));
        seconds.extend(row.train_ns.map(|ns| ns as f64 / 1e9));
    }
    let at = |(step, [values, seconds]): (u64, [Vec<f64>; 2])| {
        let x = match axis {
            Axis::Steps => step as f64,
            Axis::Seconds => median(&seconds)?,
        };
        Some(point(x, &estimate(&values)?, scale))
    };
    steps.into_iter().filter_map(at).collect()
}

fn subtitle(all: &[Learned<'_>]) -> String {
    let mut words: Vec<String> = Vec::new();
    for learned in all {
        let word = format!("{} · {}", learned.trial.model, learned.trial.data);
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words.join("; ")
}

fn figure(
    all: &[Learned<'_>],
    title: &str,
    caption: &str,
    plot: impl FnOnce(&str) -> Plot,
) -> Option<document::Figure> {
    let trials = all.iter().map(|learned| learned.trial);
    let (svg, height) = curves::draw(
        title,
        &subtitle(all),
        &[plot("")],
        1,
        legend::spread(trials),
    )?;
    Some(document::Figure {
        name: super::series::slug(title),
        title: title.into(),
        caption: caption.into(),
        svg,
        width: WIDTH,
        height,
    })
}
