//! One coordinate system of medians with their spread against device counts.
//!
//! Contract: series stand beside each other at a device count, each repeat as a dot beside its median; nothing is drawn
//! outside the area. The ideal is level over each device count, so that no point is held against another's.
use super::{
    axis::{Area, Scale, tick_label, vertical},
    canvas::{Anchor, Canvas},
    palette::{ALERT, Color, LABEL, SMALL},
    series::{Facet, Series},
};

/// Repeats stand beside their median, or its marker would cover them.
const RAW_SHIFT: f64 = 9.0;
/// Pixels between series at one device count, where there is room.
const WIDEST_DODGE: f64 = 22.0;
/// The same where there is one device count only.
const LONE_DODGE: f64 = 80.0;

/// One point of a series.
pub(super) struct Point {
    pub(super) devices: u32,
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// Single repeats.
    pub(super) raw: Vec<f64>,
}

/// One coordinate system.
pub(super) struct Panel<'a> {
    pub(super) title: &'a str,
    pub(super) axis: &'a str,
    pub(super) points: Vec<Vec<Point>>,
    /// Least value at the top of its axis: panels that stand side by side are read against each other.
    pub(super) top: f64,
    /// The ideal value by device count.
    pub(super) ideal: Option<Box<dyn Fn(f64) -> f64>>,
}

/// Device counts on an axis, and the places of the series around each.
struct DeviceScale {
    scale: Scale,
    dodge: f64,
    /// Series that have a point, by their index among all.
    shown: Vec<usize>,
}

impl DeviceScale {
    fn new(panel: &Panel<'_>, counts: &[u32], area: Area) -> Self {
        let shown: Vec<usize> = (0..panel.points.len())
            .filter(|&index| !panel.points[index].is_empty())
            .collect();
        let (first, last) = (f64::from(counts[0]), f64::from(counts[counts.len() - 1]));
        let width = area.right - area.left;
        let series = shown.len().max(1) as f64;
        if counts.len() == 1 {
            let scale = Scale::new(first - 1.0, last + 1.0, area.left, area.right);
            return Self {
                scale,
                dodge: LONE_DODGE.min(width / (series + 1.0)),
                shown,
            };
        }
        let inset = WIDEST_DODGE * series / 2.0 + 24.0;
        let scale = Scale::new(first, last, area.left + inset, area.right - inset);
        let gaps = counts
            .windows(2)
            .map(|pair| scale.at(f64::from(pair[1])) - scale.at(f64::from(pair[0])));
        let dodge = (gaps.fold(f64::INFINITY, f64::min) * 0.75 / series).min(WIDEST_DODGE);
        Self {
            scale,
            dodge,
            shown,
        }
    }

    fn at(&self, devices: u32) -> f64 {
        self.scale.at(f64::from(devices))
    }

    /// Where a series' point at this device count stands.
    fn place(&self, series: usize, devices: u32) -> f64 {
        let rank = self
            .shown
            .iter()
            .position(|&index| index == series)
            .unwrap_or(0) as f64;
        self.at(devices) + (rank - (self.shown.len() as f64 - 1.0) / 2.0) * self.dodge
    }

    /// Half the width of a device count's group.
    fn half(&self) -> f64 {
        self.dodge * self.shown.len() as f64 / 2.0 + 4.0
    }
}

/// Gives panels that stand side by side one scale.
pub(super) fn share_top<'a, 'b: 'a>(panels: impl Iterator<Item = &'a mut Panel<'b>>) {
    let panels: Vec<&mut Panel<'b>> = panels.collect();
    let highs = panels.iter().map(|panel| panel.high(&device_counts(panel)));
    let top = highs.fold(0.0, f64::max);
    for panel in panels {
        panel.top = top;
    }
}

impl Panel<'_> {
    /// Draws axes, ideal and series.
    pub(super) fn paint(
        &self,
        canvas: &mut Canvas<'_>,
        area: Area,
        all: &[Series<'_>],
        facet: &Facet<'_>,
    ) {
        let counts = device_counts(self);
        let y = vertical(
            canvas,
            area,
            self.high(&counts).max(self.top),
            self.axis,
            tick_label,
        );
        let x = DeviceScale::new(self, &counts, area);
        device_axis(canvas, area, &x.scale, facet, &counts);
        if let Some(ideal) = &self.ideal {
            paint_ideal(canvas, &counts, &x, &|devices| {
                y.at(ideal(f64::from(devices)))
            });
        }
        for (index, (series, points)) in all.iter().zip(&self.points).enumerate() {
            paint_series(
                canvas,
                series,
                points,
                &|devices| x.place(index, devices),
                &y,
            );
        }
    }

    /// The largest value that is drawn.
    fn high(&self, counts: &[u32]) -> f64 {
        let points = || self.points.iter().flatten();
        let drawn = points().flat_map(|point| point.raw.iter().copied().chain([point.high]));
        let ideal = self
            .ideal
            .iter()
            .flat_map(|ideal| counts.iter().map(move |&n| ideal(f64::from(n))));
        drawn.chain(ideal).fold(0.0, f64::max)
    }
}

/// The ideal, rising from one device count's level to the next.
fn paint_ideal(canvas: &mut Canvas<'_>, counts: &[u32], x: &DeviceScale, y: &dyn Fn(u32) -> f64) {
    let ends = |devices: u32| {
        [
            (x.at(devices) - x.half(), y(devices)),
            (x.at(devices) + x.half(), y(devices)),
        ]
    };
    let corners: Vec<(f64, f64)> = counts.iter().flat_map(|&devices| ends(devices)).collect();
    for pair in corners.windows(2) {
        canvas.dashed(pair[0], pair[1], Color::GREY, 1.2);
    }
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
            "* oversubscribed: more threads than cores",
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
