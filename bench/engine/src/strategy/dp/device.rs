//! One of DataParallel's devices, and what its thread does in a step.
//!
//! A device fetches what it needs: copies run on the destination's compute stream, after what the source has done.
use super::DpLoss;
use super::output::Output;
use crate::backend::{BackendError, Category, Completion, HostSlice, Stream};
use crate::comm::links::{Copy, Links, pieces};
use crate::half::{Bf16, Half};
use crate::kernel::{Kernel, Write};
use crate::probe::Phase;
use crate::strategy::micro_batch::Nth;
use crate::strategy::replica::Replica;
use crate::strategy::tracing::Opened;
use crate::strategy::{Result, StrategyError};
use crate::tensor::{Dtype, Span};

type Done = std::result::Result<(), BackendError>;

/// A replica with its place among the devices.
pub(super) struct Device {
    pub(super) replica: Replica,
    /// Its number among the devices that links join.
    pub(super) index: usize,
    /// Number of its chunk: where it stands in `device_ids`.
    place: usize,
    /// Number of the device that holds the master parameters and the batch.
    master: usize,
    loss: DpLoss,
    /// What is gathered, on the output device alone.
    pub(super) output: Option<Output>,
    /// Samples of its present chunk.
    pub(super) len: usize,
    /// With `dp_loss = replica`: the output's gradient by the replica's own loss, and the gradient of that loss.
    local: Span,
    seed: Span,
    /// Stands in for the gradient that is not fetched while synchronization is off. Backward reuses the memory of the
    /// output's gradient, so what an earlier step fetched is gone; left alone, its remains would shrink from step to
    /// step through denormal numbers, on which a CPU computes a hundred times slower.
    stand_in: Span,
    /// The begin of what the controller enqueues for all devices.
    pub(super) opened: Option<Opened>,
    /// The end of its latest job.
    done: Option<Completion>,
    failure: Option<BackendError>,
}

/// What a device is told to do.
pub(super) enum Job {
    /// Scatter and replicate.
    Receive {
        /// The master device has the batch.
        after: Completion,
        /// Its first sample among all of the step.
        offset: usize,
        /// Samples of the chunk.
        len: usize,
        /// Whether copies are made.
        copy: bool,
        /// The chunk's inputs and labels on the master device; empty where the device has them.
        inputs: Span,
        labels: Span,
        /// Parameters and buffers on the master device, unless the controller replicates them.
        model: Option<[Span; 3]>,
    },
    /// Forward, and with `dp_loss = replica` the loss.
    Forward { len: usize },
    /// Gathers the replicas' outputs and computes the loss and its gradient: for the output device.
    Output {
        /// Which micro-batch of the step it is.
        nth: Nth,
        /// Samples of the whole micro-batch.
        len: usize,
        /// Replicas in use.
        replicas: usize,
        /// The master device has the batch: and before, it waited until all had fetched the last step's gradient.
        after: Completion,
        /// Whether copies are made.
        copy: bool,
    },
    /// Fetches the output's gradient and runs backward.
    Backward {
        /// The output device has the gradient.
        after: Completion,
        /// The output device, and its part for this device.
        d_output: (usize, Span),
        /// Whether copies are made.
        copy: bool,
    },
    /// Clears the gradients for the next micro-batch.
    Zero {
        /// The master device has read them.
        after: Completion,
    },
}

impl Device {
    pub(super) fn new(
        mut replica: Replica,
        [index, place, master]: [usize; 3],
        loss: DpLoss,
        output: Option<Output>,
    ) -> Result<Self> {
        let outputs = replica.program.output();
        let mut allocate = |dtype, len| match loss {
            DpLoss::Gathered => Ok(Span::EMPTY),
            DpLoss::Replica => replica.backend.allocate(Category::Workspace, dtype, len),
        };
        let local = allocate(outputs.dtype(), outputs.len())?;
        let seed = allocate(Dtype::F32, 1)?;
        let stand_in = stand_in(&mut replica, output.is_some() || loss == DpLoss::Replica)?;
        Ok(Self {
            replica,
            index,
            place,
            master,
            loss,
            output,
            len: 0,
            local,
            seed,
            stand_in,
            opened: None,
            done: None,
            failure: None,
        })
    }

    /// The end of its latest job.
    pub(super) fn done(&self) -> &Completion {
        self.done.as_ref().expect("a device is asked after a job")
    }

    /// Runs a job; a failure is kept until the controller has joined all devices.
    pub(super) fn run(&mut self, job: Job, links: &dyn Links) {
        let result = match job {
            Job::Receive {
                after,
                offset,
                len,
                copy,
                inputs,
                labels,
                model,
            } => {
                self.len = len;
                self.receive(
                    offset,
                    copy.then_some((&after, links)),
                    inputs,
                    labels,
                    model,
                )
            }
            Job::Forward { len } => self.forward(len),
            Job::Output {
                nth,
                len,
                replicas,
                after,
                copy,
            } => self.gather_and_compute_loss((&after, links), nth, [len, replicas], copy),
            Job::Backward {
                after,
                d_output,
                copy,
            } => self.backward(copy.then_some((&after, links)), d_output),
            Job::Zero { after } => self.zero(&after),
        };
        let event = self.replica.backend.record(Stream::Compute);
        self.done = Some(self.replica.backend.completion(event));
        self.failure = result.err();
    }

    pub(super) fn take_failure(&mut self) -> Result<()> {
        let device = self.index;
        self.failure.take().map_or(Ok(()), |source| {
            Err(StrategyError::Device { device, source })
        })
    }

    fn receive(
        &mut self,
        offset: usize,
        from: Option<(&Completion, &dyn Links)>,
        inputs: Span,
        labels: Span,
        model: Option<[Span; 3]>,
    ) -> Done {
        self.replica.upload_state(offset)?;
        let (Some((after, links)), true) = (from, self.place > 0) else {
            return Ok(());
        };
        let program = &self.replica.program;
        let input = program.cut(program.input(), self.len);
        let copies = [
            program.parameters(),
            program.buffers().floats,
            program.buffers().integers,
        ];
        let own_labels = self.replica.loss.labels(self.len);

        let master = self.master;
        if !inputs.is_empty() {
            let opened = self.replica.trace.open(&mut *self.replica.backend);
            self.fetch(links, after, Phase::Scatter, (master, inputs), input)?;
            if !labels.is_empty() {
                self.fetch(links, after, Phase::Scatter, (master, labels), own_labels)?;
            }
            self.replica
                .trace
                .close(&mut *self.replica.backend, Phase::Scatter, opened);
        }

        let Some(model) = model else {
            return Ok(());
        };
        let opened = self.replica.trace.open(&mut *self.replica.backend);
        for (from, to) in model.into_iter().zip(copies) {
            for (from, to) in pieces(from).zip(pieces(to)) {
                self.fetch(links, after, Phase::Replicate, (master, from), to)?;
            }
        }
        self.replica
            .trace
            .close(&mut *self.replica.backend, Phase::Replicate, opened);
        Ok(())
    }

    /// Copies a span of another device.
    fn fetch(
        &mut self,
        links: &dyn Links,
        after: &Completion,
        phase: Phase,
        from: (usize, Span),
        to: Span,
    ) -> Done {
        let copy = Copy {
            phase,
            from,
            to: (self.index, to),
        };
        links
            .copy(&mut *self.replica.backend, after, copy)
            .map(|_| ())
    }

    fn forward(&mut self, len: usize) -> Done {
        self.replica.forward_alone(len)?;
        if self.loss == DpLoss::Gathered {
            return Ok(());
        }
        let Replica {
            backend,
            program,
            loss,
            trace,
            ..
        } = &mut self.replica;
        let opened = trace.open(&mut **backend);
        let (logits, d_logits) = (
            program.cut(program.output(), len),
            program.cut(self.local, len),
        );
        loss.compute(&mut **backend, logits, d_logits, len, 1.0 / len as f32)?;
        trace.close(&mut **backend, Phase::Loss, opened);
        Ok(())
    }

    fn gather_and_compute_loss(
        &mut self,
        (after, links): (&Completion, &dyn Links),
        nth: Nth,
        [len, replicas]: [usize; 2],
        copy: bool,
    ) -> Done {
        let (index, replica) = (self.index, &mut self.replica);
        let Some(output) = &mut self.output else {
            return Err(BackendError::Unsupported(
                "a gather on a device that is not the output device",
            ));
        };
        replica.backend.wait_for(Stream::Compute, after)?;
        let opened = replica.trace.open(&mut *replica.backend);
        output.gather(replica, index, links, copy)?;
        replica
            .trace
            .close(&mut *replica.backend, Phase::Gather, opened);
        let opened = replica.trace.open(&mut *replica.backend);
        output.compute_loss(replica, nth, len, replicas)?;
        replica
            .trace
            .close(&mut *replica.backend, Phase::Loss, opened);
        Ok(())
    }

    fn backward(
        &mut self,
        from: Option<(&Completion, &dyn Links)>,
        d_output: (usize, Span),
    ) -> Done {
        let opened = self.replica.trace.open(&mut *self.replica.backend);
        self.receive_gradient(from, d_output)?;
        self.replica
            .trace
            .close(&mut *self.replica.backend, Phase::ScatterGradients, opened);
        self.replica.backward_alone(self.len)
    }

    /// Replicas are new at every forward in PyTorch, so their gradients begin at zero. Here they are cleared while the master
    /// optimizes, or is given the next micro-batch: off the step's critical path, as an allocation would be.
    fn zero(&mut self, after: &Completion) -> Done {
        let replica = &mut self.replica;
        replica.backend.wait_for(Stream::Compute, after)?;
        replica.clear_gradients()
    }

    /// The output's gradient: a part of what the output device has, or the own loss's times the gradient of that loss.
    fn receive_gradient(
        &mut self,
        from: Option<(&Completion, &dyn Links)>,
        d_output: (usize, Span),
    ) -> Done {
        let program = &self.replica.program;
        let own = program.cut(program.d_output(), self.len);
        let local = if self.local.is_empty() {
            self.local
        } else {
            program.cut(self.local, self.len)
        };
        let to = match self.loss {
            DpLoss::Gathered => own,
            DpLoss::Replica => self.seed,
        };
        match from {
            Some((after, links)) if self.output.is_none() => {
                self.fetch(links, after, Phase::ScatterGradients, d_output, to)?;
            }
            _ if self.output.is_some() => {
                let copy = Kernel::Copy {
                    from: d_output.1,
                    to,
                    write: Write::Overwrite,
                };
                self.replica.backend.launch(Stream::Compute, copy)?;
            }
            _ if self.loss == DpLoss::Gathered => {
                let copy = Kernel::Copy {
                    from: self.stand_in.first(own.len()),
                    to: own,
                    write: Write::Overwrite,
                };
                self.replica.backend.launch(Stream::Compute, copy)?;
            }
            // The seed is written by links alone, so it still holds the gradient of the last synchronized step.
            _ => {}
        }
        if self.loss == DpLoss::Gathered {
            return Ok(());
        }
        // A product with one column is a scaling by a factor that lies on the device.
        let (m, write) = (own.len(), Write::Overwrite);
        let scale = Kernel::Matmul {
            a: local,
            b: self.seed,
            c: own,
            m,
            n: 1,
            k: 1,
            transpose_a: false,
            transpose_b: false,
            write,
        };
        self.replica.backend.launch(Stream::Compute, scale)
    }
}

/// Values of the size that a softmax gives: ±1/(2·samples of the step), summing to about zero over the classes.
fn stand_in(replica: &mut Replica, unneeded: bool) -> Result<Span> {
    if unneeded {
        return Ok(Span::EMPTY);
    }
    let outputs = replica.program.output();
    let (len, dtype) = (outputs.len(), outputs.dtype());
    let span = replica.backend.allocate(Category::Workspace, dtype, len)?;
    let size = 0.5 / (replica.max_batch() * replica.accumulation) as f32;
    let values = (0..len).map(|element| if element % 2 == 0 { size } else { -size });
    let backend = &mut *replica.backend;
    match dtype {
        Dtype::Bf16 => {
            let values: Vec<Bf16> = values.map(Bf16::narrow).collect();
            backend.upload(Stream::Compute, HostSlice::Bf16(&values), span)?;
        }
        _ => {
            let values: Vec<f32> = values.collect();
            backend.upload(Stream::Compute, HostSlice::F32(&values), span)?;
        }
    }
    Ok(span)
}
