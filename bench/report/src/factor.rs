//! What two trials must share to be compared, and what the factor of a comparison lets differ.
//!
//! Contract: a setting is a column of `trials.csv` under its key in a scenario. Two trials are compared fairly if they are
//! equal in every setting but the factor and what follows from it: a strategy brings options that another one lacks, a
//! bucket cap brings its first bucket's. Reference: METHODOLOGY.md, "What is compared".
use syncmark_record::{rows::TrialRow, size};

use crate::chart::curves::binary_bytes;

/// A setting of a trial by its key in a scenario; empty where the trial has none.
type Setting = (&'static str, fn(&TrialRow) -> String);

/// Every setting that must be equal, unless the factor frees it.
const SETTINGS: [Setting; 29] = [
    ("kind", |t| t.kind.clone()),
    ("model.preset", |t| t.model.clone()),
    ("model.norm", |t| t.norm.clone()),
    ("data.source", |t| t.data.clone()),
    ("data.batch_size", |t| batch_size(t).to_string()),
    ("train.optimizer", |t| text(&t.optimizer)),
    ("train.schedule", |t| text(&t.schedule)),
    ("train.accumulation", |t| text(&t.accumulation)),
    ("train.precision", |t| text(&t.precision)),
    ("train.cuda_graph", |t| text(&t.cuda_graph)),
    ("train.cuda_batch_norm", |t| text(&t.cuda_batch_norm)),
    ("train.cuda_matmul", |t| text(&t.cuda_matmul)),
    ("parallel.strategy", |t| t.strategy.clone()),
    ("parallel.launch", |t| text(&t.launch)),
    ("parallel.transport", transport),
    ("parallel.dp_loss", |t| text(&t.dp_loss)),
    ("parallel.dp_transport", dp_transport),
    ("parallel.backend", |t| t.backend.clone()),
    ("parallel.devices", |t| t.devices.to_string()),
    ("parallel.threads", |t| t.threads.unwrap_or(1).to_string()),
    ("parallel.scaling", |t| t.scaling.clone()),
    ("parallel.bucket_cap", |t| text(&t.bucket_cap_bytes)),
    ("parallel.first_bucket_cap", |t| {
        text(&t.first_bucket_cap_bytes)
    }),
    ("parallel.overlap", |t| text(&t.overlap)),
    ("parallel.no_sync", |t| text(&t.no_sync)),
    ("parallel.compression", |t| text(&t.compression)),
    ("parallel.broadcast_buffers", |t| text(&t.broadcast_buffers)),
    ("parallel.device_ids", |t| text(&t.device_ids)),
    ("parallel.output_device", |t| text(&t.output_device)),
];

fn text<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map(T::to_string).unwrap_or_default()
}

/// The transport between ranks; DP's copies are no choice.
fn transport(trial: &TrialRow) -> String {
    trial
        .transport
        .clone()
        .filter(|name| name != "copies")
        .unwrap_or_default()
}

/// How DP replicates and reduces; on CPUs, and before there was a choice, by copies.
fn dp_transport(trial: &TrialRow) -> String {
    match trial.strategy.as_str() {
        "dp" => trial
            .dp_transport
            .clone()
            .unwrap_or_else(|| "peer-copy".into()),
        _ => String::new(),
    }
}

/// The value of a factor in a trial's row; the outer `None` says that the factor is unknown.
pub(crate) fn factor_value(factor: &str, trial: Option<&TrialRow>) -> Option<String> {
    let trial = trial?;
    if factor == "variant" {
        return Some(trial.variant.clone().unwrap_or_default());
    }
    let (_, value) = SETTINGS.iter().find(|(key, _)| *key == factor)?;
    Some(value(trial))
}

/// A baseline as the records have it: sizes are bytes there.
pub(crate) fn as_recorded(factor: &str, baseline: &str) -> String {
    let is_size = matches!(factor, "parallel.bucket_cap" | "parallel.first_bucket_cap");
    match size::parse(baseline).filter(|_| is_size) {
        Some(bytes) => bytes.to_string(),
        None => baseline.to_owned(),
    }
}

/// Whether a recorded value is the one that a baseline names: an optimizer or a schedule may be named without its settings.
pub(crate) fn is_named(factor: &str, recorded: &str, wanted: &str) -> bool {
    let bare = matches!(factor, "train.optimizer" | "train.schedule");
    recorded == wanted || (bare && recorded.split(' ').next() == Some(wanted))
}

/// A recorded value as a reader knows it: with its key where the value alone says nothing.
pub(crate) fn in_words(factor: &str, value: &str) -> String {
    let key = factor
        .rsplit('.')
        .next()
        .unwrap_or(factor)
        .replace('_', " ");
    match factor {
        "parallel.bucket_cap" | "parallel.first_bucket_cap" => {
            let bytes = value
                .parse()
                .map_or_else(|_| value.to_owned(), binary_bytes);
            format!("{key} {bytes}")
        }
        "data.batch_size"
        | "parallel.devices"
        | "parallel.threads"
        | "parallel.overlap"
        | "parallel.no_sync"
        | "parallel.broadcast_buffers" => format!("{key} {value}"),
        "parallel.dp_transport" => match value {
            "nccl" => "DP over NCCL".to_owned(),
            _ => "DP by peer copies".to_owned(),
        },
        "train.cuda_graph" => match value {
            "true" => "one CUDA graph".to_owned(),
            _ => "kernels one by one".to_owned(),
        },
        "train.cuda_batch_norm" => match value {
            "cudnn" => "cuDNN's batch norm".to_owned(),
            _ => "our batch norm".to_owned(),
        },
        "train.cuda_matmul" => match value {
            "cublaslt" => "cuBLASLt".to_owned(),
            "cublas" => "cuBLAS".to_owned(),
            _ => value.to_owned(),
        },
        "train.accumulation" => match value {
            "1" => "1 micro-batch".to_owned(),
            _ => format!("{value} micro-batches"),
        },
        _ => value.to_owned(),
    }
}

/// Samples that a scenario's `batch_size` stands for: those of one micro-batch.
pub(crate) fn batch_size(trial: &TrialRow) -> u64 {
    let micro_batches = trial.accumulation.unwrap_or(1).max(1);
    let devices = match trial.scaling.as_str() {
        "strong" => 1,
        _ => u64::from(trial.devices.max(1)),
    };
    trial.global_batch / micro_batches / devices
}

/// Settings that may differ when this factor does, whatever their values.
fn free(factor: &str) -> &'static [&'static str] {
    match factor {
        "parallel.strategy" => &[
            "parallel.strategy",
            "parallel.dp_loss",
            "parallel.dp_transport",
        ],
        "parallel.scaling" => &["parallel.scaling", "data.batch_size"],
        "parallel.bucket_cap" => &["parallel.bucket_cap", "parallel.first_bucket_cap"],
        // A variant is a set of settings that its author wants compared.
        "variant" => &[
            "model.norm",
            "train.optimizer",
            "train.schedule",
            "train.accumulation",
            "train.precision",
            "train.cuda_graph",
            "train.cuda_batch_norm",
            "train.cuda_matmul",
            "parallel.strategy",
            "parallel.launch",
            "parallel.threads",
            "parallel.transport",
            "parallel.dp_loss",
            "parallel.dp_transport",
            "parallel.bucket_cap",
            "parallel.first_bucket_cap",
            "parallel.overlap",
            "parallel.no_sync",
            "parallel.compression",
            "parallel.broadcast_buffers",
            "parallel.device_ids",
            "parallel.output_device",
        ],
        _ => &[],
    }
}

/// Settings that may differ where one of the trials has none: what only one of two strategies has is no unfairness, nor
/// is `no_sync`, which means nothing with one micro-batch.
fn free_where_absent(factor: &str, key: &str) -> bool {
    match factor {
        "parallel.strategy" => key.starts_with("parallel."),
        "train.accumulation" => key == "parallel.no_sync",
        // Other norms are nobody's but ours.
        "model.norm" => key == "train.cuda_batch_norm",
        _ => false,
    }
}

/// Whether two trials may be compared in this factor.
pub(crate) fn fair(a: &TrialRow, b: &TrialRow, factor: &str) -> bool {
    let equal = |(key, value): &Setting| {
        let (left, right) = (value(a), value(b));
        left == right
            || *key == factor
            || free(factor).contains(key)
            || ((left.is_empty() || right.is_empty()) && free_where_absent(factor, key))
    };
    // Two variants that no column tells apart differ in something that no column shows.
    let hidden = a.variant != b.variant && SETTINGS.iter().all(|(_, value)| value(a) == value(b));
    (factor == "variant" || factor == "parallel.strategy" || !hidden)
        && SETTINGS.iter().all(|setting| equal(setting))
}

/// Whether two trials differ, if at all, in how the work is shared out and exchanged.
pub(crate) fn train_alike(a: &TrialRow, b: &TrialRow) -> bool {
    let others = SETTINGS
        .iter()
        .filter(|(key, _)| !key.starts_with("parallel."));
    others.into_iter().all(|(_, value)| value(a) == value(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ddp() -> TrialRow {
        TrialRow {
            strategy: "ddp".into(),
            launch: Some("processes".into()),
            transport: Some("shared".into()),
            devices: 2,
            global_batch: 64,
            bucket_cap_bytes: Some(25 << 20),
            first_bucket_cap_bytes: Some(1 << 20),
            overlap: Some(true),
            accumulation: Some(1),
            compression: Some("none".into()),
            broadcast_buffers: Some(true),
            ..TrialRow::unknown("a")
        }
    }

    #[test]
    fn a_factor_frees_itself_and_what_follows_from_it() {
        let small = TrialRow {
            bucket_cap_bytes: Some(1 << 16),
            first_bucket_cap_bytes: Some(1 << 16),
            ..ddp()
        };
        assert!(fair(&small, &ddp(), "parallel.bucket_cap"));
        assert!(!fair(&small, &ddp(), "parallel.transport"));
        // A step of four micro-batches has the samples of all four.
        let several = TrialRow {
            accumulation: Some(4),
            global_batch: 4 * 64,
            no_sync: Some(false),
            ..ddp()
        };
        assert!(fair(&several, &ddp(), "train.accumulation"));
        let smaller = TrialRow {
            global_batch: 64,
            ..several.clone()
        };
        assert!(!fair(&smaller, &ddp(), "train.accumulation"));
        assert!(!fair(&several, &ddp(), "parallel.no_sync"));
    }

    #[test]
    fn strategies_may_lack_each_others_options_and_must_share_those_that_both_have() {
        let dp = TrialRow {
            strategy: "dp".into(),
            transport: Some("copies".into()),
            dp_loss: Some("gathered".into()),
            accumulation: Some(1),
            devices: 2,
            global_batch: 64,
            ..TrialRow::unknown("b")
        };
        assert!(fair(&dp, &ddp(), "parallel.strategy"));
        let zero = TrialRow {
            strategy: "zero1".into(),
            compression: None,
            overlap: None,
            ..ddp()
        };
        assert!(fair(&zero, &ddp(), "parallel.strategy"));
        let over_tcp = TrialRow {
            transport: Some("tcp".into()),
            ..zero.clone()
        };
        assert!(!fair(&over_tcp, &ddp(), "parallel.strategy"));
        let threads = TrialRow {
            launch: Some("threads".into()),
            ..zero
        };
        assert!(!fair(&threads, &ddp(), "parallel.strategy"));
    }

    #[test]
    fn whose_batch_norm_it_is_must_be_equal_where_both_have_it() {
        let by = |norm: &str, by: Option<&str>| TrialRow {
            norm: norm.into(),
            cuda_batch_norm: by.map(str::to_owned),
            ..ddp()
        };
        let (own, cudnn) = (by("batch", Some("own")), by("batch", Some("cudnn")));
        assert!(fair(&cudnn, &own, "train.cuda_batch_norm"));
        assert!(!fair(&cudnn, &own, "model.norm"));
        for batch in [&own, &cudnn] {
            assert!(fair(batch, &by("group", None), "model.norm"));
            assert!(!fair(batch, &by("batch", None), "parallel.overlap"));
        }
    }

    #[test]
    fn every_setting_is_a_factor_and_sizes_are_read() {
        let trial = ddp();
        for (key, _) in SETTINGS {
            assert!(factor_value(key, Some(&trial)).is_some(), "{key}");
        }
        assert_eq!(factor_value("parallel.colour", Some(&trial)), None);
        assert_eq!(as_recorded("parallel.bucket_cap", "25MiB"), "26214400");
        assert_eq!(as_recorded("data.batch_size", "32"), "32");
        let sgd = "sgd learning_rate=0.1";
        assert!(is_named("train.optimizer", sgd, "sgd") && is_named("train.optimizer", sgd, sgd));
        assert!(!is_named(
            "train.optimizer",
            "sgd-nesterov learning_rate=0.1",
            "sgd"
        ));
        assert!(!is_named("variant", "sgd small", "sgd"));
        assert_eq!(
            in_words("parallel.bucket_cap", "65536"),
            "bucket cap 64 KiB"
        );
        assert_eq!(in_words("data.batch_size", "32"), "batch size 32");
        assert_eq!(in_words("parallel.compression", "fp16"), "fp16");
    }

    #[test]
    fn dp_before_there_was_a_choice_copied() {
        let dp = |transport: Option<&str>| TrialRow {
            strategy: "dp".into(),
            backend: "cuda".into(),
            dp_transport: transport.map(str::to_owned),
            ..TrialRow::unknown("a")
        };
        let key = "parallel.dp_transport";
        let (copies, nccl) = (dp(Some("peer-copy")), dp(Some("nccl")));
        assert!(fair(&dp(None), &copies, "train.precision"));
        assert!(!fair(&nccl, &copies, "train.precision"));
        assert!(fair(&nccl, &copies, key));
        assert!(fair(&nccl, &ddp_like(&nccl), "parallel.strategy"));
        assert_eq!(factor_value(key, Some(&dp(None))).unwrap(), "peer-copy");
        assert_eq!(factor_value(key, Some(&ddp())).unwrap(), "");
        assert_eq!(in_words(key, "nccl"), "DP over NCCL");
        assert_eq!(in_words(key, "peer-copy"), "DP by peer copies");
    }

    /// A trial of another strategy that is like this one otherwise.
    fn ddp_like(dp: &TrialRow) -> TrialRow {
        TrialRow {
            strategy: "ddp".into(),
            dp_transport: None,
            transport: Some("nccl".into()),
            launch: Some("processes".into()),
            ..dp.clone()
        }
    }
}
