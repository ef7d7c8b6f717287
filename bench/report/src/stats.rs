//! Medians, quantiles and intervals: pure functions over samples.
//!
//! Contract: the caller passes finite numbers; an empty sample has no statistics (`None`), never zero.
//! Quantiles are numpy's default (linear, type 7 of Hyndman and Fan).
//! Reference: Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996.
pub mod bootstrap;
pub mod random;

pub use bootstrap::{
    Estimate, FEWEST_FOR_INTERVAL, Spread, estimate, estimate_ratio, median_of_ratios, spread_of,
};

/// The q-quantile of a sample, 0 ≤ q ≤ 1, interpolated linearly between its order statistics.
pub fn quantile(sample: &[f64], q: f64) -> Option<f64> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    quantile_of_sorted(&sorted, q)
}

/// [`quantile`] of a sample that is sorted already.
pub fn quantile_of_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64))
}

/// The median of a sample.
pub fn median(sample: &[f64]) -> Option<f64> {
    quantile(sample, 0.5)
}

/// The mean of a sample.
pub fn mean(sample: &[f64]) -> Option<f64> {
    (!sample.is_empty()).then(|| sample.iter().sum::<f64>() / sample.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of numpy 2: `numpy.quantile(sample, q)`.
    #[test]
    fn quantiles_are_numpys() {
        let sample = [15.0, 20.0, 35.0, 40.0, 50.0];
        for (q, expected) in [
            (0.0, 15.0),
            (0.05, 16.0),
            (0.3, 23.0),
            (0.4, 29.0),
            (0.5, 35.0),
            (1.0, 50.0),
        ] {
            assert!(
                (quantile(&sample, q).unwrap() - expected).abs() < 1e-12,
                "q = {q}"
            );
        }
        // numpy.quantile([3.7, 1.2, 8.4, 2.2], [0.25, 0.5, 0.9])
        let sample = [3.7, 1.2, 8.4, 2.2];
        for (q, expected) in [(0.25, 1.95), (0.5, 2.95), (0.9, 6.99)] {
            assert!(
                (quantile(&sample, q).unwrap() - expected).abs() < 1e-12,
                "q = {q}"
            );
        }
    }

    #[test]
    fn medians_of_odd_even_and_no_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(mean(&[]), None);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
    }
}
