//! Runs a job in fresh processes of this binary.
//!
//! Contract: a job has one process, or one per rank where DDP's ranks are processes; each gets its assignment, a spool per
//! rank and the cores of the devices. [`super::watch`] then sees to it that they end. What they wrote into their spools
//! is read whatever their end was. Jobs that time nothing may run side by side, each on cores of its own. Under a launcher the process of rank r is started by agent r ([`crate::agent`]). See "The runner" in ARCHITECTURE.md.
use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use syncmark_record::Outcome;

use super::binding;
use super::child::Child;
use super::cores;
use super::job::{Executor, Follow, Job, JobResult, Next, StopError, one_by_one};
use super::meeting::{MeetingPoint, shares_memory};
use super::protocol::{Assignment, Meeting, PROTOCOL_VERSION, Purpose};
use super::signals::Signals;
use super::spool;
use super::spool_folder::SpoolFolder;
use super::watch::Watch;
use super::watched::Watched;
use crate::agent::crew::Crew;
use crate::agent::message::Start;
use crate::agent::remote::Places;
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

    /// Starts the processes of a job.
    fn begin<'j>(
        &mut self,
        index: usize,
        job: &'j Job,
        cores: Vec<Vec<usize>>,
    ) -> Result<Underway<'j>, StopError> {
        self.jobs += 1;
        let spools = SpoolFolder::create(
            &self.spools,
            &format!("job{}", self.jobs),
            ranks(&job.trial),
            capacity(&job.purpose),
        )?;
        let interface = self
            .crew_of(&job.trial)
            .map_or(Ipv4Addr::LOCALHOST.into(), Crew::interface);
        let (point, region, mut prevented) = match MeetingPoint::make(&job.trial, interface) {
            Ok((point, region)) => (point, region, None),
            Err(reason) => (MeetingPoint::Within, None, Some(reason)),
        };
        let mut point = point;
        let mut watch = Watch::new(job, spools, region, Instant::now());
        for ranks in processes(&job.trial) {
            if prevented.is_some() {
                break;
            }
            let first = ranks.start;
            let assignment = self.assignment(job, watch.spools(), &cores, &ranks, point.of(first));
            match self.start(assignment, ranks, job, watch.spools(), &point) {
                Ok(child) => watch.add(child),
                Err(error) => {
                    watch.abandon();
                    prevented = Some(format!("failed to start a process: {error}"));
                }
            }
            point.has_started(first);
        }
        if self.crew.is_none() {
            point.close();
        }
        Ok(Underway {
            index,
            job,
            watch,
            prevented,
            cores,
            _point: point,
        })
    }

    /// Waits until something has happened to jobs under way, and attends to it.
    fn attend(&self, underway: &mut [Underway<'_>]) -> Result<(), StopError> {
        if underway.iter().any(Underway::is_over) {
            return Ok(());
        }
        let watches = underway.iter().map(|one| &one.watch);
        Watch::sleep(watches, self.signals).map_err(|source| StopError::System {
            what: "wait for the processes of a job",
            source,
        })?;
        let departures = || self.crew.map_or(0, Crew::leaving);
        for one in underway {
            one.watch
                .attend(Instant::now(), || self.signals.received() + departures());
        }
        Ok(())
    }

    /// What a job that is over has come to.
    fn finish(&self, underway: Underway<'_>) -> Result<JobResult, StopError> {
        let job = underway.job;
        let (mut outcome, mut reason) = match underway.prevented {
            Some(reason) => (Outcome::Failed, Some(reason)),
            None => underway.watch.verdict(),
        };
        if let (Outcome::Interrupted, Some(crew)) = (outcome, self.crew) {
            reason = reason.map(|reason| match crew.departure() {
                Some(departure) => format!("{reason}: {departure}"),
                None => reason,
            });
        }
        let spools = underway.watch.into_spools();
        let (events, dropped) = spools.read()?;
        if dropped > 0 && outcome == Outcome::Passed {
            outcome = Outcome::Failed;
            reason = Some(format!(
                "{dropped} events found their spool full: ask for fewer steps or a shorter window"
            ));
        }
        let crew = self.crew_of(&job.trial);
        Ok(JobResult {
            outcome,
            reason,
            events,
            cores: underway.cores,
            clocks: crew.map_or_else(Vec::new, |crew| crew.clocks(ranks(&job.trial))),
            spools: Some(spools),
        })
    }

    /// Cores for a job beside those under way: none that is taken; all of them, shared, for one that needs more than there are.
    fn free_cores(
        &self,
        trial: &TrialConfig,
        underway: &[Underway<'_>],
    ) -> Option<Vec<Vec<usize>>> {
        let taken = |core: &usize| underway.iter().any(|one| one.uses(*core));
        let free: Vec<usize> = self
            .cores
            .iter()
            .copied()
            .filter(|core| !taken(core))
            .collect();
        let enough = free.len() >= trial.devices.saturating_mul(trial.threads);
        (enough || underway.is_empty()).then(|| binding::cores_of(trial, &free))
    }

    /// Starts the process of `ranks`, here or through its agent.
    fn start(
        &self,
        assignment: Assignment,
        ranks: Range<usize>,
        job: &Job,
        spools: &SpoolFolder,
        point: &MeetingPoint,
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
            region: point.held_region()?,
        };
        Ok(Box::new(crew.start(start, places)))
    }

    fn assignment(
        &self,
        job: &Job,
        spools: &SpoolFolder,
        cores: &[Vec<usize>],
        ranks: &Range<usize>,
        meeting: Option<Meeting>,
    ) -> Assignment {
        Assignment {
            protocol_version: PROTOCOL_VERSION,
            trial: job.trial.clone(),
            purpose: purpose_of(&job.purpose, ranks),
            repeat: job.repeat,
            rank: ranks.start as u32,
            world_size: job.trial.devices as u32,
            meeting,
            spools: spools.spools()[ranks.clone()].to_vec(),
            cores: cores.to_vec(),
            oversubscribed: cores::oversubscribed(&job.trial, self.cores(&job.trial)),
        }
    }
}

/// A job whose processes have been started.
struct Underway<'j> {
    index: usize,
    job: &'j Job,
    watch: Watch<'j>,
    /// Why its processes could not be started.
    prevented: Option<String>,
    cores: Vec<Vec<usize>>,
    _point: MeetingPoint,
}

impl Underway<'_> {
    fn is_over(&self) -> bool {
        self.watch.is_over()
    }

    fn uses(&self, core: usize) -> bool {
        self.cores.iter().flatten().any(|own| *own == core)
    }
}

impl Executor for Supervisor<'_> {
    fn execute(&mut self, job: &Job) -> Result<JobResult, StopError> {
        let ranks = ranks(&job.trial);
        let crew = self.crew_of(&job.trial);
        if let Some(lost) = crew.and_then(|crew| crew.lost(ranks)) {
            return Err(StopError::Agent(lost));
        }
        let cores = match crew {
            Some(crew) => crew.seats(ranks).cores,
            None => binding::cores_of(&job.trial, &self.cores),
        };
        let mut underway = [self.begin(0, job, cores)?];
        while !underway[0].is_over() {
            self.attend(&mut underway)?;
        }
        let [underway] = underway;
        self.finish(underway)
    }

    fn side_by_side(&mut self, jobs: &[Job], follow: &mut dyn Follow) -> Result<(), StopError> {
        // Agents run a job at a time.
        if self.crew.is_some() {
            return one_by_one(self, jobs, follow);
        }
        let mut waiting = jobs.iter().enumerate().peekable();
        let mut underway: Vec<Underway<'_>> = Vec::new();
        let mut next = Next::GoOn;
        loop {
            while next == Next::GoOn && !self.interrupted() {
                let free = |(_, job): &(usize, &Job)| self.free_cores(&job.trial, &underway);
                let Some(cores) = waiting.peek().and_then(free) else {
                    break;
                };
                if let Some((index, job)) = waiting.next()
                    && follow.starts(index)
                {
                    underway.push(self.begin(index, job, cores)?);
                }
            }
            if underway.is_empty() {
                return Ok(());
            }
            self.attend(&mut underway)?;
            while let Some(over) = underway.iter().position(Underway::is_over) {
                let one = underway.remove(over);
                let index = one.index;
                match follow.ended(index, self.finish(one)?) {
                    Next::GoOn => {}
                    Next::StartNone => next = Next::StartNone,
                    Next::Abandon => return Ok(()),
                }
            }
        }
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

/// How many ranks write a spool of their own.
fn ranks(trial: &TrialConfig) -> usize {
    processes(trial).last().map_or(0, |ranks| ranks.end)
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

/// The purpose of the process that runs `ranks`: of the outputs of a gate it gets its own, as of the spools.
fn purpose_of(purpose: &Purpose, ranks: &Range<usize>) -> Purpose {
    let mut purpose = purpose.clone();
    if let Purpose::Gate { outputs, .. } = &mut purpose {
        *outputs = outputs[ranks.clone()].to_vec();
    }
    purpose
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
