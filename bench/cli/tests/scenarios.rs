//! Every shipped scenario: the smoke sizes run to their end and leave what they promise, the others plan.
//!
//! The smoke sizes run one at a time in one test, because they time things. What a figure is does not matter here; that every
//! trial passed its gate, that counted bytes are the predicted ones, and that the report has its charts and its answer does.
//! Smoke sizes for GPUs run where there is one and all libraries are; elsewhere they are planned and refused with what is missing, this prints why, and
//! SYNCMARK_REQUIRE_GPU=1 makes it a failure.
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Instant;

use assert_cmd::Command;
use syncmark::args::ScenarioArgs;
use syncmark::plan::backend::Choice;
use syncmark::plan::config::Backend;
use syncmark::plan::{Plan, Trial, plans};
use syncmark::scenario::file::Transport;
use syncmark::scenario::preset::SCENARIOS;
use syncmark_engine::backend::cuda::discovery;
use syncmark_engine::model::resolve;
use syncmark_engine::model::spec::Norm;
use syncmark_record::folder::RunFolder;
use syncmark_record::outcome::Outcome;
use syncmark_record::rows::{CeilingRow, CollectiveRow, CommRow, LayerRow, TrialRow};

/// Charts that a smoke size must have beside those of every run, as beginnings of file names.
const CHARTS: [(&str, &[&str]); 23] = [
    (
        "accumulation-smoke",
        &["throughput-and-step-time-against-accumulated-micro-batches"],
    ),
    (
        "batch-size-smoke",
        &["throughput-and-step-time-against-batch-size"],
    ),
    ("bn-batch-size-paper-arm-smoke", &["error-against-batch"]),
    (
        "bn-batch-size-smoke",
        &[
            "error-against-normalization-batch",
            "paired-differences-of-errors",
            "noise-of-batch-statistics",
            "learning-curves",
        ],
    ),
    ("bucket-size-smoke", &["step-time-against-bucket-size"]),
    ("collectives-smoke", &["collectives"]),
    ("communication-volume-smoke", &["bytes-"]),
    ("compression-smoke", &["compression-", "bytes-"]),
    (
        "dp-vs-ddp-smoke",
        &["throughput", "time", "bytes", "timeline", "memory"],
    ),
    ("gpu-dispatch-smoke", &["throughput", "time", "memory"]),
    (
        "gpu-acceptance-smoke",
        &["collectives", "learning-curves", "throughput"],
    ),
    ("gpu-collectives-smoke", &["collectives"]),
    (
        "gpu-dp-vs-ddp-smoke",
        &["throughput", "time", "bytes", "timeline", "memory"],
    ),
    ("gpu-norm-cost-smoke", &["norm-cost-", "throughput"]),
    ("layer-cost-smoke", &["layers-"]),
    ("norm-cost-smoke", &["norm-cost-", "throughput", "bytes-"]),
    ("norm-convergence-smoke", &["learning-curves"]),
    (
        "norm-text-smoke",
        &["paired-differences-of-errors", "learning-curves"],
    ),
    ("scaling-smoke", &["weak-strong-", "efficiency"]),
    (
        "sync-bn-smoke",
        &[
            "error-against-normalization-batch",
            "paired-differences-of-errors",
            "learning-curves",
        ],
    ),
    (
        "train-eval-gap-smoke",
        &["train-and-eval-gap", "learning-curves"],
    ),
    ("transports-smoke", &["time-", "bytes-"]),
    ("zero1-smoke", &["time-", "bytes-", "memory-"]),
];

/// Files of every run folder.
const FILES: [&str; 7] = [
    "environment.json",
    "scenario.toml",
    "trials.csv",
    "repeats.csv",
    "report.html",
    "report.md",
    "trace.json",
];

fn syncmark(arguments: &[&str]) -> Output {
    Command::cargo_bin("syncmark")
        .expect("the binary is built")
        .args(arguments)
        .output()
        .expect("the binary starts")
}

fn smoke_sizes() -> impl Iterator<Item = &'static str> {
    let names = SCENARIOS.iter().map(|(name, _)| *name);
    names.filter(|name| name.ends_with("-smoke"))
}

/// The plan on a machine without GPUs.
fn plan(name: &str) -> Plan {
    let args = ScenarioArgs {
        scenarios: vec![name.to_owned()],
        ..ScenarioArgs::default()
    };
    let planned = plans(&args, false, &|_| Choice::cpu("is not asked"));
    let mut planned = planned.unwrap_or_else(|error| panic!("{name}: {}", error.render(false)));
    planned.remove(0)
}

fn is_on_gpus(trial: &Trial) -> bool {
    trial.config.backend == Backend::Cuda
}

/// Why no GPU can be used here, if there is none.
fn no_gpus() -> Option<String> {
    let lacks = discovery::available(true).err()?;
    let words: Vec<String> = lacks.iter().map(ToString::to_string).collect();
    Some(words.join("; "))
}

/// A smoke size that needs a GPU, where there is none: `plan` shows it, and `run` says what is missing and writes nothing.
fn is_planned_and_refused(name: &str, why: &str) {
    let required = std::env::var_os("SYNCMARK_REQUIRE_GPU").is_some_and(|value| value == "1");
    assert!(
        !required,
        "SYNCMARK_REQUIRE_GPU is set, and {name} cannot run: {why}"
    );
    println!("{name} is planned and not run: {why}");
    let planned = syncmark(&["plan", name]);
    let text = String::from_utf8_lossy(&planned.stdout);
    assert_eq!(planned.status.code(), Some(0), "{name}: {text}");
    for trial in &plan(name).trials {
        assert!(text.contains(&trial.id), "{name}: {} in {text}", trial.id);
    }
    let refusal = "the backend cuda cannot be used here:";
    assert!(text.contains(refusal), "{name}: {text}");
    let out = tempfile::tempdir().expect("a folder for the test");
    let path = out.path().to_str().expect("a path that is text");
    let output = syncmark(&["run", "--quiet", "--out", path, name]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{name}: {complaints}");
    assert!(complaints.contains(refusal), "{name}: {complaints}");
    let written = std::fs::read_dir(out.path()).expect("the folder").count();
    assert_eq!(written, 0, "{name} left something");
}

#[test]
fn smoke_sizes_run_to_their_end() {
    let no_gpus = no_gpus();
    for name in smoke_sizes() {
        if let Some(why) = &no_gpus
            && plan(name).trials.iter().any(is_on_gpus)
        {
            is_planned_and_refused(name, why);
            continue;
        }
        let begin = Instant::now();
        let out = tempfile::tempdir().expect("a folder for the test");
        let path = out.path().to_str().expect("a path that is text");
        let output = syncmark(&["run", "--quiet", "--out", path, name]);
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{name}: {shown}{complaints}");
        // A test's output is shown with --nocapture; where the minutes of this test go is worth knowing.
        println!("{name}: {:.1} s", begin.elapsed().as_secs_f64());
        let folder = run_folder(out.path());
        trials_passed(name, &folder);
        bytes_agree(name, &folder);
        files_are_there(name, &folder);
        answer_is_given(name, &folder, &shown);
    }
}

fn run_folder(out: &Path) -> RunFolder {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(out)
        .expect("a folder of runs")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    RunFolder::open(folders.remove(0)).expect("a run folder")
}

fn trials_passed(name: &str, folder: &RunFolder) {
    let trials: Vec<TrialRow> = folder.read().expect("trials");
    assert!(!trials.is_empty(), "{name}");
    for trial in &trials {
        let outcome = (trial.outcome, &trial.reason);
        assert_eq!(outcome, (Outcome::Passed, &None), "{name}: {}", trial.label);
        assert!(trial.repeats > 0, "{name}: {}", trial.label);
        let steps = trial.step_ms.is_some_and(|ms| ms > 0.0);
        assert!(
            steps || matches!(trial.kind.as_str(), "collectives" | "learning"),
            "{name}: {}",
            trial.label
        );
    }
}

/// Row by row, and at least one row wherever devices exchange something.
fn bytes_agree(name: &str, folder: &RunFolder) {
    let trials: Vec<TrialRow> = folder.read().expect("trials");
    let comm: Vec<CommRow> = folder.read().expect("bytes");
    for row in &comm {
        if row.algorithm == "nccl" {
            // It copies out of sight, so nothing is counted, and nothing is made up.
            let counted = (row.sent_bytes, row.received_bytes);
            assert_eq!(counted, (None, None), "{name}: {row:?}");
            assert!(row.predicted_sent_bytes.is_some(), "{name}: {row:?}");
            continue;
        }
        let sent = (row.predicted_sent_bytes, row.predicted_received_bytes);
        assert_eq!(
            sent,
            (row.sent_bytes, row.received_bytes),
            "{name}: {row:?}"
        );
    }
    let exchanges = |trial: &&TrialRow| {
        // What learns is not traced, and its bytes are not counted.
        let traced = trial.kind != "learning" && trial.devices > 1;
        traced && matches!(trial.strategy.as_str(), "dp" | "ddp" | "zero1")
    };
    for trial in trials.iter().filter(exchanges) {
        let rows = comm.iter().filter(|row| row.trial == trial.trial);
        assert!(rows.count() > 0, "{name}: {} moved nothing", trial.label);
    }
    for row in folder.read::<CollectiveRow>().expect("collectives") {
        assert!(row.checked && row.wrong_elements == 0, "{name}: {row:?}");
        if row.transport == "nccl" {
            nccl_says_what_it_takes(name, &row);
            continue;
        }
        assert_eq!(
            row.predicted_sent_bytes, row.counted_sent_bytes,
            "{name}: {row:?}"
        );
    }
    ceilings_are_there(name, folder, &trials);
    let nodes = folder.read::<LayerRow>().expect("nodes");
    let timed = |trial: &&TrialRow| trial.kind == "layer-cost";
    for trial in trials.iter().filter(timed) {
        nodes_are_timed(trial, nodes.iter().filter(|row| row.trial == trial.trial));
    }
}

/// NCCL's algorithm and protocol are known of what has one, and its bytes are predicted where that is a ring.
fn nccl_says_what_it_takes(name: &str, row: &CollectiveRow) {
    let straight = matches!(row.collective.as_str(), "scatter" | "gather" | "send_recv");
    assert_eq!(row.counted_sent_bytes, None, "{name}: {row:?}");
    let unknown = row.nccl_algorithm.is_none() && row.nccl_protocol.is_none();
    assert_eq!(unknown, straight, "{name}: {row:?}");
    let ring = straight || row.nccl_algorithm.as_deref() == Some("RING");
    assert_eq!(row.predicted_sent_bytes.is_some(), ring, "{name}: {row:?}");
}

/// Each repeat of what is held against a ceiling has its own. They are those of CPUs and of what these exchange.
fn ceilings_are_there(name: &str, folder: &RunFolder, trials: &[TrialRow]) {
    let ceilings = folder.read::<CeilingRow>().expect("ceilings");
    for trial in trials.iter().filter(|trial| trial.backend == "cpu") {
        let wanted: &[&str] = match (trial.kind.as_str(), trial.transport.as_deref()) {
            ("layer-cost", _) => &["multiply-add", "memory-read", "memory-read-write"],
            ("collectives", Some("tcp")) => &["tcp-one-way", "tcp-both-ways", "tcp-round-trip"],
            ("collectives", _) => &["shared-copy"],
            _ => &[],
        };
        for ceiling in wanted {
            let own = ceilings.iter().filter(|row| {
                row.trial == trial.trial && row.ceiling == *ceiling && row.median > 0.0
            });
            assert_eq!(
                own.count(),
                trial.repeats as usize,
                "{name}: {} has no {ceiling}",
                trial.label
            );
        }
    }
}

/// Every node forward and backward in every repeat, all together no more than the steps that they were timed in.
fn nodes_are_timed<'a>(trial: &TrialRow, rows: impl Iterator<Item = &'a LayerRow>) {
    let rows: Vec<&LayerRow> = rows.collect();
    let count = |direction: &str| {
        let rows = rows.iter().filter(|row| row.direction == direction);
        rows.count()
    };
    let nodes = rows
        .iter()
        .map(|row| row.node)
        .max()
        .map_or(0, |last| last + 1);
    let expected = nodes as usize * trial.repeats as usize;
    assert!(nodes > 3, "{}", trial.label);
    assert_eq!(
        (count("forward"), count("backward")),
        (expected, expected),
        "{}",
        trial.label
    );
    let parameters: u64 = rows.iter().map(|row| row.parameters).sum();
    assert_eq!(
        parameters,
        2 * trial.parameters * u64::from(trial.repeats),
        "{}",
        trial.label
    );
    // What multiplies has operations by formula, and everything that is computed reads and writes.
    for row in &rows {
        let multiplies = matches!(row.layer.as_str(), "conv2d" | "linear");
        assert_eq!(
            row.flops.is_some_and(|flops| flops > 0),
            multiplies,
            "{row:?}"
        );
        assert!(row.read_write_bytes.is_some(), "{row:?}");
    }
    let sum: u64 = rows.iter().map(|row| row.time_ns_p10).sum();
    let slowdown = trial
        .tracing_slowdown
        .expect("nodes were timed in a pass of their own");
    let timed_ms = trial.step_ms.expect("a step's time") * slowdown;
    let sum_ms = sum as f64 / 1e6 / f64::from(trial.repeats);
    // The tenth percentile of every node lies within the mean step, if each node's time is its own.
    assert!(
        sum_ms > 0.0 && sum_ms < timed_ms,
        "{}: {sum_ms} of {timed_ms}",
        trial.label
    );
}

fn files_are_there(name: &str, folder: &RunFolder) {
    let size = |path: &Path| path.metadata().map_or(0, |data| data.len());
    for file in FILES {
        let untraced = [
            "collectives",
            "gpu-collectives",
            "bn-batch-size",
            "norm-convergence",
            "norm-text",
            "sync-bn",
            "train-eval-gap",
        ];
        let empty = file == "trace.json" && untraced.iter().any(|start| name.starts_with(start));
        assert!(
            empty || size(&folder.path().join(file)) > 0,
            "{name}: no {file}"
        );
    }
    let charts: Vec<PathBuf> = std::fs::read_dir(folder.path().join("charts"))
        .unwrap_or_else(|error| panic!("{name}: no charts: {error}"))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    assert!(
        charts.iter().all(|chart| size(chart) > 0),
        "{name}: {charts:?}"
    );
    let (_, expected) = CHARTS
        .iter()
        .find(|(scenario, _)| *scenario == name)
        .unwrap_or_else(|| panic!("{name}: say which charts it must have"));
    for start in *expected {
        for kind in ["svg", "png"] {
            let named = |chart: &&PathBuf| {
                let file = chart.file_name().and_then(|file| file.to_str());
                file.is_some_and(|file| file.starts_with(start) && file.ends_with(kind))
            };
            assert!(
                charts.iter().any(|chart| named(&chart)),
                "{name}: no {start}*.{kind} in {charts:?}"
            );
        }
    }
}

/// The answer stands in the report and on stdout, and it is one.
fn answer_is_given(name: &str, folder: &RunFolder, shown: &str) {
    let data = syncmark_report::run_data::RunData::load(folder).expect("the folder can be read");
    let answer = syncmark_report::answer::answer(&data);
    let report = std::fs::read_to_string(folder.path().join("report.md")).expect("a report");
    assert!(report.contains(&data.scenario.question), "{name}: {report}");
    for sentence in &answer.sentences {
        assert!(
            shown.contains(sentence),
            "{name}: not on stdout: {sentence}"
        );
        for excuse in [
            "cannot be",
            "nothing can be",
            "nothing is compared",
            "No trial",
        ] {
            assert!(!sentence.contains(excuse), "{name}: {sentence}");
        }
    }
    assert!(!answer.sentences.is_empty(), "{name}");
}

#[test]
fn every_other_scenario_plans_and_has_a_smoke_size() {
    let all: Vec<&str> = SCENARIOS.iter().map(|(name, _)| *name).collect();
    for name in all.iter().filter(|name| !name.ends_with("-smoke")) {
        let output = syncmark(&["plan", name]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{name}: {text}");
        assert!(text.starts_with(&format!("{name}: ")), "{name}: {text}");
        let smoke = format!("{}-smoke", name.trim_end_matches("-paper"));
        assert!(
            *name == "quickstart" || name.ends_with("-rates") || all.contains(&smoke.as_str()),
            "{name}"
        );
    }
}

/// `gpu-*` are all on GPUs with ranks over NCCL, on any machine, and nothing else is on a machine that has none.
#[test]
fn scenarios_for_gpus_are_on_gpus_and_no_others() {
    for (name, _) in SCENARIOS {
        let plan = plan(name);
        let wanted = name.starts_with("gpu-");
        for trial in &plan.trials {
            assert_eq!(is_on_gpus(trial), wanted, "{name}: {}", trial.label);
            let transport = trial.config.strategy.ranks_transport();
            let over_nccl = transport.is_none_or(|transport| transport == Transport::Nccl);
            assert!(over_nccl || !wanted, "{name}: {}", trial.label);
        }
        // Each strategy of a full size is in its smoke size.
        let kinds = |plan: &Plan| -> std::collections::BTreeSet<String> {
            let trials = plan.trials.iter();
            let name = |trial: &Trial| trial.config.strategy_name().to_owned();
            trials.map(name).collect()
        };
        if wanted && !name.ends_with("-smoke") {
            let smoke = self::plan(&format!("{name}-smoke"));
            assert_eq!(kinds(&plan), kinds(&smoke), "{name}");
        }
    }
}

/// A norm's time on a GPU is that of its memory only where what it reads and writes stays in no cache: each value is more than four times as
/// large as 60 MiB, which is more than the second-level cache of an H100.
#[test]
fn norms_of_gpu_norm_cost_leave_every_cache() {
    const CACHE: u64 = 60 << 20;
    let plan = plan("gpu-norm-cost");
    let alone = plan.trials.iter().filter(|trial| trial.config.devices == 1);
    let mut norms = 0;
    for trial in alone.filter(|trial| trial.config.norm != Norm::None) {
        let config = &trial.config;
        let (model, options) = (&config.model, config.norm_options());
        let model = resolve(model, &model.input, model.classes, config.norm, &options);
        for node in model.expect("a model").node_costs(config.batch.global) {
            if let Some(kept) = node.kept_bytes {
                assert!(kept > 4 * CACHE, "{}: {kept} bytes", trial.label);
                norms += 1;
            }
        }
    }
    assert_eq!(
        norms,
        3 * 3 * (5 + 1),
        "three at each of three shapes, of each kind, and batch norm by cuDNN"
    );
}

#[test]
fn every_scenario_is_embedded_and_stands_in_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("the README");
    let files = std::fs::read_dir(root.join("scenarios")).expect("the scenarios");
    for path in files.map(|entry| entry.expect("an entry").path()) {
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .expect("a name");
        assert!(
            SCENARIOS.iter().any(|(known, _)| *known == name),
            "{name} is not embedded"
        );
        assert!(
            readme.contains(&format!("`{name}`")),
            "{name} is missing in the README"
        );
    }
}
