//! Options of strategies and training that cannot mean anything, alone or together.
//!
//! Contract: looks at the keys that the strategy uses; what it does not use is dropped by the plan, so that a sweep over
//! strategies may carry the options of each. Reference: the constructors of `torch.nn.DataParallel`,
//! `DistributedDataParallel` and `PowerSGDState`.
use crate::scenario::check::Checker;
use crate::scenario::file::{
    BUCKET_CAP, Compression, EvaluationSplit, Kind, Optimizer, Parallel, Scenario, Schedule,
    Source, Strategy,
};
use crate::scenario::problem::Problem;
use crate::scenario::size::ByteSize;
use crate::scenario::tree::{Node, Value};

/// Smaller buckets than one element hold nothing.
const SMALLEST_BUCKET: ByteSize = ByteSize(4);
/// Four buffers of this size are held by every rank.
const LARGEST_MESSAGE: ByteSize = ByteSize(4 << 30);
/// PyTorch starts PowerSGD after the first iterations, because buckets are rebuilt in them.
const EARLIEST_POWERSGD: usize = 2;

type Outcome = Result<(), Problem>;

/// Most sizes of a message: more would be a slip.
const MOST_SIZES: u32 = 64;

/// Sections that the kind has no use for. Looked at before the scenario is read, which would ask for what they lack.
///
/// # Errors
/// The first such section.
pub fn sections(tree: &Node) -> Outcome {
    let kind = tree.entry("kind").map(|entry| &entry.node.value);
    if kind != Some(&Value::String("collectives".to_owned())) {
        return Ok(());
    }
    for section in ["model", "data", "train", "evaluate"] {
        if tree.entry(section).is_some() {
            let message = format!("collectives alone have no `{section}`");
            let help = "leave it out: [collectives] says which messages are exchanged, and [parallel] between whom";
            return Err(Checker(tree).problem(section, message, help));
        }
    }
    Ok(())
}

/// What the kind needs, and its own table.
///
/// # Errors
/// The first problem.
pub fn kind(checker: &Checker, scenario: &Scenario) -> Outcome {
    let exchanges = matches!(scenario.kind, Kind::Collectives | Kind::Acceptance);
    if scenario.kind != Kind::Collectives {
        match checker.0.entry("data") {
            Some(_) if exchanges => {}
            Some(_) => return Ok(()),
            None => {
                let help = "write [data] with a source and a batch_size";
                return Err(checker.problem("data", "the section `data` is missing", help));
            }
        }
    }
    let collectives = &scenario.collectives;
    if collectives.operations.is_empty() {
        let message = "`collectives.operations` is empty";
        let help = "write at least one, such as [\"all-reduce\"], or leave it out for all";
        return Err(checker.problem("collectives.operations", message, help));
    }
    checker.at_least_one("collectives.iterations", collectives.iterations as usize)?;
    let (from, to) = (collectives.from, collectives.to);
    for (key, size) in [("collectives.from", from), ("collectives.to", to)] {
        if size.0 < 4 || !size.0.is_multiple_of(4) || size > LARGEST_MESSAGE {
            let message = format!("`{key}` is {size}");
            let help = format!("write whole elements of 4 bytes, at most {LARGEST_MESSAGE}");
            return Err(checker.problem(key, message, help));
        }
    }
    if from > to {
        let message = format!("messages from {from} to {to}");
        return Err(checker.problem("collectives.from", message, "write the smaller size first"));
    }
    let sizes = (to.0 / from.0)
        .checked_ilog(collectives.factor)
        .filter(|_| collectives.factor > 1);
    if sizes.is_none_or(|sizes| sizes >= MOST_SIZES) {
        let message = format!("`collectives.factor` is {}", collectives.factor);
        return Err(checker.problem("collectives.factor", message, "write 2 or more, such as 4"));
    }
    Ok(())
}

/// Optimizer, schedule and accumulation.
///
/// # Errors
/// The first problem.
pub fn train(checker: &Checker, scenario: &Scenario) -> Outcome {
    let train = &scenario.train;
    checker.at_least_one("train.accumulation", train.accumulation)?;
    checker.at_least_one(
        "train.learning_rate_batch",
        train.learning_rate_batch.unwrap_or(1),
    )?;
    match &train.optimizer {
        Optimizer::Sgd(sgd) => {
            checker.not_negative("train.optimizer.sgd.learning_rate", sgd.learning_rate)?;
            checker.not_negative("train.optimizer.sgd.momentum", sgd.momentum)?;
            checker.not_negative("train.optimizer.sgd.weight_decay", sgd.weight_decay)?;
            if sgd.nesterov && sgd.momentum == 0.0 {
                let help = "write momentum = 0.9, or leave nesterov out";
                let key = "train.optimizer.sgd.nesterov";
                return Err(checker.problem(key, "Nesterov's momentum without momentum", help));
            }
        }
        Optimizer::Adamw(adam) => {
            checker.not_negative("train.optimizer.adamw.learning_rate", adam.learning_rate)?;
            checker.not_negative("train.optimizer.adamw.weight_decay", adam.weight_decay)?;
            checker.not_negative("train.optimizer.adamw.eps", adam.eps)?;
            for (key, beta) in [("beta1", adam.beta1), ("beta2", adam.beta2)] {
                if !(0.0..1.0).contains(&beta) {
                    let key = format!("train.optimizer.adamw.{key}");
                    let message = format!("`{key}` is {beta}");
                    return Err(checker.problem(&key, message, "write 0 or more, and below 1"));
                }
            }
        }
    }
    schedule(checker, &train.schedule)
}

/// What learning needs, and what only it has.
///
/// # Errors
/// The first problem.
pub fn learning(checker: &Checker, scenario: &Scenario) -> Outcome {
    let (train, evaluate) = (&scenario.train, &scenario.evaluate);
    // An end that is given makes a trial of an acceptance learn.
    if scenario.kind == Kind::Acceptance && !scenario.learns() {
        return Ok(());
    }
    if scenario.kind != Kind::Learning && scenario.measure.concurrent {
        let message = "trials that are timed never run side by side";
        let help = "leave `measure.concurrent` out: it goes with kind = \"learning\"";
        return Err(checker.problem("measure.concurrent", message, help));
    }
    if !scenario.learns() {
        let given = [
            ("train.epochs", train.epochs.is_some()),
            ("train.steps", train.steps.is_some()),
            (
                "train.normalization_batch",
                train.normalization_batch.is_some(),
            ),
            ("evaluate", checker.0.entry("evaluate").is_some()),
        ];
        return match given.iter().find(|(_, given)| *given) {
            Some((key, _)) => {
                let message = format!("`{key}` goes with kind = \"learning\"");
                let help = "leave it out, or write kind = \"learning\"; what is only timed takes measure.steps";
                Err(checker.problem(key, message, help))
            }
            None => Ok(()),
        };
    }
    match (train.epochs, train.steps) {
        (None, None) => {
            let message = "nothing says how long it learns";
            return Err(checker.problem("train", message, "write epochs = 10, or steps = 1000"));
        }
        (Some(_), Some(_)) => {
            let message = "both `train.epochs` and `train.steps`";
            return Err(checker.problem("train.steps", message, "leave one of them out"));
        }
        (epochs, steps) => {
            checker.at_least_one("train.epochs", epochs.unwrap_or(1))?;
            checker.at_least_one("train.steps", steps.unwrap_or(1))?;
        }
    }
    checker.at_least_one("evaluate.every", evaluate.every.unwrap_or(1))?;
    if !(0.0..1.0).contains(&evaluate.validation) {
        let message = format!("`evaluate.validation` is {}", evaluate.validation);
        let help = "write a share of the training samples, such as 0.1";
        return Err(checker.problem("evaluate.validation", message, help));
    }
    if evaluate.validation == 0.0 && evaluate.split == EvaluationSplit::Validation {
        let message = "validation without samples for it";
        let help = "write validation = 0.1, or split = \"test\"";
        return Err(checker.problem("evaluate.validation", message, help));
    }
    if scenario.data.source == Source::Synthetic {
        let message = "synthetic samples have nothing to learn";
        let help = "write source = \"digits\", \"fashion-mnist\", \"cifar10\" or \"text\"";
        return Err(checker.problem("data.source", message, help));
    }
    let batch = scenario.data.batch_size;
    match train.normalization_batch {
        Some(own) if own == 0 || !batch.is_multiple_of(own) => {
            let message =
                format!("a normalization batch of {own} does not divide the batch of {batch}");
            let divisors: Vec<String> = (1..=batch)
                .filter(|n| batch.is_multiple_of(*n))
                .map(|n| n.to_string())
                .collect();
            let help = format!("write one of {}", divisors.join(", "));
            Err(checker.problem("train.normalization_batch", message, help))
        }
        _ => Ok(()),
    }
}

fn schedule(checker: &Checker, schedule: &Schedule) -> Outcome {
    match schedule {
        Schedule::Constant => Ok(()),
        Schedule::WarmUp(warm_up) => {
            checker.at_least_one("train.schedule.warm-up.steps", warm_up.steps)?;
            if (0.0..=1.0).contains(&warm_up.start) {
                return Ok(());
            }
            let key = "train.schedule.warm-up.start";
            let message = format!("`{key}` is {}", warm_up.start);
            Err(checker.problem(key, message, "write a share from 0 to 1"))
        }
        Schedule::Step(step) => {
            checker.at_least_one("train.schedule.step.every", step.every)?;
            checker.not_negative("train.schedule.step.factor", step.factor)
        }
        Schedule::Cosine(cosine) => {
            checker.at_least_one("train.schedule.cosine.steps", cosine.steps)?;
            checker.not_negative("train.schedule.cosine.minimum", cosine.minimum)
        }
    }
}

/// Where the data comes from.
///
/// # Errors
/// A path for a source that reads no files.
pub fn data(checker: &Checker, scenario: &Scenario) -> Outcome {
    let reads_files = matches!(
        scenario.data.source,
        Source::FashionMnist | Source::Cifar10 | Source::Text
    );
    let swept = checker.0.entry("sweep").is_some() || checker.0.entry("variant").is_some();
    if scenario.data.path.is_some() && !reads_files && !swept {
        let message = "this source reads no files, so it has no path";
        let help =
            "leave data.path out, or write source = \"fashion-mnist\", \"cifar10\" or \"text\"";
        return Err(checker.problem("data.path", message, help));
    }
    Ok(())
}

/// Options of the strategy that is used.
///
/// # Errors
/// The first problem.
pub fn parallel(checker: &Checker, scenario: &Scenario) -> Outcome {
    let parallel = &scenario.parallel;
    match parallel.strategy {
        Strategy::Single | Strategy::Independent => Ok(()),
        Strategy::Dp => data_parallel(checker, parallel),
        Strategy::Ddp => {
            buckets(checker, parallel)?;
            compression(checker, scenario)
        }
        Strategy::Zero1 => {
            buckets(checker, parallel)?;
            if scenario.train.accumulation > 1 && !parallel.no_sync {
                let message = "ZeRO-1 that reduces every micro-batch's gradients";
                let help = "write no_sync = true, or strategy = \"ddp\": a rank keeps the mean of its own shard alone, and could not add \
                            to the others' in the next micro-batch";
                return Err(checker.problem("parallel.no_sync", message, help));
            }
            if parallel.compression == Compression::None {
                return Ok(());
            }
            let message = "ZeRO-1 exchanges gradients and parameters uncompressed";
            let help = "write compression = \"none\", or strategy = \"ddp\"";
            Err(checker.problem("parallel.compression", message, help))
        }
    }
}

fn buckets(checker: &Checker, parallel: &Parallel) -> Outcome {
    let caps = [
        ("parallel.bucket_cap", Some(parallel.bucket_cap)),
        ("parallel.first_bucket_cap", parallel.first_bucket_cap),
    ];
    for (key, cap) in caps {
        if cap.is_some_and(|cap| cap < SMALLEST_BUCKET) {
            let message = format!("`{key}` is {}", cap.unwrap_or(BUCKET_CAP));
            return Err(checker.problem(
                key,
                message,
                "write at least 4B, one element of a gradient",
            ));
        }
    }
    match parallel.first_bucket_cap {
        Some(first) if first > parallel.bucket_cap => {
            let message = format!(
                "the first bucket's cap of {first} is larger than the others' of {}",
                parallel.bucket_cap
            );
            let help = "the first bucket is there to start early: write a smaller one";
            Err(checker.problem("parallel.first_bucket_cap", message, help))
        }
        _ => Ok(()),
    }
}

fn compression(checker: &Checker, scenario: &Scenario) -> Outcome {
    let Compression::Powersgd(power) = scenario.parallel.compression else {
        return Ok(());
    };
    checker.at_least_one("parallel.compression.powersgd.rank", power.rank)?;
    if power.start_step < EARLIEST_POWERSGD && (power.error_feedback || power.warm_start) {
        let key = "parallel.compression.powersgd.start_step";
        let message = format!("PowerSGD starts at step {}", power.start_step);
        let help = "write start_step = 2 or more: buckets are rebuilt after the first step, and what error feedback and warm start \
                    remember belongs to a bucket";
        return Err(checker.problem(key, message, help));
    }
    if scenario.train.accumulation > 1 && scenario.parallel.no_sync {
        let message = "PowerSGD with micro-batches that are not synchronized";
        let help = "write no_sync = false, accumulation = 1, or another compression: the error of a step is meant for the next \
                    synchronized gradient, and here that would be one of another number of micro-batches";
        return Err(checker.problem("parallel.compression", message, help));
    }
    Ok(())
}

fn data_parallel(checker: &Checker, parallel: &Parallel) -> Outcome {
    let devices = parallel.devices;
    let order = match &parallel.device_ids {
        Some(order) => order.clone(),
        None => (0..devices).collect(),
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..devices) {
        let message = format!("`device_ids` is {order:?} on {devices} devices");
        let help = format!(
            "write each of {:?} once, in the order in which they take chunks; the first holds the master",
            (0..devices).collect::<Vec<_>>()
        );
        return Err(checker.problem("parallel.device_ids", message, help));
    }
    if let Some(output) = parallel.output_device.filter(|output| *output >= devices) {
        let message = format!("`output_device` is {output} on {devices} devices");
        let help = format!("write one of device_ids: {order:?}");
        return Err(checker.problem("parallel.output_device", message, help));
    }
    if parallel.dim != 0 {
        let message = format!("DP would scatter dimension {}", parallel.dim);
        let help = "write dim = 0: models and data here have their samples in the first dimension, and any other would cut \
                    samples apart instead of sharing them out";
        return Err(checker.problem("parallel.dim", message, help));
    }
    Ok(())
}
