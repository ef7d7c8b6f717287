//! What [`super::watch`] needs to know of a process that runs ranks, wherever it runs.
//!
//! Contract: nothing here blocks. A process that has ended stays ended; it is over once everything that it left has been
//! taken in as well, which for a process of another agent comes later.
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::process::ExitStatus;
use std::time::Instant;

use rustix::process::Signal;

use super::child::{Child, describe};
use super::protocol::Message;
use super::silence;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As wait(2) says.
    Status(ExitStatus),
    /// Nobody can say, because whoever watched it is gone: a sentence.
    Lost(String),
}

impl End {
    /// Whether it ended as the protocol wants.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Status(status) if status.success())
    }

    /// `was killed by signal 9 (SIGKILL)`.
    pub fn describe(&self) -> String {
        match self {
            Self::Status(status) => describe(*status),
            Self::Lost(why) => format!("was lost: {why}"),
        }
    }
}

/// A process that runs ranks of a job.
pub trait Watched {
    /// Its ranks.
    fn ranks(&self) -> Range<usize>;
    /// `process 4711`, with its host where that is another agent's.
    fn place(&self) -> String;
    /// What it said on standard output.
    fn messages(&self) -> &[Message];
    /// Last lines of its standard error.
    fn tail(&self) -> &VecDeque<String>;
    /// How it ended, and when that was noticed.
    fn ended(&self) -> Option<(End, Instant)>;
    /// Whether nothing further can come of it.
    fn is_over(&self) -> bool;
    /// Descriptors that become readable when there is something to attend to.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;
    /// When to attend to it even if nothing becomes readable.
    fn deadline(&self) -> Option<Instant>;
    /// Takes in what there is.
    fn attend(&mut self);
    /// Sends a signal to its process group; nothing happens if it has ended.
    fn signal(&mut self, signal: Signal);
    /// When its rank last gave a sign of life on CLOCK_MONOTONIC of this host; `None` if its spool is the one to ask.
    fn beat_ns(&self) -> Option<u64>;
    /// Whether it is stopped, as by SIGSTOP.
    fn is_stopped(&self) -> bool;
}

impl Watched for Child {
    fn ranks(&self) -> Range<usize> {
        self.ranks.clone()
    }

    fn place(&self) -> String {
        format!("process {}", self.pid())
    }

    fn messages(&self) -> &[Message] {
        &self.messages
    }

    fn tail(&self) -> &VecDeque<String> {
        &self.tail
    }

    fn ended(&self) -> Option<(End, Instant)> {
        self.ended.map(|(status, at)| (End::Status(status), at))
    }

    fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Child::descriptors(self).collect()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn attend(&mut self) {
        Child::attend(self);
    }

    fn signal(&mut self, signal: Signal) {
        Child::signal(self, signal);
    }

    fn beat_ns(&self) -> Option<u64> {
        None
    }

    fn is_stopped(&self) -> bool {
        silence::is_stopped(self.pid())
    }
}
