//! y = x·Wᵀ + b on `[features]`, or on each position of a sequence; W is `[out, in]`, as in PyTorch's `nn.Linear`.
use super::weight::Weight;
use super::{Layer, Result, Step, Wires};
use crate::kernel::{Kernel, Write};
use crate::tensor::Span;

/// A fully connected layer.
pub struct Linear {
    /// Features of a row of x.
    pub inputs: usize,
    /// Features of a row of y.
    pub outputs: usize,
    /// Rows of a sample: 1, or its positions.
    pub positions: usize,
    /// `[out, in]`; an embedding's table, if that is tied.
    pub weight: Weight,
    /// Its gradient.
    pub d_weight: Span,
    /// `[out]` and its gradient, if there is one.
    pub bias: Option<(Span, Span)>,
}

impl Layer for Linear {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let rows = step.batch * self.positions;
        let (a, y) = (
            wires.cut(wires.inputs[0], step.batch),
            wires.cut(wires.output, step.batch),
        );
        self.weight.prepare(step)?;
        // y[rows, out] = x[rows, in] · Wᵀ
        let product = Kernel::Matmul {
            a,
            b: self.weight.span(),
            c: y,
            m: rows,
            n: self.outputs,
            k: self.inputs,
            transpose_a: false,
            transpose_b: true,
            write: Write::Overwrite,
        };
        match self.bias {
            Some((bias, _)) => step.launch_both([product, Kernel::AddBias { y, bias, rows }]),
            None => step.launch(product),
        }
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let rows = step.batch * self.positions;
        let (x, d_y) = (
            wires.cut(wires.inputs[0], step.batch),
            wires.cut(wires.d_output, step.batch),
        );
        // dW[out, in] (+)= dyᵀ · x: it is most of what a linear model has, and zeroing it would be a pass through memory.
        let product = Kernel::Matmul {
            a: d_y,
            b: x,
            c: self.d_weight,
            m: self.outputs,
            n: self.inputs,
            k: rows,
            transpose_a: true,
            transpose_b: false,
            write: if step.fresh {
                Write::Overwrite
            } else {
                Write::Accumulate
            },
        };
        match self.bias {
            Some((_, d_bias)) => {
                step.launch_both([product, Kernel::BiasBackward { d_y, d_bias, rows }])?;
            }
            None => step.launch(product)?,
        }
        let Some((d_x, write)) = wires.d_input(step.batch) else {
            return Ok(());
        };
        // dx[rows, in] = dy[rows, out] · W
        step.launch(Kernel::Matmul {
            a: d_y,
            b: self.weight.span(),
            c: d_x,
            m: rows,
            n: self.inputs,
            k: self.outputs,
            transpose_a: false,
            transpose_b: false,
            write,
        })
    }

    fn overwritten(&self) -> Span {
        self.d_weight
    }

    fn kind(&self) -> &'static str {
        "linear"
    }
}
