//! A step of DataParallel, phase by phase: what each device is told to do, and what the master does itself.
use std::sync::Arc;

use super::device::Job;
use super::output::Output;
use super::together::MODEL;
use super::{Dp, DpInputs, DpLoss, split};
use crate::backend::{Completion, HostSlice, Stream};
use crate::comm::links::{Copy, pieces};
use crate::data::HostBatch;
use crate::kernel::{Kernel, Write};
use crate::probe::Phase;
use crate::strategy::micro_batch::MicroBatch;
use crate::strategy::{Result, StrategyError};

impl Dp {
    pub(super) fn take_step(&mut self, batch: HostBatch<'_>) -> Result<()> {
        for micro in self.first().micro_batches(batch) {
            let used = micro.len().div_ceil(self.chunk(micro.len()));
            self.host_to_device(&micro.samples, used)?;
            let received = self.scatter_and_replicate(&micro, used)?;
            self.each(used, |device| Job::Forward { len: device.len })?;
            self.gather_and_compute_loss(&micro, used, received)?;
            self.backward(micro.len(), used)?;
            self.reduce(used)?;
            self.end_micro_batch(used, micro.nth.is_last())?;
        }
        self.count_steps_alike();
        Ok(())
    }

    /// Inputs, and the labels of the replicas' losses, go to the master or to each device; the labels of a gathered loss to the device that computes it.
    fn host_to_device(&mut self, batch: &HostBatch<'_>, used: usize) -> Result<()> {
        match self.from {
            DpInputs::Master => self.batch_to_master(batch)?,
            DpInputs::Host => self.chunks_to_devices(batch, used)?,
        }
        match self.loss {
            DpLoss::Gathered => self.labels_to_output(batch.labels),
            DpLoss::Replica => Ok(()),
        }
    }

    /// The master's own chunk goes to its program, the rest to where the others fetch it.
    fn batch_to_master(&mut self, batch: &HostBatch<'_>) -> Result<()> {
        let chunk = self.chunk(batch.len);
        let (own, rest) = (batch.part(0..chunk), batch.part(chunk..batch.len));
        let (inputs, labels) = (self.inputs, self.labels);
        self.chunk_to_device(0, &own)?;
        if rest.len == 0 {
            return Ok(());
        }
        let replica = self.loss == DpLoss::Replica;
        let first = self.first();
        let opened = first.trace.open(&mut *first.backend);
        first.backend.upload(
            Stream::Compute,
            HostSlice::F32(rest.inputs),
            inputs.first(rest.inputs.len()),
        )?;
        if replica {
            let to = labels.first(rest.labels.len());
            first
                .backend
                .upload(Stream::Compute, HostSlice::I32(rest.labels), to)?;
        }
        first
            .trace
            .close(&mut *first.backend, Phase::HostToDevice, opened);
        Ok(())
    }

    fn chunks_to_devices(&mut self, batch: &HostBatch<'_>, used: usize) -> Result<()> {
        let chunk = self.chunk(batch.len);
        (0..used).try_for_each(|place| {
            let samples = place * chunk..((place + 1) * chunk).min(batch.len);
            self.chunk_to_device(place, &batch.part(samples))
        })
    }

    /// A chunk from the host to the device in this place.
    fn chunk_to_device(&mut self, place: usize, chunk: &HostBatch<'_>) -> Result<()> {
        let labels = self.loss == DpLoss::Replica;
        let device = self.device(place);
        let (index, replica) = (device.index, &mut device.replica);
        let opened = replica.trace.open(&mut *replica.backend);
        let to = replica.program.cut(replica.program.input(), chunk.len);
        let mut upload = || {
            replica
                .backend
                .upload(Stream::Compute, HostSlice::F32(chunk.inputs), to)?;
            match labels {
                true => replica
                    .loss
                    .upload_labels(&mut *replica.backend, chunk.labels),
                false => Ok(()),
            }
        };
        upload().map_err(|source| StrategyError::Device {
            device: index,
            source,
        })?;
        replica
            .trace
            .close(&mut *replica.backend, Phase::HostToDevice, opened);
        Ok(())
    }

    fn labels_to_output(&mut self, labels: &[i32]) -> Result<()> {
        let place = self.output;
        let output = &mut self.device(place).replica;
        let opened = output.trace.open(&mut *output.backend);
        output.loss.upload_labels(&mut *output.backend, labels)?;
        output
            .trace
            .close(&mut *output.backend, Phase::HostToDevice, opened);
        Ok(())
    }

    /// Each device fetches its chunk, if the master has it, then parameters and buffers, unless the controller sends them to all at once. Replica 0's forward,
    /// which changes the buffers, waits for all of them. Returns when the master has the batch.
    fn scatter_and_replicate(&mut self, micro: &MicroBatch<'_>, used: usize) -> Result<Completion> {
        let (len, offset) = (micro.len(), micro.offset);
        let chunk = self.chunk(len);
        let (inputs, labels, copy) = (self.inputs, self.labels, self.synchronize);
        let after = self.first_completion();
        let first = self.first();
        let elements = first.input_elements();
        let positions = first.loss.positions();
        let model = MODEL.map(|of| of(&first.program));
        let model = (!self.is_together()).then_some(model);
        for device in (0..used).rev() {
            let samples = device * chunk..((device + 1) * chunk).min(len);
            let staged = samples.start.saturating_sub(chunk)..samples.end.saturating_sub(chunk);
            let job = Job::Receive {
                after: after.clone(),
                offset: offset + samples.start,
                len: samples.len(),
                copy,
                inputs: if inputs.is_empty() {
                    inputs
                } else {
                    inputs.slice(staged.start * elements..staged.end * elements)
                },
                labels: if labels.is_empty() {
                    labels
                } else {
                    labels.slice(staged.start * positions..staged.end * positions)
                },
                model,
            };
            self.start(device, job)?;
        }
        self.join(used)?;
        self.first_waits_for(used)?;
        self.replicate_together(used)?;
        Ok(after)
    }

    /// The output device, which may have no chunk of its own, fetches what the replicas have computed.
    fn gather_and_compute_loss(
        &mut self,
        micro: &MicroBatch<'_>,
        used: usize,
        after: Completion,
    ) -> Result<()> {
        let (nth, len) = (micro.nth, micro.len());
        let (chunk, place, copy) = (self.chunk(len), self.output, self.synchronize);
        let taken = self.device(place).output.take();
        let mut output = taken.expect("the output device has it");
        output.begin();
        for (place, device) in self.devices[..used].iter().flatten().enumerate() {
            let from = output.source(&device.replica, device.len);
            output.add(
                place,
                [chunk, device.len],
                (device.index, from),
                device.done(),
            );
        }
        self.device(place).output = Some(output);
        let job = Job::Output {
            nth,
            len,
            replicas: used,
            after,
            copy,
        };
        self.start(place, job)?;
        self.join_range(place..place + 1)
    }

    /// Each device fetches its part of the output's gradient, then runs backward.
    fn backward(&mut self, len: usize, used: usize) -> Result<()> {
        let (chunk, copy, place) = (self.chunk(len), self.synchronize, self.output);
        let output = self.device(place);
        let (after, index) = (output.done().clone(), output.index);
        let gradients = output.output.as_ref().map(Output::gradients);
        let gradients = gradients.expect("the output device has them");
        for device in (0..used).rev() {
            let d_output = (index, gradients.of(device, chunk, len));
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

    /// Adds the gradients of the other replicas to the master's: all at once, or else in the order of the replicas, piece by piece.
    fn reduce(&mut self, used: usize) -> Result<()> {
        if !self.synchronize || used == 1 {
            return Ok(());
        }
        if self.is_together() {
            return self.reduce_together(used);
        }
        let (links, staging) = (Arc::clone(&self.links), self.staging);
        let (first, others) = split(&mut self.devices, used);
        let (index, first) = (first.index, &mut first.replica);
        let opened = first.trace.open(&mut *first.backend);
        let gradients = first.program.gradients();
        for other in others {
            for (from, to) in pieces(other.replica.program.gradients()).zip(pieces(gradients)) {
                let here = staging.first(to.len());
                let copy = Copy {
                    phase: Phase::Reduce,
                    from: (other.index, from),
                    to: (index, here),
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

    /// The other devices clear the gradients that the master has read; after the last micro-batch it updates meanwhile.
    fn end_micro_batch(&mut self, used: usize, last: bool) -> Result<()> {
        let after = self.first_completion();
        for device in (1..used).rev() {
            let after = after.clone();
            self.start(device, Job::Zero { after })?;
        }
        if last {
            self.first().optimize()?;
        }
        self.join(used)
    }
}
