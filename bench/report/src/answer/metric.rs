//! What can be compared, which way is better, and what a ratio of it says.
use std::collections::BTreeMap;

use syncmark_record::rows::TrialRow;

use crate::{
    analyse::{Blocks, sent_per_step},
    format::count,
    run_data::RunData,
    stats::{Estimate, bootstrap::Verdict},
};

/// A figure that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    SamplesPerS,
    StepMs,
    BytesPerStep,
}

impl Metric {
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "samples_per_s" => Some(Self::SamplesPerS),
            "step_ms" => Some(Self::StepMs),
            "bytes_per_step" => Some(Self::BytesPerStep),
            _ => None,
        }
    }

    pub(super) fn blocks(self, trial: &TrialRow, data: &RunData) -> BTreeMap<u32, f64> {
        let blocks = Blocks::of(&trial.trial, &data.repeats);
        match self {
            Self::SamplesPerS => blocks.samples_per_s,
            Self::StepMs => blocks.step_ms,
            Self::BytesPerStep => sent_per_step(&trial.trial, &data.comm),
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::SamplesPerS => "throughput",
            Self::StepMs => "step time",
            Self::BytesPerStep => "bytes per step",
        }
    }

    /// On which side of 1 a ratio is. Bytes are counted, not sampled: where every repeat has the same, one is enough.
    pub(super) fn verdict(self, ratio: &Estimate) -> Verdict {
        if self != Self::BytesPerStep || ratio.low != ratio.high {
            return ratio.verdict();
        }
        match ratio.value {
            value if value > 1.0 => Verdict::Above,
            value if value < 1.0 => Verdict::Below,
            _ => Verdict::NoDifference,
        }
    }

    /// What a trial on the better and on the worse side of another is.
    pub(super) fn sides(self) -> [&'static str; 2] {
        match self {
            Self::SamplesPerS | Self::StepMs => ["faster", "slower"],
            Self::BytesPerStep => ["fewer bytes", "more bytes"],
        }
    }

    /// Whether a ratio on this side of 1 is the better one.
    pub(super) fn better(self, verdict: Verdict) -> Option<bool> {
        match (self, verdict) {
            (Self::SamplesPerS, Verdict::Above)
            | (Self::StepMs | Self::BytesPerStep, Verdict::Below) => Some(true),
            (Self::SamplesPerS, Verdict::Below)
            | (Self::StepMs | Self::BytesPerStep, Verdict::Above) => Some(false),
            _ => None,
        }
    }
}

/// A ratio's verdict, as the table of comparisons has it.
pub(super) fn verdict_words(ratio: &Estimate, metric: Metric) -> String {
    let verdict = metric.verdict(ratio);
    match (verdict, metric.better(verdict)) {
        (_, Some(true)) => metric.sides()[0].into(),
        (_, Some(false)) => metric.sides()[1].into(),
        (Verdict::TooFew, _) => format!("no verdict: {}", count(ratio.blocks, "repeat")),
        _ if metric == Metric::BytesPerStep => "equally many bytes".into(),
        _ => "no difference can be told".into(),
    }
}
