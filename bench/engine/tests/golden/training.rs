//! Ten steps of the presets, with each optimizer, against PyTorch in f64, each step within a multiple of PyTorch's own f32 distance.
use std::path::PathBuf;

use syncmark_engine::backend::{Backend, Stream};
use syncmark_engine::data::{Dataset, Digits, Masking, Predict, Split, Synthetic, SyntheticTokens};
use syncmark_engine::kernel::Kernel;
use syncmark_engine::layer::Mode;
use syncmark_engine::loss::Loss;
use syncmark_engine::model::spec::{LayerSpec, ModelSpec};
use syncmark_engine::model::{NormOptions, resolve};
use syncmark_engine::optim::{Optimizer, OptimizerSettings};
use syncmark_engine::program::{NamedTensor, Program};
use syncmark_engine::shape::Shape;

use crate::devices::{self, Device};
use crate::fixture::{self, Fixture, Tensor, values};
use crate::layer::wide;
use crate::schedules::optimizer;

/// How many times PyTorch's own distance between float32 and float64 a result may be away.
const GAPS: f64 = 3.0;
/// Where PyTorch's gap happens to be nearly nothing, this many units in the last place of f32 are allowed as well: a loss
/// is a mean of several numbers, each rounded.
const FLOOR: f64 = 4.0 * f32::EPSILON as f64;

/// A file of scenarios/models.
pub fn preset(name: &str) -> ModelSpec {
    let path = scenarios().join(format!("models/{name}.toml"));
    toml::from_str(&std::fs::read_to_string(path).expect("a preset")).expect("a model file")
}

fn scenarios() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scenarios")
}

/// The data set of a fixture.
pub fn source(fixture: &Fixture) -> Box<dyn Dataset> {
    let (batch, steps): (usize, usize) = (fixture.json("batch"), fixture.json("steps_trained"));
    match fixture.text("source") {
        "digits" => {
            let file = |name: &str| {
                std::fs::read(scenarios().join("data").join(name)).expect("the digits")
            };
            let (images, labels) = (
                file("digits.images.idx3-ubyte"),
                file("digits.labels.idx1-ubyte"),
            );
            Box::new(Digits::parse(&images, &labels, Split::All).expect("the digits"))
        }
        "synthetic" => {
            let shape = Shape::from_dimensions(&fixture.json::<Vec<usize>>("input_shape"))
                .expect("a shape");
            let (classes, seed) = (fixture.json("classes"), fixture.json("source_seed"));
            Box::new(Synthetic {
                len: batch * steps,
                shape,
                classes,
                seed,
            })
        }
        "synthetic-tokens" => {
            let [length] = fixture.json("input_shape");
            let predict = match fixture.json("hidden_only") {
                true => Predict::Hidden,
                false => Predict::All,
            };
            Box::new(SyntheticTokens {
                len: batch * steps,
                length,
                shortest: fixture.json("shortest"),
                vocabulary: fixture.json("classes"),
                masking: Masking {
                    share: fixture.json("share"),
                    predict,
                    seed: fixture.json("source_seed"),
                },
            })
        }
        other => panic!("{}: source {other}", fixture.name),
    }
}

/// The layers with dropout's probabilities at 0, where both sides compute the same.
fn without_dropout(layers: &mut [LayerSpec]) {
    for layer in layers {
        match layer {
            LayerSpec::Dropout(dropout) => dropout.p = 0.0,
            LayerSpec::Attention(attention) => attention.dropout = 0.0,
            LayerSpec::Residual(residual) => {
                without_dropout(&mut residual.body);
                without_dropout(&mut residual.shortcut);
            }
            LayerSpec::Repeat(repeat) => without_dropout(&mut repeat.layers),
            _ => {}
        }
    }
}

/// Checks a number, or the numbers of a tensor one by one, against PyTorch's gap.
pub fn near(
    fixture: &Fixture,
    name: &str,
    gap: f64,
    found: &[f64],
    expected: &[f64],
    backend: &str,
) {
    assert_eq!(found.len(), expected.len(), "{} {name}", fixture.name);
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let allowed = GAPS * gap + FLOOR * largest;
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let error = (a - b).abs();
        assert!(
            error <= allowed,
            "{} {name}[{i}] on {backend}: {a} is not {b}: {error:.3e} > {allowed:.3e}",
            fixture.name
        );
    }
}

pub fn l2(tensor: &NamedTensor) -> f64 {
    values(tensor).iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// One training run on one device.
pub struct Run<'a> {
    fixture: &'a Fixture,
    pub device: Device,
    data: Box<dyn Dataset>,
    loss: Loss,
    optimizer: Optimizer,
    batch: usize,
}

impl<'a> Run<'a> {
    pub fn new(fixture: &'a Fixture, backend: Box<dyn Backend>) -> Self {
        let data = source(fixture);
        let norm = serde_json::from_value(fixture.text("norm").into()).expect("a norm");
        let mut spec = preset(fixture.text("model"));
        without_dropout(&mut spec.layers);
        let mut options = NormOptions::default();
        if fixture.says("norm_settings") {
            options.batch = fixture.json("norm_settings");
        }
        let input = data.shape().dimensions();
        let model = resolve(&spec, &input, data.classes(), norm, &options).expect("a preset");
        let (batch, seed) = (fixture.json("batch"), fixture.json("seed"));
        let mut device = Device::new(backend, |backend| {
            Program::build(backend, &model, batch, 1, 1, seed).expect("enough memory")
        });
        let backend = device.backend.as_mut();
        let loss = Loss::new(backend, data.classes(), data.labels_per_sample(), batch)
            .expect("enough memory");
        let settings = optimizer(fixture);
        let optimizer = Optimizer::new(backend, &device.program, settings).expect("enough memory");
        Self {
            fixture,
            device,
            data,
            loss,
            optimizer,
            batch,
        }
    }

    /// Forward, loss and backward of step `k`; returns the loss.
    pub fn gradients(&mut self, k: usize) -> f32 {
        let Self {
            fixture,
            device,
            data,
            loss,
            batch,
            ..
        } = self;
        let elements = data.shape().elements();
        let each = data.labels_per_sample();
        let (mut inputs, mut labels) = (vec![0.0; *batch * elements], vec![0; *batch * each]);
        for sample in 0..*batch {
            data.write(
                k * *batch + sample,
                &mut inputs[sample * elements..(sample + 1) * elements],
            );
            let own = &mut labels[sample * each..(sample + 1) * each];
            data.write_labels(k * *batch + sample, own);
        }
        let expected = &fixture.tensor("labels").values[k * *batch * each..(k + 1) * *batch * each];
        assert_eq!(
            labels.iter().map(|l| f64::from(*l)).collect::<Vec<_>>(),
            expected,
            "{}",
            fixture.name
        );
        let input = device.program.input();
        let upload = syncmark_engine::backend::HostSlice::F32(&inputs);
        device
            .backend
            .upload(syncmark_engine::backend::Stream::Compute, upload, input)
            .expect("upload");
        if k == 0 {
            let file = device.read(input, data.shape(), *batch);
            assert_eq!(
                wide(&file[..16]),
                fixture.tensor("input_head").values,
                "{}: input",
                fixture.name
            );
        }
        device.forward(Mode::Train, &[*batch]);
        let (output, d_output) = (device.program.output(), device.program.d_output());
        loss.upload_labels(device.backend.as_mut(), &labels)
            .expect("upload");
        loss.compute(
            device.backend.as_mut(),
            output,
            d_output,
            *batch,
            1.0 / *batch as f32,
        )
        .expect("loss");
        device.backward(Mode::Train, &[*batch]);
        loss.read(device.backend.as_mut()).expect("download")
    }

    /// Update of step `k`, at the schedule's rate.
    pub fn update(&mut self, k: usize) {
        let (backend, state) = (self.device.backend.as_mut(), self.device.state);
        let settings: &OptimizerSettings = self.optimizer.settings();
        let rate = settings.schedule.rate(settings.learning_rate(), k as u64);
        state.set_counters(backend, k as i32, 0).expect("upload");
        state.set_learning_rate(backend, rate).expect("upload");
        self.optimizer.step(backend, state).expect("step");
        let to = self.device.program.gradients();
        let zero = Kernel::Fill { to, value: 0.0 };
        backend.launch(Stream::Compute, zero).expect("zero");
    }

    /// Checks L2 norms. How far one norm is from its float64 value is luck, so the yardstick is the largest relative gap
    /// among all of them. Initial parameters are equal bit for bit: there is no gap, only the rounding of the norm.
    fn check_norms(&self, prefix: &str, tensors: &[NamedTensor]) {
        let relative = |(name, norm): (String, &Tensor)| {
            let gap = self.fixture.fp32_gap(&format!("{prefix}{name}"));
            if norm.values[0] > 0.0 {
                gap / norm.values[0]
            } else {
                0.0
            }
        };
        let trained = prefix != "initial_norm.";
        let norms = self
            .fixture
            .with_prefix(prefix)
            .into_iter()
            .filter(|_| trained);
        let largest = norms.map(relative).fold(0.0, f64::max);
        for tensor in tensors {
            let name = format!("{prefix}{}", tensor.name);
            let expected = &self.fixture.tensor(&name).values;
            let gap = largest * expected[0];
            near(
                self.fixture,
                &name,
                gap,
                &[l2(tensor)],
                expected,
                self.device.backend.name(),
            );
        }
        assert_eq!(
            tensors.len(),
            self.fixture.with_prefix(prefix).len(),
            "{}: {prefix}",
            self.fixture.name
        );
    }

    /// The gradients as backward left them.
    pub fn export_gradients(&mut self) -> Vec<NamedTensor> {
        let (program, backend) = (&self.device.program, self.device.backend.as_mut());
        program
            .export_arena(backend, program.gradients(), "")
            .expect("export")
    }

    /// Parameters and buffers.
    pub fn export(&mut self) -> Vec<NamedTensor> {
        self.device
            .program
            .export(self.device.backend.as_mut())
            .expect("export")
    }

    fn check(mut self) {
        let kind = self.device.backend.name();
        let initial = self.export();
        self.check_norms("initial_norm.", &initial);
        let (losses, gaps) = (
            self.fixture.tensor("losses"),
            self.fixture.tensor("losses_gap"),
        );
        let steps: usize = self.fixture.json("steps_trained");
        for k in 0..steps {
            let loss = f64::from(self.gradients(k));
            near(
                self.fixture,
                &format!("losses[{k}]"),
                gaps.values[k],
                &[loss],
                &losses.values[k..=k],
                kind,
            );
            if k == 0 {
                let gradients = self.export_gradients();
                self.check_norms("first_gradient_norm.", &gradients);
            }
            self.update(k);
        }
        let last = self.export();
        self.check_norms("final_norm.", &last);
        let full = self.fixture.with_prefix("final.");
        for (name, expected) in &full {
            let found = last
                .iter()
                .find(|tensor| tensor.name == *name)
                .expect("a tensor of the model");
            let name = format!("final.{name}");
            near(
                self.fixture,
                &name,
                self.fixture.fp32_gap(&name),
                &values(found),
                &expected.values,
                kind,
            );
        }
        assert!(
            full.is_empty() || full.len() == last.len(),
            "{}: final tensors",
            self.fixture.name
        );
    }
}

#[test]
fn ten_steps_stay_within_three_times_pytorchs_own_float32_distance() {
    for fixture in fixture::of_kind("training") {
        for backend in devices::training() {
            Run::new(&fixture, backend).check();
        }
    }
}
