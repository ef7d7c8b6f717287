//! Ranks for tests: threads that share a region, each with a device of its own.
//!
//! Values are small integers, so that sums are exact and equality can be demanded.
#![allow(dead_code, reason = "each test file uses a part of this")]
use std::sync::Arc;
use std::time::Duration;

use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::shared::{Region, SharedCommunicator, Waiting};
use syncmark_engine::comm::{Collective, CollectiveCall, Communicator, Reduce};
use syncmark_engine::probe::Phase;
use syncmark_engine::tensor::{Dtype, Span};

/// One rank of a test.
pub struct Rank {
    pub rank: usize,
    pub world: usize,
    pub backend: Box<dyn Backend>,
    pub comm: SharedCommunicator,
}

/// A time limit that no passing test comes near.
pub const PATIENT: Waiting = Waiting {
    spin: false,
    timeout: Duration::from_secs(60),
};

pub fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(CpuDevice::default()).unwrap())
}

impl Rank {
    pub fn join(region: &Arc<Region>, rank: usize, waiting: Waiting) -> Self {
        let comm = SharedCommunicator::join(Arc::clone(region), rank, waiting).unwrap();
        Self {
            rank,
            world: region.world_size(),
            backend: cpu(),
            comm,
        }
    }

    pub fn f32(&mut self, values: &[f32]) -> Span {
        let span = self
            .backend
            .allocate(Category::Workspace, Dtype::F32, values.len())
            .unwrap();
        self.backend
            .upload(Stream::Compute, HostSlice::F32(values), span)
            .unwrap();
        span
    }

    pub fn i64(&mut self, values: &[i64]) -> Span {
        let span = self
            .backend
            .allocate(Category::Workspace, Dtype::I64, values.len())
            .unwrap();
        self.backend
            .upload(Stream::Compute, HostSlice::I64(values), span)
            .unwrap();
        span
    }

    pub fn read_f32(&mut self, span: Span) -> Vec<f32> {
        let mut values = vec![f32::NAN; span.len()];
        self.backend
            .download(span, HostSliceMut::F32(&mut values))
            .unwrap();
        values
    }

    pub fn read_i64(&mut self, span: Span) -> Vec<i64> {
        let mut values = vec![i64::MIN; span.len()];
        self.backend
            .download(span, HostSliceMut::I64(&mut values))
            .unwrap();
        values
    }

    /// Enqueues a call and waits for its end.
    pub fn call(
        &mut self,
        collective: Collective,
        from: Span,
        to: Span,
        reduce: Reduce,
        root: usize,
    ) -> Result<(), String> {
        let call = CollectiveCall {
            collective,
            phase: Phase::AllReduce,
            from,
            to,
            reduce,
            root,
        };
        let after = self.backend.record(Stream::Compute);
        let done = self.comm.enqueue(&mut *self.backend, call, after);
        let event = done.map_err(|error| error.to_string())?;
        self.backend
            .wait(Stream::Compute, event)
            .map_err(|error| error.to_string())?;
        self.backend
            .synchronize()
            .map_err(|error| error.to_string())
    }

    /// Bytes sent and received in all counted calls.
    pub fn traffic(&self) -> (u64, u64) {
        let counts = self.comm.counts();
        let sum = |of: fn(&syncmark_engine::comm::Count) -> u64| counts.iter().map(of).sum();
        (
            sum(|count| count.sent_bytes),
            sum(|count| count.received_bytes),
        )
    }
}

/// Runs `body` on every rank of a new region and returns the results in rank order.
pub fn spawn<T: Send>(
    world: usize,
    slot_bytes: usize,
    waiting: Waiting,
    body: impl Fn(Rank) -> T + Sync,
) -> Vec<T> {
    let region = Arc::new(Region::for_threads(world, slot_bytes).unwrap());
    std::thread::scope(|scope| {
        let (region, body) = (&region, &body);
        let start = |rank| scope.spawn(move || body(Rank::join(region, rank, waiting)));
        let ranks: Vec<_> = (0..world).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What rank `rank` contributes: small integers, different for every rank.
pub fn values(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| value(rank, i)).collect()
}

/// Element `i` of [`values`].
pub fn value(rank: usize, i: usize) -> f32 {
    ((i * 7 + rank * 13) % 31) as f32 - 15.0
}
