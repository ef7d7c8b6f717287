//! RMS norm.
use syncmark_engine::kernel::{Affine, Kernel, Then, Write};
use syncmark_engine::tensor::Span;

use crate::device::{Device, on_every_backend};

const EPS: f32 = 1e-3;

fn rms_norm(device: &mut Device, [batch, spatial, channels]: [usize; 3], affine: Affine) {
    let what = format!("{batch} × {spatial} × {channels}, {affine:?}");
    let size = spatial * channels;
    let (x, d_y) = (
        device.random_about(0.3, batch * size),
        device.random(batch * size),
    );
    let affine_len = match affine {
        Affine::None => 0,
        Affine::Channel => channels,
        Affine::Element => size,
    };
    let gamma = match affine_len {
        0 => device.none(),
        len => device.random(len),
    };
    // Channel: i % C; element: i % (S·C). Both are the remainder by the length of γ.
    let scale = |i: usize| {
        gamma
            .values
            .get(i % affine_len.max(1))
            .copied()
            .unwrap_or(1.0)
    };
    let square = |sample: &[f64]| sample.iter().map(|v| v * v).sum::<f64>() / size as f64;
    let rstd: Vec<f64> = x
        .values
        .chunks(size)
        .map(|sample| 1.0 / (square(sample) + f64::from(EPS)).sqrt())
        .collect();
    let hat: Vec<f64> = (0..batch * size)
        .map(|i| x.values[i] * rstd[i / size])
        .collect();
    let y: Vec<f64> = (0..batch * size).map(|i| hat[i] * scale(i)).collect();
    let (output, rstd_span) = (device.random(batch * size).span, device.random(batch).span);
    device.launch(Kernel::RmsNormForward {
        x: x.span,
        gamma: gamma.span,
        y: output,
        rstd: rstd_span,
        batch,
        spatial,
        channels,
        affine,
        eps: EPS,
        then: Then::NOTHING,
    });
    device.expect(&format!("y {what}"), output, &y);
    device.expect(&format!("rstd {what}"), rstd_span, &rstd);

    let g: Vec<f64> = (0..batch * size)
        .map(|i| d_y.values[i] * scale(i))
        .collect();
    let mut product = vec![0.0; batch];
    (0..batch * size).for_each(|i| product[i / size] += g[i] * hat[i] / size as f64);
    let d_x: Vec<f64> = (0..batch * size)
        .map(|i| rstd[i / size] * (g[i] - hat[i] * product[i / size]))
        .collect();
    let d_gamma = match affine_len {
        0 => Span::EMPTY,
        len => device.zeros(len),
    };
    let (x, d_y_values, d_y, gamma) = (x.span, d_y.values, d_y.span, gamma.span);
    let kernel = |d_x, write| Kernel::RmsNormBackward {
        x,
        d_y,
        gamma,
        rstd: rstd_span,
        d_x,
        d_gamma,
        batch,
        spatial,
        channels,
        affine,
        write,
        y: Span::EMPTY,
    };
    device.expect_writes(&format!("dx {what}"), &d_x, kernel);
    device.launch(kernel(Span::EMPTY, Write::Overwrite));
    if affine_len > 0 {
        // The kernel ran three times, and γ accumulates, also where dx is not wanted.
        let mut expected = vec![0.0; affine_len];
        for i in 0..batch * size {
            expected[i % affine_len] += 3.0 * d_y_values[i] * hat[i];
        }
        device.expect(&format!("dγ {what}"), d_gamma, &expected);
    }
}

#[test]
fn rms_norm_forward_and_backward() {
    on_every_backend(|device| {
        for shape in [
            [2, 4, 1],
            [3, 9, 6],
            [2, 16, 64],
            [3, 1, 100],
            [2, 1, 2100],
            [2, 7, 70],
            [2, 300, 16],
            [3, 300, 64],
            [2, 40, 1031],
            [70, 1, 768],
            [9, 1, 1025],
        ] {
            for affine in [Affine::None, Affine::Channel, Affine::Element] {
                rms_norm(device, shape, affine);
            }
        }
    });
}
