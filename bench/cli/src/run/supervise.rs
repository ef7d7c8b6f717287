//! Runs a job in fresh processes of this binary.
//!
//! Contract: a job has one process, or one per rank where DDP's ranks are processes; each gets its assignment, a spool per
//! rank and the cores of the devices. [`super::watch`] then sees to it that they end. What they wrote into their spools
//! is read whatever their end was. Under a launcher the process of rank r is started by agent r ([`crate::agent`]). See "The runner" in ARCHITECTURE.md.
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
use super::watched::Watched;
use crate::agent::crew::Crew;
use crate::agent::message::{SharedRegion, Start};
use crate::agent::remote::Places;
use crate::plan::config::TrialConfig;
use crate::scenario::file::{Launch, Transport};

/// Events of a gate's spool: it is there for its heartbeat.
const GATE_CAPACITY: usize = 1 << 10;

/// Starts and watches processes.
#[derive(Debug)]
pub struct Supervisor<'a> {
    binary: PathBuf,
    spools: PathBuf,
    cores: Vec<usize>,
    signals: &'a Signals,
    crew: Option<&'a Crew>,
    jobs: usize,
}

impl<'a> Supervisor<'a> {
    /// A supervisor whose children are this very binary and whose spools lie below `spools`; under a launcher `crew` starts
    /// the processes of the ranks above 0.
    ///
    /// # Errors
    /// When the system hides this binary or its cores.
    pub fn new(
        spools: PathBuf,
        signals: &'a Signals,
        crew: Option<&'a Crew>,
    ) -> std::io::Result<Self> {
        let binary = std::env::current_exe()?;
        let cores = match crew {
            Some(crew) => crew.local_cores().to_vec(),
            None => cores::usable()?,
        };
        Ok(Self {
            binary,
            spools,
            cores,
            signals,
            crew,
            jobs: 0,
        })
    }

    /// The agents that share a trial between them, a rank each; `None` where it runs on this one alone.
    fn crew_of(&self, trial: &TrialConfig) -> Option<&'a Crew> {
        self.crew.filter(|_| processes(trial).len() > 1)
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
        let (mut inherited, region) = shared.unzip();
        let mut watch = Watch::new(job, spools, region, Instant::now());
        for ranks in processes(&job.trial) {
            let assignment = self.assignment(job, spools, cores, &ranks, inherited.as_ref());
            match self.start(assignment, ranks, job, spools, inherited.as_ref()) {
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
        if self.crew.is_none() {
            drop(inherited.take());
        }
        while !watch.is_over() {
            watch.sleep(self.signals)?;
            let departures = || self.crew.map_or(0, Crew::leaving);
            watch.attend(Instant::now(), || self.signals.received() + departures());
        }
        Ok(watch.verdict())
    }

    /// Starts the process of `ranks`, here or through its agent.
    fn start(
        &self,
        assignment: Assignment,
        ranks: Range<usize>,
        job: &Job,
        spools: &SpoolFolder,
        inherited: Option<&OwnedFd>,
    ) -> std::io::Result<Box<dyn Watched>> {
        let Some(crew) = self.crew_of(&job.trial).filter(|_| ranks.start > 0) else {
            return Ok(Box::new(Child::start(&self.binary, &assignment, ranks)?));
        };
        let places = Places {
            spool: spools.spools()[ranks.start].clone(),
            output: match &assignment.purpose {
                Purpose::Gate { outputs, .. } => outputs.first().cloned(),
                _ => None,
            },
        };
        let start = Start {
            assignment,
            capacity: capacity(&job.purpose),
            region: inherited.map(held_region).transpose()?,
        };
        Ok(Box::new(crew.start(start, places)))
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
            oversubscribed: cores::oversubscribed(job.trial.devices, self.cores(&job.trial)),
        }
    }
}

impl Executor for Supervisor<'_> {
    fn execute(&mut self, job: &Job) -> Result<JobResult, StopError> {
        self.jobs += 1;
        let ranks = processes(&job.trial).last().map_or(0, |ranks| ranks.end);
        let crew = self.crew_of(&job.trial);
        if let Some(lost) = crew.and_then(|crew| crew.lost(ranks)) {
            return Err(StopError::Agent(lost));
        }
        let spools = SpoolFolder::create(
            &self.spools,
            &format!("job{}", self.jobs),
            ranks,
            capacity(&job.purpose),
        )?;
        let cores = match crew {
            Some(crew) => crew.seats(ranks).cores,
            None => cores::assign(job.trial.devices, &self.cores),
        };
        let system = |source| StopError::System {
            what: "wait for the processes of a job",
            source,
        };
        let (mut outcome, mut reason) = self.run(job, &spools, &cores).map_err(system)?;
        if let (Outcome::Interrupted, Some(crew)) = (outcome, self.crew) {
            reason = reason.map(|reason| match crew.departure() {
                Some(departure) => format!("{reason}: {departure}"),
                None => reason,
            });
        }
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
            clocks: crew.map_or_else(Vec::new, |crew| crew.clocks(ranks)),
            spools: Some(spools),
        })
    }

    fn interrupted(&self) -> bool {
        self.signals.received() > 0 || self.crew.is_some_and(|crew| crew.leaving_now() > 0)
    }

    fn refuses(&self, trial: &TrialConfig) -> Option<String> {
        let crew = self.crew_of(trial)?;
        crew.refuses(processes(trial).len(), shares_memory(trial))
    }

    fn cores(&self, trial: &TrialConfig) -> usize {
        let ranks = processes(trial).len();
        match self.crew_of(trial).filter(|crew| ranks <= crew.size()) {
            Some(crew) => crew.seats(ranks).own,
            None => self.cores.len(),
        }
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

/// Events that the spool of a rank must hold.
fn capacity(purpose: &Purpose) -> usize {
    if matches!(purpose, Purpose::Measure { .. }) {
        spool::CAPACITY
    } else {
        GATE_CAPACITY
    }
}

/// The region as another process on this host finds it. A memfd has no name and no trace when its last user is gone, unlike a
/// file in /dev/shm, which a killed run would leave; it is opened through the process that holds it.
fn held_region(inherited: &OwnedFd) -> std::io::Result<SharedRegion> {
    let stat = rustix::fs::fstat(inherited)?;
    Ok(SharedRegion {
        process: std::process::id(),
        descriptor: inherited.as_raw_fd(),
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

/// Whether the processes of a trial meet in memory that they share.
fn shares_memory(trial: &TrialConfig) -> bool {
    trial.strategy.launched() == Some(Launch::Processes)
        && trial.strategy.ranks_transport() != Some(Transport::Tcp)
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
