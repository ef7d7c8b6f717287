//! Communicators of NCCL's that are up: who may use them, how they are aborted, and how they end.
//!
//! Contract: a rank has one, its end of the job's; a controller has one for each of its devices, which begin, fail and end together. One
//! thread at a time is in a call of them; the rank's own thread enqueues, the watching thread looks for failures. What has failed
//! is kept once, for the rank, for its devices and for the job, before anything is aborted. An abort waits a while for the rank's thread to
//! come out of NCCL. If it does not, it is stuck there, for want of a peer or of room in the GPU's queue, and only an abort from outside
//! gets it out: by `ncclCommRevoke`, which keeps the communicator, or else by `ncclCommAbort`.
//! Reference: NCCL user guide, "Error handling and communicator abort".
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::device::{Enter, Interval};
use super::library::{Handle, Nccl};
use crate::backend::{BackendError, Result};
use crate::comm::error::CommError;
use crate::comm::{Aborter, CollectiveCall, Watch};

/// How often the watching thread looks.
const POLL: Duration = Duration::from_millis(5);
/// How long NCCL's own words wait for those of whom the ranks have met over, who know which rank is gone.
const HEARSAY: Duration = Duration::from_millis(500);
/// How long an abort waits for the rank's thread to come out of a call.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a call may stay under way after a rank has left.
const AFTER_LEAVE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// How long the end of a session waits for calls under way, and then for the watching thread.
const CLOSE: Duration = Duration::from_secs(60);

/// A communicator, and the device that it is on.
pub(super) struct End {
    pub(super) handle: Handle,
    /// The device's: why it was aborted.
    pub(super) loss: Arc<OnceLock<String>>,
    /// What a failure of this one is told by, where there are several.
    pub(super) name: String,
}

/// Whose a session is.
pub(super) struct Owner {
    pub(super) watch: Watch,
    pub(super) aborter: Aborter,
    pub(super) rank: usize,
}

/// The latest call, for who waits for it.
struct Latest {
    /// Of each end.
    intervals: Box<[Option<Interval>]>,
    call: Option<CollectiveCall>,
    /// Of a graph whose last call it is, how many it has.
    graph: Option<usize>,
}

#[derive(Default)]
struct Signal {
    stop: bool,
    ended: bool,
}

/// Communicators that are up.
pub(super) struct Session {
    nccl: Arc<dyn Nccl>,
    /// Whoever uses them has the lock of `up`, but for an abort from outside.
    ends: Box<[End]>,
    /// No longer once they were aborted or destroyed.
    up: Mutex<bool>,
    /// Whether an abort from outside has freed them.
    freed: AtomicBool,
    owner: Owner,
    latest: Mutex<Latest>,
    signal: Mutex<Signal>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Starts the watching thread of `ends`, at least one, which are this session's from now on.
    ///
    /// # Errors
    /// When the thread cannot be started; the communicators are aborted then.
    pub(super) fn start(
        nccl: Arc<dyn Nccl>,
        ends: Box<[End]>,
        owner: Owner,
        enter: Enter,
    ) -> Result<Arc<Self>> {
        let session = Arc::new(Self {
            nccl,
            latest: Mutex::new(Latest {
                intervals: ends.iter().map(|_| None).collect(),
                graph: None,
                call: None,
            }),
            ends,
            up: Mutex::new(true),
            freed: AtomicBool::new(false),
            owner,
            signal: Mutex::default(),
            changed: Condvar::new(),
        });
        let watched = Arc::clone(&session);
        let thread = std::thread::Builder::new()
            .name(format!("nccl {}", session.owner.rank))
            .spawn(move || {
                // Asking an event wants no context; what a GPU says that cannot be entered, its own thread hears as well.
                let _ = enter();
                watched.serve();
                lock(&watched.signal).ended = true;
                watched.changed.notify_all();
            });
        if let Err(error) = thread {
            session.abort();
            return Err(BackendError::Thread(format!(
                "the thread that watches NCCL: {error}"
            )));
        }
        Ok(session)
    }

    /// Why nothing works any more.
    pub(super) fn failure(&self) -> Option<String> {
        self.lost().cloned()
    }

    fn lost(&self) -> Option<&String> {
        self.ends.iter().find_map(|end| end.loss.get())
    }

    /// Keeps the first reason, for all devices.
    fn lose(&self, reason: String) {
        let reason = self.lost().cloned().unwrap_or(reason);
        for end in &self.ends {
            let _ = end.loss.set(reason.clone());
        }
    }

    fn error(&self) -> BackendError {
        let reason = self.failure().unwrap_or_else(|| "no reason given".into());
        BackendError::Communication(reason)
    }

    /// Does what uses the communicators, on the rank's own thread.
    ///
    /// # Errors
    /// Why the session failed, be it for what `work` says or while it was at work.
    pub(super) fn call<T>(
        &self,
        work: impl FnOnce(&dyn Nccl, &[End]) -> std::result::Result<T, String>,
    ) -> Result<T> {
        if self.lost().is_some() {
            return Err(self.error());
        }
        let up = lock(&self.up);
        if !*up {
            return Err(self.error());
        }
        let done = work(&*self.nccl, &self.ends);
        drop(up);
        match done {
            Ok(done) if self.lost().is_none() => Ok(done),
            Ok(_) => Err(self.error()),
            Err(words) => {
                self.fail(&words);
                Err(self.error())
            }
        }
    }

    /// Keeps the latest call of an end for who waits for it; `graph` says how many there are in the graph whose last one it is.
    pub(super) fn follow(
        &self,
        end: usize,
        call: &CollectiveCall,
        interval: Interval,
        graph: Option<usize>,
    ) {
        let mut latest = lock(&self.latest);
        latest.intervals[end] = Some(interval);
        latest.call = Some(*call);
        latest.graph = graph;
    }

    /// Ends the job for `words`, unless it has ended: then that is the reason. The watching thread does the rest.
    fn fail(&self, words: &str) {
        if self.lost().is_none() {
            let until = Instant::now() + HEARSAY;
            while self.owner.watch.look().failure.is_none() && Instant::now() < until {
                std::thread::sleep(POLL);
            }
            // The first abort wins.
            self.owner.aborter.abort(words);
            let told = self.owner.watch.look().failure;
            self.lose(told.unwrap_or_else(|| words.to_owned()));
        }
        self.changed.notify_all();
    }

    /// The watching thread.
    fn serve(&self) {
        let mut left_since = None;
        while !self.sleep() {
            if self.lost().is_none() {
                self.look(&mut left_since);
            }
            if let Some(reason) = self.lost() {
                // Perhaps only one device has heard of it.
                self.lose(reason.clone());
                self.abort();
                return;
            }
        }
    }

    /// Until it is time to look, or something is to be seen; whether it is time to stop.
    fn sleep(&self) -> bool {
        let signal = lock(&self.signal);
        let slept = if signal.stop || self.lost().is_some() {
            signal
        } else {
            let slept = self.changed.wait_timeout(signal, POLL);
            slept.unwrap_or_else(PoisonError::into_inner).0
        };
        slept.stop
    }

    fn look(&self, left_since: &mut Option<Instant>) {
        let seen = self.owner.watch.look();
        if let Some(reason) = seen.failure {
            return self.lose(reason);
        }
        // While the rank's thread is in a call, NCCL tells it what is wrong itself.
        let error = match self.up.try_lock().as_deref() {
            // SAFETY: the communicators are alive while the lock is held and says so, and nobody else uses them.
            Ok(true) => unsafe { blame(&*self.nccl, &self.ends) },
            _ => Ok(()),
        };
        if let Err(words) = error.and_then(|()| self.blame_devices()) {
            return self.fail(&words);
        }
        if seen.left.is_empty() || !self.is_busy() {
            *left_since = None;
            return;
        }
        if left_since.get_or_insert_with(Instant::now).elapsed() >= AFTER_LEAVE {
            let error = CommError::Departed {
                rank: self.owner.rank,
                call: self.describe(),
                missing: seen.left,
            };
            self.fail(&error.to_string());
        }
    }

    /// Whether a device has failed that others wait for. A rank's own thread hears of its device's failure where it waits for it; a
    /// controller's may be waiting for another.
    fn blame_devices(&self) -> std::result::Result<(), String> {
        if self.ends.len() < 2 {
            return Ok(());
        }
        let latest = lock(&self.latest);
        for (end, interval) in self.ends.iter().zip(&latest.intervals) {
            if let Some(words) = interval.as_ref().and_then(Interval::failure) {
                return Err(format!("{}: {words}", end.name));
            }
        }
        Ok(())
    }

    /// Whether the latest call is under way.
    fn is_busy(&self) -> bool {
        let latest = lock(&self.latest);
        let mut intervals = latest.intervals.iter().flatten();
        intervals.any(|interval| !interval.is_done())
    }

    fn describe(&self) -> String {
        let Latest { call, graph, .. } = &*lock(&self.latest);
        match call {
            Some(call) => {
                let last = format!(
                    "{} of {} elements ({})",
                    call.collective.name(),
                    super::record::elements(call),
                    call.phase.name()
                );
                match graph {
                    Some(calls) => format!("a graph of {calls} collectives, the last {last}"),
                    None => last,
                }
            }
            None => "no call".into(),
        }
    }

    /// Aborts the communicators, once. The reason is kept already.
    fn abort(&self) {
        if self.abort_in_turn() {
            return;
        }
        // SAFETY: the communicators are alive, for the rank's thread is in a call of them; that is what revoking is for.
        let revoke = |end: &End| unsafe { self.nccl.revoke(end.handle) }.is_some();
        // All of them, also after one that cannot be.
        let revoked = self.ends.iter().map(revoke).filter(|revoked| *revoked);
        let revoked = revoked.count() == self.ends.len();
        if revoked && self.abort_in_turn() {
            return;
        }
        self.freed.store(true, Ordering::SeqCst);
        for end in &self.ends {
            // SAFETY: as above, but for that the call may still look at what is freed when it comes out; without this it never would.
            let _ = unsafe { self.nccl.abort(end.handle) };
        }
    }

    /// Aborts the communicators if nobody is in a call of them; false if somebody stays there.
    fn abort_in_turn(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut up = match self.up.try_lock() {
                Ok(up) => up,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(TryLockError::WouldBlock) => return false,
            };
            if std::mem::take(&mut *up) && !self.freed.load(Ordering::SeqCst) {
                for end in &self.ends {
                    // SAFETY: the lock is held and they count as gone. What NCCL says of it changes nothing: the reason is kept.
                    let _ = unsafe { self.nccl.abort(end.handle) };
                }
            }
            return true;
        }
    }

    /// Ends the session on the rank's thread: once calls under way are done, or aborts them if they will not be.
    pub(super) fn close(&self) {
        let until = Instant::now() + CLOSE;
        while self.lost().is_none() && self.is_busy() {
            if Instant::now() > until {
                let call = self.describe();
                self.fail(&format!(
                    "rank {}: {call} did not end within {} s",
                    self.owner.rank,
                    CLOSE.as_secs()
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut signal = lock(&self.signal);
        signal.stop = self.lost().is_none();
        self.changed.notify_all();
        let until = Instant::now() + CLOSE;
        while !signal.ended && Instant::now() < until {
            let waited = self.changed.wait_timeout(signal, POLL);
            signal = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let ended = signal.ended;
        drop(signal);
        if !ended {
            // NCCL does not come back from an abort. The thread keeps what it needs.
            return;
        }
        if std::mem::take(&mut *lock(&self.up)) && !self.freed.load(Ordering::SeqCst) {
            for end in &self.ends {
                // SAFETY: nobody else is left, and they count as gone.
                let _ = unsafe {
                    match self.lost() {
                        Some(_) => self.nccl.abort(end.handle),
                        None => self.nccl.destroy(end.handle),
                    }
                };
            }
        }
    }
}

/// What NCCL's threads say of any of `ends`; of several, with the name of the one that failed.
///
/// # Safety
/// As [`Nccl::async_error`], of all of them.
pub(super) unsafe fn blame(nccl: &dyn Nccl, ends: &[End]) -> std::result::Result<(), String> {
    // SAFETY: the caller's promise.
    let ask = |end: &End| unsafe { nccl.async_error(end.handle) };
    for end in ends {
        ask(end).map_err(|words| match ends.len() {
            1 => words,
            _ => format!("{}: {words}", end.name),
        })?;
    }
    Ok(())
}
