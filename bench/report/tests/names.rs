//! Trials that differ have names that differ, and charts do not mix what is not to be compared.
mod fixtures;

use std::collections::BTreeSet;

use fixtures::{trial, way};
use syncmark_record::{Outcome, rows::TrialRow};
use syncmark_report::chart::series::{facets, name, series, shared_setting};

/// On GPUs, with what `set` makes of it.
fn on_gpus(devices: u32, set: impl FnOnce(&mut TrialRow)) -> TrialRow {
    let mut row = trial(
        &way("ddp", Some("processes"), devices, 20.0, 1.0),
        Outcome::Passed,
    );
    row.trial = format!("{:?}", std::time::Instant::now());
    row.backend = "cuda".into();
    row.precision = Some("tf32".into());
    row.cuda_graph = Some(false);
    row.cuda_matmul = Some("cublas".into());
    row.cuda_batch_norm = Some("own".into());
    row.variant = Some("convnet-ddp".into());
    row.step_ms = Some(20.0);
    set(&mut row);
    row
}

#[test]
fn precisions_are_charts_of_their_own_and_said_in_what_their_trials_share() {
    let rows: Vec<TrialRow> = ["fp32", "tf32", "bf16"]
        .iter()
        .flat_map(|precision| {
            [1, 2].map(|devices| on_gpus(devices, |row| row.precision = Some((*precision).into())))
        })
        .collect();
    let all: Vec<&TrialRow> = rows.iter().collect();
    let facets = facets(&all);
    assert_eq!(facets.len(), 3);
    for facet in &facets {
        for line in series(facet) {
            let devices: Vec<u32> = line.trials.iter().map(|trial| trial.devices).collect();
            assert_eq!(devices, [1, 2], "{}", line.name);
        }
    }
    let settings: BTreeSet<String> = rows.iter().map(shared_setting).collect();
    assert_eq!(settings.len(), 3, "{settings:?}");
    assert!(settings.iter().any(|said| said.ends_with(" · cuda · bf16")));
}

#[test]
fn what_is_swept_over_a_variant_is_in_the_name_unless_the_variant_says_it() {
    let of = |set: fn(&mut TrialRow)| name(&on_gpus(2, set));
    assert_eq!(of(|_| ()), "convnet-ddp ×2");
    let names = [
        of(|row| row.cuda_graph = Some(true)),
        of(|row| row.cuda_matmul = Some("cublaslt".into())),
        of(|row| row.cuda_batch_norm = Some("cudnn".into())),
        of(|row| row.dp_transport = Some("nccl".into())),
    ];
    assert_eq!(
        names,
        [
            "convnet-ddp as one graph ×2",
            "convnet-ddp cuBLASLt ×2",
            "convnet-ddp cuDNN's batch norm ×2",
            "convnet-ddp over NCCL ×2"
        ]
    );
    let says_it = |row: &mut TrialRow| {
        row.variant = Some("convnet-ddp-graph".into());
        row.cuda_graph = Some(true);
    };
    assert_eq!(of(says_it), "convnet-ddp-graph ×2");
}
