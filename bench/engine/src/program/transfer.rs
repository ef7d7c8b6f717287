//! Between a program's arenas and tensors by PyTorch's names: checkpoints, fixtures, and the gates' comparisons.
//!
//! Both directions block. Tensors for which [`is_optimizer_state`] holds are passed over.
use std::collections::HashMap;

use super::Program;
use super::table::{Buffer, BufferKind, NamedTensor, Parameter, TensorData};
use crate::backend::{Backend, BackendError, HostSlice, HostSliceMut, Stream};
use crate::tensor::Span;

/// How names of SGD's momentum begin: `momentum.0.conv2d.weight`.
pub const MOMENTUM_PREFIX: &str = "momentum.";
/// How names of AdamW's average gradients begin.
pub const EXP_AVG_PREFIX: &str = "exp_avg.";
/// How names of AdamW's average squared gradients begin.
pub const EXP_AVG_SQ_PREFIX: &str = "exp_avg_sq.";
/// Name of the number of updates made, an i64 scalar, which AdamW's bias corrections need.
pub const STEP_NAME: &str = "step";

/// Whether a tensor of this name belongs to the optimizer: parameters and buffers begin with a number.
pub fn is_optimizer_state(name: &str) -> bool {
    name == STEP_NAME
        || [MOMENTUM_PREFIX, EXP_AVG_PREFIX, EXP_AVG_SQ_PREFIX]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Why tensors could not be taken over.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImportError {
    /// The model has a tensor that is not among those given.
    #[error("tensor {name} is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor was given that the model does not have.
    #[error("tensor {name} is not one of this model's")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// Shape or element type differ.
    #[error(
        "tensor {name} has shape {found:?} ({found_type}), the model's has {expected:?} ({expected_type})"
    )]
    Mismatch {
        /// Its name.
        name: String,
        /// Given.
        found: Vec<usize>,
        /// Given.
        found_type: &'static str,
        /// The model's.
        expected: Vec<usize>,
        /// The model's.
        expected_type: &'static str,
    },
    /// The optimizer's number of updates is none.
    #[error(
        "tensor {name} is not an i64 scalar from 0 to 2147483647: write the number of updates made so far"
    )]
    Step {
        /// Its name.
        name: String,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl TensorData {
    const fn type_name(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::I64(_) => "i64",
        }
    }
}

impl Program {
    /// Parameters and buffers in execution order, a layer's parameters before its buffers, in PyTorch's layout. Blocks.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn export(&self, backend: &mut dyn Backend) -> Result<Vec<NamedTensor>, BackendError> {
        let mut parameters = self
            .export_arena(backend, self.parameters, "")?
            .into_iter()
            .peekable();
        let mut nodes = self.table.iter().map(|parameter| parameter.node).peekable();
        let mut floats = vec![0.0; self.buffers.floats.len()];
        let mut integers = vec![0; self.buffers.integers.len()];
        if !integers.is_empty() {
            backend.download(self.buffers.floats, HostSliceMut::F32(&mut floats))?;
            backend.download(self.buffers.integers, HostSliceMut::I64(&mut integers))?;
        }
        let mut all = Vec::with_capacity(self.table.len() + self.buffers.table.len());
        for buffer in &self.buffers.table {
            while nodes.next_if(|node| *node <= buffer.node).is_some() {
                all.extend(parameters.next());
            }
            all.push(export_buffer(buffer, &floats, &integers));
        }
        all.extend(parameters);
        Ok(all)
    }

    /// A span that is laid out like the parameters (gradients, momentum), by the parameters' names with `prefix`. Blocks.
    ///
    /// # Errors
    /// The backend's failure.
    pub fn export_arena(
        &self,
        backend: &mut dyn Backend,
        arena: Span,
        prefix: &str,
    ) -> Result<Vec<NamedTensor>, BackendError> {
        let mut memory = vec![0.0; arena.len()];
        if !memory.is_empty() {
            backend.download(arena, HostSliceMut::F32(&mut memory))?;
        }
        Ok(self.export_values(&memory, prefix))
    }

    /// Host values that are laid out like the parameters, by the parameters' names with `prefix`.
    pub fn export_values(&self, memory: &[f32], prefix: &str) -> Vec<NamedTensor> {
        let export = |parameter: &Parameter| {
            let mut file = vec![0.0; parameter.range.len()];
            parameter
                .layout
                .to_file(&memory[parameter.range.clone()], &mut file);
            let name = format!("{prefix}{}", parameter.name);
            NamedTensor {
                name,
                shape: parameter.shape.clone(),
                data: TensorData::F32(file),
            }
        };
        self.table.iter().map(export).collect()
    }

    /// Takes over all parameters and buffers, in any order.
    ///
    /// # Errors
    /// [`ImportError`]; then nothing was changed, unless the device failed.
    pub fn import(
        &self,
        backend: &mut dyn Backend,
        tensors: &[NamedTensor],
    ) -> Result<(), ImportError> {
        let mut given = by_name(
            tensors
                .iter()
                .filter(|tensor| !is_optimizer_state(&tensor.name)),
        );
        let parameters = self.arena_of(&mut given, "")?;
        let (mut floats, mut integers) = (
            vec![0.0; self.buffers.floats.len()],
            vec![0; self.buffers.integers.len()],
        );
        for buffer in &self.buffers.table {
            import_buffer(buffer, &mut given, &mut floats, &mut integers)?;
        }
        if let Some(name) = given.keys().min() {
            return Err(ImportError::Unknown {
                name: (*name).to_owned(),
            });
        }
        upload(backend, &parameters, self.parameters)?;
        upload(backend, &floats, self.buffers.floats)?;
        if !integers.is_empty() {
            backend.upload(
                Stream::Compute,
                HostSlice::I64(&integers),
                self.buffers.integers,
            )?;
        }
        Ok(())
    }

    /// Fills a span that is laid out like the parameters from tensors of the parameters' names with `prefix`; other
    /// tensors are passed over.
    ///
    /// # Errors
    /// As [`Program::import`].
    pub fn import_arena(
        &self,
        backend: &mut dyn Backend,
        arena: Span,
        tensors: &[NamedTensor],
        prefix: &str,
    ) -> Result<(), ImportError> {
        let memory = self.import_values(tensors, prefix)?;
        upload(backend, &memory, arena)
    }

    /// As [`Program::import_arena`], to host values that are laid out like the parameters.
    ///
    /// # Errors
    /// As [`Program::import`].
    pub fn import_values(
        &self,
        tensors: &[NamedTensor],
        prefix: &str,
    ) -> Result<Vec<f32>, ImportError> {
        self.arena_of(&mut by_name(tensors.iter()), prefix)
    }

    fn arena_of(
        &self,
        given: &mut HashMap<&str, &NamedTensor>,
        prefix: &str,
    ) -> Result<Vec<f32>, ImportError> {
        let mut memory = vec![0.0; self.parameters.len()];
        for parameter in &self.table {
            let name = format!("{prefix}{}", parameter.name);
            let tensor = given
                .remove(name.as_str())
                .ok_or(ImportError::Missing { name })?;
            match &tensor.data {
                TensorData::F32(file)
                    if tensor.shape == parameter.shape && file.len() == parameter.range.len() =>
                {
                    parameter
                        .layout
                        .to_memory(file, &mut memory[parameter.range.clone()]);
                }
                _ => return Err(mismatch(tensor, parameter.shape.clone(), "f32")),
            }
        }
        Ok(memory)
    }
}

fn by_name<'a>(
    tensors: impl Iterator<Item = &'a NamedTensor>,
) -> HashMap<&'a str, &'a NamedTensor> {
    tensors
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect()
}

fn upload(backend: &mut dyn Backend, from: &[f32], to: Span) -> Result<(), ImportError> {
    if from.is_empty() {
        return Ok(());
    }
    Ok(backend.upload(Stream::Compute, HostSlice::F32(from), to)?)
}

fn mismatch(
    tensor: &NamedTensor,
    expected: Vec<usize>,
    expected_type: &'static str,
) -> ImportError {
    let (name, found, found_type) = (
        tensor.name.clone(),
        tensor.shape.clone(),
        tensor.data.type_name(),
    );
    ImportError::Mismatch {
        name,
        found,
        found_type,
        expected,
        expected_type,
    }
}

fn export_buffer(buffer: &Buffer, floats: &[f32], integers: &[i64]) -> NamedTensor {
    let name = buffer.name.clone();
    let range = buffer.range.clone();
    match buffer.kind {
        BufferKind::Tracked => NamedTensor {
            name,
            shape: Vec::new(),
            data: TensorData::I64(integers[range].to_vec()),
        },
        _ => NamedTensor {
            name,
            shape: vec![range.len()],
            data: TensorData::F32(floats[range].to_vec()),
        },
    }
}

fn import_buffer(
    buffer: &Buffer,
    given: &mut HashMap<&str, &NamedTensor>,
    floats: &mut [f32],
    integers: &mut [i64],
) -> Result<(), ImportError> {
    let missing = || ImportError::Missing {
        name: buffer.name.clone(),
    };
    let tensor = given.remove(buffer.name.as_str()).ok_or_else(missing)?;
    let range = buffer.range.clone();
    match (&tensor.data, buffer.kind) {
        (TensorData::I64(value), BufferKind::Tracked)
            if value.len() == 1 && tensor.shape.is_empty() =>
        {
            integers[range].copy_from_slice(value);
        }
        (TensorData::F32(values), BufferKind::RunningMean | BufferKind::RunningVariance)
            if tensor.shape == [range.len()] && values.len() == range.len() =>
        {
            floats[range].copy_from_slice(values);
        }
        (_, BufferKind::Tracked) => return Err(mismatch(tensor, Vec::new(), "i64")),
        _ => return Err(mismatch(tensor, vec![range.len()], "f32")),
    }
    Ok(())
}
