//! GPUs in a report, from made-up rows: where they were, how they were, and what a reader must know of them.
mod fixtures;

use fixtures::{table, way, write};
use syncmark_record::{
    Outcome, RunFolder,
    disturbance::disturbance,
    rows::{GpuRow, Pass, RepeatRow},
};
use syncmark_report::{Rendered, markdown::markdown, render};

/// A run of one trial on a GPU whose rows `change` may spoil, rendered.
fn with(change: fn(&mut GpuRow)) -> (tempfile::TempDir, Rendered) {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &[way("single", None, 1, 20.0, 0.0)], 3);
    let repeats: Vec<RepeatRow> = folder.read().unwrap();
    let row = |repeat: &RepeatRow| {
        let mut row = GpuRow {
            trial: repeat.trial.clone(),
            repeat: repeat.repeat,
            pass: Pass::Window,
            pci_bus_id: "0000:3b:00.0".into(),
            numa_node: Some(1),
            cores: "8-11".into(),
            bound: true,
            network: Some("ib0 mlx5_0".into()),
            peers_direct: Some("1+2".into()),
            samples: Some(50),
            sm_clock_median_mhz: Some(1980 - 10 * repeat.repeat),
            sm_clock_min_mhz: Some(1900 - 10 * repeat.repeat),
            sm_clock_spread: Some(0.01),
            temperature_max_celsius: Some(60 + repeat.repeat),
            power_mean_watts: Some(500.0),
            power_max_watts: Some(690.0),
            held_back_by: Some("the power cap 96 %".into()),
            slowdown_share: Some(0.0),
            foreign_processes: Some(0),
            nvlink_sent_bytes: Some(50_000_000),
            nvlink_received_bytes: Some(100_000_000),
            ..GpuRow::default()
        };
        change(&mut row);
        row
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    for repeat in &repeats {
        writer.serialize(row(repeat)).unwrap();
    }
    folder
        .replace("gpus.csv", &writer.into_inner().unwrap())
        .unwrap();
    let rendered = render(dir.path()).unwrap();
    (dir, rendered)
}

#[test]
fn a_gpu_is_shown_with_its_place_and_its_state() {
    let (_dir, rendered) = with(|_| {});
    assert_eq!(
        table(&rendered, "NUMA node").rows,
        [["0", "0000:3b:00.0", "1", "8-11", "yes", "ib0 mlx5_0", "1+2"]]
    );
    let state = &table(&rendered, "held back by").rows[0];
    assert_eq!(
        state[1..],
        [
            "0",
            "1970 MHz",
            "1880 MHz",
            "1.0 %",
            "62 °C",
            "500 W",
            "690 W",
            "the power cap 96 %",
            "0",
            "1.000 MB | 2.000 MB"
        ]
    );
    let text = markdown(&rendered.document);
    assert!(
        !text.contains("not bound") && !text.contains("not watched"),
        "{text}"
    );
}

#[test]
fn an_unbound_or_unwatched_gpu_is_warned_about() {
    let (_dir, rendered) = with(|row| {
        row.bound = false;
        row.unbound_because = Some("of a test".into());
        row.peers_direct = None;
        row.peers_through_host = Some("1".into());
    });
    let place = &table(&rendered, "NUMA node").rows[0];
    assert_eq!(
        place[4..],
        ["no: of a test", "ib0 mlx5_0", "through the host 1"]
    );
    assert!(markdown(&rendered.document).contains("device 0 is not bound"));
    let (_dir, rendered) = with(|row| (row.samples, row.sm_clock_median_mhz) = (None, None));
    assert!(markdown(&rendered.document).contains("its GPUs were not watched"));
}

/// Folders of older versions have neither the file nor its columns in `repeats.csv`.
#[test]
fn a_folder_from_before_gpus_were_watched_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = write(dir.path(), &[way("single", None, 1, 20.0, 0.0)], 2);
    let text = std::fs::read_to_string(dir.path().join("repeats.csv")).unwrap();
    let older: String = text
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            cells[..cells.len() - 5].join(",") + "\n"
        })
        .collect();
    assert!(text.contains("gpu_") && !older.contains("gpu_"), "{older}");
    folder.replace("repeats.csv", older.as_bytes()).unwrap();
    assert!(!dir.path().join("gpus.csv").exists());
    let rows: Vec<RepeatRow> = RunFolder::open(dir.path()).unwrap().read().unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row.gpu_samples.is_none()
        && row.outcome == Outcome::Passed
        && disturbance(row).is_none()));
    let text = markdown(&render(dir.path()).unwrap().document);
    assert!(!text.contains("## GPUs"), "{text}");
}
