//! Cross-correlation on images with square kernels, as PyTorch's `nn.Conv2d`; weights are `[out_c, kernel, kernel, c]` in memory.
//!
//! The workspace is shared by all convolutions of a program: the compute stream runs one of them at a time.
use super::weight::Weight;
use super::{Layer, Result, Step, Wires};
use crate::kernel::{ConvAlgorithms, Kernel, Window};
use crate::tensor::Span;

/// A convolution.
pub struct Conv2d {
    /// Its geometry.
    pub window: Window,
    /// How each direction is computed.
    pub algorithms: ConvAlgorithms,
    /// `[out_c, kernel, kernel, c]`.
    pub weight: Weight,
    /// Its gradient.
    pub d_weight: Span,
    /// `[out_c]` and its gradient, if there is one.
    pub bias: Option<(Span, Span)>,
    /// At least [`Window::workspace`] elements.
    pub workspace: Span,
}

impl Layer for Conv2d {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        self.weight.prepare(step)?;
        step.launch(Kernel::Conv2dForward {
            x: wires.cut(wires.inputs[0], batch),
            weight: self.weight.span(),
            bias: self.bias.map_or(Span::EMPTY, |(bias, _)| bias),
            y: wires.cut(wires.output, batch),
            window: self.window,
            algorithm: self.algorithms.forward,
            batch,
            workspace: self.workspace,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let (batch, window, workspace) = (step.batch, self.window, self.workspace);
        let (x, d_y) = (
            wires.cut(wires.inputs[0], batch),
            wires.cut(wires.d_output, batch),
        );
        step.launch(Kernel::Conv2dBackwardWeight {
            x,
            d_y,
            d_weight: self.d_weight,
            window,
            algorithm: self.algorithms.backward_weight,
            batch,
            workspace,
        })?;
        if let Some((_, d_bias)) = self.bias {
            step.launch(Kernel::BiasBackward {
                d_y,
                d_bias,
                rows: batch * window.out_h * window.out_w,
            })?;
        }
        let Some((d_x, write)) = wires.d_input(batch) else {
            return Ok(());
        };
        step.launch(Kernel::Conv2dBackwardInput {
            d_y,
            weight: self.weight.span(),
            d_x,
            window,
            algorithm: self.algorithms.backward_input,
            batch,
            workspace,
            write,
        })
    }

    fn kind(&self) -> &'static str {
        "conv2d"
    }
}
