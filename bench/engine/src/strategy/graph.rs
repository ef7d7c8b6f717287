//! A step of a device that meets no other, as one piece: captured once for each batch size, then enqueued as a whole.
//!
//! Contract: what differs from step to step is uploaded before the piece (inputs, labels, step number, learning rate) and lies where the
//! kernels read it, so a replay computes what the kernels one by one would, to the bit. The first steps of a batch size are not
//! captured: libraries pick their algorithms in them, and scratch grows. Kernels that nobody wants to see one by one are all that
//! is captured; a traced step runs them one by one.
//! Reference: [`crate::backend::Backend::begin_capture`].
use super::micro_batch::MicroBatch;
use super::replica::Replica;
use super::{Result, StrategyError};
use crate::backend::Captured;
use crate::data::HostBatch;

/// Steps of a batch size before one is captured.
const UNCAPTURED: u32 = 3;

/// The captured steps of a replica, by batch size.
#[derive(Default)]
pub(super) struct Graphs(Vec<OfSize>);

struct OfSize {
    len: usize,
    taken: u32,
    captured: Option<Captured>,
}

/// What becomes of a step.
enum Way {
    OneByOne,
    Capture,
    Replay(Captured),
}

impl Graphs {
    fn next(&mut self, len: usize) -> Way {
        let of_size = match self.0.iter().position(|known| known.len == len) {
            Some(index) => &mut self.0[index],
            None => {
                let new = OfSize {
                    len,
                    taken: 0,
                    captured: None,
                };
                self.0.push(new);
                self.0.last_mut().expect("just added")
            }
        };
        match of_size.captured {
            Some(captured) => Way::Replay(captured),
            None if of_size.taken < UNCAPTURED => {
                of_size.taken += 1;
                Way::OneByOne
            }
            None => Way::Capture,
        }
    }

    fn keep(&mut self, len: usize, captured: Captured) {
        for of_size in self.0.iter_mut().filter(|known| known.len == len) {
            of_size.captured = Some(captured);
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

    /// Whether the present step goes through [`Replica::step_as_graph`].
    pub(super) fn replays(&self) -> bool {
        self.graphs.is_some() && !self.trace.on()
    }

    /// A step of one micro-batch.
    pub(super) fn step_as_graph(&mut self, batch: HostBatch<'_>) -> Result<()> {
        let micro = self.micro_batches(batch).next();
        let micro = micro.expect("a step has a micro-batch");
        self.host_to_device(&micro)?;
        self.upload_rate()?;
        let len = micro.len();
        let way = self.graphs.as_mut().map(|graphs| graphs.next(len));
        match way {
            Some(Way::Replay(captured)) => self.backend.replay(captured)?,
            Some(Way::Capture) => {
                self.backend.begin_capture()?;
                let done = self.compute(&micro);
                // Also after a failure: the stream would write down for ever.
                let captured = self.backend.end_capture();
                done?;
                let captured = captured?;
                if let Some(graphs) = &mut self.graphs {
                    graphs.keep(len, captured);
                }
                self.backend.replay(captured)?;
            }
            Some(Way::OneByOne) | None => self.compute(&micro)?,
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
