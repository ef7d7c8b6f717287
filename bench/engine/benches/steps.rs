//! Whole training steps: the models that steps are compared with PyTorch by, with one thread, with two, and on two ranks of DDP.
//!
//! A step copies a batch to the device, runs forward, mean cross-entropy, backward and update. What it stands beside is measured by
//! `scripts/pytorch/step_speed.py`, where ranks are processes; here they are threads, of which rank 0 is timed, each pinned to a core where
//! there are two. Run with `cargo bench -p syncmark-engine --bench steps` on an idle machine.
use std::sync::mpsc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::data::HostBatch;
use syncmark_engine::model::spec::{ModelSpec, Norm};
use syncmark_engine::model::{Model, NormOptions, resolve};
use syncmark_engine::optim::{OptimizerSettings, SgdSettings};
use syncmark_engine::philox::{Purpose, fill_symmetric};
use syncmark_engine::probe::Silent;
use syncmark_engine::strategy::{Ddp, DdpOptions, DdpSettings, Single, SingleSettings, Strategy};

/// Preset, norm and samples of a step.
const WORKS: [(&str, Norm, usize); 4] = [
    ("mlp", Norm::Batch, 128),
    ("resnet20", Norm::Batch, 64),
    ("resnet20", Norm::Group, 64),
    ("resnet18", Norm::Batch, 8),
];
const RANKS: usize = 2;
const OPTIMIZER: OptimizerSettings = OptimizerSettings::sgd(SgdSettings {
    learning_rate: 0.01,
    momentum: 0.9,
    weight_decay: 1e-4,
    nesterov: false,
});

fn preset(name: &str, norm: Norm) -> Model {
    let folder = env!("CARGO_MANIFEST_DIR");
    let text = std::fs::read_to_string(format!("{folder}/../../scenarios/models/{name}.toml"))
        .expect("a preset");
    let spec: ModelSpec = toml::from_str(&text).expect("a model file");
    let options = NormOptions::default();
    resolve(&spec, &spec.input, spec.classes, norm, &options).expect("presets resolve")
}

/// What a step trains on.
struct Samples {
    inputs: Vec<f32>,
    labels: Vec<i32>,
}

impl Samples {
    fn new(model: &Model, batch: usize) -> Self {
        let mut inputs = vec![0.0; batch * model.input.elements()];
        fill_symmetric(0, Purpose::Inputs, 0, 0, 1.7, &mut inputs);
        let labels = (0..batch).map(|i| (i % model.classes) as i32).collect();
        Self { inputs, labels }
    }

    fn batch(&self) -> HostBatch<'_> {
        HostBatch {
            inputs: &self.inputs,
            labels: &self.labels,
            len: self.labels.len(),
        }
    }
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.sample_size(10);
    for (name, norm, batch) in WORKS {
        let model = preset(name, norm);
        let samples = Samples::new(&model, batch);
        group.throughput(Throughput::Elements(batch as u64));
        for threads in [1, 2] {
            let device = CpuDevice {
                threads,
                ..CpuDevice::default()
            };
            let settings = SingleSettings {
                max_batch: batch,
                accumulation: 1,
                chunks: Vec::new(),
                seed: 0,
                optimizer: OPTIMIZER,
            };
            let backend = Box::new(CpuBackend::new(device).expect("threads"));
            let mut single = Single::new(backend, &model, &settings).expect("memory");
            let id = BenchmarkId::new(format!("{name}, {norm:?}"), format!("{threads} threads"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| single.step(samples.batch(), &mut Silent).expect("a step"));
            });
        }
    }
}

/// A rank of DDP with a core of its own, where there is one.
fn rank(model: &Model, batch: usize, rank: usize, communicator: SharedCommunicator) -> Ddp {
    let set = rustix::thread::sched_getaffinity(None).expect("an affinity");
    let mut cores = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| set.is_set(*core));
    let device = CpuDevice {
        cores: cores.nth(rank).into_iter().collect(),
        ..CpuDevice::default()
    };
    let settings = DdpSettings {
        max_batch: batch,
        sample_offset: rank * batch,
        global_batch: RANKS * batch,
        seed: 0,
        optimizer: OPTIMIZER,
        options: DdpOptions::default(),
    };
    let backend = Box::new(CpuBackend::new(device).expect("threads"));
    Ddp::new(backend, Box::new(communicator), model, &settings).expect("memory")
}

fn steps_of_ranks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.sample_size(10);
    for (name, norm, batch) in WORKS {
        let model = preset(name, norm);
        let samples = Samples::new(&model, batch);
        let mut communicators =
            SharedCommunicator::for_threads(RANKS, Waiting::default()).expect("memory");
        let (second, first) = (communicators.remove(1), communicators.remove(0));
        let (ask, asked) = mpsc::channel::<u64>();
        group.throughput(Throughput::Elements((RANKS * batch) as u64));
        std::thread::scope(|scope| {
            let (model, samples) = (&model, &samples);
            scope.spawn(move || {
                let mut ddp = rank(model, batch, 1, second);
                for steps in asked {
                    for _ in 0..steps {
                        ddp.step(samples.batch(), &mut Silent).expect("a step");
                    }
                }
            });
            let mut ddp = rank(model, batch, 0, first);
            let id = BenchmarkId::new(format!("{name}, {norm:?}"), format!("{RANKS} ranks"));
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|steps| {
                    ask.send(steps).expect("the other rank lives");
                    let begin = Instant::now();
                    for _ in 0..steps {
                        ddp.step(samples.batch(), &mut Silent).expect("a step");
                    }
                    begin.elapsed()
                });
            });
            // The other rank ends when nobody can ask any more.
            drop(ask);
        });
    }
}

criterion_group!(benches, steps, steps_of_ranks);
criterion_main!(benches);
