//! Scenarios that learn: what they record, that seeds are those of repeats, and what is refused.
mod finished;
#[allow(dead_code, reason = "each test binary uses a part of it")]
mod running;

use std::process::Output;

use syncmark_record::rows::{LearningRow, NormStatisticsRow, RepeatRow, TrialRow};
use syncmark_record::{Outcome, RunFolder};

use finished::folder;
use running::TURN;

const SCENARIO: &str = r#"name = "learned"
question = "Does it learn?"
kind = "learning"
[model]
preset = "convnet"
[data]
source = "digits"
batch_size = 32
[train]
optimizer = { sgd = { learning_rate = 0.05, momentum = 0.9, weight_decay = 1e-4 } }
epochs = 2
[evaluate]
split = "test"
validation = 0.1
precise_batches = 10
[measure]
repeats = 2
smoke = true
"#;

/// The share of ten balanced classes that guessing gets wrong.
const CHANCE: f64 = 0.9;

struct Ran {
    _files: tempfile::TempDir,
    output: Output,
    folder: Option<RunFolder>,
}

fn run(toml: &str, arguments: &[&str]) -> Ran {
    let files = tempfile::tempdir().unwrap();
    let scenario = files.path().join("learned.toml");
    std::fs::write(&scenario, toml).unwrap();
    let out = files.path().join("out");
    let arguments: Vec<&str> = arguments
        .iter()
        .copied()
        .chain(["--out", out.to_str().unwrap()])
        .collect();
    let output = finished::run(&scenario, &arguments);
    let folder = folder(&out).map(|path| RunFolder::open(path).unwrap());
    Ran {
        _files: files,
        output,
        folder,
    }
}

fn variants(list: &str) -> String {
    format!("{SCENARIO}{list}")
}

#[test]
fn a_study_records_curves_ends_and_noise_and_answers_in_words() {
    let _turn = TURN.lock();
    let toml = variants(
        r#"
[[variant]]
name = "batch-4"
set = { "model.norm" = "batch", "train.normalization_batch" = 4 }
[[variant]]
name = "batch-32"
set = { "model.norm" = "batch", "train.normalization_batch" = 32 }
[[variant]]
name = "group"
set = { "model.norm" = "group" }
"#,
    );
    let ran = run(&toml, &[]);
    let stdout = String::from_utf8_lossy(&ran.output.stdout).into_owned();
    assert!(
        ran.output.status.success(),
        "{stdout}{}",
        String::from_utf8_lossy(&ran.output.stderr)
    );
    let folder = ran.folder.unwrap();
    let trials: Vec<TrialRow> = folder.read().unwrap();
    let together: Vec<_> = trials
        .iter()
        .map(|trial| trial.normalization_batch)
        .collect();
    assert_eq!(together.len(), 3);
    assert!(
        trials
            .iter()
            .all(|trial| trial.kind == "learning" && trial.outcome == Outcome::Passed)
    );
    let rows: Vec<LearningRow> = folder.read().unwrap();
    // 1437 training samples without a tenth are 1293, 40 batches of 32: two epochs, an evaluation after each.
    assert_eq!(rows.len(), 3 * 2 * 2);
    for trial in &trials {
        let of = |repeat| -> Vec<&LearningRow> {
            rows.iter()
                .filter(|row| row.trial == trial.trial && row.repeat == repeat)
                .collect()
        };
        let (first, second) = (of(0), of(1));
        assert_eq!(
            first.iter().map(|row| row.step).collect::<Vec<_>>(),
            [40, 80]
        );
        assert_eq!(first[1].samples_seen, 80 * 32);
        assert_ne!(
            first[1].eval_loss, second[1].eval_loss,
            "repeats have seeds of their own"
        );
        let has_batch_norm = trial.norm == "batch";
        for end in [first[1], second[1]] {
            // After so few steps the running statistics still trail the parameters, so that small
            // normalization batches are judged by those re-estimated.
            let error = end.precise_error.or(end.eval_error).unwrap();
            assert!(error < CHANCE / 2.0, "digits are learned: {end:?}");
            assert!(end.train_eval_error.unwrap() < CHANCE && end.train_ns.unwrap() > 0);
            assert_eq!(end.precise_error.is_some(), has_batch_norm);
            assert_eq!(end.batch_statistics_error.is_some(), has_batch_norm);
        }
        assert_eq!(
            first[0].precise_error, None,
            "only the end is looked at closely"
        );
    }
    let noise: Vec<NormStatisticsRow> = folder.read().unwrap();
    assert_eq!(noise.len(), 2 * 2 * 3);
    let mean = |together: u64| {
        let own: Vec<f64> = noise
            .iter()
            .filter(|row| row.normalization_batch == together)
            .map(|row| row.variance_noise)
            .collect();
        own.iter().sum::<f64>() / own.len() as f64
    };
    assert!(
        mean(4) > 2.0 * mean(32),
        "smaller batches have noisier statistics: {} and {}",
        mean(4),
        mean(32)
    );
    let markdown = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
    for part in [
        "With stored statistics, there are too few repeats for a verdict",
        "With PreciseBN",
        "Error against normalization batch",
        "Learning curves",
    ] {
        assert!(markdown.contains(part), "{part}: {markdown}");
    }
    assert!(stdout.contains("PreciseBN"), "{stdout}");
}

/// Rows of a scenario of eight steps with this norm and these tables besides.
fn eight_steps(norm: &str, tables: &str) -> (Vec<RepeatRow>, Vec<LearningRow>) {
    let toml = SCENARIO
        .replace(
            "preset = \"convnet\"",
            &format!("preset = \"convnet\"\nnorm = \"{norm}\""),
        )
        .replace("epochs = 2", "steps = 8")
        .replace("split = \"test\"", "split = \"test\"\nevery = 4")
        .replace("repeats = 2", "repeats = 1");
    let ran = run(&(toml + tables), &[]);
    let stderr = String::from_utf8_lossy(&ran.output.stderr).into_owned();
    assert!(ran.output.status.success(), "{norm}: {stderr}");
    let folder = ran.folder.unwrap();
    (folder.read().unwrap(), folder.read().unwrap())
}

#[test]
fn ranks_learn_what_one_device_with_their_chunks_does() {
    let _turn = TURN.lock();
    let ranks =
        "[parallel]\nstrategy = \"ddp\"\nlaunch = \"threads\"\ndevices = 2\nscaling = \"strong\"\n";
    // What one device has to have to be as two ranks with half of its batch each. Batch norm is not among them: the sampler deals samples out
    // to ranks in turn, so that theirs are not the halves which one device normalizes; equal chunks are compared where the engine is tested.
    for (norm, alone) in [("group", "group"), ("sync-batch", "batch")] {
        let (repeats, found) = eight_steps(norm, ranks);
        assert_eq!(repeats[0].parameters_equal, Some(true), "{norm}");
        let (_, expected) = eight_steps(alone, "");
        assert_eq!(
            (found.len(), expected.len()),
            (2, 2),
            "one rank tells what was evaluated"
        );
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.step, expected.step);
            let losses = |row: &LearningRow| [row.train_loss.unwrap(), row.eval_loss.unwrap()];
            for (found, expected) in losses(found).into_iter().zip(losses(expected)) {
                let apart = (found - expected).abs() / expected;
                assert!(apart < 1e-4, "{norm}: {found} and {expected}");
            }
        }
    }
}

#[test]
fn trials_side_by_side_learn_the_same_and_do_run_at_once() {
    let _turn = TURN.lock();
    let two = variants(
        r#"
[[variant]]
name = "batch"
set = { "model.norm" = "batch" }
[[variant]]
name = "group"
set = { "model.norm" = "group" }
"#,
    );
    let concurrent = two.replace("smoke = true", "smoke = true\nconcurrent = true");
    let learned = |toml: &str| -> (Vec<RepeatRow>, Vec<LearningRow>) {
        let ran = run(toml, &[]);
        let stderr = String::from_utf8_lossy(&ran.output.stderr).into_owned();
        assert!(ran.output.status.success(), "{stderr}");
        let folder = ran.folder.unwrap();
        let trials: Vec<TrialRow> = folder.read().unwrap();
        let warned = |trial: &TrialRow| {
            let warnings = trial.warnings.as_deref().unwrap_or_default();
            warnings.contains("ran beside other trials")
        };
        assert!(
            trials
                .iter()
                .all(|trial| warned(trial) == toml.contains("concurrent"))
        );
        (folder.read().unwrap(), folder.read().unwrap())
    };
    let comparable = |rows: Vec<LearningRow>| {
        let key = |row: &LearningRow| (row.trial.clone(), row.repeat, row.step);
        let mut rows: Vec<LearningRow> = rows
            .into_iter()
            .map(|row| LearningRow {
                train_ns: None,
                ..row
            })
            .collect();
        rows.sort_by_key(key);
        rows
    };
    let (_, alone) = learned(&two);
    let (repeats, beside) = learned(&concurrent);
    let overlaps = |a: &RepeatRow, b: &RepeatRow| {
        let begin = |row: &RepeatRow| row.started.parse::<jiff::Timestamp>().unwrap();
        let trained = beside
            .iter()
            .filter(|row| row.trial == a.trial && row.repeat == a.repeat)
            .filter_map(|row| row.train_ns)
            .max()
            .unwrap();
        let end = begin(a) + std::time::Duration::from_nanos(trained);
        begin(a) <= begin(b) && begin(b) < end && (&a.trial, a.repeat) != (&b.trial, b.repeat)
    };
    let at_once = repeats
        .iter()
        .any(|a| repeats.iter().any(|b| overlaps(a, b)));
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(at_once, cores > 1, "on {cores} cores: {repeats:?}");
    assert_eq!(comparable(alone), comparable(beside));
}

#[test]
fn a_loss_that_is_no_number_ends_a_repeat_and_keeps_what_was_seen() {
    let _turn = TURN.lock();
    let toml = SCENARIO
        .replace("learning_rate = 0.05", "learning_rate = 1e6")
        .replace("repeats = 2", "repeats = 1")
        .replace("split = \"test\"", "split = \"test\"\nevery = 1");
    let ran = run(&toml, &[]);
    assert_eq!(ran.output.status.code(), Some(1));
    let folder = ran.folder.unwrap();
    let trials: Vec<TrialRow> = folder.read().unwrap();
    assert_eq!(
        trials[0].outcome,
        Outcome::Diverged,
        "{:?}",
        trials[0].reason
    );
    let seen: Vec<LearningRow> = folder.read().unwrap();
    let first = seen
        .first()
        .expect("what was evaluated before the loss left the numbers");
    assert_eq!(first.step, 1);
    assert!(first.train_loss.is_some_and(f64::is_finite), "{first:?}");
}

#[test]
fn what_cannot_be_learned_is_refused_with_what_to_write_instead() {
    let with = |from: &str, to: &str| SCENARIO.replace(from, to);
    for (toml, expected) in [
        (with("epochs = 2", ""), "nothing says how long it learns"),
        (
            with("epochs = 2", "epochs = 2\nsteps = 10"),
            "both `train.epochs` and `train.steps`",
        ),
        (with("epochs = 2", "epochs = 0"), "`train.epochs` is 0"),
        (
            with("kind = \"learning\"", "kind = \"train\"")
                .replace("smoke = true", "smoke = true\nconcurrent = true"),
            "trials that are timed never run side by side",
        ),
        (
            with("epochs = 2", "epochs = 2\nnormalization_batch = 5"),
            "a normalization batch of 5 does not divide the batch of 32",
        ),
        (
            with("source = \"digits\"", "source = \"synthetic\""),
            "synthetic samples have nothing to learn",
        ),
        (
            with("validation = 0.1", "validation = 1.0"),
            "`evaluate.validation` is 1",
        ),
        (
            with("split = \"test\"\nvalidation = 0.1", "validation = 0.0"),
            "validation without samples for it",
        ),
        (
            with("kind = \"learning\"", "kind = \"train\""),
            "goes with kind = \"learning\"",
        ),
        (
            with(
                "[measure]",
                "[parallel]\nstrategy = \"ddp\"\ndevices = 2\n[measure]",
            )
            .replace("epochs = 2", "epochs = 2\nnormalization_batch = 4"),
            "a normalization batch is cut out of one device's",
        ),
    ] {
        let ran = run(&toml, &[]);
        let words = String::from_utf8_lossy(&ran.output.stderr).into_owned();
        assert_eq!(ran.output.status.code(), Some(2), "{expected}: {words}");
        assert!(words.contains(expected), "{expected}: {words}");
        assert!(words.contains("help"), "{words}");
        assert!(ran.folder.is_none(), "nothing was run");
    }
}
