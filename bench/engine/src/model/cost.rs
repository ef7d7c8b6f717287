//! What each node of a model costs by formula: arithmetic, and the fewest bytes that have to move.
//!
//! These are what measured times are held against (METHODOLOGY.md, "Cost by node"); nothing here is measured. Arithmetic is that of
//! matrix products and convolutions, two operations per multiplication and addition; biases, norms and elementwise layers
//! are bound by memory and have none. Bytes count every operand once, however often a kernel really goes over it or reads
//! what it adds to; norms count the passes that their formulas need (METHODOLOGY.md, "Cost by node"). Values and their gradients have the type
//! that is asked for; tokens, winners' offsets, statistics, parameters and their gradients have 4 bytes. Where values are narrower, a product's
//! weight is read, written once more as narrow, and read as that backward; so is the model's input by the first node.
use super::facts::{LayerFacts, layer_facts};
use super::node::{Node, Op};
use super::resolve::Model;
use crate::tensor::Dtype;

/// What one direction of a node costs for a whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Operations of its matrix products, 2 per multiplication and addition; none for nodes without products.
    pub flops: Option<u64>,
    /// Fewest bytes read and written.
    pub read_write_bytes: u64,
}

/// A node of a model, and what a training step with it costs.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeCost {
    /// Where it stands, its kind, output shape (per sample) and parameters.
    pub facts: LayerFacts,
    /// Forward.
    pub forward: Work,
    /// Bytes that a norm keeps from forward for backward: its input, and a mean and reciprocal deviation for each set of values that it
    /// normalizes together (RMS norm: the latter alone). None for other nodes.
    pub kept_bytes: Option<u64>,
    /// Backward: gradients of its parameters, and of its inputs where a node or the loss needs them (the model's input needs
    /// none).
    pub backward: Work,
}

impl Model {
    /// Cost of every node in a training step with `batch` samples on one device, in order of execution, where values are f32.
    pub fn node_costs(&self, batch: usize) -> Vec<NodeCost> {
        self.node_costs_in(batch, Dtype::F32)
    }

    /// As [`Model::node_costs`], where values and their gradients are of type `values`.
    ///
    /// A gradient that lies where it is needed already (an addition whose branch nobody else reads) moves no bytes.
    /// Communication of SyncBatchNorm is not part of it. Counts too large for `u64` stay at its largest value.
    pub fn node_costs_in(&self, batch: usize, values: Dtype) -> Vec<NodeCost> {
        let mut uses = vec![0; self.nodes.len() + 1];
        let inputs = self.nodes.iter().flat_map(|node| &node.inputs);
        inputs.for_each(|value| uses[*value] += 1);
        let cost = |(i, node): (usize, &Node)| {
            let flows = Flows::of(node, &uses);
            let sizes = Sizes::of(node, batch, values, self.vocabulary.is_some());
            let mut forward = forward(node, &sizes, batch);
            if i == 0 && sizes.narrow && self.vocabulary.is_none() {
                // What the host sent is rounded first.
                let elements = self.input.elements() as u128 * batch as u128;
                let more = bytes(elements.saturating_mul(FLOAT + values.size() as u128));
                forward.read_write_bytes = forward.read_write_bytes.saturating_add(more);
            }
            NodeCost {
                facts: layer_facts(node),
                forward,
                kept_bytes: kept(node, &sizes, batch),
                backward: backward(node, &flows, &sizes, batch),
            }
        };
        self.nodes.iter().enumerate().map(cost).collect()
    }
}

/// Which gradients the backward of a node writes.
struct Flows {
    /// Input gradients that are wanted at all.
    wanted: u128,
    /// Those of them that an addition has to copy.
    copied: u128,
}

impl Flows {
    fn of(node: &Node, uses: &[usize]) -> Self {
        let wanted = || node.inputs.iter().filter(|value| **value > 0);
        Self {
            wanted: wanted().count() as u128,
            copied: wanted().filter(|value| uses[**value] > 1).count() as u128,
        }
    }
}

/// Bytes of an f32.
const FLOAT: u128 = size_of::<f32>() as u128;

/// Bytes of a batch of the node's values, and of its parameters.
struct Sizes {
    /// Its first input.
    x: u128,
    /// Its output.
    y: u128,
    /// As many f32 or i32 as the output has elements.
    wide_y: u128,
    parameters: u128,
    /// Whether values are narrower than parameters.
    narrow: bool,
    /// Of an element of values.
    value: u128,
}

impl Sizes {
    fn of(node: &Node, batch: usize, values: Dtype, tokens: bool) -> Self {
        let value = values.size() as u128;
        let elements = |elements: usize| elements as u128 * batch as u128;
        // Tokens stay whole numbers in f32.
        let read = if tokens && node.inputs[0] == 0 {
            FLOAT
        } else {
            value
        };
        let y = elements(node.output.elements());
        Self {
            x: elements(node.input.elements()).saturating_mul(read),
            y: y.saturating_mul(value),
            wide_y: y.saturating_mul(FLOAT),
            parameters: (layer_facts(node).parameters as u128).saturating_mul(FLOAT),
            narrow: value < FLOAT,
            value,
        }
    }

    /// A forward's extra bytes of a weight that products read: it is written once more where values are narrow.
    fn rounded(&self, node: &Node) -> u128 {
        if self.narrow {
            weight(node) * self.value
        } else {
            0
        }
    }
}

/// Operations of one product over the batch: forward, or one of the two gradients.
fn product(node: &Node, batch: usize) -> Option<u128> {
    let terms = match &node.op {
        Op::Linear { .. } => node.input.channels(),
        // Every position looks at every other twice: scores, and what they weigh.
        Op::Attention { .. } => 2 * node.output.spatial(),
        Op::Conv2d { window: w, .. } => w.c * w.kernel * w.kernel,
        _ => return None,
    };
    let outputs = node.output.elements() as u128 * batch as u128;
    Some(outputs.saturating_mul(2 * terms as u128))
}

fn kept(node: &Node, sizes: &Sizes, batch: usize) -> Option<u64> {
    let parts = |each_position: bool| match each_position {
        true => node.input.spatial(),
        false => 1,
    };
    let statistics = match node.op {
        Op::BatchNorm { .. } => 2 * node.input.channels(),
        Op::GroupNorm {
            groups,
            each_position,
            ..
        } => 2 * batch * groups * parts(each_position),
        Op::RmsNorm { each_position, .. } => batch * parts(each_position),
        _ => return None,
    };
    Some(bytes(
        sizes
            .x
            .saturating_add((statistics as u128).saturating_mul(FLOAT)),
    ))
}

fn forward(node: &Node, sizes: &Sizes, batch: usize) -> Work {
    let &Sizes {
        x,
        y,
        wide_y,
        parameters,
        ..
    } = sizes;
    let moved = match &node.op {
        Op::Linear { tied, .. } => {
            x + y + parameters + shared(node, *tied) * FLOAT + sizes.rounded(node)
        }
        Op::Conv2d { .. } => x + y + parameters + sizes.rounded(node),
        Op::Attention { .. } => x + y + parameters,
        // A row of the table for each token.
        Op::Embedding { .. } => x + wide_y + y,
        Op::Positions => x + y + parameters,
        // y and the winners' offsets.
        Op::MaxPool { .. } => x + y + wide_y,
        Op::Relu
        | Op::Gelu { .. }
        | Op::AveragePool { .. }
        | Op::GlobalAveragePool
        | Op::Flatten
        | Op::Dropout { .. } => x + y,
        Op::Add => 2 * x + y,
        // Statistics of all rows are there before the first row can be normalized.
        Op::BatchNorm { .. } => 2 * x + y,
        Op::GroupNorm { .. } | Op::RmsNorm { .. } => x + y,
    };
    work(product(node, batch), moved)
}

fn backward(node: &Node, flows: &Flows, sizes: &Sizes, batch: usize) -> Work {
    let &Sizes {
        x,
        y,
        wide_y,
        parameters,
        value,
        ..
    } = sizes;
    let wanted = flows.wanted;
    let moved = match &node.op {
        // dW from x and dy; dx from dy and W.
        Op::Linear { tied, .. } => {
            let shared = shared(node, *tied) * FLOAT;
            x + y + parameters + shared + wanted * (x + weight(node) * value)
        }
        Op::Conv2d { .. } => x + y + parameters + wanted * (x + weight(node) * value),
        // Adds to rows of the table's gradient.
        Op::Embedding { .. } => x + y + 2 * wide_y,
        Op::Positions => y + parameters + wanted * x,
        // Queries, keys and values, the output's gradient, and theirs.
        Op::Attention { .. } => x + y + wanted * x,
        // dy and the winners.
        Op::MaxPool { .. } => wanted * (y + wide_y + x),
        // dy, and x or y.
        Op::Relu | Op::Gelu { .. } => wanted * (2 * y + x),
        Op::AveragePool { .. } | Op::GlobalAveragePool | Op::Flatten | Op::Dropout { .. } => {
            wanted * (y + x)
        }
        Op::Add if flows.copied > 0 => y + flows.copied * x,
        Op::Add => 0,
        // Sums of x and dy, then dx from both once more.
        Op::BatchNorm { affine, .. } => match (wanted, affine) {
            (0, false) => 0,
            (0, true) => x + y,
            _ => 2 * (x + y) + x,
        },
        Op::GroupNorm { .. } | Op::RmsNorm { .. } => match (wanted, parameters) {
            (0, 0) => 0,
            (0, _) => x + y,
            _ => x + y + x,
        },
    };
    let products = product(node, batch).map(|flops| flops.saturating_mul(1 + wanted));
    work(products, moved)
}

/// Elements of the weight of a linear or conv2d, its own or not.
fn weight(node: &Node) -> u128 {
    match &node.op {
        Op::Linear { .. } => node.input.channels() as u128 * node.output.channels() as u128,
        _ => node
            .parameters()
            .first()
            .map_or(0, |weight| weight.elements() as u128),
    }
}

/// Elements of a weight that another node owns.
fn shared(node: &Node, tied: Option<usize>) -> u128 {
    if tied.is_some() { weight(node) } else { 0 }
}

fn work(flops: Option<u128>, moved: u128) -> Work {
    Work {
        flops: flops.map(bytes),
        read_write_bytes: bytes(moved),
    }
}

/// A count that fits, or the largest that does.
fn bytes(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
