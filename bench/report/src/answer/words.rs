//! Comparisons in sentences: what went which way, what each pair says, what both share, and how trials are called.
//!
//! Contract: a trial's name is followed by what it does not tell but the comparison is about; what a pair shares is said as far
//! as other trials of the run have it otherwise.
use syncmark_record::rows::TrialRow;

use super::{Comparison, is_alone, is_crowded, is_yardstick, metric::Metric};
use crate::{
    chart::series::name,
    factor::{as_recorded, batch_size, factor_value, in_words},
    format::{count, percent, ratio},
    run_data::RunData,
    scenario::AnswerSpec,
    stats::bootstrap::Verdict,
};

/// How many comparisons went which way.
pub(super) fn summary(
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
            "No verdict: one trial or both of every comparison were disturbed, and a difference could come from that. Run again on a quiet \
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

/// One comparison in words, without its setting.
pub(super) fn fact(c: &Comparison<'_>, metric: Metric) -> String {
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
            "{low} to {high}, {repeats}; no verdict, disturbed: {}",
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
pub(super) fn bytes_sentence(group: &[&Comparison<'_>]) -> Option<String> {
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

/// Where all comparisons stand, and which kinds of them the sentences above leave out.
pub(super) fn rest(
    comparisons: &[Comparison<'_>],
    asked: &[&Comparison<'_>],
    shown: usize,
) -> Option<String> {
    type Kind = (fn(&Comparison<'_>) -> bool, &'static str);
    const KINDS: [Kind; 3] = [
        (is_yardstick, "with `single` or `independent`"),
        (is_alone, "on one device (where nothing is exchanged)"),
        (is_crowded, "with oversubscribed trials"),
    ];
    if shown == comparisons.len() {
        return None;
    }
    let left_out: Vec<&str> = KINDS
        .iter()
        .filter(|(is, _)| comparisons.iter().any(is) && !asked.iter().any(|c| is(c)))
        .map(|(_, words)| *words)
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

/// What two compared trials have in common: model, norm, devices and samples, and whatever else differs among the run's
/// trials.
pub(super) fn shared_words(a: &TrialRow, b: &TrialRow, factor: &str, data: &RunData) -> String {
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
    if a.precision == b.precision {
        words.extend(a.precision.clone());
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
    const BESIDES: [&str; 9] = [
        "data.source",
        "train.optimizer",
        "train.schedule",
        "train.accumulation",
        "parallel.threads",
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

/// A trial's name, with its value of the factor where another trial of that name has another value.
pub(super) fn name_in(data: &RunData, trial: &TrialRow, factor: &str) -> String {
    let value = |trial: &TrialRow| factor_value(factor, Some(trial)).unwrap_or_default();
    let (plain, own) = (name(trial), value(trial));
    let namesake = |other: &TrialRow| name(other) == plain && value(other) != own;
    match data.measured().any(namesake) {
        true => format!("{plain} with {}", in_words(factor, &own)),
        false => plain,
    }
}
