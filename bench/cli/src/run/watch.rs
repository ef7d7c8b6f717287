//! Watches the processes of a job until the last one is gone.
//!
//! Contract: it sleeps in poll(2) on the ends and words of the processes, on the user's signals and on the next deadline, so
//! it uses no time of the cores that are being measured. When one rank fails, the others are told through the shared
//! region, so that they can say what they were doing; [`PATIENCE`] later they are asked with SIGTERM, [`GRACE`] later
//! killed. A time limit and ctrl-C begin with SIGTERM; a second ctrl-C kills at once. Who was first is for [`super::blame`].
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use syncmark_engine::comm::shared::Region;
use syncmark_engine::probe::now_ns;
use syncmark_record::Outcome;

use super::blame::{Account, Stopped, blame};
use super::job::Job;
use super::signals::Signals;
use super::silence::{self, Sign};
use super::spool_folder::SpoolFolder;
use super::watched::Watched;
use crate::plan::config::StrategyConfig;

/// How long the other ranks may take to notice that one has failed.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a process may take to end after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(1);

/// The time left until a deadline, for poll(2).
pub fn time_until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}

/// How far the job has been stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing is wrong.
    Running,
    /// A rank has failed, the others have been told.
    Told { until: Instant },
    /// SIGTERM was sent.
    Asked { until: Instant },
    /// SIGKILL was sent.
    Killed,
}

/// The processes of one job.
pub struct Watch<'a> {
    job: &'a Job,
    spools: SpoolFolder,
    region: Option<Region>,
    children: Vec<Box<dyn Watched>>,
    deadline: Instant,
    stage: Stage,
    stopped: Option<Stopped>,
    /// When the first signal was sent: who ends later did not die of itself.
    signalled: Option<Instant>,
}

impl<'a> Watch<'a> {
    /// No process yet; the time limit counts from `begin`.
    pub fn new(job: &'a Job, spools: SpoolFolder, region: Option<Region>, begin: Instant) -> Self {
        let deadline = begin + job.timeout;
        Self {
            job,
            spools,
            region,
            children: Vec::new(),
            deadline,
            stage: Stage::Running,
            stopped: None,
            signalled: None,
        }
    }

    /// Takes a process under watch.
    pub fn add(&mut self, child: Box<dyn Watched>) {
        self.children.push(child);
    }

    /// Kills and reaps what did start, because the rest did not.
    pub fn abandon(&mut self) {
        self.children.clear();
    }

    /// The spools of its ranks.
    pub fn spools(&self) -> &SpoolFolder {
        &self.spools
    }

    /// Its spools, once it is over.
    pub fn into_spools(self) -> SpoolFolder {
        self.spools
    }

    /// Whether every process is gone.
    pub fn is_over(&self) -> bool {
        self.children.iter().all(|child| child.is_over())
    }

    /// When to attend to it even if nothing becomes readable.
    fn next_deadline(&self) -> Option<Instant> {
        let until = match self.stage {
            Stage::Running => Some(self.deadline),
            Stage::Told { until } | Stage::Asked { until } => Some(until),
            Stage::Killed => None,
        };
        let others = self.children.iter().filter_map(|child| child.deadline());
        until.into_iter().chain(others).min()
    }

    /// Sleeps until there is something to attend to in any of `watches`.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn sleep<'w>(
        watches: impl Iterator<Item = &'w Self> + Clone,
        signals: &Signals,
    ) -> std::io::Result<()>
    where
        'a: 'w,
    {
        let descriptors = watches
            .clone()
            .flat_map(|watch| &watch.children)
            .flat_map(|child| child.descriptors())
            .chain([signals.as_fd()]);
        let mut fds: Vec<PollFd<'_>> = descriptors
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = watches
            .filter_map(Self::next_deadline)
            .min()
            .map(time_until);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Attends to whatever has happened until `now`; `signals` says how many the user has sent in all. It is asked after the
    /// processes, whose words can bring the news of a signal together with what the signal did.
    pub fn attend(&mut self, now: Instant, signals: impl FnOnce() -> usize) {
        self.children.iter_mut().for_each(|child| child.attend());
        let signals = signals();
        match self.stage {
            Stage::Running => {
                if signals > 0 {
                    self.stopped = Some(Stopped::Interrupted);
                    self.ask(now);
                } else if let Some(cause) = self.failure() {
                    if let Some(region) = &self.region {
                        region.abort(None, &cause);
                    }
                    self.stage = Stage::Told {
                        until: now + PATIENCE,
                    };
                } else if now >= self.deadline {
                    self.stopped = Some(Stopped::Timeout(self.silence()));
                    self.ask(now);
                }
            }
            Stage::Told { until } if now >= until || signals > 0 => self.ask(now),
            Stage::Asked { until } if now >= until || signals > 1 => self.kill(now),
            Stage::Told { .. } | Stage::Asked { .. } | Stage::Killed => {}
        }
    }

    /// How the job ended; call once it is over.
    pub fn verdict(&self) -> (Outcome, Option<String>) {
        let accounts: Vec<Account> = self
            .children
            .iter()
            .map(|child| Account::of(&**child, self.name(&**child), self.signalled))
            .collect();
        blame(self.stopped.as_ref(), &accounts)
    }

    /// The first sign that a rank has failed.
    fn failure(&self) -> Option<String> {
        let accounts = self
            .children
            .iter()
            .map(|child| (child, Account::of(&**child, self.name(&**child), None)));
        let mut failed = accounts.filter(|(child, account)| {
            account.error.is_some()
                || account.death.is_some()
                || (child.ended().is_some() && !account.done)
        });
        failed
            .next()
            .and_then(|(_, account)| blame(None, &[account]).1)
    }

    fn ask(&mut self, now: Instant) {
        self.signal(Signal::TERM, now);
        self.stage = Stage::Asked { until: now + GRACE };
    }

    fn kill(&mut self, now: Instant) {
        self.signal(Signal::KILL, now);
        self.stage = Stage::Killed;
    }

    fn signal(&mut self, signal: Signal, now: Instant) {
        self.signalled.get_or_insert(now);
        self.children
            .iter_mut()
            .for_each(|child| child.signal(signal));
    }

    /// `rank 1 (process 4711)`.
    fn name(&self, child: &dyn Watched) -> String {
        let (place, ranks) = (child.place(), child.ranks());
        match (&self.job.trial.strategy, ranks.len()) {
            (StrategyConfig::Dp { .. }, _) => format!("the controller ({place})"),
            (_, 1) => format!("rank {} ({place})", ranks.start),
            (_, n) => format!("the process of ranks 0 to {} ({place})", n - 1),
        }
    }

    /// Why the time limit was passed: which rank has been silent for longest.
    fn silence(&self) -> String {
        let beats = self.spools.heartbeats_ns();
        let sign = |child: &dyn Watched, rank: usize| {
            // A rank that waits for another one has arrived at a collective; one that hangs has not.
            let arrived = self
                .region
                .as_ref()
                .map_or(0, |region| region.heartbeat_ns(rank));
            let spooled = || beats.get(rank).copied().unwrap_or(0);
            Sign {
                name: if child.ranks().len() == 1 {
                    self.name(child)
                } else {
                    format!("rank {rank}")
                },
                beat_ns: child.beat_ns().unwrap_or_else(spooled).max(arrived),
                stopped: child.is_stopped(),
            }
        };
        let alive = self.children.iter().filter(|child| child.ended().is_none());
        let signs: Vec<Sign> = alive
            .flat_map(|child| child.ranks().map(move |rank| sign(&**child, rank)))
            .collect();
        silence::reason(self.job.timeout, &signs, now_ns())
    }
}
