//! A stream that a thread works off in order, from a bounded queue.
//!
//! Contract: commands run in the order they were queued, each after what it waits for. What is queued behind a failure is
//! not run, but its events are reached. Queuing allocates nothing, but for uploads, which keep a copy.
//! Reference: [`crate::backend::cpu::stream`] for events and failures.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use crate::backend::cpu::memory::HostMemory;
use crate::backend::cpu::stream::{Progress, spin_until};
use crate::backend::cpu::{execute, pin_to_cores, upload};
use crate::backend::{BackendError, Completion, HostSlice, HostTask, Result};
use crate::comm::HostCall;
use crate::half::{Bf16, F16};
use crate::kernel::Kernel;
use crate::probe::now_ns;
use crate::tensor::Span;

/// Commands that a stream holds before the host has to wait.
const QUEUE: usize = 1024;

/// Host data that a queued upload keeps.
pub(crate) enum HostData {
    F32(Box<[f32]>),
    I32(Box<[i32]>),
    I64(Box<[i64]>),
    F16(Box<[F16]>),
    Bf16(Box<[Bf16]>),
}

impl HostData {
    pub(crate) fn copied(from: HostSlice<'_>) -> Self {
        match from {
            HostSlice::F32(from) => Self::F32(from.into()),
            HostSlice::I32(from) => Self::I32(from.into()),
            HostSlice::I64(from) => Self::I64(from.into()),
            HostSlice::F16(from) => Self::F16(from.into()),
            HostSlice::Bf16(from) => Self::Bf16(from.into()),
        }
    }

    fn slice(&self) -> HostSlice<'_> {
        match self {
            Self::F32(from) => HostSlice::F32(from),
            Self::I32(from) => HostSlice::I32(from),
            Self::I64(from) => HostSlice::I64(from),
            Self::F16(from) => HostSlice::F16(from),
            Self::Bf16(from) => HostSlice::Bf16(from),
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
                    // Before the event, on which a process may end: were this the last handle of a communicator, its good-bye
                    // would be lost with the thread.
                    drop(task);
                    self.progress.reach(sequence, begin);
                }
                Command::Kernel(kernel) => self.attempt(|server| {
                    // SAFETY: the stream's order, with the waits queued on it, keeps others off the kernel's operands.
                    unsafe { execute(&server.memory, &kernel) };
                    Ok(())
                }),
                Command::Upload { from, to } => self.attempt(|server| {
                    // SAFETY: as above, for the upload's destination.
                    unsafe { upload(&server.memory, from.slice(), to) };
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
