//! Optimizers, against their formulas in f64 for three updates.
use syncmark_engine::kernel::Kernel;
use syncmark_engine::tensor::Span;

use crate::device::{Device, Operand, on_every_backend};

const RATE: f32 = 0.1;
const DECAY: f32 = 0.01;

/// Three updates with SGD of `n` parameters, checked.
fn check_sgd(device: &mut Device, momentum: f32, nesterov: bool, n: usize) {
    let parameter = device.random(n);
    let mut expected = parameter.values.clone();
    let mut velocity = vec![0.0; n];
    let buffer = if momentum > 0.0 {
        device.zeros(n)
    } else {
        Span::EMPTY
    };
    let rates = device.given(&[RATE]).span;
    for _ in 0..3 {
        let gradient = device.random(n);
        for i in 0..n {
            let g = gradient.values[i] + f64::from(DECAY) * expected[i];
            velocity[i] = f64::from(momentum) * velocity[i] + g;
            let step = if nesterov {
                g + f64::from(momentum) * velocity[i]
            } else {
                velocity[i]
            };
            expected[i] -= f64::from(RATE) * step;
        }
        let (parameter, gradient) = (parameter.span, gradient.span);
        device.launch(Kernel::Sgd {
            parameter,
            gradient,
            buffer,
            rates,
            momentum,
            weight_decay: DECAY,
            nesterov,
        });
    }
    device.expect("parameters", parameter.span, &expected);
    if momentum > 0.0 {
        device.expect("momentum", buffer, &velocity);
    }
}

#[test]
fn sgd_follows_pytorch_for_three_steps() {
    on_every_backend(|device| {
        for (momentum, nesterov, n) in [
            (0.9f32, false, 1003),
            (0.0, false, 5),
            (0.9, true, 1003),
            (0.5, true, 1),
        ] {
            check_sgd(device, momentum, nesterov, n);
        }
    });
}

const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f32 = 1e-3;

/// AdamW's memory on a device.
struct Adamw {
    parameter: Operand,
    average: Span,
    square: Span,
    rates: Span,
    counters: Span,
}

impl Adamw {
    fn new(device: &mut Device, n: usize) -> Self {
        Self {
            parameter: device.random(n),
            average: device.zeros(n),
            square: device.zeros(n),
            rates: device.given(&[RATE]).span,
            counters: device.given_i32(&[0, 7]),
        }
    }

    /// Update number `update`, counted from 1.
    fn launch(&mut self, device: &mut Device, update: i32, gradient: Span) {
        use syncmark_engine::backend::{HostSlice, Stream};
        let counters = HostSlice::I32(&[update - 1, 7]);
        let uploaded = device
            .backend
            .upload(Stream::Compute, counters, self.counters);
        uploaded.unwrap();
        device.launch(Kernel::Adamw {
            parameter: self.parameter.span,
            gradient,
            average: self.average,
            square: self.square,
            rates: self.rates,
            counters: self.counters,
            beta1: BETAS.0,
            beta2: BETAS.1,
            eps: EPS,
            weight_decay: DECAY,
        });
    }
}

#[test]
fn adamw_follows_pytorch_for_three_steps() {
    on_every_backend(|device| {
        for n in [1003, 5] {
            let mut adamw = Adamw::new(device, n);
            let mut expected = adamw.parameter.values.clone();
            let (mut average, mut square) = (vec![0.0; n], vec![0.0; n]);
            for update in 1..=3 {
                let gradient = device.random(n);
                let (one, two) = (1.0 - BETAS.0.powi(update), 1.0 - BETAS.1.powi(update));
                for i in 0..n {
                    let g = gradient.values[i];
                    average[i] = BETAS.0 * average[i] + (1.0 - BETAS.0) * g;
                    square[i] = BETAS.1 * square[i] + (1.0 - BETAS.1) * g * g;
                    let root = (square[i] / two).sqrt() + f64::from(EPS);
                    expected[i] *= 1.0 - f64::from(RATE) * f64::from(DECAY);
                    expected[i] -= f64::from(RATE) * (average[i] / one) / root;
                }
                adamw.launch(device, update, gradient.span);
            }
            device.expect("parameters", adamw.parameter.span, &expected);
            device.expect("average", adamw.average, &average);
            device.expect("square", adamw.square, &square);
        }
    });
}
