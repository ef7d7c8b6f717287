//! Every layer and norm, forward and backward, in training and evaluation, against PyTorch in f64.
use syncmark_engine::backend::Backend;
use syncmark_engine::layer::Mode;
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{Model, NormOptions, lower};
use syncmark_engine::program::{Program, ProgramSettings};
use syncmark_engine::shape::Shape;

use crate::devices::{self, Device};
use crate::fixture::{self, Fixture, values};

/// Norm-wise relative error of a tensor. A single-precision result of a few dozen roundings is good to about 1e-6;
/// a wrong formula is wrong by far more.
const TOLERANCE: f64 = 1e-5;
/// Inputs of mean 4096 and deviation 1: the mean, rounded to f32, is off by up to 2.4e-4 deviations, and so is every x̂. A
/// sum over them may be off by a few times that, relative to its size. E[x²] − E[x]² would lose the variance altogether.
const FAR_TOLERANCE: f64 = 1e-3;
/// With two values per statistic the gradient is the difference of numbers that are nearly equal, in PyTorch too: an
/// error may be this many times PyTorch's own.
const GAPS: f64 = 3.0;

fn allowed(fixture: &Fixture, name: &str, scale: f64, elements: usize) -> f64 {
    if fixture.name.ends_with("_far_mean") {
        FAR_TOLERANCE * scale
    } else if fixture.name == "batch_norm_2d_one_sample" {
        (TOLERANCE * scale).max(GAPS * fixture.fp32_gap(name) * (elements as f64).sqrt())
    } else {
        TOLERANCE * scale
    }
}

/// Checks one tensor.
pub fn check(fixture: &Fixture, name: &str, found: &[f64], backend: &str) {
    let expected = &fixture.tensor(name).values;
    assert_eq!(
        found.len(),
        expected.len(),
        "{} {name}: number of elements",
        fixture.name
    );
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let scale = norm(&mut expected.iter().copied());
    let allowed = allowed(fixture, name, scale, found.len());
    assert!(
        error <= allowed,
        "{} {name} on {backend}: error {error:.3e} of {scale:.3e}, allowed {allowed:.3e}",
        fixture.name
    );
}

/// What a fixture of a layer says about itself.
pub struct Case {
    pub model: Model,
    pub mode: Mode,
    pub batch: usize,
    pub steps: usize,
    pub chunks: Vec<usize>,
}

impl Case {
    pub fn of(fixture: &Fixture) -> Self {
        let layer: LayerSpec = fixture.json("layer");
        let input: Vec<usize> = fixture.json("input_shape");
        let spec = ModelSpec {
            name: fixture.name.clone(),
            input: input.clone(),
            classes: 10,
            layers: vec![layer],
        };
        let model = lower(&spec, &input, 10, Norm::None, &NormOptions::default())
            .unwrap_or_else(|error| panic!("{}: {error}", fixture.name));
        let mode = match fixture.text("mode") {
            "train" => Mode::Train,
            "eval" => Mode::Eval,
            other => panic!("{}: mode {other}", fixture.name),
        };
        let (batch, steps, chunks) = (
            fixture.json("batch"),
            fixture.json("steps"),
            fixture.json("chunks"),
        );
        Self {
            model,
            mode,
            batch,
            steps,
            chunks,
        }
    }

    pub fn build(
        &self,
        backend: &mut dyn Backend,
        fixture: &Fixture,
        max_batch: usize,
        world_size: usize,
    ) -> Program {
        let max_chunks = self.chunks.len();
        let settings = ProgramSettings {
            max_batch,
            max_chunks,
            world_size,
            seed: 0,
            input_gradient: true,
            shards: 1,
        };
        let program =
            Program::with_settings(backend, &self.model, settings).expect("enough memory");
        program
            .import(backend, &fixture.initial())
            .unwrap_or_else(|error| panic!("{}: {error}", fixture.name));
        program
    }

    /// Step `step` of a tensor that has a step axis where there are several.
    pub fn at(&self, fixture: &Fixture, name: &str, step: usize) -> Vec<f32> {
        let all = fixture.tensor(name).f32();
        let len = all.len() / self.steps;
        all[step * len..(step + 1) * len].to_vec()
    }
}

fn run(fixture: &Fixture, backend: Box<dyn Backend>) {
    let case = Case::of(fixture);
    let kind = backend.name();
    // Room for more samples than there are, so that spans which are not cut to the batch show.
    let mut device = Device::new(backend, |backend| {
        case.build(backend, fixture, case.batch + 2, 1)
    });
    let (input, output) = (case.model.input, case.model.output);
    let (mut outputs, mut d_inputs) = (Vec::new(), Vec::new());
    for step in 0..case.steps {
        device.write(
            device.program.input(),
            input,
            &case.at(fixture, "input", step),
        );
        device.forward(case.mode, &case.chunks);
        device.write(
            device.program.d_output(),
            output,
            &case.at(fixture, "upstream", step),
        );
        device.backward(case.mode, &case.chunks);
        outputs.extend(wide(&device.read(
            device.program.output(),
            output,
            case.batch,
        )));
        if let Some(d_input) = device.program.d_input() {
            d_inputs.extend(wide(&device.read(d_input, input, case.batch)));
        }
    }
    check(fixture, "output", &outputs, kind);
    assert_eq!(
        d_inputs.is_empty(),
        case.model.vocabulary.is_some(),
        "{}: all but tokens have a gradient",
        fixture.name
    );
    if !d_inputs.is_empty() {
        check(fixture, "d_input", &d_inputs, kind);
    }
    for formula in ["output", "d_input"] {
        let name = format!("formula.{formula}");
        if fixture.names().any(|found| found == name) {
            check_formula(
                fixture,
                &name,
                if formula == "output" {
                    &outputs
                } else {
                    &d_inputs
                },
            );
        }
    }
    check_gradients(fixture, &mut device, "d_param.");
    check_buffers(fixture, &mut device);
}

/// The closed form needs no gap: it is the very formula.
fn check_formula(fixture: &Fixture, name: &str, found: &[f64]) {
    let expected = &fixture.tensor(name).values;
    let error: f64 = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let scale: f64 = expected.iter().map(|b| b * b).sum();
    assert!(
        error.sqrt() <= TOLERANCE * scale.sqrt(),
        "{} {name}: {found:?} is not {expected:?}",
        fixture.name
    );
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Checks the parameters' gradients against the tensors `<prefix><parameter>`.
pub fn check_gradients(fixture: &Fixture, device: &mut Device, prefix: &str) {
    let kind = device.backend.name();
    let gradients = device.program.gradients();
    let found = device
        .program
        .export_arena(device.backend.as_mut(), gradients, prefix)
        .expect("export");
    for tensor in &found {
        assert_eq!(
            tensor.shape,
            fixture.tensor(&tensor.name).shape,
            "{} {}",
            fixture.name,
            tensor.name
        );
        check(fixture, &tensor.name, &values(tensor), kind);
    }
    let expected = fixture
        .with_prefix(prefix)
        .into_iter()
        .filter(|(name, _)| !name.starts_with("rank"));
    assert_eq!(
        found.len(),
        expected.count(),
        "{}: parameters",
        fixture.name
    );
}

/// Checks running statistics; counters must be equal.
pub fn check_buffers(fixture: &Fixture, device: &mut Device) {
    let kind = device.backend.name();
    let exported = device
        .program
        .export(device.backend.as_mut())
        .expect("export");
    let expected = fixture.with_prefix("buffer_after.");
    for (name, buffer) in &expected {
        let found = exported.iter().find(|tensor| tensor.name == *name);
        let found = found.unwrap_or_else(|| panic!("{}: no buffer {name}", fixture.name));
        if buffer.integer {
            assert_eq!(
                values(found),
                buffer.values,
                "{} {name} on {kind}",
                fixture.name
            );
        } else {
            check(
                fixture,
                &format!("buffer_after.{name}"),
                &values(found),
                kind,
            );
        }
    }
    assert_eq!(
        expected.len(),
        device.program.buffers().table.len(),
        "{}: buffers",
        fixture.name
    );
}

/// The shapes of `upstream` and of the output agree: lowering and PyTorch propagate shapes alike.
fn check_shapes(fixture: &Fixture) {
    let case = Case::of(fixture);
    let upstream = &fixture.tensor("upstream").shape;
    let sample = &upstream[upstream.len() - case.model.output.dimensions().len()..];
    assert_eq!(
        Shape::from_dimensions(sample),
        Some(case.model.output),
        "{}",
        fixture.name
    );
}

#[test]
fn every_layer_and_norm_agrees_with_pytorch() {
    for fixture in fixture::of_kind("layer") {
        check_shapes(&fixture);
        for backend in devices::all() {
            run(&fixture, backend);
        }
    }
}
