//! The optimizer's state of all ranks by the parameters' names: what gates and checkpoints compare.
//!
//! It blocks, is counted under the phase `setup`, and is no part of a step. The shards are gathered in the gradient arena,
//! which holds zeros between steps, so that no memory is set aside for it.
use super::Zero1;
use crate::backend::Stream;
use crate::comm::chunk;
use crate::kernel::{Kernel, Write};
use crate::probe::Phase;
use crate::program::NamedTensor;
use crate::strategy::Result;
use crate::tensor::Span;

impl Zero1 {
    /// As [`crate::strategy::Strategy::export`]. Every rank must call it.
    pub(super) fn export_gathered(&mut self) -> Result<Vec<NamedTensor>> {
        let replica = &mut self.replica;
        let mut all = replica.program.export(&mut *replica.backend)?;
        let kept: Vec<&'static str> = replica.optimizers().first().map_or(Vec::new(), |first| {
            first.state().map(|(prefix, _)| prefix).collect()
        });
        for (place, prefix) in kept.into_iter().enumerate() {
            all.extend(self.gather(place, prefix)?);
        }
        all.extend(self.replica.counted_updates());
        Ok(all)
    }

    /// What the optimizers keep in their place `place`, whose names begin with `prefix`.
    fn gather(&mut self, place: usize, prefix: &'static str) -> Result<Vec<NamedTensor>> {
        for index in 0..self.buckets.len() {
            self.gather_bucket(index, place)?;
        }
        let (gradients, padded) = (
            self.replica.program.gradients(),
            self.replica.program.padded_gradients(),
        );
        let values = self.replica.download(gradients)?;
        let backend = &mut *self.replica.backend;
        if !padded.is_empty() {
            let (to, value) = (padded, 0.0);
            backend.launch(Stream::Compute, Kernel::Fill { to, value })?;
        }
        Ok(self.replica.program.export_values(&values, prefix))
    }

    fn gather_bucket(&mut self, index: usize, place: usize) -> Result<()> {
        let shard = self.shard(index);
        let (world, rank) = (self.communicator.world_size(), self.communicator.rank());
        let replica = &mut self.replica;
        let arena = replica.program.padded_gradients();
        let mut state = replica.optimizers()[index].state();
        let from = state.nth(place).map_or(Span::EMPTY, |(_, span)| span);
        let backend = &mut *replica.backend;
        if !from.is_empty() {
            let (to, write) = (arena.slice(shard), Write::Overwrite);
            backend.launch(Stream::Compute, Kernel::Copy { from, to, write })?;
        }
        let bucket = arena.slice(self.buckets.range(index));
        let own = bucket.slice(chunk(bucket.len(), world, rank));
        let after = backend.record(Stream::Compute);
        let event = self
            .communicator
            .all_gather(backend, Phase::Setup, own, bucket, after)?;
        Ok(backend.wait(Stream::Compute, event)?)
    }
}
