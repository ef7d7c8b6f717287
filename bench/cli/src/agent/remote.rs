//! A child of another agent, as rank 0's agent watches it.
//!
//! Contract: it looks like a child of this process ([`Watched`]), but for its end: it has ended when its agent says so, and
//! is over once its files are here. An agent that is lost takes its child with it (the kernel kills it there), so the child
//! is lost and over at once. Dropped before that, it is killed and waited for, so that its words cannot be taken for those
//! of the next one.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use syncmark_engine::probe::now_ns;

use super::link::Link;
use super::message::{FileKind, Order, Report, Start};
use super::parcel::Parcel;
use super::wire::Frame;
use crate::run::protocol::{ErrorKind, Message};
use crate::run::watch::time_until;
use crate::run::watched::{End, Watched};

/// How long a child that is no longer wanted may take to be gone.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where the files of the child belong.
#[derive(Clone, Debug)]
pub struct Places {
    /// Its spool, which exists.
    pub spool: PathBuf,
    /// Its output of a gate.
    pub output: Option<PathBuf>,
}

/// A child that another agent runs.
#[derive(Debug)]
pub struct RemoteChild {
    link: Rc<RefCell<Link>>,
    stream: Rc<TcpStream>,
    host: String,
    rank: usize,
    places: Places,
    process: Option<u32>,
    messages: Vec<Message>,
    tail: VecDeque<String>,
    ended: Option<(End, Instant)>,
    over: bool,
    parcel: Option<Parcel>,
    beat_ns: u64,
    stopped: bool,
}

impl RemoteChild {
    /// Asks the agent to start it.
    pub fn start(link: &Rc<RefCell<Link>>, start: Start, places: Places) -> Self {
        let mut agent = link.borrow_mut();
        agent.listen();
        let rank = start.assignment.rank as usize;
        agent.order(&Order::Start(Box::new(start)));
        Self {
            link: Rc::clone(link),
            stream: agent.stream(),
            host: agent.hello().machine.host.clone(),
            rank,
            places,
            process: None,
            messages: Vec::new(),
            tail: VecDeque::new(),
            ended: None,
            over: false,
            parcel: None,
            beat_ns: 0,
            stopped: false,
        }
    }

    fn take(&mut self, frame: Frame<Report>) {
        match frame {
            Frame::Data(piece) => self.take_piece(&piece),
            Frame::Message(Report::Started { process }) => self.process = Some(process),
            Frame::Message(Report::NotStarted { reason }) => {
                self.fail(format!(
                    "failed to start a process on {}: {reason}",
                    self.host
                ));
                self.end(End::Lost("it was not started".to_owned()));
            }
            Frame::Message(Report::Said { message }) => self.messages.push(message),
            Frame::Message(Report::Ended { status, tail }) => {
                self.tail = tail.into();
                self.end(End::Status(ExitStatus::from_raw(status)));
            }
            Frame::Message(Report::File { file, bytes }) => self.open(file, bytes),
            Frame::Message(Report::Complete { problem }) => self.complete(problem),
            Frame::Message(Report::Beat { silent_ns, stopped }) => {
                // Only the age of a sign crosses hosts: their clocks have nothing to do with each other.
                self.beat_ns = silent_ns.map_or(0, |silent| now_ns().saturating_sub(silent));
                self.stopped = stopped;
            }
            // A link sees to a leaving agent itself, and nobody introduces itself twice.
            Frame::Message(Report::Hello(_) | Report::Leaving { .. }) => {}
        }
    }

    fn open(&mut self, file: FileKind, bytes: u64) {
        let place = match (file, &self.places.output) {
            (FileKind::Spool, _) => self.places.spool.clone(),
            (FileKind::Output, Some(output)) => output.clone(),
            (FileKind::Output, None) => {
                return self.fail("it sent an output that nobody asked for".to_owned());
            }
        };
        match Parcel::open(&place, bytes) {
            Ok(parcel) => self.parcel = Some(parcel),
            Err(error) => self.fail(format!("failed to open {}: {error}", place.display())),
        }
    }

    fn take_piece(&mut self, piece: &[u8]) {
        if let Some(parcel) = &mut self.parcel
            && let Err(error) = parcel.take(piece)
        {
            self.parcel = None;
            self.fail(format!("failed to keep what it left: {error}"));
        }
    }

    fn complete(&mut self, problem: Option<String>) {
        let cut = self
            .parcel
            .take()
            .is_some_and(|parcel| !parcel.is_complete());
        let cut = cut.then(|| "a file came without its end".to_owned());
        if let Some(problem) = problem.or(cut) {
            self.fail(format!(
                "what it left on {} could not be fetched: {problem}",
                self.host
            ));
        }
        self.end(End::Lost("its end was not told".to_owned()));
        self.over = true;
    }

    /// Something is wrong that the child itself could not say.
    fn fail(&mut self, message: String) {
        self.messages.push(Message::Error {
            kind: ErrorKind::Failed,
            rank: self.rank as u32,
            message,
        });
    }

    fn end(&mut self, end: End) {
        self.ended.get_or_insert((end, Instant::now()));
    }
}

impl Watched for RemoteChild {
    fn ranks(&self) -> Range<usize> {
        self.rank..self.rank + 1
    }

    fn place(&self) -> String {
        match self.process {
            Some(process) => format!("process {process} on {}", self.host),
            None => format!("on {}", self.host),
        }
    }

    fn messages(&self) -> &[Message] {
        &self.messages
    }

    fn tail(&self) -> &VecDeque<String> {
        &self.tail
    }

    fn ended(&self) -> Option<(End, Instant)> {
        self.ended.clone()
    }

    fn is_over(&self) -> bool {
        self.over
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        if self.over {
            Vec::new()
        } else {
            vec![self.stream.as_fd()]
        }
    }

    fn deadline(&self) -> Option<Instant> {
        (!self.over).then(|| self.link.borrow().deadline())
    }

    fn attend(&mut self) {
        if self.over {
            return;
        }
        let link = Rc::clone(&self.link);
        let mut link = link.borrow_mut();
        for frame in link.receive() {
            self.take(frame);
        }
        if !self.over && Instant::now() >= link.deadline() {
            link.lose("it gave no sign of life for 15 s");
        }
        if let (false, Some(why)) = (self.over, link.lost()) {
            self.end(End::Lost(why.to_owned()));
            self.over = true;
        }
    }

    fn signal(&mut self, signal: Signal) {
        if self.ended.is_none() {
            self.link.borrow_mut().order(&Order::Signal {
                signal: signal.as_raw(),
            });
        }
    }

    fn beat_ns(&self) -> Option<u64> {
        Some(self.beat_ns)
    }

    fn is_stopped(&self) -> bool {
        self.stopped
    }
}

impl Drop for RemoteChild {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let deadline = Instant::now() + FAREWELL;
        while !self.over && Instant::now() < deadline {
            let mut fds = [PollFd::new(&*self.stream, PollFlags::IN)];
            // A poll that fails costs one more turn of this loop, which the deadline ends.
            let _ = poll(&mut fds, Some(&time_until(deadline)));
            self.attend();
        }
        if !self.over {
            self.link
                .borrow_mut()
                .lose("it did not end a child that was no longer wanted");
        }
    }
}
