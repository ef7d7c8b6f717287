//! From a trial's configuration to the engine's settings.
use syncmark_engine::optim::{AdamwSettings, OptimizerSettings, Schedule, SgdSettings};
use syncmark_engine::strategy::{BucketCaps, Compression, DdpOptions, PowerSgdSettings};

use crate::plan::config::{DdpConfig, TrialConfig};
use crate::run::protocol::Purpose;
use crate::scenario::file;

/// DDP's options, with `accumulation` micro-batches a step.
pub(super) fn distributed(ddp: &DdpConfig, accumulation: usize, purpose: &Purpose) -> DdpOptions {
    // A cap beyond what this machine can address is as good as none.
    let bytes = |cap: u64| usize::try_from(cap).unwrap_or(usize::MAX);
    DdpOptions {
        bucket_caps: BucketCaps {
            bytes: bytes(ddp.bucket_cap_bytes),
            first_bytes: bytes(ddp.first_bucket_cap_bytes),
        },
        overlap: ddp.overlap,
        broadcast_buffers: ddp.broadcast_buffers,
        accumulation,
        no_sync: ddp.no_sync,
        compression: compression(ddp.compression, purpose),
    }
}

/// A gate compresses every matrix, however little that saves (see `gate::gated`).
fn compression(compression: file::Compression, purpose: &Purpose) -> Compression {
    match compression {
        file::Compression::None => Compression::None,
        file::Compression::Fp16 => Compression::Fp16,
        file::Compression::Bf16 => Compression::Bf16,
        file::Compression::Powersgd(power) => {
            let usual = PowerSgdSettings::default();
            Compression::PowerSgd(PowerSgdSettings {
                rank: power.rank,
                start_step: power.start_step as u64,
                min_compression_rate: match purpose {
                    Purpose::Gate { .. } => 0.0,
                    Purpose::Measure { .. } | Purpose::Choices { .. } => usual.min_compression_rate,
                },
                error_feedback: power.error_feedback,
                warm_start: power.warm_start,
            })
        }
    }
}

/// The optimizer and how its rate changes.
pub(super) fn optimizer(config: &TrialConfig) -> OptimizerSettings {
    let settings = match &config.optimizer {
        file::Optimizer::Sgd(sgd) => OptimizerSettings::sgd(SgdSettings {
            learning_rate: sgd.learning_rate as f32,
            momentum: sgd.momentum as f32,
            weight_decay: sgd.weight_decay as f32,
            nesterov: sgd.nesterov,
        }),
        file::Optimizer::Adamw(adamw) => OptimizerSettings::adamw(AdamwSettings {
            learning_rate: adamw.learning_rate as f32,
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            eps: adamw.eps as f32,
            weight_decay: adamw.weight_decay as f32,
        }),
    };
    OptimizerSettings {
        schedule: schedule(&config.schedule),
        ..settings
    }
}

fn schedule(schedule: &file::Schedule) -> Schedule {
    match schedule {
        file::Schedule::Constant => Schedule::Constant,
        file::Schedule::WarmUp(warm_up) => Schedule::WarmUp {
            steps: warm_up.steps as u64,
            start: warm_up.start,
        },
        file::Schedule::Step(step) => Schedule::Step {
            every: step.every as u64,
            factor: step.factor,
        },
        file::Schedule::Cosine(cosine) => Schedule::Cosine {
            steps: cosine.steps as u64,
            warm_up_steps: cosine.warm_up_steps as u64,
            minimum: cosine.minimum,
        },
    }
}
