//! Multi-head self-attention between its projections, which are linear layers before and behind it.
//!
//! Its input is queries, keys and values side by side, `[3·features]` a position; its second input is the tokens, which say where
//! padding is. In evaluation nothing is dropped. Reference: Vaswani et al. 2017; PyTorch's `nn.MultiheadAttention`, `in_proj_weight`
//! and `out_proj` of which are the linear layers.
use super::{Layer, Mode, Result, Step, Wires};
use crate::backend::{Backend, Category};
use crate::kernel::{Heads, Kernel};
use crate::tensor::{Dtype, Span};

/// Scaled dot-product attention of some heads.
pub struct Attention {
    heads: Heads,
    /// `[max_batch, heads, length]`: ln Σ exp of each row of scores.
    kept: Span,
    /// [`Heads::masks`] for each sample where values are bfloat16, whose kernels draw dropout's numbers once for both directions; else empty.
    masks: Span,
    workspace: Span,
}

impl Attention {
    /// Attention for at most `max_batch` samples; `workspace` holds [`Heads::workspace`] for each thread of the device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        backend: &mut dyn Backend,
        heads: Heads,
        workspace: Span,
        max_batch: usize,
    ) -> Result<Self> {
        let len = max_batch * heads.count * heads.length;
        let masks = match backend.values() {
            Dtype::Bf16 => max_batch * heads.masks(),
            _ => 0,
        };
        Ok(Self {
            heads,
            kept: backend.allocate(Category::Activations, Dtype::F32, len)?,
            masks: match masks {
                0 => Span::EMPTY,
                len => backend.allocate(Category::Activations, Dtype::I32, len)?,
            },
            workspace,
        })
    }

    fn heads(&self, mode: Mode) -> Heads {
        let dropout = if mode.drops() {
            self.heads.dropout
        } else {
            0.0
        };
        Heads {
            dropout,
            ..self.heads
        }
    }
}

impl Layer for Attention {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        step.launch(Kernel::AttentionForward {
            qkv: wires.cut(wires.inputs[0], batch),
            tokens: wires.cut(wires.inputs[1], batch),
            y: wires.cut(wires.output, batch),
            kept: wires.cut(self.kept, batch),
            masks: wires.cut(self.masks, batch),
            heads: self.heads(step.mode),
            state: step.state.counters,
            first: 0,
            batch,
            workspace: self.workspace,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        let batch = step.batch;
        // Nobody else reads the projection, so its gradient is always this layer's to write.
        let Some((d_qkv, _)) = wires.d_input(batch) else {
            return Ok(());
        };
        step.launch(Kernel::AttentionBackward {
            qkv: wires.cut(wires.inputs[0], batch),
            tokens: wires.cut(wires.inputs[1], batch),
            y: wires.cut(wires.output, batch),
            kept: wires.cut(self.kept, batch),
            masks: wires.cut(self.masks, batch),
            d_y: wires.cut(wires.d_output, batch),
            d_qkv,
            heads: self.heads(step.mode),
            state: step.state.counters,
            first: 0,
            batch,
            workspace: self.workspace,
        })
    }

    fn kind(&self) -> &'static str {
        "attention"
    }
}
