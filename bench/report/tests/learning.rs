//! Batch norm against another norm in the same repeats, from made-up rows: with equal learning rates, and with one for each norm.
mod fixtures;

use std::path::Path;

use fixtures::{Way, table, way, write};
use serde::Serialize;
use syncmark_record::{
    Outcome, RunFolder,
    rows::{LearningRow, RepeatRow, TrialRow},
};
use syncmark_report::{Rendered, answer::answer, render};

const SCENARIO: &str = "name = \"norms\"\nquestion = \"Which norm learns?\"\nkind = \"learning\"\n";
const REPEATS: u32 = 6;
const MODELS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// A norm, what its statistics do with padding, its normalization batch, its learning rate, and its error in per cent.
type Norm = (&'static str, Option<&'static str>, u64, &'static str, f64);

fn csv<R: Serialize>(rows: &[R]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().for_each(|row| writer.serialize(row).unwrap());
    writer.into_inner().unwrap()
}

fn folder(path: &Path, norms: &[Norm]) -> Rendered {
    folder_with(path, norms, &[100], |_, _| ())
}

/// The same with evaluations at these steps, before the last of which errors are 10 points larger for each; `change` is given each trial
/// and each of its rows.
fn folder_with(
    path: &Path,
    norms: &[Norm],
    steps: &[u64],
    change: impl Fn(&mut TrialRow, &mut LearningRow),
) -> Rendered {
    let ways: Vec<Way> = MODELS[..norms.len()]
        .iter()
        .map(|model| Way {
            model,
            ..way("single", None, 1, 20.0, 0.0)
        })
        .collect();
    let folder: RunFolder = write(path, &ways, REPEATS);
    folder.write_scenario(SCENARIO).unwrap();
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    let mut rows = Vec::new();
    for (trial, (norm, padding, batch, rate, error)) in trials.iter_mut().zip(norms) {
        (trial.model, trial.norm, trial.kind) = ("net".into(), (*norm).into(), "learning".into());
        trial.label = format!("{norm} {batch}");
        trial.norm_padding = padding.map(Into::into);
        trial.normalization_batch = Some(*batch);
        trial.optimizer = Some(format!("sgd learning_rate={rate} momentum=0.9"));
        for (repeat, (left, step)) in (0..REPEATS).flat_map(|repeat| {
            let steps = steps.iter().rev().enumerate();
            steps.map(move |(left, step)| (repeat, (left, *step)))
        }) {
            // What a repeat's seeds do is the same for all norms.
            let error = (error + f64::from(repeat) + 10.0 * left as f64) / 100.0;
            let mut row = LearningRow {
                trial: trial.trial.clone(),
                repeat,
                step,
                samples_seen: 3200,
                train_loss: Some(0.1),
                eval_loss: Some(0.2),
                eval_error: Some(error),
                batch_statistics_loss: None,
                batch_statistics_error: None,
                train_ns: Some(step * 1_000_000_000),
                train_eval_loss: None,
                train_eval_error: None,
                precise_loss: None,
                precise_error: (*norm == "batch").then_some(error - 0.05),
                dropout_loss: None,
                dropout_error: None,
            };
            change(trial, &mut row);
            rows.push(row);
        }
    }
    folder.write_trials(&trials).unwrap();
    folder.replace("learning.csv", &csv(&rows)).unwrap();
    let repeats: Vec<RepeatRow> = folder.read().unwrap();
    assert_eq!(repeats.len(), norms.len() * REPEATS as usize);
    render(path).unwrap()
}

fn sentences(rendered: &Rendered) -> String {
    answer(&rendered.data).sentences.join("\n")
}

#[test]
fn norms_with_a_rate_each_are_compared_and_the_rates_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let rendered = folder(
        dir.path(),
        &[
            ("batch", None, 2, "0.8", 12.0),
            ("batch", None, 32, "0.8", 8.0),
            ("group", None, 32, "0.4", 10.0),
        ],
    );
    let text = sentences(&rendered);
    for words in [
        "With stored statistics, batch norm loses to group norm at normalization batches of 2, and wins at 32.",
        "2: +2.00 [+2.00, +2.00]; 32: -2.00 [-2.00, -2.00].",
        "With PreciseBN, batch norm's error is smaller than group norm's at normalization batches of 2, 32, and it was not seen to lose at any.",
        "Each norm has a learning rate of its own: batch norm 0.8, group norm 0.4.",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let names: Vec<&str> = rendered
        .document
        .figures()
        .map(|figure| figure.name.as_str())
        .collect();
    assert!(
        names.contains(&"error-against-normalization-batch"),
        "{names:?}"
    );
}

#[test]
fn norms_without_batch_statistics_are_held_against_the_same_norm() {
    let dir = tempfile::tempdir().unwrap();
    let rendered = folder(
        dir.path(),
        &[
            ("batch", None, 32, "0.8", 8.0),
            ("layer", None, 32, "0.4", 10.0),
            ("rms", None, 32, "0.2", 7.0),
        ],
    );
    let text = sentences(&rendered);
    let words = "Without batch statistics, error minus that of layer norm in percentage points: rms norm -3.00 [-3.00, -3.00] (better).";
    assert!(text.contains(words), "{text}");
}

#[test]
fn where_a_norm_has_several_rates_equal_ones_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let rendered = folder(
        dir.path(),
        &[
            ("batch", None, 32, "0.1", 8.0),
            ("batch", None, 32, "0.2", 9.0),
            ("group", None, 32, "0.2", 10.0),
        ],
    );
    let text = sentences(&rendered);
    assert!(
        text.contains("by normalization batch: 32: -1.00 ["),
        "{text}"
    );
    assert!(!text.contains("of its own"), "{text}");
    // Group norm has one rate, so there is nothing to choose.
    let grid = "Learning rates with the smallest median error, by norm: batch norm 0.1 (10.5 % [8.0 %, 13.0 %]; next 0.2 with 11.5 % [9.0 %, 14.0 %]; at the end of \
                the grid: a better one may lie beyond).";
    assert!(text.contains(grid), "{text}");
}

#[test]
fn a_grid_names_the_best_rate_of_each_norm_and_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let rendered = folder(
        dir.path(),
        &[
            ("batch", None, 32, "0.1", 9.0),
            ("batch", None, 32, "0.2", 8.0),
            ("batch", None, 32, "0.4", 8.5),
            ("group", None, 32, "0.1", 10.0),
            ("group", None, 32, "0.2", 10.0),
            ("group", None, 32, "0.4", 11.0),
        ],
    );
    let text = sentences(&rendered);
    assert!(text.contains("by norm: batch norm 0.2 ("), "{text}");
    assert!(text.contains("; next 0.4 with"), "{text}");
    // Of equal ones the smaller, which is at the end of this grid.
    assert!(text.contains("group norm 0.1 ("), "{text}");
    assert_eq!(text.matches("a better one may lie beyond").count(), 1);
}

#[test]
fn without_group_norm_layer_norm_is_what_batch_norm_is_held_against() {
    let dir = tempfile::tempdir().unwrap();
    let rendered = folder(
        dir.path(),
        &[
            ("batch", Some("counted"), 64, "0.004", 12.0),
            ("batch", Some("masked"), 64, "0.002", 9.0),
            ("layer", None, 64, "0.001", 10.0),
        ],
    );
    let text = sentences(&rendered);
    for words in [
        "loses to layer norm at normalization batches of 64 (padding counted), and wins at 64 (padding masked)",
        "batch norm, padding counted 0.004, batch norm, padding masked 0.002, layer norm 0.001",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // One batch is no axis.
    let names: Vec<&str> = rendered
        .document
        .figures()
        .map(|figure| figure.name.as_str())
        .collect();
    assert_eq!(names, ["paired-differences-of-errors", "learning-curves"]);
    let differences = table(&rendered, "pairs");
    assert_eq!(differences.rows.len(), 2);
    assert!(differences.caption.contains("minus that of layer norm"));
}

#[test]
fn synchronized_statistics_are_held_against_those_of_a_device_and_against_group_norm() {
    let dir = tempfile::tempdir().unwrap();
    let norms = [
        ("batch", None, 2, "0.1", 12.0),
        ("batch", None, 4, "0.1", 10.0),
        ("sync-batch", None, 4, "0.1", 9.0),
        ("sync-batch", None, 8, "0.1", 8.0),
        ("group", None, 8, "0.1", 11.0),
    ];
    let rendered = folder_with(dir.path(), &norms, &[100], |trial, _| {
        // Two devices, and as many micro-batches as make 32 samples.
        (trial.devices, trial.strategy) = (2, "ddp".into());
        let own = trial.normalization_batch.unwrap_or(8);
        let devices = if trial.norm == "sync-batch" { 1 } else { 2 };
        trial.accumulation = Some(32 / own / devices);
    });
    let text = sentences(&rendered);
    for words in [
        "With stored statistics, batch norm loses to group norm at normalization batches of 2, and wins at 4.",
        "sync-batch norm's error is smaller than batch norm's at normalization batches of 4, 8,",
        "4: -3.00 [-3.00, -3.00]; 8: -2.00 [-2.00, -2.00].",
        "sync-batch norm's error is smaller than group norm's at normalization batches of 4, 8,",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let figures: Vec<&str> = rendered
        .document
        .figures()
        .map(|figure| figure.name.as_str())
        .collect();
    for name in [
        "error-against-normalization-batch",
        "paired-differences-of-errors",
    ] {
        assert!(figures.contains(&name), "{figures:?}");
    }
}

#[test]
fn trials_that_differ_in_layers_are_no_grid_and_gaps_are_the_answer_where_dropout_has_one() {
    let dir = tempfile::tempdir().unwrap();
    let norms = [
        ("group", None, 32, "0.05", 10.0),
        ("group", None, 32, "0.05", 11.0),
        ("batch", None, 32, "0.05", 9.0),
    ];
    let rendered = folder_with(dir.path(), &norms, &[100], |trial, row| {
        if trial.norm == "batch" {
            row.batch_statistics_loss = Some(0.15);
        } else {
            row.dropout_loss = Some(0.3);
        }
    });
    let text = sentences(&rendered);
    assert!(!text.contains("smallest median error"), "{text}");
    for words in [
        "of batch statistics: batch norm, 32 together +0.0500",
        "of dropout: group 32 -0.1000; group 32 -0.1000",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn the_pace_of_norms_is_told_to_an_error_that_all_reach() {
    let dir = tempfile::tempdir().unwrap();
    let norms = [
        ("batch", None, 32, "0.05", 5.0),
        ("group", None, 32, "0.05", 25.0),
    ];
    let rendered = folder_with(dir.path(), &norms, &[100, 200, 300, 400, 500], |_, _| ());
    let text = sentences(&rendered);
    // The last repeat of group norm ends at 30 %; all of batch norm's are there two evaluations before they end.
    assert!(
        text.contains(
            "To an error of 30.0 %, which all repeats end at or below: batch norm, 32 together"
        ),
        "{text}"
    );
    let pace = table(&rendered, "never reached in");
    assert_eq!(pace.rows.len(), 2);
    assert_eq!(pace.rows[0][1..], ["300", "300.0", "–"]);
    assert_eq!(pace.rows[1][1..], ["500", "500.0", "–"]);
}

#[test]
fn a_norm_that_does_not_learn_sets_no_level_and_never_reaches_one() {
    let dir = tempfile::tempdir().unwrap();
    let norms = [
        ("batch", None, 32, "0.05", 5.0),
        ("group", None, 32, "0.05", 25.0),
        ("layer", None, 32, "0.05", 90.0),
    ];
    let rendered = folder_with(dir.path(), &norms, &[100, 101, 102, 103, 104], |_, _| ());
    let text = sentences(&rendered);
    for words in [
        "To an error of 30.0 %, which those that learn end at or below: batch norm, 32 together",
        "; layer norm never in 6 repeats.",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let pace = table(&rendered, "never reached in");
    assert_eq!(pace.rows[2][1..], ["–", "–", "6 repeats"]);
}

#[test]
fn repeats_that_diverged_are_counted_and_left_out_of_the_figures() {
    let dir = tempfile::tempdir().unwrap();
    let norms = [
        ("batch", None, 2, "0.1", 12.0),
        ("group", None, 32, "0.1", 10.0),
    ];
    let whole = folder(dir.path(), &norms);
    assert!(!sentences(&whole).contains("Diverged"));
    let folder = RunFolder::open(dir.path()).unwrap();
    let mut repeats: Vec<RepeatRow> = folder.read().unwrap();
    let trials: Vec<TrialRow> = folder.read().unwrap();
    let diverged = repeats
        .iter_mut()
        .filter(|row| row.trial == trials[0].trial)
        .take(2);
    diverged.for_each(|row| row.outcome = Outcome::Diverged);
    folder.replace("repeats.csv", &csv(&repeats)).unwrap();
    let text = sentences(&render(dir.path()).unwrap());
    assert!(
        text.contains("Diverged: 2 repeats of batch 2; figures are those of the other repeats."),
        "{text}"
    );
    assert!(
        text.contains("too few repeats for a verdict on batch norm against group norm"),
        "{text}"
    );
}
