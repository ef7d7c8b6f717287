//! Streams on the host: how far one has come, and waiting for that.
//!
//! Contract: a [`Progress`] is written by one thread (the stream's), read by any. A stream that fails stays failed: its later
//! events are still reached, as failed, so that nobody waits for ever. Nothing here allocates after the stream was made,
//! but for messages of failures.
//! Reference: stream and event semantics of CUDA, which these follow.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{BackendError, Result};
use crate::probe::now_ns;

/// Events of a stream whose times are kept.
const KEPT: usize = 4096;
/// How long a waiter that may spin does so before it parks: parking and waking costs some 10 µs.
const SPIN: Duration = Duration::from_micros(50);

#[derive(Default)]
struct Times {
    sequence: AtomicU64,
    begin: AtomicU64,
    end: AtomicU64,
}

/// How far a stream has come.
pub(crate) struct Progress {
    reached: AtomicU64,
    /// First event that failed; `u64::MAX` while none has.
    failed_at: AtomicU64,
    failure: OnceLock<String>,
    waiters: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
    spin: bool,
    times: Box<[Times]>,
}

impl Progress {
    pub(crate) fn new(spin: bool) -> Arc<Self> {
        Arc::new(Self {
            reached: AtomicU64::new(0),
            failed_at: AtomicU64::new(u64::MAX),
            failure: OnceLock::new(),
            waiters: AtomicUsize::new(0),
            lock: Mutex::new(()),
            changed: Condvar::new(),
            spin,
            times: (0..KEPT).map(|_| Times::default()).collect(),
        })
    }

    /// Marks event `sequence`, the next one, as reached now. Only the stream's own thread calls this.
    pub(crate) fn reach(&self, sequence: u64, begin: Option<u64>) {
        let end = now_ns();
        let times = &self.times[sequence as usize % KEPT];
        times.sequence.store(0, Ordering::SeqCst);
        times.begin.store(begin.unwrap_or(end), Ordering::SeqCst);
        times.end.store(end, Ordering::SeqCst);
        times.sequence.store(sequence, Ordering::SeqCst);
        // Sequentially consistent with the waiter's increment and load: either it sees the new value, or we see it.
        self.reached.store(sequence, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Makes the stream fail from the next event on. Only the first reason counts.
    pub(crate) fn fail(&self, reason: String) {
        if self.failure.set(reason).is_ok() {
            self.failed_at
                .store(self.reached.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
        }
    }

    /// The sticky failure.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_event(u64::MAX - 1)
    }

    fn check_event(&self, sequence: u64) -> Result<()> {
        if sequence < self.failed_at.load(Ordering::SeqCst) {
            return Ok(());
        }
        let reason = self
            .failure
            .get()
            .map_or("the stream failed", String::as_str);
        Err(BackendError::Communication(reason.to_owned()))
    }

    fn is_reached(&self, sequence: u64) -> bool {
        self.reached.load(Ordering::SeqCst) >= sequence
    }

    /// Blocks until event `sequence` is reached.
    pub(crate) fn wait(&self, sequence: u64) -> Result<()> {
        if self.is_reached(sequence)
            || (self.spin && spin_until(|| self.is_reached(sequence).then_some(())).is_some())
        {
            return self.check_event(sequence);
        }
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_reached(sequence) {
            guard = self
                .changed
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        self.check_event(sequence)
    }

    /// Begin and end of event `sequence`, when it was reached and is among the latest ones.
    pub(crate) fn times(&self, sequence: u64) -> Result<(u64, u64)> {
        if !self.is_reached(sequence) {
            return Err(BackendError::Unsupported(
                "the time of an event before the stream has reached it",
            ));
        }
        let times = &self.times[sequence as usize % KEPT];
        let before = times.sequence.load(Ordering::SeqCst);
        let found = (
            times.begin.load(Ordering::SeqCst),
            times.end.load(Ordering::SeqCst),
        );
        if before != sequence || times.sequence.load(Ordering::SeqCst) != sequence {
            return Err(BackendError::Unsupported(
                "the time of an event that is not among the latest 4096 of its stream",
            ));
        }
        Ok(found)
    }
}

/// Polls `ready` for at most [`SPIN`].
pub(super) fn spin_until<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if let Some(found) = ready() {
                return Some(found);
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > SPIN {
            return None;
        }
    }
}

/// An event of some backend of this process, for others to wait for. Cloning does not allocate.
#[derive(Clone)]
pub struct HostCompletion {
    progress: Arc<Progress>,
    sequence: u64,
}

impl std::fmt::Debug for HostCompletion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Completion({}, done: {})", self.sequence, self.is_done())
    }
}

impl HostCompletion {
    pub(crate) fn new(progress: &Arc<Progress>, sequence: u64) -> Self {
        Self {
            progress: Arc::clone(progress),
            sequence,
        }
    }

    /// Its place in its stream.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether the event was reached, be it with success or as failed.
    pub fn is_done(&self) -> bool {
        self.progress.is_reached(self.sequence)
    }

    /// Blocks until the event is reached: spins briefly where cores are not oversubscribed, then parks.
    ///
    /// # Errors
    /// The failure of the event's stream, when it came before the event.
    pub fn wait(&self) -> Result<()> {
        self.progress.wait(self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_park_and_wake() {
        for spin in [false, true] {
            let progress = Progress::new(spin);
            let completion = HostCompletion::new(&progress, 2);
            let waiter = std::thread::spawn(move || completion.wait());
            progress.reach(1, None);
            std::thread::sleep(Duration::from_millis(5));
            assert!(!waiter.is_finished());
            progress.reach(2, None);
            assert!(waiter.join().unwrap().is_ok());
        }
    }

    #[test]
    fn a_failure_spares_earlier_events() {
        let progress = Progress::new(false);
        progress.reach(1, None);
        progress.fail("peer 1 is gone".into());
        progress.reach(2, None);
        assert!(progress.wait(1).is_ok());
        assert_eq!(progress.wait(2).unwrap_err().to_string(), "peer 1 is gone");
        progress.fail("later".into());
        assert_eq!(progress.check().unwrap_err().to_string(), "peer 1 is gone");
    }

    #[test]
    fn times_are_kept_for_the_latest_events_only() {
        let progress = Progress::new(false);
        assert!(progress.times(1).is_err());
        for sequence in 1..=KEPT as u64 + 1 {
            progress.reach(sequence, Some(7));
        }
        assert!(progress.times(1).is_err());
        assert_eq!(progress.times(2).unwrap().0, 7);
    }
}
