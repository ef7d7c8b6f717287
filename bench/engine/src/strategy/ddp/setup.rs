//! The layout of buckets, which ranks settle after the first reduction.
//!
//! It blocks, is counted under the phase `setup`, and is no part of a step.
use super::super::bucket::Buckets;
use super::super::ranks;
use super::Ddp;
use crate::backend::{HostSlice, HostSliceMut, Stream};
use crate::probe::Phase;
use crate::strategy::Result;

impl Ddp {
    /// After the first reduction: buckets with caps, in the order in which gradients became ready, as rank 0 sees it.
    /// Blocks that once.
    pub(super) fn rebuild_buckets(&mut self) -> Result<()> {
        if !self.first {
            return Ok(());
        }
        self.first = false;
        let sizes = ranks::ready_sizes(&self.replica.program);
        let own = Buckets::assign(&sizes, self.options.bucket_caps);
        let mut words = vec![0_i64; self.layout.len()];
        words[0] = own.len() as i64;
        words[1..=own.len()]
            .iter_mut()
            .zip(own.ends())
            .for_each(|(word, end)| *word = *end as i64);
        let backend = &mut *self.replica.backend;
        backend.upload(Stream::Compute, HostSlice::I64(&words), self.layout)?;
        let after = backend.record(Stream::Compute);
        self.communicator
            .broadcast(backend, Phase::Setup, self.layout, 0, after)?;
        backend.download(self.layout, HostSliceMut::I64(&mut words))?;
        self.buckets = Buckets::from_ends(
            words[1..=words[0] as usize]
                .iter()
                .map(|end| *end as usize)
                .collect(),
        );
        Ok(())
    }
}
