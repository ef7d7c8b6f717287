//! Horizontal stacked bars in groups: the form of the time, byte and memory charts.
//!
//! Contract: rows are drawn from top to bottom in the order given; lengths are shares of one axis from 0, so bars of
//! different groups can be compared. A figure's height follows from its rows.
use super::{
    WIDTH,
    axis::{Area, horizontal},
    canvas::{self, Anchor, fitted, text_width},
    legend::{self, Entry},
    palette::{ALERT, Color, Fill, LABEL, SMALL},
};

/// One piece of a bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// Length in the unit of the axis; never negative.
    pub value: f64,
    /// How it is filled.
    pub fill: Fill,
}

/// One bar.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Small label to the left, such as `sent` or `device 1`; may be empty.
    pub label: String,
    /// Pieces from left to right.
    pub segments: Vec<Segment>,
    /// Printed after the bar's end.
    pub note: String,
    /// Height in pixels.
    pub height: f64,
}

/// The bars of one trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The trial.
    pub label: String,
    /// A warning below the label, such as `oversubscribed`; may be empty.
    pub alert: String,
    /// Its bars.
    pub bars: Vec<Bar>,
}

/// A whole chart of bars.
#[derive(Clone, Debug, PartialEq)]
pub struct BarChart {
    /// Title.
    pub title: String,
    /// What it belongs to.
    pub subtitle: String,
    /// Title of the axis, with its unit.
    pub axis: String,
    /// Legend.
    pub legend: Vec<Entry>,
    /// Groups from top to bottom.
    pub groups: Vec<Group>,
}

const BAR_GAP: f64 = 2.0;
const GROUP_GAP: f64 = 14.0;
const NOTE_GAP: f64 = 6.0;
const MARGIN: f64 = 16.0;
/// Room for an alert below a group's label.
const TALLEST_LABEL: f64 = 30.0;

impl Group {
    fn height(&self) -> f64 {
        let bars: f64 = self.bars.iter().map(|bar| bar.height + BAR_GAP).sum();
        bars.max(if self.alert.is_empty() {
            16.0
        } else {
            TALLEST_LABEL
        })
    }
}

impl BarChart {
    /// The length of the longest bar.
    pub fn longest(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        bars.map(|bar| bar.segments.iter().map(|s| s.value).sum::<f64>())
            .fold(0.0, f64::max)
    }

    /// Draws the chart; gives the SVG and its height in pixels.
    pub fn draw(&self, show_tick: impl Fn(f64, f64) -> String) -> (String, u32) {
        let width = f64::from(WIDTH);
        let legend_height = legend::height(&self.legend, width - 2.0 * MARGIN);
        let rows: f64 = self
            .groups
            .iter()
            .map(|group| group.height() + GROUP_GAP)
            .sum();
        let top = legend::HEADING + legend_height + 12.0;
        let bottom = top + rows + 2.0;
        let height = (bottom + 46.0).ceil() as u32;
        let (groups, sub) = self.columns();
        let left = MARGIN + groups + sub + 14.0;
        let area = Area {
            left,
            top,
            right: self.right_edge(left, width - MARGIN),
            bottom,
        };
        let svg = canvas::draw(
            WIDTH,
            height,
            &format!("{}: {}", self.title, self.subtitle),
            |canvas| {
                legend::heading(canvas, width, &self.title, &self.subtitle);
                legend::draw(
                    canvas,
                    MARGIN,
                    legend::HEADING,
                    width - 2.0 * MARGIN,
                    &self.legend,
                );
                let scale = horizontal(canvas, area, self.longest(), &self.axis, &show_tick);
                let mut y = area.top + GROUP_GAP / 2.0;
                for group in &self.groups {
                    self.group(canvas, group, y, area, groups, &|value| scale.at(value));
                    y += group.height() + GROUP_GAP;
                }
            },
        );
        (svg, height)
    }

    /// Widths of the columns for group labels and bar labels.
    fn columns(&self) -> (f64, f64) {
        let groups = self
            .groups
            .iter()
            .map(|group| text_width(&group.label, LABEL).max(text_width(&group.alert, ALERT)));
        let bars = self
            .groups
            .iter()
            .flat_map(|group| &group.bars)
            .map(|bar| text_width(&bar.label, SMALL));
        let (groups, sub) = (groups.fold(0.0, f64::max), bars.fold(0.0, f64::max));
        (groups.min(220.0), if sub > 0.0 { sub + 14.0 } else { 0.0 })
    }

    /// The furthest right that the axis may end so that every note after its bar still fits before `limit`.
    fn right_edge(&self, left: f64, limit: f64) -> f64 {
        let longest = self.longest().max(f64::MIN_POSITIVE);
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        let room = bars.map(|bar| {
            let share = bar.segments.iter().map(|s| s.value).sum::<f64>() / longest;
            let note = if bar.note.is_empty() {
                0.0
            } else {
                NOTE_GAP + text_width(&bar.note, SMALL)
            };
            if share > 0.0 {
                left + (limit - note - left) / share
            } else {
                limit
            }
        });
        room.fold(limit - 8.0, f64::min).max(left + 100.0)
    }

    fn group(
        &self,
        canvas: &mut canvas::Canvas<'_>,
        group: &Group,
        top: f64,
        area: Area,
        label_width: f64,
        at: &dyn Fn(f64) -> f64,
    ) {
        let middle = top + group.height() / 2.0;
        let label = fitted(&group.label, label_width, LABEL);
        if group.alert.is_empty() {
            canvas.text(MARGIN, middle, &label, Anchor::Start, LABEL);
        } else {
            canvas.text(MARGIN, middle - 7.0, &label, Anchor::Start, LABEL);
            canvas.text(MARGIN, middle + 8.0, &group.alert, Anchor::Start, ALERT);
        }
        let bars: f64 = group.bars.iter().map(|bar| bar.height + BAR_GAP).sum();
        let mut y = top + (group.height() - bars) / 2.0;
        for bar in &group.bars {
            let middle = y + bar.height / 2.0;
            canvas.text(area.left - 8.0, middle, &bar.label, Anchor::End, SMALL);
            let mut start = 0.0;
            for segment in &bar.segments {
                let (x, end) = (at(start), at(start + segment.value));
                canvas.rect(x, y, end - x, bar.height, segment.fill);
                if segment.fill.hatch != super::palette::Hatch::None && end - x > 1.0 {
                    canvas.outline(x, y, end - x, bar.height, segment.fill.color, 0.7);
                } else if end - x > 1.5 {
                    canvas.line((end, y), (end, y + bar.height), Color::WHITE, 0.6);
                }
                start += segment.value;
            }
            canvas.text(
                at(start) + NOTE_GAP,
                middle,
                &bar.note,
                Anchor::Start,
                SMALL,
            );
            y += bar.height + BAR_GAP;
        }
    }
}
