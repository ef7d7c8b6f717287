//! The answer in words: every fair comparison of the factor that the scenario's `[answer]` names.
//!
//! Contract: two trials are compared only if they are equal in everything but the factor and what follows from it (a
//! strategy brings its launch and its transport). Ratios are taken within blocks. A sentence claims a difference only
//! where the 95 % interval of the ratio leaves out 1, and fewer than 6 repeats give a range and no verdict.
//! Reference: METHODOLOGY.md, "Repeats are blocks".
mod metric;
mod words;

use syncmark_record::{Outcome, rows::TrialRow};

use crate::{
    analyse::paired,
    chart::series::name,
    compose::{
        dispatch::{CUDA_GRAPH, dispatch_sentences},
        kinds::collective_sentences,
        learning::learning_sentences,
        nodes::node_sentences,
        norm_cost::norm_sentences,
    },
    factor::{as_recorded, factor_value, fair, is_named, train_alike},
    format::count,
    run_data::RunData,
    scenario::{AnswerSpec, NORM_COST},
    stats::{Estimate, bootstrap::Verdict, estimate_ratio},
};
use metric::{Metric, verdict_words};
use words::{bytes_sentence, fact, name_in, rest, shared_words, summary};

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
    let cost = match data.scenario.kind == NORM_COST {
        true => norm_sentences(data),
        false => node_sentences(data),
    };
    let beside: Vec<String> = [collective_sentences(data), cost, learning_sentences(data)].concat();
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
    if spec.factor == CUDA_GRAPH {
        sentences.extend(dispatch_sentences(data));
    }
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

fn nothing_to_compare(data: &RunData, spec: &AnswerSpec) -> String {
    let measured = data.measured().count();
    if measured == 0 {
        return "No trial has figures, so the question cannot be answered; the reasons stand in the section Trials.".into();
    }
    if data.gaps.trials_missing || data.repeats.is_empty() {
        let file = if data.gaps.trials_missing {
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
