//! The optimizer of one program, or of a range of its parameters: what it keeps, and the kernel of an update.
//!
//! Contract: its state is laid out like its range of the parameter arena, and starts as zeros; an update is one kernel.
//! Optimizers over ranges that cover the arena do, bit for bit, what one over the whole does, because an update is elementwise.
use std::ops::Range;

use super::{AdamwSettings, OptimizerError, OptimizerSettings, Rule, Schedule, SgdSettings};
use crate::backend::{Backend, Category, HostSlice, Result, Stream};
use crate::kernel::Kernel;
use crate::layer::State;
use crate::program::transfer::{EXP_AVG_PREFIX, EXP_AVG_SQ_PREFIX, ImportError, MOMENTUM_PREFIX};
use crate::program::{NamedTensor, Program};
use crate::tensor::{Dtype, Span};

/// The optimizer of one program, or of a range of its parameters.
pub struct Optimizer {
    settings: OptimizerSettings,
    range: Range<usize>,
    parameters: Span,
    gradients: Span,
    /// Momentum, or the two averages; empty where the rule keeps nothing.
    state: [Span; 2],
}

impl Optimizer {
    /// An optimizer of all parameters.
    ///
    /// # Errors
    /// Settings that cannot work, or out of memory.
    pub fn new(
        backend: &mut dyn Backend,
        program: &Program,
        settings: OptimizerSettings,
    ) -> std::result::Result<Self, OptimizerError> {
        Self::over(backend, program, settings, 0..program.parameters().len())
    }

    /// An optimizer of the elements `range` of the parameter arena alone: ZeRO's shard. It may be empty.
    ///
    /// # Errors
    /// Settings that cannot work, or out of memory.
    ///
    /// # Panics
    /// When the range leaves the arena.
    pub fn over(
        backend: &mut dyn Backend,
        program: &Program,
        settings: OptimizerSettings,
        range: Range<usize>,
    ) -> std::result::Result<Self, OptimizerError> {
        settings.validate()?;
        let mut state = [Span::EMPTY; 2];
        if !range.is_empty() {
            for (slot, _) in state.iter_mut().zip(prefixes(&settings.rule)) {
                *slot = backend.allocate(Category::Optimizer, Dtype::F32, range.len())?;
            }
        }
        Ok(Self {
            settings,
            parameters: program.parameters().slice(range.clone()),
            gradients: program.gradients().slice(range.clone()),
            range,
            state,
        })
    }

    /// Its settings.
    pub fn settings(&self) -> &OptimizerSettings {
        &self.settings
    }

    /// The elements of the parameter arena that it updates.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// What it keeps, each laid out like its range, with the prefix of the tensors' names.
    pub fn state(&self) -> impl Iterator<Item = (&'static str, Span)> + use<> {
        prefixes(&self.settings.rule)
            .iter()
            .copied()
            .zip(self.state)
    }

    /// Whether updates depend on how many were made before: a checkpoint must hold their number.
    pub fn counts_updates(&self) -> bool {
        matches!(self.settings.rule, Rule::Adamw(_)) || self.settings.schedule != Schedule::Constant
    }

    /// Enqueues an update of its parameters on the compute stream; reads the learning rate and the number of updates before
    /// this one from `step`.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn step(&mut self, backend: &mut dyn Backend, step: State) -> Result<()> {
        if self.parameters.is_empty() {
            return Ok(());
        }
        backend.launch(Stream::Compute, self.kernel(step))
    }

    fn kernel(&self, step: State) -> Kernel {
        let (parameter, gradient, rates) = (self.parameters, self.gradients, step.rates);
        match self.settings.rule {
            Rule::Sgd(SgdSettings {
                momentum,
                weight_decay,
                nesterov,
                ..
            }) => Kernel::Sgd {
                parameter,
                gradient,
                buffer: self.state[0],
                rates,
                momentum,
                weight_decay,
                nesterov,
            },
            Rule::Adamw(AdamwSettings {
                beta1,
                beta2,
                eps,
                weight_decay,
                ..
            }) => Kernel::Adamw {
                parameter,
                gradient,
                average: self.state[0],
                square: self.state[1],
                rates,
                counters: step.counters,
                beta1,
                beta2,
                eps,
                weight_decay,
            },
        }
    }

    /// Its state by the parameters' names with a prefix: `momentum.0.conv2d.weight`, or `exp_avg.` and `exp_avg_sq.`. Blocks.
    /// The number of updates is the strategy's.
    ///
    /// # Errors
    /// The backend's failure.
    ///
    /// # Panics
    /// When it is one of a range: gather the ranges of [`Optimizer::state`], then name them with [`Program::export_values`].
    pub fn export(&self, backend: &mut dyn Backend, program: &Program) -> Result<Vec<NamedTensor>> {
        assert!(
            self.range == (0..program.parameters().len()),
            "elements {:?} are a part of the parameters",
            self.range
        );
        let mut all = Vec::new();
        for (prefix, span) in self.state() {
            all.extend(program.export_arena(backend, span, prefix)?);
        }
        Ok(all)
    }

    /// Takes over what [`Optimizer::export`] gave, or its range's part of it; other tensors are passed over. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn import(
        &self,
        backend: &mut dyn Backend,
        program: &Program,
        tensors: &[NamedTensor],
    ) -> std::result::Result<(), ImportError> {
        for (prefix, span) in self.state() {
            let values = program.import_values(tensors, prefix)?;
            if !span.is_empty() {
                let part = HostSlice::F32(&values[self.range.clone()]);
                backend.upload(Stream::Compute, part, span)?;
            }
        }
        Ok(())
    }
}

/// How names of what a rule keeps begin.
fn prefixes(rule: &Rule) -> &'static [&'static str] {
    match rule {
        Rule::Sgd(sgd) if sgd.momentum == 0.0 => &[],
        Rule::Sgd(_) => &[MOMENTUM_PREFIX],
        Rule::Adamw(_) => &[EXP_AVG_PREFIX, EXP_AVG_SQ_PREFIX],
    }
}
