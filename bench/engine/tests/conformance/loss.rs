//! Loss and errors.
use syncmark_engine::kernel::Kernel;
use syncmark_engine::tensor::Span;

use crate::device::{Device, on_every_backend};

/// From the differences to the label's logit, so that a confident sample's tiny loss has its digits.
fn loss_of(logits: &[f64], labels: &[i32], classes: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut losses, mut gradient) = (Vec::new(), Vec::new());
    for (row, &label) in logits.chunks(classes).zip(labels) {
        let label = label as usize;
        let odds: Vec<f64> = row.iter().map(|v| (v - row[label]).exp()).collect();
        let others: f64 = (0..classes).filter(|&j| j != label).map(|j| odds[j]).sum();
        losses.push(others.ln_1p());
        gradient.extend(
            (0..classes).map(|j| if j == label { -others } else { odds[j] } / (1.0 + others)),
        );
    }
    (losses, gradient)
}

fn check(device: &mut Device, values: &[f32], labels: &[i32], classes: usize, shift: f32) {
    let (batch, scale) = (labels.len(), 1.0 / labels.len() as f32);
    let shifted: Vec<f32> = values.iter().map(|v| v + shift).collect();
    let logits = device.given(&shifted);
    // The reference takes the values before the shift, which f64 could not exponentiate either.
    let plain: Vec<f64> = logits.values.iter().map(|v| v - f64::from(shift)).collect();
    let (losses, gradient) = loss_of(&plain, labels, classes);
    let (found, loss, d_logits) = (
        device.zeros(batch),
        device.zeros(1),
        device.random(values.len()).span,
    );
    let labels = device.given_i32(labels);
    let logits = logits.span;
    device.launch(Kernel::SoftmaxCrossEntropy {
        logits,
        labels,
        losses: found,
        loss,
        d_logits,
        batch,
        positions: 1,
        classes,
        scale,
    });
    device.expect("losses", found, &losses);
    device.expect(
        "loss",
        loss,
        &[losses.iter().sum::<f64>() * f64::from(scale)],
    );
    device.expect(
        "gradient",
        d_logits,
        &gradient
            .iter()
            .map(|g| g * f64::from(scale))
            .collect::<Vec<_>>(),
    );
    let alone = device.zeros(batch);
    let (loss, d_logits) = (Span::EMPTY, Span::EMPTY);
    device.launch(Kernel::SoftmaxCrossEntropy {
        logits,
        labels,
        losses: alone,
        loss,
        d_logits,
        batch,
        positions: 1,
        classes,
        scale,
    });
    assert_eq!(
        device.read(alone),
        device.read(found),
        "losses do not depend on what else is wanted"
    );
}

#[test]
fn softmax_cross_entropy() {
    on_every_backend(|device| {
        for (batch, classes) in [(1, 2), (7, 10), (3, 1000)] {
            let logits = device.random(batch * classes);
            let values: Vec<f32> = logits.values.iter().map(|&v| 8.0 * v as f32).collect();
            let labels: Vec<i32> = (0..batch).map(|b| (b * 7 % classes) as i32).collect();
            check(device, &values, &labels, classes, 0.0);
        }
        // exp would overflow; the shift is a power of two, so that the logits keep their digits.
        check(device, &[1.0, 2.0, 0.5, -1.0, 3.0, 1.5], &[0, 2], 3, 4096.0);
        // A confident sample's gradient is small but not zero.
        check(device, &[30.0, 0.0], &[0], 2, 0.0);
    });
}

#[test]
fn errors_are_counted() {
    on_every_backend(|device| {
        let rows = [
            [1.0, 2.0, 0.0],
            [5.0, 5.0, 1.0],
            [5.0, 5.0, 1.0],
            [0.0, 0.0, 3.0],
            [f32::NAN; 3],
        ];
        let logits = device.given(rows.as_flattened()).span;
        let labels = device.given_i32(&[1, 0, 1, 0, 0]);
        let errors = device.given_i32(&[77, 77]);
        device.launch(Kernel::CountErrors {
            logits,
            labels,
            errors,
            rows: 5,
            classes: 3,
        });
        assert_eq!(
            device.read_i32(errors),
            [3, 5],
            "the tie goes to the first class, NaN is an error"
        );
    });
}
