//! Norms with what follows them in one kernel: to the bit what the kernels give one after the other.
use syncmark_engine::kernel::{Affine, Gate, Kernel, Then, Write};
use syncmark_engine::tensor::Span;

use crate::device::{Device, on_every_backend};

const EPS: f32 = 1e-5;

/// A norm's forward and backward, as kernels of what they write.
struct Norm<'a> {
    /// From what follows and y.
    forward: &'a dyn Fn(Then, Span) -> Vec<Kernel>,
    /// From the rectified output (empty for none), its gradient and dx.
    backward: &'a dyn Fn(Span, Span, Span) -> Vec<Kernel>,
    /// Gradients of parameters, which accumulate.
    gradients: &'a [Span],
}

fn bits(device: &mut Device, spans: &[Span]) -> Vec<Vec<u32>> {
    let read = |span: &Span| device.read(*span).into_iter().map(f32::to_bits).collect();
    spans.iter().map(read).collect()
}

fn zero(device: &mut Device, spans: &[Span]) {
    for to in spans.iter().filter(|span| !span.is_empty()) {
        device.launch(Kernel::Fill {
            to: *to,
            value: 0.0,
        });
    }
}

fn chain(device: &mut Device, what: &str, len: usize, with_shortcut: bool, norm: &Norm<'_>) {
    let shortcut = if with_shortcut {
        device.random(len).span
    } else {
        Span::EMPTY
    };
    let gradients = norm.gradients;
    let [y, fused, d_x, d_fused] = [(); 4].map(|()| device.random(len).span);
    let (mut sum, given) = (y, device.random(len));

    // One after the other.
    (norm.forward)(Then::NOTHING, y)
        .into_iter()
        .for_each(|kernel| device.launch(kernel));
    if with_shortcut {
        sum = device.random(len).span;
        device.launch(Kernel::Add {
            a: y,
            b: shortcut,
            to: sum,
        });
    }
    let (rectified, d_sum) = (device.random(len).span, device.random(len).span);
    device.launch(Kernel::ReluForward {
        x: sum,
        y: rectified,
    });
    let write = Write::Overwrite;
    device.launch(Kernel::ReluBackward {
        y: rectified,
        d_y: given.span,
        d_x: d_sum,
        write,
    });
    zero(device, gradients);
    (norm.backward)(Span::EMPTY, d_sum, d_x)
        .into_iter()
        .for_each(|kernel| device.launch(kernel));
    let spans: Vec<Span> = [rectified, d_sum, d_x]
        .iter()
        .chain(gradients)
        .copied()
        .collect();
    let expected = bits(device, &spans);

    // In one.
    let then = Then {
        shortcut,
        relu: true,
    };
    (norm.forward)(then, fused)
        .into_iter()
        .for_each(|kernel| device.launch(kernel));
    zero(device, gradients);
    (norm.backward)(fused, given.span, d_fused)
        .into_iter()
        .for_each(|kernel| device.launch(kernel));
    let spans: Vec<Span> = [fused, given.span, d_fused]
        .iter()
        .chain(gradients)
        .copied()
        .collect();
    let mut found = bits(device, &spans);
    if !with_shortcut && what.starts_with("batch") {
        // Its kernels leave the gradient of the output as it is.
        found[1].clone_from(&expected[1]);
    }
    assert_eq!(found, expected, "{what}, shortcut {with_shortcut}");
}

fn batch_chain(device: &mut Device, rows: usize, c: usize, affine: bool, with_shortcut: bool) {
    let x = device.random(rows * c).span;
    let parameter = |device: &mut Device| {
        if affine {
            device.random(c).span
        } else {
            Span::EMPTY
        }
    };
    let (gamma, beta) = (parameter(device), parameter(device));
    let [mean, variance, rstd] = [(); 3].map(|()| device.zeros(c));
    let (sums, count) = (device.zeros(2 * c), device.given(&[rows as f32]).span);
    device.launch(Kernel::BatchStatistics {
        x,
        mean,
        variance,
        rows,
    });
    device.launch(Kernel::ReciprocalDeviation {
        variance,
        rstd,
        eps: EPS,
    });
    let forward = |then, y| {
        vec![Kernel::BatchNormalize {
            x,
            mean,
            rstd,
            gamma,
            beta,
            y,
            rows,
            then,
        }]
    };
    let backward = |y: Span, d_y, d_x| {
        let mut kernels = Vec::new();
        let gate = match (y.is_empty(), with_shortcut) {
            (true, _) => Gate::Open,
            (false, true) => {
                kernels.push(Kernel::Gate { y, d_y });
                Gate::Open
            }
            (false, false) => Gate::Again { beta, gamma, rstd },
        };
        let write = Write::Overwrite;
        kernels.push(Kernel::BatchBackwardReduce {
            x,
            d_y,
            mean,
            sums,
            rows,
            gate,
        });
        kernels.push(Kernel::BatchBackwardInput {
            x,
            d_y,
            mean,
            rstd,
            gamma,
            sums,
            count,
            d_x,
            rows,
            write,
            gate,
        });
        kernels
    };
    let what = format!("batch norm {rows} × {c}, affine {affine}");
    let norm = Norm {
        forward: &forward,
        backward: &backward,
        gradients: &[sums],
    };
    chain(device, &what, rows * c, with_shortcut, &norm);
}

#[test]
fn batch_norm_with_what_follows() {
    on_every_backend(|device| {
        for (rows, c) in [(5, 1), (33, 10), (300, 16), (65, 70)] {
            for (affine, with_shortcut) in
                [(true, false), (true, true), (false, false), (false, true)]
            {
                batch_chain(device, rows, c, affine, with_shortcut);
            }
        }
    });
}

/// Random values for γ or β of samples of `size` elements, or for their gradients; none without affine.
fn learnable(device: &mut Device, affine: Affine, channels: usize, size: usize) -> Span {
    match affine {
        Affine::None => Span::EMPTY,
        Affine::Channel => device.random(channels).span,
        Affine::Element => device.random(size).span,
    }
}

#[test]
fn group_norm_with_what_follows() {
    on_every_backend(|device| {
        for ([batch, spatial, channels, groups], affine) in [
            ([3, 9, 8, 2], Affine::Channel),
            ([2, 16, 64, 1], Affine::Channel),
            ([4, 1, 100, 1], Affine::Element),
            ([2, 7, 6, 6], Affine::None),
            ([2, 5, 12, 3], Affine::Element),
            ([3, 300, 64, 1], Affine::Channel),
            ([2, 700, 24, 24], Affine::Channel),
            ([2, 500, 12, 4], Affine::None),
            ([70, 1, 768, 1], Affine::Element),
        ] {
            let size = spatial * channels;
            let x = device.random(batch * size).span;
            let [gamma, beta, d_gamma, d_beta] =
                [(); 4].map(|()| learnable(device, affine, channels, size));
            let [mean, rstd] = [(); 2].map(|()| device.random(batch * groups).span);
            let forward = |then, y| {
                vec![Kernel::GroupNormForward {
                    x,
                    gamma,
                    beta,
                    y,
                    mean,
                    rstd,
                    batch,
                    spatial,
                    channels,
                    groups,
                    affine,
                    eps: EPS,
                    then,
                }]
            };
            let backward = |y, d_y, d_x| {
                let write = Write::Overwrite;
                vec![Kernel::GroupNormBackward {
                    x,
                    y,
                    d_y,
                    gamma,
                    mean,
                    rstd,
                    d_x,
                    d_gamma,
                    d_beta,
                    batch,
                    spatial,
                    channels,
                    groups,
                    affine,
                    write,
                }]
            };
            let norm = Norm {
                forward: &forward,
                backward: &backward,
                gradients: &[d_gamma, d_beta],
            };
            let what =
                format!("group norm {batch} × {spatial} × {channels}, {groups} groups, {affine:?}");
            for with_shortcut in [false, true] {
                chain(device, &what, batch * size, with_shortcut, &norm);
            }
        }
    });
}

#[test]
fn rms_norm_with_what_follows() {
    on_every_backend(|device| {
        for ([batch, spatial, channels], affine) in [
            ([3, 9, 6], Affine::Channel),
            ([2, 1, 100], Affine::Element),
            ([2, 16, 8], Affine::None),
            ([3, 300, 64], Affine::Channel),
            ([70, 1, 768], Affine::Element),
        ] {
            let size = spatial * channels;
            let x = device.random(batch * size).span;
            let [gamma, d_gamma] = [(); 2].map(|()| learnable(device, affine, channels, size));
            let rstd = device.random(batch).span;
            let forward = |then, y| {
                vec![Kernel::RmsNormForward {
                    x,
                    gamma,
                    y,
                    rstd,
                    batch,
                    spatial,
                    channels,
                    affine,
                    eps: EPS,
                    then,
                }]
            };
            let backward = |y, d_y, d_x| {
                let write = Write::Overwrite;
                vec![Kernel::RmsNormBackward {
                    x,
                    y,
                    d_y,
                    gamma,
                    rstd,
                    d_x,
                    d_gamma,
                    batch,
                    spatial,
                    channels,
                    affine,
                    write,
                }]
            };
            let norm = Norm {
                forward: &forward,
                backward: &backward,
                gradients: &[d_gamma],
            };
            let what = format!("rms norm {batch} × {spatial} × {channels}, {affine:?}");
            for with_shortcut in [false, true] {
                chain(device, &what, batch * size, with_shortcut, &norm);
            }
        }
    });
}
