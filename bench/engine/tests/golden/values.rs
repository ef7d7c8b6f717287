//! The loss against PyTorch in f64, and Philox numbers, synthetic data and initial parameters, which must be equal.
use serde::Deserialize;
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::data::{Dataset, Synthetic};
use syncmark_engine::layout::Layout;
use syncmark_engine::loss::{Errors, Loss};
use syncmark_engine::model::{NormOptions, resolve};
use syncmark_engine::philox::{self, Purpose};
use syncmark_engine::program::Program;
use syncmark_engine::shape::Shape;
use syncmark_engine::tensor::Dtype;

use crate::devices;
use crate::fixture::{self, Fixture, values};
use crate::layer::{check, wide};
use crate::training::preset;

#[test]
fn softmax_cross_entropy_agrees_with_pytorch() {
    for fixture in fixture::of_kind("loss") {
        for mut backend in devices::all() {
            loss(&fixture, backend.as_mut());
        }
    }
}

fn loss(fixture: &Fixture, backend: &mut dyn Backend) {
    let input = fixture.tensor("input");
    let (batch, classes) = (input.shape[0], input.shape[1]);
    let loss = Loss::new(backend, classes, 1, batch).expect("enough memory");
    let logits = backend
        .allocate(Category::Activations, Dtype::F32, batch * classes)
        .expect("enough memory");
    let d_logits = backend
        .allocate(Category::Activations, Dtype::F32, batch * classes)
        .expect("enough memory");
    let labels: Vec<i32> = fixture
        .tensor("labels")
        .values
        .iter()
        .map(|label| *label as i32)
        .collect();
    backend
        .upload(Stream::Compute, HostSlice::F32(&input.f32()), logits)
        .expect("upload");
    loss.upload_labels(backend, &labels).expect("upload");
    loss.compute(backend, logits, d_logits, batch, 1.0 / batch as f32)
        .expect("loss");
    let value = loss.read(backend).expect("download");
    check(fixture, "output", &[f64::from(value)], backend.name());
    let mut gradient = vec![0.0; batch * classes];
    backend
        .download(d_logits, HostSliceMut::F32(&mut gradient))
        .expect("download");
    check(fixture, "d_input", &wide(&gradient), backend.name());
    let wrong = input
        .values
        .chunks(classes)
        .zip(&labels)
        .filter(|(row, label)| {
            let largest = (0..classes).max_by(|a, b| row[*a].total_cmp(&row[*b]));
            largest != Some(**label as usize)
        });
    assert_eq!(
        loss.errors(backend, logits, batch).expect("errors"),
        Errors {
            wrong: wrong.count(),
            labels: batch,
        },
        "{}",
        fixture.name
    );
}

#[derive(Deserialize)]
struct Draw {
    name: String,
    seed: u64,
    stream: u32,
    purpose: u32,
    first: u64,
    count: usize,
}

const PURPOSES: [Purpose; 5] = [
    Purpose::Parameters,
    Purpose::Dropout,
    Purpose::Inputs,
    Purpose::Shuffle,
    Purpose::Labels,
];

#[test]
fn philox_fixtures_are_reproduced_exactly() {
    for fixture in fixture::of_kind("philox") {
        match fixture.name.as_str() {
            "philox_words" => words(&fixture),
            "philox_batch" => batch(&fixture),
            "philox_convnet" => initial(&fixture),
            other => panic!("{other}: no test reads this fixture"),
        }
    }
}

fn words(fixture: &Fixture) {
    let draws: Vec<Draw> = fixture.json("draws");
    for draw in &draws {
        let purpose = PURPOSES[draw.purpose as usize];
        let drawn: Vec<u32> = (0..draw.count as u64)
            .map(|element| philox::word(draw.seed, purpose, draw.stream, draw.first + element))
            .collect();
        let expected = &fixture.tensor(&format!("words.{}", draw.name)).values;
        assert_eq!(
            drawn
                .iter()
                .map(|word| f64::from(*word))
                .collect::<Vec<_>>(),
            *expected,
            "{}",
            draw.name
        );
        let uniforms: Vec<f64> = drawn
            .iter()
            .map(|word| f64::from(philox::uniform(*word)))
            .collect();
        assert_eq!(
            uniforms,
            fixture.tensor(&format!("uniform.{}", draw.name)).values,
            "{}",
            draw.name
        );
    }
    let column = |name: &str| {
        fixture
            .tensor(name)
            .values
            .iter()
            .map(|v| *v as u32)
            .collect::<Vec<_>>()
    };
    let (counters, keys, outputs) = (
        column("kat.counter"),
        column("kat.key"),
        column("kat.output"),
    );
    for ((counter, key), output) in counters
        .as_chunks()
        .0
        .iter()
        .zip(keys.as_chunks().0)
        .zip(outputs.as_chunks().0)
    {
        assert_eq!(philox::block(*key, *counter), *output);
    }
}

fn batch(fixture: &Fixture) {
    let (first, count): (usize, usize) = (fixture.json("first"), fixture.json("count"));
    let dimensions: Vec<usize> = fixture.json("input_shape");
    let shape = Shape::from_dimensions(&dimensions).expect("an image");
    let synthetic = Synthetic {
        len: first + count,
        shape,
        classes: fixture.json("classes"),
        seed: fixture.json("seed"),
    };
    let mut all = Vec::new();
    for sample in first..first + count {
        let mut memory = vec![0.0; shape.elements()];
        synthetic.write(sample, &mut memory);
        let mut file = memory.clone();
        Layout::activation(shape, 1).to_file(&memory, &mut file);
        all.extend(wide(&file));
    }
    assert_eq!(all, fixture.tensor("input").values);
    let labels: Vec<f64> = (first..first + count)
        .map(|sample| f64::from(synthetic.label(sample)))
        .collect();
    assert_eq!(labels, fixture.tensor("labels").values);
}

fn initial(fixture: &Fixture) {
    let spec = preset(fixture.text("model"));
    let norm = serde_json::from_value(fixture.text("norm").into()).expect("a norm");
    let model = resolve(
        &spec,
        &spec.input,
        spec.classes,
        norm,
        &NormOptions::default(),
    )
    .expect("a preset");
    let seed = fixture.json("seed");
    for mut backend in devices::all() {
        let program =
            Program::build(backend.as_mut(), &model, 1, 1, 1, seed).expect("enough memory");
        let parameters = program
            .export_arena(backend.as_mut(), program.parameters(), "param.")
            .expect("export");
        assert_eq!(parameters.len(), fixture.with_prefix("param.").len());
        for tensor in &parameters {
            let expected = fixture.tensor(&tensor.name);
            assert_eq!(tensor.shape, expected.shape, "{}", tensor.name);
            assert_eq!(values(tensor), expected.values, "{}", tensor.name);
        }
    }
}
