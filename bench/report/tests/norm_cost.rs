//! What norms cost, from made-up rows: times and bytes of norms alone, ratios within repeats, SyncBatchNorm's exchanges a step.
mod fixtures;

use std::path::Path;

use fixtures::{Way, table, way, write};
use serde::Serialize;
use syncmark_record::{
    RunFolder,
    rows::{CeilingRow, CommRow, DeviceRow, LayerRow, TrialRow},
};
use syncmark_report::{
    markdown::markdown,
    norm_cost::{norm_costs, norm_of, sync_costs},
    render,
};

const SCENARIO: &str =
    "name = \"norms\"\nquestion = \"What does each norm cost?\"\nkind = \"norm-cost\"\n";
const REPEATS: u32 = 2;

fn csv<R: Serialize>(rows: &[R]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().for_each(|row| writer.serialize(row).unwrap());
    writer.into_inner().unwrap()
}

fn layer(
    trial: &str,
    repeat: u32,
    (node, layer): (u32, &str),
    forward: bool,
    [ns, bytes]: [u64; 2],
    within: Option<u32>,
) -> LayerRow {
    LayerRow {
        trial: trial.into(),
        repeat,
        node,
        layer: layer.into(),
        name: format!("{node} {layer}"),
        output_shape: "4×2×2".into(),
        direction: if forward { "forward" } else { "backward" }.into(),
        calls: 10,
        time_ns_p10: 0,
        // The second repeat is half as fast.
        time_ns_p50: ns * u64::from(repeat + 1),
        time_ns_p90: 0,
        flops: None,
        read_write_bytes: Some(bytes),
        parameters: 0,
        within,
        algorithm: None,
        kept_bytes: (forward && layer == "batch-norm").then_some(bytes / 4),
    }
}

/// Rows of a network of two norms, one of which also does a rectifier, and a convolution.
fn layers(trial: &str) -> Vec<LayerRow> {
    let mut rows = Vec::new();
    for repeat in 0..REPEATS {
        for (forward, factor) in [(true, 1_u64), (false, 2)] {
            let row = |node, kind, ns, bytes, within| {
                let cost = [factor * ns, factor * bytes];
                layer(trial, repeat, (node, kind), forward, cost, within)
            };
            rows.extend([
                row(0, "conv2d", 9_000_000, 1_000, None),
                row(1, "batch-norm", 1_000_000, 4_000_000, None),
                row(2, "relu", 0, 1_000_000, Some(1)),
                row(3, "batch-norm", 1_000_000, 3_000_000, None),
                row(4, "relu", 500_000, 1_000, None),
            ]);
        }
    }
    rows
}

/// Memory moves 8 bytes a nanosecond, in the second repeat 4.
fn ceilings(trial: &str) -> Vec<CeilingRow> {
    let row = |repeat: u32| CeilingRow {
        trial: trial.into(),
        repeat,
        ceiling: "memory-read-write".into(),
        threads: 1,
        instructions: None,
        working_set_bytes: Some(1 << 28),
        last_level_cache_bytes: None,
        windows: 12,
        unit: "B/s".into(),
        median: 8e9 / f64::from(repeat + 1),
        best: 9e9,
        p25: 7e9,
        p75: 8e9,
    };
    (0..REPEATS).map(row).collect()
}

fn exchange(trial: &str, repeat: u32, rank: u32, wait_ns: u64) -> CommRow {
    CommRow {
        trial: trial.into(),
        repeat,
        rank,
        phase: "sync_batch_norm".into(),
        collective: "all_reduce".into(),
        algorithm: "shared-direct".into(),
        calls: 200,
        steps: 50,
        size_bytes: 1_000,
        payload_bytes: 200_000,
        sent_bytes: Some(100_000),
        received_bytes: Some(100_000),
        predicted_sent_bytes: Some(100_000),
        predicted_received_bytes: Some(100_000),
        measured_sent_bytes: None,
        wait_ns_p50: Some(wait_ns),
        wait_ns_p90: Some(wait_ns),
        transfer_ns_p50: Some(10_000),
        transfer_ns_p90: Some(10_000),
    }
}

/// A model without norms and with batch norm on one device; batch norm and SyncBatchNorm on two ranks.
fn folder(path: &Path) -> RunFolder {
    let named = |model, way: Way| Way { model, ..way };
    let ddp = |step_ms| way("ddp", Some("threads"), 2, step_ms, 1.0);
    let ways = [
        named("a", way("single", None, 1, 20.0, 0.0)),
        named("b", way("single", None, 1, 25.0, 0.0)),
        named("a", ddp(30.0)),
        named("b", ddp(36.0)),
    ];
    let folder = write(path, &ways, REPEATS);
    folder.write_scenario(SCENARIO).unwrap();
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    for (trial, norm) in trials
        .iter_mut()
        .zip(["none", "batch", "batch", "sync-batch"])
    {
        (trial.model, trial.norm) = ("net".into(), norm.into());
        if trial.devices == 1 {
            trial.kind = "layer-cost".into();
        }
    }
    let [none, batch, _, sync] = [0, 1, 2, 3].map(|index: usize| trials[index].trial.clone());
    folder.write_trials(&trials).unwrap();
    let mut devices: Vec<DeviceRow> = folder.read().unwrap();
    for row in &mut devices {
        row.activations_bytes = if row.trial == none { 1_000 } else { 5_096 };
    }
    let mut comm: Vec<CommRow> = folder.read().unwrap();
    for repeat in 0..REPEATS {
        comm.extend([(0, 5_000), (1, 50_000)].map(|(rank, ns)| exchange(&sync, repeat, rank, ns)));
    }
    folder.replace("devices.csv", &csv(&devices)).unwrap();
    folder.replace("comm.csv", &csv(&comm)).unwrap();
    folder.replace("layers.csv", &csv(&layers(&batch))).unwrap();
    folder
        .replace("ceilings.csv", &csv(&ceilings(&batch)))
        .unwrap();
    folder
}

#[test]
fn norms_have_their_own_nodes_and_what_is_done_within_them() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let rendered = render(dir.path()).unwrap();
    let costs = norm_costs(&rendered.data);
    assert_eq!(costs.len(), 2);
    let batch = costs
        .iter()
        .find(|cost| cost.trial.norm == "batch")
        .unwrap();
    assert_eq!(batch.nodes, 2);
    // 2 ms in the first repeat, 4 ms in the second; the rectifier by itself and the convolution are none of the norms'.
    let close = |found: Option<f64>, expected: f64| {
        assert!(
            (found.unwrap() - expected).abs() < 1e-9,
            "{found:?} {expected}"
        );
    };
    close(batch.forward.time.map(|e| e.value), 3.0);
    close(batch.backward.time.map(|e| e.value), 6.0);
    // 8 MB at 8 bytes a nanosecond are 1 ms of 2, and in the slower repeat 2 of 4.
    close(batch.forward.share.map(|e| e.value), 0.5);
    close(batch.forward.share.map(|e| e.high), 0.5);
    close(batch.backward.share.map(|e| e.value), 0.5);
    close(batch.forward.at_ceiling, 1.5);
    assert_eq!(batch.kept, Some(1_750_000), "a quarter of 4 and 3 MB");
    assert_eq!(batch.activations_beside_none, Some(4_096));
    let beside = batch.beside_none.unwrap();
    assert!((beside.value - 1.25).abs() < 0.03, "{beside:?}");
    let none = costs.iter().find(|cost| cost.trial.norm == "none").unwrap();
    assert_eq!((none.nodes, none.kept, none.beside_none), (0, None, None));
    assert_eq!(none.activations_beside_none, None);
}

/// As ours, under its own name, against the same bytes and beside the same step without norms.
#[test]
fn batch_norm_by_cudnn_has_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    let is_timed = |trial: &&mut TrialRow| trial.kind == "layer-cost" && trial.norm == "batch";
    let timed = trials.iter_mut().find(is_timed).unwrap();
    timed.cuda_batch_norm = Some("cudnn".into());
    folder.write_trials(&trials).unwrap();
    let rendered = render(dir.path()).unwrap();
    let costs = norm_costs(&rendered.data);
    let cost = costs.iter().find(|cost| cost.nodes > 0).unwrap();
    assert_eq!(norm_of(cost.trial), "batch (cuDNN)");
    assert!((cost.forward.share.unwrap().value - 0.5).abs() < 1e-9);
    assert!(cost.beside_none.is_some(), "{cost:?}");
    let rows = &table(&rendered, "beside one without norms").rows;
    assert!(
        rows.iter().any(|row| row[0].contains("batch (cuDNN) norm")),
        "{rows:?}"
    );
    let text = markdown(&rendered.document);
    assert!(text.contains("batch (cuDNN) norm's kernels take"), "{text}");
    let figures = rendered.document.figures();
    let mut charts = figures.filter(|figure| figure.name.starts_with("norm-cost-"));
    assert!(charts.any(|figure| figure.svg.contains("batch (cuDNN) norm")));
}

#[test]
fn exchanges_are_those_of_a_step_and_of_the_slowest_rank() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let rendered = render(dir.path()).unwrap();
    let costs = sync_costs(&rendered.data);
    let [cost] = &costs[..] else {
        panic!("{costs:?}")
    };
    assert_eq!(cost.trial.norm, "sync-batch");
    assert_eq!(
        (cost.calls, cost.payload, cost.sent),
        (4.0, 4_000.0, Some(2_000.0))
    );
    // Four calls of 50 µs, of rank 1.
    assert!((cost.wait.unwrap().value - 0.2).abs() < 1e-12);
    assert!((cost.transfer.unwrap().value - 0.04).abs() < 1e-12);
    let beside = cost.beside_batch.unwrap();
    assert!((beside.value - 1.2).abs() < 0.03, "{beside:?}");
}

#[test]
fn the_report_is_about_norms_in_place_of_every_node() {
    let dir = tempfile::tempdir().unwrap();
    folder(dir.path());
    let rendered = render(dir.path()).unwrap();
    let row = &table(&rendered, "beside one without norms").rows;
    assert_eq!(row.len(), 2);
    assert!(
        row.iter().any(|row| row[3].starts_with("50.0 %")),
        "{row:?}"
    );
    assert_eq!(table(&rendered, "beside batch norm").rows.len(), 1);
    let text = markdown(&rendered.document);
    for words in [
        "Cost of norms",
        "of the step, the whole step is 1.2",
        "SyncBatchNorm, net,",
        "4 collectives and 4.000 kB a step from each rank, and a step is 1.1",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains(": every node,"), "{text}");
    let figure = rendered
        .document
        .figures()
        .find(|figure| figure.name.starts_with("norm-cost-"));
    let svg = &figure.expect("the chart is there").svg;
    for words in ["batch norm", "50 % / 50 %", "beyond its ceiling"] {
        assert!(svg.contains(words), "{words}");
    }
}
