//! Bus bandwidth of all-reduce beside that of nccl-tests' `all_reduce_perf`, where this is on the path.
//!
//! Contract: the same sizes, in place, 20 calls back to back, all GPUs in one process there and a process each here. Small messages are
//! latency, which differs by how calls are enqueued, so only large ones are compared.
//! Reference: nccl-tests, README.md and `src/util.cu` (its columns).
use std::process::Command;
use std::time::Duration;

use syncmark_record::rows::CollectiveRow;

use super::{Found, Scene, program};
use crate::plan::Trial;
use crate::plan::config::Work;

const PROGRAM: &str = "all_reduce_perf";
const LIMIT: Duration = Duration::from_secs(120);
/// Smallest message that is compared.
const LEAST_BYTES: u64 = 8 << 20;
/// Ours over theirs. Two runs of nccl-tests differ by some percent; a missing factor of the formula is 1.3 at the least on up to 4 GPUs.
const TOLERANCE: std::ops::RangeInclusive<f64> = 0.9..=1.1;

pub(super) fn bandwidth(scene: &Scene<'_>, no_gpus: Option<&str>) -> Found {
    if let Some(why) = no_gpus {
        return Found::skipped(why);
    }
    let Some(binary) = program::on_path(PROGRAM) else {
        return Found::skipped(format!("there is no {PROGRAM} on PATH"));
    };
    let alone = |trial: &Trial| matches!(trial.config.work, Work::Collectives(_));
    let Some(trial) = scene.trial(alone) else {
        return Found::skipped("no trial of collectives was run");
    };
    if let Err(why) = scene.measured(trial) {
        return Found::skipped(why);
    }
    let rows: Vec<CollectiveRow> = match scene.folder.read() {
        Ok(rows) => rows,
        Err(error) => return Found::skipped(error.to_string()),
    };
    let ours = ours(&rows, &trial.id);
    let devices = trial.config.devices.to_string();
    let mut worst: Option<(u64, f64, f64)> = None;
    for (size, speed) in ours {
        let mut command = Command::new(&binary);
        let size_text = size.to_string();
        command
            .args(["-b", &size_text, "-e", &size_text, "-g", &devices])
            .args(["-n", "20", "-w", "5", "-c", "0"]);
        let theirs = match program::output(&mut command, LIMIT, scene.signals) {
            Ok(text) => in_place(&text, size),
            Err(why) => return Found::skipped(why),
        };
        let Some(theirs) = theirs.filter(|speed| *speed > 0.0) else {
            return Found::skipped(format!("{PROGRAM} gave no bandwidth at {size} bytes"));
        };
        let farther = |(_, speed, theirs): (u64, f64, f64)| (speed / theirs).ln().abs();
        if worst.is_none_or(|known| farther((size, speed, theirs)) > farther(known)) {
            worst = Some((size, speed, theirs));
        }
    }
    let Some((size, speed, theirs)) = worst else {
        return Found::skipped(format!(
            "no all-reduce of {LEAST_BYTES} bytes or more was timed"
        ));
    };
    let ratio = speed / theirs;
    Found::judged(
        TOLERANCE.contains(&ratio),
        format!(
            "furthest at {size} bytes: {:.1} GB/s, {:.3} of nccl-tests' {:.1} GB/s; {} to {} passes",
            speed / 1e9,
            ratio,
            theirs / 1e9,
            TOLERANCE.start(),
            TOLERANCE.end()
        ),
        [
            ("size_bytes", size as f64),
            ("busbw_bytes_per_s", speed),
            ("nccl_tests_busbw_bytes_per_s", theirs),
            ("ratio", ratio),
        ],
    )
}

/// Bus bandwidth of each large size, the median over repeats.
fn ours(rows: &[CollectiveRow], trial: &str) -> Vec<(u64, f64)> {
    let own = rows.iter().filter(|row| {
        row.trial == trial && row.collective == "all_reduce" && row.size_bytes >= LEAST_BYTES
    });
    let mut by_size = std::collections::BTreeMap::<u64, Vec<f64>>::new();
    for row in own {
        by_size
            .entry(row.size_bytes)
            .or_default()
            .extend(row.busbw_bytes_per_s);
    }
    let median =
        |(size, values): (u64, Vec<f64>)| Some((size, syncmark_report::stats::median(&values)?));
    by_size.into_iter().filter_map(median).collect()
}

/// Bytes a second of the in-place columns at a size: `size count type redop root`, then `time algbw busbw #wrong` twice.
fn in_place(text: &str, size: u64) -> Option<f64> {
    let row = |line: &str| -> Option<f64> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first()?.parse::<u64>().ok()? != size || words.len() < 13 {
            return None;
        }
        Some(words[11].parse::<f64>().ok()? * 1e9)
    };
    text.lines().find_map(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Put together as nccl-tests 2.19 prints it.
    const TEXT: &str = "\
# nccl-tests version 2.19.6 nccl-headers=22809 nccl-library=22809
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us)  (GB/s)  (GB/s)
     8388608       2097152     float     sum      -1   110.50   75.92  132.85     N/A   108.20   77.53  135.68     N/A
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 134.265
";

    #[test]
    fn the_in_place_bandwidth_is_read() {
        assert_eq!(in_place(TEXT, 8 << 20), Some(135.68e9));
        assert_eq!(in_place(TEXT, 4 << 20), None);
        assert_eq!(in_place("8388608 cut short", 8 << 20), None);
    }
}
