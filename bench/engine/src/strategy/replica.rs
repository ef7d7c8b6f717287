//! A replica: one device with a whole copy of the model, its loss and its optimizer. Strategies are made of these.
//!
//! Each method enqueues one phase of a step on the compute stream and traces it; none exchanges anything.
mod by_node;
mod evaluate;
mod state;

use std::ops::Range;

use self::state::Saved;
use super::graph::Graphs;
use super::micro_batch::MicroBatch;
use super::tracing::Trace;
use super::{Result, StrategyError};
use crate::backend::cuda::nvtx;
use crate::backend::{Backend, BackendError, Category, HostSlice, HostSliceMut, Stream};
use crate::comm::Communicator;
use crate::data::HostBatch;
use crate::kernel::Kernel;
use crate::layer::{Mode, State, Step};
use crate::loss::Loss;
use crate::model::Model;
use crate::optim::{Optimizer, OptimizerSettings, Schedule};
use crate::probe::Phase;
use crate::program::{Program, ProgramSettings};
use crate::tensor::{Dtype, Span};

pub use by_node::NodeTimes;
pub use evaluate::{LayerNoise, Noise};

/// What a replica is made for.
pub(super) struct ReplicaSettings<'a> {
    /// Device number in traces.
    pub(super) device: usize,
    /// Most samples that it computes at once: of a micro-batch.
    pub(super) max_batch: usize,
    /// Most samples of its loss: under DP device 0 computes that of all.
    pub(super) loss_batch: usize,
    /// Micro-batches of a step, K; at least 1.
    pub(super) accumulation: usize,
    /// Index of its first sample in a global micro-batch.
    pub(super) sample_offset: usize,
    /// Samples of a global micro-batch; none where this replica's is the whole.
    pub(super) global_batch: Option<usize>,
    /// Normalization chunks of a micro-batch in training; empty for the whole as one.
    pub(super) chunks: &'a [usize],
    pub(super) world_size: usize,
    pub(super) seed: u64,
    pub(super) optimizer: OptimizerSettings,
    /// Whether it holds the optimizer's state: under DP only device 0 does.
    pub(super) optimizes: bool,
}

/// One device with a whole copy of the model.
pub struct Replica {
    pub(super) backend: Box<dyn Backend>,
    pub(super) program: Program,
    pub(super) loss: Loss,
    /// One over all parameters, or under ZeRO-1 one over each shard; none where another device optimizes.
    optimizers: Vec<Optimizer>,
    schedule: Schedule,
    state: State,
    chunks: Vec<usize>,
    max_batch: usize,
    /// Micro-batches of a step.
    pub(super) accumulation: usize,
    pub(super) sample_offset: usize,
    pub(super) global_batch: Option<usize>,
    /// What the schedule is applied to.
    learning_rate: f32,
    /// The rate that lies on the device.
    uploaded_rate: f32,
    /// Steps taken: part of the dropout masks, of the schedule and of AdamW's bias corrections.
    pub(super) step: i32,
    /// Where the loss to report lies.
    pub(super) reported: Span,
    /// f32, one element: the losses of a step's micro-batches so far; empty with one.
    pub(super) summed_loss: Span,
    pub(super) trace: Trace,
    /// Captured steps; none where steps are enqueued kernel by kernel.
    pub(super) graphs: Option<Graphs>,
    saved: Option<Saved>,
    /// The gradients that a backward only adds to: what clearing zeroes.
    accumulated: Vec<Span>,
    /// Whether the next backward is the first since the gradients were cleared.
    fresh: bool,
}

impl Replica {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        model: &Model,
        settings: &ReplicaSettings<'_>,
    ) -> Result<Self> {
        let mut replica = Self::sharded(backend, model, settings, 1)?;
        if settings.optimizes {
            let all = 0..replica.program.parameters().len();
            replica.optimize_range(all, settings.optimizer)?;
        }
        Ok(replica)
    }

    /// A replica without an optimizer, whose parameters and gradients can be cut into `shards` equal parts.
    pub(super) fn sharded(
        mut backend: Box<dyn Backend>,
        model: &Model,
        settings: &ReplicaSettings<'_>,
        shards: usize,
    ) -> Result<Self> {
        let s = settings;
        s.optimizer.validate()?;
        if s.accumulation == 0 {
            return Err(StrategyError::Setting {
                setting: "number of micro-batches",
                value: "0".into(),
                expected: "a step has at least 1",
            });
        }
        let program = ProgramSettings {
            max_batch: s.max_batch,
            max_chunks: s.chunks.len().max(1),
            world_size: s.world_size,
            seed: s.seed,
            input_gradient: false,
            shards,
        };
        let program = Program::with_settings(&mut *backend, model, program)?;
        let positions = model.labels_per_sample();
        let loss = Loss::new(&mut *backend, model.classes, positions, s.loss_batch)?;
        let state = State::allocate(&mut *backend)?;
        let summed_loss = match s.accumulation {
            1 => Span::EMPTY,
            _ => backend.allocate(Category::Workspace, Dtype::F32, 1)?,
        };
        let learning_rate = s.optimizer.learning_rate();
        let mut replica = Self {
            accumulated: program.accumulated_gradients(),
            fresh: true,
            program,
            optimizers: Vec::new(),
            state,
            chunks: s.chunks.to_vec(),
            max_batch: s.max_batch,
            accumulation: s.accumulation,
            sample_offset: s.sample_offset,
            global_batch: s.global_batch,
            schedule: s.optimizer.schedule,
            learning_rate,
            uploaded_rate: 0.0,
            step: 0,
            reported: loss.loss(),
            summed_loss,
            loss,
            trace: Trace::new(s.device),
            graphs: None,
            saved: None,
            backend,
        };
        replica.set_learning_rate(learning_rate)?;
        Ok(replica)
    }

    /// Adds an optimizer of the parameters `range`, which may be empty.
    pub(super) fn optimize_range(
        &mut self,
        range: Range<usize>,
        settings: OptimizerSettings,
    ) -> Result<()> {
        let optimizer = Optimizer::over(&mut *self.backend, &self.program, settings, range)?;
        self.optimizers.push(optimizer);
        Ok(())
    }

    /// Its optimizers, in the order of their ranges.
    pub(super) fn optimizers(&self) -> &[Optimizer] {
        &self.optimizers
    }

    /// Most samples that it computes at once.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// The program that it runs.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Elements of one input sample.
    pub(super) fn input_elements(&self) -> usize {
        self.program.input_shape().elements()
    }

    /// Refuses a batch whose slices or length do not fit micro-batches of `most` samples.
    pub(super) fn check(&self, batch: &HostBatch<'_>, most: usize) -> Result<()> {
        let (len, inputs, labels) = (batch.len, batch.inputs.len(), batch.labels.len());
        let count = self.accumulation;
        let whole = self.chunks.iter().sum::<usize>() * count;
        let expected = if len == 0 || len > most * count {
            format!("1 to {} samples", most * count)
        } else if !len.is_multiple_of(count) {
            format!("a multiple of {count} samples, one part for each micro-batch")
        } else if inputs != len * self.input_elements() || labels != len * self.loss.positions() {
            format!(
                "{} input elements and {} label{} per sample",
                self.input_elements(),
                self.loss.positions(),
                if self.loss.positions() == 1 { "" } else { "s" }
            )
        } else if whole != 0 && whole != len {
            let each = if count > 1 {
                " of each micro-batch"
            } else {
                ""
            };
            format!("{whole} samples, the sum of the normalization chunks{each}")
        } else {
            return Ok(());
        };
        Err(StrategyError::Batch {
            len,
            inputs,
            labels,
            expected,
        })
    }

    /// Uploads a micro-batch's inputs, labels, and the device-side state.
    pub(super) fn host_to_device(&mut self, micro: &MicroBatch<'_>) -> Result<()> {
        let _range = nvtx::range(format_args!("host to device"));
        let since = self.trace.before_upload();
        let opened = self.trace.open(&mut *self.backend);
        self.upload_state(micro.offset)?;
        let samples = micro.samples;
        let input = self.program.cut(self.program.input(), samples.len);
        self.backend
            .upload(Stream::Compute, HostSlice::F32(samples.inputs), input)?;
        self.loss
            .upload_labels(&mut *self.backend, samples.labels)?;
        self.trace
            .close(&mut *self.backend, Phase::HostToDevice, opened);
        self.trace.after_upload(&mut *self.backend, since);
        Ok(())
    }

    /// Uploads step number and sample offset, the device-side state of a step.
    pub(super) fn upload_state(&mut self, offset: usize) -> std::result::Result<(), BackendError> {
        self.backend.upload(
            Stream::Compute,
            HostSlice::I32(&[self.step, offset as i32]),
            self.state.counters,
        )
    }

    /// i32 `[step, sample_offset]` on the device, of the present step.
    pub(super) fn counters(&self) -> Span {
        self.state.counters
    }

    /// Forward in training mode.
    pub(super) fn forward(
        &mut self,
        len: usize,
        group: Option<&mut dyn Communicator>,
    ) -> std::result::Result<(), BackendError> {
        let whole = [len];
        let chunks = if self.chunks.is_empty() {
            &whole
        } else {
            &self.chunks[..]
        };
        let (backend, mode, group) = (&mut *self.backend, Mode::Train, shortened(group));
        self.program.forward(&mut Step {
            backend,
            group,
            mode,
            batch: len,
            chunks,
            state: self.state,
            fresh: false,
        })
    }

    /// Backward of node `i` in training mode.
    pub(super) fn backward_node(
        &mut self,
        i: usize,
        len: usize,
        group: Option<&mut dyn Communicator>,
    ) -> std::result::Result<(), BackendError> {
        let whole = [len];
        let chunks = if self.chunks.is_empty() {
            &whole
        } else {
            &self.chunks[..]
        };
        let (backend, mode, group) = (&mut *self.backend, Mode::Train, shortened(group));
        self.program.backward_node(
            i,
            &mut Step {
                backend,
                group,
                mode,
                batch: len,
                chunks,
                state: self.state,
                fresh: self.fresh,
            },
        )?;
        self.fresh &= i > 0;
        Ok(())
    }

    /// Forward in training mode, on this device alone.
    pub(super) fn forward_alone(&mut self, len: usize) -> std::result::Result<(), BackendError> {
        let _range = nvtx::range(format_args!("forward"));
        let opened = self.trace.open(&mut *self.backend);
        self.forward(len, None)?;
        self.trace.close(&mut *self.backend, Phase::Forward, opened);
        Ok(())
    }

    /// Backward of all nodes, on this device alone.
    pub(super) fn backward_alone(&mut self, len: usize) -> std::result::Result<(), BackendError> {
        let _range = nvtx::range(format_args!("backward"));
        let opened = self.trace.open(&mut *self.backend);
        for i in (0..self.program.len()).rev() {
            self.backward_node(i, len, None)?;
        }
        self.trace
            .close(&mut *self.backend, Phase::Backward, opened);
        Ok(())
    }

    /// Loss of this device's output and its gradient: the micro-batch's part of the mean over the step's samples.
    pub(super) fn compute_loss(&mut self, micro: &MicroBatch<'_>) -> Result<()> {
        let _range = nvtx::range(format_args!("loss"));
        let opened = self.trace.open(&mut *self.backend);
        let len = micro.len();
        let (logits, d_logits) = (
            self.program.cut(self.program.output(), len),
            self.program.cut(self.program.d_output(), len),
        );
        let scale = micro.nth.loss_scale(len);
        self.loss
            .compute(&mut *self.backend, logits, d_logits, len, scale)?;
        self.report(self.loss.loss(), micro.nth)?;
        self.trace.close(&mut *self.backend, Phase::Loss, opened);
        Ok(())
    }

    /// Updates the parameters, zeroes the gradients, and counts the step.
    pub(super) fn optimize(&mut self) -> Result<()> {
        self.upload_rate()?;
        self.update_all()?;
        self.end_update()
    }

    /// Updates all parameters; the step's learning rate must have been uploaded.
    pub(super) fn update_all(&mut self) -> Result<()> {
        (0..self.optimizers.len()).try_for_each(|index| self.update(index))
    }

    /// Updates the parameters of optimizer `index`; the step's learning rate must have been uploaded.
    pub(super) fn update(&mut self, index: usize) -> Result<()> {
        let _range = nvtx::range(format_args!("optimizer"));
        let opened = self.trace.open(&mut *self.backend);
        self.optimizers[index].step(&mut *self.backend, self.state)?;
        self.trace
            .close(&mut *self.backend, Phase::Optimizer, opened);
        Ok(())
    }

    /// Clears the gradients, and counts the step.
    pub(super) fn end_update(&mut self) -> Result<()> {
        self.clear_after_update()?;
        self.step += 1;
        Ok(())
    }

    /// Clears the gradients, where they were used here.
    pub(super) fn clear_after_update(&mut self) -> Result<()> {
        match self.optimizers.is_empty() {
            true => Ok(()),
            false => Ok(self.clear_gradients()?),
        }
    }

    /// Makes the next backward start from no gradients: zeroes those that it adds to, and lets it write over the others.
    pub(super) fn clear_gradients(&mut self) -> std::result::Result<(), BackendError> {
        let _range = nvtx::range(format_args!("zero"));
        let opened = self.trace.open(&mut *self.backend);
        for to in &self.accumulated {
            let zero = Kernel::Fill {
                to: *to,
                value: 0.0,
            };
            self.backend.launch(Stream::Compute, zero)?;
        }
        self.fresh = true;
        self.trace.close(&mut *self.backend, Phase::Zero, opened);
        Ok(())
    }

    pub(super) fn read_loss(&mut self) -> Result<f32> {
        let mut loss = [0.0];
        self.backend
            .download(self.reported, HostSliceMut::F32(&mut loss))?;
        Ok(loss[0])
    }

    pub(super) fn set_learning_rate(&mut self, rate: f32) -> Result<()> {
        self.learning_rate = rate;
        self.upload_rate()
    }

    /// Writes the schedule's rate of this step to the device, where it differs from what lies there.
    pub(super) fn upload_rate(&mut self) -> Result<()> {
        let rate = self.learning_rate();
        if rate.to_bits() != self.uploaded_rate.to_bits() {
            self.state.set_learning_rate(&mut *self.backend, rate)?;
            self.uploaded_rate = rate;
        }
        Ok(())
    }

    /// The learning rate of the next step, by the schedule.
    pub fn learning_rate(&self) -> f32 {
        let step = u64::try_from(self.step).unwrap_or_default();
        self.schedule.rate(self.learning_rate, step)
    }
}

/// The same communicator for a shorter time: a mutable reference in an option does not shorten by itself.
fn shortened<'short, 'long: 'short>(
    group: Option<&'short mut (dyn Communicator + 'long)>,
) -> Option<&'short mut (dyn Communicator + 'short)> {
    group.map(|group| group as _)
}
