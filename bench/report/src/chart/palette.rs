//! Colours, hatches and text looks of the charts.
//!
//! Contract: the eight colours of Okabe and Ito and greys; phases of one family (computation, DP's copies, DDP's
//! collectives) share a hue and differ by hatch.
use super::canvas::Type;

/// An sRGB colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Color(pub u8, pub u8, pub u8);

impl Color {
    /// Paper.
    pub const WHITE: Self = Self(255, 255, 255);
    /// Ink.
    pub const BLACK: Self = Self(0, 0, 0);
    /// Text beside the data.
    pub const GREY: Self = Self(85, 85, 85);
    /// Neutral data.
    pub const SILVER: Self = Self(153, 153, 153);
    /// Grid lines.
    pub const PALE: Self = Self(226, 226, 226);
    /// Okabe-Ito orange.
    pub const ORANGE: Self = Self(230, 159, 0);
    /// Okabe-Ito sky blue.
    pub const SKY: Self = Self(86, 180, 233);
    /// Okabe-Ito bluish green.
    pub const GREEN: Self = Self(0, 158, 115);
    /// Okabe-Ito yellow.
    pub const YELLOW: Self = Self(240, 228, 66);
    /// Okabe-Ito blue.
    pub const BLUE: Self = Self(0, 114, 178);
    /// Okabe-Ito vermilion.
    pub const VERMILION: Self = Self(213, 94, 0);
    /// Okabe-Ito reddish purple.
    pub const PURPLE: Self = Self(204, 121, 167);

    /// The colour mixed with white: 0 is the colour, 1 is white.
    pub fn tint(self, white: f64) -> Self {
        let mix = |c: u8| (f64::from(c) + (255.0 - f64::from(c)) * white).round() as u8;
        Self(mix(self.0), mix(self.1), mix(self.2))
    }

    /// Black or white, whichever reads better on this colour.
    pub fn ink(self) -> Self {
        let luminance =
            0.299 * f64::from(self.0) + 0.587 * f64::from(self.1) + 0.114 * f64::from(self.2);
        if luminance > 140.0 {
            Self::BLACK
        } else {
            Self::WHITE
        }
    }
}

/// Lines over a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hatch {
    /// Plain.
    None,
    /// Like a slash.
    Rising,
    /// Like a backslash.
    Falling,
    /// Both.
    Cross,
}

/// How an area is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Colour of the area, or of its hatch on a tint of it.
    pub color: Color,
    /// Lines over it.
    pub hatch: Hatch,
}

impl Fill {
    /// A plain fill.
    pub const fn solid(color: Color) -> Self {
        Self {
            color,
            hatch: Hatch::None,
        }
    }

    /// A hatched fill.
    pub const fn hatched(color: Color, hatch: Hatch) -> Self {
        Self { color, hatch }
    }
}

/// Title of a chart.
pub const TITLE: Type = Type {
    size: 15.0,
    bold: true,
    color: Color::BLACK,
};
/// What the chart belongs to, below the title.
pub const SUBTITLE: Type = Type {
    size: 11.0,
    bold: false,
    color: Color::GREY,
};
/// Axis titles and legend.
pub const LABEL: Type = Type {
    size: 11.5,
    bold: false,
    color: Color::BLACK,
};
/// Tick labels and small notes.
pub const SMALL: Type = Type {
    size: 10.5,
    bold: false,
    color: Color::GREY,
};
/// Heading of a panel.
pub const PANEL: Type = Type {
    size: 12.0,
    bold: true,
    color: Color::BLACK,
};
/// A warning inside a chart.
pub const ALERT: Type = Type {
    size: 10.5,
    bold: true,
    color: Color(176, 64, 0),
};

/// The phases in the order of a step, with the fill each has in every chart.
pub const PHASES: [(&str, Fill); 18] = [
    ("data", Fill::solid(Color::SILVER)),
    (
        "host_to_device",
        Fill::hatched(Color::SILVER, Hatch::Rising),
    ),
    ("scatter", Fill::solid(Color::ORANGE)),
    ("replicate", Fill::solid(Color::VERMILION)),
    (
        "buffer_broadcast",
        Fill::hatched(Color::PURPLE, Hatch::Falling),
    ),
    ("forward", Fill::solid(Color::SKY)),
    ("gather", Fill::hatched(Color::ORANGE, Hatch::Rising)),
    ("loss", Fill::solid(Color::YELLOW)),
    (
        "scatter_gradients",
        Fill::hatched(Color::ORANGE, Hatch::Falling),
    ),
    ("backward", Fill::solid(Color::BLUE)),
    (
        "sync_batch_norm",
        Fill::hatched(Color::PURPLE, Hatch::Cross),
    ),
    ("all_reduce", Fill::hatched(Color::PURPLE, Hatch::Rising)),
    ("reduce_scatter", Fill::hatched(Color::SKY, Hatch::Rising)),
    ("reduce", Fill::hatched(Color::VERMILION, Hatch::Rising)),
    ("wait", Fill::solid(Color::PURPLE)),
    ("optimizer", Fill::solid(Color::GREEN)),
    ("all_gather", Fill::hatched(Color::SKY, Hatch::Falling)),
    ("zero", Fill::hatched(Color::GREEN, Hatch::Rising)),
];

/// The fill of a phase; an unknown one is neutral.
pub fn phase_fill(phase: &str) -> Fill {
    PHASES
        .iter()
        .find(|(name, _)| *name == phase)
        .map_or(Fill::hatched(Color::GREY, Hatch::Cross), |(_, fill)| *fill)
}

/// A phase's name for people.
pub fn phase_name(phase: &str) -> String {
    match phase {
        "host_to_device" => "host to device".into(),
        "all_reduce" => "all-reduce".into(),
        "reduce_scatter" => "reduce-scatter".into(),
        "all_gather" => "all-gather".into(),
        "wait" => "waiting".into(),
        "zero" => "zero gradients".into(),
        "data" => "data wait".into(),
        other => other.replace('_', " "),
    }
}
