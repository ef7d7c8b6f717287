//! 95 % intervals by a bootstrap over blocks.
//!
//! Contract: the unit that is resampled is the block (one repeat of every trial), because what disturbs one trial of
//! a block tends to disturb its neighbours; so a ratio is taken within each block first, and the ratios are resampled.
//! The statistic is the median. The interval is the *expanded percentile* interval: the plain percentile interval is
//! too narrow for few blocks (the bootstrap's spread is too small by √((n−1)/n) and it uses z where t belongs), so
//! its tail probability is lowered from 2.5 % to Φ(−t·√(n/(n−1))). `examples/coverage.rs` simulates what both and the
//! BCa interval cover. Below [`FEWEST_FOR_INTERVAL`] blocks there is no interval: the range is given, and no verdict.
//! Reference: Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 4.2.
use super::{median, quantile_of_sorted, random::SplitMix64};

/// Fewest blocks for which an interval is stated.
pub const FEWEST_FOR_INTERVAL: usize = 6;
/// Resamples of one interval.
pub const RESAMPLES: usize = 4000;
/// Seed of every interval: equal records give equal reports.
pub const SEED: u64 = 0x5eed_b10c;

/// What the ends of an [`Estimate`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// A 95 % bootstrap interval.
    Interval,
    /// The smallest and largest block: too few blocks for an interval.
    Range,
}

impl Spread {
    /// The word in the column `spread` of `trials.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interval => "interval",
            Self::Range => "range",
        }
    }
}

/// A median with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Median over blocks.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What the ends are.
    pub spread: Spread,
    /// Number of blocks.
    pub blocks: usize,
}

/// Whether a ratio differs from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval lies above 1.
    Above,
    /// The whole interval lies below 1.
    Below,
    /// The interval includes 1.
    NoDifference,
    /// Too few blocks for an interval.
    TooFew,
}

impl Estimate {
    /// Reads the estimate as a ratio against 1.
    pub fn verdict(&self) -> Verdict {
        match self.spread {
            Spread::Range => Verdict::TooFew,
            Spread::Interval if self.low > 1.0 => Verdict::Above,
            Spread::Interval if self.high < 1.0 => Verdict::Below,
            Spread::Interval => Verdict::NoDifference,
        }
    }
}

/// What is given for so many blocks.
pub fn spread_of(blocks: usize) -> Spread {
    if blocks < FEWEST_FOR_INTERVAL {
        Spread::Range
    } else {
        Spread::Interval
    }
}

/// The median of one value a block, with its spread. `None` for no blocks.
pub fn estimate(blocks: &[f64]) -> Option<Estimate> {
    let value = median(blocks)?;
    let (low, high) = if blocks.len() < FEWEST_FOR_INTERVAL {
        (
            blocks.iter().copied().fold(f64::INFINITY, f64::min),
            blocks.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        )
    } else {
        expanded_percentile(blocks, RESAMPLES, SEED)
    };
    let spread = spread_of(blocks.len());
    Some(Estimate {
        value,
        low,
        high,
        spread,
        blocks: blocks.len(),
    })
}

/// The median over blocks of `pairs`' first over second, with its spread. `None` for no pairs.
pub fn estimate_ratio(pairs: &[(f64, f64)]) -> Option<Estimate> {
    estimate(&median_of_ratios(pairs))
}

/// The ratios within blocks; a block with a zero denominator has none.
pub fn median_of_ratios(pairs: &[(f64, f64)]) -> Vec<f64> {
    pairs
        .iter()
        .filter(|(_, below)| *below != 0.0)
        .map(|(above, below)| above / below)
        .collect()
}

/// Medians of `resamples` samples with replacement, sorted. A draw is counted by rank instead of sorted: its median lies where
/// half of the counts do.
pub fn resampled_medians(blocks: &[f64], resamples: usize, seed: u64) -> Vec<f64> {
    let mut random = SplitMix64::new(seed);
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by(|a, b| blocks[*a].total_cmp(&blocks[*b]));
    let sorted: Vec<f64> = order.iter().map(|index| blocks[*index]).collect();
    let mut rank_of = vec![0; blocks.len()];
    for (rank, index) in order.into_iter().enumerate() {
        rank_of[index] = rank;
    }
    let mut counts = vec![0_u32; blocks.len()];
    let mut medians = Vec::with_capacity(resamples);
    for _ in 0..resamples {
        counts.fill(0);
        for _ in 0..blocks.len() {
            counts[rank_of[random.below(blocks.len())]] += 1;
        }
        medians.extend(median_of_counts(&sorted, &counts));
    }
    medians.sort_unstable_by(f64::total_cmp);
    medians
}

/// The median of a sample that has `counts[i]` times `sorted[i]`.
fn median_of_counts(sorted: &[f64], counts: &[u32]) -> Option<f64> {
    let len: u32 = counts.iter().sum();
    let at = |position: u32| {
        let mut below = 0;
        let reaches = |count: &u32| {
            below += count;
            below > position
        };
        counts.iter().position(reaches).map(|rank| sorted[rank])
    };
    quantile_of_sorted(&[at(len.checked_sub(1)? / 2)?, at(len / 2)?], 0.5)
}

/// The interval described at the top of this file, for at least two blocks.
pub fn expanded_percentile(blocks: &[f64], resamples: usize, seed: u64) -> (f64, f64) {
    let medians = resampled_medians(blocks, resamples, seed);
    let n = blocks.len() as f64;
    let tail = normal_cdf(-t_975(blocks.len() - 1) * (n / (n - 1.0)).sqrt());
    let end = |q| quantile_of_sorted(&medians, q).unwrap_or(f64::NAN);
    (end(tail), end(1.0 - tail))
}

/// The 97.5 % quantile of Student's t with `degrees` of freedom: a table to 10, then a series in 1/degrees.
fn t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 10] = [
        12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004,
        2.262_157, 2.228_139,
    ];
    if let Some(&t) = degrees.checked_sub(1).and_then(|index| TABLE.get(index)) {
        return t;
    }
    let (z, v) = (1.959_963_985_f64, degrees.max(1) as f64);
    let first = (z.powi(3) + z) / (4.0 * v);
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * v * v);
    let third =
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * v.powi(3));
    z + first + second + third
}

/// Φ(x) for the standard normal distribution (Abramowitz and Stegun 26.2.17, error below 7.5e-8).
pub fn normal_cdf(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let series = t
        * (0.319_381_530
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let upper = (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt() * series;
    if x > 0.0 { 1.0 - upper } else { upper }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_t_and_normal_are_scipys() {
        // scipy.stats.t.ppf(0.975, df), scipy.stats.norm.cdf(x)
        for (df, expected) in [
            (1, 12.706205),
            (5, 2.570582),
            (10, 2.228139),
            (11, 2.200985),
            (19, 2.093024),
            (60, 2.000298),
        ] {
            assert!(
                (t_975(df) - expected).abs() < 2e-4,
                "df = {df}: {}",
                t_975(df)
            );
        }
        for (x, expected) in [
            (-2.816, 0.00243129),
            (-1.959964, 0.025),
            (0.0, 0.5),
            (1.0, 0.8413447),
        ] {
            assert!(
                (normal_cdf(x) - expected).abs() < 2e-6,
                "x = {x}: {}",
                normal_cdf(x)
            );
        }
    }

    #[test]
    fn few_blocks_give_a_range_and_no_verdict() {
        let estimate = estimate(&[1.2, 1.1, 1.3, 1.25, 1.15]).unwrap();
        assert_eq!(
            (estimate.low, estimate.high, estimate.spread),
            (1.1, 1.3, Spread::Range)
        );
        assert_eq!(estimate.verdict(), Verdict::TooFew);
        assert_eq!(super::estimate(&[]), None);
    }

    #[test]
    fn six_blocks_give_an_interval_and_a_verdict() {
        let blocks = [1.2, 1.1, 1.3, 1.25, 1.15, 1.22];
        let estimate = estimate(&blocks).unwrap();
        assert_eq!(estimate.spread, Spread::Interval);
        assert_eq!(estimate.verdict(), Verdict::Above);
        let shifted: Vec<_> = blocks.iter().map(|b| b - 0.2).collect();
        assert_eq!(
            super::estimate(&shifted).unwrap().verdict(),
            Verdict::NoDifference
        );
        let below: Vec<_> = blocks.iter().map(|b| b - 0.9).collect();
        assert_eq!(super::estimate(&below).unwrap().verdict(), Verdict::Below);
    }

    #[test]
    fn the_interval_holds_the_median_and_never_leaves_the_data() {
        let mut random = SplitMix64::new(3);
        for n in FEWEST_FOR_INTERVAL..20 {
            let blocks: Vec<f64> = (0..n).map(|_| random.normal()).collect();
            let e = estimate(&blocks).unwrap();
            assert!(e.low <= e.value && e.value <= e.high);
            assert!(blocks.iter().any(|&b| b <= e.low) && blocks.iter().any(|&b| b >= e.high));
        }
    }

    #[test]
    fn counted_medians_are_those_of_sorted_draws() {
        let mut random = SplitMix64::new(9);
        for n in 1..=21 {
            let blocks: Vec<f64> = (0..n).map(|_| (random.normal() * 4.0).round()).collect();
            let mut source = SplitMix64::new(SEED);
            let mut expected: Vec<f64> = (0..500)
                .map(|_| {
                    let draw: Vec<f64> = (0..n).map(|_| blocks[source.below(n)]).collect();
                    median(&draw).unwrap()
                })
                .collect();
            expected.sort_by(f64::total_cmp);
            assert_eq!(
                resampled_medians(&blocks, 500, SEED),
                expected,
                "{n} blocks"
            );
        }
    }

    #[test]
    fn equal_records_give_equal_intervals() {
        let blocks = [5.0, 3.0, 4.0, 8.0, 1.0, 2.0, 9.0];
        assert_eq!(estimate(&blocks), estimate(&blocks));
    }

    #[test]
    fn a_shared_disturbance_cancels_within_blocks() {
        // Block 2 is slow for both: ratios within blocks do not see it.
        let pairs = [
            (10.0, 5.0),
            (20.0, 10.0),
            (10.2, 5.1),
            (9.8, 4.9),
            (10.4, 5.2),
            (10.0, 5.0),
        ];
        let ratio = estimate_ratio(&pairs).unwrap();
        assert!((ratio.value - 2.0).abs() < 1e-12 && (ratio.high - ratio.low) < 1e-9);
    }

    proptest::proptest! {
        #[test]
        fn an_estimate_is_ordered_and_scales_with_its_data(
            blocks in proptest::collection::vec(0.1f64..1e6, 1..14),
            factor in 0.01f64..100.0,
        ) {
            let plain = estimate(&blocks).unwrap();
            proptest::prop_assert!(plain.low <= plain.value && plain.value <= plain.high);
            let scaled: Vec<f64> = blocks.iter().map(|b| b * factor).collect();
            let scaled = estimate(&scaled).unwrap();
            for (a, b) in [(plain.low, scaled.low), (plain.value, scaled.value), (plain.high, scaled.high)] {
                proptest::prop_assert!((a * factor - b).abs() <= 1e-9 * b.abs());
            }
        }

        #[test]
        fn the_order_of_blocks_does_not_move_the_median_or_the_range(
            mut blocks in proptest::collection::vec(-1e3f64..1e3, 1..6),
        ) {
            let before = estimate(&blocks).unwrap();
            blocks.reverse();
            proptest::prop_assert_eq!(before, estimate(&blocks).unwrap());
        }
    }

    /// The nominal level must be met for the sizes that people use; 1500 trials have a standard error of 0.6 %.
    #[test]
    fn the_interval_covers_the_true_median() {
        let mut random = SplitMix64::new(11);
        for n in [6, 10, 20] {
            let covered = (0..1500)
                .filter(|&trial| {
                    let blocks: Vec<f64> = (0..n).map(|_| (0.3 * random.normal()).exp()).collect();
                    let (low, high) = expanded_percentile(&blocks, 300, trial);
                    low <= 1.0 && 1.0 <= high
                })
                .count() as f64
                / 1500.0;
            assert!(covered > 0.935, "n = {n}: {covered}");
        }
    }
}
