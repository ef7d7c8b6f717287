//! Simulates what intervals of the median cover for 3 to 20 blocks, and prints a Markdown table.
//!
//! Contract: deterministic. True medians are known: 0 for the normal, 1 for the log-normal (σ = 0.5, skewed to the
//! right as times are) and 0 for the disturbed distribution, in which one block in ten is three times as wide.
//! Run it with `cargo run --release -p syncmark-report --example coverage`.
//! Reference: Efron, "Better Bootstrap Confidence Intervals", 1987 (BCa).
use syncmark_report::stats::{
    bootstrap::{expanded_percentile, normal_cdf, resampled_medians},
    median, quantile_of_sorted,
    random::SplitMix64,
};

const TRIALS: u64 = 2000;
const RESAMPLES: usize = 1000;

type Draw = fn(&mut SplitMix64) -> f64;
const DISTRIBUTIONS: [(&str, f64, Draw); 3] = [
    ("normal", 0.0, |random| random.normal()),
    ("log-normal", 1.0, |random| (0.5 * random.normal()).exp()),
    ("disturbed", 0.0, |random| {
        if random.below(10) == 0 {
            3.0 * random.normal()
        } else {
            random.normal()
        }
    }),
];

fn percentile(medians: &[f64], tail: [f64; 2]) -> (f64, f64) {
    (
        quantile_of_sorted(medians, tail[0]).unwrap(),
        quantile_of_sorted(medians, tail[1]).unwrap(),
    )
}

/// Inverse of Φ by bisection.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if normal_cdf(middle) < p {
            low = middle
        } else {
            high = middle
        }
    }
    low
}

/// Bias-corrected and accelerated; the acceleration comes from the jackknife.
fn bca(blocks: &[f64], medians: &[f64]) -> (f64, f64) {
    let value = median(blocks).unwrap();
    let below = medians
        .iter()
        .map(|&m| {
            if m < value {
                1.0
            } else if m == value {
                0.5
            } else {
                0.0
            }
        })
        .sum::<f64>();
    let bias = normal_quantile((below / medians.len() as f64).clamp(1e-6, 1.0 - 1e-6));
    let left_out: Vec<f64> = (0..blocks.len())
        .map(|out| {
            let rest: Vec<f64> = blocks
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != out)
                .map(|(_, b)| *b)
                .collect();
            median(&rest).unwrap()
        })
        .collect();
    let centre = left_out.iter().sum::<f64>() / left_out.len() as f64;
    let square: f64 = left_out.iter().map(|m| (centre - m).powi(2)).sum();
    let cube: f64 = left_out.iter().map(|m| (centre - m).powi(3)).sum();
    let acceleration = if square == 0.0 {
        0.0
    } else {
        cube / (6.0 * square.powf(1.5))
    };
    let tail = |z: f64| normal_cdf(bias + (bias + z) / (1.0 - acceleration * (bias + z)));
    percentile(medians, [tail(-1.959964), tail(1.959964)])
}

fn main() {
    println!(
        "| blocks | percentile: normal | log-normal | disturbed | BCa: normal | log-normal | disturbed | expanded percentile: normal | log-normal | disturbed |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for n in 3..=20 {
        let mut covered = [[0u32; 3]; 3];
        for (d, (_, truth, draw)) in DISTRIBUTIONS.iter().enumerate() {
            let mut random = SplitMix64::new(1000 * n as u64 + d as u64);
            for trial in 0..TRIALS {
                let blocks: Vec<f64> = (0..n).map(|_| draw(&mut random)).collect();
                let medians = resampled_medians(&blocks, RESAMPLES, trial);
                let intervals = [
                    percentile(&medians, [0.025, 0.975]),
                    bca(&blocks, &medians),
                    expanded_percentile(&blocks, RESAMPLES, trial),
                ];
                for (method, (low, high)) in intervals.into_iter().enumerate() {
                    covered[method][d] += u32::from(low <= *truth && *truth <= high);
                }
            }
        }
        let cells: Vec<String> = covered
            .iter()
            .flatten()
            .map(|&c| format!("{:.1} %", f64::from(c) * 100.0 / TRIALS as f64))
            .collect();
        println!("| {n} | {} |", cells.join(" | "));
    }
}
