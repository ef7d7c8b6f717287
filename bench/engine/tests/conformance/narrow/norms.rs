//! Norms: values are narrow, statistics and parameters and their gradients are not.
use syncmark_engine::kernel::{Affine, Gate, Kernel, Then};
use syncmark_engine::tensor::Span;

use super::{BOTH, Operand, Sides};

const EPS: f32 = 1e-5;

#[test]
fn batch_norm() {
    let mut sides = Sides::new();
    for (rows, c) in [(5, 1), (33, 10), (300, 16), (257, 64), (65, 70), (20, 130)] {
        let n = rows * c;
        let numbers = &mut sides.numbers;
        let mut operands = vec![
            numbers.value(n),
            numbers.value(n),
            numbers.value(n),
            numbers.value(n),
            numbers.float(c),
            numbers.float(c),
            Operand::Float(vec![rows as f32]),
        ];
        // Mean, variance, rstd, sums, and gradients of γ and β.
        operands.extend([1, 1, 1, 2, 1, 1].map(|times| numbers.float(times * c)));
        for write in BOTH {
            let all = |s: &[Span], then: Then, again: bool| {
                let (x, y, d_y, d_x, gamma, beta, count) =
                    (s[0], s[1], s[2], s[3], s[4], s[5], s[6]);
                let (mean, variance, rstd, sums) = (s[7], s[8], s[9], s[10]);
                let gate = match again {
                    true => Gate::Again { beta, gamma, rstd },
                    false => Gate::Open,
                };
                vec![
                    Kernel::BatchStatistics {
                        x,
                        mean,
                        variance,
                        rows,
                    },
                    Kernel::ReciprocalDeviation {
                        variance,
                        rstd,
                        eps: EPS,
                    },
                    Kernel::BatchNormalize {
                        x,
                        mean,
                        rstd,
                        gamma,
                        beta,
                        y,
                        rows,
                        then,
                    },
                    Kernel::BatchBackwardReduce {
                        x,
                        d_y,
                        mean,
                        sums,
                        rows,
                        gate,
                    },
                    Kernel::BatchBackwardAffine {
                        sums,
                        rstd,
                        d_gamma: s[11],
                        d_beta: s[12],
                    },
                    Kernel::BatchBackwardInput {
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
                    },
                ]
            };
            let what = format!("{rows} × {c}, {write:?}");
            sides.agree(&what, 1.0, &operands, &|s| all(s, Then::NOTHING, false));
            sides.agree(&format!("{what}, rectified"), 1.0, &operands, &|s| {
                all(
                    s,
                    Then {
                        relu: true,
                        ..Then::NOTHING
                    },
                    true,
                )
            });
            sides.agree(&format!("{what}, with a shortcut"), 1.0, &operands, &|s| {
                all(
                    s,
                    Then {
                        relu: true,
                        shortcut: s[2],
                    },
                    false,
                )
            });
            sides.agree(&format!("{what}, in evaluation"), 1.0, &operands, &|s| {
                let (d_y, d_x, gamma, rstd) = (s[2], s[3], s[4], s[9]);
                vec![Kernel::BatchBackwardEval {
                    d_y,
                    rstd,
                    gamma,
                    d_x,
                    rows,
                    write,
                }]
            });
        }
    }
}

#[test]
fn batch_norm_without_padding() {
    let mut sides = Sides::new();
    for (rows, c) in [(33, 10), (300, 16), (65, 70)] {
        let (n, padding) = (rows * c, 0);
        let numbers = &mut sides.numbers;
        let tokens = (0..rows).map(|row| (row % 4) as f32).collect();
        let mut operands = vec![
            numbers.value(n),
            numbers.value(n),
            numbers.value(n),
            numbers.value(n),
            numbers.float(c),
            numbers.float(c),
            Operand::Float(vec![0.0]),
            Operand::Float(tokens),
        ];
        operands.extend([1, 1, 1, 2].map(|times| numbers.float(times * c)));
        for write in BOTH {
            sides.agree(&format!("{rows} × {c}, {write:?}"), 1.0, &operands, &|s| {
                let (x, y, d_y, d_x, gamma, beta, count) =
                    (s[0], s[1], s[2], s[3], s[4], s[5], s[6]);
                let (tokens, mean, variance, rstd, sums) = (s[7], s[8], s[9], s[10], s[11]);
                vec![
                    Kernel::MaskedStatistics {
                        x,
                        tokens,
                        padding,
                        mean,
                        variance,
                        count,
                        rows,
                    },
                    Kernel::ReciprocalDeviation {
                        variance,
                        rstd,
                        eps: EPS,
                    },
                    Kernel::MaskedNormalize {
                        x,
                        tokens,
                        padding,
                        mean,
                        rstd,
                        gamma,
                        beta,
                        y,
                        rows,
                    },
                    Kernel::MaskedBackwardReduce {
                        x,
                        d_y,
                        tokens,
                        padding,
                        mean,
                        sums,
                        rows,
                    },
                    Kernel::MaskedBackwardInput {
                        x,
                        d_y,
                        tokens,
                        padding,
                        mean,
                        rstd,
                        gamma,
                        sums,
                        count,
                        d_x,
                        rows,
                        write,
                    },
                ]
            });
            sides.agree(
                &format!("{rows} × {c} in evaluation, {write:?}"),
                1.0,
                &operands,
                &|s| {
                    let (d_y, d_x, gamma, tokens, rstd) = (s[2], s[3], s[4], s[7], s[10]);
                    vec![Kernel::MaskedBackwardEval {
                        d_y,
                        tokens,
                        padding,
                        rstd,
                        gamma,
                        d_x,
                        rows,
                        write,
                    }]
                },
            );
        }
    }
}

/// Samples that a block takes, that a team of blocks takes, and that are sums over rows.
const SAMPLES: [[usize; 4]; 8] = [
    [5, 1, 64, 1],
    [3, 1, 6, 3],
    [2, 49, 16, 4],
    [2, 9, 7, 7],
    [3, 196, 12, 2],
    [2, 784, 64, 1],
    [2, 784, 64, 64],
    [1, 3136, 96, 8],
];

fn elements(affine: Affine, spatial: usize, channels: usize) -> usize {
    match affine {
        Affine::None => 0,
        Affine::Channel => channels,
        Affine::Element => spatial * channels,
    }
}

fn or_none(operand: Operand) -> Operand {
    match operand {
        Operand::Float(values) if values.is_empty() => Operand::None,
        other => other,
    }
}

#[test]
fn group_norm() {
    let mut sides = Sides::new();
    for [batch, spatial, channels, groups] in SAMPLES {
        for affine in [Affine::None, Affine::Channel, Affine::Element] {
            let (n, parameters) = (
                batch * spatial * channels,
                elements(affine, spatial, channels),
            );
            let numbers = &mut sides.numbers;
            let mut operands: Vec<Operand> = (0..5).map(|_| numbers.value(n)).collect();
            operands.extend((0..4).map(|_| or_none(numbers.float(parameters))));
            operands.extend((0..2).map(|_| Operand::Float(vec![0.0; batch * groups])));
            for (write, rectified) in BOTH.into_iter().zip([true, false]) {
                let what =
                    format!("{batch} × {spatial} × {channels} in {groups}, {affine:?}, {write:?}");
                sides.agree(&what, 1.0, &operands, &|s| {
                    let (x, y, d_y, d_x, shortcut) = (s[0], s[1], s[2], s[3], s[4]);
                    let (gamma, beta, d_gamma, d_beta, mean, rstd) =
                        (s[5], s[6], s[7], s[8], s[9], s[10]);
                    let then = Then {
                        shortcut,
                        relu: rectified,
                    };
                    // What is positive of a value that both sides have to the bit.
                    let gate = if rectified { shortcut } else { Span::EMPTY };
                    vec![
                        Kernel::GroupNormForward {
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
                        },
                        Kernel::GroupNormBackward {
                            x,
                            y: gate,
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
                        },
                    ]
                });
            }
        }
    }
}

#[test]
fn rms_norm() {
    let mut sides = Sides::new();
    for [batch, spatial, channels, _] in SAMPLES {
        for affine in [Affine::None, Affine::Channel, Affine::Element] {
            let (n, parameters) = (
                batch * spatial * channels,
                elements(affine, spatial, channels),
            );
            let numbers = &mut sides.numbers;
            let mut operands: Vec<Operand> = (0..5).map(|_| numbers.value(n)).collect();
            operands.extend((0..2).map(|_| or_none(numbers.float(parameters))));
            operands.push(Operand::Float(vec![0.0; batch]));
            for (write, rectified) in BOTH.into_iter().zip([true, false]) {
                let what = format!("{batch} × {spatial} × {channels}, {affine:?}, {write:?}");
                sides.agree(&what, 1.0, &operands, &|s| {
                    let (x, y, d_y, d_x, shortcut, gamma, d_gamma, rstd) =
                        (s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]);
                    let then = Then {
                        shortcut,
                        relu: rectified,
                    };
                    let gate = if rectified { shortcut } else { Span::EMPTY };
                    vec![
                        Kernel::RmsNormForward {
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
                        },
                        Kernel::RmsNormBackward {
                            x,
                            y: gate,
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
                        },
                    ]
                });
            }
        }
    }
}
