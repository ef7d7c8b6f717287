//! From a resolved model to a program: memory is laid out, parameters are initialised, layers get their spans.
use super::fuse::{self, Role};
use super::plan::plan;
use super::table::{self, Buffer, BufferKind, Buffers, Parameter};
use super::values::{Values, arena};
use super::{BuildError, Node, Program, ProgramSettings};
use crate::backend::{Backend, Category, HostSlice, Stream};
use crate::kernel::{Heads, Window};
use crate::layer::Layer;
use crate::layer::attention::Attention;
use crate::layer::average_pool::AveragePool;
use crate::layer::conv2d::Conv2d;
use crate::layer::dropout::Dropout;
use crate::layer::embedding::Embedding;
use crate::layer::flatten::Flatten;
use crate::layer::gelu::Gelu;
use crate::layer::global_average_pool::GlobalAveragePool;
use crate::layer::linear::Linear;
use crate::layer::max_pool::MaxPool;
use crate::layer::positions::Positions;
use crate::layer::relu::Relu;
use crate::layer::residual::Residual;
use crate::layer::weight::Weight;
use crate::layer::within::Within;
use crate::model::{self, Init, Model, Op};
use crate::norm::Tail;
use crate::norm::batch::{self, BatchNorm, Learnable};
use crate::norm::group::{self, GroupNorm};
use crate::norm::rms::{self, RmsNorm};
use crate::norm::sync_batch::SyncBatchNorm;
use crate::philox::{self, Purpose};
use crate::tensor::{Dtype, Span};

type Result<T> = std::result::Result<T, BuildError>;

pub(super) fn build(
    backend: &mut dyn Backend,
    model: &Model,
    settings: ProgramSettings,
) -> Result<Program> {
    for (name, value) in [
        ("the maximum batch", settings.max_batch),
        ("the maximum number of chunks", settings.max_chunks),
        ("the world size", settings.world_size),
        ("the number of shards", settings.shards),
    ] {
        if value == 0 {
            return Err(BuildError::Zero(name));
        }
    }
    let (mut table, buffer_table) = table::tables(model);
    let ready = table::place(&mut table, model.nodes.len());
    let elements: usize = table.iter().map(|parameter| parameter.range.len()).sum();
    let padded_elements = elements.next_multiple_of(settings.shards);
    let mut arena = |category| allocate(backend, category, Dtype::F32, padded_elements);
    let padded = [arena(Category::Parameters)?, arena(Category::Gradients)?];
    let [parameters, gradients] = padded.map(|arena| arena.first(elements));
    initialise(backend, &table, parameters, settings.seed)?;
    let buffers = buffers(backend, buffer_table)?;
    let roles = fuse::roles(model);
    let plan = plan(model, &roles, settings.input_gradient);
    let values = Values::allocate(backend, model, &roles, &plan, settings.max_batch)?;
    let narrowed = narrowed(backend, &table, model)?;
    let room = workspace(model) * backend.compute_threads();
    let workspace = allocate(backend, Category::Workspace, Dtype::F32, room)?;
    let mut builder = Builder {
        backend,
        model,
        settings,
        table: &table,
        parameters,
        gradients,
        buffers: &buffers,
        workspace,
        narrowed: &narrowed,
        roles: &roles,
    };
    let mut nodes = Vec::with_capacity(model.nodes.len());
    for (i, ready) in ready.into_iter().enumerate() {
        let layer = builder.layer(i)?;
        nodes.push(Node {
            layer,
            wires: values.wires(model, &roles, &plan, i, settings.max_batch),
            ready,
        });
    }
    let output = model.nodes.len();
    Ok(Program {
        nodes,
        padded,
        parameters,
        gradients,
        input: values.input,
        first: values.forward[0],
        output: values.forward[output],
        d_output: values
            .gradient(&plan, output, settings.max_batch)
            .unwrap_or(Span::EMPTY),
        d_input: values
            .gradient(&plan, 0, settings.max_batch)
            .filter(|_| settings.input_gradient),
        input_shape: model.input,
        output_shape: model.output,
        settings,
        table,
        buffers,
    })
}

/// An arena, or the empty span: devices need not know arenas of nothing.
pub(super) fn allocate(
    backend: &mut dyn Backend,
    category: Category,
    dtype: Dtype,
    len: usize,
) -> Result<Span> {
    if len == 0 {
        Ok(Span::EMPTY)
    } else {
        Ok(backend.allocate(category, dtype, len)?)
    }
}

/// For each node, where its weight, rounded to the type of values, lies between forward and backward: empty where it is used as it is.
fn narrowed(backend: &mut dyn Backend, table: &[Parameter], model: &Model) -> Result<Vec<Span>> {
    let dtype = backend.values();
    let size = |(i, node): (usize, &model::Node)| {
        let owner = match node.op {
            Op::Linear { tied, .. } => tied.unwrap_or(i),
            Op::Conv2d { .. } => i,
            _ => return 0,
        };
        let weight = table.iter().find(|parameter| parameter.node == owner);
        weight.map_or(0, |parameter| parameter.range.len())
    };
    if dtype == Dtype::F32 {
        return Ok(vec![Span::EMPTY; model.nodes.len()]);
    }
    let sizes: Vec<usize> = model.nodes.iter().enumerate().map(size).collect();
    arena(backend, (Category::Workspace, dtype), &sizes, 1)
}

/// The largest workspace that a node asks for on one thread.
fn workspace(model: &Model) -> usize {
    let asked = |(i, node): (usize, &model::Node)| match &node.op {
        Op::Conv2d { window, .. } => window.workspace(),
        Op::Attention { .. } => heads(node, i, 0).workspace(),
        _ => 0,
    };
    model.nodes.iter().enumerate().map(asked).max().unwrap_or(0)
}

/// The heads of node `i`.
///
/// # Panics
/// When it is no attention.
fn heads(node: &model::Node, i: usize, seed: u64) -> Heads {
    let Op::Attention {
        heads,
        dropout,
        padding,
    } = node.op
    else {
        unreachable!("the caller has looked")
    };
    Heads {
        length: node.output.spatial(),
        count: heads,
        size: node.output.channels() / heads,
        padding,
        dropout,
        seed,
        node: i as u32,
    }
}

/// Uploads the first values of all parameters: functions of the seed, and of the parameter's index in execution order.
fn initialise(
    backend: &mut dyn Backend,
    table: &[Parameter],
    parameters: Span,
    seed: u64,
) -> Result<()> {
    let mut arena = vec![0.0; parameters.len()];
    let mut file = Vec::new();
    for (stream, parameter) in table.iter().enumerate() {
        let to = &mut arena[parameter.range.clone()];
        match parameter.init {
            Init::One => to.fill(1.0),
            Init::Zero => to.fill(0.0),
            Init::Uniform { fan_in } => {
                file.resize(to.len(), 0.0);
                let bound = (1.0 / (fan_in as f64).sqrt()) as f32;
                philox::fill_symmetric(
                    seed,
                    Purpose::Parameters,
                    stream as u32,
                    0,
                    bound,
                    &mut file,
                );
                parameter.layout.to_memory(&file, to);
            }
        }
    }
    upload(backend, &arena, parameters)
}

fn upload(backend: &mut dyn Backend, from: &[f32], to: Span) -> Result<()> {
    if from.is_empty() {
        Ok(())
    } else {
        Ok(backend.upload(Stream::Compute, HostSlice::F32(from), to)?)
    }
}

fn buffers(backend: &mut dyn Backend, table: Vec<Buffer>) -> Result<Buffers> {
    let end = |tracked: bool| {
        let of_kind = table
            .iter()
            .filter(|buffer| (buffer.kind == BufferKind::Tracked) == tracked);
        of_kind.map(|buffer| buffer.range.end).max().unwrap_or(0)
    };
    let floats = allocate(backend, Category::Buffers, Dtype::F32, end(false))?;
    let integers = allocate(backend, Category::Buffers, Dtype::I64, end(true))?;
    let mut start = vec![0.0; floats.len()];
    for buffer in table
        .iter()
        .filter(|buffer| buffer.kind == BufferKind::RunningVariance)
    {
        start[buffer.range.clone()].fill(1.0);
    }
    upload(backend, &start, floats)?;
    Ok(Buffers {
        floats,
        integers,
        table,
    })
}

/// Positions that are normalized together, and how many such parts a sample has.
fn split(positions: usize, each_position: bool) -> [usize; 2] {
    if each_position {
        [1, positions]
    } else {
        [positions, 1]
    }
}

struct Builder<'a> {
    backend: &'a mut dyn Backend,
    model: &'a Model,
    settings: ProgramSettings,
    table: &'a [Parameter],
    parameters: Span,
    gradients: Span,
    buffers: &'a Buffers,
    workspace: Span,
    narrowed: &'a [Span],
    roles: &'a [Role],
}

impl Builder<'_> {
    /// What node `i` does of the nodes behind it.
    fn tail(&self, i: usize) -> Tail {
        match self.roles[i] {
            Role::Head { tail, .. } => tail,
            Role::Alone | Role::Within(_) => Tail::None,
        }
    }

    fn layer(&mut self, i: usize) -> Result<Box<dyn Layer>> {
        let node = &self.model.nodes[i];
        if let Role::Within(_) = self.roles[i] {
            let kind = node.op.kind();
            return Ok(Box::new(Within { kind }));
        }
        let (channels, spatial) = (node.input.channels(), node.input.spatial());
        Ok(match &node.op {
            Op::Linear { tied, .. } => Box::new(self.linear(i, node, *tied)),
            Op::Embedding { padding, .. } => {
                let table = self.learnable(i, 0);
                Box::new(Embedding {
                    features: node.output.channels(),
                    padding: *padding,
                    table: table.value,
                    d_table: table.gradient,
                })
            }
            Op::Positions => {
                let weight = self.learnable(i, 0);
                Box::new(Positions {
                    weight: weight.value,
                    d_weight: weight.gradient,
                })
            }
            Op::Attention { .. } => {
                let heads = heads(node, i, self.settings.seed);
                let (workspace, max_batch) = (self.workspace, self.settings.max_batch);
                Box::new(Attention::new(self.backend, heads, workspace, max_batch)?)
            }
            Op::Conv2d { window, .. } => Box::new(self.conv2d(i, *window)),
            Op::Relu => Box::new(Relu),
            Op::Gelu { formula } => Box::new(Gelu { formula: *formula }),
            Op::MaxPool { window } => {
                let len = node.output.elements() * self.settings.max_batch;
                let index = self
                    .backend
                    .allocate(Category::Activations, Dtype::I32, len)?;
                Box::new(MaxPool {
                    window: *window,
                    index,
                })
            }
            Op::AveragePool {
                window,
                count_padding,
            } => Box::new(AveragePool {
                window: *window,
                count_padding: *count_padding,
            }),
            Op::GlobalAveragePool => Box::new(GlobalAveragePool { channels, spatial }),
            Op::Flatten => Box::new(Flatten { channels, spatial }),
            Op::Dropout { p } => Box::new(Dropout {
                p: *p,
                seed: self.settings.seed,
                node: i as u32,
            }),
            Op::BatchNorm { .. } => self.batch_norm(i, node)?,
            Op::GroupNorm { .. } => self.group_norm(i, node)?,
            Op::RmsNorm {
                eps,
                affine,
                each_position,
            } => {
                let [spatial, parts] = split(spatial, *each_position);
                let settings = rms::Settings {
                    channels,
                    spatial,
                    parts,
                    eps: *eps,
                    affine: *affine,
                    gamma: self.learnable(i, 0),
                    tail: self.tail(i),
                };
                let max_batch = self.settings.max_batch;
                Box::new(RmsNorm::new(self.backend, settings, max_batch)?)
            }
            Op::Add => Box::new(Residual),
        })
    }

    /// A node's parameter `slot` and its gradient, if it has so many.
    fn parameter(&self, node: usize, slot: usize) -> Option<(Span, Span)> {
        let range = self
            .table
            .iter()
            .filter(|parameter| parameter.node == node)
            .nth(slot)?
            .range
            .clone();
        Some((
            self.parameters.slice(range.clone()),
            self.gradients.slice(range),
        ))
    }

    fn learnable(&self, node: usize, slot: usize) -> Learnable {
        self.parameter(node, slot)
            .map_or(Learnable::NONE, |(value, gradient)| Learnable {
                value,
                gradient,
            })
    }

    fn linear(&self, i: usize, node: &model::Node, tied: Option<usize>) -> Linear {
        // A tied weight is the first parameter of another node, and the bias then the first of this one.
        let Learnable {
            value: weight,
            gradient: d_weight,
        } = self.learnable(tied.unwrap_or(i), 0);
        Linear {
            inputs: node.input.channels(),
            outputs: node.output.channels(),
            positions: node.output.spatial(),
            weight: Weight::new(weight, self.narrowed[i]),
            d_weight,
            bias: self.parameter(i, usize::from(tied.is_none())),
        }
    }

    fn conv2d(&self, i: usize, window: Window) -> Conv2d {
        let Learnable {
            value: weight,
            gradient: d_weight,
        } = self.learnable(i, 0);
        Conv2d {
            window,
            algorithms: window.algorithms(),
            weight: Weight::new(weight, self.narrowed[i]),
            d_weight,
            bias: self.parameter(i, 1),
            workspace: self.workspace,
        }
    }

    fn batch_norm(&mut self, i: usize, node: &model::Node) -> Result<Box<dyn Layer>> {
        let Op::BatchNorm {
            sync,
            eps,
            momentum,
            padding,
            ..
        } = node.op
        else {
            unreachable!("the caller has looked")
        };
        let buffers = self.buffers;
        let buffer = |kind| {
            buffers
                .table
                .iter()
                .find(|buffer| buffer.node == i && buffer.kind == kind)
        };
        let place = |kind, all: Span| {
            buffer(kind).map_or(Span::EMPTY, |found| all.slice(found.range.clone()))
        };
        let name = buffer(BufferKind::Tracked).map_or("", |found| {
            found.name.trim_end_matches(".num_batches_tracked")
        });
        let settings = batch::Settings {
            name: name.to_owned(),
            channels: node.input.channels(),
            spatial: node.input.spatial(),
            eps,
            momentum,
            gamma: self.learnable(i, 0),
            beta: self.learnable(i, 1),
            running_mean: place(BufferKind::RunningMean, buffers.floats),
            running_variance: place(BufferKind::RunningVariance, buffers.floats),
            tracked: place(BufferKind::Tracked, buffers.integers),
            padding,
            tail: self.tail(i),
        };
        let ProgramSettings {
            max_chunks,
            world_size,
            ..
        } = self.settings;
        Ok(if sync {
            Box::new(SyncBatchNorm::new(
                self.backend,
                settings,
                max_chunks,
                world_size,
            )?)
        } else {
            Box::new(BatchNorm::new(self.backend, settings, max_chunks)?)
        })
    }

    fn group_norm(&mut self, i: usize, node: &model::Node) -> Result<Box<dyn Layer>> {
        let Op::GroupNorm {
            groups,
            eps,
            affine,
            each_position,
            ..
        } = node.op
        else {
            unreachable!("the caller has looked")
        };
        let [spatial, parts] = split(node.input.spatial(), each_position);
        let settings = group::Settings {
            channels: node.input.channels(),
            spatial,
            parts,
            groups,
            eps,
            affine,
            gamma: self.learnable(i, 0),
            beta: self.learnable(i, 1),
            kind: node.op.kind(),
            tail: self.tail(i),
        };
        Ok(Box::new(GroupNorm::new(
            self.backend,
            settings,
            self.settings.max_batch,
        )?))
    }
}
