//! Evaluation with stored, batch and newly estimated statistics, and the noise of batch statistics, against PyTorch.
use syncmark_engine::data::HostBatch;
use syncmark_engine::model::{NormOptions, resolve};
use syncmark_engine::probe::Silent;
use syncmark_engine::program::NamedTensor;
use syncmark_engine::strategy::{Evaluation, Noise, Single, SingleSettings, Strategy};

use crate::devices;
use crate::fixture::{self, Fixture, values};
use crate::schedules::optimizer;
use crate::training::{near, preset, source};

/// Samples that own their memory.
struct Samples {
    inputs: Vec<f32>,
    labels: Vec<i32>,
}

impl Samples {
    fn of(data: &dyn syncmark_engine::data::Dataset, first: usize, len: usize) -> Self {
        let elements = data.shape().elements();
        let mut inputs = vec![0.0; len * elements];
        for (sample, input) in inputs.chunks_exact_mut(elements).enumerate() {
            data.write(first + sample, input);
        }
        let labels = (first..first + len)
            .map(|sample| data.label(sample))
            .collect();
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

/// The loss is near; so few samples are either right or wrong alike.
fn check(fixture: &Fixture, name: &str, found: &Evaluation, backend: &str) {
    let expected = &fixture.tensor(name).values;
    let gap = fixture.fp32_gap(name);
    near(fixture, name, gap, &[found.loss], &expected[..1], backend);
    assert_eq!(found.errors as f64, expected[1], "{name} on {backend}");
}

fn buffers(strategy: &mut Single) -> Vec<NamedTensor> {
    let exported = strategy.export().expect("export");
    let is_buffer =
        |tensor: &NamedTensor| tensor.name.contains("running") || tensor.name.contains("tracked");
    exported.into_iter().filter(is_buffer).collect()
}

#[test]
fn evaluations_agree_with_pytorch() {
    for fixture in fixture::of_kind("learning") {
        for backend in devices::training() {
            let kind = backend.name();
            let data = source(&fixture);
            let norm = serde_json::from_value(fixture.text("norm").into()).expect("a norm");
            let spec = preset(fixture.text("model"));
            let input = data.shape().dimensions();
            let model = resolve(&spec, &input, data.classes(), norm, &NormOptions::default())
                .expect("a preset");
            let (batch, steps): (usize, usize) =
                (fixture.json("batch"), fixture.json("steps_trained"));
            let (evaluated, chunk): (usize, usize) =
                (fixture.json("evaluated"), fixture.json("chunk"));
            // The whole batch is one chunk in training, so evaluation takes one chunk at a time too.
            let settings = SingleSettings {
                max_batch: batch,
                accumulation: 1,
                chunks: Vec::new(),
                seed: fixture.json("seed"),
                optimizer: optimizer(&fixture),
            };
            let mut strategy = Single::new(backend, &model, &settings).expect("enough memory");
            let training: Vec<Samples> = (0..steps)
                .map(|k| Samples::of(&*data, k * batch, batch))
                .collect();
            for samples in &training {
                strategy.step(samples.batch(), &mut Silent).expect("a step");
            }
            let samples = Samples::of(&*data, steps * batch, evaluated);
            let before = strategy.export().expect("export");
            check(
                &fixture,
                "stored",
                &strategy.evaluate(samples.batch()).expect("an evaluation"),
                kind,
            );
            let mut noise = Noise::default();
            let found = strategy
                .master()
                .evaluate_with_batch_statistics(samples.batch(), chunk, Some(&mut noise))
                .expect("an evaluation");
            check(&fixture, "batch", &found, kind);
            for (name, figure) in [
                (
                    "mean_noise",
                    noise
                        .layers
                        .iter()
                        .map(|layer| layer.mean)
                        .collect::<Vec<_>>(),
                ),
                (
                    "variance_noise",
                    noise.layers.iter().map(|layer| layer.variance).collect(),
                ),
            ] {
                let expected = &fixture.tensor(name).values;
                near(
                    &fixture,
                    name,
                    fixture.fp32_gap(name),
                    &figure,
                    expected,
                    kind,
                );
            }
            assert!(
                noise
                    .layers
                    .iter()
                    .all(|layer| layer.batches == evaluated / chunk)
            );
            assert!(
                strategy.export().expect("export") == before,
                "evaluation changes nothing"
            );
            let mut batches = training.iter().map(Samples::batch);
            strategy
                .master()
                .reestimate(|| batches.next())
                .expect("an estimate");
            check(
                &fixture,
                "precise",
                &strategy.evaluate(samples.batch()).expect("an evaluation"),
                kind,
            );
            for tensor in buffers(&mut strategy) {
                let name = format!("buffer.{}", tensor.name);
                let expected = &fixture.tensor(&name).values;
                near(
                    &fixture,
                    &name,
                    fixture.fp32_gap(&name),
                    &values(&tensor),
                    expected,
                    kind,
                );
            }
        }
    }
}

#[test]
fn chunks_that_fit_nowhere_are_refused_and_norms_of_samples_do_not_see_them() {
    let fixture = fixture::of_kind("learning").remove(0);
    let data = source(&fixture);
    let spec = preset("convnet");
    let input = data.shape().dimensions();
    for norm in ["layer", "batch"] {
        let norm = serde_json::from_value(norm.into()).expect("a norm");
        let model = resolve(&spec, &input, 10, norm, &NormOptions::default()).expect("a preset");
        let settings = SingleSettings {
            max_batch: 8,
            accumulation: 1,
            chunks: vec![4, 4],
            seed: 3,
            optimizer: optimizer(&fixture),
        };
        let mut strategy =
            Single::new(devices::whole().remove(0), &model, &settings).expect("enough memory");
        let samples = Samples::of(&*data, 0, 24);
        let stored = strategy.evaluate(samples.batch()).expect("an evaluation");
        let mut noise = Noise::default();
        let found = strategy
            .master()
            .evaluate_with_batch_statistics(samples.batch(), 4, Some(&mut noise))
            .expect("an evaluation");
        if model.norm == syncmark_engine::model::spec::Norm::Layer {
            assert_eq!((found, noise.layers.len()), (stored, 0));
        } else {
            assert_ne!(found.loss, stored.loss);
        }
        for chunk in [0, 9, 25] {
            let refused =
                strategy
                    .master()
                    .evaluate_with_batch_statistics(samples.batch(), chunk, None);
            assert!(refused.is_err(), "a chunk of {chunk}");
        }
    }
}

/// What dropout costs is its own gap: the masks of each sample are the same again and again, whatever the parts are that it is evaluated
/// in, and neither parameters, running statistics nor the masks of training notice.
#[test]
fn dropout_of_an_evaluation_is_by_sample_and_changes_nothing() {
    let fixture = fixture::of_kind("learning").remove(0);
    let data = source(&fixture);
    let input = data.shape().dimensions();
    let with = |p: f32, max_batch: usize| {
        let layers = serde_json::json!(["flatten", {"linear": {"features": 32}}, "norm", "relu", {"dropout": {"p": p}}, {"linear": {"features": "classes"}}]);
        let spec = serde_json::from_value(
            serde_json::json!({"name": "test", "input": input, "classes": 10, "layers": layers}),
        )
        .expect("a model");
        let norm = serde_json::from_value("batch".into()).expect("a norm");
        let model = resolve(&spec, &input, 10, norm, &NormOptions::default()).expect("a model");
        let settings = SingleSettings {
            max_batch,
            accumulation: 1,
            chunks: Vec::new(),
            seed: 3,
            optimizer: optimizer(&fixture),
        };
        Single::new(devices::whole().remove(0), &model, &settings).expect("enough memory")
    };
    let samples = Samples::of(&*data, 0, 24);
    let dropped = |strategy: &mut Single, masks| {
        strategy
            .master()
            .evaluate_with_dropout(samples.batch(), masks)
    };
    let (mut whole, mut parts) = (with(0.5, 24), with(0.5, 7));
    let stored = whole.evaluate(samples.batch()).expect("an evaluation");
    let before = whole.export().expect("export");
    let ten = dropped(&mut whole, 10).expect("an evaluation");
    assert_eq!((ten.samples, ten.labels), (240, 240));
    assert!(
        ten.loss > stored.loss,
        "{} with, {} without",
        ten.loss,
        stored.loss
    );
    assert_eq!(
        dropped(&mut whole, 10).expect("an evaluation"),
        ten,
        "the same masks"
    );
    let of_parts = dropped(&mut parts, 10).expect("an evaluation");
    assert_eq!(of_parts.errors, ten.errors, "masks follow the samples");
    assert!((of_parts.loss - ten.loss).abs() < 1e-5);
    let one = dropped(&mut whole, 1).expect("an evaluation");
    assert_ne!(one.loss, ten.loss, "every mask is another one");
    assert!(
        whole.export().expect("export") == before,
        "evaluation changes nothing"
    );
    // A step after it is the step without it.
    let mut other = with(0.5, 24);
    for strategy in [&mut whole, &mut other] {
        strategy.step(samples.batch(), &mut Silent).expect("a step");
    }
    assert!(whole.export().expect("export") == other.export().expect("export"));
    assert!(dropped(&mut whole, 0).is_err(), "no mask");
    let mut none = with(0.0, 24);
    let stored = none.evaluate(samples.batch()).expect("an evaluation");
    let without = dropped(&mut none, 1).expect("an evaluation");
    assert_eq!((without.loss, without.errors), (stored.loss, stored.errors));
}
