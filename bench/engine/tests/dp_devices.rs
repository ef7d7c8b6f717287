//! DataParallel's `device_ids` and `output_device`: results do not depend on them, bytes and memory go where they say.
mod trials;

use std::collections::BTreeMap;
use std::sync::Arc;

use syncmark_engine::backend::Category;
use syncmark_engine::comm::links::HostLinks;
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::{Phase, PhaseSpan, Probe, Silent};
use syncmark_engine::strategy::{Dp, DpInputs, DpLoss, DpSettings, Strategy, StrategyError};
use trials::{BOTH, Batch, CLASSES, INPUT, OPTIMIZER, On, SEED, device, model, train};

const STEPS: usize = 4;
const LOSSES: [DpLoss; 2] = [DpLoss::Gathered, DpLoss::Replica];

/// A way to place DP: the order of its devices, and where it gathers.
type Placement<'a> = (&'a [usize], usize);

fn build(
    on: On,
    model: &Model,
    max_batch: usize,
    placement: Placement<'_>,
    loss: DpLoss,
    accumulation: usize,
) -> Result<Dp, StrategyError> {
    let from = DpInputs::Master;
    build_from(from, on, model, max_batch, placement, loss, accumulation)
}

fn build_from(
    inputs: DpInputs,
    on: On,
    model: &Model,
    max_batch: usize,
    (order, output): Placement<'_>,
    loss: DpLoss,
    accumulation: usize,
) -> Result<Dp, StrategyError> {
    let backends: Vec<_> = (0..order.len()).map(|index| device(on, index)).collect();
    let links = Arc::new(HostLinks::new(backends.iter().map(|backend| &**backend)).unwrap());
    let settings = DpSettings {
        max_batch,
        accumulation,
        seed: SEED,
        optimizer: OPTIMIZER,
        loss,
        inputs,
        device_ids: order.to_vec(),
        output_device: Some(output),
        cores: Vec::new(),
    };
    Dp::new(backends, links, model, &settings)
}

fn dp(on: On, model: &Model, len: usize, placement: Placement<'_>, loss: DpLoss) -> Dp {
    accumulating(on, model, len, placement, loss, 1)
}

/// As [`dp`], with `accumulation` micro-batches of `len` samples a step.
fn accumulating(
    on: On,
    model: &Model,
    len: usize,
    placement: Placement<'_>,
    loss: DpLoss,
    accumulation: usize,
) -> Dp {
    build(on, model, len, placement, loss, accumulation).unwrap()
}

/// Chunk k is the k-th device's whatever its number, and each sum is taken in the order of the chunks.
#[test]
fn results_do_not_depend_on_the_order_or_the_output_device() {
    let model = model(Norm::Batch);
    for on in BOTH {
        for loss in LOSSES {
            for (len, k) in [(9, 1), (10, 1), (2, 1), (9, 3), (2, 2)] {
                let usual = (&[0, 1, 2, 3][..], 0);
                let mut strategy = accumulating(on, &model, len, usual, loss, k);
                let expected = train(&mut strategy, STEPS, k * len, |b| b);
                for placement in [
                    (&[0, 1, 2, 3][..], 2),
                    (&[3, 1, 0, 2], 3),
                    (&[2, 3, 1, 0], 0),
                    (&[1, 0, 3, 2], 2),
                ] {
                    let mut strategy = accumulating(on, &model, len, placement, loss, k);
                    let found = train(&mut strategy, STEPS, k * len, |b| b);
                    let what = format!("{placement:?}, {k}·{len} samples, {loss:?} on {on:?}");
                    assert!(found.losses == expected.losses, "{what}");
                    assert!(found.end == expected.end, "{what}");
                }
            }
        }
    }
}

#[test]
fn inputs_from_the_host_change_no_result_and_are_never_scattered() {
    let model = model(Norm::Batch);
    let moved = |strategy: &Dp, scattered: bool| -> Vec<_> {
        let counts = strategy.counts().into_iter();
        let moved = counts.filter(|(_, count)| count.calls > 0);
        moved
            .filter(|(_, count)| (count.phase == Phase::Scatter) == scattered)
            .map(|(device, count)| (device, count.phase, count.sent_bytes, count.received_bytes))
            .collect()
    };
    for on in BOTH {
        for loss in LOSSES {
            for (len, k, placement) in [
                (9, 1, (&[0, 1, 2, 3][..], 0)),
                (10, 2, (&[2, 0, 3, 1], 1)),
                (2, 1, (&[1, 0, 2], 2)),
                (3, 1, (&[0], 0)),
            ] {
                let what = format!("{placement:?}, {k}·{len} samples, {loss:?} on {on:?}");
                let from =
                    |inputs| build_from(inputs, on, &model, len, placement, loss, k).unwrap();
                let (mut usual, mut direct) = (from(DpInputs::Master), from(DpInputs::Host));
                let expected = train(&mut usual, STEPS, k * len, |b| b);
                let found = train(&mut direct, STEPS, k * len, |b| b);
                assert!(found.losses == expected.losses, "{what}");
                assert!(found.end == expected.end, "{what}");
                assert_eq!(moved(&direct, false), moved(&usual, false), "{what}");
                assert_eq!(moved(&direct, true), [], "{what}");
                assert_eq!(
                    moved(&usual, true).is_empty(),
                    placement.0.len() == 1,
                    "{what}"
                );
                // The host's part is no communication: it stays where there is none.
                direct.reset_counts();
                direct.set_synchronize(false);
                train(&mut direct, 1, k * len, |b| b);
                assert_eq!(moved(&direct, false), [], "{what}");
            }
        }
    }
}

#[test]
fn the_master_keeps_no_inputs_of_others_that_the_host_has() {
    let model = model(Norm::Batch);
    let workspace = |inputs| {
        let placement = (&[0, 1, 2, 3][..], 0);
        let mut strategy =
            build_from(inputs, On::Cpu, &model, 16, placement, DpLoss::Replica, 1).unwrap();
        strategy.memory()[0][Category::Workspace as usize]
    };
    let (held, direct) = (workspace(DpInputs::Master), workspace(DpInputs::Host));
    let sample = 4 * (INPUT.iter().product::<usize>() + 1);
    assert!(held >= direct + 12 * sample, "{held} and {direct} bytes");
}

#[test]
fn bytes_go_through_the_master_and_the_output_device() {
    let model = model(Norm::Batch);
    let slots = model.nodes.iter().flat_map(|node| node.parameters());
    let elements: u64 = slots.map(|slot| slot.elements() as u64).sum();
    let (parameters, buffers) = (4 * elements, 2 * 2 * 8 * 4 + 2 * 8);
    let input = 4 * INPUT.iter().product::<usize>() as u64;
    for loss in LOSSES {
        for (len, order, output, k) in [
            (10, &[2, 0, 3, 1][..], 1, 1),
            (10, &[2, 0, 3, 1], 2, 1),
            (9, &[1, 2, 0, 3], 3, 1),
            (6, &[1, 0], 0, 1),
            (9, &[1, 2, 0, 3], 3, 3),
            (6, &[1, 0], 0, 2),
        ] {
            let mut strategy = accumulating(On::Cpu, &model, len, (order, output), loss, k);
            strategy
                .step(Batch::new(0, k * len).whole(), &mut Silent)
                .unwrap();
            strategy.reset_counts();
            strategy
                .step(Batch::new(1, k * len).whole(), &mut Silent)
                .unwrap();
            strategy.finish().unwrap();
            let mut found: BTreeMap<(Phase, usize), (u64, u64)> = BTreeMap::new();
            for (device, count) in strategy.counts() {
                let sum = found.entry((count.phase, device)).or_default();
                *sum = (
                    sum.0 + count.sent_bytes.unwrap(),
                    sum.1 + count.received_bytes.unwrap(),
                );
            }
            let mut expected: BTreeMap<(Phase, usize), (u64, u64)> = BTreeMap::new();
            let mut add = |phase, bytes: u64, from: usize, to: usize| {
                if from != to {
                    // Every micro-batch is scattered, replicated and reduced.
                    let bytes = k as u64 * bytes;
                    expected.entry((phase, from)).or_default().0 += bytes;
                    expected.entry((phase, to)).or_default().1 += bytes;
                }
            };
            let (chunk, master) = (len.div_ceil(order.len()), order[0]);
            for (place, start) in (0..len).step_by(chunk).enumerate() {
                let (samples, device) = (chunk.min(len - start) as u64, order[place]);
                let (label, gathered) = match loss {
                    DpLoss::Gathered => (0, samples * CLASSES as u64 * 4),
                    DpLoss::Replica => (4, 4),
                };
                add(Phase::Scatter, samples * (input + label), master, device);
                add(Phase::Replicate, parameters + buffers, master, device);
                add(Phase::Gather, gathered, device, output);
                add(Phase::ScatterGradients, gathered, output, device);
                add(Phase::Reduce, parameters, device, master);
            }
            assert_eq!(
                found, expected,
                "{k}·{len} over {order:?}, {output}, {loss:?}"
            );
        }
    }
}

#[test]
fn the_output_device_holds_what_is_gathered_and_the_master_the_optimizers_state() {
    let model = model(Norm::Batch);
    let memory = |order: &[usize], output| {
        dp(On::Cpu, &model, 12, (order, output), DpLoss::Gathered).memory()
    };
    let of = |category: Category| {
        let place = Category::ALL.iter().position(|other| *other == category);
        place.unwrap()
    };
    let (workspace, optimizer) = (of(Category::Workspace), of(Category::Optimizer));
    let usual = memory(&[0, 1, 2], 0);
    let moved = memory(&[0, 1, 2], 2);
    // Gathered outputs and their gradient, and the losses and labels of all samples instead of a chunk.
    let gathered = 2 * 12 * CLASSES * 4;
    assert!(usual[0][workspace] >= moved[0][workspace] + gathered);
    assert!(moved[2][workspace] + 4 * 4 * CLASSES >= usual[2][workspace] + gathered);
    assert_eq!(usual[1], moved[1]);
    let turned = memory(&[2, 0, 1], 2);
    assert_eq!(
        turned,
        [usual[1], usual[2], usual[0]],
        "by number, not by place"
    );
    assert!(turned[2][optimizer] > 0 && turned[0][optimizer] == 0);
}

#[test]
fn orders_and_output_devices_that_cannot_be_are_refused() {
    let model = model(Norm::None);
    for (order, output, says) in [
        (&[0, 0, 1][..], 0, "device_ids is [0, 0, 1]"),
        (&[1, 2, 3], 1, "device_ids is [1, 2, 3]"),
        (&[0, 1], 2, "output_device is 2"),
    ] {
        let refused = build(On::Cpu, &model, 6, (order, output), DpLoss::Gathered, 1);
        let error = refused.err().expect("it must be refused").to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn without_synchronization_the_output_device_goes_on_alone() {
    let model = model(Norm::Batch);
    for on in BOTH {
        for loss in LOSSES {
            for (len, order, output) in [(6, &[1, 2, 0][..], 0), (2, &[0, 1, 2], 2)] {
                let mut strategy = dp(on, &model, len, (order, output), loss);
                let before = train(&mut strategy, 2, len, |b| b);
                strategy.snapshot().unwrap();
                strategy.reset_counts();
                strategy.set_synchronize(false);
                for step in 0..3 {
                    let batch = Batch::new(step, len);
                    strategy.step(batch.whole(), &mut Silent).unwrap();
                }
                strategy.finish().unwrap();
                assert!(strategy.counts().is_empty());
                assert!(strategy.loss().unwrap().is_finite());
                strategy.set_synchronize(true);
                strategy.restore().unwrap();
                assert!(strategy.export().unwrap() == before.end);
            }
        }
    }
}

#[derive(Default)]
struct Collected(Vec<PhaseSpan>);

impl Probe for Collected {
    fn tracing(&self) -> bool {
        true
    }
    fn span(&mut self, span: PhaseSpan) {
        self.0.push(span);
    }
}

#[test]
fn spans_name_the_device_that_did_the_work() {
    for on in BOTH {
        let placement = (&[2, 0, 1][..], 1);
        let mut strategy = dp(on, &model(Norm::Batch), 6, placement, DpLoss::Gathered);
        let mut spans = Collected::default();
        strategy.step(Batch::new(0, 6).whole(), &mut spans).unwrap();
        let on_devices = |phase: Phase| -> Vec<u16> {
            let found = spans.0.iter().filter(|span| span.phase == phase);
            let mut devices: Vec<u16> = found.map(|span| span.device).collect();
            devices.sort_unstable();
            devices
        };
        assert_eq!(on_devices(Phase::Gather), [1]);
        assert_eq!(on_devices(Phase::Loss), [1]);
        assert_eq!(on_devices(Phase::Reduce), [2]);
        assert_eq!(on_devices(Phase::Optimizer), [2]);
        assert_eq!(on_devices(Phase::HostToDevice), [1, 2]);
        assert_eq!(on_devices(Phase::Forward), [0, 1, 2]);
    }
}
