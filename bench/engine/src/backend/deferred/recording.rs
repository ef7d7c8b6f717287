//! What the deferred backend writes down while a step is captured, and how it is queued again: its stand-in for a CUDA graph.
//!
//! Contract: as a capture of two streams of a GPU. The communication stream takes part once it waits for an event of the recording; until then
//! it is refused. Events of a recording have numbers that no stream ever reaches, so that whoever waits for one outside of it waits
//! for ever, and an event of outside is refused within it. Queuing it again allocates nothing.
//! Reference: CUDA programming guide, "Cross-stream Dependencies and Events".
use std::sync::Arc;

use crate::backend::cpu::stream::HostCompletion;
use crate::backend::cpu::worker::{Command, Worker};
use crate::backend::{Completion, Event, HostTask, Result, Stream};
use crate::comm::HostCall;
use crate::kernel::Kernel;

/// The number of a recording's first event.
const FIRST: u64 = 1 << 63;

enum Written {
    Kernel(Stream, Kernel),
    /// Marks the present end of the stream as the event in this place.
    Record(Stream, usize),
    Wait(Stream, usize),
    /// Work of the host after an event, and the event of its end.
    Host {
        on: Stream,
        after: usize,
        task: Arc<dyn HostTask>,
        call: HostCall,
        end: usize,
    },
}

/// Work of both streams.
#[derive(Default)]
pub(super) struct Recording {
    written: Vec<Written>,
    /// What each event is in the replay under way.
    events: Vec<Option<HostCompletion>>,
    /// Whether the communication stream takes part.
    forked: bool,
}

/// The number of an event that may be one of a recording.
pub(super) fn event_of(completion: &Completion) -> u64 {
    match completion {
        Completion::Host(completion) => completion.sequence(),
        Completion::Device(_) => 0,
    }
}

impl Recording {
    fn takes_part(&self, on: Stream) -> Option<()> {
        (on == Stream::Compute || self.forked).then_some(())
    }

    /// The place of an event of this recording.
    fn place(&self, sequence: u64) -> Option<usize> {
        let place = usize::try_from(sequence.checked_sub(FIRST)?).ok()?;
        (place < self.events.len()).then_some(place)
    }

    fn event(&mut self, on: Stream) -> (usize, Event) {
        let place = self.events.len();
        self.events.push(None);
        let event = Event {
            stream: on,
            sequence: FIRST + place as u64,
        };
        (place, event)
    }

    /// None for what does not belong into a recording, as from all of these.
    pub(super) fn kernel(&mut self, on: Stream, kernel: Kernel) -> Option<()> {
        self.takes_part(on)?;
        self.written.push(Written::Kernel(on, kernel));
        Some(())
    }

    pub(super) fn record(&mut self, on: Stream) -> Option<Event> {
        self.takes_part(on)?;
        let (place, event) = self.event(on);
        self.written.push(Written::Record(on, place));
        Some(event)
    }

    pub(super) fn wait(&mut self, on: Stream, sequence: u64) -> Option<()> {
        let place = self.place(sequence)?;
        self.forked |= on == Stream::Communication;
        self.written.push(Written::Wait(on, place));
        Some(())
    }

    pub(super) fn host(
        &mut self,
        on: Stream,
        after: u64,
        task: &Arc<dyn HostTask>,
        call: HostCall,
    ) -> Option<Event> {
        let after = self.place(after)?;
        self.forked |= on == Stream::Communication;
        let (end, event) = self.event(on);
        self.written.push(Written::Host {
            on,
            after,
            task: Arc::clone(task),
            call,
            end,
        });
        Some(event)
    }

    /// Queues it, behind what both streams hold and in front of what they are given later.
    pub(super) fn replay(&mut self, streams: &mut [Worker; 2]) -> Result<()> {
        if self.forked {
            wait(streams, Stream::Compute, Stream::Communication)?;
        }
        let Self {
            written, events, ..
        } = self;
        for step in &*written {
            match step {
                Written::Kernel(on, kernel) => {
                    streams[*on as usize].push(Command::Kernel(*kernel))?;
                }
                Written::Record(on, place) => events[*place] = Some(mark(streams, *on)),
                Written::Wait(on, place) => {
                    let event = Completion::Host(reached(events, *place));
                    streams[*on as usize].push(Command::Wait(event))?;
                }
                Written::Host {
                    on,
                    after,
                    task,
                    call,
                    end,
                } => {
                    let after = Completion::Host(reached(events, *after));
                    let stream = &mut streams[*on as usize];
                    let sequence = stream.host(after, Arc::clone(task), *call)?;
                    events[*end] = Some(HostCompletion::new(stream.progress(), sequence));
                }
            }
        }
        if self.forked {
            wait(streams, Stream::Compute, Stream::Communication)?;
            wait(streams, Stream::Communication, Stream::Compute)?;
        }
        Ok(())
    }
}

fn reached(events: &[Option<HostCompletion>], place: usize) -> HostCompletion {
    let event = events[place].clone();
    event.expect("an event is recorded before anybody waits for it")
}

fn mark(streams: &mut [Worker; 2], on: Stream) -> HostCompletion {
    let stream = &mut streams[on as usize];
    let sequence = stream.record();
    HostCompletion::new(stream.progress(), sequence)
}

/// Lets `on` wait for all that `of` holds.
fn wait(streams: &mut [Worker; 2], on: Stream, of: Stream) -> Result<()> {
    let event = Completion::Host(mark(streams, of));
    streams[on as usize].push(Command::Wait(event))
}
