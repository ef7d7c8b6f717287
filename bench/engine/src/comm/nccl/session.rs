//! A communicator of NCCL's that is up: who may use it, how it is aborted, and how it ends.
//!
//! Contract: one thread at a time is in a call of the communicator; the rank's own thread enqueues, the watching thread looks for
//! failures. What has failed is kept once, for the rank, for its device and for the job, before anything is aborted. An abort waits a
//! while for the rank's thread to come out of NCCL. If it does not, it is stuck there, for want of a peer or of room in the GPU's queue,
//! and only an abort from outside gets it out: by `ncclCommRevoke`, which keeps the communicator, or else by `ncclCommAbort`.
//! Reference: NCCL user guide, "Error handling and communicator abort".
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::device::{Enter, Interval};
use super::library::{Handle, Nccl};
use crate::backend::{BackendError, Result};
use crate::comm::error::CommError;
use crate::comm::{Aborter, CollectiveCall, Communicator, Watch};

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

/// The latest call, for who waits for it.
struct Latest {
    interval: Interval,
    call: CollectiveCall,
    /// Of a graph whose last call it is, how many it has.
    graph: Option<usize>,
}

#[derive(Default)]
struct Signal {
    stop: bool,
    ended: bool,
}

/// A communicator that is up.
pub(super) struct Session {
    nccl: Arc<dyn Nccl>,
    /// None once it was aborted or destroyed.
    handle: Mutex<Option<Handle>>,
    /// The same, for an abort from outside.
    raw: Handle,
    /// Whether an abort from outside has freed it.
    freed: AtomicBool,
    /// The device's: why it was aborted.
    loss: Arc<OnceLock<String>>,
    watch: Watch,
    aborter: Aborter,
    rank: usize,
    latest: Mutex<Option<Latest>>,
    signal: Mutex<Signal>,
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Starts the watching thread of `raw`, which is this session's from now on.
    ///
    /// # Errors
    /// When the thread cannot be started; the communicator is aborted then.
    pub(super) fn start(
        nccl: Arc<dyn Nccl>,
        raw: Handle,
        control: &dyn Communicator,
        loss: Arc<OnceLock<String>>,
        enter: Enter,
    ) -> Result<Arc<Self>> {
        let session = Arc::new(Self {
            nccl,
            handle: Mutex::new(Some(raw)),
            raw,
            freed: AtomicBool::new(false),
            loss,
            watch: control.watch(),
            aborter: control.aborter(),
            rank: control.rank(),
            latest: Mutex::new(None),
            signal: Mutex::default(),
            changed: Condvar::new(),
        });
        let watched = Arc::clone(&session);
        let thread = std::thread::Builder::new()
            .name(format!("nccl {}", session.rank))
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
        self.loss.get().cloned()
    }

    fn error(&self) -> BackendError {
        let reason = self.failure().unwrap_or_else(|| "no reason given".into());
        BackendError::Communication(reason)
    }

    /// Does what uses the communicator, on the rank's own thread.
    ///
    /// # Errors
    /// Why the session failed, be it for what `work` says or while it was at work.
    pub(super) fn call<T>(
        &self,
        work: impl FnOnce(&dyn Nccl, Handle) -> std::result::Result<T, String>,
    ) -> Result<T> {
        if self.loss.get().is_some() {
            return Err(self.error());
        }
        let handle = lock(&self.handle);
        let Some(comm) = *handle else {
            return Err(self.error());
        };
        let done = work(&*self.nccl, comm);
        drop(handle);
        match done {
            Ok(done) if self.loss.get().is_none() => Ok(done),
            Ok(_) => Err(self.error()),
            Err(words) => {
                self.fail(&words);
                Err(self.error())
            }
        }
    }

    /// Keeps the latest call for who waits for it; `graph` says how many there are in the graph whose last one it is.
    pub(super) fn follow(&self, call: &CollectiveCall, interval: Interval, graph: Option<usize>) {
        let call = *call;
        *lock(&self.latest) = Some(Latest {
            interval,
            call,
            graph,
        });
    }

    /// Ends the job for `words`, unless it has ended: then that is the reason. The watching thread does the rest.
    fn fail(&self, words: &str) {
        if self.loss.get().is_none() {
            let until = Instant::now() + HEARSAY;
            while self.watch.look().failure.is_none() && Instant::now() < until {
                std::thread::sleep(POLL);
            }
            // The first abort wins.
            self.aborter.abort(words);
            let told = self.watch.look().failure;
            let _ = self.loss.set(told.unwrap_or_else(|| words.to_owned()));
        }
        self.changed.notify_all();
    }

    /// The watching thread.
    fn serve(&self) {
        let mut left_since = None;
        while !self.sleep() {
            if self.loss.get().is_none() {
                self.look(&mut left_since);
            }
            if self.loss.get().is_some() {
                self.abort();
                return;
            }
        }
    }

    /// Until it is time to look, or something is to be seen; whether it is time to stop.
    fn sleep(&self) -> bool {
        let signal = lock(&self.signal);
        let slept = if signal.stop || self.loss.get().is_some() {
            signal
        } else {
            let slept = self.changed.wait_timeout(signal, POLL);
            slept.unwrap_or_else(PoisonError::into_inner).0
        };
        slept.stop
    }

    fn look(&self, left_since: &mut Option<Instant>) {
        let seen = self.watch.look();
        if let Some(reason) = seen.failure {
            let _ = self.loss.set(reason);
            return;
        }
        // While the rank's thread is in a call, NCCL tells it what is wrong itself.
        let error = match self.handle.try_lock().as_deref() {
            // SAFETY: the communicator is alive while its lock is held, and nobody else uses it.
            Ok(Some(comm)) => unsafe { self.nccl.async_error(*comm) },
            _ => Ok(()),
        };
        if let Err(words) = error {
            return self.fail(&words);
        }
        if seen.left.is_empty() || !self.is_busy() {
            *left_since = None;
            return;
        }
        if left_since.get_or_insert_with(Instant::now).elapsed() >= AFTER_LEAVE {
            let error = CommError::Departed {
                rank: self.rank,
                call: self.describe(),
                missing: seen.left,
            };
            self.fail(&error.to_string());
        }
    }

    /// Whether the latest call is under way.
    fn is_busy(&self) -> bool {
        let latest = lock(&self.latest);
        latest
            .as_ref()
            .is_some_and(|latest| !latest.interval.is_done())
    }

    fn describe(&self) -> String {
        match &*lock(&self.latest) {
            Some(Latest { call, graph, .. }) => {
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

    /// Aborts the communicator, once. The reason is kept already.
    fn abort(&self) {
        if self.abort_in_turn() {
            return;
        }
        // SAFETY: the communicator is alive, for the rank's thread is in a call of it; that is what revoking is for.
        let revoked = unsafe { self.nccl.revoke(self.raw) };
        if revoked.is_some() && self.abort_in_turn() {
            return;
        }
        self.freed.store(true, Ordering::SeqCst);
        // SAFETY: as above, but for that the call may still look at what is freed when it comes out; without this it never would.
        let _ = unsafe { self.nccl.abort(self.raw) };
    }

    /// Aborts the communicator if nobody is in a call of it; false if somebody stays there.
    fn abort_in_turn(&self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut handle = match self.handle.try_lock() {
                Ok(handle) => handle,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                Err(TryLockError::WouldBlock) => return false,
            };
            if let Some(comm) = handle.take()
                && !self.freed.load(Ordering::SeqCst)
            {
                // SAFETY: the lock is held and the handle is gone. What NCCL says of it changes nothing: the reason is kept.
                let _ = unsafe { self.nccl.abort(comm) };
            }
            return true;
        }
    }

    /// Ends the session on the rank's thread: once calls under way are done, or aborts them if they will not be.
    pub(super) fn close(&self) {
        let until = Instant::now() + CLOSE;
        while self.loss.get().is_none() && self.is_busy() {
            if Instant::now() > until {
                let call = self.describe();
                self.fail(&format!(
                    "rank {}: {call} did not end within {} s",
                    self.rank,
                    CLOSE.as_secs()
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut signal = lock(&self.signal);
        signal.stop = self.loss.get().is_none();
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
        if let Some(comm) = lock(&self.handle).take()
            && !self.freed.load(Ordering::SeqCst)
        {
            // SAFETY: nobody else is left, and the handle is gone.
            let _ = unsafe {
                match self.loss.get() {
                    Some(_) => self.nccl.abort(comm),
                    None => self.nccl.destroy(comm),
                }
            };
        }
    }
}
