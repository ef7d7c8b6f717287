//! Products with a bias or the gradient of one beside them: two kernels that a device may do as one. On a GPU with cuBLAS they are two, with
//! cuBLASLt one where it takes the shape.
use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cuda::Precision;
use syncmark_engine::kernel::{Kernel, Write};
use syncmark_engine::tensor::Span;

use super::{BOTH, Operand, Side, Sides};
use crate::gpu::gpu_with_cublaslt;

/// A product `[m, n, k]`, its operands in bfloat16 where values are.
#[derive(Clone, Copy)]
struct Of {
    shape: [usize; 3],
    transpose_a: bool,
    transpose_b: bool,
    write: Write,
    /// Elements before each operand.
    before: usize,
}

impl Of {
    fn product(&self, [a, b, c]: [Span; 3]) -> Kernel {
        let [m, n, k] = self.shape;
        Kernel::Matmul {
            a,
            b,
            c,
            m,
            n,
            k,
            transpose_a: self.transpose_a,
            transpose_b: self.transpose_b,
            write: self.write,
        }
    }

    /// Without the elements before it.
    fn part(&self, span: Span) -> Span {
        span.slice(self.before..span.len())
    }

    fn forward(&self, s: &[Span]) -> Vec<Kernel> {
        let [a, b, y, bias] = [s[0], s[1], s[2], s[3]].map(|span| self.part(span));
        let rows = self.shape[0];
        vec![self.product([a, b, y]), Kernel::AddBias { y, bias, rows }]
    }

    fn backward(&self, s: &[Span]) -> Vec<Kernel> {
        let [d_y, x, d_weight, d_bias] = [s[0], s[1], s[2], s[3]].map(|span| self.part(span));
        let rows = self.shape[2];
        let sums = Kernel::BiasBackward { d_y, d_bias, rows };
        vec![self.product([d_y, x, d_weight]), sums]
    }
}

const SHAPES: [[usize; 3]; 8] = [
    [5, 10, 3],
    [17, 1, 33],
    [1, 16, 8],
    [64, 64, 64],
    [128, 10, 65],
    [3, 130, 257],
    [256, 128, 512],
    [48, 96, 1024],
];

fn each(sides: &mut Sides, backward: bool) {
    for shape @ [m, n, k] in SHAPES {
        for before in [0, 1, 8] {
            let numbers = &mut sides.numbers;
            let [a, b] = [m * k, k * n].map(|len| numbers.value(len + before));
            let (c, bias) = match backward {
                false => (numbers.value(m * n + before), numbers.float(n + before)),
                true => (numbers.float(m * n + before), numbers.float(m + before)),
            };
            let operands = [a, b, c, bias];
            for (transpose_a, transpose_b) in
                [(false, false), (false, true), (true, false), (true, true)]
            {
                for write in BOTH {
                    let of = Of {
                        shape,
                        transpose_a,
                        transpose_b,
                        write,
                        before,
                    };
                    // The gradient of a bias is that of what is transposed; a bias that is added to a sum is two roundings more.
                    if backward && !transpose_a {
                        continue;
                    }
                    let times = match write {
                        Write::Overwrite => 2.0,
                        Write::Accumulate => 3.0,
                    };
                    let what = format!("{shape:?} {transpose_a} {transpose_b} {write:?} {before}");
                    sides.agree(&what, times, &operands, &|s| match backward {
                        false => of.forward(s),
                        true => of.backward(s),
                    });
                }
            }
        }
    }
}

#[test]
fn a_bias_is_added_to_a_product() {
    each(&mut Sides::new(), false);
}

#[test]
fn so_it_is_by_cublaslt() {
    each(&mut Sides::with_cublaslt(), false);
}

#[test]
fn a_gradient_of_a_bias_is_summed_beside_a_product() {
    each(&mut Sides::new(), true);
}

#[test]
fn so_is_the_gradient_by_cublaslt() {
    each(&mut Sides::with_cublaslt(), true);
}

/// What a linear layer does with 192 rows, 96 features in and 64 out.
fn layer(numbers: &mut super::Numbers) -> ([Operand; 6], impl Fn(&[Span]) -> Vec<Kernel>) {
    let (rows, inputs, outputs) = (192, 96, 64);
    let operands = [
        numbers.value(rows * inputs),
        numbers.value(outputs * inputs),
        numbers.value(rows * outputs),
        numbers.float(outputs),
        numbers.float(outputs * inputs),
        numbers.float(outputs),
    ];
    let of = |shape, transpose_a, transpose_b, write| Of {
        shape,
        transpose_a,
        transpose_b,
        write,
        before: 0,
    };
    let kernels = move |s: &[Span]| {
        let forward = of([rows, outputs, inputs], false, true, Write::Overwrite);
        let backward = of([outputs, inputs, rows], true, false, Write::Overwrite);
        let mut kernels = forward.forward(&[s[0], s[1], s[2], s[3]]);
        kernels.extend(backward.backward(&[s[2], s[0], s[4], s[5]]));
        kernels
    };
    (operands, kernels)
}

/// And what was chosen for it is told, once for each shape.
#[test]
fn what_cublaslt_computes_repeats_to_the_bit() {
    for (precision, math) in [(Precision::Bf16, "bf16"), (Precision::Tf32, "tf32")] {
        let Some(backend) = gpu_with_cublaslt(precision) else {
            return;
        };
        let mut side = Side {
            values: backend.values(),
            backend,
        };
        assert_eq!(side.backend.choices(), []);
        let mut numbers = super::Numbers(0);
        let (operands, kernels) = layer(&mut numbers);
        let first = side.run(&operands, &kernels);
        let choices = side.backend.choices();
        println!("{choices:#?}");
        for _ in 0..3 {
            assert_eq!(side.run(&operands, &kernels), first, "{precision:?}");
        }
        assert_eq!(side.backend.choices(), choices, "nothing is chosen again");
        let of = |operation: &str| {
            choices
                .iter()
                .filter(|one| one.operation == operation)
                .count()
        };
        assert_eq!(
            [of("product and bias"), of("product and bias gradient")],
            [1, 1]
        );
        let told = |one: &syncmark_engine::backend::cuda::choice::Choice| {
            one.library == "cuBLASLt" && one.deterministic && one.math == math
        };
        assert!(choices.iter().all(told), "{choices:?}");
    }
}

/// Parameters in f32 meet no values in products of gradients' factors.
#[test]
fn f32_beside_bfloat16_is_multiplied_by_cublas() {
    let Some(mut backend) = gpu_with_cublaslt(Precision::Bf16) else {
        return;
    };
    let float = |backend: &mut Box<dyn Backend>, len| {
        let (category, dtype) = (
            syncmark_engine::backend::Category::Workspace,
            syncmark_engine::tensor::Dtype::F32,
        );
        backend.allocate(category, dtype, len).unwrap()
    };
    let spans = [30, 42, 35].map(|len| float(&mut backend, len));
    let of = Of {
        shape: [5, 7, 6],
        transpose_a: false,
        transpose_b: false,
        write: Write::Overwrite,
        before: 0,
    };
    let on = syncmark_engine::backend::Stream::Compute;
    backend.launch(on, of.product(spans)).unwrap();
    backend.synchronize().unwrap();
    let [choice] = &backend.choices()[..] else {
        panic!("one shape");
    };
    assert_eq!((choice.library, &*choice.math), ("cuBLAS", "f32"));
}
