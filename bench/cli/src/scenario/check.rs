//! What a well-formed scenario must mean: ranges, and keys that contradict each other.
//!
//! Contract: `check` sees one effective configuration (a sweep's values and overrides are in the tree) and
//! points at the value that is wrong, wherever it came from. It does no I/O. Shapes are the engine's to check.
use syncmark_engine::data::{cifar10, fashion_mnist};
use syncmark_engine::model::spec::Momentum;

use crate::plan::config::{MAX_DEVICES, MAX_THREADS};
use crate::scenario::contradictions;
use crate::scenario::file::{Kind, Scaling, Scenario, Source, Strategy, TimeSpan};
use crate::scenario::preset::MODELS;
use crate::scenario::problem::{Problem, ProblemKind};
use crate::scenario::tree::{Node, Segment};

/// Shortest window of a figure that may be cited, on CPUs.
pub const MIN_TIME: TimeSpan = TimeSpan::seconds(5);
/// Shortest warm-up of a figure that may be cited, on CPUs.
pub const WARMUP_TIME: TimeSpan = TimeSpan::seconds(2);
/// Training images of the digits: a step draws from these.
pub const DIGITS: usize = 1437;
/// The engine counts samples of a step in 32 bits.
const MAX_BATCH: usize = i32::MAX as usize;

type Outcome = Result<(), Problem>;

/// Where to point, while values are checked.
pub struct Checker<'a>(pub &'a Node);

impl<'a> Checker<'a> {
    /// A problem with the value of a dotted key; where the key is left out, with the table that lacks it.
    pub fn problem(
        &self,
        key: &str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Problem {
        let path: Vec<Segment> = key
            .split('.')
            .map(|part| Segment::Key(part.to_owned()))
            .collect();
        self.problem_at(&path, message, help)
    }

    /// As [`Checker::problem`], for a path with indices.
    pub fn problem_at(
        &self,
        path: &[Segment],
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Problem {
        let kind = ProblemKind::Meaningless {
            message: message.into(),
            help: help.into(),
        };
        Problem::new(kind).at(self.0.nearest(path).place)
    }

    /// Whether the scenario has a value there.
    pub fn says(&self, path: &[Segment]) -> bool {
        let step = |node: Option<&'a Node>, segment| node.and_then(|node| node.child(segment));
        path.iter().fold(Some(self.0), step).is_some()
    }

    pub(super) fn at_least_one(&self, key: &str, value: usize) -> Outcome {
        match value {
            0 => Err(self.problem(key, format!("`{key}` is 0"), "write at least 1")),
            _ => Ok(()),
        }
    }

    pub(super) fn not_negative(&self, key: &str, value: f64) -> Outcome {
        if value.is_finite() && value >= 0.0 {
            return Ok(());
        }
        Err(self.problem(
            key,
            format!("`{key}` is {value}"),
            "write a finite number, zero or more",
        ))
    }

    fn shape(&self, key: &str, shape: &[usize]) -> Outcome {
        if matches!(shape.len(), 1..=3) && !shape.contains(&0) {
            return Ok(());
        }
        let message = format!("`{key}` is {shape:?}");
        Err(self.problem(
            key,
            message,
            "write [features], [channels, length] or [channels, height, width], each at least 1",
        ))
    }
}

/// Checks one effective configuration; `tree` is what it was read from.
///
/// # Errors
/// The first problem.
pub fn check(scenario: &Scenario, tree: &Node) -> Outcome {
    let checker = Checker(tree);
    head(&checker, scenario)?;
    contradictions::kind(&checker, scenario)?;
    if scenario.kind == Kind::Collectives {
        devices(&checker, scenario)?;
        return measure(&checker, scenario);
    }
    model(&checker, scenario)?;
    data(&checker, scenario)?;
    contradictions::data(&checker, scenario)?;
    contradictions::train(&checker, scenario)?;
    contradictions::learning(&checker, scenario)?;
    parallel(&checker, scenario)?;
    contradictions::parallel(&checker, scenario)?;
    measure(&checker, scenario)
}

fn head(checker: &Checker, scenario: &Scenario) -> Outcome {
    let name = &scenario.name;
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty()
        || name.len() > 100
        || !name.chars().all(fits)
        || name.starts_with(['.', '-'])
    {
        let help = "it names folders: write up to 100 letters, digits, `-`, `_` and `.`, starting with a letter or digit";
        return Err(checker.problem(
            "name",
            format!("the name {name:?} cannot name a folder"),
            help,
        ));
    }
    Ok(())
}

fn model(checker: &Checker, scenario: &Scenario) -> Outcome {
    let model = &scenario.model;
    match (&model.preset, &model.layers) {
        (None, None) => {
            let help = format!(
                "write preset = \"...\" ({}) or layers = [...]",
                preset_names().join(", ")
            );
            return Err(checker.problem(
                "model",
                "the model has neither a preset nor layers",
                help,
            ));
        }
        (Some(_), Some(_)) => {
            let message = "the model has both a preset and layers";
            return Err(checker.problem("model.layers", message, "leave out one of them"));
        }
        (Some(preset), None) if !preset_names().contains(preset) => {
            let kind = ProblemKind::UnknownName {
                name: preset.clone(),
                allowed: preset_names(),
            };
            let path = [
                Segment::Key("model".to_owned()),
                Segment::Key("preset".to_owned()),
            ];
            return Err(Problem {
                kind,
                place: Some(checker.0.nearest(&path).place),
                path: path.to_vec(),
            });
        }
        _ => {}
    }
    for (key, given) in [
        ("model.input", model.input.is_some()),
        ("model.classes", model.classes.is_some()),
    ] {
        if given && model.preset.is_some() {
            let help = format!(
                "a preset brings its own; for synthetic samples of another size set {}",
                if key == "model.input" {
                    "data.shape"
                } else {
                    "data.classes"
                }
            );
            return Err(checker.problem(key, format!("`{key}` goes with layers in place"), help));
        }
    }
    model
        .input
        .as_deref()
        .map_or(Ok(()), |input| checker.shape("model.input", input))?;
    checker.at_least_one("model.classes", model.classes.unwrap_or(1))?;
    checker.at_least_one("model.norm_groups", model.norm_groups.unwrap_or(1))?;
    let meant_for = model.norm_momentum_batch;
    checker.at_least_one("model.norm_momentum_batch", meant_for.unwrap_or(1))?;
    if meant_for.is_some() && model.norm_momentum == Some(Momentum::Cumulative) {
        let message = "a cumulative average has no momentum to be made to fit a batch";
        let help = "leave it out, or write a number for norm_momentum, such as 0.1";
        return Err(checker.problem("model.norm_momentum_batch", message, help));
    }
    Ok(())
}

fn preset_names() -> Vec<String> {
    MODELS.iter().map(|(name, _)| (*name).to_owned()).collect()
}

fn data(checker: &Checker, scenario: &Scenario) -> Outcome {
    let data = &scenario.data;
    checker.at_least_one("data.batch_size", data.batch_size)?;
    if data.workers != 0 {
        let message = format!(
            "`data.workers` is {}; only 0 is supported now",
            data.workers
        );
        return Err(checker.problem(
            "data.workers",
            message,
            "write 0: the training thread loads its batches",
        ));
    }
    data.shape
        .as_deref()
        .map_or(Ok(()), |shape| checker.shape("data.shape", shape))?;
    checker.at_least_one("data.classes", data.classes.unwrap_or(1))
}

fn devices(checker: &Checker, scenario: &Scenario) -> Outcome {
    let devices = scenario.parallel.devices;
    checker.at_least_one("parallel.devices", devices)?;
    if devices > MAX_DEVICES {
        let message = format!("`parallel.devices` is {devices}");
        return Err(checker.problem(
            "parallel.devices",
            message,
            format!("write at most {MAX_DEVICES}"),
        ));
    }
    let threads = scenario.parallel.threads;
    checker.at_least_one("parallel.threads", threads)?;
    if threads > MAX_THREADS {
        let message = format!("{threads} threads a device");
        let help = format!("write at most {MAX_THREADS}");
        return Err(checker.problem("parallel.threads", message, help));
    }
    Ok(())
}

fn parallel(checker: &Checker, scenario: &Scenario) -> Outcome {
    devices(checker, scenario)?;
    let (devices, batch) = (scenario.parallel.devices, scenario.data.batch_size);
    let devices = if scenario.parallel.strategy == Strategy::Single {
        1
    } else {
        devices
    };
    let strong = scenario.parallel.scaling == Scaling::Strong;
    if strong && batch < devices {
        let message =
            format!("a global batch of {batch} leaves some of {devices} devices without a sample");
        let help = format!(
            "write a batch_size of at least {devices}, fewer devices, or scaling = \"weak\""
        );
        return Err(checker.problem("data.batch_size", message, help));
    }
    let micro_batches = scenario.train.accumulation;
    let replicas = if strong { 1 } else { devices };
    let global = batch
        .checked_mul(replicas)
        .and_then(|samples| samples.checked_mul(micro_batches));
    let (limit, whose) = match scenario.data.source {
        Source::Digits => (DIGITS, "training images of digits"),
        Source::FashionMnist => (fashion_mnist::TRAINING, "training images of Fashion-MNIST"),
        Source::Cifar10 => (cifar10::TRAINING, "training images of CIFAR-10"),
        // How many words a list has shows when it is read.
        Source::Text | Source::Synthetic => (MAX_BATCH, "that the engine can count"),
    };
    // What is held out is not trained on.
    let limit = match scenario.learns() {
        true => limit - (limit as f64 * scenario.evaluate.validation).round() as usize,
        false => limit,
    };
    if global.is_none_or(|global| global > limit) {
        let (step, or) = match micro_batches {
            1 => (String::new(), ""),
            several => (format!("{several} micro-batches of "), " or accumulation"),
        };
        let message = format!(
            "a step of {step}{batch} samples on {devices} devices takes more than the {limit} {whose}"
        );
        let help = format!("write a smaller batch_size{or}, or fewer devices");
        return Err(checker.problem("data.batch_size", message, help));
    }
    Ok(())
}

fn measure(checker: &Checker, scenario: &Scenario) -> Outcome {
    let measure = &scenario.measure;
    checker.at_least_one("measure.steps", measure.steps)?;
    checker.at_least_one("measure.repeats", measure.repeats)?;
    if scenario.kind == Kind::Collectives || scenario.learns() {
        return Ok(());
    }
    let times = [
        ("measure.min_time", measure.min_time, MIN_TIME, "a window"),
        (
            "measure.warmup_time",
            measure.warmup_time,
            WARMUP_TIME,
            "a warm-up",
        ),
    ];
    for (key, time, least, what) in times {
        if time < least && !measure.smoke {
            let message = format!(
                "`{key}` is {}; {what} worth citing takes at least {}",
                words(time),
                words(least)
            );
            let help = "write more, or `measure.smoke = true`, which labels every figure as too short to cite";
            return Err(checker.problem(key, message, help));
        }
    }
    let windows = if measure.unsynchronized { 2 } else { 1 };
    let shortest = measure
        .min_time
        .0
        .checked_mul(windows)
        .and_then(|time| time.checked_add(measure.warmup_time.0));
    if shortest.is_none_or(|shortest| shortest >= measure.timeout.0) {
        let message = format!(
            "a timeout of {} ends before warm-up and windows can",
            words(measure.timeout)
        );
        let help = "write a longer timeout, or shorter times; the window and its arm without synchronization take min_time each";
        return Err(checker.problem("measure.timeout", message, help));
    }
    Ok(())
}

fn words(time: TimeSpan) -> String {
    jiff::SignedDuration::try_from(time.0)
        .map_or_else(|_| format!("{:?}", time.0), |signed| format!("{signed:#}"))
}
