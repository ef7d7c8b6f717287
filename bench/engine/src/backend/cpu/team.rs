//! The threads of one device: a kernel is cut into parts, one for each, and is over when all parts are.
//!
//! Contract: [`Team::run`] is called by one thread at a time, the device's compute thread, which does part 0 itself. The others
//! are pinned to cores of their own; they spin for some microseconds between kernels, so that a step's kernels find them awake,
//! and sleep in the kernel after that. No lock: a part is handed over by a counter, and its end is one too. Which thread has
//! which part depends on sizes alone, so the same number of threads gives the same bits.
//! Reference: futex(2); Herlihy and Shavit, *The Art of Multiprocessor Programming*, chapter 18 (sense-reversing barriers).
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::futex;

use crate::backend::cpu::pin_to_cores;
use crate::backend::{BackendError, Result};

/// How long a thread looks for work, or for the end of it, before it sleeps: longer than what lies between two kernels of a step.
const SPIN: Duration = Duration::from_micros(50);
/// Looks between two readings of the clock.
const LOOKS: u32 = 64;

/// A part of a kernel, by its number.
type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// A counter on a cache line of its own, that threads can sleep on.
#[repr(align(64))]
#[derive(Default)]
struct Counter(AtomicU32);

impl Counter {
    /// Blocks while the counter is `value`: spins, then sleeps.
    fn wait_while(&self, value: u32, spin: bool, sleepers: &AtomicU32) {
        let changed = || self.0.load(Ordering::Acquire) != value;
        if spin {
            let begin = Instant::now();
            while begin.elapsed() < SPIN {
                for _ in 0..LOOKS {
                    if changed() {
                        return;
                    }
                    std::hint::spin_loop();
                }
            }
        }
        while !changed() {
            // Sequentially consistent with the change and its look at `sleepers`: either sees the other.
            sleepers.fetch_add(1, Ordering::SeqCst);
            if self.0.load(Ordering::SeqCst) == value {
                // Woken, changed meanwhile or interrupted: all lead to another look.
                let _ = futex::wait(&self.0, futex::Flags::PRIVATE, value, None);
            }
            sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// After a change: wakes who sleeps.
    fn wake(&self, sleepers: &AtomicU32) {
        if sleepers.load(Ordering::SeqCst) > 0 {
            let _ = futex::wake(&self.0, futex::Flags::PRIVATE, i32::MAX as u32);
        }
    }
}

struct Shared {
    /// Kernels begun; threads start when it changes.
    begun: Counter,
    /// Threads that are not done with the present kernel.
    busy: Counter,
    idle: AtomicU32,
    waiting: AtomicU32,
    /// The present kernel; written while nobody is busy.
    task: UnsafeCell<Option<*const Task<'static>>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    spin: bool,
}

// SAFETY: `task` is written by the team's owner alone, while no thread is busy, and read after `begun` said so.
unsafe impl Sync for Shared {}
// SAFETY: the pointer is only followed while the owner is in `run`, which keeps what it points to.
unsafe impl Send for Shared {}

/// The compute thread's helpers. Dropping it ends them.
pub(super) struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Team {
    /// Starts a thread for each of `others`, pinned to these cores; none leaves a thread to the scheduler. `spin` is for cores that
    /// nobody else has.
    ///
    /// # Errors
    /// [`BackendError::Thread`] when a thread cannot be started or pinned.
    pub(super) fn start(others: &[Option<usize>], spin: bool) -> Result<Self> {
        let shared = Arc::new(Shared {
            begun: Counter::default(),
            busy: Counter::default(),
            idle: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            task: UnsafeCell::new(None),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            spin,
        });
        let mut team = Self {
            shared,
            threads: Vec::with_capacity(others.len()),
        };
        for (index, core) in others.iter().enumerate() {
            team.start_one(index + 1, *core)?;
        }
        Ok(team)
    }

    fn start_one(&mut self, part: usize, core: Option<usize>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let body = move || {
            let cores: Vec<usize> = core.into_iter().collect();
            let pinned = pin_to_cores(&cores);
            let failed = pinned.is_err();
            if started.send(pinned).is_ok() && !failed {
                shared.serve(part);
            }
        };
        let failed = |error: &dyn std::fmt::Display| {
            BackendError::Thread(format!("compute thread {part} of a device: {error}"))
        };
        let thread = std::thread::Builder::new()
            .name(format!("compute {part}"))
            .spawn(body)
            .map_err(|error| failed(&error))?;
        self.threads.push(thread);
        start.recv().map_err(|_| failed(&"ended as it started"))?
    }

    /// Threads, with the caller.
    pub(super) fn size(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `task` with each part below [`Team::size`], each on its thread, and returns when all are done.
    ///
    /// # Panics
    /// When a part does, after all are done.
    pub(super) fn run(&self, task: &Task<'_>) {
        let shared = &*self.shared;
        let pointer: *const Task<'_> = task;
        // SAFETY: the lifetime is forgotten; nobody follows the pointer after this function, which waits for all.
        let pointer: *const Task<'static> = unsafe { std::mem::transmute(pointer) };
        // SAFETY: no thread is busy.
        unsafe { *shared.task.get() = Some(pointer) };
        shared
            .busy
            .0
            .store(self.threads.len() as u32, Ordering::Relaxed);
        shared.begun.0.fetch_add(1, Ordering::SeqCst);
        shared.begun.wake(&shared.idle);
        let own = catch_unwind(AssertUnwindSafe(|| task(0)));
        loop {
            let busy = shared.busy.0.load(Ordering::Acquire);
            if busy == 0 {
                break;
            }
            shared.busy.wait_while(busy, shared.spin, &shared.waiting);
        }
        let other = shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = own {
            std::panic::resume_unwind(panic);
        }
        assert!(!other, "a compute thread of the device panicked");
    }
}

impl Shared {
    /// The life of the thread that does part `part`.
    fn serve(&self, part: usize) {
        let mut seen = 0;
        loop {
            self.begun.wait_while(seen, self.spin, &self.idle);
            seen = self.begun.0.load(Ordering::Acquire);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: `begun` changed, so the owner is in `run`, has written the task, and waits for this thread.
            let task = unsafe { &*(*self.task.get()).expect("a task comes before its start") };
            if catch_unwind(AssertUnwindSafe(|| task(part))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.busy.0.fetch_sub(1, Ordering::SeqCst);
            self.busy.wake(&self.waiting);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.begun.0.fetch_add(1, Ordering::SeqCst);
        self.shared.begun.wake(&self.shared.idle);
        for thread in self.threads.drain(..) {
            // Panics of parts were caught and reported by `run`.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn teams() -> impl Iterator<Item = Team> {
        let team = |(size, spin)| Team::start(&vec![None; size], spin).unwrap();
        [(0, false), (1, false), (1, true), (3, false), (3, true)]
            .into_iter()
            .map(team)
    }

    #[test]
    fn every_part_runs_once_and_is_over_when_run_returns() {
        for team in teams() {
            let calls: Vec<AtomicUsize> = (0..team.size()).map(|_| AtomicUsize::new(0)).collect();
            for round in 1..=500 {
                team.run(&|part| {
                    calls[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    calls
                        .iter()
                        .all(|calls| calls.load(Ordering::Relaxed) == round)
                );
                if round % 100 == 0 {
                    // Long enough for the others to fall asleep.
                    std::thread::sleep(2 * SPIN);
                }
            }
        }
    }

    #[test]
    fn a_panic_of_any_part_reaches_the_caller_and_the_team_goes_on() {
        for team in teams() {
            for bad in 0..team.size() {
                let run = || team.run(&|part| assert!(part != bad, "part {part}"));
                assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
                team.run(&|_| {});
            }
        }
    }

    #[test]
    fn a_core_that_does_not_exist_is_named() {
        let error = Team::start(&[Some(1 << 20)], false)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("core 1048576 does not exist"), "{error}");
    }
}
