//! A gate's side: a few steps on fixed samples, and every tensor before and after them in a safetensors file per rank.
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use syncmark_engine::probe::Silent;
use syncmark_engine::program::{NamedTensor, TensorData};

use super::RankError;
use super::build::Participant;
use crate::run::protocol::Assignment;

/// Takes `steps` steps and writes what this rank holds to its file of `outputs`.
///
/// # Errors
/// The first failure of this rank.
pub fn run(
    assignment: &Assignment,
    mut participant: Participant,
    steps: u32,
    outputs: &[PathBuf],
) -> Result<(), RankError> {
    // What is gated of a trial with graphs is a graph, not the steps before it.
    if participant.captures {
        participant.remember()?;
        participant.capture_ahead()?;
    }
    let before = participant.strategy.export()?;
    for step in 0..steps {
        participant.step(&mut Silent)?;
        let loss = participant.strategy.loss()?;
        if !loss.is_finite() {
            return Err(RankError::Diverged {
                loss,
                step: u64::from(step) + 1,
                pass: " of the gate",
            });
        }
    }
    participant.strategy.finish()?;
    let after = participant.strategy.export()?;
    // A child with one rank has one file; a child with all ranks has one for each.
    let index = participant.device - assignment.rank as usize;
    let path = outputs
        .get(index)
        .ok_or_else(|| RankError::Assignment(format!("no gate output for rank {index}")))?;
    write(path, &before, &after)
}

fn write(path: &Path, before: &[NamedTensor], after: &[NamedTensor]) -> Result<(), RankError> {
    let named = before
        .iter()
        .map(|t| ("before", t))
        .chain(after.iter().map(|t| ("after", t)));
    let bytes: Vec<(String, &NamedTensor, Dtype, Vec<u8>)> = named
        .map(|(when, tensor)| {
            let (dtype, bytes) = little_endian(&tensor.data);
            (format!("{when}.{}", tensor.name), tensor, dtype, bytes)
        })
        .collect();
    let views = bytes.iter().map(|(name, tensor, dtype, bytes)| {
        let view =
            TensorView::new(*dtype, tensor.shape.clone(), bytes).expect("shape and data agree");
        (name.as_str(), view)
    });
    let output = |source| RankError::Output {
        path: path.to_owned(),
        source,
    };
    let file = safetensors::serialize(views, None).map_err(|e| output(std::io::Error::other(e)))?;
    std::fs::write(path, file).map_err(output)
}

fn little_endian(data: &TensorData) -> (Dtype, Vec<u8>) {
    match data {
        TensorData::F32(values) => (
            Dtype::F32,
            values
                .iter()
                .map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
                .into_flattened(),
        ),
        TensorData::I64(values) => (
            Dtype::I64,
            values
                .iter()
                .map(|v| v.to_le_bytes())
                .collect::<Vec<_>>()
                .into_flattened(),
        ),
    }
}
