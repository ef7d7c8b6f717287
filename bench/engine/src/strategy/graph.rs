//! A step as one piece: captured once for each kind of step, then enqueued as a whole.
//!
//! Contract: what differs from step to step is uploaded before the piece (inputs, labels, step number, learning rate) and lies where the
//! kernels read it, so a replay computes what the kernels one by one would, to the bit. The first steps of a kind are not
//! captured: libraries pick their algorithms in them, and scratch grows. Kernels that nobody wants to see one by one are all that
//! is captured; a traced step runs them one by one.
//! Reference: [`crate::backend::Backend::begin_capture`].
pub(super) mod exchanging;

use super::micro_batch::MicroBatch;
use super::replica::Replica;
use super::{Result, StrategyError};
use crate::backend::Captured;
use crate::data::HostBatch;

/// Steps of a kind before one is captured.
pub const UNCAPTURED: u32 = 3;

/// What makes one step another piece than the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Samples of the batch.
    pub(super) len: usize,
    /// What ranks do in it.
    pub(super) exchange: Exchange,
}

/// What ranks exchange in a step, and how; nothing on a device that meets no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Exchange {
    /// Whether gradients are reduced, and norms meet.
    pub(super) synchronizes: bool,
    /// Whether it begins with rank 0's buffers.
    pub(super) buffers: bool,
    /// A hash of the ends of the buckets.
    pub(super) buckets: u64,
    /// What the hook does, where that changes in the course of training.
    pub(super) stage: u8,
}

/// The captured steps of a replica, by kind.
#[derive(Default)]
pub(super) struct Graphs(Vec<OfKind>);

struct OfKind {
    kind: Kind,
    taken: u32,
    captured: Option<Captured>,
}

/// What becomes of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    OneByOne,
    Capture,
    Replay(Captured),
}

impl Graphs {
    /// What becomes of the present step. It follows from the kinds of the steps so far alone, so that ranks that take steps of equal kinds
    /// go the same way.
    fn next(&mut self, kind: Kind) -> Way {
        let of_kind = match self.0.iter().position(|known| known.kind == kind) {
            Some(index) => &mut self.0[index],
            None => {
                let new = OfKind {
                    kind,
                    taken: 0,
                    captured: None,
                };
                self.0.push(new);
                self.0.last_mut().expect("just added")
            }
        };
        match of_kind.captured {
            Some(captured) => Way::Replay(captured),
            None if of_kind.taken < UNCAPTURED => {
                of_kind.taken += 1;
                Way::OneByOne
            }
            None => Way::Capture,
        }
    }

    fn keep(&mut self, kind: Kind, captured: Captured) {
        for of_kind in self.0.iter_mut().filter(|known| known.kind == kind) {
            of_kind.captured = Some(captured);
        }
    }
}

/// Why a step cannot be captured.
pub(super) fn refused(of: &'static str, expected: &'static str) -> StrategyError {
    StrategyError::Setting {
        setting: "graph of a step",
        value: of.to_owned(),
        expected,
    }
}

impl Replica {
    /// As [`super::Strategy::capture_steps`].
    pub(super) fn capture_steps(&mut self) -> Result<()> {
        if self.accumulation > 1 {
            return Err(refused(
                "of several micro-batches",
                "one micro-batch a step",
            ));
        }
        self.graphs = Some(Graphs::default());
        Ok(())
    }

    /// Whether the present step may be captured or replayed.
    pub(super) fn replays(&self) -> bool {
        self.graphs.is_some() && !self.trace.on()
    }

    /// What becomes of the present step, which is of this kind.
    fn way(&mut self, kind: Kind) -> Way {
        let way = self.graphs.as_mut().map(|graphs| graphs.next(kind));
        way.unwrap_or(Way::OneByOne)
    }

    /// Remembers what was captured of a step of this kind.
    fn keep(&mut self, kind: Kind, captured: Captured) {
        if let Some(graphs) = &mut self.graphs {
            graphs.keep(kind, captured);
        }
    }

    /// Uploads what differs from step to step; the micro-batch is the step's only one.
    fn upload_step<'a>(&mut self, batch: HostBatch<'a>) -> Result<MicroBatch<'a>> {
        let micro = self.micro_batches(batch).next();
        let micro = micro.expect("a step has a micro-batch");
        self.host_to_device(&micro)?;
        self.upload_rate()?;
        Ok(micro)
    }

    /// A step of one micro-batch, of a device that meets no other.
    pub(super) fn step_as_graph(&mut self, batch: HostBatch<'_>) -> Result<()> {
        let micro = self.upload_step(batch)?;
        let kind = Kind {
            len: micro.len(),
            exchange: Exchange::default(),
        };
        match self.way(kind) {
            Way::Replay(captured) => self.backend.replay(captured)?,
            Way::Capture => {
                self.backend.begin_capture()?;
                let done = self.compute(&micro);
                // Also after a failure: the stream would write down for ever.
                let captured = self.backend.end_capture();
                done?;
                let captured = captured?;
                self.keep(kind, captured);
                self.backend.replay(captured)?;
            }
            Way::OneByOne => self.compute(&micro)?,
        }
        self.step += 1;
        Ok(())
    }

    /// All kernels of a step: nothing here may depend on its number.
    fn compute(&mut self, micro: &MicroBatch<'_>) -> Result<()> {
        self.forward_alone(micro.len())?;
        self.compute_loss(micro)?;
        self.backward_alone(micro.len())?;
        self.update_all()?;
        Ok(self.clear_gradients()?)
    }
}
