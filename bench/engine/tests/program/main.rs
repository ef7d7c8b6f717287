//! Programs: arenas in gradient-ready order, names, state, batches, chunks, and dropout's masks.
#[path = "../devices/mod.rs"]
mod devices;
mod dropout;
mod narrow;
mod state;

use devices::Device;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{BackendError, Category, Stream};
use syncmark_engine::kernel::Kernel;
use syncmark_engine::layer::Mode;
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{Model, NormOptions, lower};
use syncmark_engine::optim::{Optimizer, OptimizerSettings, SgdSettings};
use syncmark_engine::philox::{self, Purpose};
use syncmark_engine::program::{BuildError, NamedTensor, Program, TensorData};

const NET: &str = r#"[{"conv2d":{"channels":4,"kernel":3,"padding":1}},"norm","relu",
    {"residual":{"body":[{"conv2d":{"channels":4,"kernel":1}},"norm"],"shortcut":[{"conv2d":{"channels":4,"kernel":1}}]}},
    {"max-pool":{"kernel":2}},"flatten",{"linear":{"features":"classes"}}]"#;
const INPUT: [usize; 3] = [2, 4, 6];

fn model(layers: &str, norm: Norm) -> Model {
    let layers: Vec<LayerSpec> = serde_json::from_str(layers).expect("layers");
    let spec = ModelSpec {
        name: "test".into(),
        input: INPUT.to_vec(),
        classes: 3,
        layers,
    };
    lower(&spec, &INPUT, 3, norm, &NormOptions::default()).expect("a model")
}

fn build(
    backend: Box<dyn syncmark_engine::backend::Backend>,
    model: &Model,
    max_batch: usize,
    max_chunks: usize,
) -> Device {
    Device::new(backend, |b| {
        Program::build(b, model, max_batch, max_chunks, 1, 11).expect("enough memory")
    })
}

fn random(stream: u32, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    philox::fill_symmetric(1, Purpose::Inputs, stream, 0, 1.0, &mut values);
    values
}

/// Forward and backward of random data; returns the output.
fn pass(device: &mut Device, chunks: &[usize]) -> Vec<f32> {
    let batch = chunks.iter().sum();
    let (input, output) = (device.program.input_shape(), device.program.output_shape());
    device.write(
        device.program.input(),
        input,
        &random(0, input.elements() * batch),
    );
    device.forward(Mode::Train, chunks);
    device.write(
        device.program.d_output(),
        output,
        &random(1, output.elements() * batch),
    );
    device.backward(Mode::Train, chunks);
    device.read(device.program.output(), output, batch)
}

fn export(device: &mut Device) -> Vec<NamedTensor> {
    device
        .program
        .export(device.backend.as_mut())
        .expect("export")
}

fn gradients(device: &mut Device) -> Vec<f32> {
    let span = device.program.gradients();
    let tensors = device
        .program
        .export_arena(device.backend.as_mut(), span, "")
        .expect("export");
    tensors
        .iter()
        .flat_map(|tensor| floats(tensor).to_vec())
        .collect()
}

fn floats(tensor: &NamedTensor) -> &[f32] {
    match &tensor.data {
        TensorData::F32(values) => values,
        TensorData::I64(_) => panic!("{} holds integers", tensor.name),
    }
}

#[test]
fn names_and_order_are_pytorchs() {
    let mut device = build(devices::cpu(), &model(NET, Norm::Batch), 2, 1);
    let names: Vec<String> = export(&mut device)
        .into_iter()
        .map(|tensor| tensor.name)
        .collect();
    let norm = |index: usize| {
        [
            "weight",
            "bias",
            "running_mean",
            "running_var",
            "num_batches_tracked",
        ]
        .map(|name| format!("{index}.batch-norm.{name}"))
    };
    let mut expected = vec!["0.conv2d.weight".to_owned()];
    expected.extend(norm(1));
    expected.push("2.conv2d.weight".into());
    expected.extend(norm(3));
    expected.extend(
        [
            "4.conv2d.weight",
            "4.conv2d.bias",
            "5.linear.weight",
            "5.linear.bias",
        ]
        .map(str::to_owned),
    );
    assert_eq!(names, expected);
}

#[test]
fn gradients_become_ready_from_the_start_of_the_arena() {
    let device = build(devices::cpu(), &model(NET, Norm::Batch), 2, 1);
    let program = &device.program;
    let mut next = 0;
    for i in (0..program.len()).rev() {
        let ready = program.ready_after(i);
        assert_eq!(ready.start, next, "node {i}");
        for parameter in program
            .table()
            .iter()
            .filter(|parameter| parameter.node == i)
        {
            assert!(
                ready.start <= parameter.range.start && parameter.range.end <= ready.end,
                "{}",
                parameter.name
            );
        }
        next = ready.end;
    }
    assert_eq!(next, program.gradients().len());
    let mut covered: Vec<usize> = program
        .table()
        .iter()
        .flat_map(|parameter| parameter.range.clone())
        .collect();
    covered.sort_unstable();
    assert_eq!(
        covered,
        (0..next).collect::<Vec<_>>(),
        "every element belongs to one parameter"
    );
}

#[test]
fn what_is_ready_after_a_node_is_never_written_again() {
    for backend in devices::all() {
        let mut device = build(backend, &model(NET, Norm::Batch), 3, 1);
        pass(&mut device, &[3]);
        let whole = device.program.gradients();
        let mut last = vec![0.0; whole.len()];
        device
            .backend
            .download(
                whole,
                syncmark_engine::backend::HostSliceMut::F32(&mut last),
            )
            .expect("download");
        // Again from zero, node by node.
        device
            .backend
            .launch(
                syncmark_engine::backend::Stream::Compute,
                syncmark_engine::kernel::Kernel::Fill {
                    to: whole,
                    value: 0.0,
                },
            )
            .expect("launch");
        device.forward(Mode::Train, &[3]);
        let output = device.program.output_shape();
        device.write(
            device.program.d_output(),
            output,
            &random(1, output.elements() * 3),
        );
        for i in (0..device.program.len()).rev() {
            let (program, mut step) = device.step(Mode::Train, &[3]);
            program.backward_node(i, &mut step).expect("backward");
            let ready = program.ready_after(i);
            let mut now = vec![0.0; ready.end];
            let to = syncmark_engine::backend::HostSliceMut::F32(&mut now);
            device
                .backend
                .download(whole.first(ready.end), to)
                .expect("download");
            assert_eq!(now, last[..ready.end], "after node {i}");
        }
    }
}

#[test]
fn parameters_depend_on_the_seed_alone() {
    let model = model(NET, Norm::Batch);
    let mut small = build(devices::cpu(), &model, 1, 1);
    let mut large = build(devices::deferred(), &model, 7, 3);
    assert_eq!(export(&mut small), export(&mut large));
    let mut other = Device::new(devices::cpu(), |b| {
        Program::build(b, &model, 1, 1, 1, 12).expect("enough memory")
    });
    assert_ne!(export(&mut small), export(&mut other));
}

#[test]
fn a_smaller_batch_computes_what_a_program_for_it_computes() {
    for norm in [
        Norm::Batch,
        Norm::SyncBatch,
        Norm::Layer,
        Norm::Group,
        Norm::None,
    ] {
        let net = model(NET, norm);
        for (backend, other) in devices::all().into_iter().zip(devices::all()) {
            let mut exact = build(other, &net, 3, 1);
            let expected = pass(&mut exact, &[3]);
            let mut larger = build(backend, &net, 5, 2);
            assert_eq!(pass(&mut larger, &[3]), expected, "{norm:?}");
            assert_eq!(gradients(&mut larger), gradients(&mut exact), "{norm:?}");
            assert_eq!(export(&mut larger), export(&mut exact), "{norm:?}");
        }
    }
}

/// Zeroes what [`Program::accumulated_gradients`] names; the rest stays as it is.
fn clear(device: &mut Device) {
    for to in device.program.accumulated_gradients() {
        let zero = Kernel::Fill { to, value: 0.0 };
        device.backend.launch(Stream::Compute, zero).expect("zero");
    }
}

#[test]
fn a_fresh_backward_writes_over_what_was_not_cleared_and_without_samples_leaves_nothing() {
    for backend in devices::all() {
        let mut device = build(backend, &model(NET, Norm::Batch), 2, 1);
        pass(&mut device, &[2]);
        let expected = gradients(&mut device);
        let cleared: usize = device
            .program
            .accumulated_gradients()
            .iter()
            .map(|span| span.len())
            .sum();
        assert!(
            cleared > 0 && cleared < expected.len(),
            "{cleared} are zeroed"
        );
        device.fresh = true;
        clear(&mut device);
        pass(&mut device, &[2]);
        assert_eq!(gradients(&mut device), expected);
        clear(&mut device);
        device.backward(Mode::Train, &[0]);
        assert!(
            gradients(&mut device)
                .iter()
                .all(|gradient| *gradient == 0.0)
        );
    }
}

#[test]
fn parameter_gradients_accumulate() {
    let mut device = build(devices::cpu(), &model(NET, Norm::Layer), 2, 1);
    pass(&mut device, &[2]);
    let once = gradients(&mut device);
    pass(&mut device, &[2]);
    let twice = gradients(&mut device);
    let error: f32 = once
        .iter()
        .zip(&twice)
        .map(|(a, b)| (2.0 * a - b).powi(2))
        .sum();
    let scale: f32 = twice.iter().map(|b| b * b).sum();
    // Sums of two equal numbers are exact; only sums over rows may be taken in another order onto what is there.
    assert!(
        error.sqrt() <= 1e-6 * scale.sqrt() && scale > 0.0,
        "{error} of {scale}"
    );
}

#[test]
fn an_empty_batch_does_nothing() {
    for norm in [Norm::Batch, Norm::SyncBatch, Norm::Group] {
        for backend in devices::all() {
            let mut device = build(backend, &model(NET, norm), 2, 1);
            let before = export(&mut device);
            for mode in [Mode::Train, Mode::Eval] {
                device.forward(mode, &[0]);
                device.backward(mode, &[0]);
            }
            assert_eq!(export(&mut device), before, "{norm:?}");
            assert!(
                gradients(&mut device)
                    .iter()
                    .all(|gradient| *gradient == 0.0)
            );
        }
    }
}

#[test]
fn a_chunk_of_one_element_per_channel_is_an_error_that_names_the_layer() {
    let net = model(
        r#"["flatten",{"linear":{"features":4}},{"batch-norm":{}}]"#,
        Norm::None,
    );
    let mut device = build(devices::cpu(), &net, 4, 2);
    let (program, mut step) = device.step(Mode::Train, &[3, 1]);
    let error = program.forward(&mut step).expect_err("no variance");
    assert!(
        matches!(&error, BackendError::OneElement { layer, chunk: 1, samples: 1 } if layer == "1.batch-norm"),
        "{error}"
    );
    // In evaluation one sample is enough.
    device.forward(Mode::Eval, &[3, 1]);
    let (program, mut step) = device.step(Mode::Train, &[2, 2]);
    program.forward(&mut step).expect("two samples each");
}

#[test]
fn a_program_that_cannot_be_built_says_why() {
    let net = model(NET, Norm::Batch);
    let with = |batch, chunks, world, limit| {
        let device = CpuDevice {
            memory_limit: limit,
            ..CpuDevice::default()
        };
        let mut backend = CpuBackend::new(device).expect("a thread");
        Program::build(&mut backend, &net, batch, chunks, world, 0)
            .map(|_| ())
            .expect_err("refused")
            .to_string()
    };
    assert_eq!(
        with(0, 1, 1, None),
        "the maximum batch is 0: expected at least 1"
    );
    assert_eq!(
        with(1, 0, 1, None),
        "the maximum number of chunks is 0: expected at least 1"
    );
    assert_eq!(
        with(1, 1, 0, None),
        "the world size is 0: expected at least 1"
    );
    assert!(
        with(usize::MAX / 4, 1, 1, None)
            .starts_with("a batch of 4611686018427387903 needs more elements")
    );
    assert!(with(64, 1, 1, Some(10_000)).starts_with("out of memory: "));
    let error = BuildError::from(BackendError::OutOfMemory {
        bytes: 8,
        category: Category::Activations,
        held: 4,
    });
    assert_eq!(
        error.to_string(),
        "out of memory: 8 bytes for Activations on top of 4 bytes"
    );
}

const MOMENTUM: OptimizerSettings = OptimizerSettings::sgd(SgdSettings {
    learning_rate: 0.1,
    momentum: 0.9,
    weight_decay: 0.01,
    nesterov: false,
});

#[test]
fn memory_is_what_the_model_says() {
    let net = model(NET, Norm::Batch);
    let mut device = build(devices::cpu(), &net, 3, 1);
    Optimizer::new(device.backend.as_mut(), &device.program, MOMENTUM).expect("enough memory");
    let facts = net.facts();
    let held = device.backend.memory_use();
    let of = |category| held[category as usize];
    assert_eq!(of(Category::Parameters), facts.parameter_bytes);
    assert_eq!(of(Category::Gradients), facts.parameter_bytes);
    assert_eq!(of(Category::Optimizer), facts.parameter_bytes);
    assert_eq!(of(Category::Buffers), facts.buffer_bytes);
    assert!(of(Category::Activations) >= 3 * 4 * facts.activations);
}
