//! Run folders on disk: round trips, torn files, resumption, and every error's words.
use std::fs;

use proptest::prelude::*;
use syncmark_record::{
    FolderError, Outcome, RepeatRecord, RunFolder,
    rows::{AlgorithmRow, CeilingRow, LayerRow, LearningRow, Pass, RepeatRow, StepRow},
    table::Row,
};

fn repeat(trial: &str, repeat: u32) -> RepeatRow {
    RepeatRow {
        trial: trial.into(),
        repeat,
        order: 0,
        outcome: Outcome::Passed,
        reason: None,
        started: "2026-01-02T03:04:05Z".into(),
        warmup_steps: 3,
        steps: 10,
        samples: 320,
        window_ns: Some(1_000_000),
        unsynchronized_steps: None,
        unsynchronized_window_ns: None,
        unsynchronized_order: None,
        traced_steps: None,
        traced_window_ns: None,
        first_third_ns: None,
        last_third_ns: None,
        loss: Some(0.25),
        parameters_equal: Some(true),
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

fn step(trial: &str, step: u64) -> StepRow {
    StepRow {
        trial: trial.into(),
        repeat: 0,
        rank: 0,
        pass: Pass::Window,
        step,
        start_ns: step * 100,
        step_ns: 90,
        data_ns: None,
        host_to_device_ns: None,
        scatter_ns: None,
        replicate_ns: None,
        forward_ns: Some(30),
        gather_ns: None,
        loss_ns: None,
        scatter_gradients_ns: None,
        backward_ns: Some(60),
        reduce_ns: None,
        all_reduce_ns: None,
        reduce_scatter_ns: None,
        all_gather_ns: None,
        buffer_broadcast_ns: None,
        sync_batch_norm_ns: None,
        wait_ns: None,
        optimizer_ns: None,
        zero_ns: None,
        dispatch_ns: None,
        upload_ns: None,
        device_ns: None,
    }
}

fn record(trial: &str, number: u32) -> RepeatRecord {
    RepeatRecord {
        repeat: repeat(trial, number),
        steps: (0..3).map(|s| step(trial, s)).collect(),
        phases: vec![],
        comm: vec![],
        devices: vec![],
        gpus: vec![],
        algorithms: vec![],
        learning: vec![],
        norm_statistics: vec![],
        collectives: Vec::new(),
        layers: Vec::new(),
        ceilings: Vec::new(),
        compression: Vec::new(),
    }
}

fn learning(train_loss: Option<f64>) -> LearningRow {
    LearningRow {
        trial: "a".into(),
        repeat: 0,
        step: 1,
        samples_seen: 32,
        train_loss,
        eval_loss: None,
        eval_error: None,
        batch_statistics_loss: None,
        batch_statistics_error: None,
        train_ns: Some(7),
        train_eval_loss: None,
        train_eval_error: Some(0.25),
        precise_loss: None,
        precise_error: None,
        dropout_loss: None,
        dropout_error: None,
    }
}

#[test]
fn rows_of_several_sessions_stand_under_one_header() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path().join("run")).unwrap();
    folder.records().unwrap().append(&record("a", 0)).unwrap();
    folder.records().unwrap().append(&record("a", 1)).unwrap();
    let repeats: Vec<RepeatRow> = folder.read().unwrap();
    assert_eq!(repeats, [repeat("a", 0), repeat("a", 1)]);
    assert_eq!(folder.read::<StepRow>().unwrap().len(), 6);
    let text = fs::read_to_string(folder.path().join("steps.csv")).unwrap();
    assert_eq!(text.matches("step_ns").count(), 1);
    assert!(
        !folder.path().join("learning.csv").exists(),
        "only learning trials have a learning.csv"
    );
    assert!(
        folder.path().join("comm.csv").exists(),
        "the header says that nothing was moved"
    );
}

#[test]
fn a_torn_last_row_is_neither_read_nor_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    folder.records().unwrap().append(&record("a", 0)).unwrap();
    let path = dir.path().join(RepeatRow::FILE);
    let whole = fs::read_to_string(&path).unwrap();
    // The tear could pass for a row with a shorter last cell, so its contents must not matter.
    fs::write(&path, format!("{whole}a,1,0,passed,,2026")).unwrap();
    let mut rows = folder.rows::<RepeatRow>().unwrap();
    assert!(rows.torn());
    assert_eq!(rows.by_ref().map(Result::unwrap).count(), 1);
    folder.records().unwrap().append(&record("a", 1)).unwrap();
    assert_eq!(
        folder.read::<RepeatRow>().unwrap(),
        [repeat("a", 0), repeat("a", 1)]
    );
}

#[test]
fn line_breaks_in_a_cell_become_spaces_so_that_a_line_is_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    let mut failed = record("a", 0);
    failed.repeat.reason = Some("rank 1: \"lost\"\r\nsignal 9".into());
    folder.records().unwrap().append(&failed).unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join(RepeatRow::FILE))
            .unwrap()
            .lines()
            .count(),
        2
    );
    let reason = folder.read::<RepeatRow>().unwrap()[0].reason.clone();
    assert_eq!(reason.as_deref(), Some("rank 1: \"lost\"  signal 9"));
}

#[test]
fn a_bad_cell_is_named_by_file_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    folder.records().unwrap().append(&record("a", 0)).unwrap();
    let path = dir.path().join(RepeatRow::FILE);
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("1000000", "soon");
    fs::write(&path, text).unwrap();
    let error = folder.read::<RepeatRow>().unwrap_err().to_string();
    assert!(
        error.contains("repeats.csv, line 2, column `window_ns`: "),
        "{error}"
    );
}

#[test]
fn an_interrupted_run_without_trials_reads_as_no_trials() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    folder.records().unwrap().append(&record("a", 0)).unwrap();
    assert!(
        folder
            .read::<syncmark_record::rows::TrialRow>()
            .unwrap()
            .is_empty()
    );
    assert_eq!(folder.environment().unwrap(), None);
    assert_eq!(folder.scenario().unwrap(), None);
}

#[test]
fn a_folder_with_records_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    RunFolder::create(dir.path())
        .unwrap()
        .records()
        .unwrap()
        .append(&record("a", 0))
        .unwrap();
    let error = RunFolder::create(dir.path()).unwrap_err();
    assert!(
        matches!(
            error,
            FolderError::Occupied {
                file: "repeats.csv",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("--out"), "{error}");
}

#[test]
fn paths_that_are_no_run_folder_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(
        RunFolder::open(dir.path().join("none")),
        Err(FolderError::Missing { .. })
    ));
    assert!(matches!(
        RunFolder::open(&file),
        Err(FolderError::NotAFolder { .. })
    ));
    assert!(matches!(
        RunFolder::create(&file),
        Err(FolderError::NotAFolder { .. })
    ));
    assert!(matches!(
        RunFolder::create(file.join("below")),
        Err(FolderError::Io { .. })
    ));
}

#[test]
fn a_folder_of_another_version_is_refused_with_the_column_that_differs() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("comm.csv"), "trial,repeat,colour\n").unwrap();
    let error = RunFolder::open(dir.path())
        .unwrap()
        .records()
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("`colour` where `rank` is expected"),
        "{error}"
    );
}

#[test]
fn a_newer_environment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("environment.json"),
        r#"{"format_version": 99, "unheard_of": 1}"#,
    )
    .unwrap();
    let error = RunFolder::open(dir.path())
        .unwrap()
        .environment()
        .unwrap_err();
    assert!(
        matches!(error, FolderError::Version { found: 99, .. }),
        "{error}"
    );
    fs::write(dir.path().join("environment.json"), "{").unwrap();
    let error = RunFolder::open(dir.path())
        .unwrap()
        .environment()
        .unwrap_err();
    assert!(
        matches!(error, FolderError::Json { line: 1, .. }),
        "{error}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_takes_the_half_written_repeat_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    folder.records().unwrap().append(&record("a", 0)).unwrap();
    // /dev/full accepts nothing: the devices' rows fail after those of the steps were written.
    fs::remove_file(dir.path().join("devices.csv")).unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("devices.csv")).unwrap();
    let error = folder
        .records()
        .and_then(|mut records| records.append(&record("a", 1)))
        .unwrap_err();
    assert!(matches!(error, FolderError::Io { .. }), "{error}");
    assert!(error.to_string().contains("disk is full"), "{error}");
    assert!(
        error.to_string().contains("1 earlier repeats are kept"),
        "{error}"
    );
    assert_eq!(folder.read::<StepRow>().unwrap().len(), 3);
    assert_eq!(folder.read::<RepeatRow>().unwrap().len(), 1);
}

#[test]
fn algorithms_go_with_the_repeats_that_are_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path().join("run")).unwrap();
    let of = |trial: &str, number| RepeatRecord {
        algorithms: vec![AlgorithmRow {
            trial: trial.into(),
            repeat: number,
            device: 1,
            library: "cuDNN".into(),
            operation: "convolution forward".into(),
            shape: "x 2×4×4×8, w 8×1×1×8, stride 1, padding 0, f32".into(),
            algorithm: "FWD_ALGO_IMPLICIT_GEMM".into(),
            workspace_bytes: 7,
            deterministic: true,
            math: "FMA_MATH".into(),
        }],
        ..record(trial, number)
    };
    let mut records = folder.records().unwrap();
    records.append(&record("cpu", 0)).unwrap();
    assert!(!folder.path().join("algorithms.csv").exists());
    for number in 0..3 {
        records.append(&of("gpu", number)).unwrap();
    }
    let kept = [("cpu".to_owned(), 0), ("gpu".to_owned(), 1)];
    folder.keep_repeats(&kept.into()).unwrap();
    let rows: Vec<AlgorithmRow> = folder.read().unwrap();
    assert_eq!(rows, of("gpu", 1).algorithms);
}

fn ceiling() -> CeilingRow {
    CeilingRow {
        trial: "a".into(),
        repeat: 0,
        ceiling: "memory-read-write".into(),
        threads: 1,
        instructions: Some("avx2".into()),
        working_set_bytes: Some(128 << 20),
        last_level_cache_bytes: None,
        windows: 12,
        unit: "B/s".into(),
        median: 1.25e10,
        best: 1.5e10,
        p25: 1.2e10,
        p75: 1.3e10,
    }
}

fn layer(within: Option<u32>) -> LayerRow {
    LayerRow {
        trial: "a".into(),
        repeat: 0,
        node: 3,
        layer: "relu".into(),
        name: "2 relu".into(),
        output_shape: "16×8×8".into(),
        direction: "forward".into(),
        calls: 5,
        time_ns_p10: 1,
        time_ns_p50: 2,
        time_ns_p90: 3,
        flops: None,
        read_write_bytes: Some(8),
        parameters: 0,
        within,
        algorithm: Some("dx im2row, dw direct".into()),
        kept_bytes: Some(64),
    }
}

#[test]
fn ceilings_and_nodes_survive_the_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    folder.records().unwrap().append(&record("a", 0)).unwrap();
    assert!(!dir.path().join("ceilings.csv").exists());
    let mut held = record("a", 1);
    (held.ceilings, held.layers) = (vec![ceiling(); 2], vec![layer(None), layer(Some(2))]);
    folder.records().unwrap().append(&held).unwrap();
    assert_eq!(folder.read::<CeilingRow>().unwrap(), held.ceilings);
    assert_eq!(folder.read::<LayerRow>().unwrap(), held.layers);
}

/// As folders have it that were written before nodes could be executed within others, or convolutions in more than one way.
#[test]
fn nodes_without_their_latest_columns_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let folder = RunFolder::create(dir.path()).unwrap();
    let mut held = record("a", 0);
    held.layers = vec![layer(None)];
    (held.layers[0].algorithm, held.layers[0].kept_bytes) = (None, None);
    folder.records().unwrap().append(&held).unwrap();
    let path = dir.path().join(LayerRow::FILE);
    let text = fs::read_to_string(&path).unwrap();
    for columns in [",kept_bytes", ",within,algorithm,kept_bytes"] {
        let none = ",".repeat(columns.matches(',').count());
        let older: Vec<&str> = text
            .lines()
            .map(|line| {
                line.strip_suffix(columns)
                    .or(line.strip_suffix(&none))
                    .unwrap()
            })
            .collect();
        fs::write(&path, older.join("\n") + "\n").unwrap();
        assert_eq!(folder.read::<LayerRow>().unwrap(), held.layers);
    }
}

proptest! {
    #[test]
    fn any_text_and_number_survives_the_round_trip(reason in "[\\x20-\\x7e\"',;äλ]{1,40}", loss in proptest::option::of(-1e300f64..1e300)) {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolder::create(dir.path()).unwrap();
        let mut written = record("a", 0);
        written.repeat.reason = Some(reason);
        written.repeat.loss = loss;
        written.learning = vec![learning(loss)];
        folder.records().unwrap().append(&written).unwrap();
        prop_assert_eq!(&folder.read::<RepeatRow>().unwrap()[0], &written.repeat);
        prop_assert_eq!(&folder.read::<LearningRow>().unwrap()[0], &written.learning[0]);
    }
}
