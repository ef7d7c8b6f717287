//! When two runs agree.
use std::fmt::Write;

use syncmark_engine::program::{NamedTensor, TensorData};

use super::Outcome;

/// Sums over samples are taken in another order when they are spread over devices: some tens of roundings of 6e-8 a
/// step, fed back through a few steps. Norm-wise per tensor, relative.
const TOLERANCE: f64 = 2e-5;

fn floats(tensor: &NamedTensor) -> Vec<f64> {
    match &tensor.data {
        TensorData::F32(values) => values.iter().map(|v| f64::from(*v)).collect(),
        TensorData::I64(values) => values.iter().map(|v| *v as f64).collect(),
    }
}

/// Tensor by tensor; a tensor that is zero but for rounding is held against the size of the others.
pub fn agree(what: &str, found: &[NamedTensor], expected: &[NamedTensor]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert_eq!((&a.name, &a.shape), (&b.name, &b.shape), "{what}");
        if let (TensorData::I64(a), TensorData::I64(b)) = (&a.data, &b.data) {
            assert_eq!(a, b, "{what}");
            continue;
        }
        let (x, y) = (floats(a), floats(b));
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>().sqrt();
        let size = norm(&mut y.iter().copied()).max(1e-2 * (y.len() as f64).sqrt());
        let error = norm(&mut x.iter().zip(&y).map(|(x, y)| x - y)) / size;
        assert!(
            error <= TOLERANCE,
            "{what}: {} differs by {error:.1e}",
            a.name
        );
    }
}

pub fn outcomes_agree(what: &str, found: &Outcome, expected: &Outcome) {
    agree(
        &format!("{what}, gradients and parameters after a step"),
        &found.after_first,
        &expected.after_first,
    );
    agree(&format!("{what}, at the end"), &found.end, &expected.end);
}

pub fn losses_agree(what: &str, found: &[f32], expected: &[f32]) {
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() <= 1e-4 * b.abs().max(0.1),
            "{what}: losses {found:?} and {expected:?}"
        );
    }
}

/// Rank r's mean loss, weighed equally: what DDP minimises.
pub fn mean_losses(outcomes: &[Outcome]) -> Vec<f32> {
    let steps = outcomes[0].losses.len();
    (0..steps)
        .map(|step| outcomes.iter().map(|o| o.losses[step]).sum::<f32>() / outcomes.len() as f32)
        .collect()
}

fn parameters_only(tensors: &[NamedTensor]) -> Vec<NamedTensor> {
    let buffer = |name: &str| name.contains("running_") || name.contains("num_batches");
    tensors
        .iter()
        .filter(|tensor| !buffer(&tensor.name))
        .cloned()
        .collect()
}

/// Rank 0 holds what one device would; the others hold rank 0's parameters, bit by bit.
pub fn ranks_agree(what: &str, outcomes: &[Outcome], expected: &Outcome) {
    outcomes_agree(what, &outcomes[0], expected);
    for outcome in &outcomes[1..] {
        assert!(
            parameters_only(&outcome.end) == parameters_only(&outcomes[0].end),
            "{what}: ranks differ"
        );
    }
}

/// A GPU and a CPU add within kernels in different orders, some hundred terms each, and feed that back through a few steps. Per value,
/// relative to 1 or to the value where it is larger.
const TOLERANCE_BETWEEN_DEVICES: f32 = 5e-4;

/// Losses and tensors, a line each, so that a rank can print them; every value reads back as it is.
pub fn described(outcome: &Outcome) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, values: &[f32]| {
        lines += name;
        for value in values {
            let _ = write!(lines, " {value}");
        }
        lines.push('\n');
    };
    line("losses", &outcome.losses);
    for tensor in &outcome.end {
        if let TensorData::F32(values) = &tensor.data {
            line(&tensor.name, values);
        }
    }
    lines
}

/// What was [`described`] on a GPU and on a CPU; the largest distance between them.
pub fn devices_agree(what: &str, found: &str, expected: &str) -> f32 {
    assert_eq!(found.lines().count(), expected.lines().count(), "{what}");
    let mut furthest = 0.0_f32;
    for (found, expected) in found.lines().zip(expected.lines()) {
        let (mut found, mut expected) = (found.split(' '), expected.split(' '));
        let name = found.next();
        assert_eq!(name, expected.next(), "{what}");
        for (found, expected) in found.zip(expected) {
            let [found, expected] = [found, expected].map(|text| text.parse::<f32>().unwrap());
            let distance = (found - expected).abs() / expected.abs().max(1.0);
            assert!(
                distance <= TOLERANCE_BETWEEN_DEVICES,
                "{what}, {name:?}: {found}, {expected} on the CPU"
            );
            furthest = furthest.max(distance);
        }
    }
    furthest
}
