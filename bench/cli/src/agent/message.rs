//! What the agents say to each other, on one connection from each agent to that of rank 0.
//!
//! Contract: an agent says [`Report::Hello`] first and is answered with [`Order::Welcome`] or [`Order::Refused`]. Then it is
//! asked to [`Order::Start`] one child after the other and reports each to its [`Report::Complete`]. What a child says is
//! passed on as it is. Documented in CONTRIBUTING.md, "The agent protocol".
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::run::protocol::{Assignment, Message};

/// Version of these messages; agents of different versions refuse each other.
pub const AGENT_PROTOCOL_VERSION: u32 = 1;

/// Who an agent is and what it was asked to do. Unknown fields are skipped: an agent of another version must be
/// understood as far as its version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`AGENT_PROTOCOL_VERSION`].
    pub protocol_version: u32,
    /// Version of the program.
    pub syncmark_version: String,
    /// The job's token.
    pub token: String,
    /// Its rank.
    pub rank: u32,
    /// Number of ranks by its variables.
    pub world_size: u32,
    /// Rank among those of its host, where the launcher says it.
    pub local_rank: Option<u32>,
    /// Its process id.
    pub process: u32,
    /// Where it runs.
    pub machine: Machine,
    /// What it was asked to do.
    pub work: Work,
}

/// What an agent made of its command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// The verb, and each plan's name and digest.
    Planned {
        /// `run` or `verify`.
        verb: String,
        /// Name of the scenario, and a hash of its text and trials.
        plans: Vec<(String, String)>,
    },
    /// It cannot plan, and why.
    Failed {
        /// A sentence.
        reason: String,
    },
}

/// Rank 0 to an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// All agents are here.
    Welcome,
    /// The job does not begin, or not with this agent.
    Refused {
        /// A sentence.
        reason: String,
    },
    /// Start a child.
    Start(Box<Start>),
    /// Send the child's process group a signal.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// The job is over.
    Goodbye,
}

/// A child to be started. The paths of its assignment are rank 0's: the agent puts its own in their place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// What the child gets.
    pub assignment: Assignment,
    /// Events of its spool.
    pub capacity: usize,
    /// The memory that it shares with ranks of other agents.
    pub region: Option<SharedRegion>,
}

/// A shared region that rank 0's agent holds open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedRegion {
    /// Process that holds it.
    pub process: u32,
    /// Its descriptor there.
    pub descriptor: i32,
    /// Device number of the file, by which it is known again.
    pub device: u64,
    /// Inode of the file.
    pub inode: u64,
}

/// An agent to rank 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The first message.
    Hello(Box<Hello>),
    /// The child runs.
    Started {
        /// Its process id.
        process: u32,
    },
    /// The child could not be started; nothing but `complete` follows.
    NotStarted {
        /// A sentence.
        reason: String,
    },
    /// The child said something.
    Said {
        /// What.
        message: Message,
    },
    /// The child has ended.
    Ended {
        /// Its status as wait(2) gives it.
        status: i32,
        /// Last lines of its standard error.
        tail: Vec<String>,
    },
    /// A file of the child follows in pieces.
    File {
        /// Which.
        file: FileKind,
        /// Its length.
        bytes: u64,
    },
    /// Nothing of the child is left to tell.
    Complete {
        /// Why some of it is missing.
        problem: Option<String>,
    },
    /// A sign of life, once a second while a child runs.
    Beat {
        /// How long the child's rank has been silent; `None` if it never gave a sign.
        silent_ns: Option<u64>,
        /// Whether the child is stopped.
        stopped: bool,
    },
    /// The agent was told to end by a signal.
    Leaving {
        /// Its number.
        signal: i32,
    },
}

/// What a child leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Its spool, as far as it was written.
    Spool,
    /// Its output of a gate.
    Output,
}
