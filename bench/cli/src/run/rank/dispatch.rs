//! The pass that tells the host's time apart from the device's: how long a step is enqueued, beside how long its GPU computes.
//!
//! Contract: of GPUs, where one host thread enqueues for one device. Every step begins on an idle device, so that no call waits for
//! room in a stream: the wait for the device lies between steps, within none of the times. Times of steps and of the whole pass
//! contain it, and are no figures of anything.
//! Reference: METHODOLOGY.md, "On GPUs".
use syncmark_engine::probe::{Dispatch, PhaseSpan, Probe, now_ns};
use syncmark_record::rows::Pass;

use super::RankError;
use super::build::Participant;
use super::measure::lead_in;
use crate::plan::config::Backend;
use crate::run::protocol::Assignment;
use crate::run::recorder::pass_number;
use crate::run::spool::Event;

/// Whether a trial has the pass. DP's devices are enqueued by threads of their own, in phases that it joins.
pub(super) fn is_told(assignment: &Assignment) -> bool {
    let trial = &assignment.trial;
    trial.measure.trace_steps > 0 && trial.backend == Backend::Cuda && trial.strategy.dp().is_none()
}

/// Takes `steps` steps.
///
/// # Errors
/// The first failure of this rank.
pub(super) fn pass(participant: &mut Participant, steps: u64) -> Result<(), RankError> {
    lead_in(participant, Pass::Dispatch, steps, true)?;
    participant.barrier()?;
    let number = pass_number(Pass::Dispatch);
    let mut last = Last(None);
    for step in 0..steps {
        let begin = now_ns();
        let samples = participant.step(&mut last)?;
        let end = now_ns();
        participant.spool.push(Event::Step {
            pass: number,
            step,
            start_ns: begin,
            end_ns: end,
            samples,
        });
        if let Some(told) = last.0.take() {
            participant.spool.push(Event::Dispatch {
                step,
                dispatch_ns: told.dispatch_ns,
                upload_ns: told.upload_ns,
                device_ns: told.device_ns,
            });
        }
        participant.spool.beat(end);
    }
    Ok(participant.strategy.finish()?)
}

/// What was told of the last step.
struct Last(Option<Dispatch>);

impl Probe for Last {
    fn tracing(&self) -> bool {
        false
    }
    fn span(&mut self, _: PhaseSpan) {}
    fn dispatching(&self) -> bool {
        true
    }
    fn dispatch(&mut self, dispatch: Dispatch) {
        self.0 = Some(dispatch);
    }
}
