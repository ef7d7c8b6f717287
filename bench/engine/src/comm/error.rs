//! Why collectives fail, on any transport, and how long a rank waits before it says so.
//!
//! Contract: an error names who waited, for whom and in which call; what one rank alone knows is sent to the others as
//! the reason of an abort, so that every rank ends with the cause and not with an echo of it.
use std::time::Duration;

use crate::comm::Collective;

/// Why a collective failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// Someone stopped the job.
    #[error("{} aborted the job: {reason}", who(*.by))]
    Aborted {
        /// The rank; none for a supervisor.
        by: Option<usize>,
        /// Its words.
        reason: String,
    },
    /// Ranks did not come in time.
    #[error("rank {rank} waited {seconds} s in {call} for {}", ranks(.missing))]
    Timeout {
        /// Who waited.
        rank: usize,
        /// In which call.
        call: String,
        /// For whom.
        missing: Vec<usize>,
        /// How long.
        seconds: u64,
    },
    /// A rank's communicator is gone, so it will never come.
    #[error("{} left the job while rank {rank} waited in {call}", ranks(.missing))]
    Departed {
        /// Who waited.
        rank: usize,
        /// In which call.
        call: String,
        /// For whom.
        missing: Vec<usize>,
    },
    /// Two ranks made different calls.
    #[error(
        "rank {rank} called {ours} while rank {peer} called {theirs}: every rank must make the same calls in the same order"
    )]
    Mismatch {
        /// Who noticed.
        rank: usize,
        /// The other.
        peer: usize,
        /// What the first called.
        ours: String,
        /// What the other called.
        theirs: String,
    },
    /// A call that no rank can make.
    #[error("{call}: {problem}")]
    Invalid {
        /// The collective.
        call: &'static str,
        /// What is wrong.
        problem: String,
    },
}

fn who(rank: Option<usize>) -> String {
    rank.map_or_else(|| "the supervisor".into(), |rank| format!("rank {rank}"))
}

pub(super) fn ranks(list: &[usize]) -> String {
    let names: Vec<String> = list.iter().map(ToString::to_string).collect();
    format!(
        "rank{} {}",
        if list.len() == 1 { "" } else { "s" },
        names.join(", ")
    )
}

/// How a rank waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Whether to look for a while before parking: only where every rank has a core of its own.
    pub spin: bool,
    /// How long to wait for a rank in all.
    pub timeout: Duration,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            spin: false,
            timeout: Duration::from_secs(300),
        }
    }
}

pub(super) fn invalid(collective: Collective, problem: &str) -> CommError {
    CommError::Invalid {
        call: collective.name(),
        problem: problem.to_owned(),
    }
}
