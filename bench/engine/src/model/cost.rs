//! What each node of a model costs by formula: arithmetic, and the fewest bytes that have to move.
//!
//! These are what measured times are held against (METHODOLOGY.md, "Cost by node"); nothing here is measured. Arithmetic is that of
//! matrix products and convolutions, two operations per multiplication and addition; biases, norms and elementwise layers
//! are bound by memory and have none. Bytes count every operand once, however often a kernel really goes over it or reads
//! what it adds to; norms count the passes that their formulas need (METHODOLOGY.md, "Cost by node"). All values are f32.
use super::facts::{LayerFacts, layer_facts};
use super::node::{Node, Op};
use super::resolve::Model;

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
    /// Cost of every node in a training step with `batch` samples on one device, in order of execution.
    ///
    /// A gradient that lies where it is needed already (an addition whose branch nobody else reads) moves no bytes.
    /// Communication of SyncBatchNorm is not part of it. Counts too large for `u64` stay at its largest value.
    pub fn node_costs(&self, batch: usize) -> Vec<NodeCost> {
        let mut uses = vec![0; self.nodes.len() + 1];
        let inputs = self.nodes.iter().flat_map(|node| &node.inputs);
        inputs.for_each(|value| uses[*value] += 1);
        let cost = |node: &Node| {
            let flows = Flows::of(node, &uses);
            NodeCost {
                facts: layer_facts(node),
                forward: forward(node, batch),
                kept_bytes: kept(node, batch),
                backward: backward(node, &flows, batch),
            }
        };
        self.nodes.iter().map(cost).collect()
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

/// Elements of a batch of the node's first input and of its output, and those of its parameters.
fn sizes(node: &Node, batch: usize) -> [u128; 3] {
    let values = |elements: usize| elements as u128 * batch as u128;
    let parameters = layer_facts(node).parameters as u128;
    [
        values(node.input.elements()),
        values(node.output.elements()),
        parameters,
    ]
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

fn kept(node: &Node, batch: usize) -> Option<u64> {
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
    let [x, ..] = sizes(node, batch);
    let bytes = x.saturating_add(statistics as u128) * size_of::<f32>() as u128;
    Some(u64::try_from(bytes).unwrap_or(u64::MAX))
}

fn forward(node: &Node, batch: usize) -> Work {
    let [x, y, parameters] = sizes(node, batch);
    let elements = match &node.op {
        Op::Linear { tied, .. } => x + y + parameters + shared(node, *tied),
        Op::Conv2d { .. } | Op::Attention { .. } => x + y + parameters,
        // A row of the table for each token.
        Op::Embedding { .. } => x + 2 * y,
        Op::Positions => x + y + parameters,
        // y and the winners' offsets, which are as wide.
        Op::MaxPool { .. } => x + 2 * y,
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
    work(product(node, batch), elements)
}

fn backward(node: &Node, flows: &Flows, batch: usize) -> Work {
    let [x, y, parameters] = sizes(node, batch);
    let wanted = flows.wanted;
    let elements = match &node.op {
        // dW from x and dy; dx from dy and W.
        Op::Linear { tied, .. } => {
            let shared = shared(node, *tied);
            x + y + parameters + shared + wanted * (x + weight(node))
        }
        Op::Conv2d { .. } => x + y + parameters + wanted * (x + weight(node)),
        // Adds to rows of the table's gradient.
        Op::Embedding { .. } => x + 3 * y,
        Op::Positions => y + parameters + wanted * x,
        // Queries, keys and values, the output's gradient, and theirs.
        Op::Attention { .. } => x + y + wanted * x,
        // dy, and x or y, or the winners.
        Op::Relu | Op::Gelu { .. } | Op::MaxPool { .. } => wanted * (2 * y + x),
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
    work(products, elements)
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

fn work(flops: Option<u128>, elements: u128) -> Work {
    let narrow = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    Work {
        flops: flops.map(narrow),
        read_write_bytes: narrow(elements.saturating_mul(size_of::<f32>() as u128)),
    }
}
