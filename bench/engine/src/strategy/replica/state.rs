//! A replica's state between steps: exported and imported by name, or remembered exactly and gone back to.
//!
//! All of it blocks and is no part of a step. Names are PyTorch's, as [`crate::strategy::Strategy::export`] says.
use super::Replica;
use crate::backend::{HostSlice, HostSliceMut, Stream};
use crate::optim::Optimizer;
use crate::program::transfer::STEP_NAME;
use crate::program::{ImportError, NamedTensor, TensorData};
use crate::strategy::{Result, StrategyError};
use crate::tensor::Span;

/// State that a snapshot keeps, in host memory.
pub(super) struct Saved {
    parameters: Vec<f32>,
    optimizer: Vec<Vec<f32>>,
    floats: Vec<f32>,
    integers: Vec<i64>,
    step: i32,
}

impl Replica {
    pub(in crate::strategy) fn export(&mut self) -> Result<Vec<NamedTensor>> {
        let mut all = self.program.export(&mut *self.backend)?;
        for optimizer in &self.optimizers {
            all.extend(optimizer.export(&mut *self.backend, &self.program)?);
        }
        all.extend(self.counted_updates());
        Ok(all)
    }

    /// The number of updates made, where updates depend on it.
    pub(in crate::strategy) fn counted_updates(&self) -> Option<NamedTensor> {
        let counts = self.optimizers.first()?.counts_updates();
        counts.then(|| NamedTensor {
            name: STEP_NAME.to_owned(),
            shape: Vec::new(),
            data: TensorData::I64(vec![i64::from(self.step)]),
        })
    }

    pub(in crate::strategy) fn import(&mut self, tensors: &[NamedTensor]) -> Result<()> {
        self.program.import(&mut *self.backend, tensors)?;
        for optimizer in &self.optimizers {
            optimizer.import(&mut *self.backend, &self.program, tensors)?;
        }
        let counts = self
            .optimizers
            .first()
            .is_some_and(Optimizer::counts_updates);
        if counts {
            self.step = import_step(tensors)?;
        }
        Ok(())
    }

    /// What the optimizer keeps.
    fn optimizer_state(&self) -> Vec<Span> {
        let states = self.optimizers.iter().flat_map(Optimizer::state);
        states.map(|(_, span)| span).collect()
    }

    /// Downloads a span of floats.
    pub(in crate::strategy) fn download(&mut self, span: Span) -> Result<Vec<f32>> {
        let mut values = vec![0.0; span.len()];
        if !span.is_empty() {
            self.backend
                .download(span, HostSliceMut::F32(&mut values))?;
        }
        Ok(values)
    }

    pub(in crate::strategy) fn snapshot(&mut self) -> Result<()> {
        let (floats, integers) = (
            self.program.buffers().floats,
            self.program.buffers().integers,
        );
        let mut tracked = vec![0; integers.len()];
        if !integers.is_empty() {
            self.backend
                .download(integers, HostSliceMut::I64(&mut tracked))?;
        }
        let mut optimizer = Vec::new();
        for span in self.optimizer_state() {
            optimizer.push(self.download(span)?);
        }
        self.saved = Some(Saved {
            parameters: self.download(self.program.parameters())?,
            optimizer,
            floats: self.download(floats)?,
            integers: tracked,
            step: self.step,
        });
        Ok(())
    }

    pub(in crate::strategy) fn restore(&mut self) -> Result<()> {
        let saved = self.saved.take().ok_or(StrategyError::NoSnapshot)?;
        let done = self.upload_saved(&saved);
        self.step = saved.step;
        self.saved = Some(saved);
        done
    }

    fn upload_saved(&mut self, saved: &Saved) -> Result<()> {
        let buffers = self.program.buffers();
        let floats = [
            (&saved.parameters, self.program.parameters()),
            (&saved.floats, buffers.floats),
        ];
        let state = saved.optimizer.iter().zip(self.optimizer_state());
        let integers = buffers.integers;
        for (from, to) in floats
            .into_iter()
            .chain(state)
            .filter(|(_, to)| !to.is_empty())
        {
            self.backend
                .upload(Stream::Compute, HostSlice::F32(from), to)?;
        }
        if !integers.is_empty() {
            self.backend
                .upload(Stream::Compute, HostSlice::I64(&saved.integers), integers)?;
        }
        Ok(self.backend.synchronize()?)
    }
}

/// The number of updates made when the tensors were exported.
fn import_step(tensors: &[NamedTensor]) -> std::result::Result<i32, ImportError> {
    let name = || STEP_NAME.to_owned();
    let found = tensors.iter().find(|tensor| tensor.name == STEP_NAME);
    let found = found.ok_or_else(|| ImportError::Missing { name: name() })?;
    let step = match found.data {
        TensorData::I64(ref values) if found.shape.is_empty() => values.first(),
        _ => None,
    };
    step.and_then(|step| i32::try_from(*step).ok().filter(|step| *step >= 0))
        .ok_or_else(|| ImportError::Step { name: name() })
}
