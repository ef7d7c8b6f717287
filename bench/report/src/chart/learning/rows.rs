//! Paired differences of errors, and gaps between training and evaluation, as intervals beside 0.
use std::collections::BTreeSet;

use super::{
    super::{
        WIDTH,
        canvas::Marker,
        intervals::{Intervals, Row, Series},
        legend,
        palette::Color,
    },
    color_of, marker_of, subtitle,
};
use crate::{
    document,
    learning::{Learned, Statistics, contests, difference, gaps_of, names, norm_name},
    stats::Estimate,
};

/// What a norm's error is above another's in the same repeats.
pub(super) fn differences(all: &[Learned<'_>]) -> Option<document::Figure> {
    let names = names(all);
    let mut series: Vec<Series> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    let contests = contests(all);
    let baselines: BTreeSet<&str> = contests.iter().map(|contest| contest.baseline).collect();
    let other = match baselines.len() {
        1 => norm_name(contests[0].baseline),
        _ => "the other norm".to_owned(),
    };
    for contest in &contests {
        let baseline = norm_name(contest.baseline);
        for (own, other) in &contest.pairs {
            let mut figures = Vec::new();
            for statistics in [Statistics::Stored, Statistics::Precise] {
                let Some(found) = difference(own, statistics, other) else {
                    continue;
                };
                let by_batch = Some(statistics).filter(|_| contest.by_batch());
                let name = match by_batch {
                    Some(statistics) => {
                        format!("{}, {}", norm_name(contest.own), statistics.name())
                    }
                    None => norm_name(contest.own),
                };
                let known = series.iter().position(|series| series.name == name);
                let index = known.unwrap_or_else(|| {
                    series.push(Series {
                        name,
                        marker: marker_of(by_batch),
                        color: color_of(contest.own),
                    });
                    series.len() - 1
                });
                figures.push((index, scaled(found, 100.0)));
            }
            let own = all
                .iter()
                .position(|learned| learned.trial.trial == own.trial.trial);
            let name = own.map_or("", |index| &names[index]);
            let label = match baselines.len() {
                1 => name.to_owned(),
                _ => format!("{name} − {baseline}"),
            };
            rows.push(Row { label, figures });
        }
    }
    let caption = "Error minus the other norm's after the last step, in the same repeats, which share initial parameters, order of samples and what is held out: medians \
                   of the differences with their spread. Right of 0 the named norm is worse; an interval that holds 0 tells no difference.";
    let chart = Intervals {
        title: "Paired differences of errors".into(),
        subtitle: subtitle(all),
        axis: format!("error minus {other}'s (percentage points)"),
        series,
        rows,
        show: |points| format!("{points:+.2}"),
    };
    rowed(chart, all, caption)
}

fn scaled(found: Estimate, by: f64) -> Estimate {
    Estimate {
        value: by * found.value,
        low: by * found.low,
        high: by * found.high,
        ..found
    }
}

/// The train/eval gaps of all trials that have one.
pub(super) fn gaps(all: &[Learned<'_>]) -> Option<document::Figure> {
    let series = [
        ("of batch statistics", Marker::Circle, Color::VERMILION),
        ("of dropout", Marker::Square, Color::BLUE),
    ];
    let series = series.map(|(name, marker, color)| Series {
        name: name.into(),
        marker,
        color,
    });
    let row = |(learned, label): (&Learned<'_>, String)| {
        let found = gaps_of(learned).into_iter().enumerate();
        Row {
            label,
            figures: found
                .filter_map(|(index, gap)| Some((index, gap?)))
                .collect(),
        }
    };
    let chart = Intervals {
        title: "Train and eval gap".into(),
        subtitle: subtitle(all),
        axis: "loss in evaluation minus loss in the condition of training".into(),
        series: series.into(),
        rows: all.iter().zip(names(all)).map(row).collect(),
        show: |loss| format!("{loss:+.4}"),
    };
    let caption = "The train/eval gap, on the same samples and weights, within repeats. Of batch statistics: the loss with stored ones minus that with those of batches, \
                   dropout off. Of dropout: the loss without it minus that with it. Right of 0 the model is worse in evaluation than in the condition of its training.";
    rowed(chart, all, caption)
}

fn rowed(chart: Intervals, all: &[Learned<'_>], caption: &str) -> Option<document::Figure> {
    let trials = all.iter().map(|learned| learned.trial);
    let (svg, height) = chart.draw(legend::spread(trials))?;
    Some(document::Figure {
        name: super::super::series::slug(&chart.title),
        title: chart.title,
        caption: caption.into(),
        svg,
        width: WIDTH,
        height,
    })
}
