//! A whole run, from the scenario to `comm.csv`: what the engine counted at its copies equals, to the byte, what the
//! formulas predict from the configuration alone, for 1 to 4 devices, odd sizes and several buckets.
use std::path::Path;

use assert_cmd::Command;
use syncmark_record::folder::RunFolder;
use syncmark_record::rows::{CommRow, TrialRow};

fn run(scenario: &str) -> (Vec<TrialRow>, Vec<CommRow>) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("bytes.toml");
    std::fs::write(&path, scenario).expect("the scenario is written");
    let out = folder.path().join("out");
    let output = Command::cargo_bin("syncmark")
        .expect("the binary is built")
        .args(["run", "--quiet", "--out", text(&out), text(&path)])
        .output()
        .expect("the binary starts");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let run = std::fs::read_dir(&out)
        .expect("the run has a folder")
        .next()
        .expect("the run has a folder");
    let run = RunFolder::open(run.expect("the folder is listed").path()).expect("the folder opens");
    (
        run.read().expect("trials.csv is read"),
        run.read().expect("comm.csv is read"),
    )
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

/// A step each of dp (both losses) and ddp (both launches) on 1 to 4 devices, nothing else.
fn scenario(model: &str, data: &str) -> String {
    format!(
        r#"
name = "bytes"
question = "Do we count what we predict?"
kind = "train"
{model}
{data}
[train]
optimizer = {{ sgd = {{ learning_rate = 0.01, momentum = 0.9, weight_decay = 0.0 }} }}
[measure]
smoke = true
repeats = 1
steps = 2
min_time = "1ms"
warmup_time = "1ms"
unsynchronized = false
timeout = "2m"
[sweep]
"parallel.devices" = [1, 2, 3, 4]
[[variant]]
name = "dp"
set = {{ "parallel.strategy" = "dp" }}
[[variant]]
name = "dp-replica"
set = {{ "parallel.strategy" = "dp", "parallel.dp_loss" = "replica" }}
[[variant]]
name = "ddp-threads"
set = {{ "parallel.strategy" = "ddp", "parallel.launch" = "threads" }}
[[variant]]
name = "ddp-processes"
set = {{ "parallel.strategy" = "ddp", "parallel.launch" = "processes" }}
"#
    )
}

/// Checks every row, and that no trial that must move bytes is missing. Returns the phases that were seen.
fn assert_counted_as_predicted((trials, rows): (Vec<TrialRow>, Vec<CommRow>)) -> Vec<String> {
    for row in &rows {
        let trial = trials
            .iter()
            .find(|trial| trial.trial == row.trial)
            .expect("the trial is listed");
        assert_eq!(
            Some(row.sent_bytes),
            row.predicted_sent_bytes,
            "{}: {row:?}",
            trial.label
        );
        assert_eq!(
            Some(row.received_bytes),
            row.predicted_received_bytes,
            "{}: {row:?}",
            trial.label
        );
    }
    for trial in &trials {
        let moves = trial.devices > 1 && trial.strategy != "independent";
        let moved: u64 = rows
            .iter()
            .filter(|row| row.trial == trial.trial)
            .map(|row| row.sent_bytes)
            .sum();
        assert_eq!(moves, moved > 0, "{}: {moved} bytes", trial.label);
    }
    let mut phases: Vec<String> = rows.into_iter().map(|row| row.phase).collect();
    phases.sort();
    phases.dedup();
    phases
}

#[test]
fn dp_and_ddp_with_batch_norm() {
    let model = "[model]\npreset = \"convnet\"\nnorm = \"batch\"";
    let phases = assert_counted_as_predicted(run(&scenario(
        model,
        "[data]\nsource = \"digits\"\nbatch_size = 5",
    )));
    let expected = [
        "all_reduce",
        "buffer_broadcast",
        "gather",
        "reduce",
        "replicate",
        "scatter",
        "scatter_gradients",
    ];
    assert_eq!(phases, expected);
}

#[test]
fn several_buckets_of_odd_sizes() {
    // 1.5 MB and more in odd layers: the first bucket closes at 1 MiB, the rest follows in a second one.
    let model = r#"
[model]
input = [7, 3, 3]
classes = 11
layers = ["flatten", { linear = { features = 601 } }, "relu", { linear = { features = 613 } }, "relu", { linear = { features = "classes" } }]
"#;
    let data = "[data]\nsource = \"synthetic\"\nbatch_size = 3";
    let (trials, rows) = run(&scenario(model, data));
    let buckets = rows
        .iter()
        .filter(|row| row.phase == "all_reduce" && row.rank == 0)
        .map(|row| row.size_bytes);
    assert!(
        buckets.collect::<std::collections::BTreeSet<_>>().len() > 1,
        "one bucket only"
    );
    assert_counted_as_predicted((trials, rows));
}

#[test]
fn sync_batch_norm_in_ddp() {
    let model = "[model]\npreset = \"convnet\"\nnorm = \"sync-batch\"";
    let phases = assert_counted_as_predicted(run(&scenario(
        model,
        "[data]\nsource = \"digits\"\nbatch_size = 4",
    )));
    assert!(phases.contains(&"sync_batch_norm".to_owned()), "{phases:?}");
}
