//! Counted beside predicted bytes in a report: a single byte that differs anywhere is seen. All records are made up.
mod fixtures;

use std::fs;

use fixtures::{SMALL, table, write};
use syncmark_report::render;

#[test]
fn one_byte_too_many_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 8);
    let path = folder.path().join("comm.csv");
    let sent = (2 * fixtures::PARAMETERS * 4 / 2 * 50).to_string();
    let text = fs::read_to_string(&path).unwrap();
    let more = (2 * fixtures::PARAMETERS * 4 / 2 * 50 + 1).to_string();
    // The second number of the row is what was sent; the first is the payload.
    let row = format!("{sent},{sent},{sent}");
    assert!(text.contains(&row));
    fs::write(
        &path,
        text.replacen(&row, &format!("{sent},{more},{sent}"), 1),
    )
    .unwrap();
    let rendered = render(dir.path()).unwrap();
    let differing: Vec<_> = table(&rendered, "agreement")
        .rows
        .iter()
        .filter(|row| row[row.len() - 1] == "differs")
        .collect();
    assert_eq!(differing.len(), 1, "{differing:?}");
    let warned = rendered.data.trials.iter().filter(|t| {
        t.warnings
            .as_deref()
            .is_some_and(|w| w.contains("counted bytes differ"))
    });
    assert_eq!(warned.count(), 1);
    assert!(
        rendered
            .document
            .figures()
            .any(|f| f.name == "bytes-convnet" && f.svg.contains("differs: "))
    );
}

#[test]
fn a_byte_moved_from_one_row_to_another_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 8);
    let path = folder.path().join("comm.csv");
    let sent = 2 * fixtures::PARAMETERS * 4 / 2 * 50;
    let text = fs::read_to_string(&path).unwrap();
    let row = format!("{sent},{sent},{sent}");
    let more = text.replacen(&row, &format!("{sent},{},{sent}", sent + 1), 1);
    // The next row of these numbers is another rank's of the same trial and phase: the totals stay what they were.
    fs::write(
        &path,
        more.replacen(&row, &format!("{sent},{},{sent}", sent - 1), 1),
    )
    .unwrap();
    let rendered = render(dir.path()).unwrap();
    let differing = table(&rendered, "agreement")
        .rows
        .iter()
        .filter(|row| row[row.len() - 1] == "differs")
        .count();
    assert_eq!(differing, 1);
}

#[test]
fn what_nccl_moves_under_dp_is_not_counted_and_is_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &SMALL, 8);
    let path = folder.path().join("comm.csv");
    let text = fs::read_to_string(&path).unwrap();
    let header: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|column| *column == name).unwrap();
    let (trial, phase) = (column("trial"), column("phase"));
    let hidden = [column("sent_bytes"), column("received_bytes")];
    let (name, mut changed) = ("convnet-dp-2", 0);
    let rows: Vec<String> = text
        .lines()
        .map(|line| {
            let mut cells: Vec<&str> = line.split(',').collect();
            if cells[trial] == name && matches!(cells[phase], "replicate" | "reduce") {
                changed += 1;
                hidden.iter().for_each(|column| cells[*column] = "");
                cells[column("algorithm")] = "nccl";
            }
            cells.join(",")
        })
        .collect();
    assert!(changed > 0);
    fs::write(&path, rows.join("\n") + "\n").unwrap();
    let rendered = render(dir.path()).unwrap();
    let agreements: Vec<_> = table(&rendered, "agreement")
        .rows
        .iter()
        .filter(|row| row[0] == "dp ×2")
        .map(|row| (row[1].as_str(), row[row.len() - 1].as_str()))
        .collect();
    for (phase, agreement) in &agreements {
        let expected = match *phase {
            "replicate" | "reduce" => "not counted",
            _ => "equal",
        };
        assert_eq!(*agreement, expected, "{phase}: {agreements:?}");
    }
    let uncounted = agreements.iter().filter(|(_, said)| *said == "not counted");
    assert_eq!(uncounted.count(), 2, "{agreements:?}");
    let figure = rendered
        .document
        .figures()
        .find(|f| f.name == "bytes-convnet");
    let figure = figure.unwrap();
    assert!(figure.svg.contains("with what is not counted"));
    assert!(!figure.svg.contains("differs: "));
    assert!(figure.caption.contains("What NCCL moves is not counted"));
    let warned = |trial: &syncmark_record::rows::TrialRow| {
        let warnings = trial.warnings.as_deref().unwrap_or_default();
        warnings.contains("counted bytes differ")
    };
    assert!(!rendered.data.trials.iter().any(warned));
}
