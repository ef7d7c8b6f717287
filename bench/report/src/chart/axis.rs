//! Linear scales and their round ticks.
//!
//! Contract: a scale maps a closed range onto pixels and clamps nothing; [`Scale::clip`] says whether a value is inside.
//! Reference: Heckbert, "Nice Numbers for Graph Labels", Graphics Gems, 1990.
use super::{
    canvas::{Anchor, Canvas},
    palette::{Color, LABEL, SMALL},
};

/// A linear map from values to pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    from: (f64, f64),
    to: (f64, f64),
}

impl Scale {
    /// Maps `low..=high` onto `start..=end`. An empty range is widened so that nothing divides by zero.
    pub fn new(low: f64, high: f64, start: f64, end: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        Self {
            from: (low, high),
            to: (start, end),
        }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        self.to.0 + (value - self.from.0) / (self.from.1 - self.from.0) * (self.to.1 - self.to.0)
    }

    /// The value if it lies in the range.
    pub fn clip(&self, value: f64) -> Option<f64> {
        (self.from.0..=self.from.1)
            .contains(&value)
            .then_some(value)
    }

    /// The largest value of the range.
    pub fn high(&self) -> f64 {
        self.from.1
    }
}

/// The step of 1, 2 or 5 times a power of ten that gives at most `most` intervals up to `high`.
pub fn nice_step(high: f64, most: usize) -> f64 {
    let raw = (high / most.max(1) as f64).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * power >= raw * 0.999_999);
    step.unwrap_or(10.0) * power
}

/// Round ticks from 0 up to `high`, and the step between them.
pub fn ticks(high: f64, most: usize) -> (Vec<f64>, f64) {
    let high = if high > 0.0 { high } else { 1.0 };
    let step = nice_step(high, most);
    let last = (high / step + 1e-9).floor() as usize;
    ((0..=last).map(|index| index as f64 * step).collect(), step)
}

/// Round ticks from `low` ≤ 0 to `high` ≥ 0, with 0 among them, and the step between them.
pub fn ticks_between(low: f64, high: f64, most: usize) -> (Vec<f64>, f64) {
    if low >= 0.0 {
        return ticks(high, most);
    }
    let step = nice_step(high - low, most);
    let count = |end: f64| (end / step + 1e-9).floor() as i64;
    let all = -count(-low)..=count(high);
    (all.map(|index| index as f64 * step).collect(), step)
}

/// Room above the largest value, as a share of it.
pub const HEADROOM: f64 = 1.05;

/// As many decimals as the step between ticks needs.
pub fn tick_label(value: f64, step: f64) -> String {
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    if value.abs() >= 10_000.0 {
        crate::format::significant(value, 6)
            .trim_end_matches(".0")
            .into()
    } else {
        text
    }
}

/// Where a chart's data goes, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    /// Left edge.
    pub left: f64,
    /// Upper edge.
    pub top: f64,
    /// Right edge.
    pub right: f64,
    /// Lower edge.
    pub bottom: f64,
}

/// Draws a vertical axis from 0 with grid lines, tick labels and its title; gives the scale.
pub fn vertical(
    canvas: &mut Canvas<'_>,
    area: Area,
    high: f64,
    title: &str,
    show: impl Fn(f64, f64) -> String,
) -> Scale {
    let high = high * HEADROOM;
    let (ticks, step) = ticks(high, 6);
    let scale = Scale::new(0.0, high, area.bottom, area.top);
    for tick in ticks {
        let y = scale.at(tick);
        canvas.line(
            (area.left, y),
            (area.right, y),
            if tick == 0.0 {
                Color::GREY
            } else {
                Color::PALE
            },
            1.0,
        );
        canvas.text(area.left - 6.0, y, &show(tick, step), Anchor::End, SMALL);
    }
    canvas.upward_text(
        area.left - 58.0,
        (area.top + area.bottom) / 2.0,
        title,
        LABEL,
    );
    scale
}

/// Draws a horizontal axis from 0 with grid lines, tick labels and its title; gives the scale.
pub fn horizontal(
    canvas: &mut Canvas<'_>,
    area: Area,
    high: f64,
    title: &str,
    show: impl Fn(f64, f64) -> String,
) -> Scale {
    horizontal_between(canvas, area, (0.0, high), title, show)
}

/// The same from `low`, which is at most 0, to `high`, which is at least that.
pub fn horizontal_between(
    canvas: &mut Canvas<'_>,
    area: Area,
    (low, high): (f64, f64),
    title: &str,
    show: impl Fn(f64, f64) -> String,
) -> Scale {
    let (ticks, step) = ticks_between(low, high, 8);
    let scale = Scale::new(low, high, area.left, area.right);
    for tick in ticks {
        let x = scale.at(tick);
        canvas.line(
            (x, area.top),
            (x, area.bottom),
            if tick == 0.0 {
                Color::GREY
            } else {
                Color::PALE
            },
            1.0,
        );
        canvas.text(
            x,
            area.bottom + 11.0,
            &show(tick, step),
            Anchor::Middle,
            SMALL,
        );
    }
    canvas.text(
        (area.left + area.right) / 2.0,
        area.bottom + 30.0,
        title,
        Anchor::Middle,
        LABEL,
    );
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_stay_below_the_end() {
        assert_eq!(ticks(97.0, 6), (vec![0.0, 20.0, 40.0, 60.0, 80.0], 20.0));
        assert_eq!(ticks(0.0, 6), ticks(1.0, 6));
        for high in [0.003, 1.0, 12.0, 37.5, 8_123.0, 2.0e9] {
            let (ticks, _) = ticks(high, 6);
            assert!(
                *ticks.last().unwrap() <= high * 1.000_001 && (3..=7).contains(&ticks.len()),
                "{high}: {ticks:?}"
            );
        }
    }

    #[test]
    fn ticks_on_both_sides_have_0_among_them() {
        assert_eq!(
            ticks_between(-6.2, 2.9, 8),
            (vec![-6.0, -4.0, -2.0, 0.0, 2.0], 2.0)
        );
        assert_eq!(ticks_between(-0.75, 0.0, 3), (vec![-0.5, 0.0], 0.5));
        assert_eq!(ticks_between(0.0, 97.0, 6), ticks(97.0, 6));
    }

    #[test]
    fn labels_have_the_decimals_of_their_step() {
        assert_eq!(tick_label(0.5, 0.25), "0.5");
        assert_eq!(tick_label(40.0, 20.0), "40");
        assert_eq!(tick_label(0.02, 0.01), "0.02");
        assert_eq!(tick_label(20_000.0, 10_000.0), "20,000");
    }

    #[test]
    fn a_scale_maps_its_ends_and_says_what_is_outside() {
        let scale = Scale::new(0.0, 10.0, 200.0, 100.0);
        assert_eq!((scale.at(0.0), scale.at(10.0)), (200.0, 100.0));
        assert_eq!((scale.clip(5.0), scale.clip(11.0)), (Some(5.0), None));
        assert!(Scale::new(3.0, 3.0, 0.0, 1.0).at(3.0).is_finite());
    }
}
