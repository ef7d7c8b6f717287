//! Calls that were captured into CUDA graphs with their device's work, for whoever counts them when a graph is launched.
//!
//! Contract: NCCL has ranks of a call agree on whether it is captured, and counts the launch of a graph as a call of all of them. So captured
//! calls are entered launch by launch, as those called one by one are, with a mark that ranks compare at barriers: a rank that launched a
//! graph is told from one that made the calls. Within a graph no call can be timed: an event that is captured marks a place, not a moment,
//! and asking it would spoil the capture, which is why the watching thread is not given any.
//! Reference: NCCL user guide, "Using NCCL with CUDA Graphs".
use super::device::Device;
use super::{Calls, NcclCommunicator};
use crate::backend::{BackendError, Captured, Event, Result};
use crate::comm::{CollectiveCall, Communicator};

/// What the digest of a rank's calls takes for the launch of a graph: no call's signature.
const LAUNCH: u64 = u64::MAX;

/// Calls in graphs.
#[derive(Default)]
pub(super) struct CapturedCalls {
    /// Those so far of a capture under way.
    open: Option<Vec<CollectiveCall>>,
    known: Vec<(Captured, Box<[CollectiveCall]>)>,
}

impl CapturedCalls {
    /// Whether calls are captured.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn begin(&mut self) {
        self.open = Some(Vec::new());
    }

    /// Writes down a call if calls are captured; says so.
    pub(super) fn take(&mut self, call: &CollectiveCall) -> bool {
        if let Some(calls) = &mut self.open {
            calls.push(*call);
        }
        self.is_open()
    }

    pub(super) fn end(&mut self, captured: Option<Captured>) {
        let calls = self.open.take().unwrap_or_default();
        if let Some(captured) = captured {
            self.known.push((captured, calls.into()));
        }
    }

    fn of(&self, captured: Captured) -> &[CollectiveCall] {
        let found = self.known.iter().find(|(known, _)| *known == captured);
        found.map_or(&[], |(_, calls)| calls)
    }
}

impl Calls {
    /// Enters the launch of a graph, before its calls.
    fn add_launch(&mut self) {
        self.mix(LAUNCH);
        self.launches += 1;
    }
}

impl NcclCommunicator {
    /// As [`crate::comm::Communicator::replayed`], on its device.
    ///
    /// # Errors
    /// Why collectives fail, once they do.
    pub(super) fn replayed_on(
        &mut self,
        device: &mut dyn Device,
        captured: Captured,
        end: Event,
    ) -> Result<()> {
        let calls = self.captured.of(captured);
        let Some((connected, last)) = self.connected.as_ref().zip(calls.last()) else {
            return Ok(());
        };
        // Whoever waits for the graph waits for its collectives.
        let session = &connected.session;
        session.follow(0, last, device.interval(end), Some(calls.len()));
        self.calls.add_launch();
        let exchanges = self.control.world_size() > 1;
        for call in calls {
            self.calls.add(call);
            if exchanges {
                self.record.enter(call, None);
            }
        }
        match self.failure() {
            Some(reason) => Err(BackendError::Communication(reason)),
            None => Ok(()),
        }
    }
}
