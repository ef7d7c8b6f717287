//! Gradients against finite differences of the forward pass, for every layer and norm, on every backend.
//!
//! The objective is L = Σ u·y for a fixed u, summed in f64. A derivative is taken with the five-point stencil
//! [8·(L(h) − L(−h)) − (L(2h) − L(−2h))]/(12h): its truncation error is of order h⁴, so h can be large enough that the
//! rounding of y in f32 does not matter.
mod cases;
#[path = "../devices/mod.rs"]
mod devices;
#[path = "../instructions/mod.rs"]
mod instructions;

use cases::{CASES, Case};
use devices::Device;
use syncmark_engine::backend::{HostSlice, HostSliceMut, Stream};
use syncmark_engine::layer::Mode;
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{NormOptions, lower};
use syncmark_engine::philox::{self, Purpose};
use syncmark_engine::program::{Program, ProgramSettings};
use syncmark_engine::tensor::Span;

/// Step of the stencil: a power of two, so that θ ± h is exact.
const H: f32 = 1.0 / 64.0;
/// Norm-wise relative error: y is good to about 1e-7, so a difference of sums of some dozens of them over H to a few 1e-5;
/// the stencil's truncation is below that for statistics over at least three values. A wrong term is wrong by far more.
const TOLERANCE: f64 = 3e-4;
/// Elements of a tensor that are checked on the backend that runs late: each costs four synchronized forward passes.
const LATE_ELEMENTS: usize = 12;

impl Case {
    fn device(&self, backend: Box<dyn syncmark_engine::backend::Backend>) -> Device {
        let layers: Vec<LayerSpec> =
            serde_json::from_str(self.layers).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let spec = ModelSpec {
            name: self.name.into(),
            input: self.input.to_vec(),
            classes: 3,
            layers,
        };
        let options = NormOptions::default();
        let model = lower(&spec, self.input, 3, Norm::None, &options)
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let (max_batch, max_chunks) = (self.chunks.iter().sum::<usize>() + 1, self.chunks.len());
        let settings = ProgramSettings {
            max_batch,
            max_chunks,
            world_size: 1,
            seed: 5,
            input_gradient: true,
            shards: 1,
        };
        Device::new(backend, |backend| {
            Program::with_settings(backend, &model, settings).expect("enough memory")
        })
    }
}

/// Inputs that are all different by at least 0.125 and that far from 0, in random order: no kink of ReLU and no change of a
/// maximum lies within the stencil.
fn spread(len: usize) -> Vec<f32> {
    let mut values: Vec<f32> = (0..len)
        .map(|i| (i as f32 - len as f32 / 2.0 + 0.25) * 0.125)
        .collect();
    philox::Sequence::shuffle(3, 0).shuffle_slice(&mut values);
    // A few deviations at most, so that norms see numbers of the size of 1.
    values
        .iter()
        .map(|v| if len > 64 { *v * 0.5 } else { *v })
        .collect()
}

fn random(stream: u32, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    philox::fill_symmetric(9, Purpose::Inputs, stream, 0, 1.0, &mut values);
    values
}

struct Check {
    device: Device,
    mode: Mode,
    chunks: &'static [usize],
    upstream: Vec<f32>,
}

impl Check {
    fn set(&mut self, span: Span, values: &[f32]) {
        self.device
            .backend
            .upload(Stream::Compute, HostSlice::F32(values), span)
            .expect("upload");
    }

    fn get(&mut self, span: Span) -> Vec<f32> {
        let mut values = vec![0.0; span.len()];
        self.device
            .backend
            .download(span, HostSliceMut::F32(&mut values))
            .expect("download");
        values
    }

    /// L = Σ u·y at the present input and parameters.
    fn objective(&mut self) -> f64 {
        self.device.forward(self.mode, self.chunks);
        let output = self
            .device
            .program
            .cut(self.device.program.output(), self.chunks.iter().sum());
        let y = self.get(output);
        y.iter()
            .zip(&self.upstream)
            .map(|(y, u)| f64::from(*y) * f64::from(*u))
            .sum()
    }

    /// dL/dθ of the elements `chosen` of `span`, by differences.
    fn differences(&mut self, span: Span, values: &[f32], chosen: &[usize]) -> Vec<f64> {
        let mut at = |i: usize, offset: f32| {
            let mut moved = values.to_vec();
            moved[i] += offset;
            self.set(span, &moved);
            self.objective()
        };
        let derivative = |i: &usize| {
            let near = at(*i, H) - at(*i, -H);
            let far = at(*i, 2.0 * H) - at(*i, -2.0 * H);
            (8.0 * near - far) / (12.0 * f64::from(H))
        };
        let found = chosen.iter().map(derivative).collect();
        self.set(span, values);
        found
    }
}

fn compare(
    case: &Case,
    what: &str,
    backend: &str,
    gradient: &[f32],
    differences: &[f64],
    chosen: &[usize],
) {
    let pairs = chosen
        .iter()
        .zip(differences)
        .map(|(i, d)| (f64::from(gradient[*i]), *d));
    let error = pairs.map(|(g, d)| (g - d).powi(2)).sum::<f64>().sqrt();
    let scale = differences.iter().map(|d| d * d).sum::<f64>().sqrt();
    assert!(
        scale > 0.0,
        "{} {what}: the differences are all zero, so nothing is checked",
        case.name
    );
    assert!(
        error <= TOLERANCE * scale,
        "{} {what} on {backend}: error {error:.2e} of {scale:.2e}",
        case.name
    );
}

fn run(case: &Case, backend: Box<dyn syncmark_engine::backend::Backend>) {
    let name = backend.name();
    let device = case.device(backend);
    let batch: usize = case.chunks.iter().sum();
    let program = &device.program;
    let input = program.cut(program.input(), batch);
    let (output, d_output) = (
        program.cut(program.output(), batch),
        program.cut(program.d_output(), batch),
    );
    let d_input = program.cut(program.d_input().expect("it was asked for"), batch);
    let (parameters, gradients, floats) = (
        program.parameters(),
        program.gradients(),
        program.buffers().floats,
    );
    let upstream = random(1, output.len());
    let mut check = Check {
        device,
        mode: case.mode,
        chunks: case.chunks,
        upstream: upstream.clone(),
    };
    let x = spread(input.len());
    check.set(input, &x);
    // γ and β that are neither 1 nor 0, and running statistics of another batch.
    let theta: Vec<f32> = random(2, parameters.len())
        .iter()
        .map(|v| 0.75 + 0.5 * v)
        .collect();
    if !parameters.is_empty() {
        check.set(parameters, &theta);
    }
    if !floats.is_empty() {
        let statistics: Vec<f32> = random(3, floats.len())
            .iter()
            .map(|v| 1.0 + 0.5 * v)
            .collect();
        check.set(floats, &statistics);
    }
    check.objective();
    check.set(d_output, &upstream);
    check.device.backward(case.mode, case.chunks);
    let most = if name == "deferred" {
        LATE_ELEMENTS
    } else {
        usize::MAX
    };
    let chosen =
        |len: usize| -> Vec<usize> { (0..len).step_by(len.div_ceil(most).max(1)).collect() };
    let gradient = check.get(d_input);
    let parameter_gradient = if parameters.is_empty() {
        Vec::new()
    } else {
        check.get(gradients)
    };
    let some = chosen(x.len());
    let differences = check.differences(input, &x, &some);
    compare(case, "input", name, &gradient, &differences, &some);
    if !parameters.is_empty() {
        let some = chosen(theta.len());
        let differences = check.differences(parameters, &theta, &some);
        compare(
            case,
            "parameters",
            name,
            &parameter_gradient,
            &differences,
            &some,
        );
    }
}

#[test]
fn gradients_are_those_of_the_forward_pass() {
    for case in CASES {
        for backend in devices::all() {
            run(case, backend);
        }
    }
}

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
