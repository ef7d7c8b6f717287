//! A device whose every operation waits in a queue, as on a GPU: the CPU's kernels, run by two threads.
//!
//! It proves that the engine above the seam is asynchronous: both streams run late and out of step with each other and
//! with the host (random delays, from a seed), the host reaches memory only through upload and download, and times are
//! refused before a synchronize. A missing wait shows as a wrong result.
//! Reference: [`crate::backend::Backend`], whose contract it takes literally.
mod recording;

use std::sync::Arc;

use self::recording::Recording;
use crate::backend::cpu::memory::HostMemory;
use crate::backend::cpu::stream::HostCompletion;
use crate::backend::cpu::worker::{Command, HostData, Worker, WorkerSettings};
use crate::backend::cpu::{Allocator, download};
use crate::backend::{
    Backend, BackendError, Captured, Category, Completion, Event, HostSlice, HostSliceMut,
    HostTask, MemoryUse, Result, Stream,
};
use crate::comm::HostCall;
use crate::kernel::Kernel;
use crate::tensor::{Dtype, Span};

/// A CPU device that runs everything late.
pub struct DeferredBackend {
    allocator: Allocator,
    /// Indexed by [`Stream`].
    streams: [Worker; 2],
    /// Latest event of each stream that a synchronize has covered.
    synchronized: [u64; 2],
    /// What is written down so far, while a capture is under way.
    capturing: Option<Recording>,
    captured: Vec<Recording>,
}

/// What [`DeferredBackend::outside`] refuses.
const IN_CAPTURE: BackendError = BackendError::Unsupported(
    "anything but kernels and collectives, in an order of their own, in what is captured",
);

impl DeferredBackend {
    /// Starts both streams; `seed` picks their delays.
    ///
    /// # Errors
    /// [`BackendError::Thread`] when a thread cannot be started.
    pub fn new(seed: u64) -> Result<Self> {
        let allocator = Allocator::new(None);
        let start = |name, salt| {
            // The generator of delays must not start at zero.
            let delays = Some(
                seed.wrapping_mul(2)
                    .wrapping_add(salt)
                    .max(1)
                    .wrapping_mul(0x9E37_79B9_7F4A_7C15),
            );
            let settings = WorkerSettings {
                name,
                cores: &[],
                spin: false,
                delays,
            };
            Worker::start(allocator.memory.clone(), &settings)
        };
        let streams = [start("deferred-comp", 0)?, start("deferred-comm", 1)?];
        Ok(Self {
            allocator,
            streams,
            synchronized: [0; 2],
            capturing: None,
            captured: Vec::new(),
        })
    }

    /// Refuses what a graph on a GPU could not hold either.
    fn outside(&self) -> Result<()> {
        match self.capturing {
            Some(_) => Err(IN_CAPTURE),
            None => Ok(()),
        }
    }

    fn stream(&mut self, on: Stream) -> &mut Worker {
        &mut self.streams[on as usize]
    }

    fn drain(&mut self) -> Result<()> {
        let [compute, communication] = &mut self.streams;
        // Both are emptied even if the first has failed: nothing may still be running when this returns.
        let (first, second) = (compute.drain(), communication.drain());
        first.and(second)
    }

    fn times(&self, event: Event) -> Result<(u64, u64)> {
        if event.sequence > self.synchronized[event.stream as usize] {
            return Err(BackendError::Unsupported(
                "the time of an event before synchronize",
            ));
        }
        self.streams[event.stream as usize]
            .progress()
            .times(event.sequence)
    }
}

impl Backend for DeferredBackend {
    fn allocate(&mut self, category: Category, dtype: Dtype, len: usize) -> Result<Span> {
        self.outside()?;
        self.allocator.allocate(category, dtype, len)
    }

    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()> {
        if let Some(recording) = &mut self.capturing {
            return recording.kernel(on, kernel).ok_or(IN_CAPTURE);
        }
        self.stream(on).push(Command::Kernel(kernel))
    }

    fn upload(&mut self, on: Stream, from: HostSlice<'_>, to: Span) -> Result<()> {
        self.outside()?;
        self.stream(on).push(Command::Upload {
            from: HostData::copied(from),
            to,
        })
    }

    fn download(&mut self, from: Span, to: HostSliceMut<'_>) -> Result<()> {
        self.outside()?;
        self.drain()?;
        // SAFETY: both streams are empty.
        unsafe { download(&self.allocator.memory, from, to) };
        Ok(())
    }

    fn record(&mut self, on: Stream) -> Event {
        if let Some(recording) = &mut self.capturing
            && let Some(event) = recording.record(on)
        {
            return event;
        }
        Event {
            stream: on,
            sequence: self.stream(on).record(),
        }
    }

    fn wait(&mut self, on: Stream, event: Event) -> Result<()> {
        if let Some(recording) = &mut self.capturing {
            return recording.wait(on, event.sequence).ok_or(IN_CAPTURE);
        }
        if on == event.stream {
            return self.stream(on).progress().check();
        }
        let completion = self.completion(event);
        self.wait_for(on, &completion)
    }

    fn completion(&mut self, event: Event) -> Completion {
        Completion::Host(HostCompletion::new(
            self.stream(event.stream).progress(),
            event.sequence,
        ))
    }

    fn wait_for(&mut self, on: Stream, completion: &Completion) -> Result<()> {
        if let Some(recording) = &mut self.capturing {
            let event = recording::event_of(completion);
            return recording.wait(on, event).ok_or(IN_CAPTURE);
        }
        self.stream(on).push(Command::Wait(completion.clone()))
    }

    fn enqueue_host(
        &mut self,
        on: Stream,
        after: &Completion,
        task: &Arc<dyn HostTask>,
        call: HostCall,
    ) -> Result<Event> {
        if let Some(recording) = &mut self.capturing {
            let after = recording::event_of(after);
            return recording.host(on, after, task, call).ok_or(IN_CAPTURE);
        }
        let sequence = self
            .stream(on)
            .host(after.clone(), Arc::clone(task), call)?;
        Ok(Event {
            stream: on,
            sequence,
        })
    }

    fn synchronize(&mut self) -> Result<()> {
        self.outside()?;
        let drained = self.drain();
        self.synchronized = [0, 1].map(|stream| self.streams[stream].next_sequence() - 1);
        drained
    }

    fn time_ns(&mut self, event: Event) -> Result<u64> {
        Ok(self.times(event)?.1)
    }

    fn begin_ns(&mut self, event: Event) -> Result<u64> {
        Ok(self.times(event)?.0)
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.outside()?;
        self.capturing = Some(Recording::default());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Captured> {
        let nothing = BackendError::Unsupported("the end of a capture that was not begun");
        self.captured.push(self.capturing.take().ok_or(nothing)?);
        Ok(Captured(self.captured.len() - 1))
    }

    fn replay(&mut self, captured: Captured) -> Result<()> {
        self.outside()?;
        self.captured[captured.0].replay(&mut self.streams)
    }

    fn memory_use(&self) -> MemoryUse {
        self.allocator.by_category()
    }

    fn host_memory(&self) -> Option<HostMemory> {
        Some(self.allocator.memory.clone())
    }

    fn name(&self) -> &'static str {
        "deferred"
    }
}
