//! Three steps of ResNet-18 and ResNet-50 on images of 224×224, against PyTorch in f64: losses, logits, norms of every
//! gradient, parameter and buffer, and some elements of a few, within a multiple of PyTorch's own f32 distance.
use syncmark_engine::program::NamedTensor;
use syncmark_engine::shape::Shape;

use crate::devices;
use crate::fixture::{self, Fixture, values};
use crate::layer::wide;
use crate::training::{Run, l2, near};

/// Checks the L2 norm of each of `tensors`, whose names and order are those of `names`; PyTorch's gap is relative.
fn check_norms(fixture: &Fixture, key: &str, names: &str, tensors: &[&NamedTensor], backend: &str) {
    let listed: Vec<String> = fixture.json(names);
    let found: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(found, listed, "{}: {names}", fixture.name);
    let (expected, gap) = (&fixture.tensor(key).values, fixture.fp32_gap(key));
    for (tensor, expected) in tensors.iter().zip(expected) {
        let name = format!("{key} of {}", tensor.name);
        near(
            fixture,
            &name,
            gap * expected,
            &[l2(tensor)],
            &[*expected],
            backend,
        );
    }
}

/// Checks the first elements of those tensors of which the fixture has some.
fn check_slices(fixture: &Fixture, prefix: &str, tensors: &[&NamedTensor], backend: &str) {
    let slices = fixture.with_prefix(prefix);
    assert!(slices.len() >= 5, "{}: {prefix}", fixture.name);
    for (name, expected) in slices {
        let tensor = tensors.iter().find(|tensor| tensor.name == name);
        let tensor = tensor.unwrap_or_else(|| panic!("{}: no {name}", fixture.name));
        let found = &values(tensor)[..expected.values.len()];
        let name = format!("{prefix}{name}");
        let gap = fixture.fp32_gap(&name);
        near(fixture, &name, gap, found, &expected.values, backend);
    }
}

fn check(fixture: &Fixture, mut run: Run<'_>) {
    let backend = run.device.backend.name();
    let (losses, gaps) = (fixture.tensor("losses"), fixture.tensor("losses_gap"));
    for k in 0..fixture.json("steps_trained") {
        let loss = f64::from(run.gradients(k));
        let name = format!("losses[{k}]");
        near(
            fixture,
            &name,
            gaps.values[k],
            &[loss],
            &losses.values[k..=k],
            backend,
        );
        if k == 0 {
            let logits = &fixture.tensor("logits").values;
            let (output, classes) = (run.device.program.output(), fixture.json("classes"));
            let found = run
                .device
                .read(output, Shape::Features(classes), logits.len() / classes);
            let gap = fixture.fp32_gap("logits");
            near(fixture, "logits", gap, &wide(&found), logits, backend);
            let gradients = run.export_gradients();
            let gradients: Vec<&NamedTensor> = gradients.iter().collect();
            check_norms(
                fixture,
                "first_gradient_norms",
                "parameters",
                &gradients,
                backend,
            );
            check_slices(fixture, "first_gradient.", &gradients, backend);
        }
        run.update(k);
    }
    let last = run.export();
    let buffer = |tensor: &&NamedTensor| tensor.name.contains(".running_");
    let counter = |tensor: &&NamedTensor| tensor.name.ends_with(".num_batches_tracked");
    let parameters: Vec<&NamedTensor> = last
        .iter()
        .filter(|tensor| !buffer(tensor) && !counter(tensor))
        .collect();
    let buffers: Vec<&NamedTensor> = last.iter().filter(buffer).collect();
    check_norms(
        fixture,
        "parameter_norms",
        "parameters",
        &parameters,
        backend,
    );
    check_norms(fixture, "buffer_norms", "buffers", &buffers, backend);
    check_slices(fixture, "parameter.", &parameters, backend);
    for tensor in last.iter().filter(counter) {
        assert_eq!(
            values(tensor),
            [losses.values.len() as f64],
            "{}",
            tensor.name
        );
    }
}

#[test]
fn three_steps_of_the_large_resnets_stay_within_three_times_pytorchs_own_float32_distance() {
    for fixture in fixture::of_kind("imagenet") {
        for backend in devices::training() {
            check(&fixture, Run::new(&fixture, backend));
        }
    }
}
