//! Charts of what was learned: error against the normalization batch, paired differences and gaps, and learning curves.
//!
//! Contract: medians over finished repeats with their spread, at the last evaluation or at each; norms that no batch matters to are drawn
//! over the batches of the others. A norm has one colour in all of them; marks tell statistics, and tints trials of one norm.
use std::collections::{BTreeMap, BTreeSet};

use syncmark_record::rows::{LearningRow, SIDE_BY_SIDE, TrialRow};

use super::{
    WIDTH,
    canvas::Marker,
    curves::{self, Curve, CurvePoint, LOOKS, Plot},
    legend,
    palette::Color,
};
use crate::{
    document,
    format::count,
    learning::{
        Figure, Learned, Statistics, around, comparable, learned, names, norm_name, options,
    },
    run_data::RunData,
    stats::{Estimate, estimate, median},
};

mod rows;

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
    let mut charts = Vec::new();
    charts.extend(against_batch(&all));
    charts.extend(rows::differences(&all));
    charts.extend(rows::gaps(&all));
    charts.extend(super::noise::noise(data));
    charts.extend(learning_curves(data, &all));
    charts
}

/// Error against the normalization batch, where at least two were tried.
fn against_batch(all: &[Learned<'_>]) -> Option<document::Figure> {
    let own = |learned: &Learned<'_>| {
        let by_batch = matches!(learned.trial.norm.as_str(), "batch" | "sync-batch");
        learned.trial.normalization_batch.filter(|_| by_batch)
    };
    let batches: BTreeSet<u64> = all.iter().filter_map(own).collect();
    if batches.len() < 2 {
        return None;
    }
    if several(all.iter(), comparable(all)) {
        return against_own_batch(all);
    }
    let mut curves = Curves::default();
    for learned in all {
        match own(learned) {
            Some(batch) => {
                for statistics in Statistics::ALL {
                    if let Some(found) = learned.estimate(statistics.error()) {
                        curves.add(
                            learned,
                            Some(statistics),
                            [point(batch as f64, &found, 100.0)],
                        );
                    }
                }
            }
            None => {
                if let Some(found) = learned.estimate(Statistics::Stored.error()) {
                    let points = batches
                        .iter()
                        .map(|batch| point(*batch as f64, &found, 100.0));
                    curves.add(learned, None, points);
                }
            }
        }
    }
    let mut curves = curves.sorted();
    // Norms without batch statistics trained once a repeat: one interval each, side by side.
    let still = curves
        .iter_mut()
        .filter(|curve| curve.marker == marker_of(None));
    still
        .enumerate()
        .for_each(|(place, curve)| curve.flat = Some(place));
    let caption = "Error after the last step against how many samples share batch statistics; global batch, updates, order and initial parameters are the same. \
                   Norms without batch statistics do not depend on it: they trained once a repeat, so their line is drawn over all and their interval once, at the right.";
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
    let mut curves = Curves::default();
    for learned in all {
        let by_batch = learned.trial.norm == "batch";
        for statistics in Statistics::ALL {
            if !by_batch && statistics != Statistics::Stored {
                continue;
            }
            if let Some(found) = learned.estimate(statistics.error()) {
                let batch = learned.trial.global_batch as f64;
                let points = [point(batch, &found, 100.0)];
                curves.add(learned, Some(statistics).filter(|_| by_batch), points);
            }
        }
    }
    let curves = curves.sorted();
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

/// Curves with the norms that they are of, in the order in which they came.
#[derive(Default)]
struct Curves(Vec<(String, Curve)>);

impl Curves {
    /// Adds points of a norm, with these statistics if it has any.
    fn add(
        &mut self,
        learned: &Learned<'_>,
        statistics: Option<Statistics>,
        points: impl IntoIterator<Item = CurvePoint>,
    ) {
        let options = statistics.map(|_| options(learned.trial));
        let name = [norm_name(&learned.trial.norm)]
            .into_iter()
            .chain(options.into_iter().flatten())
            .chain(statistics.map(|statistics| statistics.name().to_owned()));
        let name = name.collect::<Vec<_>>().join(", ");
        let known = self.0.iter().position(|(_, curve)| curve.name == name);
        let at = known.unwrap_or_else(|| {
            let color = color_of(&learned.trial.norm);
            let marker = marker_of(statistics);
            // Variants of a norm share its colour and marks, and get lighter.
            let norm = learned.trial.norm.clone();
            let alike =
                |(other, curve): &&(String, Curve)| *other == norm && curve.marker == marker;
            let variants = self.0.iter().filter(alike).count();
            let curve = Curve {
                name,
                marker,
                color: color.tint(TINTS[variants % TINTS.len()]),
                points: Vec::new(),
                flat: None,
            };
            self.0.push((norm, curve));
            self.0.len() - 1
        });
        self.0[at].1.points.extend(points);
    }

    fn sorted(mut self) -> Vec<Curve> {
        for (_, curve) in &mut self.0 {
            curve.points.sort_by(|a, b| a.x.total_cmp(&b.x));
        }
        self.0.into_iter().map(|(_, curve)| curve).collect()
    }
}

/// Shares of white of the trials of one norm.
const TINTS: [f64; 6] = [0.0, 0.35, 0.55, 0.15, 0.45, 0.25];

/// A norm's colour in every chart of what was learned.
fn color_of(norm: &str) -> Color {
    match norm {
        "batch" => Color::VERMILION,
        "sync-batch" => Color::ORANGE,
        "group" => Color::BLUE,
        "layer" => Color::GREEN,
        "instance" => Color::PURPLE,
        "rms" => Color::SKY,
        _ => Color::GREY,
    }
}

fn marker_of(statistics: Option<Statistics>) -> Marker {
    match statistics {
        Some(Statistics::Stored) => Marker::Circle,
        Some(Statistics::Batch) => Marker::Up,
        Some(Statistics::Precise) => Marker::Square,
        None => Marker::Diamond,
    }
}

/// Whether trials differ in what they should share: then they have no axis to share.
fn several<'a, 'b: 'a>(
    all: impl Iterator<Item = &'a Learned<'b>>,
    shared: fn(&TrialRow) -> String,
) -> bool {
    let all: BTreeSet<String> = all.map(|learned| shared(learned.trial)).collect();
    all.len() > 1
}

/// Loss and error against steps, and error against seconds where these may be compared.
fn learning_curves(data: &RunData, all: &[Learned<'_>]) -> Option<document::Figure> {
    if all.len() > MOST_CURVES {
        return None;
    }
    let names = names(all);
    let curves = |figure: Figure, scale: f64, axis: Axis| {
        let of = |(index, learned): (usize, &Learned<'_>)| {
            let norm = &learned.trial.norm;
            let before = all[..index]
                .iter()
                .filter(|other| other.trial.norm == *norm);
            let before = before.count();
            let (marker, _) = LOOKS[before % LOOKS.len()];
            Curve {
                name: names[index].clone(),
                marker,
                color: color_of(norm).tint(TINTS[before % TINTS.len()]),
                flat: None,
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
        plots.push(plot(
            "training loss by time",
            "loss since the last evaluation",
            "seconds of training steps",
            curves(|row| row.train_loss, 1.0, Axis::Seconds),
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
    let repeats = all.iter().map(|learned| learned.ends.len()).max();
    format!(
        "{} · {}",
        words.join("; "),
        count(repeats.unwrap_or(0), "repeat")
    )
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
