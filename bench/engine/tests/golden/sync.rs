//! SyncBatchNorm over ranks, which are threads with a device each, against PyTorch's BatchNorm over the concatenated batch.
//!
//! Ranks hold different numbers of samples, or none. The programs begin and end as in `layer.rs`.
use std::ops::Range;

use syncmark_engine::backend::Backend;
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::comm::{Collective, Communicator};
use syncmark_engine::layer::{Mode, Step};
use syncmark_engine::probe::Phase;
use syncmark_engine::program::NamedTensor;

use crate::devices::{self, Device};
use crate::fixture::{self, Fixture, values};
use crate::layer::{Case, check, check_buffers, wide};

/// What a rank ends with.
struct Ended {
    device: Device,
    outputs: Vec<Vec<f32>>,
    d_inputs: Vec<Vec<f32>>,
    /// Calls of collectives, as (collective, calls).
    calls: Vec<(Collective, u64)>,
}

/// One rank's steps, on the samples `own` of each.
fn rank(
    fixture: &Fixture,
    mut group: SharedCommunicator,
    backend: Box<dyn Backend>,
    own: Range<usize>,
) -> Ended {
    let case = Case::of(fixture);
    let world = group.world_size();
    let max_batch = own.len().max(1);
    let mut device = Device::new(backend, |backend| {
        case.build(backend, fixture, max_batch, world)
    });
    let (input, output) = (case.model.input, case.model.output);
    let chunks = [own.len()];
    let (mut outputs, mut d_inputs) = (Vec::new(), Vec::new());
    let part = |name: &str, step: usize| {
        let all = case.at(fixture, name, step);
        let sample = all.len() / case.batch;
        all[own.start * sample..own.end * sample].to_vec()
    };
    for step in 0..case.steps {
        device.write(device.program.input(), input, &part("input", step));
        device.write(device.program.d_output(), output, &part("upstream", step));
        let (program, mut context) = device.step(case.mode, &chunks);
        program
            .forward(&mut Step {
                group: Some(&mut group),
                ..step_of(&mut context)
            })
            .expect("forward");
        program
            .backward(&mut Step {
                group: Some(&mut group),
                ..step_of(&mut context)
            })
            .expect("backward");
        outputs.push(device.read(device.program.output(), output, own.len()));
        let d_input = device.program.d_input().expect("it was asked for");
        d_inputs.push(device.read(d_input, input, own.len()));
    }
    let counts = group.counts();
    assert!(
        counts
            .iter()
            .all(|count| count.phase == Phase::SyncBatchNorm),
        "{}",
        fixture.name
    );
    let calls = counts
        .iter()
        .map(|count| (count.collective, count.calls))
        .collect();
    Ended {
        device,
        outputs,
        d_inputs,
        calls,
    }
}

/// The same step again, for another call.
fn step_of<'a>(step: &'a mut Step<'_>) -> Step<'a> {
    let Step {
        mode,
        batch,
        chunks,
        state,
        ..
    } = *step;
    Step {
        backend: &mut *step.backend,
        group: None,
        mode,
        batch,
        chunks,
        state,
        fresh: false,
    }
}

/// The ranks' parts of each step, one after the other: the whole batch, step by step.
fn joined(ended: &[Ended], parts: impl Fn(&Ended) -> &[Vec<f32>], steps: usize) -> Vec<f64> {
    (0..steps)
        .flat_map(|step| {
            ended
                .iter()
                .flat_map(|rank| wide(&parts(rank)[step]))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn run(fixture: &Fixture, backend: fn() -> Box<dyn Backend>) {
    let case = Case::of(fixture);
    let batches: Vec<usize> = fixture.json("ranks");
    let groups =
        SharedCommunicator::for_threads(batches.len(), Waiting::default()).expect("a region");
    let mut next = 0;
    let shares = batches.iter().map(|batch| {
        next += batch;
        next - batch..next
    });
    let mut ended: Vec<Ended> = std::thread::scope(|scope| {
        let start = |(group, own)| scope.spawn(move || rank(fixture, group, backend(), own));
        let ranks: Vec<_> = groups.into_iter().zip(shares).map(start).collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().expect("a rank"))
            .collect()
    });
    assert_eq!(next, case.batch, "{}: the ranks' samples", fixture.name);
    let name = ended[0].device.backend.name();
    check(
        fixture,
        "output",
        &joined(&ended, |rank| &rank.outputs, case.steps),
        name,
    );
    check(
        fixture,
        "d_input",
        &joined(&ended, |rank| &rank.d_inputs, case.steps),
        name,
    );
    for (r, rank) in ended.iter_mut().enumerate() {
        check_buffers(fixture, &mut rank.device);
        let prefix = format!("d_param.rank{r}.");
        for tensor in gradients(&mut rank.device, &prefix) {
            check(fixture, &tensor.name, &values(&tensor), name);
        }
        // Two collectives a step in training, none in evaluation.
        let each = if case.mode == Mode::Train {
            case.steps as u64
        } else {
            0
        };
        for collective in [Collective::AllGather, Collective::AllReduce] {
            let calls = rank
                .calls
                .iter()
                .filter(|(which, _)| *which == collective)
                .map(|(_, calls)| calls)
                .sum::<u64>();
            assert_eq!(
                calls,
                each,
                "{} rank {r}: {}",
                fixture.name,
                collective.name()
            );
        }
    }
    check_total(fixture, &mut ended);
}

fn gradients(device: &mut Device, prefix: &str) -> Vec<NamedTensor> {
    let span = device.program.gradients();
    device
        .program
        .export_arena(device.backend.as_mut(), span, prefix)
        .expect("export")
}

/// The ranks' gradients sum to those of the whole batch.
fn check_total(fixture: &Fixture, ended: &mut [Ended]) {
    let name = ended[0].device.backend.name();
    let all: Vec<Vec<NamedTensor>> = ended
        .iter_mut()
        .map(|rank| gradients(&mut rank.device, "d_param."))
        .collect();
    for (i, tensor) in all[0].iter().enumerate() {
        let mut total = vec![0.0; values(tensor).len()];
        for rank in &all {
            total
                .iter_mut()
                .zip(values(&rank[i]))
                .for_each(|(sum, v)| *sum += v);
        }
        check(fixture, &tensor.name, &total, name);
    }
}

#[test]
fn sync_batch_norm_over_ranks_is_batch_norm_over_all_samples() {
    let fixtures = fixture::of_kind("layer")
        .into_iter()
        .filter(|fixture| fixture.name.starts_with("sync_batch_norm"));
    let mut seen = 0;
    for fixture in fixtures {
        run(&fixture, devices::cpu);
        run(&fixture, devices::deferred);
        seen += 1;
    }
    assert!(seen >= 6, "{seen} fixtures of SyncBatchNorm");
}
