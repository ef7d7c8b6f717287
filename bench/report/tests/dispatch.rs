//! The host's time beside the device's, from made-up rows: medians of the rank that is held up most, over repeats with figures, in a table,
//! and in the answer where the scenario asks for graphs.
mod fixtures;

use std::path::Path;

use fixtures::{Way, table, way, write};
use serde::Serialize;
use syncmark_record::{
    RunFolder,
    rows::{Pass, PhaseRow, StepRow, TrialRow},
};
use syncmark_report::{dispatch::dispatch_costs, markdown::markdown, render};

const ASKED: &str = r#"name = "graphs"
question = "What does a graph leave of the host's time?"
kind = "train"
[answer]
factor = "train.cuda_graph"
baseline = "false"
metric = "samples_per_s"
"#;
const REPEATS: u32 = 6;

fn csv<R: Serialize>(rows: &[R]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().for_each(|row| writer.serialize(row).unwrap());
    writer.into_inner().unwrap()
}

/// A step of the pass; times in microseconds.
fn told(like: &StepRow, rank: u32, step: u64, [host, batch, device]: [u64; 3]) -> StepRow {
    StepRow {
        rank,
        pass: Pass::Dispatch,
        step,
        forward_ns: None,
        dispatch_ns: Some(host * 1000),
        upload_ns: Some(batch * 1000),
        device_ns: Some(device * 1000),
        ..like.clone()
    }
}

/// One model on one GPU, kernel by kernel and as one graph; the latter was not traced.
fn folder(path: &Path, scenario: &str) -> RunFolder {
    let named = |model, way: Way| Way { model, ..way };
    let ways = [
        named("a", way("single", None, 1, 20.0, 0.0)),
        named("b", way("single", None, 1, 16.0, 0.0)),
    ];
    let folder = write(path, &ways, REPEATS);
    folder.write_scenario(scenario).unwrap();
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    for (trial, graph) in trials.iter_mut().zip([false, true]) {
        (trial.model, trial.backend) = ("net".into(), "cuda".into());
        (trial.cuda_graph, trial.precision) = (Some(graph), Some("tf32".into()));
    }
    let [one_by_one, graph] = [0, 1].map(|index: usize| trials[index].trial.clone());
    folder.write_trials(&trials).unwrap();
    let traced: Vec<StepRow> = folder.read().unwrap();
    let like = |trial: &str| traced.iter().find(|row| row.trial == trial).unwrap();
    let mut steps: Vec<StepRow> = traced
        .iter()
        .filter(|row| row.trial == one_by_one)
        .cloned()
        .collect();
    for repeat in 0..REPEATS {
        let row = |trial: &str, rank, step, times| StepRow {
            repeat,
            ..told(like(trial), rank, step, times)
        };
        // The second of three steps is the median one; rank 1 is held up less.
        for (step, host) in [(0, 9_000), (1, 4_000 + u64::from(repeat)), (2, 3_000)] {
            steps.push(row(&one_by_one, 0, step, [host, 700, 10_000]));
            steps.push(row(&one_by_one, 1, step, [100, 700, 10_000]));
        }
        steps.push(row(&graph, 0, 0, [80, 600, 8_000]));
    }
    folder.replace("steps.csv", &csv(&steps)).unwrap();
    let mut phases: Vec<PhaseRow> = folder.read().unwrap();
    phases.retain(|row| row.trial == one_by_one);
    folder.replace("phases.csv", &csv(&phases)).unwrap();
    folder
}

#[test]
fn a_repeat_is_the_median_step_of_the_rank_that_is_held_up_most() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), ASKED);
    let rendered = render(dir.path()).unwrap();
    let costs = dispatch_costs(&rendered.data);
    let [one_by_one, graph] = &costs[..] else {
        panic!("{costs:?}")
    };
    let close = |found: f64, expected: f64| {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    };
    // 4.000 to 4.005 ms over six repeats.
    let host = one_by_one.dispatch.unwrap();
    close(host.value, 4.0025);
    assert!(host.low >= 4.0 && host.high <= 4.005 && host.low < host.high);
    close(one_by_one.share.unwrap().value, 0.40025);
    close(one_by_one.upload.unwrap().value, 0.7);
    close(one_by_one.device.unwrap().value, 10.0);
    close(graph.share.unwrap().value, 0.01);
}

#[test]
fn the_report_has_the_table_and_the_answer_has_the_shares_if_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path(), ASKED);
    let rendered = render(dir.path()).unwrap();
    let rows = &table(&rendered, "enqueuing, share of the device's time").rows;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1][1], "single as one graph ×1");
    assert!(rows[0][5].starts_with("40.0 %"), "{rows:?}");
    let text = markdown(&rendered.document);
    for words in [
        "Host and device",
        "the host enqueues a step's kernels one by one in 40.0 %",
        "; as one CUDA graph, 1.0 % of the device's 8.000 ms",
        "one CUDA graph",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // A sum over steps of the new pass would have changed the traced steps' means.
    assert_eq!(rendered.data.phases.len(), 1, "a graph has no phases");
    let names: Vec<_> = rendered.document.figures().map(|f| &f.name).collect();
    println!("{names:?}");
}

#[test]
fn a_run_without_the_pass_says_nothing_of_it() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &fixtures::SMALL, 2);
    let rendered = render(dir.path()).unwrap();
    assert!(dispatch_costs(&rendered.data).is_empty());
    assert!(!markdown(&rendered.document).contains("Host and device"));
}
