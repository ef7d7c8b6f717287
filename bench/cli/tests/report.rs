//! `syncmark report` on a run folder that ended early: made-up rows, nothing here was measured.
use std::path::Path;
use std::process::Output;

use assert_cmd::Command;
use syncmark_record::rows::RepeatRow;
use syncmark_record::{Outcome, RepeatRecord, RunFolder};

fn report(folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::cargo_bin("syncmark").expect("the binary is built");
    command
        .arg("report")
        .arg(folder)
        .args(more)
        .output()
        .expect("the binary starts")
}

/// A folder as a run leaves it that was interrupted before its summary: repeats, and no trials.csv.
fn interrupted(folder: &Path) {
    let run = RunFolder::create(folder).expect("the folder is made");
    run.write_scenario("name = \"made-up\"\nquestion = \"Does it render?\"\nkind = \"train\"\n")
        .expect("the scenario is written");
    let mut records = run.records().expect("the files are made");
    for repeat in 0..3 {
        let record = RepeatRecord {
            repeat: row(repeat),
            steps: Vec::new(),
            phases: Vec::new(),
            comm: Vec::new(),
            devices: Vec::new(),
            gpus: Vec::new(),
            algorithms: Vec::new(),
            learning: Vec::new(),
            norm_statistics: Vec::new(),
            collectives: Vec::new(),
            layers: Vec::new(),
            ceilings: Vec::new(),
            compression: Vec::new(),
        };
        records.append(&record).expect("the rows are written");
    }
}

fn row(repeat: u32) -> RepeatRow {
    RepeatRow {
        trial: "0123456789ab".to_owned(),
        repeat,
        order: 0,
        outcome: Outcome::Passed,
        reason: None,
        started: "2026-01-02T03:04:05Z".to_owned(),
        warmup_steps: 5,
        steps: 100,
        samples: 3200,
        window_ns: Some(1_000_000_000 + u64::from(repeat)),
        unsynchronized_steps: None,
        unsynchronized_window_ns: None,
        unsynchronized_order: None,
        traced_steps: None,
        traced_window_ns: None,
        first_third_ns: None,
        last_third_ns: None,
        loss: Some(0.5),
        parameters_equal: None,
        watched_ns: None,
        foreign_cpu_share: None,
        steal_share: None,
        cpu_pressure_share: None,
        involuntary_switches: None,
        gpu_samples: None,
        gpu_clock_spread: None,
        gpu_slowdown_share: None,
        gpu_slowdown: None,
        gpu_foreign_processes: None,
    }
}

#[test]
fn an_interrupted_run_renders() {
    let scratch = tempfile::tempdir().expect("a folder for the test");
    let folder = scratch.path().join("run");
    interrupted(&folder);
    let before = std::fs::read(folder.join("repeats.csv")).expect("there are records");
    let output = report(&folder, &["--no-pdf"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let printed = String::from_utf8_lossy(&output.stdout);
    for file in ["report.html", "report.md", "trace.json"] {
        assert!(folder.join(file).is_file(), "{file}");
        assert!(printed.contains(file), "{file} in {printed}");
    }
    assert!(!folder.join("report.pdf").exists());
    assert_eq!(
        std::fs::read(folder.join("repeats.csv")).expect("there are records"),
        before
    );
}

#[cfg(feature = "pdf")]
#[test]
fn the_pdf_is_written_and_a_broken_template_keeps_it() {
    let scratch = tempfile::tempdir().expect("a folder for the test");
    let folder = scratch.path().join("run");
    interrupted(&folder);
    let output = report(&folder, &[]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let pdf = std::fs::read(folder.join("report.pdf")).expect("there is a PDF");
    assert!(pdf.starts_with(b"%PDF-"));

    let template = scratch.path().join("broken.typ");
    std::fs::write(&template, "= Fine\n#let x = (\n").expect("the template is written");
    let output = report(
        &folder,
        &["--template", template.to_str().expect("the path is UTF-8")],
    );
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("broken.typ") && message.contains("2:"),
        "{message}"
    );
    assert_eq!(
        std::fs::read(folder.join("report.pdf")).expect("the PDF is still there"),
        pdf
    );
}
