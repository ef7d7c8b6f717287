//! Throughput and efficiency against the number of devices.
//!
//! Contract: the median of every series with its interval (or range), each repeat as a small dot, and the ideal line.
//! Series of one device count stand side by side, so that their intervals do not cover each other.
use super::{
    WIDTH,
    axis::{Area, Scale, tick_label, vertical},
    canvas::{self, Anchor, Canvas},
    legend::{self, Entry, Sign},
    palette::{ALERT, Color, LABEL, PANEL, SMALL},
    series::{Facet, Series, dp_on_cpu, not_shown, series},
};
use crate::{
    analyse::{Blocks, paired},
    document::Figure,
    run_data::RunData,
};
use syncmark_record::rows::TrialRow;

const MARGIN: f64 = 16.0;
const PLOT_HEIGHT: f64 = 290.0;
/// Repeats stand beside their median, or its marker would cover them.
const RAW_SHIFT: f64 = 9.0;

/// One point of a series.
struct Point {
    devices: u32,
    value: f64,
    low: f64,
    high: f64,
    /// Single repeats.
    raw: Vec<f64>,
}

/// One coordinate system.
struct Panel<'a> {
    title: &'a str,
    axis: &'a str,
    points: Vec<Vec<Point>>,
    /// The ideal value by device count.
    ideal: Option<Box<dyn Fn(f64) -> f64>>,
}

fn point(trial: &TrialRow, figure: [Option<f64>; 3], raw: Vec<f64>) -> Option<Point> {
    let [value, low, high] = figure;
    Some(Point {
        devices: trial.devices,
        value: value?,
        low: low?,
        high: high?,
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
        ideal,
    };
    let title = "Throughput against devices";
    let (svg, height) = draw(
        title,
        &facet.title,
        &all,
        facet,
        &[panel],
        "ideal: N × single",
    )?;
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
        (
            "against single × N",
            efficiency_points(data, facet, &all, true),
        ),
        (
            "against independent on N",
            efficiency_points(data, facet, &all, false),
        ),
    ];
    let panels: Vec<Panel<'_>> = panels
        .into_iter()
        .filter(|(_, points)| points.iter().any(|series| !series.is_empty()))
        .map(|(title, points)| Panel {
            title,
            axis: "efficiency (%)",
            points,
            ideal: Some(Box::new(|_| 100.0)),
        })
        .collect();
    let title = "Efficiency against devices";
    let (svg, height) = draw(title, &facet.title, &all, facet, &panels, "100 %")?;
    let caption = format!(
        "What is lost: against single the figure contains what the hardware itself loses when N devices run at once; against \
         independent (N replicas that never synchronize) only what the strategy adds is left. Ratios are taken within blocks. {}{}{}",
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

fn efficiency_points(
    data: &RunData,
    facet: &Facet<'_>,
    all: &[Series<'_>],
    single: bool,
) -> Vec<Vec<Point>> {
    let percent = |value: Option<f64>| value.map(|v| v * 100.0);
    let reference = |trial: &TrialRow| {
        let wanted = if single {
            ("single", 1)
        } else {
            ("independent", trial.devices)
        };
        let found = facet
            .trials
            .iter()
            .find(|other| (other.strategy.as_str(), other.devices) == wanted)?;
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
fn spread_words(facet: &Facet<'_>) -> String {
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
        .map(|series| Entry::new(Sign::Series(series.marker, series.color), &series.name))
        .collect();
    if panels.iter().any(|panel| panel.ideal.is_some()) {
        entries.push(Entry::new(Sign::Dashes(Color::GREY), ideal));
    }
    let range = facet
        .trials
        .iter()
        .any(|trial| trial.spread.as_deref() == Some("range"));
    entries.push(Entry::new(
        Sign::Interval,
        if range {
            "range of repeats"
        } else {
            "95 % interval"
        },
    ));
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
            let left = index as f64 * share + 76.0;
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
            paint_panel(canvas, area, panel, all, facet, &device_counts(panel));
        }
    });
    Some((svg, height))
}

fn device_counts(panel: &Panel<'_>) -> Vec<u32> {
    let mut counts: Vec<u32> = panel
        .points
        .iter()
        .flatten()
        .map(|point| point.devices)
        .collect();
    counts.sort_unstable();
    counts.dedup();
    counts
}

fn paint_panel(
    canvas: &mut Canvas<'_>,
    area: Area,
    panel: &Panel<'_>,
    all: &[Series<'_>],
    facet: &Facet<'_>,
    counts: &[u32],
) {
    let ideal_high = panel
        .ideal
        .as_ref()
        .and_then(|ideal| counts.iter().map(|&n| ideal(f64::from(n))).reduce(f64::max));
    let points = || panel.points.iter().flatten();
    let raw = points()
        .flat_map(|point| &point.raw)
        .copied()
        .fold(0.0, f64::max);
    let high = points()
        .map(|point| point.high)
        .fold(raw.max(ideal_high.unwrap_or(0.0)), f64::max);
    let y = vertical(canvas, area, high, panel.axis, tick_label);
    let (first, last) = (f64::from(counts[0]), f64::from(counts[counts.len() - 1]));
    // Half a device of room on both sides; one device count alone stands in the middle.
    let room = if counts.len() == 1 {
        1.0
    } else {
        ((last - first) * 0.14).max(0.25)
    };
    let x = Scale::new(first - room, last + room, area.left, area.right);
    device_axis(canvas, area, &x, facet, counts);
    let dodge = dodge_step(&x, counts, all.len());
    if let Some(ideal) = &panel.ideal {
        let half = dodge * all.len() as f64 / 2.0 + 6.0;
        paint_ideal(canvas, counts, half, &|n| x.at(f64::from(n)), &|n| {
            y.at(ideal(f64::from(n)))
        });
    }
    for (index, (series, points)) in all.iter().zip(&panel.points).enumerate() {
        let shift = (index as f64 - (all.len() as f64 - 1.0) / 2.0) * dodge;
        paint_series(canvas, series, points, &|n| x.at(f64::from(n)) + shift, &y);
    }
}

/// The ideal: level over the width of each device count's group, so that every point stands against its own N, and
/// rising from group to group.
fn paint_ideal(
    canvas: &mut Canvas<'_>,
    counts: &[u32],
    half: f64,
    x: &dyn Fn(u32) -> f64,
    y: &dyn Fn(u32) -> f64,
) {
    let mut corners: Vec<(f64, f64)> = Vec::new();
    for &devices in counts {
        corners.extend([
            (x(devices) - half, y(devices)),
            (x(devices) + half, y(devices)),
        ]);
    }
    for pair in corners.windows(2) {
        canvas.dashed(pair[0], pair[1], Color::GREY, 1.2);
    }
}

/// Pixels between series at one device count: at most 22, and at most what keeps device counts apart.
fn dodge_step(x: &Scale, counts: &[u32], series: usize) -> f64 {
    let gap = counts
        .windows(2)
        .map(|pair| x.at(f64::from(pair[1])) - x.at(f64::from(pair[0])))
        .fold(f64::INFINITY, f64::min);
    (gap * 0.7 / series.max(1) as f64).min(if counts.len() == 1 { 44.0 } else { 22.0 })
}

/// Device counts below the plot. A star marks those with an oversubscribed trial, and the axis' title explains it, so
/// that labels of neighbouring counts cannot run into each other.
fn device_axis(canvas: &mut Canvas<'_>, area: Area, x: &Scale, facet: &Facet<'_>, counts: &[u32]) {
    let crowded = |devices: u32| {
        facet
            .trials
            .iter()
            .any(|trial| trial.devices == devices && trial.oversubscribed)
    };
    for &devices in counts {
        let at = x.at(f64::from(devices));
        canvas.line((at, area.bottom), (at, area.bottom + 4.0), Color::GREY, 1.0);
        let (label, look) = if crowded(devices) {
            (format!("{devices}*"), ALERT)
        } else {
            (devices.to_string(), SMALL)
        };
        canvas.text(at, area.bottom + 13.0, &label, Anchor::Middle, look);
    }
    let middle = (area.left + area.right) / 2.0;
    canvas.text(
        middle,
        area.bottom + 30.0,
        "devices N",
        Anchor::Middle,
        LABEL,
    );
    if counts.iter().any(|&devices| crowded(devices)) {
        canvas.text(
            middle,
            area.bottom + 46.0,
            "* oversubscribed: more devices than cores",
            Anchor::Middle,
            ALERT,
        );
    }
}

fn paint_series(
    canvas: &mut Canvas<'_>,
    series: &Series<'_>,
    points: &[Point],
    x: &dyn Fn(u32) -> f64,
    y: &Scale,
) {
    let line: Vec<(f64, f64)> = points
        .iter()
        .map(|point| (x(point.devices), y.at(point.value)))
        .collect();
    if line.len() > 1 {
        canvas.path(&line, series.color.tint(0.25), 1.4);
    }
    for point in points {
        let at = x(point.devices);
        for &raw in point.raw.iter().filter(|&&raw| y.clip(raw).is_some()) {
            canvas.disc(at + RAW_SHIFT, y.at(raw), 1.9, series.color, 0.45);
        }
        let (low, high) = (y.at(point.low), y.at(point.high));
        canvas.line((at, low), (at, high), series.color, 1.5);
        for end in [low, high] {
            canvas.line((at - 5.0, end), (at + 5.0, end), series.color, 1.5);
        }
        canvas.marker(at, y.at(point.value), series.marker, series.color);
    }
}
