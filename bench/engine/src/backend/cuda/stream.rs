//! Streams of a GPU and their events, and the GPU's clock beside the host's.
//!
//! Contract: the latest `KEPT` events of a stream keep their times. All events are made with the stream, so that recording allocates
//! nothing. A clock is set again whenever the streams are empty and `AGE_NS` have passed, since the driver tells times between events as
//! f32 milliseconds: a quarter of a second is told to 30 ns.
//! Reference: CUDA driver API, "Stream Management" and "Event Management".
use crate::backend::cuda::api::driver;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{CUevent, CUresult, CUstream};

use super::gpu::{Gpu, check};
use crate::backend::{BackendError, Result};
use crate::probe::now_ns;

/// Events of a stream whose times are kept.
pub(super) const KEPT: usize = 4096;
/// How old a clock may become.
const AGE_NS: u64 = 250_000_000;
/// How close to each other the host's looks at its clock lie, before and after an event, before the event is taken as the clock's start.
const CLOSE_NS: u64 = 15_000;
/// From `CUstream_flags` and `CUevent_flags`.
const NON_BLOCKING: u32 = 1;
const WITH_TIMES: u32 = 0;

/// Events of one stream, the latest [`KEPT`].
struct Ring {
    gpu: Arc<Gpu>,
    events: Box<[CUevent]>,
    /// The latest event that was recorded.
    latest: AtomicU64,
}

// SAFETY: events may be asked and waited for on any thread.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

impl Ring {
    fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let event = |_| {
            let mut event = std::ptr::null_mut();
            // SAFETY: the context is the thread's.
            let made = unsafe { driver::cuEventCreate(&mut event, WITH_TIMES) };
            check(made, "failed to make an event").map(|()| event)
        };
        Ok(Self {
            gpu: Arc::clone(gpu),
            events: (0..KEPT).map(event).collect::<Result<_>>()?,
            latest: AtomicU64::new(0),
        })
    }

    fn event(&self, sequence: u64) -> CUevent {
        self.events[sequence as usize % KEPT]
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            for event in &self.events {
                // SAFETY: nobody else has the event. What a broken context says of it was said before.
                let _ = unsafe { driver::cuEventDestroy_v2(*event) };
            }
        }
    }
}

/// A stream.
pub(super) struct Queue {
    gpu: Arc<Gpu>,
    pub(super) raw: CUstream,
    ends: Arc<Ring>,
    begins: Arc<Ring>,
    /// Which event last had a begin of its own in each place.
    opened: Box<[u64]>,
    pub(super) recorded: u64,
    /// Latest event that a synchronize has covered.
    covered: u64,
}

// SAFETY: a stream may be used on any thread; `Queue` has it used by one at a time.
unsafe impl Send for Queue {}

impl Queue {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the context is the thread's.
        let made = unsafe { driver::cuStreamCreate(&mut raw, NON_BLOCKING) };
        check(made, "failed to make a stream")?;
        Ok(Self {
            gpu: Arc::clone(gpu),
            raw,
            ends: Arc::new(Ring::new(gpu)?),
            begins: Arc::new(Ring::new(gpu)?),
            opened: vec![0; KEPT].into(),
            recorded: 0,
            covered: 0,
        })
    }

    /// Marks the present end of the stream as the next event.
    pub(super) fn record(&mut self) -> Result<u64> {
        self.recorded += 1;
        self.ends.latest.store(self.recorded, Ordering::Release);
        // SAFETY: both are alive, of the same context.
        let recorded = unsafe { driver::cuEventRecord(self.ends.event(self.recorded), self.raw) };
        check(recorded, "failed to record an event")?;
        Ok(self.recorded)
    }

    /// Marks the begin of the work whose end is recorded next.
    pub(super) fn open(&mut self) -> Result<()> {
        let next = self.recorded + 1;
        self.opened[next as usize % KEPT] = next;
        self.begins.latest.store(next, Ordering::Release);
        // SAFETY: as above.
        let recorded = unsafe { driver::cuEventRecord(self.begins.event(next), self.raw) };
        check(recorded, "failed to record an event")
    }

    /// Lets the stream wait for event `sequence` of `other`.
    pub(super) fn wait(&self, other: &DeviceCompletion) -> Result<()> {
        // SAFETY: an event may be waited for by streams of any context.
        let waited = unsafe { driver::cuStreamWaitEvent(self.raw, other.event(), 0) };
        check(waited, "failed to wait for an event")
    }

    pub(super) fn completion(&self, sequence: u64) -> DeviceCompletion {
        DeviceCompletion {
            ring: Arc::clone(&self.ends),
            sequence,
        }
    }

    /// Whether `completion` is of an event of this stream.
    pub(super) fn has_made(&self, completion: &DeviceCompletion) -> bool {
        Arc::ptr_eq(&self.ends, &completion.ring)
    }

    /// From the begin to the end of event `sequence`, which was opened.
    pub(super) fn interval(&self, sequence: u64) -> DeviceInterval {
        DeviceInterval {
            begins: Arc::clone(&self.begins),
            ends: Arc::clone(&self.ends),
            sequence,
        }
    }

    pub(super) fn synchronize(&mut self) -> Result<()> {
        // SAFETY: the stream is alive.
        let done = unsafe { driver::cuStreamSynchronize(self.raw) };
        check(done, "failed on the GPU")?;
        self.covered = self.recorded;
        Ok(())
    }

    /// Begin and end of event `sequence` on the host's clock.
    pub(super) fn times(&self, sequence: u64, clock: &Clock, stream: usize) -> Result<(u64, u64)> {
        if sequence > self.covered {
            return Err(BackendError::Unsupported(
                "the time of an event before synchronize",
            ));
        }
        if sequence + (KEPT as u64) <= self.recorded {
            return Err(BackendError::Unsupported(
                "the time of an event that is not among the latest 4096 of its stream",
            ));
        }
        let end = clock.tell(self.ends.event(sequence), sequence, stream)?;
        if self.opened[sequence as usize % KEPT] != sequence {
            return Ok((end, end));
        }
        let begin = clock.tell(self.begins.event(sequence), sequence, stream)?;
        Ok((begin.min(end), end))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: nobody else has the stream; the driver lets what is enqueued end first.
            let _ = unsafe { driver::cuStreamDestroy_v2(self.raw) };
        }
    }
}

/// An event that the host has looked at its clock for.
#[derive(Clone, Copy)]
struct Start {
    event: CUevent,
    host_ns: u64,
    /// First event of each stream that is told from here.
    first: [u64; 2],
}

/// The GPU's clock, set by the host's.
pub(super) struct Clock {
    gpu: Arc<Gpu>,
    /// The one before, and the present one.
    starts: [Start; 2],
}

// SAFETY: events may be used on any thread.
unsafe impl Send for Clock {}

impl Clock {
    /// Sets a clock by the stream `on`, which is empty.
    pub(super) fn new(gpu: &Arc<Gpu>, on: &Queue) -> Result<Self> {
        let start = || -> Result<Start> {
            let mut event = std::ptr::null_mut();
            // SAFETY: the context is the thread's.
            let made = unsafe { driver::cuEventCreate(&mut event, WITH_TIMES) };
            check(made, "failed to make an event")?;
            Ok(Start {
                event,
                host_ns: 0,
                first: [0; 2],
            })
        };
        let mut clock = Self {
            gpu: Arc::clone(gpu),
            starts: [start()?, start()?],
        };
        clock.set(on, [0; 2])?;
        clock.starts[0].host_ns = clock.starts[1].host_ns;
        clock.set(on, [0; 2])?;
        Ok(clock)
    }

    /// Sets it again if it has become old. All streams are empty; `next` is the next event of each.
    pub(super) fn keep(&mut self, on: &Queue, next: [u64; 2]) -> Result<()> {
        if now_ns() - self.starts[1].host_ns < AGE_NS {
            return Ok(());
        }
        self.set(on, next)
    }

    fn set(&mut self, on: &Queue, first: [u64; 2]) -> Result<()> {
        self.starts.swap(0, 1);
        let start = &mut self.starts[1];
        start.first = first;
        for _ in 0..8 {
            let before = now_ns();
            // SAFETY: both are alive, of the same context.
            unsafe {
                check(
                    driver::cuEventRecord(start.event, on.raw),
                    "failed to record an event",
                )?;
                check(driver::cuEventSynchronize(start.event), "failed on the GPU")?;
            }
            let after = now_ns();
            start.host_ns = before + (after - before) / 2;
            if after - before < CLOSE_NS {
                break;
            }
        }
        Ok(())
    }

    fn tell(&self, event: CUevent, sequence: u64, stream: usize) -> Result<u64> {
        let [older, newer] = &self.starts;
        let start = if sequence >= newer.first[stream] {
            newer
        } else {
            older
        };
        if sequence < start.first[stream] {
            return Err(BackendError::Unsupported(
                "the time of an event of two synchronizes ago",
            ));
        }
        let mut milliseconds = 0.0f32;
        // SAFETY: both events were reached.
        let told = unsafe { driver::cuEventElapsedTime_v2(&mut milliseconds, start.event, event) };
        check(told, "failed to tell the time of an event")?;
        let nanoseconds = (f64::from(milliseconds) * 1e6).round() as i64;
        Ok(start.host_ns.saturating_add_signed(nanoseconds))
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            for start in &self.starts {
                // SAFETY: nobody else has the events.
                let _ = unsafe { driver::cuEventDestroy_v2(start.event) };
            }
        }
    }
}

/// An event of a GPU's stream, for others of this process to wait for.
#[derive(Clone)]
pub struct DeviceCompletion {
    ring: Arc<Ring>,
    sequence: u64,
}

impl std::fmt::Debug for DeviceCompletion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "DeviceCompletion({} of {:?})",
            self.sequence, self.ring.gpu
        )
    }
}

impl DeviceCompletion {
    pub(super) fn event(&self) -> CUevent {
        self.ring.event(self.sequence)
    }

    /// Its place in its stream.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether the event was reached.
    pub fn is_done(&self) -> bool {
        // SAFETY: the event is alive.
        unsafe { driver::cuEventQuery(self.event()) != CUresult::CUDA_ERROR_NOT_READY }
    }

    /// Blocks until the event is reached.
    ///
    /// # Errors
    /// What the GPU has failed at.
    pub fn wait(&self) -> Result<()> {
        self.ring.gpu.enter()?;
        // SAFETY: as above.
        check(
            unsafe { driver::cuEventSynchronize(self.event()) },
            "failed on the GPU",
        )
    }
}

/// Work between two events of a GPU's stream; outlives the device that it ran on.
#[derive(Clone)]
pub(crate) struct DeviceInterval {
    begins: Arc<Ring>,
    ends: Arc<Ring>,
    sequence: u64,
}

impl DeviceInterval {
    /// Whether the work is over, be it that its events have been used again since.
    pub(crate) fn is_done(&self) -> bool {
        let event = self.ends.event(self.sequence);
        // SAFETY: the event is alive.
        self.is_old() || unsafe { driver::cuEventQuery(event) != CUresult::CUDA_ERROR_NOT_READY }
    }

    /// What the GPU has failed at, if it will never be over.
    pub(crate) fn failure(&self) -> Option<BackendError> {
        if self.is_old() {
            return None;
        }
        // SAFETY: the event is alive.
        match unsafe { driver::cuEventQuery(self.ends.event(self.sequence)) } {
            CUresult::CUDA_ERROR_NOT_READY => None,
            said => check(said, "failed on the GPU").err(),
        }
    }

    /// How long it took, in nanoseconds; none before it is over, and none once it is not among the latest [`KEPT`] of its stream.
    pub(crate) fn elapsed_ns(&self) -> Option<u64> {
        if self.is_old() || self.ends.gpu.enter().is_err() {
            return None;
        }
        let (begin, end) = (
            self.begins.event(self.sequence),
            self.ends.event(self.sequence),
        );
        let mut milliseconds = 0.0f32;
        // SAFETY: both events are alive; of events that were not reached the driver says so.
        let told = unsafe { driver::cuEventElapsedTime_v2(&mut milliseconds, begin, end) };
        (told == CUresult::CUDA_SUCCESS).then(|| (f64::from(milliseconds) * 1e6).round() as u64)
    }

    /// Whether one of its events may mark other work by now.
    fn is_old(&self) -> bool {
        let latest = self.begins.latest.load(Ordering::Acquire);
        let latest = latest.max(self.ends.latest.load(Ordering::Acquire));
        self.sequence + KEPT as u64 <= latest
    }
}
