//! Products, convolutions, and the numbers that go between f32 and bfloat16.
use syncmark_engine::kernel::{ConvAlgorithm, Kernel, Window, Write};

use super::{BOTH, Sides};

#[test]
fn products_have_narrow_operands_and_either_result() {
    products(Sides::new());
}

#[test]
fn so_they_have_by_cublaslt() {
    products(Sides::with_cublaslt());
}

fn products(mut sides: Sides) {
    for [m, n, k] in [
        [5, 10, 3],
        [17, 1, 33],
        [64, 64, 64],
        [128, 10, 65],
        [3, 130, 257],
        [256, 128, 512],
    ] {
        let numbers = &mut sides.numbers;
        let operands = [
            numbers.value(m * k),
            numbers.value(k * n),
            numbers.value(m * n),
            numbers.float(m * n),
        ];
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            for write in BOTH {
                let what = format!("[{m}, {n}, {k}] {transpose_a} {transpose_b} {write:?}");
                // A gradient of a weight is f32, an activation is narrow: where it is added to, cuBLAS may round the product before the sum.
                let times = match write {
                    Write::Overwrite => 1.0,
                    Write::Accumulate => 2.0,
                };
                sides.agree(&what, times, &operands, &|s| {
                    let (a, b) = (s[0], s[1]);
                    let product = |c| Kernel::Matmul {
                        a,
                        b,
                        c,
                        m,
                        n,
                        k,
                        transpose_a,
                        transpose_b,
                        write,
                    };
                    vec![product(s[2]), product(s[3])]
                });
            }
        }
    }
}

/// What DataParallel does with the gradient of a replica's loss.
#[test]
fn values_are_scaled_by_a_factor_in_f32() {
    let mut sides = Sides::new();
    let m = 300;
    let numbers = &mut sides.numbers;
    let operands = [numbers.value(m), numbers.float(1), numbers.value(m)];
    for write in BOTH {
        sides.agree(&format!("{write:?}"), 1.0, &operands, &|s| {
            let (a, b, c, transpose_a, transpose_b) = (s[0], s[1], s[2], false, false);
            vec![Kernel::Matmul {
                a,
                b,
                c,
                m,
                n: 1,
                k: 1,
                transpose_a,
                transpose_b,
                write,
            }]
        });
    }
}

#[test]
fn convolutions() {
    let mut sides = Sides::new();
    let window = |[h, w, c]: [usize; 3], out_c, kernel, stride, padding| {
        let side = |side: usize| (side + 2 * padding - kernel) / stride + 1;
        let (out_h, out_w) = (side(h), side(w));
        Window {
            h,
            w,
            c,
            out_h,
            out_w,
            out_c,
            kernel,
            stride,
            padding,
        }
    };
    for (window, batch) in [
        (window([5, 7, 3], 4, 3, 1, 1), 3),
        (window([8, 8, 16], 16, 3, 1, 1), 2),
        (window([9, 6, 5], 7, 3, 2, 1), 5),
        (window([6, 6, 8], 12, 1, 1, 0), 3),
        (window([14, 13, 3], 64, 7, 2, 3), 2),
        (window([14, 14, 64], 64, 3, 1, 1), 4),
        (window([14, 14, 64], 128, 1, 2, 0), 4),
    ] {
        let weights = window.out_c * window.kernel * window.kernel * window.c;
        let inputs = batch * window.h * window.w * window.c;
        let outputs = batch * window.out_h * window.out_w * window.out_c;
        let numbers = &mut sides.numbers;
        let operands = [
            numbers.value(inputs),
            numbers.value(weights),
            numbers.float(window.out_c),
            numbers.value(outputs),
            numbers.value(outputs),
            numbers.value(inputs),
            numbers.rounded(weights),
            super::Operand::Workspace(window.workspace()),
        ];
        let algorithm = ConvAlgorithm::Im2row;
        for write in BOTH {
            // The bias is added to what has been rounded.
            sides.agree(
                &format!("{window:?} × {batch}, {write:?}"),
                2.0,
                &operands,
                &|s| {
                    let (x, weight, bias, y, d_y, d_x) = (s[0], s[1], s[2], s[3], s[4], s[5]);
                    let workspace = s[7];
                    vec![
                        Kernel::Conv2dForward {
                            x,
                            weight,
                            bias,
                            y,
                            window,
                            algorithm,
                            batch,
                            workspace,
                        },
                        Kernel::Conv2dBackwardInput {
                            d_y,
                            weight,
                            d_x,
                            window,
                            algorithm,
                            batch,
                            workspace,
                            write,
                        },
                        Kernel::Conv2dBackwardWeight {
                            x,
                            d_y,
                            d_weight: s[6],
                            window,
                            algorithm,
                            batch,
                            workspace,
                        },
                    ]
                },
            );
        }
    }
}
