//! Throughput and efficiency against the number of devices.
//!
//! Contract: the median of every series with its interval (or range), each repeat as a small dot, and the ideal line.
//! Series of one device count stand side by side, so that their intervals do not cover each other.
use super::{
    WIDTH,
    axis::Area,
    canvas::{self, Anchor},
    legend::{self, Entry, Sign},
    palette::{Color, PANEL},
    panel::{Panel, Point, share_top},
    series::{Facet, Series, dp_on_cpu, labelled, not_shown, series},
};
use crate::{
    analyse::{Blocks, paired, reference},
    document::Figure,
    run_data::RunData,
};
use syncmark_record::rows::TrialRow;

const MARGIN: f64 = 16.0;
const PLOT_HEIGHT: f64 = 290.0;

fn point(trial: &TrialRow, figure: [Option<f64>; 3], raw: Vec<f64>) -> Option<Point> {
    let [value, low, high] = figure;
    // A ratio of too few common blocks has no ends: its point stands alone.
    let value = value?;
    Some(Point {
        devices: trial.devices,
        value,
        low: low.unwrap_or(value),
        high: high.unwrap_or(value),
        raw,
    })
}

/// Samples per second against devices.
pub fn throughput(data: &RunData, facet: &Facet<'_>) -> Option<Figure> {
    let all = series(facet);
    let points: Vec<Vec<Point>> = all
        .iter()
        .map(|series| {
            let figure = |trial: &&TrialRow| {
                let raw = Blocks::of(&trial.trial, &data.repeats)
                    .samples_per_s
                    .into_values()
                    .collect();
                point(
                    trial,
                    [
                        trial.samples_per_s,
                        trial.samples_per_s_low,
                        trial.samples_per_s_high,
                    ],
                    raw,
                )
            };
            series.trials.iter().filter_map(figure).collect()
        })
        .collect();
    let alone = all
        .iter()
        .flat_map(|series| &series.trials)
        .find(|trial| trial.strategy == "single" && trial.devices == 1)
        .and_then(|trial| trial.samples_per_s);
    let ideal =
        alone.map(|alone| Box::new(move |devices: f64| alone * devices) as Box<dyn Fn(f64) -> f64>);
    let line = if ideal.is_some() {
        "The dashed line is N times single on one device, level over each N. "
    } else {
        ""
    };
    let panel = Panel {
        title: "",
        axis: "throughput (samples / s)",
        points,
        top: 0.0,
        ideal,
    };
    let title = "Throughput against devices";
    let (svg, height) = draw(title, &facet.title, &all, facet, &[panel], "ideal")?;
    let caption = format!(
        "Samples per second over the wall time of the whole window; higher is better. {line}{}{}{}",
        spread_words(facet),
        dp_on_cpu(facet),
        not_shown(facet)
    );
    Some(Figure {
        name: format!("throughput-{}", facet.slug),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// Efficiency against `single` and against `independent`, against devices.
pub fn efficiency(data: &RunData, facet: &Facet<'_>) -> Option<Figure> {
    let all = series(facet);
    let panels = [
        ("against single × N", efficiency_points(data, &all, true)),
        (
            "against independent on N",
            efficiency_points(data, &all, false),
        ),
    ];
    let mut panels: Vec<Panel<'_>> = panels
        .into_iter()
        .filter(|(_, points)| points.iter().any(|series| !series.is_empty()))
        .map(|(title, points)| Panel {
            title,
            axis: "efficiency (%)",
            points,
            top: 0.0,
            ideal: Some(Box::new(|_| 100.0)),
        })
        .collect();
    share_top(panels.iter_mut());
    let title = "Efficiency against devices";
    let (svg, height) = draw(title, &facet.title, &all, facet, &panels, "100 %")?;
    let caption = format!(
        "What is lost: against single the figure contains what the hardware itself loses when N devices run at once; against \
         independent (N replicas that never synchronize, launched alike; DP counts as threads) only what the strategy adds is left. Ratios are taken within blocks. {}{}{}",
        spread_words(facet),
        dp_on_cpu(facet),
        not_shown(facet)
    );
    Some(Figure {
        name: format!("efficiency-{}", facet.slug),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

pub(super) fn efficiency_points(
    data: &RunData,
    all: &[Series<'_>],
    single: bool,
) -> Vec<Vec<Point>> {
    let percent = |value: Option<f64>| value.map(|v| v * 100.0);
    let yardstick = if single { "single" } else { "independent" };
    let reference = |trial: &TrialRow| {
        let found = reference(trial, &data.trials, yardstick)?;
        Some(Blocks::of(&found.trial, &data.repeats).samples_per_s)
    };
    all.iter()
        .map(|series| {
            let figure = |trial: &&TrialRow| {
                let columns = if single {
                    [
                        trial.efficiency_single,
                        trial.efficiency_single_low,
                        trial.efficiency_single_high,
                    ]
                } else {
                    [
                        trial.efficiency_independent,
                        trial.efficiency_independent_low,
                        trial.efficiency_independent_high,
                    ]
                };
                let times = if single {
                    f64::from(trial.devices)
                } else {
                    1.0
                };
                let own = Blocks::of(&trial.trial, &data.repeats).samples_per_s;
                let pairs = reference(trial)
                    .map(|other| paired(&own, &other))
                    .unwrap_or_default();
                let raw = pairs
                    .into_iter()
                    .map(|(above, below)| above / below / times * 100.0)
                    .collect();
                point(trial, columns.map(percent), raw)
            };
            series.trials.iter().filter_map(figure).collect()
        })
        .collect()
}

/// Says what the error bars are, which depends on the number of repeats.
pub(super) fn spread_words(facet: &Facet<'_>) -> String {
    let spreads: Vec<&str> = facet
        .trials
        .iter()
        .filter_map(|trial| trial.spread.as_deref())
        .collect();
    let range = spreads.contains(&"range");
    match (range, spreads.contains(&"interval")) {
        (true, true) => "Bars are 95 % bootstrap intervals, or the range where a trial has fewer than 6 repeats; dots are repeats.".into(),
        (true, false) => "Bars are the range of the repeats (fewer than 6, so no interval and no verdict); dots are repeats.".into(),
        _ => "Bars are 95 % bootstrap intervals over blocks; dots are repeats.".into(),
    }
}

fn draw(
    title: &str,
    subtitle: &str,
    all: &[Series<'_>],
    facet: &Facet<'_>,
    panels: &[Panel<'_>],
    ideal: &str,
) -> Option<(String, u32)> {
    if !panels
        .iter()
        .any(|panel| panel.points.iter().any(|points| !points.is_empty()))
    {
        return None;
    }
    let width = f64::from(WIDTH);
    let drawn = |index: usize| panels.iter().any(|panel| !panel.points[index].is_empty());
    let mut entries: Vec<Entry> = all
        .iter()
        .enumerate()
        .filter(|(index, _)| drawn(*index))
        .map(|(_, series)| series)
        .map(|series| Entry::new(Sign::Series(series.marker, series.color), labelled(series)))
        .collect();
    if panels.iter().any(|panel| panel.ideal.is_some()) {
        entries.push(Entry::new(Sign::Dashes(Color::GREY), ideal));
    }
    let spread = legend::spread(facet.trials.iter().copied());
    entries.push(Entry::new(Sign::Interval, spread));
    entries.push(Entry::new(Sign::Dot, "one repeat"));
    let panel_title = if panels.len() > 1 { 22.0 } else { 0.0 };
    let top = legend::HEADING + legend::height(&entries, width - 2.0 * MARGIN) + 14.0 + panel_title;
    let height = (top + PLOT_HEIGHT + 56.0) as u32;
    let svg = canvas::draw(WIDTH, height, &format!("{title}: {subtitle}"), |canvas| {
        legend::heading(canvas, width, title, subtitle);
        legend::draw(
            canvas,
            MARGIN,
            legend::HEADING,
            width - 2.0 * MARGIN,
            &entries,
        );
        let share = (width - MARGIN) / panels.len() as f64;
        for (index, panel) in panels.iter().enumerate() {
            let left = index as f64 * share + 80.0;
            let area = Area {
                left,
                top,
                right: (index + 1) as f64 * share - 6.0,
                bottom: top + PLOT_HEIGHT,
            };
            if panels.len() > 1 {
                canvas.text(
                    (area.left + area.right) / 2.0,
                    top - 14.0,
                    panel.title,
                    Anchor::Middle,
                    PANEL,
                );
            }
            panel.paint(canvas, area, all, facet);
        }
    });
    Some((svg, height))
}
