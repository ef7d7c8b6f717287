//! Strategies run for tests: the same few batches through one device, DataParallel and DistributedDataParallel.
#![allow(dead_code, reason = "each test file uses a part of this")]
pub mod agree;
pub mod sharded;

use std::sync::Arc;

use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::deferred::DeferredBackend;
use syncmark_engine::comm::links::HostLinks;
use syncmark_engine::comm::shared::{DEFAULT_SLOT_BYTES, Region, SharedCommunicator, Waiting};
use syncmark_engine::data::HostBatch;
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{Model, NormOptions, lower};
use syncmark_engine::optim::{AdamwSettings, OptimizerSettings, Schedule, SgdSettings};
use syncmark_engine::philox::{self, Purpose};
use syncmark_engine::probe::{Dispatch, PhaseSpan, Probe, Silent};
use syncmark_engine::program::NamedTensor;
use syncmark_engine::strategy::{
    BucketCaps, Ddp, DdpOptions, DdpSettings, Dp, DpInputs, DpLoss, DpSettings, Single,
    SingleSettings, Strategy,
};

pub const INPUT: [usize; 3] = [2, 4, 6];
pub const CLASSES: usize = 3;
pub const SEED: u64 = 17;
/// Momentum without weight decay: after the first step the momentum buffer is the gradient.
pub const OPTIMIZER: OptimizerSettings = OptimizerSettings::sgd(SgdSettings {
    learning_rate: 0.05,
    momentum: 0.9,
    weight_decay: 0.0,
    nesterov: false,
});

/// A little of everything: strided and projected convolutions, a residual, pooling, dropout.
const NET: &str = r#"[{"conv2d":{"channels":8,"kernel":3,"padding":1}},"norm","relu",
    {"residual":{"body":[{"conv2d":{"channels":8,"kernel":3,"padding":1}},"norm"],"shortcut":[{"conv2d":{"channels":8,"kernel":1}}]}},
    "relu",{"max-pool":{"kernel":2}},{"dropout":{"p":0.25}},"flatten",{"linear":{"features":13}},"relu",
    {"linear":{"features":"classes"}}]"#;

pub fn model(norm: Norm) -> Model {
    let layers: Vec<LayerSpec> = serde_json::from_str(NET).unwrap();
    let spec = ModelSpec {
        name: "test".into(),
        input: INPUT.to_vec(),
        classes: CLASSES,
        layers,
    };
    lower(&spec, &INPUT, CLASSES, norm, &NormOptions::default()).unwrap()
}

/// Which backend a test runs on.
#[derive(Clone, Copy, Debug)]
pub enum On {
    Cpu,
    Deferred,
}

pub const BOTH: [On; 2] = [On::Cpu, On::Deferred];

pub fn device(on: On, index: usize) -> Box<dyn Backend> {
    match on {
        On::Cpu => Box::new(CpuBackend::new(CpuDevice::default()).unwrap()),
        On::Deferred => Box::new(DeferredBackend::new(index as u64 + 1).unwrap()),
    }
}

/// A batch that owns its samples.
pub struct Batch {
    pub inputs: Vec<f32>,
    pub labels: Vec<i32>,
}

impl Batch {
    /// Batch number `step` of `len` samples of `shape`.
    pub fn new(step: usize, len: usize) -> Self {
        let elements: usize = INPUT.iter().product();
        let mut inputs = vec![0.0; len * elements];
        philox::fill_symmetric(SEED, Purpose::Inputs, step as u32, 0, 1.7, &mut inputs);
        let labels = (0..len)
            .map(|i| ((i * 5 + step * 3) % 7 % CLASSES) as i32)
            .collect();
        Self { inputs, labels }
    }

    pub fn whole(&self) -> HostBatch<'_> {
        HostBatch {
            inputs: &self.inputs,
            labels: &self.labels,
            len: self.labels.len(),
        }
    }

    fn of(samples: HostBatch<'_>) -> Self {
        Self {
            inputs: samples.inputs.to_vec(),
            labels: samples.labels.to_vec(),
        }
    }

    /// What rank `rank` takes of a step of `micro_batches`, each of which is `chunks` in rank order.
    pub fn parts(&self, micro_batches: usize, chunks: &[usize], rank: usize) -> Self {
        let global = chunks.iter().sum::<usize>();
        let first = chunks[..rank].iter().sum::<usize>();
        let mut own = Self {
            inputs: Vec::new(),
            labels: Vec::new(),
        };
        for micro in 0..micro_batches {
            let start = micro * global + first;
            let part = self.whole().part(start..start + chunks[rank]);
            own.inputs.extend(part.inputs);
            own.labels.extend(part.labels);
        }
        own
    }
}

/// What a run ends with: the loss of each step, the state after the first step and at the end.
#[derive(Debug)]
pub struct Outcome {
    pub losses: Vec<f32>,
    pub after_first: Vec<NamedTensor>,
    pub end: Vec<NamedTensor>,
}

/// Steps `strategy` through the batches that `part` cuts out.
pub fn train(
    strategy: &mut dyn Strategy,
    steps: usize,
    len: usize,
    part: impl Fn(HostBatch<'_>) -> HostBatch<'_>,
) -> Outcome {
    train_on(strategy, steps, |step| {
        Batch::of(part(Batch::new(step, len).whole()))
    })
}

/// Steps `strategy` through batches.
pub fn train_on(
    strategy: &mut dyn Strategy,
    steps: usize,
    batch: impl Fn(usize) -> Batch,
) -> Outcome {
    follow(strategy, steps, |strategy, step| {
        strategy.step(batch(step).whole(), &mut Silent).unwrap();
    })
}

/// Makes steps one by one and keeps what they lead to; ranks must be equal after each.
pub fn follow(
    strategy: &mut dyn Strategy,
    steps: usize,
    make: impl Fn(&mut dyn Strategy, usize),
) -> Outcome {
    let (mut losses, mut after_first) = (Vec::new(), Vec::new());
    for step in 0..steps {
        make(strategy, step);
        losses.push(strategy.loss().unwrap());
        if step == 0 {
            after_first = strategy.export().unwrap();
        }
        if let Some(equal) = strategy.parameters_equal().unwrap() {
            assert!(equal, "ranks differ after step {step}");
        }
    }
    strategy.finish().unwrap();
    Outcome {
        losses,
        after_first,
        end: strategy.export().unwrap(),
    }
}

pub fn single(on: On, model: &Model, len: usize, chunks: &[usize]) -> Single {
    single_accumulating(on, model, len, chunks, 1)
}

/// One device that takes `accumulation` micro-batches of `len` samples a step.
pub fn single_accumulating(
    on: On,
    model: &Model,
    len: usize,
    chunks: &[usize],
    accumulation: usize,
) -> Single {
    let settings = SingleSettings {
        max_batch: len,
        accumulation,
        chunks: chunks.to_vec(),
        seed: SEED,
        optimizer: OPTIMIZER,
    };
    Single::new(device(on, 0), model, &settings).unwrap()
}

pub fn dp(on: On, model: &Model, len: usize, devices: usize, loss: DpLoss) -> Dp {
    dp_accumulating(on, model, len, devices, loss, 1)
}

/// DataParallel that takes `accumulation` micro-batches of `len` samples a step.
pub fn dp_accumulating(
    on: On,
    model: &Model,
    len: usize,
    devices: usize,
    loss: DpLoss,
    accumulation: usize,
) -> Dp {
    let from = DpInputs::Master;
    dp_from(from, on, model, len, devices, loss, accumulation)
}

/// As [`dp_accumulating`], with inputs from the master or the host.
pub fn dp_from(
    inputs: DpInputs,
    on: On,
    model: &Model,
    len: usize,
    devices: usize,
    loss: DpLoss,
    accumulation: usize,
) -> Dp {
    let backends: Vec<_> = (0..devices).map(|index| device(on, index)).collect();
    let links = Arc::new(HostLinks::new(backends.iter().map(|backend| &**backend)).unwrap());
    let settings = DpSettings {
        max_batch: len,
        accumulation,
        seed: SEED,
        optimizer: OPTIMIZER,
        loss,
        inputs,
        device_ids: Vec::new(),
        output_device: None,
        cores: Vec::new(),
    };
    Dp::new(backends, links, model, &settings).unwrap()
}

/// PyTorch's defaults but for one cap of all buckets.
pub fn capped(cap: Option<usize>) -> DdpOptions {
    DdpOptions {
        bucket_caps: cap.map_or_else(BucketCaps::default, BucketCaps::uniform),
        ..DdpOptions::default()
    }
}

/// One rank of DDP; `chunks` are the samples of each rank.
pub fn ddp(
    on: On,
    model: &Model,
    region: &Arc<Region>,
    rank: usize,
    chunks: &[usize],
    options: DdpOptions,
) -> Ddp {
    let communicator =
        SharedCommunicator::join(Arc::clone(region), rank, Waiting::default()).unwrap();
    let settings = DdpSettings {
        max_batch: chunks[rank],
        sample_offset: chunks[..rank].iter().sum(),
        global_batch: chunks.iter().sum(),
        seed: SEED,
        optimizer: OPTIMIZER,
        options,
    };
    Ddp::new(device(on, rank), Box::new(communicator), model, &settings).unwrap()
}

/// Runs `body` on every rank of a new DDP job of threads, with one cap of all buckets.
pub fn ranks<T: Send>(
    on: On,
    model: &Model,
    chunks: &[usize],
    cap: Option<usize>,
    body: impl Fn(usize, &mut Ddp) -> T + Sync,
) -> Vec<T> {
    ranks_with(on, model, chunks, capped(cap), body)
}

/// Runs `body` on every rank of a new DDP job of threads.
pub fn ranks_with<T: Send>(
    on: On,
    model: &Model,
    chunks: &[usize],
    options: DdpOptions,
    body: impl Fn(usize, &mut Ddp) -> T + Sync,
) -> Vec<T> {
    let region = Arc::new(Region::for_threads(chunks.len(), DEFAULT_SLOT_BYTES).unwrap());
    std::thread::scope(|scope| {
        let (region, body) = (&region, &body);
        let start = |rank| {
            scope.spawn(move || body(rank, &mut ddp(on, model, region, rank, chunks, options)))
        };
        let ranks: Vec<_> = (0..chunks.len()).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Trains DDP on contiguous parts of the global batch; outcomes in rank order.
pub fn train_ddp(
    on: On,
    model: &Model,
    steps: usize,
    chunks: &[usize],
    cap: Option<usize>,
) -> Vec<Outcome> {
    train_ddp_with(on, model, steps, chunks, capped(cap))
}

/// Trains DDP on contiguous parts of each global micro-batch; outcomes in rank order.
pub fn train_ddp_with(
    on: On,
    model: &Model,
    steps: usize,
    chunks: &[usize],
    options: DdpOptions,
) -> Vec<Outcome> {
    let count = options.accumulation;
    ranks_with(on, model, chunks, options, |rank, ddp| {
        train_on(ddp, steps, |step| {
            let whole = Batch::new(step, count * chunks.iter().sum::<usize>());
            whole.parts(count, chunks, rank)
        })
    })
}

/// Keeps what each step says of host and device.
#[derive(Default)]
pub struct Told(pub Vec<Dispatch>);

impl Probe for Told {
    fn tracing(&self) -> bool {
        false
    }
    fn span(&mut self, _: PhaseSpan) {
        unreachable!("nobody traces");
    }
    fn dispatching(&self) -> bool {
        true
    }
    fn dispatch(&mut self, dispatch: Dispatch) {
        self.0.push(dispatch);
    }
}

/// A rate and bias corrections that change with every step.
pub fn adamw() -> OptimizerSettings {
    OptimizerSettings {
        schedule: Schedule::WarmUp {
            steps: 10,
            start: 0.1,
        },
        ..OptimizerSettings::adamw(AdamwSettings {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
        })
    }
}
