//! DataParallel: one controller, which is the master device's thread, and a thread for each other device.
//!
//! Per step: scatter, replicate, forward, gather, loss, scatter gradients, backward, reduce, optimizer, in PyTorch's
//! order and with its joins between the phases, so no communication hides behind computation. Chunk k goes to device
//! `device_ids[k]`. The first of these, device 0 unless said otherwise, is the master: it holds the batch, the parameters and the
//! optimizer, and replica 0 shares its storage; the others get fresh copies at every forward, and only replica 0's running
//! statistics survive. Outputs are gathered on `output_device`, which computes the loss from labels that the host has sent
//! there, and scatters its gradient. Replicating and reducing are copies, or broadcast and reduce of a library that the links have (NCCL).
//! On CPU devices, which model separate memories, the copies are required by these
//! semantics and not by the hardware. With [`DpInputs::Host`] the scatter is the host's: each device gets its chunk from there.
//! Reference: `torch/nn/parallel/{data_parallel,replicate,parallel_apply,scatter_gather}.py`.
mod build;
mod device;
mod output;
mod step;
mod together;
mod workers;

use std::ops::Range;
use std::sync::Arc;

use self::build::{order, replicas};
use self::device::{Device, Job};
use self::workers::Workers;
use super::replica::Replica;
use super::{Result, Strategy, StrategyError};
use crate::backend::cuda::choice::Choice;
use crate::backend::{Backend, Category, Completion, MemoryUse, Stream};
use crate::comm::Count;
use crate::comm::links::{Links, PIECE_BYTES};
use crate::data::HostBatch;
use crate::model::Model;
use crate::optim::OptimizerSettings;
use crate::probe::Probe;
use crate::tensor::{Dtype, Span};

/// Where the loss is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpLoss {
    /// On the output device, from the gathered outputs.
    Gathered,
    /// By each replica, as careful users write it: labels are scattered too, the gathered losses are averaged.
    Replica,
}

/// From where the devices get their chunks of inputs and, with [`DpLoss::Replica`], of labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpInputs {
    /// The master holds the batch, and the others copy their chunks from it.
    Master,
    /// Host memory, straight to each device: so PyTorch scatters a batch that no device has.
    Host,
}

/// Settings of [`Dp`].
#[derive(Clone, Debug)]
pub struct DpSettings {
    /// Most samples of a micro-batch, over all devices.
    pub max_batch: usize,
    /// Micro-batches of a step, K. Each one is a forward and a backward of PyTorch's: parameters are replicated and gradients reduced
    /// K times, and the master updates once.
    pub accumulation: usize,
    /// Seed of parameters and dropout masks.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// Where the loss is computed.
    pub loss: DpLoss,
    /// From where devices get their chunks.
    pub inputs: DpInputs,
    /// The order in which devices take chunks, a permutation of all; empty for 0, 1, .... The first is the master.
    pub device_ids: Vec<usize>,
    /// Where outputs are gathered; none for the master.
    pub output_device: Option<usize>,
    /// Cores that each device's thread is pinned to; empty, or an empty list, leaves threads free. Those of the master are
    /// not used: its thread is the caller's.
    pub cores: Vec<Vec<usize>>,
}

/// Training by one controller on several devices.
pub struct Dp {
    /// In the order of `device_ids`. A device is away while its thread works; between phases all are here.
    devices: Vec<Option<Box<Device>>>,
    /// The place of the output device among them.
    output: usize,
    workers: Workers,
    links: Arc<dyn Links>,
    loss: DpLoss,
    from: DpInputs,
    max_batch: usize,
    synchronize: bool,
    /// On the master, for what other devices take of the batch; empty where they get it from the host.
    inputs: Span,
    labels: Span,
    /// Where gradients of another device arrive on the master.
    staging: Span,
}

impl Dp {
    /// Builds a replica on each of `backends`; `links` must join them in this order. Starts a thread per device but the first.
    ///
    /// # Errors
    /// [`StrategyError`].
    pub fn new(
        backends: Vec<Box<dyn Backend>>,
        links: Arc<dyn Links>,
        model: &Model,
        settings: &DpSettings,
    ) -> Result<Self> {
        let count = backends.len();
        if count == 0 || settings.max_batch == 0 {
            return Err(StrategyError::Setting {
                setting: if count == 0 {
                    "number of devices"
                } else {
                    "maximum batch"
                },
                value: "0".into(),
                expected: "at least 1 is needed",
            });
        }
        let order = order(count, settings)?;
        let share = settings.max_batch.div_ceil(count);
        let mut devices = replicas(backends, model, settings, &order, share)?;
        let output = devices.iter().flatten().position(|d| d.output.is_some());
        let first = devices[0].as_mut().expect("there is at least one device");
        let elements = first.replica.input_elements();
        let parameters = first.replica.program.parameters().len();
        let positions = first.replica.loss.positions();
        let backend = &mut *first.replica.backend;
        let mut allocate = |dtype, len: usize| match len {
            0 => Ok(Span::EMPTY),
            len => backend.allocate(Category::Workspace, dtype, len),
        };
        // The master's own chunk goes straight to its program, so only the others' parts wait here.
        let others = match settings.inputs {
            DpInputs::Master => settings.max_batch - share.min(settings.max_batch),
            DpInputs::Host => 0,
        };
        let inputs = allocate(Dtype::F32, others * elements)?;
        let labels = allocate(
            Dtype::I32,
            if settings.loss == DpLoss::Replica {
                others * positions
            } else {
                0
            },
        )?;
        let most = if count == 1 || links.controller().is_some() {
            0
        } else {
            parameters.min(PIECE_BYTES / size_of::<f32>())
        };
        let staging = allocate(Dtype::F32, most)?;
        Ok(Self {
            devices,
            output: output.expect("one of the devices is the output device"),
            workers: Workers::start(&order, &links, &settings.cores)?,
            links,
            loss: settings.loss,
            from: settings.inputs,
            max_batch: settings.max_batch,
            synchronize: true,
            inputs,
            labels,
            staging,
        })
    }

    /// The device that takes chunk `place`.
    fn device(&mut self, place: usize) -> &mut Device {
        self.devices[place]
            .as_mut()
            .expect("devices are here between phases")
    }

    fn first(&mut self) -> &mut Replica {
        &mut self.device(0).replica
    }

    /// Every replica is at the master's step, by which dropout masks are drawn.
    fn count_steps_alike(&mut self) {
        let step = self.first().step;
        self.devices
            .iter_mut()
            .flatten()
            .for_each(|device| device.replica.step = step);
    }

    /// Samples of each chunk but the last: ceil(B/N).
    fn chunk(&self, len: usize) -> usize {
        len.div_ceil(self.devices.len())
    }

    /// The present end of the master's compute stream.
    fn first_completion(&mut self) -> Completion {
        let backend = &mut *self.first().backend;
        let event = backend.record(Stream::Compute);
        backend.completion(event)
    }

    fn first_waits_for(&mut self, used: usize) -> Result<()> {
        let (first, others) = split(&mut self.devices, used);
        for other in others {
            first
                .replica
                .backend
                .wait_for(Stream::Compute, other.done())?;
        }
        Ok(())
    }

    /// The same kind of job on every device in use.
    fn each(&mut self, used: usize, job: impl Fn(&Device) -> Job) -> Result<()> {
        for device in (0..used).rev() {
            let job = job(self.devices[device]
                .as_ref()
                .expect("devices are here between phases"));
            self.start(device, job)?;
        }
        self.join(used)
    }

    /// Sends a device to its thread. The master works on this one, which has nothing else to do until all have joined and
    /// may share its core: so callers start it last, or the others would wait for it.
    fn start(&mut self, index: usize, job: Job) -> Result<()> {
        let mut device = self.devices[index]
            .take()
            .expect("devices are here between phases");
        if index == 0 {
            device.run(job, &*self.links);
            self.devices[0] = Some(device);
            return Ok(());
        }
        self.workers.send(index, device, job)
    }

    /// A failure ends what the others would wait in for ever.
    fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.inspect_err(|error| {
            if let Some(controller) = self.links.controller() {
                controller.abort(&error.to_string());
            }
        })
    }

    fn wait_until_idle(&mut self) -> Result<()> {
        for device in self.devices.iter_mut().flatten() {
            let (index, backend) = (device.index, &mut device.replica.backend);
            let failed = |source| StrategyError::Device {
                device: index,
                source,
            };
            backend.synchronize().map_err(failed)?;
        }
        Ok(())
    }

    /// Waits for all devices, then raises the error of the first in their order.
    fn join(&mut self, used: usize) -> Result<()> {
        self.join_range(0..used)
    }

    /// Waits for the devices in these places.
    fn join_range(&mut self, places: Range<usize>) -> Result<()> {
        for place in places.clone().filter(|place| *place > 0) {
            self.devices[place] = self.workers.receive(place);
        }
        for place in places {
            match &mut self.devices[place] {
                Some(device) => device.take_failure()?,
                None => return Err(self.workers.lost(place)),
            }
        }
        Ok(())
    }
}

impl Strategy for Dp {
    fn step(&mut self, batch: HostBatch<'_>, probe: &mut dyn Probe) -> Result<()> {
        let most = self.max_batch;
        self.first().check(&batch, most)?;
        let tracing = probe.tracing();
        self.devices
            .iter_mut()
            .flatten()
            .for_each(|device| device.replica.trace.start(tracing));
        let taken = self.take_step(batch);
        self.told(taken)?;
        for device in self.devices.iter_mut().flatten() {
            let Replica { trace, backend, .. } = &mut device.replica;
            trace.emit(&mut **backend, probe)?;
        }
        Ok(())
    }

    fn master(&mut self) -> &mut Replica {
        self.first()
    }

    /// Off: no copy between devices; the others compute on what they had.
    fn set_synchronize(&mut self, on: bool) {
        self.synchronize = on;
    }

    fn finish(&mut self) -> Result<()> {
        let idle = self.wait_until_idle();
        self.told(idle)
    }

    /// Of the output device, which computed it.
    fn loss(&mut self) -> Result<f32> {
        let place = self.output;
        self.device(place).replica.read_loss()
    }

    fn restore(&mut self) -> Result<()> {
        self.finish()?;
        self.first().restore()?;
        self.count_steps_alike();
        Ok(())
    }

    fn counts(&self) -> Vec<(usize, Count)> {
        self.links.counts()
    }

    fn reset_counts(&mut self) {
        self.links.reset_counts();
    }

    /// In the order of their numbers, not of `device_ids`.
    fn memory(&mut self) -> Vec<MemoryUse> {
        let mut memory = vec![MemoryUse::default(); self.devices.len()];
        for device in self.devices.iter().flatten() {
            memory[device.index] = device.replica.backend.memory_use();
        }
        memory
    }

    fn choices(&mut self) -> Vec<Vec<Choice>> {
        let mut choices = vec![Vec::new(); self.devices.len()];
        for device in self.devices.iter().flatten() {
            choices[device.index] = device.replica.backend.choices();
        }
        choices
    }
}

impl Drop for Dp {
    fn drop(&mut self) {
        // What a library enqueues on the devices' streams ends before these do.
        if let Some(controller) = self.links.controller() {
            controller.close();
        }
    }
}

/// The master, and the other devices in use.
fn split(
    devices: &mut [Option<Box<Device>>],
    used: usize,
) -> (&mut Device, impl Iterator<Item = &Device>) {
    let (first, others) = devices
        .split_first_mut()
        .expect("there is at least one device");
    let first = first
        .as_deref_mut()
        .expect("devices are here between phases");
    (
        first,
        others[..used - 1].iter().flatten().map(|device| &**device),
    )
}
