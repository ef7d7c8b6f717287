//! The answer in words: every fair comparison of the factor that the scenario's `[answer]` names.
//!
//! Contract: two trials are compared only if they are equal in everything but the factor and what follows from it (a
//! strategy brings its launch and its transport). Ratios are taken within blocks. A sentence claims a difference only
//! where the 95 % interval of the ratio leaves out 1, and fewer than 6 repeats give a range and no verdict.
//! Reference: METHODOLOGY.md, "Verdicts".
use syncmark_record::{Outcome, rows::TrialRow};

use crate::{
    analyse::{Blocks, paired, sent_per_step},
    chart::series::name,
    compose::{kinds::collective_sentences, nodes::node_sentences},
    factor::{as_recorded, batch_size, factor_value, fair, in_words, is_named},
    format::{count, percent, ratio},
    run_data::RunData,
    scenario::AnswerSpec,
    stats::{Estimate, bootstrap::Verdict, estimate_ratio},
};

/// A figure that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    SamplesPerS,
    StepMs,
    BytesPerStep,
}

impl Metric {
    fn of(name: &str) -> Option<Self> {
        match name {
            "samples_per_s" => Some(Self::SamplesPerS),
            "step_ms" => Some(Self::StepMs),
            "bytes_per_step" => Some(Self::BytesPerStep),
            _ => None,
        }
    }

    fn blocks(self, trial: &TrialRow, data: &RunData) -> std::collections::BTreeMap<u32, f64> {
        let blocks = Blocks::of(&trial.trial, &data.repeats);
        match self {
            Self::SamplesPerS => blocks.samples_per_s,
            Self::StepMs => blocks.step_ms,
            Self::BytesPerStep => sent_per_step(&trial.trial, &data.comm),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::SamplesPerS => "throughput",
            Self::StepMs => "step time",
            Self::BytesPerStep => "bytes per step",
        }
    }

    /// On which side of 1 a ratio is. Bytes are counted, not sampled: where every repeat has the same, one is enough.
    fn verdict(self, ratio: &Estimate) -> Verdict {
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
    fn sides(self) -> [&'static str; 2] {
        match self {
            Self::SamplesPerS | Self::StepMs => ["faster", "slower"],
            Self::BytesPerStep => ["fewer bytes", "more bytes"],
        }
    }

    /// Whether a ratio on this side of 1 is the better one.
    fn better(self, verdict: Verdict) -> Option<bool> {
        match (self, verdict) {
            (Self::SamplesPerS, Verdict::Above)
            | (Self::StepMs | Self::BytesPerStep, Verdict::Below) => Some(true),
            (Self::SamplesPerS, Verdict::Below)
            | (Self::StepMs | Self::BytesPerStep, Verdict::Above) => Some(false),
            _ => None,
        }
    }
}

/// One trial held against one baseline trial.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// The baseline.
    pub baseline: &'a TrialRow,
    /// Names of the trial and of the baseline, with the factor's values where the names alone are equal.
    pub names: [String; 2],
    /// The trial's metric over the baseline's.
    pub ratio: Estimate,
    /// What both share, in words.
    pub shared: String,
    /// `faster`, `slower`, `no difference can be told` or `no verdict`.
    pub verdict: String,
}

impl Comparison<'_> {
    /// The trials of the pair that other load disturbed: a difference could be the load's.
    fn disturbed(&self) -> Vec<String> {
        [self.trial, self.baseline]
            .into_iter()
            .filter(|trial| trial.outcome == Outcome::Disturbed)
            .map(name)
            .collect()
    }

    /// The ratio's verdict; `None` where it is withheld. Load does not change how many bytes are sent.
    fn told(&self, metric: Metric) -> Option<Verdict> {
        let counts = metric == Metric::BytesPerStep || self.disturbed().is_empty();
        counts.then(|| metric.verdict(&self.ratio))
    }
}

/// The answer and the comparisons that it rests on.
#[derive(Clone, Debug)]
pub struct Answer<'a> {
    /// Sentences; never empty.
    pub sentences: Vec<String>,
    /// All fair comparisons, in the report's order.
    pub comparisons: Vec<Comparison<'a>>,
}

/// Answers the scenario's question from the records.
pub fn answer(data: &RunData) -> Answer<'_> {
    let only = |sentence: String| Answer {
        sentences: vec![sentence],
        comparisons: Vec::new(),
    };
    let beside: Vec<String> = [collective_sentences(data), node_sentences(data)].concat();
    if !beside.is_empty() && data.scenario.answer.is_none() {
        return Answer {
            sentences: beside,
            comparisons: Vec::new(),
        };
    }
    let Some(spec) = &data.scenario.answer else {
        return only("The scenario has no [answer], so nothing is compared in words; the figures below stand for themselves.".into());
    };
    let Some(metric) = Metric::of(&spec.metric) else {
        return only(format!(
            "The metric {} cannot be compared in words: use samples_per_s, step_ms or bytes_per_step.",
            spec.metric
        ));
    };
    if factor_value(&spec.factor, data.trials.first()).is_none() {
        return only(format!(
            "The factor {} is no column of the records, so nothing can be compared.",
            spec.factor
        ));
    }
    let comparisons = compare(data, spec, metric);
    if comparisons.is_empty() {
        return only(nothing_to_compare(data, spec));
    }
    let asked = asked(&comparisons);
    let headline = headline(&asked, &spec.factor);
    let mut sentences = beside;
    sentences.extend(summary(&asked, spec, metric));
    for group in headline.chunk_by(|a, b| a.shared == b.shared) {
        let facts: Vec<String> = group.iter().map(|c| fact(c, metric)).collect();
        sentences.push(format!("{}: {}.", group[0].shared, facts.join("; ")));
        sentences.extend(bytes_sentence(group));
    }
    if headline.len() < comparisons.len() {
        let crowded = |c: &Comparison<'_>| c.trial.oversubscribed || c.baseline.oversubscribed;
        let left_out = comparisons.iter().any(crowded) && !asked.iter().any(|c| crowded(c));
        let apart = if left_out {
            "; those with oversubscribed trials are left out above"
        } else {
            ""
        };
        sentences.push(format!(
            "All {} fair comparisons stand in the section Comparisons{apart}.",
            comparisons.len()
        ));
    }
    Answer {
        sentences,
        comparisons,
    }
}

fn nothing_to_compare(data: &RunData, spec: &AnswerSpec) -> String {
    let measured = data.measured().count();
    if measured == 0 {
        return "No trial has figures, so the question cannot be answered; the reasons stand in the section Trials.".into();
    }
    format!(
        "No two measured trials differ in {} alone with {} as baseline ({} with figures), so nothing can be compared fairly.",
        spec.factor,
        spec.baseline,
        count(measured, "trial")
    )
}

fn compare<'a>(data: &'a RunData, spec: &AnswerSpec, metric: Metric) -> Vec<Comparison<'a>> {
    let value = |trial: &TrialRow| factor_value(&spec.factor, Some(trial)).unwrap_or_default();
    let wanted = as_recorded(&spec.factor, &spec.baseline);
    let mut comparisons = Vec::new();
    let wants = |trial: &TrialRow| is_named(&spec.factor, &value(trial), &wanted);
    for baseline in data.measured().filter(|trial| wants(trial)) {
        // A trial without a value of the factor, such as DP's of a bucket cap, is no other value of it.
        let others = data
            .measured()
            .filter(|trial| !wants(trial) && !value(trial).is_empty());
        for trial in others {
            if !fair(trial, baseline, &spec.factor) {
                continue;
            }
            let pairs = paired(&metric.blocks(trial, data), &metric.blocks(baseline, data));
            if let Some(ratio) = estimate_ratio(&pairs) {
                let mut comparison = Comparison {
                    trial,
                    baseline,
                    names: names(trial, baseline, &spec.factor),
                    ratio,
                    shared: shared_words(trial, baseline, &spec.factor),
                    verdict: "no verdict: disturbed".into(),
                };
                if comparison.told(metric).is_some() {
                    comparison.verdict = verdict_words(&ratio, metric);
                }
                comparisons.push(comparison);
            }
        }
    }
    comparisons
}

fn verdict_words(ratio: &Estimate, metric: Metric) -> String {
    let verdict = metric.verdict(ratio);
    match (verdict, metric.better(verdict)) {
        (_, Some(true)) => metric.sides()[0].into(),
        (_, Some(false)) => metric.sides()[1].into(),
        (Verdict::TooFew, _) => format!("no verdict: {}", count(ratio.blocks, "repeat")),
        _ if metric == Metric::BytesPerStep => "equally many bytes".into(),
        _ => "no difference can be told".into(),
    }
}

/// What two compared trials have in common.
fn shared_words(a: &TrialRow, b: &TrialRow, factor: &str) -> String {
    let mut words = Vec::new();
    if a.model == b.model {
        words.push(a.model.clone());
    }
    if a.norm == b.norm {
        words.push(if a.norm == "none" {
            "no norm".into()
        } else {
            format!("{} norm", a.norm)
        });
    }
    if factor != "parallel.devices" {
        words.push(count(a.devices as usize, "device"));
    }
    if batch_size(a) == batch_size(b) && a.scaling == b.scaling {
        let per = if a.scaling == "strong" {
            "in all"
        } else {
            "a device"
        };
        words.push(format!("{} samples {per}", batch_size(a)));
    }
    if a.backend == b.backend {
        words.push(a.backend.clone());
    }
    words.join(", ")
}

/// The comparisons that the question is about: not those of `single` and `independent`, which are yardsticks, nor those
/// on more devices than cores, which show contention; unless there is nothing else.
fn asked<'a, 'b>(comparisons: &'b [Comparison<'a>]) -> Vec<&'b Comparison<'a>> {
    let yardstick =
        |c: &Comparison<'_>| matches!(c.trial.strategy.as_str(), "single" | "independent");
    let crowded = |c: &Comparison<'_>| c.trial.oversubscribed || c.baseline.oversubscribed;
    let pick = |keep: &dyn Fn(&Comparison<'_>) -> bool| {
        comparisons.iter().filter(|c| keep(c)).collect::<Vec<_>>()
    };
    let choices = [
        pick(&|c| !yardstick(c) && !crowded(c)),
        pick(&|c| !yardstick(c)),
        pick(&|_| true),
    ];
    choices
        .into_iter()
        .find(|choice| !choice.is_empty())
        .unwrap_or_default()
}

/// Of those, the ones that get a sentence: on the most devices, in groups of equal setting.
fn headline<'a, 'b>(asked: &[&'b Comparison<'a>], factor: &str) -> Vec<&'b Comparison<'a>> {
    let most = asked.iter().map(|c| c.trial.devices).max().unwrap_or(1);
    let mut chosen: Vec<&'b Comparison<'a>> = asked
        .iter()
        .copied()
        .filter(|c| factor == "parallel.devices" || c.trial.devices == most)
        .collect();
    let first = |shared: &str| asked.iter().position(|c| c.shared == shared);
    chosen.sort_by_key(|c| first(&c.shared));
    chosen
}

/// How many comparisons went which way.
fn summary(asked: &[&Comparison<'_>], spec: &AnswerSpec, metric: Metric) -> Option<String> {
    let told = |wanted: Option<bool>| {
        asked
            .iter()
            .filter_map(|c| c.told(metric))
            .filter(|verdict| metric.better(*verdict) == wanted)
            .count()
    };
    let too_few = asked
        .iter()
        .filter(|c| c.told(metric) == Some(Verdict::TooFew))
        .count();
    let withheld = asked.iter().filter(|c| c.told(metric).is_none()).count();
    if withheld == asked.len() {
        return Some(
            "No verdict: other load disturbed one trial or both of every comparison, and a difference could be the load's. Run again on a quiet \
             machine."
                .into(),
        );
    }
    if too_few == asked.len() {
        let blocks = asked.iter().map(|c| c.ratio.blocks).max().unwrap_or(0);
        let gives = match blocks {
            1 => "gives neither a range nor",
            _ => "give a range, not",
        };
        return Some(format!(
            "No verdict: {} {gives} an interval. Run at least 6 repeats (10 is the default) for an answer that can be cited.",
            count(blocks, "repeat")
        ));
    }
    if asked.len() < 2 {
        return None;
    }
    let mut values: Vec<String> = asked
        .iter()
        .filter_map(|c| factor_value(&spec.factor, Some(c.trial)))
        .collect();
    values.sort_by_key(|value| (value.parse::<u64>().ok(), value.clone()));
    values.dedup();
    let values: Vec<String> = values
        .iter()
        .map(|value| in_words(&spec.factor, value))
        .collect();
    let subject = match values.as_slice() {
        [] => "The others".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    };
    let (faster, slower, undecided) = (told(Some(true)), told(Some(false)), told(None) - too_few);
    let [better, worse] = metric.sides();
    let mut parts = vec![
        format!("{better} in {}", none_or(faster)),
        format!("{worse} in {}", none_or(slower)),
    ];
    if undecided > 0 {
        parts.push(match metric {
            Metric::BytesPerStep => format!("equally many in {undecided}"),
            _ => format!("no difference can be told in {undecided}"),
        });
    }
    if too_few > 0 {
        parts.push(format!("without a verdict (too few repeats) in {too_few}"));
    }
    if withheld > 0 {
        parts.push(format!("without a verdict (disturbed) in {withheld}"));
    }
    let all = count(asked.len(), "comparison");
    Some(format!(
        "{subject} against {} ({all} over all device counts and settings): {}.",
        in_words(&spec.factor, &as_recorded(&spec.factor, &spec.baseline)),
        parts.join(", ")
    ))
}

fn none_or(n: usize) -> String {
    if n == 0 { "none".into() } else { n.to_string() }
}

/// The names of two compared trials, with their value of the factor where the names do not tell them apart.
fn names(trial: &TrialRow, baseline: &TrialRow, factor: &str) -> [String; 2] {
    let plain = [name(trial), name(baseline)];
    if plain[0] != plain[1] {
        return plain;
    }
    [trial, baseline].map(|trial| {
        let value = factor_value(factor, Some(trial)).unwrap_or_default();
        format!("{} with {}", name(trial), in_words(factor, &value))
    })
}

/// One comparison in words, without its setting.
fn fact(c: &Comparison<'_>, metric: Metric) -> String {
    let (value, low, high) = (
        ratio(c.ratio.value),
        ratio(c.ratio.low),
        ratio(c.ratio.high),
    );
    let repeats = count(c.ratio.blocks, "repeat");
    let [trial, baseline] = &c.names;
    if metric == Metric::BytesPerStep && low == high {
        return format!("{trial} sends {value} the bytes of {baseline} in every step");
    }
    let judged = match c.ratio.verdict() {
        _ if c.told(metric).is_none() => format!(
            "{low} to {high}, {repeats}; no verdict: other load disturbed {}",
            c.disturbed().join(" and ")
        ),
        Verdict::TooFew if c.ratio.blocks == 1 => format!("no verdict: {repeats}"),
        Verdict::TooFew => format!("range {low} to {high}; no verdict: {repeats}"),
        Verdict::NoDifference => {
            format!(
                "95 % interval {low} to {high}, {repeats}; it includes 1, so no difference can be told"
            )
        }
        Verdict::Above | Verdict::Below => {
            let change = percent((c.ratio.value - 1.0).abs());
            format!(
                "95 % interval {low} to {high}, {repeats}; {} is {change} {}",
                metric.words(),
                side(c.ratio.verdict())
            )
        }
    };
    format!(
        "{trial} is at {value} the {} of {baseline} ({judged})",
        metric.words()
    )
}

fn side(verdict: Verdict) -> &'static str {
    if verdict == Verdict::Above {
        "higher"
    } else {
        "lower"
    }
}

/// What each trial of a group moves, where all were counted.
fn bytes_sentence(group: &[&Comparison<'_>]) -> Option<String> {
    let mut moved: Vec<String> = Vec::new();
    for trial in group.iter().flat_map(|c| [c.trial, c.baseline]) {
        let words = format!(
            "{} sends {}",
            name(trial),
            crate::format::bytes(trial.counted_bytes_per_step?)
        );
        if !moved.contains(&words) {
            moved.push(words);
        }
    }
    Some(format!(
        "{}: per step, over all devices, {}.",
        group[0].shared,
        moved.join(", ")
    ))
}
