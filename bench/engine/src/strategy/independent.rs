//! N replicas that never meet: what the hardware itself loses when N devices train at once.
//!
//! Each is one of these, with its own data, run freely by its own thread or process. Efficiency of DP and DDP against
//! it is what communication costs; its own efficiency against one device is what shared caches and memory cost.
use super::replica::{Replica, ReplicaSettings};
use super::single::step_alone;
use super::{Result, Strategy};
use crate::backend::Backend;
use crate::data::HostBatch;
use crate::model::Model;
use crate::optim::OptimizerSettings;
use crate::probe::Probe;

/// Settings of [`Independent`].
#[derive(Clone, Debug)]
pub struct IndependentSettings {
    /// Which of the replicas this is: its device number in traces.
    pub index: usize,
    /// Index of its first sample in a micro-batch of all replicas.
    pub sample_offset: usize,
    /// Samples of a micro-batch of all replicas.
    pub global_batch: usize,
    /// Most samples of its own micro-batch.
    pub max_batch: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Seed of parameters and dropout masks.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
}

/// One free-running replica.
pub struct Independent {
    replica: Replica,
}

impl Independent {
    /// Builds the model on `backend`.
    ///
    /// # Errors
    /// [`super::StrategyError`].
    pub fn new(
        backend: Box<dyn Backend>,
        model: &Model,
        settings: &IndependentSettings,
    ) -> Result<Self> {
        let replica = ReplicaSettings {
            device: settings.index,
            max_batch: settings.max_batch,
            loss_batch: settings.max_batch,
            accumulation: settings.accumulation,
            sample_offset: settings.sample_offset,
            global_batch: Some(settings.global_batch),
            chunks: &[],
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

impl Strategy for Independent {
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
