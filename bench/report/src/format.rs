//! Numbers as a reader wants them: three or four significant digits, units, no false precision.
//!
//! Contract: every figure of a report that a person reads goes through here, so equal quantities look equal.
use syncmark_record::rows::TrialRow;

use crate::stats::{Estimate, median};

/// A number with `digits` significant digits, with thousands separated by commas.
pub fn significant(x: f64, digits: i32) -> String {
    if !x.is_finite() {
        return "–".into();
    }
    if x == 0.0 {
        return "0".into();
    }
    let magnitude = x.abs().log10().floor() as i32;
    let scale = 10f64.powi((digits - 1 - magnitude).clamp(-300, 300));
    let rounded = (x * scale).round() / scale;
    // Rounding can carry into another digit (9.996 becomes 10.00), so the magnitude is taken again.
    let decimals = (digits - 1 - rounded.abs().log10().floor() as i32).max(0) as usize;
    group_thousands(&format!("{rounded:.decimals$}"))
}

/// Puts commas between groups of three digits before the decimal point, from five digits on.
fn group_thousands(text: &str) -> String {
    let (number, fraction) = text
        .split_once('.')
        .map_or((text, None), |(n, f)| (n, Some(f)));
    let (sign, digits) = number
        .strip_prefix('-')
        .map_or(("", number), |rest| ("−", rest));
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if digits.len() > 4 && index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match fraction {
        Some(fraction) => format!("{sign}{grouped}.{fraction}"),
        None => format!("{sign}{grouped}"),
    }
}

/// A number with 4 significant digits.
pub fn number(x: f64) -> String {
    significant(x, 4)
}

/// Bytes with a decimal unit, 4 significant digits; whole below 1000.
pub fn bytes(x: f64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = x;
    let mut unit = 0;
    while value.abs() >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 && value.fract() == 0.0 {
        format!("{value} B")
    } else {
        format!("{} {}", number(value), UNITS[unit])
    }
}

/// A duration in milliseconds with the unit that suits it.
pub fn milliseconds(ms: f64) -> String {
    match ms.abs() {
        0.0 => "0 ms".into(),
        a if a < 0.1 => format!("{} µs", significant(ms * 1e3, 3)),
        a if a < 10_000.0 => format!("{} ms", number(ms)),
        _ => format!("{} s", number(ms / 1e3)),
    }
}

/// The unit in which a person reads a figure of `ceilings.csv`, and how many of the row's unit it is.
pub fn ceiling_unit(unit: &str) -> (&str, f64) {
    match unit {
        "flop/s" => ("GFLOP/s", 1e9),
        "B/s" => ("GB/s", 1e9),
        "ns" => ("µs", 1e3),
        unit => (unit, 1.0),
    }
}

/// A figure of `ceilings.csv` whose row has this unit, 3 significant digits.
pub fn ceiling(value: f64, unit: &str) -> String {
    let (unit, scale) = ceiling_unit(unit);
    format!("{} {unit}", significant(value / scale, 3))
}

/// A fraction as a percentage with one decimal.
pub fn percent(fraction: f64) -> String {
    if fraction.is_finite() {
        format!("{:.1} %", fraction * 100.0)
    } else {
        "–".into()
    }
}

/// A ratio with 3 decimals (an interval that includes 1 must not look as if it ended there), fewer when it is large.
pub fn ratio(x: f64) -> String {
    if x.abs() < 10.0 {
        format!("{x:.3}×")
    } else {
        format!("{}×", number(x))
    }
}

/// A whole number with thousands separated; one that is not whole keeps two decimals.
pub fn whole(x: f64) -> String {
    group_thousands(&if x.fract() == 0.0 {
        format!("{x:.0}")
    } else {
        format!("{x:.2}")
    })
}

/// `value [low, high]` in one format; the value alone where there is nothing between its ends, as with one repeat.
pub fn with_spread(
    value: Option<f64>,
    low: Option<f64>,
    high: Option<f64>,
    show: impl Fn(f64) -> String,
) -> String {
    match (value, low, high) {
        (Some(value), Some(low), Some(high)) if low < high => {
            format!("{} [{}, {}]", show(value), show(low), show(high))
        }
        (Some(value), ..) => show(value),
        _ => "–".into(),
    }
}

/// [`with_spread`] of an estimate.
pub fn estimated(estimate: Option<Estimate>, show: impl Fn(f64) -> String) -> String {
    let part = |of: fn(&Estimate) -> f64| estimate.as_ref().map(of);
    with_spread(part(|e| e.value), part(|e| e.low), part(|e| e.high), show)
}

/// Median of values, with the smallest and largest where there are several.
pub fn ranged(mut values: Vec<f64>, show: &dyn Fn(f64) -> String) -> String {
    values.sort_by(f64::total_cmp);
    match (median(&values), values.first(), values.last()) {
        (Some(middle), Some(low), Some(high)) if values.len() > 1 => {
            format!("{} [{}, {}]", show(middle), show(*low), show(*high))
        }
        (Some(middle), ..) => show(middle),
        _ => "–".into(),
    }
}

/// A trial's step time, throughput, efficiencies against single and independent, and exposed communication, each with its
/// spread.
pub fn spreads(t: &TrialRow) -> [String; 5] {
    [
        with_spread(t.step_ms, t.step_ms_low, t.step_ms_high, number),
        with_spread(
            t.samples_per_s,
            t.samples_per_s_low,
            t.samples_per_s_high,
            number,
        ),
        with_spread(
            t.efficiency_single,
            t.efficiency_single_low,
            t.efficiency_single_high,
            percent,
        ),
        with_spread(
            t.efficiency_independent,
            t.efficiency_independent_low,
            t.efficiency_independent_high,
            percent,
        ),
        with_spread(
            t.exposed_communication_ms,
            t.exposed_communication_ms_low,
            t.exposed_communication_ms_high,
            |ms| significant(ms, 3),
        ),
    ]
}

/// A value, or a dash where there is none.
pub fn or_dash<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".into(), show)
}

/// `1 step`, `2 steps`.
pub fn count(n: usize, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn significant_digits_round_and_carry() {
        for (x, expected) in [
            (12.3456, "12.35"),
            (9.99961, "10.00"),
            (0.000123456, "0.0001235"),
            (12345.6, "12,350"),
            (1234.4, "1234"),
            (-5.0, "−5.000"),
            (0.0, "0"),
            (f64::NAN, "–"),
            (9_999_999.0, "10,000,000"),
        ] {
            assert_eq!(number(x), expected, "{x}");
        }
    }

    #[test]
    fn units_follow_the_size() {
        assert_eq!(bytes(999.0), "999 B");
        assert_eq!(bytes(102_228_128.0), "102.2 MB");
        assert_eq!(bytes(999_960.0), "1.000 MB");
        assert_eq!(milliseconds(0.0123), "12.3 µs");
        assert_eq!(milliseconds(12.345), "12.35 ms");
        assert_eq!(milliseconds(90_000.0), "90.00 s");
        assert_eq!(percent(0.9333), "93.3 %");
        assert_eq!(ratio(0.71234), "0.712×");
        assert_eq!(ratio(1.0004), "1.000×");
        assert_eq!(ratio(123.456), "123.5×");
        assert_eq!(ceiling(78.25e9, "flop/s"), "78.3 GFLOP/s");
        assert_eq!(ceiling(1.5e9, "B/s"), "1.50 GB/s");
        assert_eq!(ceiling(140.4, "ns"), "0.140 µs");
        assert_eq!(ceiling(14_040.0, "ns"), "14.0 µs");
        assert_eq!(whole(1_234_567.0), "1,234,567");
        assert_eq!(whole(1234.5), "1234.50");
    }

    #[test]
    fn spreads_need_both_ends() {
        assert_eq!(
            with_spread(Some(2.0), Some(1.0), Some(3.0), percent),
            "200.0 % [100.0 %, 300.0 %]"
        );
        assert_eq!(with_spread(Some(2.0), None, None, number), "2.000");
        assert_eq!(
            with_spread(Some(2.0), Some(2.0), Some(2.0), number),
            "2.000"
        );
        assert_eq!(with_spread(None, None, None, number), "–");
    }
}
