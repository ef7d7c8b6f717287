//! A run that was killed and is finished with `--resume` has the records of one that ran through; another scenario is refused.
//!
//! Contract: learning trials are used, because what they record is the same to the last bit whenever they run.
mod finished;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod running;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use syncmark_record::RunFolder;
use syncmark_record::rows::{LearningRow, NormStatisticsRow, RepeatRow};

use finished::{folder, run};
use running::{TURN, command, wait_for};

const SCENARIO: &str = r#"name = "resumed"
question = "Is it the same?"
kind = "learning"
[model]
preset = "convnet"
[data]
source = "digits"
batch_size = 32
[train]
optimizer = { sgd = { learning_rate = 0.05, momentum = 0.9, weight_decay = 1e-4 } }
steps = 60
[evaluate]
every = 25
validation = 0.2
precise_batches = 5
[measure]
repeats = 3
smoke = true
[[variant]]
name = "batch-4"
set = { "model.norm" = "batch", "train.normalization_batch" = 4 }
[[variant]]
name = "group"
set = { "model.norm" = "group" }
"#;

/// What does not depend on how long anything took.
fn learned(folder: &RunFolder) -> Vec<LearningRow> {
    let mut rows: Vec<LearningRow> = folder.read().unwrap();
    rows.iter_mut().for_each(|row| row.train_ns = None);
    rows.sort_by(|a, b| (&a.trial, a.repeat, a.step).cmp(&(&b.trial, b.repeat, b.step)));
    rows
}

fn noise(folder: &RunFolder) -> Vec<NormStatisticsRow> {
    let mut rows: Vec<NormStatisticsRow> = folder.read().unwrap();
    rows.sort_by(|a, b| (&a.trial, a.repeat, a.layer).cmp(&(&b.trial, b.repeat, b.layer)));
    rows
}

fn repeats(folder: &RunFolder) -> Vec<(String, u32, String)> {
    let rows: Vec<RepeatRow> = folder.read().unwrap();
    let outcome = |row: &RepeatRow| format!("{:?}", row.outcome);
    let mut found: Vec<_> = rows
        .into_iter()
        .map(|row| (row.trial.clone(), row.repeat, outcome(&row)))
        .collect();
    found.sort();
    found
}

#[test]
fn a_killed_study_is_finished_with_the_records_of_one_that_ran_through() {
    let _turn = TURN.lock();
    let files = tempfile::tempdir().unwrap();
    let scenario = files.path().join("resumed.toml");
    std::fs::write(&scenario, SCENARIO).unwrap();
    let [through, killed] = ["through", "killed"].map(|name| files.path().join(name));
    let done = run(&scenario, &["--out", through.to_str().unwrap()]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let through = RunFolder::open(folder(&through).unwrap()).unwrap();

    let mut child = command()
        .arg("run")
        .arg(&scenario)
        .arg("--out")
        .arg(&killed)
        .arg("--quiet")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let half = || {
        let folder = RunFolder::open(folder(&killed)?).ok()?;
        let rows: Vec<RepeatRow> = folder.read().ok()?;
        (rows.len() >= 2).then_some(())
    };
    wait_for("two repeats", Duration::from_secs(60), half);
    child.kill().unwrap();
    child.wait().unwrap();
    let killed = folder(&killed).unwrap();
    let part = RunFolder::open(&killed).unwrap();
    let before = repeats(&part).len();
    assert!(
        (2..6).contains(&before),
        "killed after {before} of 6 repeats"
    );

    // The folder says what was run, also when the scenario's file is gone.
    std::fs::remove_file(&scenario).unwrap();
    let resumed = resume(&killed, &[]);
    assert!(
        resumed.status.success(),
        "{}",
        String::from_utf8_lossy(&resumed.stderr)
    );
    std::fs::write(&scenario, SCENARIO).unwrap();
    let resumed = RunFolder::open(&killed).unwrap();
    assert_eq!(repeats(&resumed), repeats(&through));
    assert_eq!(learned(&resumed), learned(&through));
    assert_eq!(noise(&resumed), noise(&through));
    assert_eq!(
        noise(&resumed).len(),
        3 * 3,
        "three batch norms in three repeats"
    );
    let environment = resumed.environment().unwrap().unwrap();
    assert_eq!(environment.resumed.len(), 1);

    // What is complete has nothing left to do.
    let again = run(&scenario, &["--resume", killed.to_str().unwrap()]);
    assert!(again.status.success());
    assert_eq!(learned(&resumed), learned(&through));
}

/// `syncmark run --resume FOLDER` with nothing that says what was run.
fn resume(folder: &Path, arguments: &[&str]) -> Output {
    command()
        .args(["run", "--quiet", "--resume"])
        .arg(folder)
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn overrides_and_filters_of_the_run_count_when_it_is_resumed_alone() {
    let _turn = TURN.lock();
    let files = tempfile::tempdir().unwrap();
    let scenario = files.path().join("resumed.toml");
    std::fs::write(&scenario, SCENARIO.replace("steps = 60", "steps = 2")).unwrap();
    let out = files.path().join("out");
    let changed = [
        "--out",
        out.to_str().unwrap(),
        "--set",
        "measure.repeats=1",
        "--filter",
        "variant=group",
    ];
    let done = run(&scenario, &changed);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let folder = folder(&out).unwrap();
    let before = repeats(&RunFolder::open(&folder).unwrap());
    assert_eq!(before.len(), 1);
    let resumed = resume(&folder, &[]);
    let words = String::from_utf8_lossy(&resumed.stderr);
    assert!(resumed.status.success(), "{words}");
    assert_eq!(repeats(&RunFolder::open(&folder).unwrap()), before);

    let refused = resume(&folder, &["--set", "measure.repeats=2"]);
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{words}");
    assert!(words.contains("leave --set, --filter"), "{words}");
    assert_eq!(resume(&folder, &["--profile"]).status.code(), Some(2));
    let alone = command().arg("run").output().unwrap();
    assert_eq!(alone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("SCENARIO"));
}

#[test]
fn another_scenario_is_refused_with_the_difference() {
    let _turn = TURN.lock();
    let files = tempfile::tempdir().unwrap();
    let scenario = files.path().join("resumed.toml");
    std::fs::write(
        &scenario,
        SCENARIO
            .replace("repeats = 3", "repeats = 1")
            .replace("steps = 60", "steps = 2"),
    )
    .unwrap();
    let out = files.path().join("out");
    let done = run(&scenario, &["--out", out.to_str().unwrap()]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let folder = folder(&out).unwrap();
    let rows = std::fs::read(folder.join("learning.csv")).unwrap();
    let refused = run(
        &scenario,
        &[
            "--set",
            "train.steps=3",
            "--resume",
            folder.to_str().unwrap(),
        ],
    );
    let words = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{words}");
    for part in [
        "cannot resume",
        "- train.steps = 2",
        "+ train.steps = 3",
        "without --resume",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert_eq!(
        std::fs::read(folder.join("learning.csv")).unwrap(),
        rows,
        "nothing is lost"
    );
    let nowhere = run(
        &scenario,
        &["--resume", files.path().join("none").to_str().unwrap()],
    );
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("no run folder"));
}
