//! What the conductor asks of an executor, and what it gets back.
//!
//! Contract: a job is one attempt to run one configuration in fresh processes. Whatever happens to those processes is
//! a [`JobResult`]; only what would happen to every later job as well (no room for spools) is an error. A mock
//! executor stands behind the same trait in the conductor's tests. See "The runner" in ARCHITECTURE.md.
use std::time::Duration;

use syncmark_record::Outcome;

use super::protocol::Purpose;
use super::spool::{Event, SpoolError};
use super::spool_folder::SpoolFolder;
use crate::plan::config::TrialConfig;

/// One attempt to run one configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Names it in messages and in the names of its spools.
    pub label: String,
    /// The effective configuration.
    pub trial: TrialConfig,
    /// What for.
    pub purpose: Purpose,
    /// Repeat, from 0.
    pub repeat: u32,
    /// Longest life of its processes.
    pub timeout: Duration,
}

/// How a job ended and what its ranks left.
#[derive(Debug)]
pub struct JobResult {
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it passed.
    pub reason: Option<String>,
    /// Events of each rank, in rank order: also those of ranks that were killed.
    pub events: Vec<Vec<Event>>,
    /// Cores of each device.
    pub cores: Vec<Vec<usize>>,
    /// Whose clock each rank's times are on; empty where all are on this host's.
    pub clocks: Vec<String>,
    /// The spools on disk; they go when this is dropped, so not before the events are recorded.
    pub spools: Option<SpoolFolder>,
}

/// Why no further job can run.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// A spool cannot be made, for want of room among others.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// An agent that later jobs need is gone.
    #[error("{0}")]
    Agent(String),
    /// Processes cannot be watched on this system.
    #[error("failed to {what}: {source}")]
    System {
        /// Verb and object.
        what: &'static str,
        /// Cause.
        source: std::io::Error,
    },
}

/// What comes after the end of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Further jobs may start.
    GoOn,
    /// None may start; those under way come to their end.
    StartNone,
    /// What jobs leave cannot be kept any more: those under way are killed.
    Abandon,
}

/// Follows jobs from their start to their end.
pub trait Follow {
    /// Whether job `index` is still wanted; it starts at once if so.
    fn starts(&mut self, index: usize) -> bool;
    /// Job `index` has ended.
    fn ended(&mut self, index: usize, result: JobResult) -> Next;
}

/// Runs jobs in their order, each after the end of the one before, until the user has asked to stop.
///
/// # Errors
/// [`StopError`] when no later job could run either.
pub fn one_by_one<E: Executor + ?Sized>(
    executor: &mut E,
    jobs: &[Job],
    follow: &mut dyn Follow,
) -> Result<(), StopError> {
    for (index, job) in jobs.iter().enumerate() {
        if executor.interrupted() {
            break;
        }
        if follow.starts(index) {
            let result = executor.execute(job)?;
            if follow.ended(index, result) != Next::GoOn {
                break;
            }
        }
    }
    Ok(())
}

/// Runs jobs in fresh processes.
pub trait Executor {
    /// Runs `job` to its end, whatever end that is. No process of it is left afterwards.
    ///
    /// # Errors
    /// [`StopError`] when no later job could run either.
    fn execute(&mut self, job: &Job) -> Result<JobResult, StopError>;

    /// Runs jobs that time nothing: they start in their order, as many at a time as have cores of their own, until the user has asked
    /// to stop.
    ///
    /// # Errors
    /// [`StopError`] when no later job could run either.
    fn side_by_side(&mut self, jobs: &[Job], follow: &mut dyn Follow) -> Result<(), StopError> {
        one_by_one(self, jobs, follow)
    }

    /// Whether the user has asked to stop.
    fn interrupted(&self) -> bool;

    /// Why `trial` cannot run where this executor starts processes; `None` when it can.
    fn refuses(&self, trial: &TrialConfig) -> Option<String>;

    /// Cores that the devices of `trial` have between them, so that more devices than these share some.
    fn cores(&self, trial: &TrialConfig) -> usize;
}

/// Tells the time; tests bring their own.
pub trait Clock {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
    /// UTC, RFC 3339.
    fn utc(&self) -> String;
}

/// The machine's clock.
pub struct SystemClock(std::time::Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(std::time::Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn utc(&self) -> String {
        jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
            .to_string()
    }
}
