//! Figures as shares of what the machine could do at best, from made-up rows: right, never cut off, and absent without ceilings.
mod fixtures;

use std::path::Path;

use fixtures::{table, way, write};
use serde::Serialize;
use syncmark_record::{
    RunFolder,
    rows::{CeilingRow, CollectiveRow, LayerRow, TrialRow},
};
use syncmark_report::{
    Rendered,
    markdown::markdown,
    nodes::{NodeCost, nodes, worst},
    render,
};

fn csv<R: Serialize>(rows: &[R]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().for_each(|row| writer.serialize(row).unwrap());
    writer.into_inner().unwrap()
}

fn ceiling(trial: &str, repeat: u32, ceiling: &str, unit: &str, median: f64) -> CeilingRow {
    CeilingRow {
        trial: trial.into(),
        repeat,
        ceiling: ceiling.into(),
        threads: 1,
        instructions: None,
        working_set_bytes: unit.eq("B/s").then_some(1 << 28),
        last_level_cache_bytes: None,
        windows: 12,
        unit: unit.into(),
        median,
        best: median * 1.1,
        p25: median * 0.9,
        p75: median * 1.05,
    }
}

/// A node of the model: number, kind, what one call of each direction takes, what it computes and moves, and within which it is executed.
type Node = (u32, &'static str, [u64; 2], Option<u64>, u64, Option<u32>);

const NODES: [Node; 4] = [
    (0, "conv2d", [1_000, 4_000], Some(40_000), 100, None),
    (1, "batch-norm", [2_000, 2_000], None, 10_000, None),
    (2, "relu", [10, 10], None, 2_000, Some(1)),
    (3, "flatten", [50, 50], None, 0, None),
];

fn layers(trial: &str) -> Vec<LayerRow> {
    let row = |repeat: u32, forward: bool, index: usize| {
        let (node, layer, time, flops, bytes, within) = NODES[index];
        // The second repeat is half as fast.
        let slower = u64::from(repeat) + 1;
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
            time_ns_p50: slower * time[usize::from(!forward)],
            time_ns_p90: 9_000,
            flops: flops.map(|flops| if forward { flops } else { 2 * flops }),
            read_write_bytes: Some(bytes),
            parameters: 0,
            within,
            kept_bytes: None,
            algorithm: (layer == "conv2d").then(|| {
                if forward {
                    "direct"
                } else {
                    "dx im2row, dw direct"
                }
                .into()
            }),
        }
    };
    let repeats = (0..2).flat_map(|repeat| [(repeat, true), (repeat, false)]);
    repeats
        .flat_map(|(repeat, forward)| (0..NODES.len()).map(move |i| row(repeat, forward, i)))
        .collect()
}

/// A folder of one profile in two repeats. The machine's peak is 80 operations and its bandwidth 4 bytes a nanosecond, and half of that
/// in the second repeat, like everything.
fn profile(path: &Path) -> RunFolder {
    let folder = write(path, &[way("single", None, 1, 0.02, 0.0)], 2);
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    trials[0].kind = "layer-cost".into();
    let id = trials[0].trial.clone();
    folder.write_trials(&trials).unwrap();
    let scenario =
        "name = \"profile\"\nquestion = \"What does each layer cost?\"\nkind = \"layer-cost\"\n";
    folder.write_scenario(scenario).unwrap();
    folder.replace("layers.csv", &csv(&layers(&id))).unwrap();
    let ceilings: Vec<CeilingRow> = [(0, 1.0), (1, 0.5)]
        .iter()
        .flat_map(|(repeat, speed)| {
            [
                ceiling(&id, *repeat, "multiply-add", "flop/s", 80e9 * speed),
                ceiling(&id, *repeat, "memory-read", "B/s", 6e9 * speed),
                ceiling(&id, *repeat, "memory-read-write", "B/s", 4e9 * speed),
            ]
        })
        .collect();
    folder.replace("ceilings.csv", &csv(&ceilings)).unwrap();
    folder
}

fn costs(rendered: &Rendered) -> Vec<NodeCost> {
    nodes(&rendered.data, &rendered.data.trials[0])
}

#[test]
fn shares_are_taken_within_repeats_and_never_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    profile(dir.path());
    let costs = costs(&render(dir.path()).unwrap());
    let share = |held: &syncmark_report::nodes::Held| held.share.map(|[share, ..]| share);
    // 40 operations a nanosecond of 80; backward 20. The slower repeat has the slower ceiling, so the shares are the same.
    assert_eq!(
        costs[0].held_forward.share,
        Some([0.5, 0.5, 0.5]),
        "{:?}",
        costs[0]
    );
    assert_eq!(share(&costs[0].held_backward), Some(0.25));
    assert_eq!(costs[0].held_forward.rate, Some(30.0), "40 and 20");
    // The norm and the relu within it move 12 kB in 2010 ns, more than memory could: it came from a cache.
    let expected = 12_000.0 / 2_010.0 / 4.0;
    let found = share(&costs[1].held_forward).unwrap();
    assert!((found - expected).abs() < 1e-12 && found > 1.0, "{found}");
    assert!(costs[1].held_forward.lost.unwrap() < 0.0);
    assert_eq!(costs[1].lost(), Some(0.0));
    // What is executed within another is held together with it, and not once more.
    assert_eq!((costs[2].within, costs[2].lost()), (Some(1), None));
    // Nothing to move: all its time is lost, and there is no share.
    assert_eq!(share(&costs[3].held_forward), None);
    assert_eq!(costs[3].lost(), Some(150.0), "median of 100 and 200");
}

#[test]
fn the_worst_node_is_the_one_that_loses_most_time() {
    let dir = tempfile::tempdir().unwrap();
    profile(dir.path());
    let costs = costs(&render(dir.path()).unwrap());
    let worst: Vec<u32> = worst(&costs).iter().map(|node| node.node).collect();
    assert_eq!(worst, [0, 3]);
}

#[test]
fn the_report_shows_shares_the_ceilings_and_the_floor_of_a_step() {
    let dir = tempfile::tempdir().unwrap();
    profile(dir.path());
    let rendered = render(dir.path()).unwrap();
    let every = table(&rendered, "lost (µs)");
    assert_eq!(every.rows[0][4], "30.0 GFLOP/s, 50.0 %");
    assert!(every.rows[1][4].ends_with("149.3 %"), "{:?}", every.rows[1]);
    assert_eq!(every.rows[2][4], "in node 1");
    assert_eq!(every.rows[3][4], "–");
    assert_eq!(every.rows[0][9], "direct; dx im2row, dw direct");
    assert_eq!(every.rows[1][9], "–");
    let ceilings = table(&rendered, "best window");
    assert_eq!(ceilings.rows.len(), 3);
    assert_eq!(ceilings.rows[0][2..4], ["GFLOP/s", "60.0 [40.0, 80.0]"]);
    // 120,000 operations at 80 a nanosecond are 1.5 µs, at 40 they are 3 µs.
    let floor = table(&rendered, "products at the peak (ms)");
    assert!(
        floor.rows[0][6].starts_with("0.002250 [0.001500, 0.003000]"),
        "{:?}",
        floor.rows
    );
    let text = markdown(&rendered.document);
    for words in [
        "More than 100 %: the data came from a cache",
        "more than 100 %: the data came from a cache",
        "the size of the last-level cache is not known",
        "Its products alone would take 2.25 µs",
        "Most time beyond their ceilings: node 0, 0 conv2d",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let figure = rendered
        .document
        .figures()
        .find(|f| f.name.starts_with("layers-"));
    let svg = &figure.unwrap().svg;
    for words in ["50 % / 25 % of ceiling", "149 %", "in node 1"] {
        assert!(svg.contains(words), "{words}");
    }
}

#[test]
fn a_folder_without_ceilings_has_rates_and_no_shares() {
    let dir = tempfile::tempdir().unwrap();
    profile(dir.path());
    std::fs::remove_file(dir.path().join("ceilings.csv")).unwrap();
    let rendered = render(dir.path()).unwrap();
    let every = table(&rendered, "lost (µs)");
    assert_eq!(every.rows[0][4], "30.0 GFLOP/s");
    assert_eq!(every.rows[0][8], "–");
    let text = markdown(&rendered.document);
    for words in [
        "of ceiling",
        "at the peak",
        "Most time beyond",
        "best window",
    ] {
        assert!(!text.contains(words), "{words}: {text}");
    }
    assert!(worst(&costs(&rendered)).is_empty());
}

fn collective(trial: &str, repeat: u32, collective: &str, busbw: f64) -> CollectiveRow {
    CollectiveRow {
        trial: trial.into(),
        repeat,
        transport: "tcp".into(),
        launch: "threads".into(),
        ranks: 2,
        collective: collective.into(),
        algorithm: "ring".into(),
        elements: 1 << 18,
        size_bytes: 1 << 20,
        iterations: 10,
        time_ns_p10: 900,
        time_ns_p50: 1_000,
        time_ns_p90: 1_100,
        algbw_bytes_per_s: Some(busbw),
        busbw_bytes_per_s: Some(busbw),
        checked: true,
        wrong_elements: 0,
        counted_sent_bytes: Some(1.0),
        predicted_sent_bytes: Some(1.0),
        measured_sent_bytes: None,
        nccl_algorithm: None,
        nccl_protocol: None,
    }
}

#[test]
fn collectives_are_shares_of_what_goes_one_way_or_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &[way("ddp", Some("threads"), 2, 1.0, 0.0)], 2);
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    (trials[0].kind, trials[0].transport) = ("collectives".into(), Some("tcp".into()));
    let id = trials[0].trial.clone();
    folder.write_trials(&trials).unwrap();
    let rows = [
        collective(&id, 0, "all_reduce", 1e9),
        collective(&id, 1, "all_reduce", 0.5e9),
        collective(&id, 0, "broadcast", 1e9),
    ];
    folder.replace("collectives.csv", &csv(&rows)).unwrap();
    let without = render(dir.path()).unwrap();
    assert!(!markdown(&without.document).contains("share of the floor"));
    let ceilings = [
        ceiling(&id, 0, "tcp-both-ways", "B/s", 2e9),
        ceiling(&id, 1, "tcp-both-ways", "B/s", 2e9),
        ceiling(&id, 0, "tcp-one-way", "B/s", 4e9),
    ];
    folder.replace("ceilings.csv", &csv(&ceilings)).unwrap();
    let rendered = render(dir.path()).unwrap();
    let rows = &table(&rendered, "busbw, share of the floor").rows;
    assert_eq!(rows[0][6], "37.5 % [25.0 %, 50.0 %]");
    assert_eq!(rows[1][6], "25.0 %");
    assert_eq!(table(&rendered, "best window").rows.len(), 2);
}
