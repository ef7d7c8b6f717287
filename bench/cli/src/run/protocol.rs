//! What the conductor and its children say to each other. A child need not be this binary: CONTRIBUTING.md documents it.
//!
//! The conductor starts `syncmark rank` and writes one [`Assignment`] as a line of JSON to its standard input. The child
//! writes [`Message`]s, one JSON value a line, to its standard output, its events to the spool (see [`super::spool`]), and
//! free text to standard error, whose last lines the conductor quotes when the child fails. It ends with status 0 after
//! `"done"`, with any other status after `{"error": ...}`.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::plan::config::TrialConfig;

/// Version of the protocol; a child refuses any other.
pub const PROTOCOL_VERSION: u32 = 2;

/// What a child is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// [`PROTOCOL_VERSION`].
    pub protocol_version: u32,
    /// The effective configuration.
    pub trial: TrialConfig,
    /// What for.
    pub purpose: Purpose,
    /// Repeat, from 0; seeds the order of the data.
    pub repeat: u32,
    /// First rank (or device) of this child.
    pub rank: u32,
    /// Ranks over all children of the trial. 1 for single, N for independent and DDP; for DP the number of devices.
    pub world_size: u32,
    /// How its ranks meet those of other processes; none where all ranks are in this one.
    pub meeting: Option<Meeting>,
    /// One spool per rank of this child; for DP and single one in all.
    pub spools: Vec<PathBuf>,
    /// Cores of each device of the trial, by rank or device.
    pub cores: Vec<Vec<usize>>,
    /// More devices than cores: do not spin.
    pub oversubscribed: bool,
}

/// How ranks in several processes meet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Meeting {
    /// In memory that they share.
    Region {
        /// Inherited descriptor of it.
        fd: i32,
    },
    /// Over TCP: see `syncmark_engine::comm::tcp`.
    Tcp {
        /// Where rank 0 listens, as this child reaches it.
        address: SocketAddr,
        /// Rank 0 only: inherited descriptor of the socket that listens there already, so that nobody can take the port
        /// in between. Without it rank 0 binds `address`.
        listener_fd: Option<i32>,
        /// At which of this host's addresses the other ranks reach this child; none: that of the interface that leads
        /// to rank 0.
        interface: Option<IpAddr>,
        /// The same in all children of a job, and different in every other job.
        token: u64,
    },
}

/// What a child is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Purpose {
    /// Warm-up, window, paired arm, traced pass.
    Measure {
        /// Whether the arm without synchronization comes before the window.
        unsynchronized_first: bool,
    },
    /// A few steps on a small fixed batch; every rank then writes its parameters, buffers and optimizer state.
    Gate {
        /// Steps.
        steps: u32,
        /// Samples of the global batch.
        global_batch: usize,
        /// Normalization chunks of the single-device reference; empty for the strategy itself.
        chunks: Vec<usize>,
        /// Where each rank of this child writes, in rank order: a safetensors file each, tensors named `before.<name>` and
        /// `after.<name>`.
        outputs: Vec<PathBuf>,
    },
    /// Of collectives over NCCL: every call once, untimed and unchecked, while NCCL writes down what it takes for it.
    Choices {
        /// Where rank 0's NCCL writes, as the variables of its process say.
        log: PathBuf,
        /// Whether NCCL is told to take a ring, whose bytes are known.
        ring: bool,
    },
}

/// What a child says on its standard output, one line each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// Built and about to warm up: what is known only now.
    Ready {
        /// Scalar parameters of the model.
        parameters: u64,
    },
    /// A pass begins.
    Pass {
        /// Its name as in `steps.csv`.
        name: String,
        /// Its steps.
        steps: u64,
    },
    /// It failed; nothing follows.
    Error {
        /// What kind of failure.
        kind: ErrorKind,
        /// Rank or device concerned.
        rank: u32,
        /// A sentence.
        message: String,
    },
    /// It is complete.
    Done,
}

/// Kinds of failure that have an outcome of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// An allocation failed.
    OutOfMemory,
    /// The loss is NaN or infinite.
    Diverged,
    /// A collective was aborted: another rank is the cause.
    Aborted,
    /// Anything else.
    Failed,
}
