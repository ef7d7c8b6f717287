//! A whole run with compressed gradients: gates pass, bytes are as predicted, and `compression.csv` says what was lost.
use assert_cmd::Command;
use syncmark_record::folder::RunFolder;
use syncmark_record::rows::{CommRow, CompressionRow, GateRow, TrialRow};

const SCENARIO: &str = r#"
name = "compression"
question = "What does compressing gradients cost and save?"
kind = "train"
[answer]
factor = "parallel.compression"
baseline = "none"
metric = "samples_per_s"
[model]
preset = "convnet"
norm = "batch"
[data]
source = "digits"
batch_size = 5
[train]
optimizer = { sgd = { learning_rate = 0.01, momentum = 0.9 } }
[parallel]
strategy = "ddp"
launch = "threads"
devices = 2
[measure]
smoke = true
repeats = 1
steps = 2
min_time = "1ms"
warmup_time = "1ms"
unsynchronized = false
timeout = "2m"
[sweep]
"parallel.devices" = [2, 3]
"parallel.compression" = ["none", "fp16", "bf16", { powersgd = { rank = 2, start_step = 5 } }, { powersgd = { rank = 1, start_step = 0, error_feedback = false, warm_start = false } }]
"#;

/// Runs the scenario with more arguments, into a folder of its own.
fn run(more: &[&str]) -> (tempfile::TempDir, RunFolder) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let (path, out) = (
        folder.path().join("compression.toml"),
        folder.path().join("out"),
    );
    std::fs::write(&path, SCENARIO).expect("the scenario is written");
    let output = Command::cargo_bin("syncmark")
        .expect("the binary is built")
        .args(["run", "--quiet", "--out"])
        .args([&out, &path])
        .args(more)
        .output()
        .expect("the binary starts");
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let run = std::fs::read_dir(&out)
        .expect("the run has a folder")
        .next();
    let run = run.expect("the run has a folder").expect("it is listed");
    let run = RunFolder::open(run.path()).expect("the folder opens");
    (folder, run)
}

/// Warm-ups and windows of other lengths, the same training: the same errors to the last bit.
#[test]
fn errors_are_of_the_same_steps_and_batches_whatever_the_clock_says() {
    let errors = |warmup_time: &str, min_time: &str| -> Vec<(u64, f64)> {
        let arguments = [
            "--filter",
            "parallel.compression=fp16",
            "--filter",
            "parallel.devices=2",
            "--set",
            &format!("measure.warmup_time={warmup_time}"),
            "--set",
            &format!("measure.min_time={min_time}"),
        ];
        let (_kept, run) = run(&arguments);
        let rows: Vec<CompressionRow> = run.read().expect("compression.csv is read");
        let whole = rows.iter().filter(|row| row.bucket.is_none());
        whole.map(|row| (row.step, row.relative_error)).collect()
    };
    let short = errors("1ms", "1ms");
    assert_eq!(short.len(), 5);
    assert_eq!(short, errors("150ms", "90ms"));
}

#[test]
fn compressed_trials_pass_their_gates_count_what_is_predicted_and_say_what_they_lose() {
    let (_kept, run) = run(&[]);
    let trials: Vec<TrialRow> = run.read().expect("trials.csv is read");
    assert_eq!(trials.len(), 10);
    let gates: Vec<GateRow> = run.read().expect("gates.csv is read");
    assert!(gates.iter().all(|gate| gate.passed), "{gates:?}");
    let comm: Vec<CommRow> = run.read().expect("comm.csv is read");
    let rows: Vec<CompressionRow> = run.read().expect("compression.csv is read");
    for trial in &trials {
        check(trial, &comm, &rows);
    }
}

/// Steps of the warm-up that the scenario asks for, and the lead-in.
const FIRST_CHECKED: u64 = 5 + 3;

fn check(trial: &TrialRow, comm: &[CommRow], rows: &[CompressionRow]) {
    let label = &trial.label;
    let reduced = comm
        .iter()
        .filter(|row| row.trial == trial.trial && row.phase == "all_reduce");
    for row in reduced {
        assert_eq!(row.sent_bytes, row.predicted_sent_bytes, "{label}: {row:?}");
    }
    let compression = trial
        .compression
        .as_deref()
        .expect("ddp says what it compresses");
    let of_trial = |row: &&CompressionRow| row.trial == trial.trial && row.bucket.is_none();
    let rows: Vec<&CompressionRow> = rows.iter().filter(of_trial).collect();
    let (count, errors, shares) = match compression {
        "none" => return assert!(rows.is_empty(), "{label}"),
        "fp16" => (5, 1e-5..2e-3, 0.5..0.501),
        "bf16" => (5, 1e-4..2e-2, 0.5..0.501),
        _ => (5, 0.05..2.0, 0.01..0.3),
    };
    assert_eq!(rows.len(), count, "{label}");
    // However long the warm-up took.
    let steps: Vec<u64> = rows.iter().map(|row| row.step).collect();
    assert!(
        steps.iter().copied().eq(FIRST_CHECKED..FIRST_CHECKED + 5),
        "{label}: {steps:?}"
    );
    for row in rows {
        let share = row.sent_bytes.unwrap() as f64 / row.uncompressed_bytes.unwrap() as f64;
        assert!(shares.contains(&share), "{label}: {row:?}");
        assert!(errors.contains(&row.relative_error), "{label}: {row:?}");
        assert_eq!(row.compression, compression);
    }
}
