//! The control connections: host barriers, aborts, and noticing at once that a rank is gone.
//!
//! Every rank has one to rank 0, which passes on what concerns all. A thread per rank reads them, so that an abort or a
//! death reaches a rank wherever it is: whoever waits in a collective polls an event descriptor, whoever waits in a
//! barrier a condition variable. Nothing here happens inside a step.
mod reader;

use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendFlags, send};

use self::reader::Reader;
use super::error::{JoinError, system};
use super::info::unacknowledged;
use super::wire::{FRAME_BYTES, Frame, TEXT_BYTES};
use crate::comm::Seen;
use crate::comm::error::CommError;

/// How long a control frame may take to be written: they are tiny, so a full buffer means a peer that does not read.
const WRITE_LIMIT: Duration = Duration::from_secs(1);
/// How much later than rank 0, which knows who is missing, the others give up on a barrier by themselves; and how long
/// rank 0 lets others say that they are stuck as well before it says by whom.
const GRACE: Duration = Duration::from_millis(500);
/// How long a rank whose peer is gone waits to hear the reason from rank 0.
const HEARSAY: Duration = Duration::from_millis(300);

#[derive(Default)]
struct State {
    /// Host barriers that this rank has come to, and that have been released.
    entered: u64,
    released: u64,
    /// What rank 0 brought to the last of them.
    word: u64,
    aborted: Option<(Option<usize>, String)>,
    /// Rank 0: barriers that each rank has come to. Others: unused.
    arrived: Vec<u64>,
    /// Who has left in good order; but for rank 0, a rank only knows that of rank 0.
    left: Vec<bool>,
    /// Rank 0: who came first to the barrier that is under way, and when.
    first: Option<(usize, Instant)>,
    /// Rank 0: for whom each rank waited when its time limit passed.
    stuck: Vec<Option<usize>>,
    /// Rank 0: whose limit passed first, in which call, and when.
    stall: Option<(usize, String, Instant)>,
    /// This rank needs nobody any more.
    leaving: bool,
    over: bool,
}

impl State {
    /// Rank 0: whether something has begun that must end in time.
    fn is_urgent(&self) -> bool {
        self.first.is_some() || (self.stall.is_some() && self.aborted.is_none())
    }
}

/// One rank's control connections.
pub(super) struct Control {
    pub(super) rank: usize,
    pub(super) world: usize,
    timeout: Duration,
    links: Vec<Option<TcpStream>>,
    state: Mutex<State>,
    changed: Condvar,
    /// Set with `State::aborted`.
    aborted: AtomicBool,
    /// Readable once the job is aborted.
    alarm: OwnedFd,
    /// Ends the reading thread.
    end: OwnedFd,
}

impl Control {
    /// Starts the reading thread, unless this rank is alone.
    pub(super) fn start(
        rank: usize,
        links: Vec<Option<TcpStream>>,
        timeout: Duration,
    ) -> Result<Arc<Self>, JoinError> {
        let world = links.len();
        let event = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|error| system("make an event descriptor")(error.into()))
        };
        for link in links.iter().flatten() {
            link.set_nonblocking(true)
                .and_then(|()| link.set_nodelay(true))
                .map_err(system("set up a control connection"))?;
        }
        let control = Arc::new(Self {
            rank,
            world,
            timeout,
            links,
            state: Mutex::new(State {
                arrived: vec![0; world],
                left: vec![false; world],
                stuck: vec![None; world],
                ..State::default()
            }),
            changed: Condvar::new(),
            aborted: AtomicBool::new(false),
            alarm: event()?,
            end: event()?,
        });
        if world > 1 {
            let reader = Reader::new(&control);
            std::thread::Builder::new()
                .name(format!("control {rank}"))
                .spawn(move || reader.serve())
                .map_err(system("start the thread of the control connections"))?;
        }
        Ok(control)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Becomes readable when the job is aborted.
    pub(super) fn alarm(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    pub(super) fn refuse_aborted(&self) -> Result<(), CommError> {
        if self.aborted.load(Ordering::Acquire) {
            Err(self.abort_error())
        } else {
            Ok(())
        }
    }

    /// How the job is, as this rank has heard.
    pub(super) fn seen(&self) -> Seen {
        let failure = self.refuse_aborted().err();
        let state = self.state();
        Seen {
            failure: failure.map(|error| error.to_string()),
            left: (0..self.world).filter(|rank| state.left[*rank]).collect(),
        }
    }

    pub(super) fn abort_error(&self) -> CommError {
        let (by, reason) = self
            .state()
            .aborted
            .clone()
            .unwrap_or((None, "no reason given".into()));
        CommError::Aborted { by, reason }
    }

    /// Makes all pending and later calls of all ranks fail; the first reason counts.
    pub(super) fn abort(&self, by: Option<usize>, reason: &str) {
        let reason = &reason[..reason.floor_char_boundary(TEXT_BYTES)];
        let mut state = self.state();
        if state.aborted.is_some() {
            return;
        }
        state.aborted = Some((by, reason.to_owned()));
        self.aborted.store(true, Ordering::Release);
        // A full counter is readable as well, so that a failed write would not matter.
        let _ = rustix::io::write(&self.alarm, &1_u64.to_ne_bytes());
        self.changed.notify_all();
        let frame = Frame::Abort {
            by,
            len: reason.len(),
        };
        // Rank 0 passes it on to all, the others tell rank 0; whom it does not reach is gone.
        for peer in 0..self.world {
            let _ = self.write(peer, frame, reason.as_bytes());
        }
    }

    /// The error of a rank whose data connection to `peer` has ended: the abort that explains it, if one comes soon.
    pub(super) fn gone(&self, peer: usize, call: String) -> CommError {
        if self.aborted_within(Instant::now(), HEARSAY) {
            return self.abort_error();
        }
        // One look at both: an abort comes before the good-bye of rank 0, which passed it on.
        let (aborted, first_left) = {
            let state = self.state();
            (state.aborted.is_some(), state.left[0])
        };
        if aborted {
            return self.abort_error();
        }
        // Without rank 0 nobody passes on who went first, and the peer may have ended for want of it.
        let mut missing = vec![peer];
        if first_left && peer != 0 {
            missing.insert(0, 0);
        }
        self.fail(CommError::Departed {
            rank: self.rank,
            call,
            missing,
        })
    }

    /// The error of a rank whose time limit passed while it waited for `peer`. On a ring that may be a rank that waits
    /// itself: only rank 0, which hears from all, can tell who keeps them.
    pub(super) fn stuck(&self, peer: usize, call: String) -> CommError {
        let begin = Instant::now();
        if self.rank == 0 {
            self.hear_stuck(0, peer, &call);
            if !self.aborted_within(begin, GRACE)
                && let Some(error) = self.culprits()
            {
                return self.fail(error);
            }
        } else {
            let text = &call[..call.floor_char_boundary(TEXT_BYTES)];
            let len = text.len();
            // A rank 0 that does not read is named below.
            let _ = self.write(0, Frame::Stuck { peer, len }, text.as_bytes());
        }
        if self.aborted_within(begin, 2 * GRACE) {
            return self.abort_error();
        }
        self.fail(CommError::Timeout {
            rank: self.rank,
            call,
            missing: vec![0],
            seconds: self.timeout.as_secs(),
        })
    }

    /// Rank 0: `rank` waits for `peer` and its time is up.
    fn hear_stuck(&self, rank: usize, peer: usize, call: &str) {
        let mut state = self.state();
        state.stuck[rank] = Some(peer.min(self.world - 1));
        state
            .stall
            .get_or_insert_with(|| (rank, call.to_owned(), Instant::now()));
    }

    /// Rank 0: who keeps those whose time is up, once all had the time to say so.
    fn culprits(&self) -> Option<CommError> {
        let state = self.state();
        let (rank, call, since) = state.stall.as_ref()?;
        if since.elapsed() < GRACE {
            return None;
        }
        let waited_for = |only: &dyn Fn(usize) -> bool| -> Vec<usize> {
            let any = |peer: &usize| state.stuck.contains(&Some(*peer)) && only(*peer);
            (0..self.world).filter(any).collect()
        };
        let mut missing = waited_for(&|peer| state.stuck[peer].is_none());
        if missing.is_empty() {
            missing = waited_for(&|_| true);
        }
        Some(CommError::Timeout {
            rank: *rank,
            call: call.clone(),
            missing,
            seconds: self.timeout.as_secs(),
        })
    }

    /// Whether the job is aborted before `limit` has passed since `begin`.
    fn aborted_within(&self, begin: Instant, limit: Duration) -> bool {
        let mut state = self.state();
        while state.aborted.is_none() {
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Aborts the job for `error`, which only this rank knows.
    pub(super) fn fail(&self, error: CommError) -> CommError {
        self.abort(Some(self.rank), &error.to_string());
        error
    }

    /// Writes a frame to `peer`, if there is a connection; false when it does not get through.
    fn write(&self, peer: usize, frame: Frame, text: &[u8]) -> bool {
        let Some(link) = self.links.get(peer).and_then(Option::as_ref) else {
            return true;
        };
        let mut message = [0; FRAME_BYTES + TEXT_BYTES];
        message[..FRAME_BYTES].copy_from_slice(&frame.encode());
        message[FRAME_BYTES..FRAME_BYTES + text.len()].copy_from_slice(text);
        let mut left = &message[..FRAME_BYTES + text.len()];
        let until = Instant::now() + WRITE_LIMIT;
        while !left.is_empty() {
            match send(link, left, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => left = &left[sent..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Blocks until all ranks have come, and returns the word that rank 0 brought.
    pub(super) fn barrier(&self, word: u64, timeout: Duration) -> Result<u64, CommError> {
        self.refuse_aborted()?;
        if self.world == 1 {
            return Ok(word);
        }
        let mut state = self.state();
        state.entered += 1;
        let number = state.entered;
        if self.rank == 0 {
            state.word = word;
            self.arrive(&mut state, 0, number);
        } else {
            // A connection that has ended is noticed below.
            let _ = self.write(0, Frame::Arrive { number }, &[]);
        }
        let until = Instant::now() + timeout + GRACE;
        while state.released < number && state.aborted.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            let departed = self.rank != 0 && state.left[0];
            if left.is_zero() || departed {
                drop(state);
                return Err(self.fail(self.no_barrier(departed, vec![0])));
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if state.released >= number {
            return Ok(state.word);
        }
        drop(state);
        Err(self.abort_error())
    }

    fn no_barrier(&self, departed: bool, missing: Vec<usize>) -> CommError {
        let (rank, call) = (self.rank, "barrier".to_owned());
        if departed {
            CommError::Departed {
                rank,
                call,
                missing,
            }
        } else {
            CommError::Timeout {
                rank,
                call,
                missing,
                seconds: self.timeout.as_secs(),
            }
        }
    }

    /// Rank 0: `rank` has come to barrier `number`; releases it when it was the last.
    fn arrive(&self, state: &mut State, rank: usize, number: u64) {
        state.arrived[rank] = number;
        let next = state.released + 1;
        if state.first.is_none() {
            state.first = Some((rank, Instant::now()));
        }
        if state.arrived.iter().all(|arrived| *arrived >= next) {
            state.released = next;
            state.first = None;
            let frame = Frame::Release {
                number: next,
                word: state.word,
            };
            for peer in 1..self.world {
                let _ = self.write(peer, frame, &[]);
            }
            self.changed.notify_all();
        }
    }

    /// Rank 0: who makes the barrier under way impossible: has left, or is late.
    fn overdue(&self) -> Option<CommError> {
        let state = self.state();
        let (first, since) = state.first?;
        let next = state.released + 1;
        let absent = |rank: &usize| state.arrived[*rank] < next;
        let departed: Vec<usize> = (0..self.world)
            .filter(|rank| state.left[*rank] && absent(rank))
            .collect();
        let late = since.elapsed() >= self.timeout;
        let error = |departed, missing| match self.no_barrier(departed, missing) {
            CommError::Departed { call, missing, .. } => CommError::Departed {
                rank: first,
                call,
                missing,
            },
            CommError::Timeout {
                call,
                missing,
                seconds,
                ..
            } => CommError::Timeout {
                rank: first,
                call,
                missing,
                seconds,
            },
            other => other,
        };
        if !departed.is_empty() {
            return Some(error(true, departed));
        }
        late.then(|| error(false, (0..self.world).filter(absent).collect()))
    }

    /// Says good-bye, waits until the others' kernels have it, and ends the reading thread.
    ///
    /// A connection that is closed with something unread in it is reset, which destroys what is still on its way: the good-bye, and the
    /// release of the last barrier.
    pub(super) fn leave(&self) {
        self.state().leaving = true;
        for peer in 0..self.world {
            let _ = self.write(peer, Frame::Leave, &[]);
        }
        let until = Instant::now() + WRITE_LIMIT;
        for (peer, link) in self.links.iter().enumerate() {
            let Some(link) = link else { continue };
            let needed = || {
                let state = self.state();
                !state.left[peer] && state.aborted.is_none()
            };
            while unacknowledged(link) > 0 && needed() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.state().over = true;
        let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
    }
}
