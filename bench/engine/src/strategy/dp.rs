//! DataParallel: one controller, which is device 0's thread, and a thread for each other device; everything through device 0.
//!
//! Per step: scatter, replicate, forward, gather, loss, scatter gradients, backward, reduce, optimizer, in PyTorch's
//! order and with its joins between the phases, so no communication hides behind computation. Replica 0 shares device
//! 0's storage; the others get fresh copies at every forward, and only replica 0's running statistics survive. On CPU
//! devices, which model separate memories, the copies are required by these semantics and not by the hardware.
//! Reference: `torch/nn/parallel/{data_parallel,replicate,parallel_apply,scatter_gather}.py`.
mod device;
mod output;
mod workers;

use std::sync::Arc;

use self::device::{Device, Job};
use self::output::Output;
use self::workers::Workers;
use super::replica::{Replica, ReplicaSettings};
use super::{Result, Strategy, StrategyError};
use crate::backend::{Backend, Category, Completion, HostSlice, MemoryUse, Stream};
use crate::comm::Count;
use crate::comm::links::{Copy, Links, PIECE_BYTES, pieces};
use crate::data::HostBatch;
use crate::kernel::{Kernel, Write};
use crate::model::Model;
use crate::optim::OptimizerSettings;
use crate::probe::{Phase, Probe};
use crate::tensor::{Dtype, Span};

/// Where the loss is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DpLoss {
    /// On device 0, from the gathered outputs.
    Gathered,
    /// By each replica, as careful users write it: labels are scattered too, the gathered losses are averaged.
    Replica,
}

/// Settings of [`Dp`].
#[derive(Clone, Debug)]
pub struct DpSettings {
    /// Most samples of a step, over all devices.
    pub max_batch: usize,
    /// Seed of parameters and dropout masks.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerSettings,
    /// Where the loss is computed.
    pub loss: DpLoss,
    /// Cores that each device's thread is pinned to; empty, or an empty list, leaves threads free. Those of device 0 are
    /// not used: its thread is the caller's.
    pub cores: Vec<Vec<usize>>,
}

/// Training by one controller on several devices.
pub struct Dp {
    /// A device is away while its thread works; between phases all are here.
    devices: Vec<Option<Box<Device>>>,
    workers: Workers,
    links: Arc<dyn Links>,
    loss: DpLoss,
    max_batch: usize,
    synchronize: bool,
    /// Whole batch on device 0, for what other devices take of it.
    inputs: Span,
    labels: Span,
    output: Output,
    /// Where gradients of another device arrive on device 0.
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
        let share = settings.max_batch.div_ceil(count);
        let mut devices = replicas(backends, model, settings, share)?;
        let first = devices[0].as_mut().expect("there is at least one device");
        let elements = first.replica.input_elements();
        let parameters = first.replica.program.parameters().len();
        let output = Output::new(&mut first.replica, settings.max_batch, count, settings.loss)?;
        let backend = &mut *first.replica.backend;
        let mut allocate = |dtype, len: usize| match len {
            0 => Ok(Span::EMPTY),
            len => backend.allocate(Category::Workspace, dtype, len),
        };
        // Device 0's own chunk goes straight to its program, so only the others' parts wait here.
        let others = settings.max_batch - share.min(settings.max_batch);
        let inputs = allocate(Dtype::F32, others * elements)?;
        let labels = allocate(
            Dtype::I32,
            if settings.loss == DpLoss::Replica {
                others
            } else {
                0
            },
        )?;
        let most = if count == 1 {
            0
        } else {
            parameters.min(PIECE_BYTES / size_of::<f32>())
        };
        let staging = allocate(Dtype::F32, most)?;
        Ok(Self {
            devices,
            workers: Workers::start(count, &links, &settings.cores)?,
            links,
            loss: settings.loss,
            max_batch: settings.max_batch,
            synchronize: true,
            inputs,
            labels,
            output,
            staging,
        })
    }

    fn first(&mut self) -> &mut Replica {
        &mut self.devices[0]
            .as_mut()
            .expect("devices are here between phases")
            .replica
    }

    /// Samples of each chunk but the last: ceil(B/N).
    fn chunk(&self, len: usize) -> usize {
        len.div_ceil(self.devices.len())
    }

    fn take_step(&mut self, batch: HostBatch<'_>) -> Result<()> {
        let used = batch.len.div_ceil(self.chunk(batch.len));
        self.host_to_device(&batch)?;
        self.scatter_and_replicate(batch.len, used)?;
        self.each(used, |device| Job::Forward { len: device.len })?;
        self.gather(batch.len, used)?;
        self.compute_loss(batch.len, used)?;
        self.backward(batch.len, used)?;
        self.reduce(used)?;
        self.optimize(used)?;
        let step = self.first().step;
        self.devices
            .iter_mut()
            .flatten()
            .for_each(|device| device.replica.step = step);
        Ok(())
    }

    /// Everything goes to device 0: its own chunk to its program, the rest to where the others fetch it.
    fn host_to_device(&mut self, batch: &HostBatch<'_>) -> Result<()> {
        let chunk = self.chunk(batch.len);
        let (own, rest) = (batch.part(0..chunk), batch.part(chunk..batch.len));
        let (loss, inputs, labels) = (self.loss, self.inputs, self.labels);
        let first = self.first();
        let opened = first.trace.open(&mut *first.backend);
        let to = first.program.cut(first.program.input(), chunk);
        first
            .backend
            .upload(Stream::Compute, HostSlice::F32(own.inputs), to)?;
        if rest.len > 0 {
            first.backend.upload(
                Stream::Compute,
                HostSlice::F32(rest.inputs),
                inputs.first(rest.inputs.len()),
            )?;
        }
        match loss {
            DpLoss::Gathered => first
                .loss
                .upload_labels(&mut *first.backend, batch.labels)?,
            DpLoss::Replica => {
                first.loss.upload_labels(&mut *first.backend, own.labels)?;
                if rest.len > 0 {
                    let to = labels.first(rest.len);
                    first
                        .backend
                        .upload(Stream::Compute, HostSlice::I32(rest.labels), to)?;
                }
            }
        }
        first
            .trace
            .close(&mut *first.backend, Phase::HostToDevice, opened);
        Ok(())
    }

    /// Each device fetches its chunk, then parameters and buffers. Replica 0's forward, which changes the buffers,
    /// waits for all of them.
    fn scatter_and_replicate(&mut self, len: usize, used: usize) -> Result<()> {
        let chunk = self.chunk(len);
        let (inputs, labels, copy) = (self.inputs, self.labels, self.synchronize);
        let after = self.first_completion();
        let first = self.first();
        let elements = first.input_elements();
        let program = &first.program;
        let model = [
            program.parameters(),
            program.buffers().floats,
            program.buffers().integers,
        ];
        for device in (0..used).rev() {
            let samples = device * chunk..((device + 1) * chunk).min(len);
            let staged = samples.start.saturating_sub(chunk)..samples.end.saturating_sub(chunk);
            let job = Job::Receive {
                after: after.clone(),
                offset: samples.start,
                len: samples.len(),
                copy,
                inputs: inputs.slice(staged.start * elements..staged.end * elements),
                labels: if labels.is_empty() {
                    labels
                } else {
                    labels.slice(staged)
                },
                model,
            };
            self.start(device, job)?;
        }
        self.join(used)?;
        self.first_waits_for(used)
    }

    fn gather(&mut self, len: usize, used: usize) -> Result<()> {
        let (chunk, links, copy) = (self.chunk(len), Arc::clone(&self.links), self.synchronize);
        let (first, others) = split(&mut self.devices, used);
        let first = &mut first.replica;
        let opened = first.trace.open(&mut *first.backend);
        self.output.gather(first, others, &*links, chunk, copy)?;
        first
            .trace
            .close(&mut *first.backend, Phase::Gather, opened);
        Ok(())
    }

    fn compute_loss(&mut self, len: usize, used: usize) -> Result<()> {
        let first = &mut self.devices[0]
            .as_mut()
            .expect("devices are here between phases")
            .replica;
        let opened = first.trace.open(&mut *first.backend);
        self.output.compute_loss(first, len, used)?;
        first.trace.close(&mut *first.backend, Phase::Loss, opened);
        Ok(())
    }

    /// Each device fetches its part of the output's gradient, then runs backward.
    fn backward(&mut self, len: usize, used: usize) -> Result<()> {
        let (chunk, copy) = (self.chunk(len), self.synchronize);
        let after = self.first_completion();
        for device in (0..used).rev() {
            let d_output = self.output.gradient_for(device, chunk, len);
            self.start(
                device,
                Job::Backward {
                    after: after.clone(),
                    d_output,
                    copy,
                },
            )?;
        }
        self.join(used)
    }

    /// Sums the gradients of all replicas on device 0, in the order of the replicas, piece by piece.
    fn reduce(&mut self, used: usize) -> Result<()> {
        if !self.synchronize || used == 1 {
            return Ok(());
        }
        let (links, staging) = (Arc::clone(&self.links), self.staging);
        let (first, others) = split(&mut self.devices, used);
        let first = &mut first.replica;
        let opened = first.trace.open(&mut *first.backend);
        let gradients = first.program.gradients();
        for other in others {
            for (from, to) in pieces(other.replica.program.gradients()).zip(pieces(gradients)) {
                let here = staging.first(to.len());
                let copy = Copy {
                    phase: Phase::Reduce,
                    from: (other.index, from),
                    to: (0, here),
                };
                links.copy(&mut *first.backend, other.done(), copy)?;
                let add = Kernel::Copy {
                    from: here,
                    to,
                    write: Write::Accumulate,
                };
                first.backend.launch(Stream::Compute, add)?;
            }
        }
        first
            .trace
            .close(&mut *first.backend, Phase::Reduce, opened);
        Ok(())
    }

    /// The optimizer on device 0, while the other devices clear the gradients that it has read.
    fn optimize(&mut self, used: usize) -> Result<()> {
        let after = self.first_completion();
        for device in (1..used).rev() {
            let after = after.clone();
            self.start(device, Job::Zero { after })?;
        }
        self.first().optimize()?;
        self.join(used)
    }

    /// The present end of device 0's compute stream.
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

    /// Sends a device to its thread. Device 0 works on this one, which has nothing else to do until all have joined and
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

    /// Waits for all devices, then raises the error of the lowest index.
    fn join(&mut self, used: usize) -> Result<()> {
        for index in 1..used {
            self.devices[index] = self.workers.receive(index);
        }
        for (index, device) in self.devices[..used].iter_mut().enumerate() {
            match device {
                Some(device) => device.take_failure()?,
                None => return Err(workers::lost(index)),
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
        self.take_step(batch)?;
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
        for (device, replica) in self.devices.iter_mut().flatten().enumerate() {
            replica
                .replica
                .backend
                .synchronize()
                .map_err(|source| StrategyError::Device { device, source })?;
        }
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        self.finish()?;
        self.first().restore()?;
        let step = self.first().step;
        self.devices
            .iter_mut()
            .flatten()
            .for_each(|device| device.replica.step = step);
        Ok(())
    }

    fn counts(&self) -> Vec<(usize, Count)> {
        self.links.counts()
    }

    fn reset_counts(&mut self) {
        self.links.reset_counts();
    }

    fn memory(&mut self) -> Vec<MemoryUse> {
        self.devices
            .iter()
            .flatten()
            .map(|device| device.replica.backend.memory_use())
            .collect()
    }
}

/// A replica for chunks of up to `share` samples on each device.
fn replicas(
    backends: Vec<Box<dyn Backend>>,
    model: &Model,
    settings: &DpSettings,
    share: usize,
) -> Result<Vec<Option<Box<Device>>>> {
    let build = |(index, backend)| {
        let replica = ReplicaSettings {
            device: index,
            max_batch: share,
            loss_batch: if index == 0 {
                settings.max_batch
            } else {
                share
            },
            chunks: &[],
            world_size: 1,
            seed: settings.seed,
            optimizer: settings.optimizer,
            optimizes: index == 0,
        };
        let replica = Replica::new(backend, model, &replica)?;
        Ok(Some(Box::new(Device::new(replica, index, settings.loss)?)))
    };
    backends.into_iter().enumerate().map(build).collect()
}

/// Device 0, and the other devices in use.
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
