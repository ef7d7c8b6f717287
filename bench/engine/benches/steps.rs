//! Whole training steps of one device: the models that steps are compared with PyTorch by, with one thread and with two.
//!
//! A step copies a batch to the device, runs forward, mean cross-entropy, backward and update. What it stands beside is measured by
//! `scripts/pytorch/step_speed.py`. Run with `cargo bench -p syncmark-engine --bench steps` on an idle machine.
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::data::HostBatch;
use syncmark_engine::model::spec::{ModelSpec, Norm};
use syncmark_engine::model::{NormOptions, resolve};
use syncmark_engine::optim::{OptimizerSettings, SgdSettings};
use syncmark_engine::philox::{Purpose, fill_symmetric};
use syncmark_engine::probe::Silent;
use syncmark_engine::strategy::{Single, SingleSettings, Strategy};

/// Preset, norm and samples of a step.
const WORKS: [(&str, Norm, usize); 4] = [
    ("mlp", Norm::Batch, 128),
    ("resnet20", Norm::Batch, 64),
    ("resnet20", Norm::Group, 64),
    ("resnet18", Norm::Batch, 8),
];

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    group.sample_size(10);
    for (name, norm, batch) in WORKS {
        let folder = env!("CARGO_MANIFEST_DIR");
        let text = std::fs::read_to_string(format!("{folder}/../../scenarios/models/{name}.toml"))
            .expect("a preset");
        let spec: ModelSpec = toml::from_str(&text).expect("a model file");
        let options = NormOptions::default();
        let model =
            resolve(&spec, &spec.input, spec.classes, norm, &options).expect("presets resolve");
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
                optimizer: OptimizerSettings::sgd(SgdSettings {
                    learning_rate: 0.01,
                    momentum: 0.9,
                    weight_decay: 1e-4,
                    nesterov: false,
                }),
            };
            let backend = Box::new(CpuBackend::new(device).expect("threads"));
            let mut single = Single::new(backend, &model, &settings).expect("memory");
            let mut inputs = vec![0.0; batch * model.input.elements()];
            fill_symmetric(0, Purpose::Inputs, 0, 0, 1.7, &mut inputs);
            let labels: Vec<i32> = (0..batch).map(|i| (i % model.classes) as i32).collect();
            let samples = HostBatch {
                inputs: &inputs,
                labels: &labels,
                len: batch,
            };
            group.throughput(Throughput::Elements(batch as u64));
            let id = BenchmarkId::new(format!("{name}, {norm:?}"), format!("{threads} threads"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| single.step(samples, &mut Silent).expect("a step"));
            });
        }
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
