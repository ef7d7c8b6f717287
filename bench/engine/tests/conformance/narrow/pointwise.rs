//! Elementwise kernels, pooling, embeddings and the loss.
use syncmark_engine::kernel::{Gelu, Kernel, Window};
use syncmark_engine::loss::UNLABELLED;

use super::{BOTH, Operand, Sides};

const SIZES: [usize; 3] = [7, 64, 5003];

#[test]
fn what_elementwise_kernels_write_is_rounded_once() {
    let mut sides = Sides::new();
    for n in SIZES {
        let [a, b, c] = [(); 3].map(|()| sides.numbers.value(n));
        let two = [a, b];
        sides.agree("fill", 1.0, &two, &|s| {
            vec![
                Kernel::Fill {
                    to: s[0],
                    value: 2.5,
                },
                Kernel::Fill {
                    to: s[1],
                    value: 0.0,
                },
            ]
        });
        sides.agree("scale", 1.0, &two, &|s| {
            vec![Kernel::Scale {
                to: s[0],
                factor: -0.7,
            }]
        });
        sides.agree("rectifier", 1.0, &two, &|s| {
            vec![Kernel::ReluForward { x: s[0], y: s[1] }]
        });
        sides.agree("gate", 1.0, &two, &|s| {
            vec![Kernel::Gate { y: s[0], d_y: s[1] }]
        });
        let [a, b] = two;
        let three = [a, b, c];
        sides.agree("sum", 1.0, &three, &|s| {
            vec![Kernel::Add {
                a: s[0],
                b: s[1],
                to: s[2],
            }]
        });
        for write in BOTH {
            sides.agree(&format!("copy, {write:?}"), 1.0, &three, &|s| {
                vec![Kernel::Copy {
                    from: s[0],
                    to: s[2],
                    write,
                }]
            });
            sides.agree(
                &format!("rectifier's gradient, {write:?}"),
                1.0,
                &three,
                &|s| {
                    let (y, d_y, d_x) = (s[0], s[1], s[2]);
                    vec![Kernel::ReluBackward { y, d_y, d_x, write }]
                },
            );
            for formula in [Gelu::None, Gelu::Tanh] {
                sides.agree(&format!("{formula:?} {write:?}"), 1.0, &three, &|s| {
                    let (x, d_y, d_x) = (s[0], s[1], s[2]);
                    vec![
                        Kernel::GeluBackward {
                            x,
                            d_y,
                            d_x,
                            formula,
                            write,
                        },
                        Kernel::GeluForward { x, y: d_y, formula },
                    ]
                });
            }
        }
    }
}

#[test]
fn transposes_dropout_and_biases() {
    let mut sides = Sides::new();
    for (batch, rows, columns) in [(1, 1, 1), (2, 49, 37), (3, 16, 64)] {
        let [from, to] = [(); 2].map(|()| sides.numbers.value(batch * rows * columns));
        let (bias, d_bias) = (sides.numbers.float(columns), sides.numbers.float(columns));
        let state = Operand::Integer(vec![4, 11]);
        let operands = [from, to, bias, d_bias, state];
        for write in BOTH {
            sides.agree(
                &format!("transpose {rows} × {columns}, {write:?}"),
                1.0,
                &operands,
                &|s| {
                    let (from, to) = (s[0], s[1]);
                    vec![Kernel::Transpose {
                        from,
                        to,
                        batch,
                        rows,
                        columns,
                        write,
                    }]
                },
            );
            sides.agree(&format!("dropout, {write:?}"), 1.0, &operands, &|s| {
                let (x, y, state) = (s[0], s[1], s[4]);
                vec![Kernel::Dropout {
                    x,
                    y,
                    p: 0.3,
                    seed: 5,
                    node: 2,
                    state,
                    batch,
                    write,
                }]
            });
        }
        sides.agree(&format!("biases of {columns}"), 1.0, &operands, &|s| {
            let rows = batch * rows;
            vec![
                Kernel::BiasBackward {
                    d_y: s[0],
                    d_bias: s[3],
                    rows,
                },
                Kernel::AddBias {
                    y: s[1],
                    bias: s[2],
                    rows,
                },
            ]
        });
    }
}

#[test]
fn pooling() {
    let mut sides = Sides::new();
    let batch = 3;
    for (h, w, c, kernel, stride, padding) in [
        (4, 4, 1, 2, 2, 0),
        (5, 7, 3, 3, 2, 1),
        (9, 9, 70, 3, 1, 1),
        (8, 8, 64, 3, 2, 1),
        (8, 6, 16, 2, 2, 0),
    ] {
        let side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let (out_h, out_w) = (side(h), side(w));
        let window = Window {
            h,
            w,
            c,
            out_h,
            out_w,
            out_c: c,
            kernel,
            stride,
            padding,
        };
        let (inputs, outputs) = (batch * h * w * c, batch * out_h * out_w * c);
        let numbers = &mut sides.numbers;
        let operands = [
            numbers.value(inputs),
            numbers.value(outputs),
            Operand::Integer(vec![0; outputs]),
            numbers.value(outputs),
            numbers.value(inputs),
            numbers.value(batch * c),
            numbers.value(batch * c),
        ];
        for write in BOTH {
            let what = format!("{window:?}, {write:?}");
            sides.agree(&format!("largest of {what}"), 1.0, &operands, &|s| {
                vec![
                    Kernel::MaxPoolForward {
                        x: s[0],
                        y: s[1],
                        index: s[2],
                        window,
                        batch,
                    },
                    Kernel::MaxPoolBackward {
                        d_y: s[3],
                        index: s[2],
                        d_x: s[4],
                        window,
                        batch,
                        write,
                    },
                ]
            });
            for count_padding in [false, true] {
                sides.agree(
                    &format!("mean of {what} {count_padding}"),
                    1.0,
                    &operands,
                    &|s| {
                        vec![
                            Kernel::AveragePoolForward {
                                x: s[0],
                                y: s[1],
                                window,
                                batch,
                                count_padding,
                            },
                            Kernel::AveragePoolBackward {
                                d_y: s[3],
                                d_x: s[4],
                                window,
                                batch,
                                count_padding,
                                write,
                            },
                        ]
                    },
                );
            }
            sides.agree(
                &format!("mean of all of {h} × {w}, {write:?}"),
                1.0,
                &operands,
                &|s| {
                    let (spatial, channels) = (h * w, c);
                    vec![
                        Kernel::GlobalAveragePoolForward {
                            x: s[0],
                            y: s[5],
                            batch,
                            spatial,
                            channels,
                        },
                        Kernel::GlobalAveragePoolBackward {
                            d_y: s[6],
                            d_x: s[4],
                            batch,
                            spatial,
                            channels,
                            write,
                        },
                    ]
                },
            );
        }
    }
}

/// Tokens stay whole numbers in f32, and so do parameters: only rows of y and its gradient are narrow.
#[test]
fn embeddings() {
    let mut sides = Sides::new();
    for (rows, features, vocabulary) in [(5, 3, 4), (300, 64, 11), (70, 130, 1000)] {
        let tokens = (0..rows).map(|row| (row * 7 % vocabulary) as f32).collect();
        let numbers = &mut sides.numbers;
        let operands = [
            Operand::Float(tokens),
            numbers.float(vocabulary * features),
            numbers.value(rows * features),
            numbers.value(rows * features),
            numbers.float(vocabulary * features),
        ];
        for padding in [None, Some(0)] {
            sides.agree(
                &format!("{rows} tokens, {padding:?}"),
                1.0,
                &operands,
                &|s| {
                    let (tokens, table) = (s[0], s[1]);
                    vec![
                        Kernel::EmbeddingForward {
                            tokens,
                            table,
                            y: s[2],
                            features,
                        },
                        Kernel::EmbeddingBackward {
                            tokens,
                            d_y: s[3],
                            d_table: s[4],
                            features,
                            padding,
                        },
                    ]
                },
            );
        }
    }
}

#[test]
fn losses_are_f32_and_their_gradients_are_not() {
    let mut sides = Sides::new();
    for (batch, positions, classes) in [(7, 1, 10), (3, 1, 1000), (4, 5, 65), (2, 3, 2)] {
        let rows = batch * positions;
        // A sample of several positions may have none at some of them.
        let none = |row: usize| positions > 1 && row % 4 == 3;
        let class = |row: usize| {
            if none(row) {
                UNLABELLED
            } else {
                (row * 7 % classes) as i32
            }
        };
        let labels = (0..rows).map(class);
        let numbers = &mut sides.numbers;
        let operands = [
            numbers.value(rows * classes),
            Operand::Integer(labels.collect()),
            Operand::Float(vec![0.0; batch]),
            Operand::Float(vec![0.0]),
            numbers.value(rows * classes),
            Operand::Integer(vec![9, 9]),
        ];
        sides.agree(
            &format!("{batch} × {positions} of {classes}"),
            1.0,
            &operands,
            &|s| {
                let (logits, labels, losses, loss, d_logits) = (s[0], s[1], s[2], s[3], s[4]);
                let scale = 1.0 / batch as f32;
                vec![
                    Kernel::SoftmaxCrossEntropy {
                        logits,
                        labels,
                        losses,
                        loss,
                        d_logits,
                        batch,
                        positions,
                        classes,
                        scale,
                    },
                    Kernel::CountErrors {
                        logits,
                        labels,
                        errors: s[5],
                        rows,
                        classes,
                    },
                ]
            },
        );
    }
}
