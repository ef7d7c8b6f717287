//! Elementwise kernels and dropout.
use syncmark_engine::kernel::{Gelu, Kernel, Write};
use syncmark_engine::philox;

use crate::device::on_every_backend;

const SIZES: [usize; 4] = [1, 7, 64, 1003];

#[test]
fn fill_copy_add_scale() {
    on_every_backend(|device| {
        for n in SIZES {
            let (a, b) = (device.random(n), device.random(n));
            let to = device.zeros(n);
            device.launch(Kernel::Fill { to, value: 2.5 });
            device.expect("fill", to, &vec![2.5; n]);
            device.expect_writes("copy", &a.values, |to, write| Kernel::Copy {
                from: a.span,
                to,
                write,
            });
            device.launch(Kernel::Add {
                a: a.span,
                b: b.span,
                to,
            });
            let sum: Vec<f64> = a.values.iter().zip(&b.values).map(|(a, b)| a + b).collect();
            device.expect("add", to, &sum);
            device.launch(Kernel::Scale { to, factor: -0.5 });
            device.expect(
                "scale",
                to,
                &sum.iter().map(|v| -0.5 * v).collect::<Vec<_>>(),
            );
        }
    });
}

#[test]
fn relu() {
    on_every_backend(|device| {
        for n in SIZES {
            let (x, d_y) = (device.random(n), device.random(n));
            let y = device.zeros(n);
            device.launch(Kernel::ReluForward { x: x.span, y });
            device.expect(
                "forward",
                y,
                &x.values.iter().map(|v| v.max(0.0)).collect::<Vec<_>>(),
            );
            let expected: Vec<f64> = x
                .values
                .iter()
                .zip(&d_y.values)
                .map(|(x, d)| if *x > 0.0 { *d } else { 0.0 })
                .collect();
            device.expect_writes("backward", &expected, |d_x, write| Kernel::ReluBackward {
                y,
                d_y: d_y.span,
                d_x,
                write,
            });
        }
        let x = device.given(&[f32::NAN, -1.0]);
        let y = device.zeros(2);
        device.launch(Kernel::ReluForward { x: x.span, y });
        assert!(device.read(y)[0].is_nan(), "a diverged value stays visible");
    });
}

/// Φ and its derivative, by Simpson's rule from 0: good to 1e-9 over the inputs here.
fn normal(x: f64) -> (f64, f64) {
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let (parts, h) = (400, x / 400.0);
    let weight = |i: i32| match i {
        0 | 400 => 1.0,
        _ if i % 2 == 1 => 4.0,
        _ => 2.0,
    };
    let sum: f64 = (0..=parts)
        .map(|i| weight(i) * density(h * f64::from(i)))
        .sum();
    (0.5 + sum * h / 3.0, density(x))
}

/// The approximation's share of x, and its derivative.
fn approximate(x: f64) -> (f64, f64) {
    let factor = (2.0 / std::f64::consts::PI).sqrt();
    let tanh = (factor * (x + 0.044715 * x.powi(3))).tanh();
    let slope = factor * (1.0 + 3.0 * 0.044715 * x * x);
    (0.5 * (1.0 + tanh), 0.5 * (1.0 - tanh * tanh) * slope)
}

#[test]
fn gelu() {
    on_every_backend(|device| {
        for n in SIZES {
            for (formula, share) in [
                (Gelu::None, normal as fn(f64) -> (f64, f64)),
                (Gelu::Tanh, approximate),
            ] {
                let values: Vec<f32> = device
                    .random(n)
                    .values
                    .iter()
                    .map(|x| 4.0 * *x as f32)
                    .collect();
                let (x, d_y, y) = (device.given(&values), device.random(n), device.zeros(n));
                device.launch(Kernel::GeluForward {
                    x: x.span,
                    y,
                    formula,
                });
                let expected: Vec<f64> = x.values.iter().map(|x| x * share(*x).0).collect();
                device.expect(&format!("{formula:?} forward"), y, &expected);
                let gradient = |(x, d): (&f64, &f64)| {
                    let (share, slope) = share(*x);
                    d * (share + x * slope)
                };
                let expected: Vec<f64> = x.values.iter().zip(&d_y.values).map(gradient).collect();
                let (x, d_y) = (x.span, d_y.span);
                device.expect_writes(&format!("{formula:?} backward"), &expected, |d_x, write| {
                    Kernel::GeluBackward {
                        x,
                        d_y,
                        d_x,
                        formula,
                        write,
                    }
                });
            }
        }
    });
}

#[test]
fn transpose() {
    on_every_backend(|device| {
        for (batch, rows, columns) in [(1, 1, 1), (3, 5, 2), (2, 49, 37), (1, 16, 64)] {
            let from = device.random(batch * rows * columns);
            let mut expected = vec![0.0; from.values.len()];
            for b in 0..batch {
                for r in 0..rows {
                    for c in 0..columns {
                        expected[(b * columns + c) * rows + r] =
                            from.values[(b * rows + r) * columns + c];
                    }
                }
            }
            let from = from.span;
            device.expect_writes("transpose", &expected, |to, write| Kernel::Transpose {
                from,
                to,
                batch,
                rows,
                columns,
                write,
            });
        }
    });
}

#[test]
fn dropout_follows_its_definition() {
    on_every_backend(|device| {
        let (batch, size, seed, node, p) = (3, 75, 0x1234_5678_9abc, 6, 0.3f32);
        let x = device.random(batch * size);
        let state = device.given_i32(&[41, 1000]);
        let mut expected = vec![0.0; batch * size];
        for sample in 0..batch {
            for element in 0..size {
                let counter = [element as u32 / 4, 1000 + sample as u32, 41, 1 | node << 8];
                let word = philox::block([seed as u32, (seed >> 32) as u32], counter)[element % 4];
                let at = sample * size + element;
                if f64::from(word >> 8) / f64::from(1 << 24) >= f64::from(p) {
                    expected[at] = x.values[at] / (1.0 - f64::from(p));
                }
            }
        }
        let x = x.span;
        let kernel = |y, p, write| Kernel::Dropout {
            x,
            y,
            p,
            seed,
            node,
            state,
            batch,
            write,
        };
        device.expect_writes("dropout", &expected, |y, write| kernel(y, p, write));
        let y = device.random(batch * size).span;
        device.launch(kernel(y, 1.0, Write::Overwrite));
        assert!(
            device.read(y).iter().all(|&v| v == 0.0),
            "p = 1 drops everything"
        );
    });
}

#[test]
fn dropout_keeps_its_share() {
    on_every_backend(|device| {
        let n = 40_000;
        let x = device.given(&vec![1.0; n]).span;
        let (y, state) = (device.zeros(n), device.given_i32(&[1, 0]));
        let write = Write::Overwrite;
        device.launch(Kernel::Dropout {
            x,
            y,
            p: 0.25,
            seed: 9,
            node: 0,
            state,
            batch: 4,
            write,
        });
        let kept = device.read(y).iter().filter(|&&v| v != 0.0).count() as f64;
        // Five standard deviations of a binomial: sqrt(40000 · 0.25 · 0.75) = 87.
        assert!((kept - 30_000.0).abs() < 5.0 * 87.0, "{kept}");
    });
}
