//! Streams on the host: how far one has come, waiting for that, and a thread that works one off in order.
//!
//! Contract: a [`Progress`] is written by one thread (the stream's), read by any. A stream that fails stays failed: what
//! is queued behind the failure is not run, but its events are still reached, as failed, so that nobody waits for ever.
//! Nothing here allocates after the stream was made, but for messages of failures and for uploads, which keep a copy.
//! Reference: stream and event semantics of CUDA, which these follow.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::cpu::memory::HostMemory;
use crate::backend::cpu::{execute, pin_to_cores};
use crate::backend::{BackendError, HostSlice, HostTask, Result};
use crate::comm::HostCall;
use crate::kernel::Kernel;
use crate::probe::now_ns;
use crate::tensor::Span;

/// Events of a stream whose times are kept.
const KEPT: usize = 4096;
/// Commands that a stream holds before the host has to wait.
const QUEUE: usize = 1024;
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
fn spin_until<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
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
pub struct Completion {
    progress: Arc<Progress>,
    sequence: u64,
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Completion({}, done: {})", self.sequence, self.is_done())
    }
}

impl Completion {
    pub(crate) fn new(progress: &Arc<Progress>, sequence: u64) -> Self {
        Self {
            progress: Arc::clone(progress),
            sequence,
        }
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

/// Host data that a queued upload keeps.
pub(crate) enum HostData {
    F32(Box<[f32]>),
    I32(Box<[i32]>),
    I64(Box<[i64]>),
}

impl HostData {
    pub(crate) fn copied(from: HostSlice<'_>) -> Self {
        match from {
            HostSlice::F32(from) => Self::F32(from.into()),
            HostSlice::I32(from) => Self::I32(from.into()),
            HostSlice::I64(from) => Self::I64(from.into()),
        }
    }

    fn slice(&self) -> HostSlice<'_> {
        match self {
            Self::F32(from) => HostSlice::F32(from),
            Self::I32(from) => HostSlice::I32(from),
            Self::I64(from) => HostSlice::I64(from),
        }
    }
}

/// What a stream's thread is told to do.
pub(crate) enum Command {
    Kernel(Kernel),
    Upload {
        from: HostData,
        to: Span,
    },
    Wait(Completion),
    Host {
        after: Completion,
        task: Arc<dyn HostTask>,
        call: HostCall,
        sequence: u64,
    },
    Record {
        sequence: u64,
    },
}

/// How a stream's thread is made.
pub(crate) struct WorkerSettings<'a> {
    /// Name of the thread, at most 15 characters to be seen whole in `top`.
    pub(crate) name: &'static str,
    /// Cores to pin it to; none leaves it free.
    pub(crate) cores: &'a [usize],
    /// Whether waiting may spin.
    pub(crate) spin: bool,
    /// Seed of artificial delays, which let missing waits show in tests.
    pub(crate) delays: Option<u64>,
}

/// A stream that a thread of its own works off. Dropping it closes the queue; the thread finishes what is queued and
/// ends by itself. It is not joined, since a collective may be waiting for a peer that is gone.
pub(crate) struct Worker {
    queue: SyncSender<Command>,
    progress: Arc<Progress>,
    recorded: u64,
    dirty: bool,
}

impl Worker {
    pub(crate) fn start(memory: HostMemory, settings: &WorkerSettings<'_>) -> Result<Self> {
        let progress = Progress::new(settings.spin);
        let (queue, commands) = sync_channel(QUEUE);
        let (started, start) = sync_channel(1);
        let cores = settings.cores.to_vec();
        let server = Server {
            commands,
            progress: Arc::clone(&progress),
            memory,
            spin: settings.spin,
            delays: settings.delays,
        };
        let body = move || {
            let pinned = pin_to_cores(&cores);
            let proceed = pinned.is_ok();
            let told = started.send(pinned).is_ok();
            drop(started);
            if proceed && told {
                server.serve();
            }
        };
        let thread = std::thread::Builder::new()
            .name(settings.name.into())
            .spawn(body);
        thread.map_err(|error| {
            BackendError::Thread(format!("{} could not be started: {error}", settings.name))
        })?;
        start.recv().map_err(|_| {
            BackendError::Thread(format!("{} ended as it started", settings.name))
        })??;
        Ok(Self {
            queue,
            progress,
            recorded: 0,
            dirty: false,
        })
    }

    pub(crate) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Queues a command, after a look at the sticky failure.
    pub(crate) fn push(&mut self, command: Command) -> Result<()> {
        self.progress.check()?;
        self.dirty = true;
        self.send(command);
        Ok(())
    }

    fn send(&self, command: Command) {
        // The thread ends only when this sender is dropped, and it survives panics of what it runs.
        assert!(
            self.queue.send(command).is_ok(),
            "the stream's thread is gone"
        );
    }

    /// The next event's number; the caller queues the command that reaches it.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.recorded + 1
    }

    /// Queues host work and returns the number of the event at its end.
    pub(crate) fn host(
        &mut self,
        after: Completion,
        task: Arc<dyn HostTask>,
        call: HostCall,
    ) -> Result<u64> {
        let sequence = self.next_sequence();
        self.push(Command::Host {
            after,
            task,
            call,
            sequence,
        })?;
        self.recorded = sequence;
        self.dirty = false;
        Ok(sequence)
    }

    /// Marks the present end of the stream, also of a failed one.
    pub(crate) fn record(&mut self) -> u64 {
        self.recorded += 1;
        self.dirty = false;
        self.send(Command::Record {
            sequence: self.recorded,
        });
        self.recorded
    }

    /// Blocks until the stream is empty.
    pub(crate) fn drain(&mut self) -> Result<()> {
        if self.dirty {
            self.record();
        }
        self.progress.wait(self.recorded)?;
        self.progress.check()
    }
}

/// The thread's side of a [`Worker`].
struct Server {
    commands: Receiver<Command>,
    progress: Arc<Progress>,
    memory: HostMemory,
    spin: bool,
    delays: Option<u64>,
}

impl Server {
    fn serve(mut self) {
        while let Some(command) = self.next() {
            if let Some(state) = &mut self.delays {
                pause(state);
            }
            match command {
                Command::Record { sequence } => self.progress.reach(sequence, None),
                Command::Host {
                    after,
                    task,
                    call,
                    sequence,
                } => {
                    let mut begin = None;
                    self.attempt(|server| {
                        after.wait().map_err(|error| error.to_string())?;
                        begin = Some(now_ns());
                        task.run(&server.memory, call)
                    });
                    self.progress.reach(sequence, begin);
                }
                Command::Kernel(kernel) => self.attempt(|server| {
                    // SAFETY: the stream's order, with the waits queued on it, keeps others off the kernel's operands.
                    unsafe { execute(&server.memory, &kernel) };
                    Ok(())
                }),
                Command::Upload { from, to } => self.attempt(|server| {
                    // SAFETY: as above, for the upload's destination.
                    unsafe { super::upload(&server.memory, from.slice(), to) };
                    Ok(())
                }),
                Command::Wait(completion) => {
                    self.attempt(|_| completion.wait().map_err(|error| error.to_string()));
                }
            }
        }
    }

    fn next(&self) -> Option<Command> {
        if self.spin {
            let found = spin_until(|| match self.commands.try_recv() {
                Ok(command) => Some(Some(command)),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(None),
            });
            if let Some(found) = found {
                return found;
            }
        }
        self.commands.recv().ok()
    }

    /// Runs `work` unless the stream has failed; an error or a panic becomes its failure.
    fn attempt(&self, work: impl FnOnce(&Self) -> std::result::Result<(), String>) {
        if self.progress.check().is_err() {
            return;
        }
        let reason = match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(Ok(())) => return,
            Ok(Err(reason)) => reason,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                format!(
                    "a device thread panicked: {}",
                    text.unwrap_or("without a message")
                )
            }
        };
        self.progress.fail(reason);
    }
}

/// Sleeps before about every fourth command, for up to 100 µs.
fn pause(state: &mut u64) {
    // xorshift64: the quality of these numbers does not matter, only that a seed repeats them.
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    if (*state >> 32).is_multiple_of(4) {
        std::thread::sleep(Duration::from_micros(*state % 100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_park_and_wake() {
        for spin in [false, true] {
            let progress = Progress::new(spin);
            let completion = Completion::new(&progress, 2);
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
