//! Runs a job in fresh processes of this binary.
//!
//! Contract: a job has one process, or one per rank where DDP's ranks are processes; each gets its assignment, a spool per
//! rank and the cores of the devices. [`super::watch`] then sees to it that they end. What they wrote into their spools
//! is read whatever their end was. See "The runner" in ARCHITECTURE.md.
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use syncmark_engine::comm::shared::{DEFAULT_SLOT_BYTES, Region};
use syncmark_record::Outcome;

use super::child::Child;
use super::cores;
use super::job::{Executor, Job, JobResult, StopError};
use super::protocol::{Assignment, Meeting, PROTOCOL_VERSION, Purpose};
use super::signals::Signals;
use super::spool;
use super::spool_folder::SpoolFolder;
use super::watch::Watch;
use crate::plan::config::TrialConfig;
use crate::scenario::file::Launch;

/// Events of a gate's spool: it is there for its heartbeat.
const GATE_CAPACITY: usize = 1 << 10;

/// Starts and watches processes.
#[derive(Debug)]
pub struct Supervisor<'a> {
    binary: PathBuf,
    spools: PathBuf,
    cores: Vec<usize>,
    signals: &'a Signals,
    jobs: usize,
}

impl<'a> Supervisor<'a> {
    /// A supervisor whose children are this very binary and whose spools lie below `spools`.
    ///
    /// # Errors
    /// When the system hides this binary or its cores.
    pub fn new(spools: PathBuf, signals: &'a Signals) -> std::io::Result<Self> {
        let (binary, cores) = (std::env::current_exe()?, cores::usable()?);
        Ok(Self {
            binary,
            spools,
            cores,
            signals,
            jobs: 0,
        })
    }

    /// Cores that devices can have.
    pub fn cores(&self) -> usize {
        self.cores.len()
    }

    /// Starts the processes of a job and waits for their end.
    fn run(
        &self,
        job: &Job,
        spools: &SpoolFolder,
        cores: &[Vec<usize>],
    ) -> std::io::Result<(Outcome, Option<String>)> {
        let shared = match shared_region(&job.trial) {
            Ok(shared) => shared,
            Err(reason) => return Ok((Outcome::Failed, Some(reason))),
        };
        let (inherited, region) = shared.unzip();
        let mut watch = Watch::new(job, spools, region, Instant::now());
        for ranks in processes(&job.trial) {
            let assignment = self.assignment(job, spools, cores, &ranks, inherited.as_ref());
            match Child::start(&self.binary, &assignment, ranks) {
                Ok(child) => watch.add(child),
                // The processes that did start are killed and reaped with the watch.
                Err(error) => {
                    return Ok((
                        Outcome::Failed,
                        Some(format!("failed to start a process: {error}")),
                    ));
                }
            }
        }
        drop(inherited);
        while !watch.is_over() {
            watch.sleep(self.signals)?;
            watch.attend(Instant::now(), self.signals.received());
        }
        Ok(watch.verdict())
    }

    fn assignment(
        &self,
        job: &Job,
        spools: &SpoolFolder,
        cores: &[Vec<usize>],
        ranks: &Range<usize>,
        inherited: Option<&OwnedFd>,
    ) -> Assignment {
        Assignment {
            protocol_version: PROTOCOL_VERSION,
            trial: job.trial.clone(),
            purpose: purpose_of(&job.purpose, ranks),
            repeat: job.repeat,
            rank: ranks.start as u32,
            world_size: job.trial.devices as u32,
            meeting: inherited.map(|fd| Meeting::Region { fd: fd.as_raw_fd() }),
            spools: spools.spools()[ranks.clone()].to_vec(),
            cores: cores.to_vec(),
            oversubscribed: cores::oversubscribed(job.trial.devices, self.cores.len()),
        }
    }
}

impl Executor for Supervisor<'_> {
    fn execute(&mut self, job: &Job) -> Result<JobResult, StopError> {
        self.jobs += 1;
        let capacity = if matches!(job.purpose, Purpose::Measure { .. }) {
            spool::CAPACITY
        } else {
            GATE_CAPACITY
        };
        let ranks = processes(&job.trial).last().map_or(0, |ranks| ranks.end);
        let spools =
            SpoolFolder::create(&self.spools, &format!("job{}", self.jobs), ranks, capacity)?;
        let cores = cores::assign(job.trial.devices, &self.cores);
        let system = |source| StopError::System {
            what: "wait for the processes of a job",
            source,
        };
        let (mut outcome, mut reason) = self.run(job, &spools, &cores).map_err(system)?;
        let (events, dropped) = spools.read()?;
        if dropped > 0 && outcome == Outcome::Passed {
            outcome = Outcome::Failed;
            reason = Some(format!(
                "{dropped} events found their spool full: ask for fewer steps or a shorter window"
            ));
        }
        Ok(JobResult {
            outcome,
            reason,
            events,
            cores,
            spools: Some(spools),
        })
    }

    fn interrupted(&self) -> bool {
        self.signals.received() > 0
    }
}

/// The ranks of each process of a trial. DP and `single` count as one rank: one process writes one spool.
fn processes(trial: &TrialConfig) -> Vec<Range<usize>> {
    match trial.strategy.launched() {
        None => std::iter::once(0..1).collect(),
        Some(Launch::Threads) => std::iter::once(0..trial.devices).collect(),
        Some(Launch::Processes) => (0..trial.devices).map(|rank| rank..rank + 1).collect(),
    }
}

/// The purpose of the process that runs `ranks`: of the outputs of a gate it gets its own, as of the spools.
fn purpose_of(purpose: &Purpose, ranks: &Range<usize>) -> Purpose {
    let mut purpose = purpose.clone();
    if let Purpose::Gate { outputs, .. } = &mut purpose {
        *outputs = outputs[ranks.clone()].to_vec();
    }
    purpose
}

/// The memory that ranks in processes share, and the descriptor through which they find it.
fn shared_region(trial: &TrialConfig) -> Result<Option<(OwnedFd, Region)>, String> {
    match trial.strategy.launched() {
        Some(Launch::Processes) => Region::create_memfd(trial.devices, DEFAULT_SLOT_BYTES)
            .map(Some)
            .map_err(|error| error.to_string()),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::StrategyConfig;
    use crate::run::mock::{config, ddp, dp};
    use crate::scenario::file::DpLoss;

    #[test]
    fn only_process_ranks_get_a_process_each() {
        let ranks = |strategy, devices| -> Vec<(usize, usize)> {
            let processes = processes(&config(strategy, devices));
            processes
                .iter()
                .map(|ranks| (ranks.start, ranks.end))
                .collect()
        };
        let independent = |launch| StrategyConfig::Independent { launch };
        assert_eq!(ranks(StrategyConfig::Single, 1), [(0, 1)]);
        assert_eq!(ranks(dp(DpLoss::Gathered, 3), 3), [(0, 1)]);
        assert_eq!(ranks(independent(Launch::Threads), 2), [(0, 2)]);
        assert_eq!(ranks(independent(Launch::Processes), 2), [(0, 1), (1, 2)]);
        assert_eq!(ranks(ddp(Launch::Threads), 3), [(0, 3)]);
        assert_eq!(ranks(ddp(Launch::Processes), 3), [(0, 1), (1, 2), (2, 3)]);
    }
}
