//! Algorithms of NVIDIA's libraries in a report, from made-up rows: the table, and who did not take the same.
mod fixtures;

use fixtures::{table, way, write};
use syncmark_record::{
    RunFolder,
    rows::{AlgorithmRow, RepeatRow, TrialRow},
};
use syncmark_report::{Rendered, markdown::markdown, render};

/// A run of single and DDP in which every repeat took a row of `of(strategy, repeat)`, rendered.
fn with(of: fn(&str, u32) -> Vec<AlgorithmRow>) -> (tempfile::TempDir, Rendered) {
    let dir = tempfile::tempdir().unwrap();
    let ways = [
        way("single", None, 1, 20.0, 0.0),
        way("ddp", Some("processes"), 2, 21.0, 0.5),
    ];
    let folder = write(dir.path(), &ways, 3);
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    for trial in &mut trials {
        trial.precision = Some("tf32".into());
    }
    folder.write_trials(&trials).unwrap();
    let repeats: Vec<RepeatRow> = folder.read().unwrap();
    let mut writer = csv::Writer::from_writer(Vec::new());
    for repeat in &repeats {
        let own = |trial: &&TrialRow| trial.trial == repeat.trial;
        let strategy = &trials.iter().find(own).unwrap().strategy;
        for row in of(strategy, repeat.repeat) {
            let (trial, repeat) = (repeat.trial.clone(), repeat.repeat);
            writer
                .serialize(AlgorithmRow {
                    trial,
                    repeat,
                    ..row
                })
                .unwrap();
        }
    }
    folder
        .replace("algorithms.csv", &writer.into_inner().unwrap())
        .unwrap();
    let rendered = render(dir.path()).unwrap();
    (dir, rendered)
}

fn row(operation: &str, shape: &str, algorithm: &str) -> AlgorithmRow {
    AlgorithmRow {
        trial: String::new(),
        repeat: 0,
        device: 0,
        library: "cuDNN".into(),
        operation: operation.into(),
        shape: shape.into(),
        algorithm: algorithm.into(),
        workspace_bytes: 4_000_000,
        deterministic: true,
        math: "DEFAULT_MATH".into(),
    }
}

fn alike(_: &str, _: u32) -> Vec<AlgorithmRow> {
    vec![
        row("convolution forward", "a", "FWD_ALGO_IMPLICIT_GEMM"),
        AlgorithmRow {
            workspace_bytes: 5_000_000,
            ..row("convolution forward", "b", "FWD_ALGO_IMPLICIT_GEMM")
        },
        AlgorithmRow {
            deterministic: false,
            math: String::new(),
            ..row("convolution weight gradient", "a", "BWD_FILTER_ALGO_1")
        },
    ]
}

#[test]
fn algorithms_stand_by_operation_with_the_number_of_their_shapes() {
    let (_dir, rendered) = with(alike);
    let rows = &table(&rendered, "multiplies by").rows;
    let seen: Vec<_> = rows.iter().map(|row| &row[1..]).collect();
    assert_eq!(
        seen,
        [
            [
                "tf32",
                "cuDNN",
                "convolution forward",
                "FWD_ALGO_IMPLICIT_GEMM",
                "DEFAULT_MATH",
                "2",
                "5.000 MB",
                "yes"
            ],
            [
                "tf32",
                "cuDNN",
                "convolution weight gradient",
                "BWD_FILTER_ALGO_1",
                "–",
                "1",
                "4.000 MB",
                "not said"
            ]
        ]
    );
    let text = markdown(&rendered.document);
    assert!(text.contains("## Algorithms of NVIDIA's libraries"));
    assert!(!text.contains("took different algorithms"), "{text}");
}

#[test]
fn a_pair_that_took_different_algorithms_is_told() {
    // Of DDP, the forward of one shape alone is another one; a shape that only it has is no difference.
    let (_dir, rendered) = with(|strategy, _| {
        let mut rows = alike(strategy, 0);
        if strategy == "ddp" {
            rows[0].algorithm = "FWD_ALGO_GEMM".into();
            rows.push(row("convolution forward", "c", "FWD_ALGO_DIRECT"));
        }
        rows
    });
    let text = markdown(&rendered.document);
    assert!(
        text.contains("took different algorithms for 1 of the 3 operations and shapes"),
        "{text}"
    );
    assert!(!text.contains("its repeats or devices"), "{text}");
    assert_eq!(table(&rendered, "multiplies by").rows.len(), 4);
}

#[test]
fn repeats_that_took_different_algorithms_are_told() {
    let (_dir, rendered) = with(|strategy, repeat| {
        let mut rows = alike(strategy, repeat);
        if strategy == "single" && repeat == 2 {
            rows[1].math = "FMA_MATH".into();
        }
        rows
    });
    let text = markdown(&rendered.document);
    assert!(
        text.contains(
            "its repeats or devices took different algorithms for 1 of its 3 operations and shapes"
        ),
        "{text}"
    );
}

#[test]
fn a_folder_without_the_file_has_no_such_section() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &[way("single", None, 1, 20.0, 0.0)], 2);
    let folder = RunFolder::open(dir.path()).unwrap();
    assert!(folder.read::<AlgorithmRow>().unwrap().is_empty());
    assert!(!dir.path().join("algorithms.csv").exists());
    let text = markdown(&render(dir.path()).unwrap().document);
    assert!(!text.contains("Algorithms of NVIDIA"), "{text}");
}
