//! Intervals in rows: differences and gaps of trials, each beside the line of no difference.
//!
//! Contract: one axis for all rows, linear, with 0 in it; every row carries its number, so that colour is never all there is.
use super::{
    WIDTH,
    axis::{Area, HEADROOM, horizontal_between, tick_label},
    canvas::{self, Anchor, Canvas, Marker, fitted, text_width},
    legend::{self, Entry, Sign},
    palette::{Color, LABEL, SMALL},
};
use crate::stats::Estimate;

/// A kind of figure: its name, and what it looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// Its mark.
    pub marker: Marker,
    /// Its colour.
    pub color: Color,
}

/// What belongs to one label, a line for each figure.
#[derive(Clone, Debug)]
pub struct Row {
    /// To the left.
    pub label: String,
    /// Index of the series, and the figure in the axis' unit.
    pub figures: Vec<(usize, Estimate)>,
}

/// The whole chart.
pub struct Intervals {
    /// Heading.
    pub title: String,
    /// What it belongs to.
    pub subtitle: String,
    /// Title of the axis with its unit, and what either side of 0 means.
    pub axis: String,
    /// Kinds of figures.
    pub series: Vec<Series>,
    /// From top to bottom.
    pub rows: Vec<Row>,
    /// How a figure is written behind its interval.
    pub show: fn(f64) -> String,
}

const MARGIN: f64 = 16.0;
const LINE: f64 = 16.0;
const GAP: f64 = 10.0;
const BELOW: f64 = 46.0;
/// Widest label; longer ones are cut.
const WIDEST_LABEL: f64 = 280.0;

impl Intervals {
    /// Draws the chart; gives the SVG and its height. `spread` says what the bars are. `None` without a figure.
    pub fn draw(&self, spread: &str) -> Option<(String, u32)> {
        let rows = || self.rows.iter().filter(|row| !row.figures.is_empty());
        rows().next()?;
        let width = f64::from(WIDTH);
        let entries = self.entries(spread);
        let top = legend::HEADING + legend::height(&entries, width - 2.0 * MARGIN) + 14.0;
        let lines: usize = rows().map(|row| row.figures.len()).sum();
        let bottom = top + lines as f64 * LINE + rows().count() as f64 * GAP;
        let height = (bottom + BELOW).ceil() as u32;
        let labels = rows().map(|row| text_width(&row.label, LABEL));
        let notes = self
            .estimates()
            .map(|found| text_width(&self.note(found), SMALL));
        let area = Area {
            left: MARGIN + labels.fold(0.0, f64::max).min(WIDEST_LABEL) + 14.0,
            top,
            right: width - MARGIN - notes.fold(0.0, f64::max) - 8.0,
            bottom,
        };
        let about = format!("{}: {}", self.title, self.subtitle);
        let svg = canvas::draw(WIDTH, height, &about, |canvas| {
            legend::heading(canvas, width, &self.title, &self.subtitle);
            legend::draw(
                canvas,
                MARGIN,
                legend::HEADING,
                width - 2.0 * MARGIN,
                &entries,
            );
            let range = self
                .estimates()
                .fold((0.0_f64, 0.0_f64), |(low, high), found| {
                    (low.min(found.low), high.max(found.high))
                });
            let range = (range.0 * HEADROOM, range.1 * HEADROOM);
            let scale = horizontal_between(canvas, area, range, &self.axis, tick_label);
            let zero = scale.at(0.0);
            canvas.line((zero, area.top), (zero, area.bottom), Color::BLACK, 1.2);
            let mut y = area.top + GAP / 2.0;
            for row in rows() {
                let middle = y + row.figures.len() as f64 * LINE / 2.0;
                let label = fitted(&row.label, WIDEST_LABEL, LABEL);
                canvas.text(area.left - 10.0, middle, &label, Anchor::End, LABEL);
                for (series, found) in &row.figures {
                    let ends = [found.low, found.value, found.high].map(|value| scale.at(value));
                    self.paint(canvas, *series, ends, y + LINE / 2.0);
                    let note = self.note(found);
                    canvas.text(
                        area.right + 8.0,
                        y + LINE / 2.0,
                        &note,
                        Anchor::Start,
                        SMALL,
                    );
                    y += LINE;
                }
                y += GAP;
            }
        });
        Some((svg, height))
    }

    fn paint(&self, canvas: &mut Canvas<'_>, series: usize, [low, at, high]: [f64; 3], y: f64) {
        let Series { marker, color, .. } = self.series[series];
        canvas.line((low, y), (high, y), color, 1.4);
        for end in [low, high] {
            canvas.line((end, y - 4.0), (end, y + 4.0), color, 1.4);
        }
        canvas.marker(at, y, marker, color);
    }

    fn estimates(&self) -> impl Iterator<Item = &Estimate> {
        self.rows
            .iter()
            .flat_map(|row| &row.figures)
            .map(|(_, found)| found)
    }

    fn note(&self, found: &Estimate) -> String {
        crate::format::estimated(Some(*found), self.show)
    }

    fn entries(&self, spread: &str) -> Vec<Entry> {
        let drawn = |index: usize| {
            let mut figures = self.rows.iter().flat_map(|row| &row.figures);
            figures.any(|(series, _)| *series == index)
        };
        let series = self
            .series
            .iter()
            .enumerate()
            .filter(|(index, _)| drawn(*index));
        let mut entries: Vec<Entry> = series
            .map(|(_, series)| Entry::new(Sign::Series(series.marker, series.color), &series.name))
            .collect();
        entries.push(Entry::new(Sign::Interval, spread));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::estimate;

    fn chart(figures: &[&[f64]]) -> Intervals {
        let series = |name: &str, color| Series {
            name: name.into(),
            marker: Marker::Circle,
            color,
        };
        Intervals {
            title: "differences".into(),
            subtitle: "net".into(),
            axis: "points".into(),
            series: vec![
                series("stored", Color::BLUE),
                series("unused", Color::GREEN),
            ],
            rows: vec![Row {
                label: "batch norm, 2 together".into(),
                figures: figures
                    .iter()
                    .map(|values| (0, estimate(values).unwrap()))
                    .collect(),
            }],
            show: |value| format!("{value:+.1}"),
        }
    }

    #[test]
    fn nothing_found_is_no_figure() {
        assert!(chart(&[]).draw("range").is_none());
    }

    #[test]
    fn rows_have_their_numbers_and_the_legend_only_what_is_drawn() {
        let (svg, _) = chart(&[&[-2.0, -1.0, -3.0], &[1.0, 2.0, 4.0]])
            .draw("range")
            .unwrap();
        for words in [
            "batch norm, 2 together",
            "-2.0 [-3.0, -1.0]",
            "+2.0 [+1.0, +4.0]",
            "stored",
        ] {
            assert!(svg.contains(words), "{words}: {svg}");
        }
        assert!(!svg.contains("unused"), "{svg}");
    }
}
