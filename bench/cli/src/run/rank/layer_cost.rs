//! The child's side of the kind `layer-cost`: the window as usual, and a pass that takes the time of every node.
//!
//! Contract: nodes are timed within whole training steps, one after the other in the order of the program, forward and
//! backward, then loss and optimizer: each finds the caches as in a step, and drift of the machine hits all of them alike.
//! The pass stands before the window in every second repeat. What its clock costs shows as tracing's slowdown, because
//! the pass is recorded as the traced one; its first steps leave spans of phases as well. What the device could do at best
//! is measured between the warm-up and the first pass.
//! Reference: METHODOLOGY.md, "Cost by node".
use syncmark_engine::probe::now_ns;
use syncmark_engine::strategy::NodeTimes;
use syncmark_record::rows::Pass;

use super::RankError;
use super::build::Participant;
use super::measure::{SpanBuffer, answered, asked, lead_in, memory, plan_window, timed_pass};
use super::witness::Witness;
use super::{ceilings, choices};
use crate::run::protocol::Assignment;
use crate::run::recorder::pass_number;
use crate::run::spool::Event;

/// Calls of a node that are kept: its quantiles are no better known with more.
const MOST_CALLS: u64 = 2000;

/// Runs both passes.
///
/// # Errors
/// The first failure of this rank.
pub fn run(assignment: &Assignment, mut participant: Participant) -> Result<(), RankError> {
    let steps = plan_window(assignment, &mut participant)?;
    let spans = assignment.trial.measure.trace_steps as u64;
    // Each pass begins with steps that bring the caches back.
    for event in ceilings::of_device(assignment)? {
        participant.spool.push(event);
    }
    participant.spool.beat(now_ns());
    let mut witness = Witness::new(assignment, participant.device);
    if assignment.repeat % 2 == 1 {
        node_pass(&mut participant, steps, spans)?;
        timed_pass(&mut participant, Pass::Window, steps, &mut witness)?;
    } else {
        timed_pass(&mut participant, Pass::Window, steps, &mut witness)?;
        node_pass(&mut participant, steps, spans)?;
    }
    memory(&mut participant);
    choices::tell(&mut participant);
    Ok(())
}

/// As many steps as the window has, up to [`MOST_CALLS`], with the time of every node; the first `spans` of them are
/// spooled with their phases.
fn node_pass(participant: &mut Participant, steps: u64, spans: u64) -> Result<(), RankError> {
    let steps = steps.min(MOST_CALLS);
    lead_in(participant, Pass::Traced, steps, true)?;
    participant.barrier()?;
    let nodes = participant.strategy.master().program().len();
    let mut calls = Calls::new(nodes, steps as usize);
    let mut times = NodeTimes::new(nodes);
    let mut probe = SpanBuffer::new();
    let (start, mut samples) = (now_ns(), 0);
    for step in 0..steps {
        let begin = now_ns();
        let asked = asked(&probe);
        let batch = participant.loader.next_batch();
        answered(&mut probe, participant.device, asked);
        let len = batch.len as u64;
        let replica = participant.strategy.master();
        replica.step_by_node(batch, &mut times, &mut probe)?;
        let end = now_ns();
        calls.add(&times);
        samples += len;
        if step < spans {
            participant.spool.push(Event::Step {
                pass: pass_number(Pass::Traced),
                step,
                start_ns: begin,
                end_ns: end,
                samples: len,
            });
            probe.flush(step, &mut participant.spool);
        }
        probe.clear();
        participant.spool.beat(end);
    }
    participant.spool.push(Event::Pass {
        pass: pass_number(Pass::Traced),
        steps,
        samples,
        start_ns: start,
        end_ns: now_ns(),
    });
    calls
        .events()
        .for_each(|event| participant.spool.push(event));
    Ok(())
}

/// Times of all calls, by node; allocated before the pass.
struct Calls {
    /// Forward's nodes, then backward's.
    times: Vec<Vec<u64>>,
}

impl Calls {
    fn new(nodes: usize, steps: usize) -> Self {
        let times = (0..2 * nodes).map(|_| Vec::with_capacity(steps));
        Self {
            times: times.collect(),
        }
    }

    fn add(&mut self, step: &NodeTimes) {
        let both = step.forward_ns.iter().chain(&step.backward_ns);
        for (times, time) in self.times.iter_mut().zip(both) {
            times.push(*time);
        }
    }

    /// An event for each node and direction.
    fn events(self) -> impl Iterator<Item = Event> {
        let nodes = self.times.len() / 2;
        self.times
            .into_iter()
            .enumerate()
            .map(move |(index, mut times)| {
                times.sort_unstable();
                Event::NodeTime {
                    node: (index % nodes) as u32,
                    backward: index >= nodes,
                    calls: times.len() as u64,
                    time_ns: [0.1, 0.5, 0.9].map(|share| nearest(&times, share)),
                }
            })
    }
}

/// A quantile of sorted times, by the nearest rank.
fn nearest(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_become_an_event_for_each_node_and_direction() {
        let mut calls = Calls::new(2, 10);
        let mut times = NodeTimes::new(2);
        for call in 1..=10 {
            times.forward_ns.copy_from_slice(&[call, 10 * call]);
            times
                .backward_ns
                .copy_from_slice(&[100 * call, 1000 * call]);
            calls.add(&times);
        }
        let events: Vec<Event> = calls.events().collect();
        let event = |node, backward, unit: u64| Event::NodeTime {
            node,
            backward,
            calls: 10,
            time_ns: [unit, 5 * unit, 9 * unit],
        };
        let expected = [
            event(0, false, 1),
            event(1, false, 10),
            event(0, true, 100),
            event(1, true, 1000),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn quantiles_are_times_that_were_measured() {
        assert_eq!(nearest(&[7], 0.1), 7);
        assert_eq!(nearest(&[1, 2, 3], 0.5), 2);
        assert_eq!(nearest(&[1, 2, 3], 0.9), 3);
    }
}
