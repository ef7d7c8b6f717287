//! Spans of a traced step: events are recorded as it runs, and their times read once its device is idle.
//!
//! Without tracing nothing is recorded and no time is taken.
use crate::backend::{Backend, Captured, Event, Result, Stream};
use crate::comm::{Aborter, CollectiveCall, Communicator, Count, Watch};
use crate::probe::{Dispatch, Phase, PhaseSpan, Probe, Track, now_ns};

/// When a span began; nothing while no one traces.
#[must_use]
pub(super) struct Opened(Option<(Event, u64)>);

struct Mark {
    phase: Phase,
    bucket: Option<u16>,
    /// None: the end's own begin, as for work of the communication stream.
    begin: Option<Event>,
    end: Event,
    host_ns: [u64; 2],
}

/// What is known so far of how long the host enqueues the present step.
struct Enqueuing {
    since_ns: u64,
    uploads_ns: u64,
    /// When the device has its first micro-batch.
    begin: Option<Event>,
}

/// The spans of one device in the present step.
pub(super) struct Trace {
    device: u16,
    on: bool,
    marks: Vec<Mark>,
    enqueuing: Option<Enqueuing>,
}

impl Trace {
    pub(super) fn new(device: usize) -> Self {
        Self {
            device: device as u16,
            on: false,
            marks: Vec::new(),
            enqueuing: None,
        }
    }

    pub(super) fn on(&self) -> bool {
        self.on
    }

    /// Begins a step.
    pub(super) fn start(&mut self, on: bool) {
        self.on = on;
        self.marks.clear();
        self.enqueuing = None;
    }

    /// Begins a step of which `probe` may also want to know how long the host enqueues it.
    pub(super) fn begin(&mut self, probe: &dyn Probe) {
        self.start(probe.tracing());
        self.enqueuing = probe.dispatching().then(|| Enqueuing {
            since_ns: now_ns(),
            uploads_ns: 0,
            begin: None,
        });
    }

    /// When an upload begins; nothing while no one wants to know.
    pub(super) fn before_upload(&self) -> u64 {
        self.enqueuing.as_ref().map_or(0, |_| now_ns())
    }

    /// A micro-batch has been uploaded since `since_ns`.
    pub(super) fn after_upload(&mut self, backend: &mut dyn Backend, since_ns: u64) {
        if let Some(enqueuing) = &mut self.enqueuing {
            enqueuing
                .begin
                .get_or_insert_with(|| backend.record(Stream::Compute));
            enqueuing.uploads_ns += now_ns() - since_ns;
        }
    }

    /// Waits for the device and tells what its step took, if that is wanted.
    fn tell(&mut self, backend: &mut dyn Backend, probe: &mut dyn Probe) -> Result<()> {
        let Some(enqueuing) = self.enqueuing.take() else {
            return Ok(());
        };
        let took = now_ns() - enqueuing.since_ns;
        let end = backend.record(Stream::Compute);
        backend.synchronize()?;
        if let Some(begin) = enqueuing.begin {
            let (begin, end) = (backend.time_ns(begin)?, backend.time_ns(end)?);
            probe.dispatch(Dispatch {
                device: self.device,
                dispatch_ns: took.saturating_sub(enqueuing.uploads_ns),
                upload_ns: enqueuing.uploads_ns,
                device_ns: end.saturating_sub(begin),
            });
        }
        Ok(())
    }

    pub(super) fn open(&self, backend: &mut dyn Backend) -> Opened {
        self.open_on(backend, Stream::Compute)
    }

    pub(super) fn open_on(&self, backend: &mut dyn Backend, stream: Stream) -> Opened {
        Opened(self.on.then(|| (backend.record(stream), now_ns())))
    }

    pub(super) fn close(&mut self, backend: &mut dyn Backend, phase: Phase, opened: Opened) {
        self.close_bucket(backend, phase, None, opened);
    }

    /// As [`Trace::close`], on the stream of the begin and of a bucket.
    pub(super) fn close_bucket(
        &mut self,
        backend: &mut dyn Backend,
        phase: Phase,
        bucket: Option<u16>,
        opened: Opened,
    ) {
        if let Some((begin, host)) = opened.0 {
            let end = backend.record(begin.stream);
            self.marks.push(Mark {
                phase,
                bucket,
                begin: Some(begin),
                end,
                host_ns: [host, now_ns()],
            });
        }
    }

    /// A collective that ends with `event`, enqueued by the host since `since_ns`.
    pub(super) fn collective(
        &mut self,
        phase: Phase,
        bucket: Option<u16>,
        event: Event,
        since_ns: u64,
    ) {
        if self.on {
            self.marks.push(Mark {
                phase,
                bucket,
                begin: None,
                end: event,
                host_ns: [since_ns, now_ns()],
            });
        }
    }

    /// Waits for the device and hands its spans over, in the order in which they were enqueued.
    pub(super) fn emit(&mut self, backend: &mut dyn Backend, probe: &mut dyn Probe) -> Result<()> {
        self.tell(backend, probe)?;
        if !self.on {
            return Ok(());
        }
        backend.synchronize()?;
        for mark in self.marks.drain(..) {
            let begin = match mark.begin {
                Some(event) => backend.time_ns(event)?,
                None => backend.begin_ns(mark.end)?,
            };
            let track = match mark.end.stream {
                Stream::Compute => Track::Compute,
                Stream::Communication => Track::Communication,
            };
            probe.span(PhaseSpan {
                device: self.device,
                track,
                phase: mark.phase,
                bucket: mark.bucket,
                host_ns: mark.host_ns,
                device_ns: [begin, backend.time_ns(mark.end)?],
            });
        }
        Ok(())
    }
}

/// A communicator whose calls are traced: what layers see in a traced step.
pub(super) struct Watched<'a> {
    pub(super) inner: &'a mut dyn Communicator,
    pub(super) trace: &'a mut Trace,
    /// Whose collectives these are.
    pub(super) bucket: Option<u16>,
}

impl Communicator for Watched<'_> {
    fn rank(&self) -> usize {
        self.inner.rank()
    }
    fn world_size(&self) -> usize {
        self.inner.world_size()
    }
    fn enqueue(
        &mut self,
        backend: &mut dyn Backend,
        call: CollectiveCall,
        after: Event,
    ) -> Result<Event> {
        let since = if self.trace.on() { now_ns() } else { 0 };
        let event = self.inner.enqueue(backend, call, after)?;
        self.trace.collective(call.phase, self.bucket, event, since);
        Ok(event)
    }
    fn barrier(&mut self) -> Result<()> {
        self.inner.barrier()
    }
    fn agree(&mut self, value: u64) -> Result<u64> {
        self.inner.agree(value)
    }
    fn begin_capture(&mut self) {
        self.inner.begin_capture();
    }
    fn end_capture(&mut self, captured: Option<Captured>) {
        self.inner.end_capture(captured);
    }
    fn replayed(
        &mut self,
        backend: &mut dyn Backend,
        captured: Captured,
        end: Event,
    ) -> Result<()> {
        self.inner.replayed(backend, captured, end)
    }
    fn counts(&self) -> Vec<Count> {
        self.inner.counts()
    }
    fn reset_counts(&mut self) {
        self.inner.reset_counts();
    }
    fn aborter(&self) -> Aborter {
        self.inner.aborter()
    }
    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }
    fn watch(&self) -> Watch {
        self.inner.watch()
    }
}
