//! Optimizers in strategies: every strategy trains alike with each of them, and a schedule, a checkpoint, a snapshot and an
//! optimizer of parts go through the same updates.
mod devices;
mod trials;

use std::slice::from_ref;
use std::sync::Arc;

use devices::Device;
use syncmark_engine::backend::{HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::links::HostLinks;
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::model::spec::Norm;
use syncmark_engine::optim::{AdamwSettings, Optimizer, OptimizerSettings, Schedule, SgdSettings};
use syncmark_engine::probe::Silent;
use syncmark_engine::program::{NamedTensor, Program, TensorData};
use syncmark_engine::strategy::{
    Ddp, DdpOptions, DdpSettings, Dp, DpInputs, DpLoss, DpSettings, Single, SingleSettings,
    Strategy,
};
use trials::{BOTH, Batch, On, SEED, device, model, train};

/// As in equivalence.rs: sums over samples in another order, fed back through a few steps.
const TOLERANCE: f64 = 2e-5;
const STEPS: usize = 4;
const LEN: usize = 6;

/// The gates' eps: with 1e-8 the sign of a gradient that is all but zero decides a whole update.
const ADAMW: OptimizerSettings = OptimizerSettings::adamw(AdamwSettings {
    learning_rate: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-2,
    weight_decay: 0.1,
});
const NESTEROV: OptimizerSettings = OptimizerSettings::sgd(SgdSettings {
    learning_rate: 0.05,
    momentum: 0.9,
    weight_decay: 1e-3,
    nesterov: true,
});
/// Each optimizer, with a rate that changes at every step.
fn optimizers() -> [OptimizerSettings; 2] {
    [NESTEROV, ADAMW].map(|settings| OptimizerSettings {
        schedule: HALVING,
        ..settings
    })
}
const HALVING: Schedule = Schedule::Step {
    every: 1,
    factor: 0.5,
};

fn single(on: On, optimizer: OptimizerSettings) -> Single {
    let settings = SingleSettings {
        max_batch: LEN,
        accumulation: 1,
        chunks: Vec::new(),
        seed: SEED,
        optimizer,
    };
    Single::new(device(on, 0), &model(Norm::Group), &settings).unwrap()
}

fn step(strategy: &mut dyn Strategy, k: usize) {
    strategy
        .step(Batch::new(k, LEN).whole(), &mut Silent)
        .unwrap();
}

/// Norm-wise relative distance of two tensors.
fn distance(a: &NamedTensor, b: &NamedTensor) -> f64 {
    let (TensorData::F32(a), TensorData::F32(b)) = (&a.data, &b.data) else {
        return if a.data == b.data { 0.0 } else { f64::INFINITY };
    };
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    error / norm(&mut b.iter().map(|b| f64::from(*b))).max(1e-12)
}

fn agree(what: &str, found: &[NamedTensor], expected: &[NamedTensor]) {
    let names = |tensors: &[NamedTensor]| -> Vec<String> {
        tensors.iter().map(|tensor| tensor.name.clone()).collect()
    };
    assert_eq!(names(found), names(expected), "{what}");
    for (a, b) in found.iter().zip(expected) {
        let error = distance(a, b);
        assert!(
            error <= TOLERANCE,
            "{what}: {} differs by {error:.1e}",
            a.name
        );
    }
}

fn data_parallel(on: On, optimizer: OptimizerSettings) -> Dp {
    let backends: Vec<_> = (0..2).map(|index| device(on, index)).collect();
    let links = Arc::new(HostLinks::new(backends.iter().map(|backend| &**backend)).unwrap());
    let settings = DpSettings {
        max_batch: LEN,
        accumulation: 1,
        seed: SEED,
        optimizer,
        loss: DpLoss::Gathered,
        inputs: DpInputs::Master,
        device_ids: Vec::new(),
        output_device: None,
        cores: Vec::new(),
    };
    Dp::new(backends, links, &model(Norm::Group), &settings).unwrap()
}

/// What rank 0 of two ends with.
fn distributed(on: On, optimizer: OptimizerSettings) -> Vec<NamedTensor> {
    let communicators = SharedCommunicator::for_threads(2, Waiting::default()).unwrap();
    let run = |(rank, communicator): (usize, SharedCommunicator)| {
        let settings = DdpSettings {
            max_batch: LEN / 2,
            sample_offset: rank * LEN / 2,
            global_batch: LEN,
            seed: SEED,
            optimizer,
            options: DdpOptions::default(),
        };
        let model = model(Norm::Group);
        let mut ddp =
            Ddp::new(device(on, rank), Box::new(communicator), &model, &settings).unwrap();
        let part = rank * LEN / 2..(rank + 1) * LEN / 2;
        train(&mut ddp, STEPS, LEN, |batch| batch.part(part.clone())).end
    };
    std::thread::scope(|scope| {
        let ranks = communicators.into_iter().enumerate();
        let ranks: Vec<_> = ranks.map(|rank| scope.spawn(move || run(rank))).collect();
        let mut ends = ranks.into_iter().map(|rank| rank.join().unwrap());
        ends.next().unwrap()
    })
}

#[test]
fn one_device_dp_and_ddp_agree_with_every_optimizer_and_a_schedule() {
    for optimizer in optimizers() {
        let expected = train(&mut single(On::Cpu, optimizer), STEPS, LEN, |b| b).end;
        for on in BOTH {
            let what = format!("{:?}, {on:?}", optimizer.rule);
            let found = train(&mut data_parallel(on, optimizer), STEPS, LEN, |b| b).end;
            agree(&format!("{what}, dp"), &found, &expected);
            agree(
                &format!("{what}, ddp"),
                &distributed(on, optimizer),
                &expected,
            );
        }
    }
}

#[test]
fn a_schedule_does_what_setting_its_rates_by_hand_does() {
    for (settings, scheduled) in [NESTEROV, ADAMW].into_iter().zip(optimizers()) {
        for on in BOTH {
            let (mut by_hand, mut schedule) = (single(on, settings), single(on, scheduled));
            for k in 0..STEPS {
                let rate = settings.learning_rate() / (1 << k) as f32;
                by_hand.set_learning_rate(rate).unwrap();
                assert_eq!(schedule.master().learning_rate(), rate);
                step(&mut by_hand, k);
                step(&mut schedule, k);
            }
            let parameters = |strategy: &mut Single| {
                let mut tensors = strategy.export().unwrap();
                tensors.retain(|tensor| tensor.name != "step");
                tensors
            };
            assert!(parameters(&mut by_hand) == parameters(&mut schedule));
        }
    }
}

#[test]
fn training_goes_on_bit_by_bit_from_a_checkpoint_and_from_a_snapshot() {
    for optimizer in optimizers() {
        for on in BOTH {
            let mut whole = single(on, optimizer);
            (0..2).for_each(|k| step(&mut whole, k));
            let checkpoint = whole.export().unwrap();
            whole.snapshot().unwrap();
            (2..4).for_each(|k| step(&mut whole, k));
            let end = whole.export().unwrap();
            assert!(end != checkpoint);
            whole.restore().unwrap();
            assert!(whole.export().unwrap() == checkpoint);
            (2..4).for_each(|k| step(&mut whole, k));
            assert!(whole.export().unwrap() == end, "after a snapshot");
            let mut other = single(on, optimizer);
            other.import(&checkpoint).unwrap();
            (2..4).for_each(|k| step(&mut other, k));
            assert!(other.export().unwrap() == end, "after a checkpoint");
        }
    }
}

#[test]
fn a_checkpoint_of_adamw_names_its_averages_and_needs_its_step() {
    let mut adamw = single(On::Cpu, ADAMW);
    step(&mut adamw, 0);
    let mut state = adamw.export().unwrap();
    let has = |name: &str| state.iter().any(|tensor| tensor.name == name);
    assert!(has("exp_avg.0.conv2d.weight") && has("exp_avg_sq.0.conv2d.weight"));
    let last = state.pop().expect("a step");
    assert_eq!(
        (&*last.name, &last.data),
        ("step", &TensorData::I64(vec![1]))
    );
    let error = adamw.import(&state).expect_err("no step");
    assert_eq!(error.to_string(), "tensor step is missing");
    state.push(NamedTensor {
        data: TensorData::I64(vec![-1]),
        ..last
    });
    let error = adamw.import(&state).expect_err("a negative step");
    assert_eq!(
        error.to_string(),
        "tensor step is not an i64 scalar from 0 to 2147483647: write the number of updates made so far"
    );
}

/// Parameters after two updates by optimizers over `ranges`, with gradients that depend on the element.
fn updated(settings: OptimizerSettings, ranges: &[std::ops::Range<usize>]) -> Vec<f32> {
    let mut device = Device::new(devices::cpu(), |backend| {
        Program::build(backend, &model(Norm::Group), 1, 1, 1, SEED).unwrap()
    });
    let (backend, program) = (device.backend.as_mut(), &device.program);
    let mut parts = Vec::new();
    for range in ranges {
        parts.push(Optimizer::over(backend, program, settings, range.clone()).unwrap());
    }
    let len = program.parameters().len();
    for k in 0..2 {
        let gradients: Vec<f32> = (0..len).map(|i| ((i * 7 + k) % 11) as f32 - 5.0).collect();
        let upload = HostSlice::F32(&gradients);
        backend
            .upload(Stream::Compute, upload, program.gradients())
            .unwrap();
        device.state.set_counters(backend, k as i32, 0).unwrap();
        device.state.set_learning_rate(backend, 0.1).unwrap();
        for part in &mut parts {
            part.step(backend, device.state).unwrap();
        }
    }
    let mut parameters = vec![0.0; len];
    let to = HostSliceMut::F32(&mut parameters);
    backend.download(program.parameters(), to).unwrap();
    parameters
}

#[test]
fn optimizers_of_parts_do_what_one_of_the_whole_does() {
    let len = updated(ADAMW, &[]).len();
    for settings in [NESTEROV, ADAMW] {
        let untouched = updated(settings, &[]);
        let whole = updated(settings, from_ref(&(0..len)));
        assert!(whole.iter().zip(&untouched).all(|(a, b)| a != b));
        let parts = [0..17, 17..17, 17..len - 3, len - 3..len];
        assert!(updated(settings, &parts) == whole);
        let half = updated(settings, from_ref(&(0..17)));
        assert!(half[..17] == whole[..17] && half[17..] == untouched[17..]);
    }
}

#[test]
fn settings_that_cannot_work_are_refused_with_what_would() {
    let refused = |optimizer| {
        let settings = SingleSettings {
            max_batch: LEN,
            accumulation: 1,
            chunks: Vec::new(),
            seed: SEED,
            optimizer,
        };
        let built = Single::new(device(On::Cpu, 0), &model(Norm::Group), &settings);
        built.err().expect("refused").to_string()
    };
    let nesterov = SgdSettings {
        learning_rate: 0.1,
        momentum: 0.0,
        weight_decay: 0.0,
        nesterov: true,
    };
    assert_eq!(
        refused(OptimizerSettings::sgd(nesterov)),
        "nesterov is true with a momentum of 0: its step looks ahead along the momentum: write a momentum above 0, or nesterov = false"
    );
    let adamw = AdamwSettings {
        beta2: 1.0,
        ..AdamwSettings::default()
    };
    assert_eq!(
        refused(OptimizerSettings::adamw(adamw)),
        "beta2 is 1: write a number from 0 to below 1"
    );
    let schedule = Schedule::WarmUp {
        steps: 0,
        start: 0.0,
    };
    assert_eq!(
        refused(OptimizerSettings { schedule, ..ADAMW }),
        "warm-up steps is 0: write at least 1"
    );
}
