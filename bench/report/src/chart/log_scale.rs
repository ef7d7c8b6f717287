//! Logarithmic scales and their ticks.
//!
//! Contract: as [`super::axis`]: a scale maps a closed range of positive values onto pixels and clamps nothing; ticks are
//! whole powers inside of the range, thinned so that their labels do not meet.
use super::{
    axis::Area,
    canvas::{Anchor, Canvas},
    palette::{Color, LABEL, SMALL},
};

/// A logarithmic map from positive values to pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogScale {
    /// Logarithms to the base 10 of the ends.
    from: (f64, f64),
    to: (f64, f64),
}

impl LogScale {
    /// Maps `low..=high` onto `start..=end`. A range of one value is widened to twice and half of it.
    pub fn new(low: f64, high: f64, start: f64, end: f64) -> Self {
        debug_assert!(low > 0.0 && high >= low, "{low} to {high} has no logarithm");
        let (low, high) = if high > low {
            (low, high)
        } else {
            (low / 2.0, low * 2.0)
        };
        Self {
            from: (low.log10(), high.log10()),
            to: (start, end),
        }
    }

    /// The pixel of a value.
    pub fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - self.from.0) / (self.from.1 - self.from.0);
        self.to.0 + share * (self.to.1 - self.to.0)
    }

    /// Powers of `base` in the range, every k-th of them so that at most `most` are left.
    pub fn ticks(&self, base: f64, most: usize) -> Vec<f64> {
        let unit = base.log10();
        let (first, last) = (
            (self.from.0 / unit - 1e-9).ceil() as i32,
            (self.from.1 / unit + 1e-9).floor() as i32,
        );
        let count = (last - first + 1).max(0) as usize;
        let every = count.div_ceil(most.max(1)).max(1);
        (first..=last)
            .step_by(every)
            .map(|power| base.powi(power))
            .collect()
    }
}

/// Draws a vertical logarithmic axis with its grid; gives the scale.
pub fn vertical(
    canvas: &mut Canvas<'_>,
    area: Area,
    (low, high): (f64, f64),
    title: &str,
    show: &dyn Fn(f64) -> String,
) -> LogScale {
    // Room so that no marker stands on an edge.
    let scale = LogScale::new(low / 1.25, high * 1.25, area.bottom, area.top);
    let decades = scale.ticks(10.0, 8);
    let ticks = if decades.len() < 2 {
        scale.ticks(2.0, 6)
    } else {
        decades
    };
    for tick in ticks {
        let y = scale.at(tick);
        canvas.line((area.left, y), (area.right, y), Color::PALE, 1.0);
        canvas.text(area.left - 6.0, y, &show(tick), Anchor::End, SMALL);
    }
    canvas.line(
        (area.left, area.bottom),
        (area.right, area.bottom),
        Color::GREY,
        1.0,
    );
    canvas.upward_text(
        area.left - 72.0,
        (area.top + area.bottom) / 2.0,
        title,
        LABEL,
    );
    scale
}

/// Draws a horizontal logarithmic axis (powers of two) with its grid; gives the scale.
pub fn horizontal(
    canvas: &mut Canvas<'_>,
    area: Area,
    (low, high): (f64, f64),
    title: &str,
    show: &dyn Fn(f64) -> String,
) -> LogScale {
    const INSET: f64 = 14.0;
    let scale = LogScale::new(low, high, area.left + INSET, area.right - INSET);
    for tick in scale.ticks(2.0, 7) {
        let x = scale.at(tick);
        canvas.line((x, area.top), (x, area.bottom), Color::PALE, 1.0);
        canvas.text(x, area.bottom + 11.0, &show(tick), Anchor::Middle, SMALL);
    }
    canvas.text(
        (area.left + area.right) / 2.0,
        area.bottom + 29.0,
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
    fn equal_ratios_are_equal_distances() {
        let scale = LogScale::new(1.0, 10_000.0, 0.0, 400.0);
        for (value, pixel) in [
            (1.0, 0.0),
            (10.0, 100.0),
            (1000.0, 300.0),
            (10_000.0, 400.0),
        ] {
            assert!((scale.at(value) - pixel).abs() < 1e-9, "{value}");
        }
        assert!(LogScale::new(8.0, 8.0, 0.0, 100.0).at(8.0).is_finite());
    }

    #[test]
    fn ticks_are_whole_powers_inside_of_the_range() {
        let bytes = LogScale::new(4.0, 67_108_864.0, 0.0, 100.0);
        let ticks = bytes.ticks(2.0, 7);
        assert!(ticks.len() <= 7 && ticks[0] == 4.0, "{ticks:?}");
        assert!(ticks.iter().all(|tick| tick.log2().fract() == 0.0));
        assert_eq!(
            LogScale::new(0.5, 2000.0, 0.0, 1.0).ticks(10.0, 8),
            [1.0, 10.0, 100.0, 1000.0]
        );
    }
}
