//! y = the table's row of each token; the table is `[vocabulary, features]`, as in PyTorch's `nn.Embedding`.
//!
//! The model's input has no gradient. The table's is added to, so that a head whose weight it is may have written it before.
use super::{Layer, Result, Step, Wires};
use crate::kernel::Kernel;
use crate::tensor::Span;

/// An embedding of tokens.
pub struct Embedding {
    /// Elements of a row.
    pub features: usize,
    /// The token whose row gets no gradient.
    pub padding: Option<usize>,
    /// `[vocabulary, features]`.
    pub table: Span,
    /// Its gradient.
    pub d_table: Span,
}

impl Layer for Embedding {
    fn forward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        step.launch(Kernel::EmbeddingForward {
            tokens: wires.cut(wires.inputs[0], step.batch),
            table: self.table,
            y: wires.cut(wires.output, step.batch),
            features: self.features,
        })
    }

    fn backward(&mut self, step: &mut Step<'_>, wires: &Wires) -> Result<()> {
        step.launch(Kernel::EmbeddingBackward {
            tokens: wires.cut(wires.inputs[0], step.batch),
            d_y: wires.cut(wires.d_output, step.batch),
            d_table: self.d_table,
            features: self.features,
            padding: self.padding,
        })
    }

    fn kind(&self) -> &'static str {
        "embedding"
    }
}
