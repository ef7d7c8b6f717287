//! Facets and series: which trials share a chart, and which share a line in it.
//!
//! Contract: a facet holds trials of equal model, norm, data, optimizer, schedule, backend, precision, scaling, micro-batches and work per device, so only what
//! a chart compares differs inside it. A series is one way to run that model, over device counts; it keeps its colour
//! and marker in every chart.
use syncmark_record::{Outcome, rows::TrialRow};

use super::{canvas::Marker, curves::binary_bytes, palette::Color};
use crate::analyse::is_placeholder;

/// Trials that belong in one chart.
#[derive(Clone, Debug)]
pub struct Facet<'a> {
    /// File-name part: lower-case letters, digits and hyphens.
    pub slug: String,
    /// A few words that tell it from the run's other facets; empty where there is none.
    pub short: String,
    /// For the subtitle, such as `resnet20 · batch norm · synthetic · 32 samples a device (weak scaling) · cpu`.
    pub title: String,
    /// Trials in the report's order, those without figures included.
    pub trials: Vec<&'a TrialRow>,
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// Name for the legend.
    pub name: String,
    /// Its mark.
    pub marker: Marker,
    /// Its colour.
    pub color: Color,
    /// Trials with figures, by device count.
    pub trials: Vec<&'a TrialRow>,
}

/// Samples that fix the work: a device's with weak scaling, all with strong.
fn work(trial: &TrialRow) -> u64 {
    if trial.scaling == "strong" {
        trial.global_batch
    } else {
        trial.global_batch / u64::from(trial.devices.max(1))
    }
}

/// What all trials of a facet share.
#[derive(PartialEq)]
struct FacetKey<'a> {
    model: &'a str,
    norm: &'a str,
    data: &'a str,
    backend: &'a str,
    precision: Option<&'a str>,
    scaling: &'a str,
    work: u64,
    micro_batches: u64,
    training: [Option<&'a str>; 2],
}

fn facet_key(trial: &TrialRow) -> FacetKey<'_> {
    FacetKey {
        model: &trial.model,
        norm: &trial.norm,
        data: &trial.data,
        backend: &trial.backend,
        precision: trial.precision.as_deref(),
        scaling: &trial.scaling,
        work: work(trial),
        micro_batches: trial.accumulation.unwrap_or(1),
        training: training(trial),
    }
}

/// Optimizer and schedule.
fn training(trial: &TrialRow) -> [Option<&str>; 2] {
    [trial.optimizer.as_deref(), trial.schedule.as_deref()]
}

/// [`shared_setting`] with optimizer and schedule, which few runs vary.
pub fn whole_setting(trial: &TrialRow) -> String {
    let [optimizer, schedule] = training(trial);
    let schedule = schedule.filter(|name| *name != "constant");
    let words = [optimizer, schedule].into_iter().flatten();
    words.fold(shared_setting(trial), |all, word| all + " · " + word)
}

/// What a facet's trials have in common, in words.
pub fn shared_setting(trial: &TrialRow) -> String {
    if is_placeholder(trial) {
        return "settings not recorded".into();
    }
    let norm = if trial.norm == "none" {
        "no norm".into()
    } else {
        format!("{} norm", trial.norm)
    };
    let parts = match trial.accumulation {
        Some(count @ 2..) => format!(" in {count} micro-batches"),
        _ => String::new(),
    };
    let work = if trial.scaling == "strong" {
        format!("{} samples in all{parts} (strong scaling)", work(trial))
    } else {
        format!("{} samples a device{parts} (weak scaling)", work(trial))
    };
    let backend = [Some(&*trial.backend), trial.precision.as_deref()];
    let backend: Vec<&str> = backend.into_iter().flatten().collect();
    [
        trial.model.as_str(),
        &norm,
        &trial.data,
        &work,
        &backend.join(" · "),
    ]
    .join(" · ")
}

/// The facets in the order of their first trials.
pub fn facets<'a>(trials: &[&'a TrialRow]) -> Vec<Facet<'a>> {
    let mut keys: Vec<FacetKey<'_>> = Vec::new();
    for trial in trials {
        if !keys.contains(&facet_key(trial)) {
            keys.push(facet_key(trial));
        }
    }
    let models = |model: &str| keys.iter().filter(|key| key.model == model).count();
    let one_training = keys.iter().all(|key| key.training == keys[0].training);
    let setting = if one_training {
        shared_setting
    } else {
        whole_setting
    };
    keys.iter()
        .enumerate()
        .map(|(index, key)| {
            let trials: Vec<&TrialRow> = trials
                .iter()
                .copied()
                .filter(|trial| facet_key(trial) == *key)
                .collect();
            let name = if models(key.model) == 1 {
                key.model.to_string()
            } else {
                format!("{}-{}-{}", key.model, key.norm, index + 1)
            };
            let short = match keys.len() {
                1 => String::new(),
                _ if models(key.model) == 1 => key.model.to_string(),
                _ => setting(trials[0]),
            };
            Facet {
                slug: slug(&name),
                short,
                title: setting(trials[0]),
                trials,
            }
        })
        .collect()
}

/// Lower-case letters, digits and hyphens.
pub fn slug(text: &str) -> String {
    let mapped: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .collect();
    let parts: Vec<&str> = mapped.split('-').filter(|part| !part.is_empty()).collect();
    if parts.is_empty() {
        "unnamed".into()
    } else {
        parts.join("-")
    }
}

/// What tells one way to run a model from another, with the scenario's key for each: strategy and launch first, then what
/// differs from the defaults.
fn settings(trial: &TrialRow) -> Vec<(&'static str, String)> {
    let mut strategy = trial.strategy.clone();
    if let Some(launch) = &trial.launch {
        strategy = format!("{strategy}-{launch}");
    }
    if trial.dp_loss.as_deref() == Some("replica") {
        strategy = format!("{strategy}-replica-loss");
    }
    let cap = trial
        .bucket_cap_bytes
        .filter(|cap| *cap != BUCKET_CAP_BYTES);
    let first = trial
        .first_bucket_cap_bytes
        .filter(|first| trial.bucket_cap_bytes != Some(*first) && *first != FIRST_BUCKET_CAP_BYTES);
    let several = trial.accumulation.filter(|count| *count > 1);
    let off =
        |setting: Option<bool>, words: &str| (setting == Some(false)).then(|| words.to_owned());
    let differing = [
        (
            "parallel.transport",
            trial.transport.clone().filter(|name| name == "tcp"),
        ),
        (
            "parallel.dp_transport",
            (trial.dp_transport.as_deref() == Some("nccl")).then(|| "over NCCL".to_owned()),
        ),
        (
            "parallel.bucket_cap",
            cap.map(|cap| format!("cap {}", binary_bytes(cap as f64))),
        ),
        (
            "parallel.first_bucket_cap",
            first.map(|cap| format!("first {}", binary_bytes(cap as f64))),
        ),
        ("parallel.overlap", off(trial.overlap, "no overlap")),
        (
            "train.accumulation",
            several.map(|count| format!("{count} micro-batches")),
        ),
        (
            "train.cuda_graph",
            (trial.cuda_graph == Some(true)).then(|| "as one graph".to_owned()),
        ),
        (
            "train.cuda_batch_norm",
            by_cudnn(trial).then(|| "cuDNN's batch norm".to_owned()),
        ),
        (
            "train.cuda_matmul",
            (trial.cuda_matmul.as_deref() == Some("cublaslt")).then(|| "cuBLASLt".to_owned()),
        ),
        ("parallel.no_sync", off(trial.no_sync, "each synchronized")),
        (
            "parallel.threads",
            trial
                .threads
                .filter(|threads| *threads > 1)
                .map(|threads| format!("{threads} threads")),
        ),
        (
            "parallel.compression",
            trial.compression.clone().filter(|name| name != "none"),
        ),
        (
            "parallel.broadcast_buffers",
            off(trial.broadcast_buffers, "no buffer broadcast"),
        ),
        ("parallel.device_ids", trial.device_ids.clone()),
        (
            "parallel.output_device",
            trial
                .output_device
                .map(|device| format!("output on {device}")),
        ),
    ];
    std::iter::once(("parallel.strategy", strategy))
        .chain(
            differing
                .into_iter()
                .filter_map(|(key, words)| Some((key, words?))),
        )
        .collect()
}

/// Whether cuDNN computes its batch norms.
pub fn by_cudnn(trial: &TrialRow) -> bool {
    trial.cuda_batch_norm.as_deref() == Some("cudnn")
}

/// PyTorch's defaults: a trial that has them is not labelled with them.
const BUCKET_CAP_BYTES: u64 = 25 << 20;
const FIRST_BUCKET_CAP_BYTES: u64 = 1 << 20;

/// How a trial runs its model, without the device count: `ddp-processes`, `dp`, or its variant's name.
pub fn way(trial: &TrialRow) -> String {
    way_without(trial, "")
}

/// Settings that are swept over variants of any name, and what a variant has in its name that says itself which value it has.
const SWEPT: [(&str, &str); 4] = [
    ("parallel.dp_transport", "nccl"),
    ("train.cuda_graph", "graph"),
    ("train.cuda_batch_norm", "cudnn"),
    ("train.cuda_matmul", "cublaslt"),
];

/// [`way`] without the words of one setting: what trials share that differ in it.
pub fn way_without(trial: &TrialRow, key: &str) -> String {
    let settings: Vec<(&str, String)> = settings(trial)
        .into_iter()
        .filter(|(own, _)| *own != key)
        .collect();
    let words: Vec<&str> = settings.iter().map(|(_, words)| &**words).collect();
    let derived = words.join(" ");
    match &trial.variant {
        // A variant that names its strategy says all else that it sets, but not what a sweep does.
        Some(variant) if variant.contains(&trial.strategy) || trial.strategy == "unknown" => {
            let unsaid = |(own, _): &&(&str, String)| {
                let swept = SWEPT.iter().find(|(key, _)| key == own);
                swept.is_some_and(|(_, said)| !variant.contains(said))
            };
            let unsaid = settings.iter().filter(unsaid).map(|(_, words)| &**words);
            let all: Vec<&str> = std::iter::once(&**variant).chain(unsaid).collect();
            all.join(" ")
        }
        // A variant that names the model or the norm says nothing inside its facet.
        Some(variant) if [&trial.model, &trial.norm, &trial.data].contains(&variant) => derived,
        Some(variant) if derived.contains(variant.as_str()) => derived,
        Some(variant) => format!("{derived} · {variant}"),
        None => derived,
    }
}

/// [`way`] with the device count: `ddp-processes ×2`.
pub fn name(trial: &TrialRow) -> String {
    match is_placeholder(trial) {
        true => trial.trial.clone(),
        false => format!("{} ×{}", way(trial), trial.devices),
    }
}

/// The look that a strategy has in every chart.
fn usual_look(trial: &TrialRow) -> Option<(Marker, Color)> {
    if trial.dp_transport.as_deref() == Some("nccl") {
        return Some(match trial.dp_loss.as_deref() {
            Some("replica") => (Marker::Down, Color::ORANGE),
            _ => (Marker::Diamond, Color::VERMILION),
        });
    }
    match (
        trial.strategy.as_str(),
        trial.launch.as_deref(),
        trial.dp_loss.as_deref(),
    ) {
        ("single", ..) => Some((Marker::Circle, Color::BLACK)),
        ("independent", ..) => Some((Marker::Diamond, Color::SILVER)),
        ("dp", _, Some("replica")) => Some((Marker::Bar, Color::ORANGE)),
        ("dp", ..) => Some((Marker::Square, Color::VERMILION)),
        ("ddp", Some("threads"), _) => Some((Marker::Down, Color::GREEN)),
        ("ddp", ..) => Some((Marker::Up, Color::BLUE)),
        ("zero1", Some("threads"), _) => Some((Marker::Down, Color::PURPLE)),
        ("zero1", ..) => Some((Marker::Diamond, Color::PURPLE)),
        _ => None,
    }
}

const SPARE_LOOKS: [(Marker, Color); 6] = [
    (Marker::Diamond, Color::PURPLE),
    (Marker::Circle, Color::SKY),
    (Marker::Bar, Color::YELLOW),
    (Marker::Square, Color::GREY),
    (Marker::Up, Color::ORANGE),
    (Marker::Down, Color::PURPLE),
];

/// The series of a facet: all ways to run, also those without figures, so that colours do not depend on failures.
pub fn series<'a>(facet: &Facet<'a>) -> Vec<Series<'a>> {
    let mut all: Vec<Series<'a>> = Vec::new();
    for trial in &facet.trials {
        let name = way(trial);
        let index = all
            .iter()
            .position(|series| series.name == name)
            .unwrap_or_else(|| {
                let (marker, color) = look(trial, &all);
                all.push(Series {
                    name,
                    marker,
                    color,
                    trials: Vec::new(),
                });
                all.len() - 1
            });
        if trial.outcome.has_figures() && trial.step_ms.is_some() {
            all[index].trials.push(trial);
        }
    }
    all.iter_mut()
        .for_each(|series| series.trials.sort_by_key(|trial| trial.devices));
    all.retain(|series| !series.trials.is_empty());
    all
}

/// The usual look, unless another series has it already.
fn look(trial: &TrialRow, taken: &[Series<'_>]) -> (Marker, Color) {
    let free = |look: &(Marker, Color)| {
        taken
            .iter()
            .all(|series| (series.marker, series.color) != *look)
    };
    let usual = usual_look(trial).filter(|look| free(look));
    usual
        .or_else(|| SPARE_LOOKS.into_iter().find(|look| free(look)))
        .unwrap_or(SPARE_LOOKS[taken.len() % 6])
}

/// What makes a trial's figures doubtful though they are shown.
fn doubt(trial: &TrialRow) -> Option<&'static str> {
    match trial.outcome {
        Outcome::Disturbed => Some("disturbed"),
        Outcome::Unsteady => Some("unsteady"),
        _ => None,
    }
}

/// The warning that every chart carries beside an oversubscribed, disturbed or unsteady trial.
pub fn alert(trial: &TrialRow) -> String {
    let crowded = trial.oversubscribed.then_some("oversubscribed");
    let words: Vec<&str> = crowded.into_iter().chain(doubt(trial)).collect();
    words.join(", ")
}

/// A series' name for a legend, with the device counts at which it was disturbed or unsteady.
pub fn labelled(series: &Series<'_>) -> String {
    let of = |word: &str| {
        let doubted = series.trials.iter().filter(|t| doubt(t) == Some(word));
        let counts: Vec<String> = doubted.map(|t| format!("×{}", t.devices)).collect();
        (!counts.is_empty()).then(|| format!("{word}: {}", counts.join(", ")))
    };
    let doubts: Vec<String> = ["disturbed", "unsteady"]
        .into_iter()
        .filter_map(of)
        .collect();
    match doubts.as_slice() {
        [] => series.name.clone(),
        doubts => format!("{} ({})", series.name, doubts.join("; ")),
    }
}

/// Sentences on the facet's trials that show no figures, and on those whose figures something disturbed; empty if there is none.
pub fn not_shown(facet: &Facet<'_>) -> String {
    not_shown_of(&facet.trials)
}

/// Trials that a caption names before it counts them.
const MOST_NAMES: usize = 4;

/// The same for any trials.
pub fn not_shown_of(trials: &[&TrialRow]) -> String {
    let excluded: Vec<String> = trials
        .iter()
        .filter_map(|trial| {
            Some(format!(
                "{} ({})",
                name(trial),
                crate::run_data::excluded_reason(trial)?
            ))
        })
        .collect();
    let shown = trials.len() - excluded.len();
    let doubted = |word: &str| -> Vec<String> {
        let of_word = trials.iter().filter(|trial| doubt(trial) == Some(word));
        let names: Vec<String> = of_word.map(|trial| name(trial)).collect();
        match names.len() {
            few if few <= MOST_NAMES => names,
            all if all == shown => vec![format!("all {shown} trials")],
            many => vec![format!("{many} of {shown} trials, which the table names")],
        }
    };
    let sentence = |begin: &str, of: &[String]| match of {
        [] => String::new(),
        of => format!(" {begin}: {}.", of.join("; ")),
    };
    sentence("Not shown", &excluded)
        + &sentence("Disturbed", &doubted("disturbed"))
        + &sentence("Unsteady within their windows", &doubted("unsteady"))
}

/// What every CPU caption that shows DP must say.
pub fn dp_on_cpu(facet: &Facet<'_>) -> &'static str {
    if facet
        .trials
        .iter()
        .any(|trial| trial.strategy == "dp" && trial.backend == "cpu" && trial.devices > 1)
    {
        " CPU devices model separate memories: DP's copies are required by its semantics, not by this hardware."
    } else {
        ""
    }
}
