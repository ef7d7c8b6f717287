//! Curves with their spread against a quantity: sizes of messages, buckets and batches, which grow by factors, or steps.
//!
//! Contract: each axis is logarithmic, or linear from 0. Every median has its interval (or range), and no point
//! is drawn that was not measured. Several plots of one figure stand in rows and share a legend.
use super::{
    WIDTH,
    axis::{Area, HEADROOM, horizontal, tick_label, vertical},
    canvas::{self, Anchor, Canvas, Marker},
    legend::{self, Entry, Sign},
    log_scale,
    palette::{Color, PANEL},
};

/// One measured point.
#[derive(Clone, Debug, PartialEq)]
pub struct CurvePoint {
    /// Where; positive.
    pub x: f64,
    /// Median.
    pub value: f64,
    /// Lower end of its spread.
    pub low: f64,
    /// Upper end of its spread.
    pub high: f64,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Name for the legend; equal names share a look.
    pub name: String,
    /// Its mark.
    pub marker: Marker,
    /// Its colour.
    pub color: Color,
    /// By x.
    pub points: Vec<CurvePoint>,
    /// Of one that is the same everywhere, its place among such: its mark and spread are drawn once, counted from the right.
    pub flat: Option<usize>,
}

/// How a value is written on an axis.
pub type Show = fn(f64) -> String;

/// One coordinate system.
pub struct Plot {
    /// Heading; may be empty.
    pub title: String,
    /// Title of the x axis with its unit; how its ticks are written where it is logarithmic, else it is linear from 0.
    pub x: (&'static str, Option<Show>),
    /// Title of the y axis with its unit; how its ticks are written where it is logarithmic, else it is linear from 0.
    pub y: (&'static str, Option<Show>),
    /// Its lines.
    pub curves: Vec<Curve>,
    /// A level to hold the curves against, with its name.
    pub level: Option<(f64, String)>,
}

/// Looks for curves that have none of their own.
pub const LOOKS: [(Marker, Color); 10] = [
    (Marker::Circle, Color::BLUE),
    (Marker::Square, Color::VERMILION),
    (Marker::Up, Color::GREEN),
    (Marker::Diamond, Color::PURPLE),
    (Marker::Down, Color::ORANGE),
    (Marker::Bar, Color::SKY),
    (Marker::Circle, Color::GREY),
    (Marker::Square, Color::BLACK),
    (Marker::Diamond, Color::YELLOW),
    (Marker::Up, Color::SILVER),
];

/// From the right edge to the first spread of a flat curve, and between two of them.
const FLAT_FIRST: f64 = 28.0;
const FLAT_APART: f64 = 16.0;
const MARGIN: f64 = 16.0;
const LEFT: f64 = 94.0;
const BELOW: f64 = 52.0;

/// Draws plots in rows of `columns`; gives the SVG and its height. `None` without a point.
pub fn draw(
    title: &str,
    subtitle: &str,
    plots: &[Plot],
    columns: usize,
    spread: &str,
) -> Option<(String, u32)> {
    let plots: Vec<&Plot> = plots
        .iter()
        .filter(|plot| plot.curves.iter().any(|curve| !curve.points.is_empty()))
        .collect();
    if plots.is_empty() {
        return None;
    }
    let width = f64::from(WIDTH);
    let entries = entries(&plots, spread);
    let columns = columns.min(plots.len()).max(1);
    let plot_height = if columns == 1 { 290.0 } else { 200.0 };
    let heading = if plots.iter().any(|plot| !plot.title.is_empty()) {
        24.0
    } else {
        6.0
    };
    let first = legend::HEADING + legend::height(&entries, width - 2.0 * MARGIN) + 8.0;
    let row = heading + plot_height + BELOW;
    let rows = plots.len().div_ceil(columns);
    let height = (first + row * rows as f64).ceil() as u32;
    let svg = canvas::draw(WIDTH, height, &format!("{title}: {subtitle}"), |canvas| {
        legend::heading(canvas, width, title, subtitle);
        legend::draw(
            canvas,
            MARGIN,
            legend::HEADING,
            width - 2.0 * MARGIN,
            &entries,
        );
        let share = (width - MARGIN) / columns as f64;
        for (index, plot) in plots.iter().enumerate() {
            let top = first + (index / columns) as f64 * row + heading;
            let left = (index % columns) as f64 * share;
            let area = Area {
                left: left + LEFT,
                top,
                right: left + share - 6.0,
                bottom: top + plot_height,
            };
            plot.paint(canvas, area);
        }
    });
    Some((svg, height))
}

fn entries(plots: &[&Plot], spread: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut add = |entry: Entry| {
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    };
    for plot in plots {
        for curve in plot.curves.iter().filter(|curve| !curve.points.is_empty()) {
            add(Entry::new(
                Sign::Series(curve.marker, curve.color),
                &curve.name,
            ));
        }
    }
    for (_, name) in plots.iter().filter_map(|plot| plot.level.as_ref()) {
        add(Entry::new(Sign::Dashes(Color::GREY), name));
    }
    add(Entry::new(Sign::Interval, spread));
    entries
}

impl Plot {
    fn points(&self) -> impl Iterator<Item = &CurvePoint> {
        self.curves.iter().flat_map(|curve| &curve.points)
    }

    fn paint(&self, canvas: &mut Canvas<'_>, area: Area) {
        if !self.title.is_empty() {
            let middle = (area.left + area.right) / 2.0;
            canvas.text(middle, area.top - 12.0, &self.title, Anchor::Middle, PANEL);
        }
        let range = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
                (low.min(value), high.max(value))
            })
        };
        let xs = range(&mut self.points().map(|point| point.x));
        let level = self.level.iter().map(|(level, _)| *level);
        let ys = range(
            &mut self
                .points()
                .flat_map(|point| [point.low, point.high, point.value])
                .chain(level),
        );
        let (x_title, show_x) = self.x;
        let x: Box<dyn Fn(f64) -> f64> = match show_x {
            Some(show) => {
                let scale = log_scale::horizontal(canvas, area, xs, x_title, &show);
                Box::new(move |value| scale.at(value))
            }
            None => {
                let scale = horizontal(canvas, area, xs.1 * HEADROOM, x_title, tick_label);
                Box::new(move |value| scale.at(value))
            }
        };
        let (y_title, show_y) = self.y;
        let y: Box<dyn Fn(f64) -> f64> = match show_y {
            Some(show) if ys.0 > 0.0 => {
                let scale = log_scale::vertical(canvas, area, ys, y_title, &show);
                Box::new(move |value| scale.at(value))
            }
            _ => {
                let scale = vertical(canvas, area, ys.1, y_title, tick_label);
                Box::new(move |value| scale.at(value))
            }
        };
        if let Some((level, _)) = self.level {
            canvas.dashed(
                (area.left, y(level)),
                (area.right, y(level)),
                Color::GREY,
                1.2,
            );
        }
        for curve in &self.curves {
            match (curve.flat, curve.points.first()) {
                (Some(place), Some(point)) => {
                    let at = area.right - FLAT_FIRST - FLAT_APART * place as f64;
                    let level = y(point.value);
                    canvas.line(
                        (area.left, level),
                        (area.right, level),
                        curve.color.tint(0.25),
                        1.4,
                    );
                    curve.mark(canvas, at, [point.low, point.value, point.high].map(&*y));
                }
                _ => curve.paint(canvas, &*x, &*y),
            }
        }
    }
}

impl Curve {
    fn paint(&self, canvas: &mut Canvas<'_>, x: &dyn Fn(f64) -> f64, y: &dyn Fn(f64) -> f64) {
        let line: Vec<(f64, f64)> = self
            .points
            .iter()
            .map(|point| (x(point.x), y(point.value)))
            .collect();
        if line.len() > 1 {
            canvas.path(&line, self.color.tint(0.25), 1.4);
        }
        for point in &self.points {
            self.mark(
                canvas,
                x(point.x),
                [point.low, point.value, point.high].map(y),
            );
        }
    }

    /// A mark with its spread.
    fn mark(&self, canvas: &mut Canvas<'_>, at: f64, [low, middle, high]: [f64; 3]) {
        canvas.line((at, low), (at, high), self.color, 1.4);
        for end in [low, high] {
            canvas.line((at - 4.0, end), (at + 4.0, end), self.color, 1.4);
        }
        canvas.marker(at, middle, self.marker, self.color);
    }
}

/// A size with its binary unit, as sizes of messages and buckets are chosen: `64 KiB`.
pub fn binary_bytes(bytes: f64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{} {}", crate::format::significant(value, 3), UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<CurvePoint>) -> Plot {
        Plot {
            title: "all-reduce".into(),
            x: ("size", Some(binary_bytes)),
            y: ("bandwidth (B/s)", Some(crate::format::bytes)),
            curves: vec![Curve {
                name: "shared".into(),
                marker: Marker::Circle,
                color: Color::BLUE,
                points,
                flat: None,
            }],
            level: None,
        }
    }

    #[test]
    fn nothing_measured_is_no_figure() {
        assert!(draw("t", "s", &[plot(Vec::new())], 2, "range").is_none());
    }

    #[test]
    fn every_point_has_its_marker_and_its_spread() {
        let points = [4.0, 1024.0, 65_536.0].map(|x| CurvePoint {
            x,
            value: x * 10.0,
            low: x * 9.0,
            high: x * 12.0,
        });
        let (svg, _) = draw("t", "s", &[plot(points.to_vec())], 1, "range").expect("points");
        // A marker is two discs, one of them white; the legend has one more.
        assert_eq!(svg.matches("<circle").count(), 2 * (3 + 1));
        assert!(svg.contains("16 KiB") && svg.contains("all-reduce"));
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(binary_bytes(4.0), "4 B");
        assert_eq!(binary_bytes(65_536.0), "64 KiB");
        assert_eq!(binary_bytes(26_214_400.0), "25 MiB");
        assert_eq!(binary_bytes(1536.0), "1.50 KiB");
    }
}
