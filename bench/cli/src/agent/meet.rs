//! How the agents of a job find each other.
//!
//! Contract: rank 0's agent listens, the others come to it, in any order and as late as [`patience`](super::launcher::Place) allows. Who
//! does not belong to the job (no agent, another token) is turned away and disturbs nothing; whoever belongs to it but
//! differs (version, scenario, number of ranks, a rank that is taken) ends the meeting for all, with a message that names
//! the rank. Ctrl-C ends it too.
mod gather;
mod join;

use std::time::Duration;

pub use gather::gather;
pub use join::join;

/// Why the agents did not come together.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    /// The port cannot be had.
    #[error("rank 0 cannot listen on port {port}, where the agents are to meet: {source}")]
    Listen {
        /// Which.
        port: u16,
        /// Cause.
        source: std::io::Error,
    },
    /// MASTER_ADDR leads nowhere.
    #[error("rank {rank} cannot find the host \"{host}\" of rank 0: {source}")]
    Resolve {
        /// Whose.
        rank: u32,
        /// What MASTER_ADDR or the launcher said.
        host: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Ranks that did not come.
    #[error("{} did not come to {address} within {} s{strangers}", ranks(.absent), .waited.as_secs())]
    Absent {
        /// Their ranks.
        absent: Vec<u32>,
        /// Where they were waited for.
        address: String,
        /// How long.
        waited: Duration,
        /// `; 2 connections that were no agents of this job were turned away`.
        strangers: String,
    },
    /// Rank 0 was not there.
    #[error("rank {rank} could not join rank 0 at {address}: {why}")]
    Unreachable {
        /// Whose.
        rank: u32,
        /// Where.
        address: String,
        /// The last attempt.
        why: String,
    },
    /// An agent of the job differs.
    #[error("{0}")]
    Differs(String),
    /// An agent went away before all had come.
    #[error("{0} while the agents met")]
    Left(String),
    /// Rank 0 turned this agent away.
    #[error("rank 0 refused rank {rank}: {reason}")]
    Refused {
        /// Whose.
        rank: u32,
        /// Its words.
        reason: String,
    },
    /// The user stopped it.
    #[error("interrupted while the agents met")]
    Interrupted,
    /// The system said no.
    #[error("failed to {what}: {source}")]
    System {
        /// Verb and object.
        what: &'static str,
        /// Cause.
        source: std::io::Error,
    },
}

impl MeetError {
    /// What to do instead, where there is something.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Listen { .. } => Some(
                "another job may use it: set SYNCMARK_MASTER_PORT to a free port of the host of rank 0, the same for all processes",
            ),
            Self::Resolve { .. } => Some(
                "set MASTER_ADDR to a name or an address of the host of rank 0 that all hosts know",
            ),
            Self::Absent { .. } | Self::Unreachable { .. } => Some(
                "all processes need the same MASTER_ADDR, MASTER_PORT or SYNCMARK_MASTER_PORT, and SYNCMARK_JOB_TOKEN where it is set; \
                 SYNCMARK_MEETING_TIMEOUT gives slow starts more seconds",
            ),
            Self::Differs(_) => Some(
                "start the same program with the same arguments and scenario files on every host",
            ),
            Self::Left(_) | Self::Refused { .. } | Self::Interrupted | Self::System { .. } => None,
        }
    }
}

/// `rank 3` or `ranks 1, 2 and 3`.
fn ranks(ranks: &[u32]) -> String {
    match ranks {
        [one] => format!("rank {one}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(u32::to_string).collect();
            format!("ranks {} and {last}", first.join(", "))
        }
        [] => "no rank".to_owned(),
    }
}
