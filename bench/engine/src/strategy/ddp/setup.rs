//! What ranks settle outside of steps: that they have the same model, rank 0's parameters, the layout of buckets.
//!
//! All of it blocks, is counted under the phase `setup`, and is no part of a step.
use std::ops::Range;

use super::super::bucket::Buckets;
use super::{Ddp, broadcast};
use crate::backend::{HostSlice, HostSliceMut, Stream};
use crate::probe::Phase;
use crate::strategy::{Result, StrategyError};

impl Ddp {
    pub(super) fn set_up(&mut self) -> Result<()> {
        let own = self.description();
        let all = self.exchange(own)?;
        if let Some(rank) = all.iter().position(|theirs| *theirs != all[0]) {
            let error = StrategyError::Model { rank };
            self.communicator.aborter().abort(&error.to_string());
            return Err(error);
        }
        let (program, after) = (
            &self.replica.program,
            self.replica.backend.record(Stream::Compute),
        );
        for span in [
            program.parameters(),
            program.buffers().floats,
            program.buffers().integers,
        ] {
            broadcast(
                &mut *self.communicator,
                &mut *self.replica.backend,
                Phase::Setup,
                span,
                after,
            )?;
        }
        Ok(self.replica.backend.synchronize()?)
    }

    /// A hash of the names and shapes of all parameters and buffers.
    fn description(&self) -> u64 {
        let mut hash = Fnv::default();
        for parameter in self.replica.program.table() {
            hash.add(parameter.name.as_bytes());
            parameter
                .shape
                .iter()
                .for_each(|size| hash.add(&size.to_le_bytes()));
        }
        for buffer in &self.replica.program.buffers().table {
            hash.add(buffer.name.as_bytes());
            hash.add(&buffer.range.len().to_le_bytes());
        }
        hash.0
    }

    /// Every rank's word, in rank order. Blocks.
    pub(super) fn exchange(&mut self, word: u64) -> Result<Vec<i64>> {
        let backend = &mut *self.replica.backend;
        backend.upload(Stream::Compute, HostSlice::I64(&[word as i64]), self.word)?;
        let after = backend.record(Stream::Compute);
        self.communicator
            .all_gather(backend, Phase::Setup, self.word, self.words, after)?;
        let mut all = vec![0; self.words.len()];
        backend.download(self.words, HostSliceMut::I64(&mut all))?;
        Ok(all)
    }

    /// After the first synchronized step: buckets with caps, in the order in which gradients became ready, as rank 0
    /// sees it. Blocks that once.
    pub(super) fn rebuild_buckets(&mut self) -> Result<()> {
        if !(self.first && self.synchronize) {
            return Ok(());
        }
        self.first = false;
        let mut ranges: Vec<Range<usize>> = self
            .replica
            .program
            .table()
            .iter()
            .map(|parameter| parameter.range.clone())
            .collect();
        ranges.sort_by_key(|range| range.start);
        let sizes: Vec<usize> = ranges.iter().map(Range::len).collect();
        let own = Buckets::assign(&sizes, self.bucket_cap_bytes);
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

    /// A word of all parameters' bits: equal where they are.
    pub(super) fn fingerprint(&mut self) -> Result<u64> {
        let parameters = self.replica.download(self.replica.program.parameters())?;
        let mut hash = Fnv::default();
        parameters
            .iter()
            .for_each(|value| hash.add(&value.to_bits().to_le_bytes()));
        Ok(hash.0)
    }
}

/// FNV-1a, 64 bits: equal inputs give equal words on every rank; nobody is kept out by it.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
