//! Timing a step node by node changes nothing of the step, and the times are within it.
mod trials;

use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::{Phase, PhaseSpan, Probe, Silent, now_ns};
use syncmark_engine::strategy::{NodeTimes, Strategy, StrategyError};
use trials::{BOTH, Batch, model, single};

const LEN: usize = 6;
const STEPS: usize = 3;

#[test]
fn a_step_by_node_is_the_step() {
    let model = model(Norm::Batch);
    for on in BOTH {
        for chunks in [&[][..], &[2, 4][..]] {
            let mut usual = single(on, &model, LEN, chunks);
            let mut timed = single(on, &model, LEN, chunks);
            let mut times = NodeTimes::new(model.nodes.len());
            for step in 0..STEPS {
                let batch = Batch::new(step, LEN);
                usual.step(batch.whole(), &mut Silent).unwrap();
                let replica = timed.master();
                replica
                    .step_by_node(batch.whole(), &mut times, &mut Silent)
                    .unwrap();
                assert_eq!(usual.loss().unwrap(), timed.loss().unwrap(), "{on:?}");
            }
            assert_eq!(usual.export().unwrap(), timed.export().unwrap(), "{on:?}");
        }
    }
}

/// Keeps the spans of a step.
#[derive(Default)]
struct Spans(Vec<PhaseSpan>);

impl Probe for Spans {
    fn tracing(&self) -> bool {
        true
    }
    fn span(&mut self, span: PhaseSpan) {
        self.0.push(span);
    }
}

#[test]
fn the_times_of_nodes_lie_within_forward_and_backward() {
    let model = model(Norm::Group);
    for on in BOTH {
        let mut strategy = single(on, &model, LEN, &[]);
        let mut times = NodeTimes::new(model.nodes.len());
        let mut spans = Spans::default();
        let begin = now_ns();
        let batch = Batch::new(0, LEN);
        let replica = strategy.master();
        replica
            .step_by_node(batch.whole(), &mut times, &mut spans)
            .unwrap();
        let whole = now_ns() - begin;
        let of = |phase| {
            let span = spans.0.iter().find(|span| span.phase == phase).unwrap();
            span.device_ns[1] - span.device_ns[0]
        };
        let (forward, backward) = (
            times.forward_ns.iter().sum::<u64>(),
            times.backward_ns.iter().sum::<u64>(),
        );
        assert_eq!(times.forward_ns.len(), model.nodes.len());
        assert!(forward <= of(Phase::Forward), "{on:?}: {times:?}");
        assert!(backward <= of(Phase::Backward), "{on:?}: {times:?}");
        assert!(forward + backward <= whole, "{on:?}");
        // A convolution of 6 samples takes longer than reading a clock: the times are not all of one end of an event.
        assert!(
            times.forward_ns[0] > 0 && times.backward_ns[0] > 0,
            "{times:?}"
        );
    }
}

#[test]
fn a_batch_that_does_not_fit_is_refused() {
    let model = model(Norm::None);
    let mut strategy = single(BOTH[0], &model, LEN, &[]);
    let batch = Batch::new(0, LEN + 1);
    let mut times = NodeTimes::new(model.nodes.len());
    let refused = strategy
        .master()
        .step_by_node(batch.whole(), &mut times, &mut Silent);
    assert!(matches!(refused, Err(StrategyError::Batch { .. })));
}
