//! The answer in words: what it compares, what it says, and what it does not rest on.
mod fixtures;

use std::fs;

use fixtures::{SMALL, Way, rendered, way, write};
use syncmark_report::{document::Block, render};

#[test]
fn the_answer_names_the_direction_the_interval_and_the_bytes() {
    let (_, rendered) = rendered("answer", &SMALL, 8);
    let answer = rendered.document.answer.join("\n");
    assert!(
        answer.contains("dp against ddp") && answer.contains("faster in none, slower in 2"),
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
    // ddp alone has launches: threads against processes on one and on two devices.
    assert_eq!(
        answered("fair-launch", &all, "parallel.launch", "processes").1,
        2 * 2
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
