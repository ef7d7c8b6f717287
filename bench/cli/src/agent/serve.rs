//! What every agent but that of rank 0 does: starts the children that it is asked for and passes on what they say.
//!
//! Contract: it sleeps in poll(2); once a second, while a child runs, it sends a sign of life. When rank 0 goes away the
//! child is killed and the agent ends; when a signal tells the agent to end, rank 0 hears of it, and gets what the child
//! left. Nothing goes to stdout.
mod work;

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use super::link::name;
use super::message::{Hello, Order, Report, Start};
use super::wire::{Frame, Inbox, send};
use crate::run::signals::Signals;
use crate::run::watch::{GRACE, time_until};
use work::Work;

/// Time between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// How an agent's service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Rank 0 needs it no more.
    Dismissed,
    /// By a signal.
    Signalled(i32),
}

/// Why an agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Rank 0 is gone.
    #[error("{who} ends because rank 0 went away: {why}")]
    Forsaken {
        /// This agent.
        who: String,
        /// What became of the connection.
        why: String,
    },
    /// The system said no.
    #[error("failed to {what}: {source}")]
    System {
        /// Verb and object.
        what: &'static str,
        /// Cause.
        source: std::io::Error,
    },
}

/// An agent at rank 0's service.
pub struct Agent<'a> {
    hello: &'a Hello,
    stream: TcpStream,
    inbox: Inbox,
    signals: &'a Signals,
    binary: PathBuf,
    scratch: tempfile::TempDir,
    work: Option<Work>,
    next_beat: Instant,
    leaving: Option<i32>,
    kill_at: Option<Instant>,
}

impl<'a> Agent<'a> {
    /// An agent that has been welcomed.
    ///
    /// # Errors
    /// When it has no place for its children's files or does not find its own program.
    pub fn new(
        hello: &'a Hello,
        stream: TcpStream,
        inbox: Inbox,
        signals: &'a Signals,
    ) -> Result<Self, ServeError> {
        let system = |what| move |source| ServeError::System { what, source };
        let scratch = tempfile::Builder::new().prefix("syncmark-agent-").tempdir();
        Ok(Self {
            hello,
            stream,
            inbox,
            signals,
            binary: std::env::current_exe().map_err(system("find this program"))?,
            scratch: scratch.map_err(system(
                "make a folder for the files of children (set TMPDIR to one with room)",
            ))?,
            work: None,
            next_beat: Instant::now(),
            leaving: None,
            kill_at: None,
        })
    }

    /// Serves until rank 0 needs it no more.
    ///
    /// # Errors
    /// [`ServeError`]; no child is left then.
    pub fn serve(mut self) -> Result<Served, ServeError> {
        loop {
            self.sleep()?;
            self.heed_signals()?;
            if let Some(served) = self.heed_orders()? {
                return Ok(served);
            }
            self.attend()?;
            if let (None, Some(signal)) = (&self.work, self.leaving) {
                return Ok(Served::Signalled(signal));
            }
        }
    }

    fn sleep(&self) -> Result<(), ServeError> {
        let child = self.work.iter().flat_map(|work| work.child.descriptors());
        let mut fds: Vec<PollFd<'_>> = [self.stream.as_fd(), self.signals.as_fd()]
            .into_iter()
            .chain(child)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let until = self.work.as_ref().map(|_| {
            self.kill_at
                .map_or(self.next_beat, |at| at.min(self.next_beat))
        });
        let timeout = until.map(time_until);
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(ServeError::System {
                what: "wait for orders",
                source: error.into(),
            }),
        }
    }

    /// The first signal asks the child to end, the second, or [`GRACE`], kills it.
    fn heed_signals(&mut self) -> Result<(), ServeError> {
        let (received, now) = (self.signals.received(), Instant::now());
        if received > 0 && self.leaving.is_none() {
            let signal = self.signals.last();
            self.leaving = Some(signal);
            self.kill_at = Some(now + GRACE);
            self.say(&Report::Leaving { signal })?;
            self.signal(Signal::TERM);
        } else if received > 1 || self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            self.signal(Signal::KILL);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        self.work.iter().for_each(|work| work.child.signal(signal));
    }

    fn heed_orders(&mut self) -> Result<Option<Served>, ServeError> {
        if let Err(error) = self.inbox.fill(&self.stream) {
            return Err(self.forsaken(error.to_string()));
        }
        loop {
            match self.inbox.next_frame::<Order>() {
                Ok(Some(Frame::Message(Order::Goodbye))) => return Ok(Some(Served::Dismissed)),
                Ok(Some(Frame::Message(Order::Start(start)))) => self.start(*start)?,
                Ok(Some(Frame::Message(Order::Signal { signal }))) => {
                    if let Some(signal) = Signal::from_named_raw(signal) {
                        self.signal(signal);
                    }
                }
                Ok(Some(
                    Frame::Message(Order::Welcome | Order::Refused { .. }) | Frame::Data(_),
                )) => {
                    return Err(self.forsaken("it said what belongs to the meeting".to_owned()));
                }
                Ok(None) if self.inbox.is_closed() => {
                    return Err(self.forsaken(
                        "the connection was closed without a word, as when it is killed".to_owned(),
                    ));
                }
                Ok(None) => return Ok(None),
                Err(error) => return Err(self.forsaken(error.to_string())),
            }
        }
    }

    fn start(&mut self, start: Start) -> Result<(), ServeError> {
        let peer = self
            .stream
            .peer_addr()
            .map_err(|error| self.forsaken(error.to_string()))?;
        match Work::start(
            &self.binary,
            self.scratch.path(),
            start,
            peer.ip().to_canonical(),
        ) {
            Ok(work) => {
                self.next_beat = Instant::now() + BEAT;
                let process = work.child.pid();
                self.work = Some(work);
                self.say(&Report::Started { process })
            }
            Err(reason) => {
                self.say(&Report::NotStarted { reason })?;
                self.say(&Report::Complete { problem: None })
            }
        }
    }

    /// Passes on what the child has said, and its end with what it left.
    fn attend(&mut self) -> Result<(), ServeError> {
        let Some(work) = &mut self.work else {
            return Ok(());
        };
        let over = match work.attend(&self.stream) {
            Ok(over) => over,
            Err(error) => return Err(self.forsaken(error.to_string())),
        };
        if over {
            self.work = None;
        } else if Instant::now() >= self.next_beat {
            self.next_beat += BEAT;
            let beat = work.beat();
            self.say(&beat)?;
        }
        Ok(())
    }

    fn say(&self, report: &Report) -> Result<(), ServeError> {
        send(&self.stream, report).map_err(|error| self.forsaken(error.to_string()))
    }

    fn forsaken(&self, why: String) -> ServeError {
        ServeError::Forsaken {
            who: name(self.hello),
            why,
        }
    }
}
