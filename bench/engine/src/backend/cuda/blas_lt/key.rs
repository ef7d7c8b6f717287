//! What decides how cuBLASLt computes a product, and how it sees the operands: pure functions of the shape.
//!
//! cuBLASLt has columns first, so it is asked for Cᵀ = op(B)ᵀ·op(A)ᵀ, as [`super::super::blas`] asks cuBLAS: its first operand is B, its second
//! A, and its result has n rows and m columns.
use crate::backend::cuda::blas::{Matrix, Product};
use crate::kernel::Write;
use crate::tensor::Dtype;

/// What a product does besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::backend::cuda) enum Epilogue {
    /// Nothing.
    None,
    /// C's rows get a bias, `[n]`, of C's type, before C is rounded.
    Bias,
    /// The sums of op(A)'s rows, `[m]`, are written to the bias, which is of C's type.
    BiasGradient,
}

/// The most that a place is known to be a multiple of, in bytes. cuBLASLt tells no more apart.
const MOST_ALIGNMENT: u64 = 256;
/// What a bias must be a multiple of. The documentation names no number; vectors of 16 bytes are what kernels read at most at once.
pub(super) const BIAS_ALIGNMENT: u32 = 16;

pub(super) fn alignment(at: u64) -> u32 {
    match at {
        0 => MOST_ALIGNMENT as u32,
        at => (1 << at.trailing_zeros().min(8)).min(MOST_ALIGNMENT) as u32,
    }
}

/// An operand, but for where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operand {
    /// Elements from one row to the next, as it is stored.
    pub(super) row: usize,
    /// Elements from one matrix of a batch to the next.
    pub(super) stride: usize,
    pub(super) dtype: Dtype,
    pub(super) transposed: bool,
    /// In bytes.
    pub(super) alignment: u32,
}

impl From<&Matrix> for Operand {
    fn from(matrix: &Matrix) -> Self {
        Self {
            row: matrix.row,
            stride: matrix.stride,
            dtype: matrix.dtype,
            transposed: matrix.transposed,
            alignment: alignment(matrix.at),
        }
    }
}

/// All that an algorithm is chosen by. Products with equal keys are computed alike, wherever their operands lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) batch: usize,
    pub(super) a: Operand,
    pub(super) b: Operand,
    pub(super) c: Operand,
    pub(super) write: Write,
    pub(super) epilogue: Epilogue,
    /// Of the bias or its gradient, in bytes; that of an absent one is the highest.
    pub(super) bias_alignment: u32,
}

/// A matrix as cuBLASLt has it: columns first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Elements from one column to the next.
    pub(super) leading: usize,
    pub(super) batch: usize,
    pub(super) stride: usize,
}

impl Key {
    /// `bias` is where it lies; 0 for none.
    pub(super) fn new(
        product: &Product,
        [a, b, c]: [&Matrix; 3],
        epilogue: Epilogue,
        bias: u64,
    ) -> Self {
        Self {
            m: product.m,
            n: product.n,
            k: product.k,
            batch: product.batch,
            a: a.into(),
            b: b.into(),
            c: c.into(),
            write: product.write,
            epilogue,
            bias_alignment: alignment(bias),
        }
    }

    /// Layouts of cuBLASLt's first and second operand, as they are stored, and of its result.
    pub(super) fn layouts(&self) -> [Layout; 3] {
        let layout = |of: &Operand, rows: usize, columns: usize| {
            // Rows of a matrix that is stored by rows are the columns of its transpose.
            let (rows, columns) = match of.transposed {
                true => (columns, rows),
                false => (rows, columns),
            };
            Layout {
                dtype: of.dtype,
                rows,
                columns,
                leading: of.row,
                batch: self.batch,
                stride: of.stride,
            }
        };
        [
            layout(&self.b, self.n, self.k),
            layout(&self.a, self.k, self.m),
            layout(&self.c, self.n, self.m),
        ]
    }

    /// As [`crate::backend::cuda::choice::Choice::operation`] has it.
    pub(super) const fn operation(&self) -> &'static str {
        match self.epilogue {
            Epilogue::None => "product",
            Epilogue::Bias => "product and bias",
            Epilogue::BiasGradient => "product and bias gradient",
        }
    }

    /// As [`crate::backend::cuda::choice::Choice::shape`] has it: row-major, as the engine says it.
    pub(super) fn shape(&self) -> String {
        let name = |of: &Operand| {
            let dtype = match of.dtype {
                Dtype::Bf16 => "bf16",
                _ => "f32",
            };
            let transposed = if of.transposed { "^T" } else { "" };
            format!("{dtype}{transposed}/{}@{}", of.row, of.alignment)
        };
        let Self { m, n, k, batch, .. } = self;
        let beta = match self.write {
            Write::Overwrite => 0,
            Write::Accumulate => 1,
        };
        let [a, b, c] = [&self.a, &self.b, &self.c].map(name);
        let strides = match batch {
            1 => String::new(),
            _ => format!(
                " strides={}/{}/{}",
                self.a.stride, self.b.stride, self.c.stride
            ),
        };
        format!("m={m} n={n} k={k} batch={batch} a={a} b={b} c={c}{strides} beta={beta}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(at: u64, row: usize, stride: usize, transposed: bool) -> Matrix {
        Matrix {
            at,
            row,
            stride,
            dtype: Dtype::F32,
            transposed,
        }
    }

    const PRODUCT: Product = Product {
        m: 3,
        n: 4,
        k: 5,
        scale: 1.0,
        batch: 2,
        write: Write::Overwrite,
    };

    /// What the documentation says of a product by layouts: columns first, operands as stored, transposed when read.
    fn by_layouts(key: &Key, first: &[f64], second: &[f64], result: &mut [f64]) {
        let [a, b, c] = key.layouts();
        let element = |of: &Layout, transposed: bool, batch: usize, row: usize, column: usize| {
            let (row, column) = if transposed {
                (column, row)
            } else {
                (row, column)
            };
            assert!(row < of.rows && column < of.columns && of.leading >= of.rows);
            batch * of.stride + column * of.leading + row
        };
        for batch in 0..c.batch {
            for row in 0..c.rows {
                for column in 0..c.columns {
                    let sum = (0..key.k).map(|l| {
                        first[element(&a, key.b.transposed, batch, row, l)]
                            * second[element(&b, key.a.transposed, batch, l, column)]
                    });
                    result[element(&c, false, batch, row, column)] = sum.sum();
                }
            }
        }
    }

    #[test]
    fn layouts_describe_the_product_by_rows_whatever_is_transposed() {
        let Product { m, n, k, batch, .. } = PRODUCT;
        let values = |len: usize, seed: usize| -> Vec<f64> {
            (0..len)
                .map(|i| ((i * 7 + seed) % 11) as f64 - 5.0)
                .collect()
        };
        for (transpose_a, transpose_b) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            // Rows and matrices with something between them.
            let row_a = if transpose_a { m } else { k } + 2;
            let row_b = if transpose_b { k } else { n } + 1;
            let row_c = n + 3;
            let stride_a = row_a * if transpose_a { k } else { m } + 4;
            let stride_b = row_b * if transpose_b { n } else { k };
            let stride_c = row_c * m + 1;
            let (a, b) = (values(batch * stride_a, 1), values(batch * stride_b, 2));
            let key = Key::new(
                &PRODUCT,
                [
                    &matrix(0, row_a, stride_a, transpose_a),
                    &matrix(0, row_b, stride_b, transpose_b),
                    &matrix(0, row_c, stride_c, false),
                ],
                Epilogue::None,
                0,
            );
            let mut found = vec![99.0; batch * stride_c];
            let mut expected = found.clone();
            by_layouts(&key, &b, &a, &mut found);
            for (s, i, j) in (0..batch * m * n).map(|at| (at / (m * n), at / n % m, at % n)) {
                let sum = (0..k).map(|l| {
                    let at_a = if transpose_a {
                        l * row_a + i
                    } else {
                        i * row_a + l
                    };
                    let at_b = if transpose_b {
                        j * row_b + l
                    } else {
                        l * row_b + j
                    };
                    a[s * stride_a + at_a] * b[s * stride_b + at_b]
                });
                expected[s * stride_c + i * row_c + j] = sum.sum();
            }
            assert_eq!(found, expected, "{transpose_a} {transpose_b}");
        }
    }

    #[test]
    fn alignment_is_what_a_place_is_a_multiple_of() {
        for (at, expected) in [
            (0, 256),
            (1, 1),
            (2, 2),
            (12, 4),
            (4096 + 48, 16),
            (1 << 40, 256),
            (256 + 128, 128),
        ] {
            assert_eq!(alignment(at), expected, "{at}");
        }
    }

    #[test]
    fn keys_differ_where_an_algorithm_may() {
        let key = |product: &Product, at: u64, row: usize, epilogue, bias| {
            let a = matrix(at, row, 0, false);
            let (b, c) = (matrix(0, 4, 0, false), matrix(0, 4, 0, false));
            Key::new(product, [&a, &b, &c], epilogue, bias)
        };
        let usual = key(&PRODUCT, 1 << 20, 5, Epilogue::None, 0);
        // Where it lies and what it is multiplied by decide nothing.
        let scaled = Product {
            scale: 0.5,
            ..PRODUCT
        };
        assert_eq!(key(&scaled, 3 << 20, 5, Epilogue::None, 0), usual);
        let others = [
            key(&Product { m: 4, ..PRODUCT }, 1 << 20, 5, Epilogue::None, 0),
            key(
                &Product {
                    write: Write::Accumulate,
                    ..PRODUCT
                },
                1 << 20,
                5,
                Epilogue::None,
                0,
            ),
            key(
                &Product {
                    batch: 1,
                    ..PRODUCT
                },
                1 << 20,
                5,
                Epilogue::None,
                0,
            ),
            key(&PRODUCT, (1 << 20) + 4, 5, Epilogue::None, 0),
            key(&PRODUCT, 1 << 20, 6, Epilogue::None, 0),
            key(&PRODUCT, 1 << 20, 5, Epilogue::Bias, 0),
            key(&PRODUCT, 1 << 20, 5, Epilogue::BiasGradient, 0),
            key(&PRODUCT, 1 << 20, 5, Epilogue::Bias, 32),
        ];
        for (i, other) in others.iter().enumerate() {
            assert_ne!(*other, usual);
            assert!(!others[..i].contains(other), "{other:?}");
        }
    }

    #[test]
    fn shapes_are_said_by_rows() {
        let (a, b, c) = (
            matrix(32, 3, 15, true),
            matrix(0, 4, 20, false),
            matrix(4, 4, 12, false),
        );
        let key = Key::new(&PRODUCT, [&a, &b, &c], Epilogue::Bias, 0);
        assert_eq!(
            key.shape(),
            "m=3 n=4 k=5 batch=2 a=f32^T/3@32 b=f32/4@256 c=f32/4@4 strides=15/20/12 beta=0"
        );
        assert_eq!(key.operation(), "product and bias");
    }
}
