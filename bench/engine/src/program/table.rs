//! Which parameter and buffer lies where, and tensors by PyTorch's names.
use std::ops::Range;

use crate::layout::Layout;
use crate::model::{Init, Model};
use crate::tensor::Span;

/// A trainable parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// `0.conv2d.weight`.
    pub name: String,
    /// The node that owns it.
    pub node: usize,
    /// Its elements in the arenas of parameters and gradients.
    pub range: Range<usize>,
    /// PyTorch's shape.
    pub shape: Vec<usize>,
    /// Order in memory.
    pub layout: Layout,
    /// First values.
    pub init: Init,
}

/// A buffer: state that is saved and broadcast, but not trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// `1.batch-norm.running_mean`.
    pub name: String,
    /// The node that owns it.
    pub node: usize,
    /// Its elements in [`Buffers::floats`] or [`Buffers::integers`].
    pub range: Range<usize>,
    /// Which of the two, and how it starts.
    pub kind: BufferKind,
}

/// Kind of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferKind {
    /// f32 `[C]`, starts at 0.
    RunningMean,
    /// f32 `[C]`, starts at 1.
    RunningVariance,
    /// i64 scalar, starts at 0.
    Tracked,
}

/// All buffers of a program.
#[derive(Clone, Debug)]
pub struct Buffers {
    /// f32: running means and variances of all layers. Empty without batch norms.
    pub floats: Span,
    /// i64: `num_batches_tracked` of all layers. Empty without batch norms.
    pub integers: Span,
    /// In execution order.
    pub table: Vec<Buffer>,
}

/// A tensor as PyTorch names, shapes and orders it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// `0.conv2d.weight`.
    pub name: String,
    /// Shape, NCHW or OIHW; empty for a scalar.
    pub shape: Vec<usize>,
    /// Elements, last dimension fastest.
    pub data: TensorData,
}

/// Elements of a [`NamedTensor`].
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// f32.
    F32(Vec<f32>),
    /// i64.
    I64(Vec<i64>),
}

/// The tables of a model: names count the nodes that have parameters or buffers, in execution order.
pub(super) fn tables(model: &Model) -> (Vec<Parameter>, Vec<Buffer>) {
    let (mut parameters, mut buffers, mut index) = (Vec::new(), Vec::new(), 0);
    let (mut floats, mut integers) = (0, 0);
    for (node, lowered) in model.nodes.iter().enumerate() {
        let prefix = format!("{index}.{}", lowered.op.kind());
        let slots = lowered.parameters();
        let running = lowered.running_channels();
        index += usize::from(!slots.is_empty() || running.is_some());
        for slot in slots {
            // The place is filled in by `place`, which goes through the nodes in reverse.
            let range = 0..slot.elements();
            let name = format!("{prefix}.{}", slot.name);
            parameters.push(Parameter {
                name,
                node,
                range,
                shape: slot.shape,
                layout: slot.layout,
                init: slot.init,
            });
        }
        let Some(channels) = running else { continue };
        for (name, kind) in [
            ("running_mean", BufferKind::RunningMean),
            ("running_var", BufferKind::RunningVariance),
        ] {
            let range = floats..floats + channels;
            floats = range.end;
            buffers.push(Buffer {
                name: format!("{prefix}.{name}"),
                node,
                range,
                kind,
            });
        }
        let range = integers..integers + 1;
        integers = range.end;
        buffers.push(Buffer {
            name: format!("{prefix}.num_batches_tracked"),
            node,
            range,
            kind: BufferKind::Tracked,
        });
    }
    (parameters, buffers)
}

/// Gives parameters their places in gradient-ready order: those of the last node first. Returns each node's range.
pub(super) fn place(parameters: &mut [Parameter], nodes: usize) -> Vec<Range<usize>> {
    let mut ready = vec![0..0; nodes];
    let mut next = 0;
    for node in (0..nodes).rev() {
        let start = next;
        for parameter in parameters
            .iter_mut()
            .filter(|parameter| parameter.node == node)
        {
            let len = parameter.range.len();
            parameter.range = next..next + len;
            next += len;
        }
        ready[node] = start..next;
    }
    ready
}
