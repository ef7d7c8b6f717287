//! A training step of one device that takes the time around every node of its program.
//!
//! It is the step of `single` with an event recorded before the first node and after each: the same nodes in the same order on
//! the same memory, so a node finds the caches as the node before it left them. An event costs a reading of the clock,
//! which is in the time of the node that it ends. Reference: [`crate::program::Program::forward_node`].
use super::Replica;
use crate::backend::{Backend, Event, Stream};
use crate::data::HostBatch;
use crate::layer::{Mode, Step};
use crate::probe::Phase;
use crate::probe::Probe;
use crate::strategy::Result;
use crate::strategy::micro_batch::MicroBatch;

/// Times of every node in one step. Made once, used for every step.
#[derive(Clone, Debug, Default)]
pub struct NodeTimes {
    /// Forward of each node in nanoseconds, in the order of the program.
    pub forward_ns: Vec<u64>,
    /// Backward of each node in nanoseconds, in the order of the program.
    pub backward_ns: Vec<u64>,
    events: Vec<Event>,
}

impl NodeTimes {
    /// Room for a program of `nodes` nodes, so that a step allocates nothing.
    pub fn new(nodes: usize) -> Self {
        Self {
            forward_ns: vec![0; nodes],
            backward_ns: vec![0; nodes],
            events: Vec::with_capacity(2 * (nodes + 1)),
        }
    }

    fn mark(&mut self, backend: &mut dyn Backend) {
        self.events.push(backend.record(Stream::Compute));
    }

    /// Reads the times of a step whose device is idle: forward's events first, then backward's, which begin with the last
    /// node.
    fn resolve(&mut self, backend: &mut dyn Backend) -> Result<()> {
        let nodes = self.forward_ns.len();
        let (forward, backward) = self.events.split_at(nodes + 1);
        for (i, ends) in forward.windows(2).enumerate() {
            self.forward_ns[i] = between(backend, ends)?;
        }
        for (i, ends) in backward.windows(2).enumerate() {
            self.backward_ns[nodes - 1 - i] = between(backend, ends)?;
        }
        Ok(())
    }
}

fn between(backend: &mut dyn Backend, ends: &[Event]) -> Result<u64> {
    let (begin, end) = (backend.time_ns(ends[0])?, backend.time_ns(ends[1])?);
    Ok(end.saturating_sub(begin))
}

impl Replica {
    /// A training step of this device alone that also tells the time of every node, in its last micro-batch. Blocks until the device is idle.
    ///
    /// # Errors
    /// As [`crate::strategy::Strategy::step`].
    pub fn step_by_node(
        &mut self,
        batch: HostBatch<'_>,
        times: &mut NodeTimes,
        probe: &mut dyn Probe,
    ) -> Result<()> {
        self.check(&batch, self.max_batch())?;
        self.trace.start(probe.tracing());
        for micro in self.micro_batches(batch) {
            self.micro_batch_by_node(&micro, times)?;
        }
        self.optimize()?;
        self.backend.synchronize()?;
        times.resolve(&mut *self.backend)?;
        Ok(self.trace.emit(&mut *self.backend, probe)?)
    }

    /// Forward and backward of a micro-batch; what is marked is the last one's.
    fn micro_batch_by_node(&mut self, micro: &MicroBatch<'_>, times: &mut NodeTimes) -> Result<()> {
        let len = micro.len();
        times.events.clear();
        self.host_to_device(micro)?;
        let opened = self.trace.open(&mut *self.backend);
        times.mark(&mut *self.backend);
        for i in 0..self.program.len() {
            self.forward_node(i, len)?;
            times.mark(&mut *self.backend);
        }
        self.trace.close(&mut *self.backend, Phase::Forward, opened);
        self.compute_loss(micro)?;
        let opened = self.trace.open(&mut *self.backend);
        times.mark(&mut *self.backend);
        for i in (0..self.program.len()).rev() {
            self.backward_node(i, len, None)?;
            times.mark(&mut *self.backend);
        }
        self.trace
            .close(&mut *self.backend, Phase::Backward, opened);
        Ok(())
    }

    /// Forward of node `i` in training mode, on this device alone.
    fn forward_node(&mut self, i: usize, len: usize) -> Result<()> {
        let whole = [len];
        let chunks = if self.chunks.is_empty() {
            &whole
        } else {
            &self.chunks[..]
        };
        let step = &mut Step {
            backend: &mut *self.backend,
            group: None,
            mode: Mode::Train,
            batch: len,
            chunks,
            state: self.state,
            fresh: false,
        };
        Ok(self.program.forward_node(i, step)?)
    }
}
