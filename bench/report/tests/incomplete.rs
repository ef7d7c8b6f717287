//! Folders that lack something: what is gone is named, what is left is shown, and nothing is invented or destroyed.
mod fixtures;

use std::{fs, path::Path};

use fixtures::{SMALL, table, trial, write};
use syncmark_record::{Outcome, rows::TrialRow};
use syncmark_report::{markdown::markdown, render};

fn charts(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("charts")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_a_missing_file_told_is_named_and_its_earlier_charts_stay() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &SMALL, 6);
    render(dir.path()).unwrap();
    let before = (
        charts(dir.path()),
        fs::read(dir.path().join("trace.json")).unwrap(),
    );
    assert!(before.0.iter().any(|name| name == "timeline-convnet.svg"));
    for file in ["steps.csv", "phases.csv"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    let shown = render(dir.path()).unwrap();
    assert_eq!(shown.data.gaps.missing, ["steps.csv", "phases.csv"]);
    let text = markdown(&shown.document);
    assert!(
        text.contains("The run folder lacks steps.csv (the time by phase) and phases.csv (the timelines and trace.json)"),
        "{text}"
    );
    let after = (
        charts(dir.path()),
        fs::read(dir.path().join("trace.json")).unwrap(),
    );
    assert!(
        before == after,
        "{:?} became {:?}, or the trace changed",
        before.0,
        after.0
    );
    assert!(
        !shown.files.iter().any(|file| file.ends_with("trace.json")),
        "what was not written is not listed"
    );
}

#[test]
fn a_whole_folder_lacks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &SMALL, 2);
    assert!(render(dir.path()).unwrap().data.gaps.missing.is_empty());
}

/// Half of the calls of a repeat are no count of its bytes, though each of them is as predicted.
#[test]
fn the_repeat_that_a_torn_comm_csv_ends_in_counts_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &SMALL[..6], 1);
    let whole = render(dir.path()).unwrap();
    let sent = |shown: &syncmark_report::Rendered| -> Vec<Option<f64>> {
        let trials = shown.data.trials.iter();
        trials.map(|trial| trial.counted_bytes_per_step).collect()
    };
    let last = whole.data.comm.last().unwrap().trial.clone();
    let path = dir.path().join("comm.csv");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, &text[..text.len() - 9]).unwrap();
    let torn = render(dir.path()).unwrap();
    let expected = whole.data.trials.iter().map(|trial| {
        let own = trial.counted_bytes_per_step;
        own.filter(|_| trial.trial != last)
    });
    assert_eq!(sent(&torn), expected.collect::<Vec<_>>());
    assert_ne!(sent(&torn), sent(&whole));
    assert!(markdown(&torn.document).contains("The last row of comm.csv was torn"));
}

#[test]
fn without_trials_csv_no_setting_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 7);
    let rows: Vec<TrialRow> = SMALL.iter().map(|w| trial(w, Outcome::Passed)).collect();
    folder.write_trials(&rows).unwrap();
    fs::remove_file(dir.path().join("trials.csv")).unwrap();
    let shown = render(dir.path()).unwrap();
    let text = markdown(&shown.document);
    assert!(text.contains("settings not recorded"), "{text}");
    for invented in ["unknown norm", "weak scaling", "samples a device"] {
        assert!(!text.contains(invented), "{invented} in {text}");
    }
    assert!(
        !text.contains("the run was interrupted"),
        "nobody says so: {text}"
    );
    let row = &table(&shown, "step (ms)").rows[0];
    assert_eq!((row[1].as_str(), row[2].as_str()), ("passed", "7"));
}

/// A cut between two lines tears none, but leaves fewer of them than other repeats have.
#[test]
fn a_repeat_with_fewer_rows_than_others_counts_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &SMALL[..6], 2);
    let whole = render(dir.path()).unwrap();
    let path = dir.path().join("comm.csv");
    let text = fs::read_to_string(&path).unwrap();
    let cut = text.trim_end().rfind('\n').unwrap() + 1;
    fs::write(&path, &text[..cut]).unwrap();
    let shown = render(dir.path()).unwrap();
    assert_eq!(shown.data.gaps.incomplete, 1);
    let bytes = |shown: &syncmark_report::Rendered| -> Vec<Option<f64>> {
        let trials = shown.data.trials.iter();
        trials.map(|trial| trial.counted_bytes_per_step).collect()
    };
    assert_eq!(
        bytes(&shown),
        bytes(&whole),
        "of the repeats that are whole"
    );
    let text = markdown(&shown.document);
    assert!(text.contains("comm.csv has a part only of 1 repeat, whose bytes are left out"));
}

#[test]
fn without_repeats_or_gates_nothing_is_compared_or_said_to_be_checked_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 7);
    // As a run leaves it: with the figures.
    let trials = render(dir.path()).unwrap().data.trials;
    folder.write_trials(&trials).unwrap();
    for file in ["repeats.csv", "gates.csv"] {
        fs::remove_file(dir.path().join(file)).unwrap();
    }
    let shown = render(dir.path()).unwrap();
    assert_eq!(shown.data.gaps.missing, ["repeats.csv", "gates.csv"]);
    let text = markdown(&shown.document);
    assert!(text.contains("repeats.csv is missing, and nothing can be compared without it"));
    assert!(text.contains("gates.csv (whether the trials were shown to train like one device)"));
}
