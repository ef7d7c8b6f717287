//! Training with batch norm by a device's library: the same as with our kernels. On the CPU by its reference, on a GPU by cuDNN; without a
//! GPU that says why nothing was run, and fails if SYNCMARK_REQUIRE_GPU=1.
mod gpu;
mod library;
mod trials;

use library::Asking;
use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::cuda::{BatchNormBy, Precision};
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{NormOptions, lower};
use syncmark_engine::program::{NamedTensor, TensorData};
use syncmark_engine::strategy::{Single, SingleSettings, Strategy};
use trials::{Batch, CLASSES, INPUT, OPTIMIZER, Outcome, SEED, model, train_on};

const STEPS: usize = 4;
const SAMPLES: usize = 12;

/// How far tensors may be apart after [`STEPS`] steps that differ in the order of additions alone.
const TOLERANCE: f64 = 1e-4;
/// What is smaller is compared as if it were this large: the gradient of a bias in front of a batch norm is nothing but rounding.
const FLOOR: f64 = 1e-2;
/// How far a loss in bfloat16 may be, as a share of the first loss: roundings of 2⁻⁹ in each layer, fed back.
const NARROW: f32 = 0.1;

fn cpu() -> CpuBackend {
    CpuBackend::new(CpuDevice::default()).unwrap()
}

fn single(backend: Box<dyn Backend>, model: &Model, chunks: &[usize]) -> Single {
    let settings = SingleSettings {
        max_batch: SAMPLES,
        accumulation: 1,
        chunks: chunks.to_vec(),
        seed: SEED,
        optimizer: OPTIMIZER,
    };
    Single::new(backend, model, &settings).unwrap()
}

/// A norm alone, one with a rectifier, one with an addition and a rectifier, one without γ and β, and one over features.
fn tails() -> Model {
    let layers = r#"[{"batch-norm":{}},{"conv2d":{"channels":8,"kernel":3,"padding":1}},{"batch-norm":{"affine":false}},"relu",
        {"residual":{"body":[{"conv2d":{"channels":8,"kernel":3,"padding":1}},{"batch-norm":{}}]}},"relu",
        "flatten",{"linear":{"features":13}},{"batch-norm":{}},{"linear":{"features":"classes"}}]"#;
    let layers: Vec<LayerSpec> = serde_json::from_str(layers).unwrap();
    let spec = ModelSpec {
        name: "tails".into(),
        input: INPUT.to_vec(),
        classes: CLASSES,
        layers,
    };
    let options = NormOptions::default();
    lower(&spec, &INPUT, CLASSES, Norm::None, &options).unwrap()
}

fn trained(strategy: &mut Single) -> Outcome {
    train_on(strategy, STEPS, |step| Batch::new(step, SAMPLES))
}

fn distance(a: &NamedTensor, b: &NamedTensor) -> f64 {
    match (&a.data, &b.data) {
        (TensorData::F32(a), TensorData::F32(b)) => {
            let norm =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let apart = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
            apart / norm(&mut b.iter().map(|v| f64::from(*v))).max(FLOOR)
        }
        // Batches are counted exactly.
        (a, b) => {
            assert_eq!(a, b);
            0.0
        }
    }
}

fn agree(what: &str, found: &Outcome, expected: &Outcome) {
    assert_eq!(found.end.len(), expected.end.len());
    for (a, b) in found.end.iter().zip(&expected.end) {
        assert_eq!(a.name, b.name);
        let apart = distance(a, b);
        assert!(apart <= TOLERANCE, "{what}: {} is off by {apart:e}", a.name);
    }
}

#[test]
fn a_library_on_the_cpu_trains_as_our_kernels_do() {
    for (name, model) in [("net", model(Norm::Batch)), ("tails", tails())] {
        for chunks in [&[][..], &[7, 5]] {
            let expected = trained(&mut single(Box::new(cpu()), &model, chunks));
            let asking = Asking::new(cpu());
            let calls = asking.calls();
            let found = trained(&mut single(Box::new(asking), &model, chunks));
            agree(&format!("{name}, chunks {chunks:?}"), &found, &expected);
            let calls = calls.lock().unwrap();
            assert!(
                calls.forward > 0 && calls.forward == calls.backward,
                "{calls:?}"
            );
        }
    }
}

#[test]
fn cudnn_trains_as_the_cpu_does_and_tells_what_it_took() {
    for (name, model) in [("net", model(Norm::Batch)), ("tails", tails())] {
        for chunks in [&[][..], &[7, 5]] {
            let Some(backend) = gpu::gpu_with(Precision::Fp32, BatchNormBy::Cudnn) else {
                return;
            };
            let expected = trained(&mut single(Box::new(cpu()), &model, chunks));
            let mut strategy = single(backend, &model, chunks);
            let found = trained(&mut strategy);
            agree(&format!("{name}, chunks {chunks:?}"), &found, &expected);
            let taken = strategy.choices().remove(0);
            let norms: Vec<_> = taken
                .iter()
                .filter(|choice| choice.operation.starts_with("batch norm"))
                .collect();
            println!("{norms:#?}");
            assert!(
                norms.len() >= 2
                    && norms
                        .iter()
                        .all(|choice| choice.algorithm.starts_with("BATCHNORM_SPATIAL")),
                "{norms:?}"
            );
        }
    }
}

/// In evaluation mode outputs depend on running statistics alone.
#[test]
fn cudnn_evaluates_as_the_cpu_does() {
    let model = tails();
    let Some(backend) = gpu::gpu_with(Precision::Fp32, BatchNormBy::Cudnn) else {
        return;
    };
    let evaluated = |strategy: &mut Single| {
        trained(strategy);
        let batch = Batch::new(9, SAMPLES);
        let found = strategy.evaluate(batch.whole()).unwrap();
        found.loss
    };
    let expected = evaluated(&mut single(Box::new(cpu()), &model, &[]));
    let found = evaluated(&mut single(backend, &model, &[]));
    assert!(
        (found - expected).abs() <= TOLERANCE * expected.abs(),
        "{found} is not {expected}"
    );
}

#[test]
fn cudnn_repeats_to_the_bit() {
    let run = || {
        let backend = gpu::gpu_with(Precision::Fp32, BatchNormBy::Cudnn)?;
        Some(trained(&mut single(backend, &tails(), &[])))
    };
    let (Some(first), Some(second)) = (run(), run()) else {
        return;
    };
    assert_eq!(first.losses, second.losses);
    assert!(
        first
            .end
            .iter()
            .zip(&second.end)
            .all(|(a, b)| a.data == b.data),
        "two runs of cuDNN's batch norm differ"
    );
}

#[test]
fn cudnn_trains_in_bf16() {
    let model = model(Norm::Batch);
    let Some(backend) = gpu::gpu_with(Precision::Bf16, BatchNormBy::Cudnn) else {
        return;
    };
    let expected = trained(&mut single(Box::new(cpu()), &model, &[])).losses;
    let found = trained(&mut single(backend, &model, &[])).losses;
    let furthest = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs() / expected[0])
        .fold(0.0f32, f32::max);
    assert!(furthest <= NARROW, "{found:?} is not {expected:?}");
    assert_ne!(found, expected, "nothing was rounded");
}
