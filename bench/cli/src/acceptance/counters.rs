//! Bytes that all-reduces move beside what NVLink's counters say.
//!
//! Contract: NCCL is told to take Ring and Simple, whose bytes are known: each of n GPUs sends 2(n−1)/n of a message. Counters are those of all
//! GPUs of the machine, read before and after, so another program there adds to them. Where there are none, nothing is compared.
//! Reference: NVML API Reference Guide, "Field Value Queries" (`NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX`, in KiB over all links).
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX;
use syncmark_engine::backend::cuda::library::{self, Library};
use syncmark_record::Outcome;
use syncmark_record::bytes::{Algorithm, Call, Collective};

use super::{Found, Scene};
use crate::environment::nvml_fields::over_all_links;
use crate::plan::Trial;
use crate::plan::config::{TrialConfig, Work};
use crate::run::job::{Executor, Job};
use crate::run::protocol::Purpose;
use crate::run::supervise::Supervisor;
use crate::scenario::file::Operation;

/// The message, and how often it is reduced: seconds at most, and far more than what else a GPU says to another.
const SIZE_BYTES: u64 = 256 << 20;
const CALLS: usize = 20;
/// Counted over predicted. Headers and flags are not payload, and other traffic is small beside these.
const TOLERANCE: std::ops::RangeInclusive<f64> = 0.95..=1.1;

pub(super) fn bytes(scene: &Scene<'_>, no_gpus: Option<&str>) -> Found {
    if let Some(why) = no_gpus {
        return Found::skipped(why);
    }
    let alone = |trial: &Trial| matches!(trial.config.work, Work::Collectives(_));
    let Some(trial) = scene.trial(alone) else {
        return Found::skipped("no trial of collectives was run");
    };
    match counted(scene, trial) {
        Ok(counted) => judge(counted, trial.config.devices as u64),
        Err(why) => Found::skipped(why),
    }
}

fn judge(counted: u64, ranks: u64) -> Found {
    let call = Call {
        collective: Collective::AllReduce,
        algorithm: Algorithm::Ring,
        elements: SIZE_BYTES / 4,
        element_bytes: 4,
        ranks,
    };
    let predicted = CALLS as u64 * call.total().map_or(0, |total| total.sent);
    let ratio = counted as f64 / predicted as f64;
    Found::judged(
        TOLERANCE.contains(&ratio),
        format!(
            "{CALLS} all-reduces of {SIZE_BYTES} bytes on a ring: {counted} bytes counted, {ratio:.3} of the formula's {predicted}; {} to {} passes",
            TOLERANCE.start(),
            TOLERANCE.end()
        ),
        [
            ("counted_bytes", counted as f64),
            ("predicted_bytes", predicted as f64),
            ("ratio", ratio),
        ],
    )
}

/// Bytes that all GPUs sent while these calls ran.
fn counted(scene: &Scene<'_>, trial: &Trial) -> Result<u64, String> {
    let found = library::find(Library::Nvml).map_err(|missing| missing.to_string())?;
    let nvml = Nvml::builder()
        .lib_path(found.path.as_os_str())
        .init()
        .map_err(|error| error.to_string())?;
    let before = sent(&nvml)?;
    let scratch = scene.folder.path().join(".acceptance");
    let done = calls(scene, trial, &scratch);
    let _ = std::fs::remove_dir_all(&scratch);
    done?;
    let after = sent(&nvml)?;
    after
        .checked_sub(before)
        .ok_or_else(|| "NVLink's counters went backwards".to_owned())
}

fn calls(scene: &Scene<'_>, trial: &Trial, scratch: &std::path::Path) -> Result<(), String> {
    let words = |error: std::io::Error| error.to_string();
    std::fs::create_dir_all(scratch).map_err(words)?;
    let mut supervisor =
        Supervisor::new(scratch.join("spool"), scene.signals, None).map_err(words)?;
    let job = Job {
        label: "all-reduces for NVLink's counters".to_owned(),
        trial: config(&trial.config),
        purpose: Purpose::Choices {
            log: std::path::absolute(scratch.join("nccl.log")).map_err(words)?,
            ring: true,
        },
        repeat: 0,
        timeout: Duration::from_secs(120),
    };
    let result = supervisor
        .execute(&job)
        .map_err(|error| error.to_string())?;
    match result.outcome {
        Outcome::Passed => Ok(()),
        _ => Err(result
            .reason
            .unwrap_or_else(|| "no reason given".to_owned())),
    }
}

fn config(trial: &TrialConfig) -> TrialConfig {
    let mut config = trial.clone();
    if let Work::Collectives(collectives) = &mut config.work {
        collectives.operations = vec![Operation::AllReduce; CALLS];
        collectives.sizes_bytes = vec![SIZE_BYTES];
    }
    config
}

/// Payload that the machine's GPUs have sent over all their NVLinks.
fn sent(nvml: &Nvml) -> Result<u64, String> {
    let count = nvml.device_count().map_err(|error| error.to_string())?;
    let mut sum: Option<u64> = None;
    for index in 0..count {
        let device = nvml
            .device_by_index(index)
            .map_err(|error| error.to_string())?;
        if let Some(bytes) = over_all_links(nvml, &device, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX) {
            sum = Some(sum.unwrap_or(0) + bytes);
        }
    }
    sum.ok_or_else(|| "these GPUs have no counters of NVLink".to_owned())
}

#[cfg(test)]
mod tests {
    use syncmark_record::acceptance::CheckState;

    use super::*;

    #[test]
    fn a_ring_of_four_sends_six_messages_a_call() {
        let formula = 6 * SIZE_BYTES * CALLS as u64;
        let found = judge(formula, 4);
        assert_eq!(found.figures["predicted_bytes"], formula as f64);
        assert_eq!(found.state, CheckState::Passed);
        assert_eq!(judge(formula / 2, 4).state, CheckState::Failed);
        assert_eq!(judge(2 * formula, 4).state, CheckState::Failed);
    }
}
