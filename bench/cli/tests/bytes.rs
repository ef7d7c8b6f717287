//! A whole run, from the scenario to `comm.csv`: what the engine counted at its copies equals, to the byte, what the
//! formulas predict from the configuration alone, for 1 to 4 devices, odd sizes and several buckets; and over TCP what the
//! kernel counted is that and the transport's headers.
use std::path::Path;

use assert_cmd::Command;
use syncmark_engine::comm::tcp::HEADER_BYTES;
use syncmark_record::folder::RunFolder;
use syncmark_record::rows::{CommRow, DeviceRow, TrialRow};

fn run(scenario: &str) -> (Vec<TrialRow>, Vec<CommRow>) {
    let (trials, rows, _) = run_with_devices(scenario);
    (trials, rows)
}

fn run_with_devices(scenario: &str) -> (Vec<TrialRow>, Vec<CommRow>, Vec<DeviceRow>) {
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
        run.read().expect("devices.csv is read"),
    )
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

/// A step each of dp (both losses), ddp and zero1 (both launches and transports) on 1 to 4 devices, nothing else.
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
name = "zero1-threads"
set = {{ "parallel.strategy" = "zero1", "parallel.launch" = "threads" }}
[[variant]]
name = "zero1-processes"
set = {{ "parallel.strategy" = "zero1", "parallel.launch" = "processes" }}
[[variant]]
name = "ddp-threads"
set = {{ "parallel.strategy" = "ddp", "parallel.launch" = "threads" }}
[[variant]]
name = "ddp-processes"
set = {{ "parallel.strategy" = "ddp", "parallel.launch" = "processes" }}
[[variant]]
name = "ddp-tcp-threads"
set = {{ "parallel.strategy" = "ddp", "parallel.launch" = "threads", "parallel.transport" = "tcp" }}
[[variant]]
name = "ddp-tcp-processes"
set = {{ "parallel.strategy" = "ddp", "parallel.launch" = "processes", "parallel.transport" = "tcp" }}
"#
    )
}

/// What the kernel must have seen of a row: over TCP its payload and a header a message, of which a rank sends one in each
/// call in which it sends at all; elsewhere there is no counter but ours.
fn measured(trial: &TrialRow, row: &CommRow) -> Option<u64> {
    let sent = row.sent_bytes.expect("this transport counts");
    let messages = if sent > 0 { row.calls } else { 0 };
    (trial.transport.as_deref() == Some("tcp")).then_some(sent + messages * HEADER_BYTES as u64)
}

/// Checks every row, and that no trial that must move bytes is missing. Returns the phases that were seen.
fn assert_counted_as_predicted((trials, rows): (Vec<TrialRow>, Vec<CommRow>)) -> Vec<String> {
    for row in &rows {
        let trial = trials
            .iter()
            .find(|trial| trial.trial == row.trial)
            .expect("the trial is listed");
        assert_eq!(
            row.sent_bytes, row.predicted_sent_bytes,
            "{}: {row:?}",
            trial.label
        );
        assert_eq!(
            row.received_bytes, row.predicted_received_bytes,
            "{}: {row:?}",
            trial.label
        );
        assert_eq!(
            row.measured_sent_bytes,
            measured(trial, row),
            "{}: {row:?}",
            trial.label
        );
    }
    for trial in &trials {
        let (bytes, steps) = rows
            .iter()
            .filter(|row| row.trial == trial.trial)
            .filter_map(|row| Some((row.measured_sent_bytes?, row.steps)))
            .fold((0, 0), |(sum, _), (bytes, steps)| (sum + bytes, steps));
        let expected = (steps > 0).then(|| bytes as f64 / steps as f64);
        assert_eq!(trial.measured_bytes_per_step, expected, "{}", trial.label);
        let moves = trial.devices > 1 && trial.strategy != "independent";
        let moved: u64 = rows
            .iter()
            .filter(|row| row.trial == trial.trial)
            .filter_map(|row| row.sent_bytes)
            .sum();
        assert_eq!(moves, moved > 0, "{}: {moved} bytes", trial.label);
    }
    let mut phases: Vec<String> = rows.into_iter().map(|row| row.phase).collect();
    phases.sort();
    phases.dedup();
    phases
}

#[test]
fn dp_ddp_and_zero1_with_batch_norm() {
    let model = "[model]\npreset = \"convnet\"\nnorm = \"batch\"";
    let phases = assert_counted_as_predicted(run(&scenario(
        model,
        "[data]\nsource = \"digits\"\nbatch_size = 5",
    )));
    let expected = [
        "all_gather",
        "all_reduce",
        "buffer_broadcast",
        "gather",
        "reduce",
        "reduce_scatter",
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

/// Two steps with the arm without synchronization beside.
const MEASURE: &str = r#"
[measure]
smoke = true
repeats = 1
steps = 2
min_time = "1ms"
warmup_time = "1ms"
timeout = "2m"
"#;

/// What the options of zero1 and dp move, and where they put what; AdamW keeps two numbers a parameter.
const PLACED: &str = r#"
name = "placed"
question = "What lies where?"
kind = "train"
[model]
preset = "convnet"
norm = "batch"
[data]
source = "digits"
batch_size = 10
[train]
optimizer = { adamw = { learning_rate = 0.001 } }
[parallel]
launch = "threads"
scaling = "weak"
devices = 3
[[variant]]
name = "zero1-small-buckets"
set = { "parallel.strategy" = "zero1", "parallel.bucket_cap" = "4KiB" }
[[variant]]
name = "zero1-own-buffers"
set = { "parallel.strategy" = "zero1", "parallel.broadcast_buffers" = false }
[[variant]]
name = "ddp"
set = { "parallel.strategy" = "ddp" }
[[variant]]
name = "dp"
set = { "parallel.strategy" = "dp" }
[[variant]]
name = "dp-placed"
set = { "parallel.strategy" = "dp", "parallel.device_ids" = [1, 2, 0], "parallel.output_device" = 2 }
[[variant]]
name = "dp-placed-replica"
set = { "parallel.strategy" = "dp", "parallel.device_ids" = [2, 0, 1], "parallel.dp_loss" = "replica" }
"#;

#[test]
fn shards_and_placements_move_and_hold_what_they_say() {
    let (trials, rows, devices) = run_with_devices(&[PLACED, MEASURE].concat());
    let trial = |variant: &str| {
        let found = trials
            .iter()
            .find(|trial| trial.variant.as_deref() == Some(variant));
        &found.expect("the variant was run").trial
    };
    let held = |variant: &str, of: fn(&DeviceRow) -> u64| -> Vec<u64> {
        let mut own: Vec<_> = devices
            .iter()
            .filter(|row| row.trial == *trial(variant))
            .collect();
        own.sort_by_key(|row| row.device);
        own.into_iter().map(of).collect()
    };
    let (optimizer, workspace) = (
        |row: &DeviceRow| row.optimizer_bytes,
        |row: &DeviceRow| row.workspace_bytes,
    );
    let whole = held("ddp", optimizer)[0];
    assert_eq!(held("ddp", optimizer), [whole; 3]);
    for variant in ["zero1-small-buckets", "zero1-own-buffers"] {
        let shards = held(variant, optimizer);
        assert_eq!(shards.iter().sum::<u64>(), whole, "{variant}: {shards:?}");
        let largest = shards.iter().max().expect("three ranks");
        assert!(largest - whole / 3 < 3 * 8, "{variant}: {shards:?}");
    }
    assert_eq!(held("dp", optimizer), [whole, 0, 0]);
    assert_eq!(held("dp-placed", optimizer), [0, whole, 0]);
    assert_eq!(held("dp-placed-replica", optimizer), [0, 0, whole]);
    let most = |variant: &str| {
        let sizes = held(variant, workspace);
        sizes
            .iter()
            .position(|bytes| Some(bytes) == sizes.iter().max())
    };
    assert_eq!(most("dp"), Some(0), "{:?}", held("dp", workspace));
    let calls = |variant: &str, phase: &str| -> u64 {
        let own = rows.iter().filter(|row| {
            row.trial == *trial(variant) && row.rank == 0 && row.phase == phase && row.steps > 0
        });
        own.map(|row| row.calls / row.steps).sum()
    };
    let buckets = calls("zero1-small-buckets", "reduce_scatter");
    assert!(buckets > 2, "{buckets} buckets");
    assert_eq!(calls("zero1-small-buckets", "all_gather"), buckets);
    assert_eq!(calls("zero1-small-buckets", "buffer_broadcast"), 2);
    assert_eq!(calls("zero1-own-buffers", "buffer_broadcast"), 0);
    assert_counted_as_predicted((trials, rows));
}

/// DP replicates and reduces for every micro-batch; ZeRO-1 exchanges gradients and parameters once a step, whatever SyncBN does.
const MICRO_BATCHES: &str = r#"
name = "micro-batches"
question = "What do micro-batches move?"
kind = "train"
[model]
preset = "convnet"
norm = "batch"
[data]
source = "digits"
batch_size = 5
[train]
optimizer = { sgd = { learning_rate = 0.01, momentum = 0.9, weight_decay = 0.0 } }
accumulation = 3
[parallel]
launch = "threads"
[sweep]
"parallel.devices" = [2, 3]
[[variant]]
name = "dp"
set = { "parallel.strategy" = "dp" }
[[variant]]
name = "dp-once"
set = { "parallel.strategy" = "dp", "train.accumulation" = 1 }
[[variant]]
name = "dp-replica"
set = { "parallel.strategy" = "dp", "parallel.dp_loss" = "replica", "parallel.output_device" = 1 }
[[variant]]
name = "zero1"
set = { "parallel.strategy" = "zero1" }
[[variant]]
name = "zero1-once"
set = { "parallel.strategy" = "zero1", "train.accumulation" = 1 }
[[variant]]
name = "zero1-sync-batch"
set = { "parallel.strategy" = "zero1", "parallel.transport" = "tcp", "parallel.launch" = "processes", "model.norm" = "sync-batch" }
"#;

#[test]
fn micro_batches_of_dp_and_zero1_move_what_they_say() {
    let (trials, rows) = run(&[MICRO_BATCHES, MEASURE].concat());
    assert_eq!(trials.len(), 2 * 6);
    for devices in [2, 3] {
        let sent = |variant: &str| -> u64 {
            let found = trials.iter().find(|trial| {
                trial.variant.as_deref() == Some(variant) && trial.devices == devices
            });
            let trial = found.expect("the variant was run");
            let own = rows
                .iter()
                .filter(|row| row.trial == trial.trial && row.steps > 0);
            own.filter_map(|row| Some(row.sent_bytes? / row.steps))
                .sum()
        };
        assert_eq!(sent("dp"), 3 * sent("dp-once"), "{devices} devices");
        assert_eq!(sent("zero1"), sent("zero1-once"), "{devices} devices");
    }
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

/// DDP with its options, over both transports; several buckets of 4 KiB, and the arm without synchronization beside.
const DDP_OPTIONS: &str = r#"
name = "options"
question = "Does every option move what it says?"
kind = "train"
[model]
preset = "convnet"
norm = "batch"
[data]
source = "digits"
batch_size = 3
[parallel]
strategy = "ddp"
launch = "threads"
bucket_cap = "4KiB"
[sweep]
"parallel.devices" = [2, 3]
"parallel.transport" = ["shared", "tcp"]
[[variant]]
name = "last"
set = { "train.accumulation" = 3 }
[[variant]]
name = "each"
set = { "train.accumulation" = 3, "parallel.no_sync" = false, "model.norm" = "sync-batch" }
[[variant]]
name = "late"
set = { "parallel.overlap" = false, "parallel.first_bucket_cap" = "1KiB" }
[[variant]]
name = "own-buffers"
set = { "train.accumulation" = 2, "parallel.no_sync" = false, "parallel.broadcast_buffers" = false }
"#;

#[test]
fn every_option_of_ddp_moves_what_it_says() {
    let (trials, rows) = run(&[DDP_OPTIONS, MEASURE].concat());
    assert_eq!(trials.len(), 2 * 2 * 4);
    for trial in &trials {
        let calls = |phase: &str| -> u64 {
            let own = rows.iter().filter(|row| {
                row.trial == trial.trial && row.rank == 0 && row.phase == phase && row.steps > 0
            });
            own.map(|row| row.calls / row.steps).sum()
        };
        let variant = trial.variant.as_deref().unwrap_or_default();
        let (per_bucket, broadcasts) = match variant {
            "last" | "late" => (1, 2),
            "each" => (3, 6),
            _ => (2, 0),
        };
        let (reduces, label) = (calls("all_reduce"), &trial.label);
        assert!(reduces > 2 * per_bucket, "{label}: {reduces} calls");
        assert_eq!(reduces % per_bucket, 0, "{label}: {reduces} calls");
        assert_eq!(calls("buffer_broadcast"), broadcasts, "{label}");
        assert_eq!(
            trial.global_batch,
            3 * u64::from(trial.devices) * trial.accumulation.unwrap_or(0),
            "{label}: all micro-batches of a step are its samples"
        );
        assert!(trial.exposed_communication_ms.is_some(), "{label}");
    }
    let buckets = |variant: &str| {
        let trial = trials
            .iter()
            .find(|trial| trial.variant.as_deref() == Some(variant) && trial.devices == 2);
        let trial = trial.expect("the variant was run");
        let own = rows
            .iter()
            .filter(|row| row.trial == trial.trial && row.rank == 0 && row.phase == "all_reduce");
        own.map(|row| row.calls / row.steps).sum::<u64>()
    };
    assert!(
        buckets("late") > buckets("last"),
        "the first cap is smaller"
    );
    assert_counted_as_predicted((trials, rows));
}
