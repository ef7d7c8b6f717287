//! What `gpus.csv` tells of trials: warnings of devices that are far from their GPU's cores, and of GPUs that nobody could watch.
//!
//! Contract: pure; a trial without rows there, on CPUs or of an older version, is left as it is.
use syncmark_record::rows::{GpuRow, TrialRow};

use crate::analyse::with_warning;

/// NVML told no clock, so nothing of a GPU's state is in `disturbed`.
const UNWATCHED: &str =
    "its GPUs were not watched: NVML is missing there or does not tell their clocks";
/// NVML told of no process.
const HIDDEN: &str = "other processes on its GPUs would not have been seen: NVML lists none, as with MIG and in some containers";

/// Adds to each trial what its GPUs have to be known for.
pub fn warn(trials: &mut [TrialRow], gpus: &[GpuRow]) {
    for trial in trials {
        let own: Vec<&GpuRow> = gpus.iter().filter(|row| row.trial == trial.trial).collect();
        for text in warnings(&own) {
            trial.warnings = Some(with_warning(trial.warnings.take(), &text));
        }
    }
}

fn warnings(rows: &[&GpuRow]) -> Vec<String> {
    let mut found = Vec::new();
    let mut reasons: Vec<(&str, Vec<u32>)> = Vec::new();
    for row in rows {
        let Some(why) = row.unbound_because.as_deref().filter(|_| !row.bound) else {
            continue;
        };
        match reasons.iter_mut().find(|(known, _)| *known == why) {
            Some((_, devices)) if devices.contains(&row.device) => {}
            Some((_, devices)) => devices.push(row.device),
            None => reasons.push((why, vec![row.device])),
        }
    }
    for (why, devices) in reasons {
        let names: Vec<String> = devices.iter().map(u32::to_string).collect();
        let (who, are) = match devices.len() {
            1 => ("device", "is"),
            _ => ("devices", "are"),
        };
        found.push(format!(
            "{who} {} {are} not bound to the cores near the GPU: {why}",
            names.join(", ")
        ));
    }
    // Of devices that share a GPU only the first has samples, and a window of some milliseconds has none.
    let sampled = || rows.iter().filter(|row| row.samples != Some(0));
    if sampled().count() > 0 && sampled().all(|row| row.sm_clock_median_mhz.is_none()) {
        found.push(UNWATCHED.into());
    } else if sampled().count() > 0 && rows.iter().all(|row| row.foreign_processes.is_none()) {
        found.push(HIDDEN.into());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(device: u32) -> GpuRow {
        GpuRow {
            trial: "t".into(),
            device,
            bound: true,
            samples: Some(50),
            sm_clock_median_mhz: Some(1980),
            foreign_processes: Some(0),
            ..GpuRow::default()
        }
    }

    fn warned(rows: &[GpuRow]) -> Option<String> {
        let mut trials = [TrialRow::unknown("t")];
        warn(&mut trials, rows);
        let [trial] = trials;
        trial.warnings
    }

    #[test]
    fn a_bound_and_watched_gpu_needs_no_warning() {
        assert_eq!(warned(&[row(0), row(1)]), None);
        assert_eq!(warned(&[]), None);
        let short = GpuRow {
            samples: Some(0),
            sm_clock_median_mhz: None,
            ..row(0)
        };
        assert_eq!(warned(&[short]), None, "too short to be sampled");
    }

    #[test]
    fn unbound_devices_are_named_with_the_reason_once() {
        let unbound = |device| GpuRow {
            bound: false,
            unbound_because: Some("of a test".into()),
            ..row(device)
        };
        assert_eq!(
            warned(&[unbound(0), unbound(0), row(1), unbound(2)]).unwrap(),
            "devices 0, 2 are not bound to the cores near the GPU: of a test"
        );
    }

    #[test]
    fn gpus_that_nobody_watched_are_told() {
        let blind = GpuRow {
            samples: None,
            sm_clock_median_mhz: None,
            foreign_processes: None,
            ..row(0)
        };
        assert_eq!(warned(&[blind]).unwrap(), UNWATCHED);
        let hidden = GpuRow {
            foreign_processes: None,
            ..row(0)
        };
        assert_eq!(warned(&[hidden]).unwrap(), HIDDEN);
    }
}
