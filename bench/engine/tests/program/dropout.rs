//! Dropout's masks: whose they are, and what they drop.
use syncmark_engine::layer::Mode;
use syncmark_engine::model::spec::Norm;

use super::devices::{self, Device};
use super::{build, model};

const DROPOUT: &str = r#"["relu",{"dropout":{"p":0.25}}]"#;

/// Dropout of ones: the mask, scaled.
fn mask(device: &mut Device, step: i32, offset: i32, batch: usize) -> Vec<f32> {
    let shape = device.program.input_shape();
    device
        .state
        .set_counters(device.backend.as_mut(), step, offset)
        .expect("upload");
    device.write(
        device.program.input(),
        shape,
        &vec![1.0; shape.elements() * batch],
    );
    device.forward(Mode::Train, &[batch]);
    device.read(device.program.output(), shape, batch)
}

#[test]
fn a_dropout_mask_belongs_to_the_sample_wherever_it_is_computed() {
    let net = model(DROPOUT, Norm::None);
    let mut whole = build(devices::cpu(), &net, 64, 1);
    let expected = mask(&mut whole, 3, 0, 64);
    let sample = expected.len() / 64;
    for backend in devices::all() {
        let mut part = build(backend, &net, 7, 1);
        let found = mask(&mut part, 3, 40, 7);
        assert_eq!(found, expected[40 * sample..47 * sample]);
    }
    assert_ne!(
        mask(&mut whole, 4, 0, 64),
        expected,
        "another step, another mask"
    );
    assert_eq!(mask(&mut whole, 3, 0, 64), expected);
    let zeros = expected.iter().filter(|v| **v == 0.0).count() as f64 / expected.len() as f64;
    // 3072 elements: the standard error of the rate is 0.008.
    assert!((zeros - 0.25).abs() < 0.04, "{zeros} were dropped");
    assert!(expected.iter().all(|v| *v == 0.0 || *v == 1.0 / 0.75));
}

#[test]
fn two_dropouts_draw_different_masks() {
    let net = model(
        r#"[{"dropout":{"p":0.5}},{"dropout":{"p":0.5}}]"#,
        Norm::None,
    );
    let mut device = build(devices::cpu(), &net, 32, 1);
    let found = mask(&mut device, 0, 0, 32);
    // With the same mask twice half of the elements would be left, and none of them dropped by the second alone.
    let kept = found.iter().filter(|v| **v != 0.0).count() as f64 / found.len() as f64;
    assert!((kept - 0.25).abs() < 0.05, "{kept} were kept");
}

#[test]
fn a_dropout_of_everything_gives_zeros_and_of_nothing_the_input() {
    for (p, expected) in [("1.0", 0.0), ("0.0", 1.0)] {
        let net = model(&format!(r#"[{{"dropout":{{"p":{p}}}}}]"#), Norm::None);
        let mut device = build(devices::cpu(), &net, 2, 1);
        assert!(
            mask(&mut device, 0, 0, 2).iter().all(|v| *v == expected),
            "p = {p}"
        );
    }
}
