//! Gates: before any timing counts, a strategy must train like one device does.
//!
//! Contract: a trial is gated against `single` on the same samples with the same normalization chunks, for a few steps of
//! a small batch, with as many micro-batches a step. Trials that differ only in how long they are measured share a gate.
//! Whether the dumps agree is decided in [`super::agreement`]. Reference: "Gates come before timing" in METHODOLOGY.md.
use std::path::{Path, PathBuf};
use std::time::Duration;

use syncmark_engine::model::spec::{LayerSpec, Norm};

use super::job::Job;
use super::protocol::Purpose;
use crate::plan::config::{Batch, MeasureConfig, StrategyConfig, TrialConfig, Work};
use crate::scenario::file::{
    Compression, DpLoss, Optimizer, PowerSgd, Scaling, Schedule, StepDecay,
};

/// One comparison of a gate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// Training steps before it.
    pub steps: u32,
    /// Largest norm-wise relative error of a tensor's update that passes.
    pub tolerance: f64,
}

/// The comparisons of a gate, in order; the first that fails ends it.
///
/// After one step both sides have computed forward from the same bits, and sums in another order differ by some 1e-5: the
/// tolerance is a hundred times that, a hundredth of what a wrong factor or a lost sample shows. Later steps begin from
/// parameters that differ in their last bit, so now and then a ReLU falls on the other side of zero; in a batch this small
/// one of them moves a tensor's update by up to 2e-2 (resnet20, measured over seeds). What only shows
/// then, such as a bucket lost when buckets are rebuilt, a stale replica or momentum out of step, moves whole tensors.
pub const STAGES: [Stage; 2] = [
    Stage {
        steps: 1,
        tolerance: 1e-3,
    },
    Stage {
        steps: 3,
        tolerance: 5e-2,
    },
];

/// Of compressed gradients the first comparison allows ten units of their rounding, 2⁻¹¹ and 2⁻⁸: each addend is rounded twice
/// and the sum once, relative to addends that may be larger than their mean. It is still well below what a wrong factor
/// shows. Over more steps errors average out, but bfloat16's are already of the order of that comparison.
const FP16_TOLERANCE: f64 = 5e-3;
const BF16_TOLERANCES: [f64; 2] = [4e-2, 1e-1];

/// Starts of a gate with SyncBatchNorm, of which one must pass all comparisons; see [`Pair::starts`].
const SYNC_STARTS: u32 = 8;
/// Largest error that another start is tried for. A ReLU that fell on the other side of zero moves one channel of one tensor; a wrong factor
/// or a lost sample shows a few tenths, and is not tried again.
pub const STRAY: f64 = 1e-1;

/// Samples on a device of a gate: the smallest batch whose statistics are not degenerate.
const DEVICE_BATCH: usize = 4;

/// Largest learning rate of a gate. What is compared are updates relative to their own size, so a small rate hides no
/// wrong factor; a large one would feed rounding back through batch statistics of few samples, which amplify it without
/// bound in deep networks, and right and wrong could not be told apart.
const LEARNING_RATE: f64 = 1e-3;

/// Smallest eps of a gate with AdamW, of the size of a gradient. With the usual 1e-8 the first update is lr·g/(|g| + eps), the
/// gradient's *sign*: where a gradient is all but zero, rounding alone decides it, and right and wrong could not be told
/// apart. With this one an update is a smooth function of the gradient, by the same code. A gradient that is wrong by a
/// factor, to which AdamW's updates are deaf, shows in its averages, which are compared like the parameters.
const EPS: f64 = 1e-2;

/// Most micro-batches of a gate's step: a longer accumulation repeats what these show, and takes longer.
const MICRO_BATCHES: usize = 8;

/// Stands for every schedule in a gate: the few steps of one would see the first rates of a long warm-up, or no change at
/// all, while this one halves the rate at each step, so that whoever does not follow it is seen.
const SCHEDULE: Schedule = Schedule::Step(StepDecay {
    every: 1,
    factor: 0.5,
});

/// At least the rank of any matrix.
const FULL_RANK: usize = u32::MAX as usize;
/// The earliest start that error feedback and warm start allow.
const POWERSGD_START: usize = 2;

/// What must be run to gate a trial.
#[derive(Clone, Debug, PartialEq)]
pub enum Gate {
    /// The strategy, and the single device that it must agree with.
    Needed(Box<Pair>),
    /// There is nothing to agree with, and why.
    None(&'static str),
}

/// The two sides of a gate.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The strategy on the gate's batch.
    pub strategy: TrialConfig,
    /// One device on the same batch.
    pub reference: TrialConfig,
    /// Normalization chunks of the reference.
    pub chunks: Vec<usize>,
}

impl Gate {
    /// The gate of a trial.
    pub fn of(trial: &TrialConfig) -> Self {
        if matches!(trial.work, Work::Collectives(_)) {
            return Self::None("collectives compare their own results");
        }
        match trial.strategy {
            StrategyConfig::Single => return Self::None("one device is the reference itself"),
            StrategyConfig::Independent { .. } => {
                return Self::None("independent replicas exchange nothing that could be wrong");
            }
            StrategyConfig::Dp(_) | StrategyConfig::Ddp(_) | StrategyConfig::Zero1(_) => {}
        }
        let synchronized =
            trial.norm == Norm::SyncBatch || has_layer(&trial.model.layers, is_sync_batch);
        if synchronized && (trial.norm == Norm::Batch || has_layer(&trial.model.layers, is_batch)) {
            // One chunk list cannot say both "statistics of each device" and "statistics of all".
            return Self::None(
                "a model that mixes BatchNorm and SyncBatchNorm has no single-device equivalent",
            );
        }
        let batch = match trial.strategy.dp().map(|dp| dp.loss) {
            // The mean of the replicas' losses weighs replicas, not samples: over uneven chunks no single device
            // computes it, so the gate's chunks are even (METHODOLOGY.md).
            Some(DpLoss::Replica) => even_batch(trial.devices),
            _ => gate_batch(&trial.batch, trial.devices),
        };
        let chunks = if synchronized {
            vec![batch.global]
        } else {
            batch.chunks.clone()
        };
        let reference = TrialConfig {
            strategy: StrategyConfig::Single,
            devices: 1,
            cuda_graph: false,
            norm: if trial.norm == Norm::SyncBatch {
                Norm::Batch
            } else {
                trial.norm
            },
            ..gate_config(
                trial,
                Batch {
                    global: batch.global,
                    chunks: vec![batch.global],
                },
            )
        };
        Self::Needed(Box::new(Pair {
            strategy: gate_config(trial, batch),
            reference,
            chunks,
        }))
    }
}

impl Pair {
    /// What the strategy's side depends on: trials with equal keys share a gate.
    pub fn key(&self) -> String {
        serde_json::to_string(&self.strategy).expect("a configuration is plain data")
    }

    /// The comparisons of this gate, in order; see [`STAGES`].
    pub fn stages(&self) -> [Stage; 2] {
        let mut stages = STAGES;
        match self.strategy.strategy.ddp().map(|ddp| ddp.compression) {
            Some(Compression::Fp16) => stages[0].tolerance = FP16_TOLERANCE,
            Some(Compression::Bf16) => {
                for (stage, tolerance) in stages.iter_mut().zip(BF16_TOLERANCES) {
                    stage.tolerance = tolerance;
                }
            }
            // Two steps with factors: what error feedback and warm start keep must enter the second.
            Some(Compression::Powersgd(_)) => stages[1].steps = POWERSGD_START as u32 + 2,
            Some(Compression::None) | None => {}
        }
        stages
    }

    /// Initial parameters that may be tried, one after the other, until a gate passes.
    ///
    /// SyncBatchNorm adds up what each rank has summed, one device adds all samples in a row: so here, other than in every other gate,
    /// the forwards differ in their last bits, and a ReLU near zero can fall on its other side in the very first step. Whether one does depends on
    /// the parameters alone; a mistake does not.
    pub fn starts(&self) -> u32 {
        let config = &self.strategy;
        let synchronized =
            config.norm == Norm::SyncBatch || has_layer(&config.model.layers, is_sync_batch);
        if synchronized { SYNC_STARTS } else { 1 }
    }

    /// The same gate from the initial parameters number `start`.
    pub fn from_start(&self, start: u32) -> Self {
        let mut pair = self.clone();
        for side in [&mut pair.strategy, &mut pair.reference] {
            side.train_seed = side.train_seed.wrapping_add(u64::from(start));
        }
        pair
    }

    /// What a stage's reference depends on: gates with equal keys share it.
    pub fn reference_key(&self, stage: Stage) -> String {
        serde_json::to_string(&(&self.reference, &self.chunks, stage.steps))
            .expect("a configuration is plain data")
    }

    /// The job of the strategy's side, and the files that its ranks write below `folder`.
    pub fn strategy_job(&self, stage: Stage, label: &str, folder: &Path) -> (Job, Vec<PathBuf>) {
        let label = format!("{label}, gate at step {}", stage.steps);
        gate_job(&self.strategy, Vec::new(), stage, label, folder)
    }

    /// The job of the reference, and the file that it writes below `folder`.
    pub fn reference_job(&self, stage: Stage, label: &str, folder: &Path) -> (Job, Vec<PathBuf>) {
        let label = format!("{label}, reference at step {}", stage.steps);
        gate_job(&self.reference, self.chunks.clone(), stage, label, folder)
    }

    /// `1 device, chunks 4+4`, and what else a reader must know of the comparison.
    pub fn reference_name(&self) -> String {
        let chunks: Vec<String> = self.chunks.iter().map(usize::to_string).collect();
        let mut name = format!("1 device, chunks {}", chunks.join("+"));
        if self.reference.accumulation > 1 {
            name += &format!(", {} micro-batches", self.reference.accumulation);
        }
        if self.strategy.strategy.broadcast_buffers() == Some(false) {
            name += ", running statistics of rank 0 alone";
        }
        name
    }
}

fn gate_job(
    trial: &TrialConfig,
    chunks: Vec<usize>,
    stage: Stage,
    label: String,
    folder: &Path,
) -> (Job, Vec<PathBuf>) {
    let outputs: Vec<PathBuf> = (0..dumps(trial))
        .map(|rank| folder.join(format!("rank{rank}.safetensors")))
        .collect();
    let purpose = Purpose::Gate {
        steps: stage.steps,
        global_batch: trial.batch.global,
        chunks,
        outputs: outputs.clone(),
    };
    let job = Job {
        label,
        trial: trial.clone(),
        purpose,
        repeat: 0,
        timeout: Duration::from_nanos(trial.measure.timeout_ns),
    };
    (job, outputs)
}

/// Dumps that a configuration writes: one per rank of DDP, one for everything with one set of parameters.
fn dumps(trial: &TrialConfig) -> usize {
    match trial.strategy {
        StrategyConfig::Ddp(_) | StrategyConfig::Zero1(_) => trial.devices,
        StrategyConfig::Single | StrategyConfig::Independent { .. } | StrategyConfig::Dp(_) => 1,
    }
}

fn even_batch(devices: usize) -> Batch {
    Batch {
        global: DEVICE_BATCH * devices,
        chunks: vec![DEVICE_BATCH; devices],
    }
}

/// A small batch split like the trial's: even if the trial's is even, uneven if it is uneven.
fn gate_batch(trial: &Batch, devices: usize) -> Batch {
    let even =
        trial.chunks.len() == devices && trial.chunks.windows(2).all(|pair| pair[0] == pair[1]);
    if even {
        return even_batch(devices);
    }
    let global = trial.global.min(DEVICE_BATCH * devices - 1);
    let chunk = global.div_ceil(devices);
    let chunks = (0..global)
        .step_by(chunk)
        .map(|start| chunk.min(global - start))
        .collect();
    Batch { global, chunks }
}

/// The trial with everything fixed that a gate does not depend on.
fn gate_config(trial: &TrialConfig, batch: Batch) -> TrialConfig {
    let measure = MeasureConfig {
        steps: 1,
        min_time_ns: 0,
        warmup_steps: 0,
        warmup_time_ns: 0,
        timeout_ns: trial.measure.timeout_ns,
        trace_steps: 0,
        unsynchronized: false,
        nvtx: false,
        smoke: true,
    };
    let mut optimizer = trial.optimizer.clone();
    match &mut optimizer {
        Optimizer::Sgd(sgd) => sgd.learning_rate = sgd.learning_rate.min(LEARNING_RATE),
        Optimizer::Adamw(adamw) => {
            adamw.learning_rate = adamw.learning_rate.min(LEARNING_RATE);
            adamw.eps = adamw.eps.max(EPS);
        }
    }
    let schedule = match trial.schedule {
        Schedule::Constant => Schedule::Constant,
        _ => SCHEDULE,
    };
    let mut strategy = trial.strategy.clone();
    if let StrategyConfig::Ddp(ddp) = &mut strategy {
        ddp.compression = gated(ddp.compression);
    }
    // What learns is gated as what is timed.
    let work = match &trial.work {
        Work::Learning(_) => Work::Train,
        other => other.clone(),
    };
    TrialConfig {
        work,
        strategy,
        batch,
        scaling: Scaling::Strong,
        accumulation: trial.accumulation.min(MICRO_BATCHES),
        optimizer,
        schedule,
        measure,
        ..trial.clone()
    }
}

/// Low-rank gradients agree with no single device. With factors of full rank, of every matrix, and after as few plain steps as
/// their state allows, the same code loses nothing but rounding: a gate then sees whatever is wired wrongly. What a low
/// rank loses is measured, not gated (`compression.csv`).
fn gated(compression: Compression) -> Compression {
    match compression {
        Compression::Powersgd(power) => Compression::Powersgd(PowerSgd {
            rank: FULL_RANK,
            start_step: POWERSGD_START,
            ..power
        }),
        other => other,
    }
}

fn is_batch(layer: &LayerSpec) -> bool {
    matches!(layer, LayerSpec::BatchNorm(_))
}

fn is_sync_batch(layer: &LayerSpec) -> bool {
    matches!(layer, LayerSpec::SyncBatchNorm(_))
}

/// Whether a layer of the kind stands anywhere in the model.
fn has_layer(layers: &[LayerSpec], kind: fn(&LayerSpec) -> bool) -> bool {
    layers.iter().any(|layer| match layer {
        LayerSpec::Residual(residual) => {
            has_layer(&residual.body, kind) || has_layer(&residual.shortcut, kind)
        }
        LayerSpec::Repeat(repeat) => has_layer(&repeat.layers, kind),
        other => kind(other),
    })
}

#[cfg(test)]
mod tests;
