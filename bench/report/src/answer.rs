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
    factor::{as_recorded, batch_size, factor_value, fair, in_words, is_named, train_alike},
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
    /// Names of the trial and of the baseline, with the factor's value where the name alone does not tell it.
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

    /// Whose windows were unsteady, for a reader of the verdict. Bytes are the same in any window.
    fn remark(&self, metric: Metric) -> String {
        let is_unsteady = |trial: &TrialRow| trial.outcome == Outcome::Unsteady;
        let [trial, baseline] = &self.names;
        match (is_unsteady(self.trial), is_unsteady(self.baseline)) {
            _ if metric == Metric::BytesPerStep => String::new(),
            (false, false) => String::new(),
            (true, true) => "; both unsteady".into(),
            (true, false) => format!("; {trial} unsteady"),
            (false, true) => format!("; {baseline} unsteady"),
        }
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
    sentences.extend(summary(&asked, comparisons.len(), spec, metric));
    for group in headline.chunk_by(|a, b| a.shared == b.shared) {
        let facts: Vec<String> = group.iter().map(|c| fact(c, metric)).collect();
        sentences.push(format!("{}: {}.", group[0].shared, facts.join("; ")));
        sentences.extend(bytes_sentence(group));
    }
    sentences.extend(rest(&comparisons, &asked, headline.len()));
    Answer {
        sentences,
        comparisons,
    }
}

/// Where all comparisons stand, and which kinds of them the sentences above leave out.
fn rest(comparisons: &[Comparison<'_>], asked: &[&Comparison<'_>], shown: usize) -> Option<String> {
    if shown == comparisons.len() {
        return None;
    }
    let kinds = |c: &Comparison<'_>| {
        [
            (is_yardstick(c), "with `single` or `independent`"),
            (is_alone(c), "on one device (where nothing is exchanged)"),
            (is_crowded(c), "with oversubscribed trials"),
        ]
    };
    let of_kind = |c: &Comparison<'_>, index: usize| kinds(c)[index].0;
    let left_out = (0..3).filter(|&index| {
        comparisons.iter().any(|c| of_kind(c, index)) && !asked.iter().any(|c| of_kind(c, index))
    });
    let left_out: Vec<&str> = left_out
        .map(|index| kinds(&comparisons[0])[index].1)
        .collect();
    let apart = match left_out.as_slice() {
        [] => String::new(),
        kinds => format!("; those {} are left out above", kinds.join(" and those ")),
    };
    Some(format!(
        "All {} fair comparisons stand in the section Comparisons{apart}.",
        comparisons.len()
    ))
}

fn nothing_to_compare(data: &RunData, spec: &AnswerSpec) -> String {
    let measured = data.measured().count();
    if measured == 0 {
        return "No trial has figures, so the question cannot be answered; the reasons stand in the section Trials.".into();
    }
    if data.trials_missing || data.repeats.is_empty() {
        let file = if data.trials_missing {
            "trials.csv"
        } else {
            "repeats.csv"
        };
        return format!("{file} is missing, and nothing can be compared without it.");
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
                    names: [trial, baseline].map(|t| name_in(data, t, &spec.factor)),
                    ratio,
                    shared: shared_words(trial, baseline, &spec.factor, data),
                    verdict: "no verdict: disturbed".into(),
                };
                if comparison.told(metric).is_some() {
                    comparison.verdict = verdict_words(&ratio, metric) + &comparison.remark(metric);
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

/// What two compared trials have in common: model, norm, devices and samples, and whatever else differs among the run's
/// trials.
fn shared_words(a: &TrialRow, b: &TrialRow, factor: &str, data: &RunData) -> String {
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
        let per = match (a.scaling == "strong", several_micro_batches(a, b)) {
            (true, false) => "in all",
            (true, true) => "in all a micro-batch",
            (false, false) => "a device",
            (false, true) => "a device and micro-batch",
        };
        words.push(format!("{} samples {per}", batch_size(a)));
    }
    if a.backend == b.backend {
        words.push(a.backend.clone());
    }
    let names = [name(a), name(b)];
    let told = |text: &str| names.iter().all(|name| name.contains(text));
    words.extend(varied(a, b, data).filter(|text| !told(text)));
    words.join(", ")
}

fn several_micro_batches(a: &TrialRow, b: &TrialRow) -> bool {
    [a, b].iter().any(|trial| trial.accumulation > Some(1))
}

/// Settings that both have alike and that other measured trials have otherwise, in words.
fn varied<'a>(
    a: &'a TrialRow,
    b: &'a TrialRow,
    data: &'a RunData,
) -> impl Iterator<Item = String> + 'a {
    const BESIDES: [&str; 8] = [
        "data.source",
        "train.optimizer",
        "train.schedule",
        "train.accumulation",
        "parallel.transport",
        "parallel.bucket_cap",
        "parallel.overlap",
        "parallel.compression",
    ];
    BESIDES.into_iter().filter_map(move |key| {
        let value = |trial: &TrialRow| factor_value(key, Some(trial)).unwrap_or_default();
        let own = value(a);
        let other = |trial: &TrialRow| !value(trial).is_empty() && value(trial) != own;
        let told = !own.is_empty() && own == value(b) && data.measured().any(other);
        told.then(|| match key {
            "parallel.transport" => format!("over {own}"),
            _ => in_words(key, &own),
        })
    })
}

/// `single` and `independent` are yardsticks, not answers.
fn is_yardstick(c: &Comparison<'_>) -> bool {
    matches!(c.trial.strategy.as_str(), "single" | "independent")
}

/// More devices than cores show contention.
fn is_crowded(c: &Comparison<'_>) -> bool {
    c.trial.oversubscribed || c.baseline.oversubscribed
}

/// On one device there is nobody to exchange anything with: what sets exchanges apart, and nothing else, cannot show.
fn is_alone(c: &Comparison<'_>) -> bool {
    c.trial.devices == 1 && c.baseline.devices == 1 && train_alike(c.trial, c.baseline)
}

/// The comparisons that the question is about, as far as there are any: neither yardsticks, nor pairs on one device, nor
/// oversubscribed ones.
fn asked<'a, 'b>(comparisons: &'b [Comparison<'a>]) -> Vec<&'b Comparison<'a>> {
    let pick = |keep: &dyn Fn(&Comparison<'_>) -> bool| {
        comparisons.iter().filter(|c| keep(c)).collect::<Vec<_>>()
    };
    let meant = |c: &Comparison<'_>| !is_yardstick(c) && !is_alone(c);
    let choices = [
        pick(&|c| meant(c) && !is_crowded(c)),
        pick(&meant),
        pick(&|c| !is_yardstick(c)),
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
fn summary(
    asked: &[&Comparison<'_>],
    comparisons: usize,
    spec: &AnswerSpec,
    metric: Metric,
) -> Option<String> {
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
    let of = match asked.len() == comparisons {
        true => String::new(),
        false => format!(" of {comparisons}"),
    };
    let all = format!("{}{of}", count(asked.len(), "comparison"));
    Some(format!(
        "{subject} against {} ({all}): {}.",
        in_words(&spec.factor, &as_recorded(&spec.factor, &spec.baseline)),
        parts.join(", ")
    ))
}

fn none_or(n: usize) -> String {
    if n == 0 { "none".into() } else { n.to_string() }
}

/// A trial's name, with its value of the factor where another trial of that name has another value.
fn name_in(data: &RunData, trial: &TrialRow, factor: &str) -> String {
    let value = |trial: &TrialRow| factor_value(factor, Some(trial)).unwrap_or_default();
    let (plain, own) = (name(trial), value(trial));
    let namesake = |other: &TrialRow| name(other) == plain && value(other) != own;
    match data.measured().any(namesake) {
        true => format!("{plain} with {}", in_words(factor, &own)),
        false => plain,
    }
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
        "{trial} is at {value} the {} of {baseline} ({judged}{})",
        metric.words(),
        c.remark(metric)
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
    for c in group {
        for (trial, name) in [c.trial, c.baseline].into_iter().zip(&c.names) {
            let bytes = crate::format::bytes(trial.counted_bytes_per_step?);
            let words = format!("{name} sends {bytes}");
            if !moved.contains(&words) {
                moved.push(words);
            }
        }
    }
    Some(format!(
        "{}: per step, over all devices, {}.",
        group[0].shared,
        moved.join(", ")
    ))
}
