//! Trials of the kind `collectives`: ranks that only communicate.
//!
//! Contract: such a trial uses launch, transport and number of devices; everything that belongs to training holds one
//! value in all of them, so that equal work is an equal configuration.
use syncmark_engine::model::spec::{ModelSpec, Norm};

use crate::plan::backend::{resolved, transport, unsuited};
use crate::plan::combine::{Combination, measure, notes};
use crate::plan::config::{
    Backend, Batch, CollectivesConfig, DataConfig, DdpConfig, PROTOCOL_VERSION, SourceConfig,
    StrategyConfig, TrialConfig, Work,
};
use crate::plan::meaningless::Refused;
use crate::scenario::file::{
    BUCKET_CAP, Compression, CudaBatchNorm, CudaMatmul, FIRST_BUCKET_CAP, Optimizer, Precision,
    Scaling, Scenario, Schedule,
};

/// Resolves a checked scenario of this kind; `auto` is what computes where it leaves that open.
pub fn combine(scenario: &Scenario, auto: Backend) -> Combination {
    let devices = scenario.parallel.devices;
    if devices < 2 {
        return Combination::LeftOut(Refused {
            key: "parallel.devices",
            why: "one rank has nobody to exchange anything with".to_owned(),
            instead: "write devices = 2 or more",
        });
    }
    if let Some(refused) = unsuited(scenario, auto) {
        return Combination::LeftOut(refused);
    }
    let batch = Batch {
        global: devices,
        chunks: vec![1; devices],
    };
    let notes = notes(scenario, &batch);
    Combination::Trial {
        config: Box::new(config(scenario, batch, auto)),
        parameters: 0,
        notes,
    }
}

fn config(scenario: &Scenario, batch: Batch, auto: Backend) -> TrialConfig {
    let collectives = &scenario.collectives;
    let mut measure = measure(scenario);
    // Collectives have lengths of their own.
    (measure.steps, measure.warmup_steps, measure.trace_steps) = (1, 0, 0);
    (measure.min_time_ns, measure.warmup_time_ns) = (0, 0);
    measure.unsynchronized = false;
    TrialConfig {
        protocol: PROTOCOL_VERSION,
        work: Work::Collectives(CollectivesConfig {
            operations: collectives.operations.clone(),
            sizes_bytes: sizes(scenario),
            warmup: collectives.warmup,
            iterations: collectives.iterations,
            min_time_ns: collectives.min_time.as_ns(),
        }),
        model: ModelSpec {
            name: "none".to_owned(),
            input: vec![1],
            classes: 1,
            layers: Vec::new(),
        },
        norm: Norm::None,
        norm_groups: None,
        norm_padding: None,
        norm_momentum: None,
        data: DataConfig {
            source: SourceConfig::Synthetic,
            seed: 0,
        },
        optimizer: Optimizer::default(),
        schedule: Schedule::Constant,
        accumulation: 1,
        precision: Precision::Fp32,
        cuda_graph: false,
        cuda_batch_norm: CudaBatchNorm::Own,
        cuda_matmul: CudaMatmul::Cublas,
        train_seed: 0,
        strategy: StrategyConfig::Ddp(DdpConfig {
            launch: scenario.parallel.launch,
            transport: transport(
                scenario.parallel.transport,
                resolved(scenario.parallel.backend, auto),
            ),
            bucket_cap_bytes: BUCKET_CAP.0,
            first_bucket_cap_bytes: FIRST_BUCKET_CAP.0,
            overlap: true,
            no_sync: true,
            compression: Compression::None,
            broadcast_buffers: true,
        }),
        backend: resolved(scenario.parallel.backend, auto),
        devices: scenario.parallel.devices,
        threads: 1,
        scaling: Scaling::Weak,
        batch,
        measure,
    }
}

/// From the smallest to the largest; the check has seen that there are not too many.
fn sizes(scenario: &Scenario) -> Vec<u64> {
    let collectives = &scenario.collectives;
    let next = |size: &u64| size.checked_mul(collectives.factor);
    std::iter::successors(Some(collectives.from.0), next)
        .take_while(|size| *size <= collectives.to.0)
        .collect()
}
