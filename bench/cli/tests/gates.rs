//! The equivalences of METHODOLOGY.md from outside: `verify` starts real children, thread and process ranks, for 2, 3 and 4
//! devices, even and uneven chunks, and compares what they hold with one device.
#[path = "../../engine/tests/instructions/mod.rs"]
mod instructions;

use std::process::Output;

use assert_cmd::Command;

/// A few steps of every trial: nothing is timed here.
const MEASURE: &str = r#"
[measure]
smoke = true
repeats = 1
steps = 3
min_time = "1ms"
warmup_time = "1ms"
timeout = "2m"
"#;

/// Strong scaling, so that `batch` over `devices` says which chunks DP makes; DDP only where they are even.
fn strategies(norm: &str, batch: usize, devices: &str) -> String {
    format!(
        r#"
name = "gates"
question = "Do all strategies train alike?"
kind = "train"
[model]
preset = "convnet"
norm = "{norm}"
[data]
source = "digits"
batch_size = {batch}
[train]
optimizer = {{ sgd = {{ learning_rate = 0.05, momentum = 0.9, weight_decay = 1e-4 }} }}
[parallel]
scaling = "strong"
[sweep]
"parallel.devices" = {devices}
[[variant]]
name = "dp"
set = {{ "parallel.strategy" = "dp" }}
[[variant]]
name = "dp-replica-loss"
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
"#
    )
}

fn verify(scenario: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("gates.toml");
    std::fs::write(&path, [scenario, MEASURE].concat()).expect("the scenario is written");
    Command::cargo_bin("syncmark")
        .expect("the binary is built")
        .args([
            "verify",
            "--quiet",
            path.to_str().expect("the path is UTF-8"),
        ])
        .output()
        .expect("the binary starts")
}

/// Verifies a scenario of which every trial must pass; what is printed.
fn passed(scenario: &str) -> String {
    let output = verify(scenario);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{text}\n{errors}\n{scenario}"
    );
    text
}

fn assert_passes(norm: &str, batch: usize, devices: &str) {
    let text = passed(&strategies(norm, batch, devices));
    assert!(
        (text.contains("ddp-processes") && text.contains("zero1-processes"))
            || !devices.contains('2'),
        "no process ranks were verified:\n{text}"
    );
}

#[test]
fn batch_norm_over_even_chunks() {
    assert_passes("batch", 12, "[2, 3, 4]");
}

#[test]
fn batch_norm_over_uneven_chunks() {
    assert_passes("batch", 10, "[4]");
    assert_passes("batch", 9, "[4]");
}

/// Optimizers whose state is sharded, in buckets of any size; and DP's devices in other orders.
const PLACED: &str = r#"
name = "placed"
question = "Do shards and placements train alike?"
kind = "train"
[model]
preset = "convnet"
norm = "batch"
[data]
source = "digits"
batch_size = 4
[parallel]
devices = 3
launch = "threads"
[[variant]]
name = "adamw"
set = { "parallel.strategy" = "zero1", "parallel.bucket_cap" = "4KiB", "train.optimizer" = { adamw = { learning_rate = 0.001 } } }
[[variant]]
name = "nesterov"
set = { "parallel.strategy" = "zero1", "train.optimizer" = { sgd = { learning_rate = 0.01, momentum = 0.9, nesterov = true } }, "train.schedule" = { cosine = { steps = 10 } } }
[[variant]]
name = "placed"
set = { "parallel.strategy" = "dp", "parallel.device_ids" = [2, 0, 1], "parallel.output_device" = 1 }
[[variant]]
name = "adamw-accumulating"
set = { "parallel.strategy" = "zero1", "train.optimizer" = { adamw = { learning_rate = 0.001 } }, "train.accumulation" = 2 }
[[variant]]
name = "sync-accumulating"
set = { "parallel.strategy" = "zero1", "model.norm" = "sync-batch", "train.accumulation" = 3 }
[[variant]]
name = "placed-accumulating"
set = { "parallel.strategy" = "dp", "parallel.output_device" = 1, "train.accumulation" = 3 }
[[variant]]
name = "replica-accumulating"
set = { "parallel.strategy" = "dp", "parallel.dp_loss" = "replica", "train.accumulation" = 2 }
[[variant]]
name = "placed-replica"
set = { "parallel.strategy" = "dp", "parallel.device_ids" = [1, 0, 2], "parallel.dp_loss" = "replica" }
"#;

#[test]
fn shards_of_every_optimizer_and_devices_in_any_order() {
    passed(PLACED);
}

/// Norms between layers that keep a sequence.
const SEQUENCES: &str = r#"
name = "sequences"
question = "Do norms on sequences train alike?"
kind = "train"
[model]
layers = [{ residual = { body = ["norm", { gelu = {} }] } }, "norm", "flatten", { linear = { features = "classes" } }]
[data]
source = "synthetic"
shape = [4, 9]
classes = 5
batch_size = 6
[parallel]
devices = 2
launch = "threads"
[sweep]
"parallel.strategy" = ["dp", "ddp"]
"model.norm" = ["batch", "layer", "instance", "group", "rms"]
[[variant]]
name = "sequence"
set = {}
[[variant]]
name = "sync"
set = { "model.norm" = "sync-batch", "parallel.strategy" = "ddp" }
"#;

#[test]
fn norms_on_sequences() {
    let text = passed(SEQUENCES);
    assert_eq!(text.matches("at step 3   passed").count(), 11, "{text}");
}

#[test]
fn sync_batch_norm() {
    assert_passes("sync-batch", 12, "[2, 3, 4]");
}

#[test]
fn norms_that_do_not_see_the_batch() {
    assert_passes("layer", 12, "[2, 3]");
    assert_passes("group", 12, "[2, 4]");
    assert_passes("none", 12, "[2, 3]");
}

/// DDP's options with two micro-batches a step; `late` sets what changes nothing but when and in what pieces ranks exchange.
const DDP_OPTIONS: &str = r#"
name = "options"
question = "Does DDP train alike, whatever it exchanges and when?"
kind = "train"
[model]
preset = "convnet"
[data]
source = "digits"
batch_size = 4
[train]
accumulation = 2
[parallel]
strategy = "ddp"
devices = 2
launch = "threads"
[sweep]
"model.norm" = ["batch", "sync-batch", "group"]
[[variant]]
name = "last"
set = { "parallel.launch" = "processes" }
[[variant]]
name = "each"
set = { "parallel.no_sync" = false }
[[variant]]
name = "late"
set = { "parallel.overlap" = false, "parallel.bucket_cap" = "4KiB", "train.accumulation" = 1 }
[[variant]]
name = "own-buffers"
set = { "parallel.broadcast_buffers" = false }
"#;

#[test]
fn every_option_of_ddp() {
    let text = passed(DDP_OPTIONS);
    // A label names what tells a trial from the others, and no more of it than is needed.
    for expected in ["buffer-broadcast off", "cap 4KiB"] {
        assert!(text.contains(expected), "{expected} is not in:\n{text}");
    }
    assert_eq!(text.matches("at step 3   passed").count(), 12, "{text}");
}

/// The children take the variable from this program.
#[test]
fn all_gates_hold_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
