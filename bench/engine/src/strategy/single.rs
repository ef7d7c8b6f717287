//! One device, no communication: the reference of every equivalence, and the base of every efficiency.
//!
//! With a list of normalization chunks it normalizes as several replicas would, each by its own samples, and keeps the
//! running statistics of the first.
use super::replica::{Replica, ReplicaSettings};
use super::{Result, Strategy, StrategyError};
use crate::backend::Backend;
use crate::backend::cuda::nvtx;
use crate::data::HostBatch;
use crate::model::Model;
use crate::optim::OptimizerSettings;
use crate::probe::Probe;

/// Settings of [`Single`].
#[derive(Clone, Debug)]
pub struct SingleSettings {
    /// Most samples of a micro-batch.
    pub max_batch: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Normalization chunks of a micro-batch in samples; empty for the whole. When given, every micro-batch in training has
    /// their sum.
    pub chunks: Vec<usize>,
    /// Seed of parameters and dropout masks.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
}

/// Training on one device.
pub struct Single {
    replica: Replica,
}

impl Single {
    /// Builds the model on `backend`.
    ///
    /// # Errors
    /// [`StrategyError`].
    pub fn new(
        backend: Box<dyn Backend>,
        model: &Model,
        settings: &SingleSettings,
    ) -> Result<Self> {
        if settings.chunks.contains(&0)
            || settings.chunks.iter().sum::<usize>() > settings.max_batch
        {
            return Err(StrategyError::Setting {
                setting: "normalization chunks",
                value: format!("{:?}", settings.chunks),
                expected: "each must be at least 1, and their sum at most the maximum batch",
            });
        }
        let replica = ReplicaSettings {
            device: 0,
            max_batch: settings.max_batch,
            loss_batch: settings.max_batch,
            accumulation: settings.accumulation,
            sample_offset: 0,
            global_batch: None,
            chunks: &settings.chunks,
            world_size: 1,
            seed: settings.seed,
            optimizer: settings.optimizer,
            optimizes: true,
        };
        Ok(Self {
            replica: Replica::new(backend, model, &replica)?,
        })
    }
}

impl Strategy for Single {
    fn step(&mut self, batch: HostBatch<'_>, probe: &mut dyn Probe) -> Result<()> {
        step_alone(&mut self.replica, batch, probe)
    }

    fn master(&mut self) -> &mut Replica {
        &mut self.replica
    }

    fn capture_steps(&mut self) -> Result<()> {
        self.replica.capture_steps()
    }

    /// There is nothing to synchronize.
    fn set_synchronize(&mut self, _: bool) {}
}

/// A step of a replica that meets no other.
pub(super) fn step_alone(
    replica: &mut Replica,
    batch: HostBatch<'_>,
    probe: &mut dyn Probe,
) -> Result<()> {
    let _range = nvtx::range(format_args!("step"));
    replica.check(&batch, replica.max_batch())?;
    replica.trace.begin(probe);
    if replica.replays() {
        replica.step_as_graph(batch)?;
        return Ok(replica.trace.emit(&mut *replica.backend, probe)?);
    }
    for micro in replica.micro_batches(batch) {
        replica.host_to_device(&micro)?;
        replica.forward_alone(micro.len())?;
        replica.compute_loss(&micro)?;
        replica.backward_alone(micro.len())?;
    }
    replica.optimize()?;
    Ok(replica.trace.emit(&mut *replica.backend, probe)?)
}
