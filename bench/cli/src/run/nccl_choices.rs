//! Which algorithm and protocol NCCL takes for each collective and size, as its own log says.
//!
//! Contract: NCCL tells nobody but its log, and its log takes time. So each call is made once more in processes of their own, before
//! anything is timed, and only these log; a trial without NCCL has no such processes. NCCL chooses by the collective, its size, the ranks
//! and the links between them, which are the same in both. What cannot be read is not known: nothing is guessed.
//! Reference: NCCL 2.24 to 2.30, `src/enqueue.cc` (the line that `NCCL_DEBUG_SUBSYS=TUNING` shows); NCCL user guide, "Environment Variables".
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use syncmark_engine::comm::Collective;
use syncmark_record::Outcome;

use super::job::{Executor, Job, StopError};
use super::protocol::Purpose;
use crate::plan::Trial;
use crate::plan::config::{TrialConfig, Work};
use crate::scenario::file::Transport;

/// What NCCL took for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// As NCCL names it: `RING`, `TREE`, `NVLS`, ...
    pub algorithm: String,
    /// `LL`, `LL128` or `SIMPLE`.
    pub protocol: String,
}

/// What NCCL takes, by its name of the collective and the bytes as it counts them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices(HashMap<(String, u64), Choice>);

impl Choices {
    /// Of a log; lines that say nothing of it are passed over.
    pub fn of_log(log: &str) -> Self {
        Self(log.lines().filter_map(of_line).collect())
    }

    /// What was taken for a call of `bytes` over all ranks; `None` where it is not known, or where there is nothing to choose: what
    /// goes from one rank to another goes straight.
    pub fn of_call(&self, collective: Collective, bytes: u64, ranks: u64) -> Option<&Choice> {
        // NCCL counts what one rank brings to an all-gather, and gets of a reduce-scatter.
        let (name, bytes) = match collective {
            Collective::AllReduce => ("AllReduce", bytes),
            Collective::Broadcast => ("Broadcast", bytes),
            Collective::Reduce => ("Reduce", bytes),
            Collective::AllGather => ("AllGather", bytes / ranks.max(1)),
            Collective::ReduceScatter => ("ReduceScatter", bytes / ranks.max(1)),
            _ => return None,
        };
        self.0.get(&(name.to_owned(), bytes))
    }
}

/// `... NCCL INFO AllReduce: 1024 Bytes -> Algo RING proto LL channel{Lo..Hi}={0..1}`, which rank 0 writes.
fn of_line(line: &str) -> Option<((String, u64), Choice)> {
    let (before, after) = line.split_once(" Bytes -> Algo ")?;
    let (before, bytes) = before.rsplit_once(": ")?;
    let name = before.split_whitespace().next_back()?;
    let mut words = after.split_whitespace();
    let algorithm = words.next()?;
    let protocol = words
        .next()
        .filter(|word| *word == "proto")
        .and(words.next())?;
    // Before 2.24 both were numbers, whose meaning changed from one release to another.
    let named = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_uppercase()) && word != "Unknown"
    };
    if !named(algorithm) || !named(protocol) {
        return None;
    }
    let choice = Choice {
        algorithm: algorithm.to_owned(),
        protocol: protocol.to_owned(),
    };
    Some(((name.to_owned(), bytes.parse().ok()?), choice))
}

/// What the process of rank `rank` needs in its environment where it is to say what NCCL takes, or to take a ring; else nothing.
pub fn of_process(purpose: &Purpose, rank: u32) -> Vec<(&'static str, OsString)> {
    let Purpose::Choices { log, ring } = purpose else {
        return Vec::new();
    };
    let mut variables: Vec<(&'static str, OsString)> = Vec::new();
    // Rank 0 alone writes down what all ranks take.
    if rank == 0 {
        // NCCL puts the host's name and such for a percent sign and a letter.
        let file = log.to_string_lossy().replace('%', "%%");
        variables.extend([
            ("NCCL_DEBUG", "INFO".into()),
            ("NCCL_DEBUG_SUBSYS", "TUNING".into()),
            ("NCCL_DEBUG_FILE", file.into()),
        ]);
    }
    if *ring {
        variables.extend([
            ("NCCL_ALGO", "Ring".into()),
            ("NCCL_PROTO", "Simple".into()),
        ]);
    }
    variables
}

/// How asking NCCL ended.
pub enum Asked {
    /// There is no NCCL in the trial, or nothing whose algorithm is recorded.
    NotNeeded,
    /// What it takes.
    Known(Choices),
    /// Why it is not known; the trial can be measured all the same.
    Unknown(Outcome, String),
    /// The user stopped the run.
    Interrupted,
}

fn is_needed(trial: &TrialConfig) -> bool {
    let over_nccl = trial.strategy.ranks_transport() == Some(Transport::Nccl);
    matches!(trial.work, Work::Collectives(_)) && over_nccl
}

/// Asks NCCL what it takes for the calls of a trial; its log lies in `scratch` meanwhile.
///
/// # Errors
/// [`StopError`] when no job can run any more.
pub fn ask(trial: &Trial, executor: &mut dyn Executor, scratch: &Path) -> Result<Asked, StopError> {
    if !is_needed(&trial.config) {
        return Ok(Asked::NotNeeded);
    }
    let system = |source| StopError::System {
        what: "make a folder for NCCL's log",
        source,
    };
    std::fs::create_dir_all(scratch).map_err(system)?;
    let log = std::path::absolute(scratch.join("nccl.log")).map_err(system)?;
    let result = executor.execute(&Job {
        label: format!("{}, NCCL's choices", trial.label),
        trial: trial.config.clone(),
        purpose: Purpose::Choices {
            log: log.clone(),
            ring: false,
        },
        repeat: 0,
        timeout: Duration::from_nanos(trial.config.measure.timeout_ns),
    })?;
    let written = std::fs::read(&log);
    // It goes with the scratch folder if it cannot be removed here.
    let _ = std::fs::remove_file(&log);
    let reason = result.reason.unwrap_or_default();
    Ok(match (result.outcome, written) {
        (Outcome::Interrupted, _) => Asked::Interrupted,
        (Outcome::Passed, Ok(log)) => {
            let choices = Choices::of_log(&String::from_utf8_lossy(&log));
            match choices.0.is_empty() {
                false => Asked::Known(choices),
                true => unknown("its log names no algorithm; NCCL 2.24 and later do"),
            }
        }
        (Outcome::Passed, Err(error)) => unknown(&format!("its log cannot be read: {error}")),
        (outcome, _) => Asked::Unknown(outcome, format!("NCCL's choices are not known: {reason}")),
    })
}

fn unknown(why: &str) -> Asked {
    Asked::Unknown(
        Outcome::Failed,
        format!("NCCL's choices are not known: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as NCCL 2.28.9 puts them together.
    const LOG: &str = "\
node-1:4711:4711 [0] NCCL INFO AllReduce: 1024 Bytes -> Algo RING proto LL channel{Lo..Hi}={0..1}
node-1:4711:4711 [0] NCCL INFO AllReduce: 1073741824 Bytes -> Algo NVLS_TREE proto SIMPLE channel{Lo..Hi}={0..15}
node-1:4711:4711 [0] NCCL INFO AllGather: 256 Bytes -> Algo RING proto LL128 channel{Lo..Hi}={0..0}
node-1:4711:4711 [0] NCCL INFO comm 0x5581 rank 0 nRanks 4 nNodes 1 localRanks 4
node-1:4711:4711 [0] NCCL INFO Broadcast: 64 Bytes -> Algo 1 proto 2 time 6.800000
";

    #[test]
    fn a_log_says_what_was_taken() {
        let choices = Choices::of_log(LOG);
        let of = |collective, bytes| {
            choices
                .of_call(collective, bytes, 4)
                .map(|choice| (choice.algorithm.as_str(), choice.protocol.as_str()))
        };
        assert_eq!(of(Collective::AllReduce, 1024), Some(("RING", "LL")));
        let large = of(Collective::AllReduce, 1 << 30);
        assert_eq!(large, Some(("NVLS_TREE", "SIMPLE")));
        assert_eq!(of(Collective::AllReduce, 2048), None);
        assert_eq!(
            of(Collective::AllGather, 1024),
            Some(("RING", "LL128")),
            "256 bytes of each of four ranks"
        );
        assert_eq!(of(Collective::Broadcast, 64), None, "numbers say nothing");
        assert_eq!(of(Collective::Send, 1024), None);
    }

    #[test]
    fn rank_0_alone_logs_and_all_take_the_ring() {
        let asked = |ring, rank| {
            let log = "/tmp/100%h/nccl.log".into();
            of_process(&Purpose::Choices { log, ring }, rank)
        };
        let names = |variables: &[(&'static str, OsString)]| -> Vec<&'static str> {
            variables.iter().map(|(name, _)| *name).collect()
        };
        let first = asked(false, 0);
        let logs = ["NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE"];
        assert_eq!(names(&first), logs);
        assert_eq!(
            first[2].1, "/tmp/100%%h/nccl.log",
            "its name is taken as it is"
        );
        assert!(asked(false, 1).is_empty());
        assert_eq!(names(&asked(true, 1)), ["NCCL_ALGO", "NCCL_PROTO"]);
        assert_eq!(asked(true, 0).len(), 5);
        let measure = Purpose::Measure {
            unsynchronized_first: false,
        };
        assert!(of_process(&measure, 0).is_empty());
    }
}
