//! Whole reports from made-up run folders: what they say, and that they are whole.
mod fixtures;

use std::fs;

use fixtures::{SMALL, Way, rendered, table, trial, way, write};
use syncmark_record::{
    Outcome, RunFolder,
    rows::{RepeatRow, TrialRow},
};
use syncmark_report::{ReportError, html::html, markdown::markdown, render, summarise};

#[test]
fn a_usual_run_has_every_chart_and_file() {
    let (path, rendered) = rendered("small", &SMALL, 8);
    let names: Vec<&str> = rendered
        .document
        .figures()
        .map(|figure| figure.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "throughput-convnet",
            "efficiency-convnet",
            "time-convnet",
            "bytes-convnet",
            "timeline-convnet",
            "memory-convnet"
        ]
    );
    for name in names {
        assert!(path.join(format!("charts/{name}.svg")).exists());
        let png = fs::read(path.join(format!("charts/{name}.png"))).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    }
    insta::assert_snapshot!("small_markdown", markdown(&rendered.document));
    // The charts have snapshots of their own.
    let page = rendered
        .document
        .figures()
        .fold(html(&rendered.document), |page, figure| {
            page.replace(&figure.svg, "[SVG]\n")
        });
    insta::assert_snapshot!("small_html", page);
    for figure in rendered.document.figures() {
        insta::assert_snapshot!(format!("small_{}", figure.name), figure.svg);
    }
}

#[test]
fn three_repeats_give_a_range_and_no_verdict() {
    let (_, rendered) = rendered("three", &SMALL, 3);
    let answer = rendered.document.answer.join("\n");
    assert!(
        answer.contains("no verdict: 3 repeats") && answer.contains("range"),
        "{answer}"
    );
    assert!(
        !answer.contains("95 % interval") && !answer.contains("% lower"),
        "{answer}"
    );
    let text = markdown(&rendered.document);
    assert!(text.contains("fewer than 6 repeats"));
    assert!(
        rendered
            .data
            .trials
            .iter()
            .all(|trial| trial.spread.as_deref() == Some("range"))
    );
}

#[test]
fn one_device_and_one_repeat_still_make_sense() {
    let ways = [
        way("single", None, 1, 20.0, 0.0),
        way("ddp", Some("threads"), 1, 20.1, 0.0),
    ];
    let (_, rendered) = rendered("one", &ways, 1);
    assert!(
        rendered
            .document
            .figures()
            .any(|figure| figure.name == "throughput-convnet")
    );
    assert!(
        !rendered
            .document
            .figures()
            .any(|figure| figure.name == "bytes-convnet"),
        "nothing was moved"
    );
}

#[test]
fn several_models_and_oversubscription_are_kept_apart_and_labelled() {
    let mut ways: Vec<Way> = SMALL.to_vec();
    ways.extend([
        way("independent", None, 4, 45.0, 0.0),
        way("dp", None, 4, 70.0, 20.0),
        way("ddp", Some("threads"), 4, 52.0, 5.0),
    ]);
    let other = ways.iter().map(|w| Way {
        model: "resnet20",
        step_ms: w.step_ms * 9.0,
        exposed_ms: w.exposed_ms * 6.0,
        ..*w
    });
    let all: Vec<Way> = ways
        .iter()
        .copied()
        .chain(other.collect::<Vec<_>>())
        .collect();
    let (_, rendered) = rendered("models", &all, 10);
    for model in ["convnet", "resnet20"] {
        assert!(
            rendered
                .document
                .figures()
                .any(|figure| figure.name == format!("throughput-{model}"))
        );
    }
    for figure in rendered.document.figures() {
        assert!(
            figure.svg.contains("oversubscribed"),
            "{} does not label oversubscription",
            figure.name
        );
    }
    let captions: Vec<&str> = rendered
        .document
        .figures()
        .filter(|figure| figure.name.starts_with("throughput"))
        .map(|figure| figure.caption.as_str())
        .collect();
    assert_eq!(captions.len(), 2);
    assert!(
        captions
            .iter()
            .all(|caption| caption.contains("CPU devices model separate memories"))
    );
    assert!(
        rendered
            .document
            .answer
            .iter()
            .any(|s| s.starts_with("resnet20")),
        "{:?}",
        rendered.document.answer
    );
}

#[test]
fn a_failed_trial_shows_no_figures_but_is_listed_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 8);
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    let dead = trials
        .iter_mut()
        .find(|t| t.strategy == "dp" && t.devices == 2)
        .unwrap();
    *dead = trial(&SMALL[3], Outcome::RankFailed);
    folder.write_trials(&trials).unwrap();
    let rendered = render(dir.path()).unwrap();
    let dead = rendered
        .data
        .trials
        .iter()
        .find(|t| t.outcome == Outcome::RankFailed)
        .unwrap();
    assert_eq!(
        (
            dead.step_ms,
            dead.samples_per_s,
            dead.counted_bytes_per_step
        ),
        (None, None, None)
    );
    let row = table(&rendered, "step (ms)")
        .rows
        .iter()
        .find(|row| row[0] == "dp ×2")
        .unwrap()
        .clone();
    assert_eq!(row[1..4], ["rank-failed", "8 (not used)", "–"]);
    let text = markdown(&rendered.document);
    assert!(text.contains("killed by signal 9"), "the reason is listed");
    let throughput = rendered
        .document
        .figures()
        .find(|f| f.name == "throughput-convnet")
        .unwrap();
    assert!(
        throughput.caption.contains("Not shown: dp ×2 (rank-failed"),
        "{}",
        throughput.caption
    );
}

#[test]
fn repeats_that_did_not_pass_stand_together_by_trial_and_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 8);
    let mut repeats: Vec<RepeatRow> = folder.read().unwrap();
    let trial = repeats[0].trial.clone();
    for (repeat, outcome, reason) in [
        (1, Outcome::Unsteady, "3 % longer"),
        (2, Outcome::Timeout, "600 s"),
        (5, Outcome::Unsteady, "9 % longer"),
    ] {
        let row = repeats
            .iter_mut()
            .find(|row| row.trial == trial && row.repeat == repeat)
            .unwrap();
        (row.outcome, row.reason) = (outcome, Some(reason.into()));
    }
    let mut written = csv::Writer::from_writer(Vec::new());
    repeats
        .iter()
        .for_each(|row| written.serialize(row).unwrap());
    folder
        .replace("repeats.csv", &written.into_inner().unwrap())
        .unwrap();
    let rendered = render(dir.path()).unwrap();
    let rows: Vec<&[String]> = table(&rendered, "reason")
        .rows
        .iter()
        .map(|row| &row[2..])
        .collect();
    assert_eq!(
        rows,
        [
            ["unsteady", "1, 5", "3 % longer"],
            ["timeout", "2", "600 s"]
        ]
    );
}

#[test]
fn a_failed_gate_stands_first_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 6);
    let mut gates: Vec<syncmark_record::rows::GateRow> = folder.read().unwrap();
    let last = gates.last_mut().unwrap();
    (last.passed, last.error, last.reason) = (false, None, Some("bn1.weight is not finite".into()));
    let label = last.trial.clone();
    folder.write_gates(&gates).unwrap();
    let rendered = render(dir.path()).unwrap();
    let first = &table(&rendered, "tolerance").rows[0];
    assert!(
        label.ends_with("ddp-processes-2") && first[0].ends_with("ddp-processes ×2"),
        "{first:?}"
    );
    assert_eq!(
        (first[5].as_str(), first[8].as_str()),
        ("not finite", "failed: bn1.weight is not finite")
    );
}

#[test]
fn a_gate_that_was_tried_again_says_so_behind_those_that_failed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 6);
    let mut gates: Vec<syncmark_record::rows::GateRow> = folder.read().unwrap();
    let again = syncmark_record::rows::GateRow {
        passed: false,
        reason: Some("bn1.weight is 4e-3 off".into()),
        retried: true,
        ..gates[0].clone()
    };
    gates.insert(0, again);
    let last = gates.last_mut().unwrap();
    (last.passed, last.reason) = (false, Some("bn2.weight is off".into()));
    folder.write_gates(&gates).unwrap();
    let rendered = render(dir.path()).unwrap();
    let verdicts: Vec<&str> = table(&rendered, "tolerance")
        .rows
        .iter()
        .map(|row| row[8].as_str())
        .collect();
    assert_eq!(
        verdicts[..3],
        [
            "failed: bn2.weight is off",
            "tried again: bn1.weight is 4e-3 off",
            "passed"
        ]
    );
}

#[test]
fn an_interrupted_run_renders_with_the_repeats_that_finished() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 7);
    let interrupted: Vec<TrialRow> = SMALL
        .iter()
        .map(|way| trial(way, Outcome::Interrupted))
        .collect();
    folder.write_trials(&interrupted).unwrap();
    let shown = render(dir.path()).unwrap();
    assert!(
        shown
            .data
            .trials
            .iter()
            .all(|trial| trial.step_ms.is_some())
    );
    assert!(shown.data.trials.iter().all(|t| {
        t.warnings
            .as_deref()
            .unwrap()
            .contains("the 7 repeats that finished")
    }));

    fs::remove_file(dir.path().join("trials.csv")).unwrap();
    let repeats = fs::read_to_string(dir.path().join("repeats.csv")).unwrap();
    fs::write(
        dir.path().join("repeats.csv"),
        &repeats[..repeats.len() - 9],
    )
    .unwrap();
    let shown = render(dir.path()).unwrap();
    let text = markdown(&shown.document);
    assert!(
        text.contains("trials.csv is missing")
            && text.contains("The last row of repeats.csv was torn"),
        "{text}"
    );
    assert_eq!(shown.data.trials.len(), SMALL.len());
}

#[test]
fn an_empty_or_missing_folder_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = render(dir.path()).unwrap_err();
    assert!(
        matches!(error, ReportError::Folder(_)) && error.to_string().contains("holds no records"),
        "{error}"
    );
    let error = render(&dir.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("no run folder at"), "{error}");
}

#[test]
fn rendering_twice_writes_the_same_bytes_and_drops_charts_that_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &SMALL, 6);
    let first = render(dir.path()).unwrap();
    let read = |files: &[std::path::PathBuf]| {
        files
            .iter()
            .map(|file| fs::read(file).unwrap())
            .collect::<Vec<_>>()
    };
    let before = read(&first.files);
    fs::write(dir.path().join("charts/throughput-gone.svg"), "old").unwrap();
    fs::write(dir.path().join("charts/notes.txt"), "mine").unwrap();
    let second = render(dir.path()).unwrap();
    assert_eq!(before, read(&second.files));
    assert!(!dir.path().join("charts/throughput-gone.svg").exists());
    assert!(
        dir.path().join("charts/notes.txt").exists(),
        "only old charts are removed"
    );
}

#[test]
fn summarising_twice_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 8);
    let (repeats, comm, devices) = (
        folder.read().unwrap(),
        folder.read().unwrap(),
        folder.read().unwrap(),
    );
    let once = summarise(
        &folder.read::<TrialRow>().unwrap(),
        &repeats,
        &comm,
        &devices,
    );
    assert_eq!(once, summarise(&once, &repeats, &comm, &devices));
    // Known by construction of the fixture.
    let dp = once
        .iter()
        .find(|t| t.strategy == "dp" && t.devices == 2)
        .unwrap();
    assert!((dp.exposed_communication_ms.unwrap() - 8.0).abs() < 1e-3);
    assert!((dp.tracing_slowdown.unwrap() - 1.04).abs() < 1e-3);
    assert!((dp.efficiency_single.unwrap() - 20.0 / 31.0).abs() < 0.01);
    // Each against replicas that are launched like it.
    let against_independent = |strategy: &str, launch: Option<&str>| {
        let alike = |t: &&TrialRow| {
            (t.strategy.as_str(), t.launch.as_deref()) == (strategy, launch) && t.devices == 2
        };
        once.iter().find(alike).unwrap().efficiency_independent
    };
    for (strategy, launch, expected) in [
        ("dp", None, 22.0 / 31.0),
        ("ddp", Some("threads"), 22.0 / 23.9),
        ("ddp", Some("processes"), 22.6 / 24.6),
    ] {
        let found = against_independent(strategy, launch).unwrap();
        assert!(
            (found - expected).abs() < 0.005,
            "{strategy} {launch:?}: {found} instead of {expected}"
        );
    }
    let parameters = 4.0 * fixtures::PARAMETERS as f64;
    assert_eq!(
        dp.counted_bytes_per_step,
        Some(32.0 * 256.0 + 2.0 * parameters + 792.0 + 2.0 * 32.0 * 40.0)
    );
    let ddp = once
        .iter()
        .find(|t| t.strategy == "ddp" && t.devices == 2)
        .unwrap();
    assert_eq!(ddp.counted_bytes_per_step, Some(2.0 * parameters));
    assert_eq!(ddp.predicted_bytes_per_step, ddp.counted_bytes_per_step);
}

#[test]
fn hostile_text_stays_text() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 3);
    let mut trials: Vec<TrialRow> = folder.read().unwrap();
    trials[0].variant = Some("single <script>alert(1)</script> | *x* & `y".into());
    folder.write_trials(&trials).unwrap();
    let rendered = render(dir.path()).unwrap();
    let page = html(&rendered.document);
    assert!(!page.contains("<script>"), "a name became markup");
    assert!(page.contains("&lt;script&gt;"));
    let text = markdown(&rendered.document);
    for line in text
        .lines()
        .filter(|line| line.starts_with('|') && line.contains("alert"))
    {
        let bars = line.replace("\\|", "").matches('|').count();
        assert!(
            [7, 8, 11].contains(&bars),
            "a bar in a name broke the table: {line}"
        );
    }
    for figure in rendered.document.figures() {
        assert!(!figure.svg.contains("<script>"));
    }
}

#[test]
fn the_trace_is_json_with_a_process_for_every_device_of_a_traced_trial() {
    let (path, _) = rendered("trace", &SMALL, 2);
    let text = fs::read_to_string(path.join("trace.json")).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = value["traceEvents"].as_array().unwrap();
    let named = |kind: &'static str| events.iter().filter(move |event| event["name"] == kind);
    let devices: u32 = SMALL.iter().map(|way| way.devices).sum();
    assert_eq!(named("process_name").count(), devices as usize);
    let names: Vec<&str> = named("process_name")
        .filter_map(|event| event["args"]["name"].as_str())
        .collect();
    assert!(
        names.contains(&"convnet batch ddp-processes ×2 · rank 1 · device 1 · made-up-host"),
        "{names:?}"
    );
    assert!(
        names.contains(&"convnet batch dp ×2 · rank 0 · device 1 · made-up-host"),
        "{names:?}"
    );
    assert!(
        events
            .iter()
            .any(|event| event["args"]["bucket"] == 2 && event["ph"] == "X")
    );
    let earliest = events
        .iter()
        .filter_map(|event| event["ts"].as_f64())
        .fold(f64::INFINITY, f64::min);
    assert_eq!(earliest, 0.0);
}

#[test]
fn a_bad_cell_stops_the_report_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let folder: RunFolder = write(dir.path(), &SMALL, 2);
    let path = folder.path().join("comm.csv");
    let text =
        fs::read_to_string(&path)
            .unwrap()
            .replacen("shared-direct,50", "shared-direct,many", 1);
    fs::write(&path, text).unwrap();
    let error = render(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("comm.csv, line ") && error.contains("column `calls`"),
        "{error}"
    );
}
