//! The host's time of a step beside its GPU's, from the pass `dispatch`.
//!
//! Contract: of each repeat the median over steps of the rank whose host needs the largest share of its device's time; what is
//! summarised are repeats. Steps of other passes have no such times, and neither has a CPU.
//! Reference: METHODOLOGY.md, "On GPUs".
use std::collections::BTreeMap;

use syncmark_record::{
    FolderError, RunFolder,
    rows::{StepRow, TrialRow},
};

use crate::{
    run_data::RunData,
    stats::{Estimate, estimate, median},
};

/// Host and device of one repeat, in milliseconds a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostAndDevice {
    /// Enqueuing, without the batch.
    pub dispatch_ms: f64,
    /// Handing the batch over.
    pub upload_ms: f64,
    /// Computing.
    pub device_ms: f64,
    /// `dispatch_ms` over `device_ms`, as the median of the steps' shares.
    pub share: f64,
}

/// Repeats of a trial.
pub type Repeats = BTreeMap<u32, HostAndDevice>;

/// What a trial's steps took the host and the device, over its repeats.
#[derive(Clone, Debug)]
pub struct DispatchCost<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// Milliseconds of the host, without the batch.
    pub dispatch: Option<Estimate>,
    /// Milliseconds of the host for the batch.
    pub upload: Option<Estimate>,
    /// Milliseconds of the device.
    pub device: Option<Estimate>,
    /// The host's share of the device's time.
    pub share: Option<Estimate>,
}

/// Reads the pass from `steps.csv`, by trial.
///
/// # Errors
/// As the folder's readers.
pub fn host_and_device(folder: &RunFolder) -> Result<BTreeMap<String, Repeats>, FolderError> {
    let mut steps: BTreeMap<(String, u32, u32), Vec<[f64; 3]>> = BTreeMap::new();
    for row in folder.rows_where::<StepRow>("pass", "dispatch")? {
        let row = row?;
        if let (Some(dispatch), Some(upload), Some(device)) =
            (row.dispatch_ns, row.upload_ns, row.device_ns)
            && device > 0
        {
            let ms = [dispatch, upload, device].map(|ns| ns as f64 / 1e6);
            let key = (row.trial, row.repeat, row.rank);
            steps.entry(key).or_default().push(ms);
        }
    }
    let mut trials: BTreeMap<String, Repeats> = BTreeMap::new();
    for ((trial, repeat, _), steps) in steps {
        let Some(rank) = typical(&steps) else {
            continue;
        };
        let most = trials
            .entry(trial)
            .or_default()
            .entry(repeat)
            .or_insert(rank);
        if rank.share > most.share {
            *most = rank;
        }
    }
    Ok(trials)
}

fn typical(steps: &[[f64; 3]]) -> Option<HostAndDevice> {
    let of = |what: &dyn Fn(&[f64; 3]) -> f64| {
        let values: Vec<f64> = steps.iter().map(what).collect();
        median(&values)
    };
    Some(HostAndDevice {
        dispatch_ms: of(&|step| step[0])?,
        upload_ms: of(&|step| step[1])?,
        device_ms: of(&|step| step[2])?,
        share: of(&|step| step[0] / step[2])?,
    })
}

/// Of each trial with figures, in the order of the report.
pub fn dispatch_costs(data: &RunData) -> Vec<DispatchCost<'_>> {
    data.measured()
        .filter_map(|trial| dispatch_cost(data, trial))
        .collect()
}

fn dispatch_cost<'a>(data: &RunData, trial: &'a TrialRow) -> Option<DispatchCost<'a>> {
    let repeats = data.dispatch.get(&trial.trial)?;
    let whole: Vec<u32> = data
        .repeats_of(&trial.trial)
        .map(|row| row.repeat)
        .collect();
    let of = |what: fn(&HostAndDevice) -> f64| {
        let figures = repeats.iter().filter(|(repeat, _)| whole.contains(repeat));
        let figures: Vec<f64> = figures.map(|(_, found)| what(found)).collect();
        estimate(&figures)
    };
    Some(DispatchCost {
        trial,
        dispatch: of(|found| found.dispatch_ms),
        upload: of(|found| found.upload_ms),
        device: of(|found| found.device_ms),
        share: of(|found| found.share),
    })
}
