//! Legends that flow over lines, and the heading of a chart.
//!
//! Contract: measuring and drawing use one layout, so a legend never overlaps the plot below it.
use syncmark_record::rows::TrialRow;

use super::{
    canvas::{Anchor, Canvas, Marker, fitted, text_width},
    palette::{Color, Fill, LABEL, SUBTITLE, TITLE},
};

/// The sign of one legend entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sign {
    /// A line with a marker.
    Series(Marker, Color),
    /// A dashed line.
    Dashes(Color),
    /// A filled box.
    Area(Fill),
    /// A small translucent dot.
    Dot,
    /// An error bar.
    Interval,
}

/// One entry of a legend.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What stands for it.
    pub sign: Sign,
    /// Its name.
    pub name: String,
}

impl Entry {
    /// An entry.
    pub fn new(sign: Sign, name: impl Into<String>) -> Self {
        Self {
            sign,
            name: name.into(),
        }
    }
}

const LINE: f64 = 18.0;
const GAP: f64 = 12.0;
/// Height of the title and subtitle.
pub const HEADING: f64 = 48.0;

impl Sign {
    /// Room for the sign and the space after it.
    fn width(self) -> f64 {
        match self {
            Self::Series(..) | Self::Dashes(_) => 25.0,
            Self::Area(_) => 24.0,
            Self::Interval => 20.0,
            Self::Dot => 17.0,
        }
    }
}

/// Offsets of the entries and the height of all lines.
fn layout(entries: &[Entry], width: f64) -> (Vec<(f64, f64)>, f64) {
    let (mut x, mut y) = (0.0, LINE / 2.0);
    let mut places = Vec::new();
    for entry in entries {
        let needed = entry.sign.width() + text_width(&entry.name, LABEL);
        if x > 0.0 && x + needed > width {
            x = 0.0;
            y += LINE;
        }
        places.push((x, y));
        x += needed + GAP;
    }
    let height = if entries.is_empty() {
        0.0
    } else {
        y + LINE / 2.0
    };
    (places, height)
}

/// What the error bars of these trials are: intervals, if all that have figures have one.
pub fn spread<'a>(trials: impl IntoIterator<Item = &'a TrialRow>) -> &'static str {
    let spreads = trials
        .into_iter()
        .filter_map(|trial| trial.spread.as_deref());
    let spreads: Vec<&str> = spreads.collect();
    if spreads.is_empty() || spreads.contains(&"range") {
        "range of repeats"
    } else {
        "95 % interval"
    }
}

/// Height that a legend of this width takes.
pub fn height(entries: &[Entry], width: f64) -> f64 {
    layout(entries, width).1
}

/// Draws the legend with its upper left corner at (x, y).
pub fn draw(canvas: &mut Canvas<'_>, x: f64, y: f64, width: f64, entries: &[Entry]) {
    let (places, _) = layout(entries, width);
    for (entry, (dx, dy)) in entries.iter().zip(places) {
        sign(canvas, x + dx, y + dy, entry.sign);
        canvas.text(
            x + dx + entry.sign.width(),
            y + dy,
            &entry.name,
            Anchor::Start,
            LABEL,
        );
    }
}

fn sign(canvas: &mut Canvas<'_>, x: f64, y: f64, sign: Sign) {
    match sign {
        Sign::Series(marker, color) => {
            canvas.line((x, y), (x + 20.0, y), color, 1.6);
            canvas.marker(x + 10.0, y, marker, color);
        }
        Sign::Dashes(color) => canvas.dashed((x, y), (x + 20.0, y), color, 1.4),
        Sign::Area(fill) => {
            canvas.rect(x + 4.0, y - 6.0, 16.0, 12.0, fill);
            canvas.outline(x + 4.0, y - 6.0, 16.0, 12.0, fill.color, 0.8);
        }
        Sign::Dot => canvas.disc(x + 10.0, y, 2.2, Color::GREY, 0.5),
        Sign::Interval => {
            canvas.line((x + 10.0, y - 7.0), (x + 10.0, y + 7.0), Color::GREY, 1.4);
            canvas.line((x + 6.0, y - 7.0), (x + 14.0, y - 7.0), Color::GREY, 1.4);
            canvas.line((x + 6.0, y + 7.0), (x + 14.0, y + 7.0), Color::GREY, 1.4);
        }
    }
}

/// Draws the title and what the chart belongs to, at the upper left.
pub fn heading(canvas: &mut Canvas<'_>, width: f64, title: &str, subtitle: &str) {
    canvas.text(
        16.0,
        18.0,
        &fitted(title, width - 32.0, TITLE),
        Anchor::Start,
        TITLE,
    );
    canvas.text(
        16.0,
        37.0,
        &fitted(subtitle, width - 32.0, SUBTITLE),
        Anchor::Start,
        SUBTITLE,
    );
}
