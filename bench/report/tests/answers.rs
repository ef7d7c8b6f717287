//! The answer in words: what it compares, what it says, and what it does not rest on.
mod fixtures;

use std::fs;

use fixtures::{SMALL, Way, rendered, table, way, write};
use syncmark_record::{Outcome, rows::TrialRow};
use syncmark_report::{document::Block, render};

#[test]
fn the_answer_names_the_direction_the_interval_and_the_bytes() {
    let (_, rendered) = rendered("answer", &SMALL, 8);
    let answer = rendered.document.answer.join("\n");
    assert!(
        answer.contains("dp against ddp (2 comparisons of 8): faster in none, slower in 2."),
        "{answer}"
    );
    assert!(
        answer.contains("dp ×2 is at 0.77") && answer.contains("of ddp-threads ×2"),
        "{answer}"
    );
    assert!(
        answer.contains("95 % interval") && answer.contains("% lower"),
        "{answer}"
    );
    assert!(answer.contains("dp ×2 sends"), "{answer}");
    assert!(
        answer.contains("those on one device (where nothing is exchanged) are left out above"),
        "{answer}"
    );
}

#[test]
fn equal_strategies_cannot_be_told_apart() {
    let ways = [
        way("dp", None, 2, 24.0, 2.0),
        way("ddp", Some("processes"), 2, 24.0, 2.0),
    ];
    let (_, rendered) = rendered("equal", &ways, 10);
    let answer = rendered.document.answer.join("\n");
    assert!(answer.contains("no difference can be told"), "{answer}");
    assert!(
        !answer.contains("% lower") && !answer.contains("% higher"),
        "{answer}"
    );
}

/// The sentences and the number of comparisons for another `[answer]`.
fn answered(name: &str, ways: &[Way], factor: &str, baseline: &str) -> (String, usize) {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    let folder = write(&path, ways, 8);
    let scenario = fixtures::SCENARIO
        .replace("\"parallel.strategy\"", &format!("{factor:?}"))
        .replace("baseline = \"ddp\"", &format!("baseline = {baseline:?}"));
    folder.write_scenario(&scenario).unwrap();
    let rendered = render(&path).unwrap();
    let comparisons = rendered
        .document
        .blocks
        .iter()
        .find_map(|block| match block {
            Block::Table(table) if table.headers.contains(&"verdict".to_string()) => {
                Some(table.rows.len())
            }
            _ => None,
        });
    (
        rendered.document.answer.join("\n"),
        comparisons.unwrap_or(0),
    )
}

#[test]
fn only_trials_that_differ_in_the_factor_alone_are_compared() {
    let other = SMALL.map(|w| Way {
        model: "resnet20",
        ..w
    });
    let all: Vec<Way> = SMALL.iter().chain(&other).copied().collect();
    // In each model: on one device single and dp, on two independent and dp, each against threads and processes.
    assert_eq!(
        answered("fair-strategy", &all, "parallel.strategy", "ddp").1,
        2 * 4 * 2
    );
    // Threads against processes: ddp on one and on two devices, independent on two.
    assert_eq!(
        answered("fair-launch", &all, "parallel.launch", "processes").1,
        2 * 3
    );
    // dp, ddp-threads and ddp-processes on two devices against themselves on one.
    let (answer, comparisons) = answered("fair-devices", &SMALL, "parallel.devices", "1");
    assert_eq!(comparisons, 3);
    assert!(answer.contains("ddp-threads ×2 is at 1.6"), "{answer}");
    // Every way exists for both models.
    assert_eq!(
        answered("fair-model", &all, "model.preset", "convnet").1,
        SMALL.len()
    );
}

#[test]
fn an_answer_that_cannot_be_given_says_why() {
    let (answer, comparisons) = answered("factor", &SMALL, "parallel.colour", "red");
    assert!(
        comparisons == 0 && answer.contains("parallel.colour is no column"),
        "{answer}"
    );
    let (answer, _) = answered("baseline", &SMALL, "parallel.strategy", "fsdp");
    assert!(answer.contains("with fsdp as baseline"), "{answer}");
}

#[test]
fn the_answer_does_not_rest_on_oversubscribed_trials_where_there_are_others() {
    let mut ways: Vec<Way> = SMALL.to_vec();
    ways.extend([
        way("dp", None, 4, 70.0, 20.0),
        way("ddp", Some("threads"), 4, 52.0, 5.0),
    ]);
    let (_, rendered) = rendered("crowded", &ways, 8);
    let answer = rendered.document.answer.join("\n");
    assert!(
        answer.contains("dp ×2") && !answer.contains("×4"),
        "{answer}"
    );
    assert!(answer.contains("All 9 fair comparisons"), "{answer}");
}

/// The rows of a folder after a change to each trial's own.
fn changed(
    name: &str,
    ways: &[Way],
    change: impl Fn(usize, &mut TrialRow),
) -> syncmark_report::Rendered {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&path);
    let folder = write(&path, ways, 8);
    let mut rows: Vec<TrialRow> = folder.read().unwrap();
    for (index, row) in rows.iter_mut().enumerate() {
        change(index, row);
    }
    folder.write_trials(&rows).unwrap();
    render(&path).unwrap()
}

#[test]
fn an_unsteady_trial_is_named_in_the_verdict_the_legend_and_the_captions() {
    let ways = [
        way("dp", None, 2, 31.0, 8.0),
        way("ddp", Some("threads"), 2, 23.9, 1.4),
    ];
    let rendered = changed("unsteady", &ways, |_, row| {
        if row.strategy == "dp" {
            row.outcome = Outcome::Unsteady;
        }
    });
    let answer = rendered.document.answer.join("\n");
    assert!(answer.contains("; dp ×2 unsteady)"), "{answer}");
    let verdicts = table(&rendered, "verdict");
    assert_eq!(verdicts.rows[0][5], "slower; dp ×2 unsteady");
    for figure in rendered.document.figures() {
        // A timeline is one step of another pass: its label is enough.
        let caption = "Unsteady within their windows: dp ×2.";
        assert!(
            (figure.caption.contains(caption) || figure.name.starts_with("timeline"))
                && figure.svg.contains("unsteady"),
            "{}: {}",
            figure.name,
            figure.caption
        );
    }
}

/// Trials that differ in their micro-batches alone have one name, and must not be said to be one.
#[test]
fn what_a_name_does_not_tell_stands_beside_it() {
    let ways = [1, 2, 4].map(|_| way("ddp", Some("threads"), 2, 23.9, 1.4));
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("accumulation");
    let _ = fs::remove_dir_all(&path);
    let folder = write(&path, &ways[..1], 8);
    let scenario = fixtures::SCENARIO
        .replace("parallel.strategy", "train.accumulation")
        .replace("\"ddp\"", "1");
    folder.write_scenario(&scenario).unwrap();
    // Three trials of the same repeats: as many micro-batches, as many more samples.
    let first: TrialRow = folder.read::<TrialRow>().unwrap().remove(0);
    let rows: Vec<TrialRow> = [1, 2, 4]
        .map(|count| TrialRow {
            trial: format!("{}-{count}", first.trial),
            variant: Some("ddp-usual".into()),
            accumulation: Some(count),
            global_batch: first.global_batch * count,
            device_batch: first.device_batch * count,
            ..first.clone()
        })
        .to_vec();
    for file in ["repeats.csv", "comm.csv"] {
        let text = fs::read_to_string(path.join(file)).unwrap();
        let (header, lines) = text.split_once('\n').unwrap();
        let copies = rows
            .iter()
            .map(|row| lines.replace(&first.trial, &row.trial));
        fs::write(
            path.join(file),
            format!("{header}\n{}", copies.collect::<String>()),
        )
        .unwrap();
    }
    folder.write_trials(&rows).unwrap();
    let rendered = render(&path).unwrap();
    let answer = rendered.document.answer.join("\n");
    for words in [
        "ddp-usual ×2 with 2 micro-batches is at",
        "ddp-usual ×2 with 4 micro-batches sends",
        "of ddp-usual ×2 with 1 micro-batch (",
        "32 samples a device and micro-batch",
    ] {
        assert!(answer.contains(words), "{words} in {answer}");
    }
    let swept: Vec<&str> = rendered
        .document
        .figures()
        .map(|figure| figure.title.as_str())
        .filter(|title| title.contains(" against "))
        .collect();
    assert!(
        swept.contains(&"Throughput and step time against accumulated micro-batches")
            && !swept.iter().any(|title| title.contains("batch size")),
        "{swept:?}"
    );
}
