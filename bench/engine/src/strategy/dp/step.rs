//! A step of DataParallel, phase by phase: what each device is told to do, and what the master does itself.
use std::sync::Arc;

use super::device::Job;
use super::output::Output;
use super::together::MODEL;
use super::{Dp, DpInputs, DpLoss, split};
use crate::backend::{BackendError, Completion, HostSlice, Stream};
use crate::comm::links::{Copy, pieces};
use crate::data::HostBatch;
use crate::kernel::{Kernel, Write};
use crate::probe::Phase;
use crate::strategy::micro_batch::MicroBatch;
use crate::strategy::replica::Replica;
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
        let holders = match self.from {
            DpInputs::Master => 1,
            DpInputs::Host => used,
        };
        (0..holders).try_for_each(|place| self.uploading(place, batch))?;
        match self.loss {
            // It has no chunk of its own, or gets that from the master.
            DpLoss::Gathered if self.output >= holders => self.uploading(self.output, batch),
            _ => Ok(()),
        }
    }

    /// What of the batch goes to the device in this place.
    fn uploading(&mut self, place: usize, batch: &HostBatch<'_>) -> Result<()> {
        let Replica { trace, backend, .. } = &mut self.device(place).replica;
        let opened = trace.open(&mut **backend);
        let index = self.device(place).index;
        self.upload(place, batch)
            .map_err(|source| StrategyError::Device {
                device: index,
                source,
            })?;
        let Replica { trace, backend, .. } = &mut self.device(place).replica;
        trace.close(&mut **backend, Phase::HostToDevice, opened);
        Ok(())
    }

    fn upload(
        &mut self,
        place: usize,
        batch: &HostBatch<'_>,
    ) -> std::result::Result<(), BackendError> {
        let chunk = self.chunk(batch.len);
        let (from, loss, output) = (self.from, self.loss, self.output);
        let (inputs, labels) = (self.inputs, self.labels);
        let Replica {
            backend,
            program,
            loss: own_loss,
            ..
        } = &mut self.device(place).replica;
        let mut put = |from, to| backend.upload(Stream::Compute, from, to);
        let start = (place * chunk).min(batch.len);
        let own = batch.part(start..(start + chunk).min(batch.len));
        let holds_own = place == 0 || from == DpInputs::Host;
        if holds_own && own.len > 0 {
            put(
                HostSlice::F32(own.inputs),
                program.cut(program.input(), own.len),
            )?;
        }
        // For the others to fetch.
        let rest = batch.part(chunk.min(batch.len)..batch.len);
        let holds_rest = place == 0 && from == DpInputs::Master && rest.len > 0;
        if holds_rest {
            put(HostSlice::F32(rest.inputs), inputs.first(rest.inputs.len()))?;
        }
        match loss {
            DpLoss::Gathered if place == output => {
                own_loss.upload_labels(&mut **backend, batch.labels)
            }
            DpLoss::Gathered => Ok(()),
            DpLoss::Replica => {
                own_loss.upload_labels(&mut **backend, own.labels)?;
                match holds_rest {
                    true => backend.upload(
                        Stream::Compute,
                        HostSlice::I32(rest.labels),
                        labels.first(rest.labels.len()),
                    ),
                    false => Ok(()),
                }
            }
        }
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
