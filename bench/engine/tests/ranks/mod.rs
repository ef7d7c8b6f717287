//! Ranks for tests: threads that meet over one of the transports, each with a device of its own.
//!
//! Values are small integers, so that sums are exact and equality can be demanded.
#![allow(dead_code, reason = "each test file uses a part of this")]
use std::sync::Arc;
use std::time::Duration;

use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::fault::Fault;
use syncmark_engine::comm::shared::{Region, SharedCommunicator, Waiting};
use syncmark_engine::comm::tcp::TcpCommunicator;
use syncmark_engine::comm::{Collective, CollectiveCall, Communicator, Reduce};
use syncmark_engine::half::{Bf16, F16, Half};
use syncmark_engine::probe::Phase;
use syncmark_engine::tensor::{Dtype, Span};

/// One rank of a test.
pub struct Rank {
    pub rank: usize,
    pub world: usize,
    pub backend: Box<dyn Backend>,
    pub comm: Box<dyn Communicator>,
    /// Stops the rank in the midst of a call, once it is armed.
    pub fault: Fault,
}

/// How the ranks of a test exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transport {
    /// Over shared memory with slots of so many bytes.
    Shared(usize),
    /// Over the loopback interface, with the kernel's buffers as it sizes them, or of 128 KiB: two packets
    /// of this interface, below which each waits for a timer of the kernel.
    Tcp { small_buffers: bool },
}

/// Small slots and small buffers, so that a thousand elements cross many pieces.
pub const TRANSPORTS: [Transport; 3] = [
    Transport::Shared(4096),
    Transport::Tcp {
        small_buffers: false,
    },
    Transport::Tcp {
        small_buffers: true,
    },
];

/// What the ranks of a job are made of before they are on their threads.
pub type Seat = (Box<dyn Communicator>, Fault);

/// The communicators of a new job, in rank order.
pub fn seats(transport: Transport, world: usize, waiting: Waiting) -> Vec<Seat> {
    match transport {
        Transport::Shared(slot_bytes) => {
            let region = Arc::new(Region::for_threads(world, slot_bytes).unwrap());
            (0..world)
                .map(|rank| shared_seat(&region, rank, waiting))
                .collect()
        }
        Transport::Tcp { small_buffers } => {
            let joined = TcpCommunicator::for_threads_with(world, |settings| {
                settings.waiting = waiting;
                settings.buffer_bytes = small_buffers.then_some(128 << 10);
            });
            let seat = |comm: TcpCommunicator| {
                let fault = comm.fault();
                (Box::new(comm) as Box<dyn Communicator>, fault)
            };
            joined.unwrap().into_iter().map(seat).collect()
        }
    }
}

fn shared_seat(region: &Arc<Region>, rank: usize, waiting: Waiting) -> Seat {
    let comm = SharedCommunicator::join(Arc::clone(region), rank, waiting).unwrap();
    let fault = comm.fault();
    (Box::new(comm), fault)
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
        Self::sit(shared_seat(region, rank, waiting))
    }

    /// A rank on the calling thread.
    pub fn sit((comm, fault): Seat) -> Self {
        Self {
            rank: comm.rank(),
            world: comm.world_size(),
            backend: cpu(),
            comm,
            fault,
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

    pub fn i32(&mut self, values: &[i32]) -> Span {
        let span = self
            .backend
            .allocate(Category::Workspace, Dtype::I32, values.len())
            .unwrap();
        self.backend
            .upload(Stream::Compute, HostSlice::I32(values), span)
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

    /// Values in half precision; they must be exact in it.
    pub fn halves(&mut self, dtype: Dtype, values: &[f32]) -> Span {
        let len = values.len();
        let span = self
            .backend
            .allocate(Category::Workspace, dtype, len)
            .unwrap();
        let f16: Vec<F16> = values.iter().map(|v| F16::narrow(*v)).collect();
        let bf16: Vec<Bf16> = values.iter().map(|v| Bf16::narrow(*v)).collect();
        let from = match dtype {
            Dtype::F16 => HostSlice::F16(&f16),
            _ => HostSlice::Bf16(&bf16),
        };
        self.backend.upload(Stream::Compute, from, span).unwrap();
        span
    }

    pub fn read_halves(&mut self, span: Span) -> Vec<f32> {
        let (mut f16, mut bf16) = (vec![F16(0); span.len()], vec![Bf16(0); span.len()]);
        let to = match span.dtype() {
            Dtype::F16 => HostSliceMut::F16(&mut f16),
            _ => HostSliceMut::Bf16(&mut bf16),
        };
        self.backend.download(span, to).unwrap();
        match span.dtype() {
            Dtype::F16 => f16.iter().map(|half| half.widen()).collect(),
            _ => bf16.iter().map(|half| half.widen()).collect(),
        }
    }

    pub fn read_f32(&mut self, span: Span) -> Vec<f32> {
        let mut values = vec![f32::NAN; span.len()];
        self.backend
            .download(span, HostSliceMut::F32(&mut values))
            .unwrap();
        values
    }

    pub fn read_i32(&mut self, span: Span) -> Vec<i32> {
        let mut values = vec![i32::MIN; span.len()];
        self.backend
            .download(span, HostSliceMut::I32(&mut values))
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

    /// Copies one span to another of the same length.
    pub fn copy(&mut self, from: Span, to: Span) {
        if !from.is_empty() {
            let values = self.read_f32(from);
            self.backend
                .upload(Stream::Compute, HostSlice::F32(&values), to)
                .unwrap();
        }
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
            sum(|count| count.sent_bytes.unwrap()),
            sum(|count| count.received_bytes.unwrap()),
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
    spawn_on(Transport::Shared(slot_bytes), world, waiting, body)
}

/// Runs `body` on every rank of a new job and returns the results in rank order.
pub fn spawn_on<T: Send>(
    transport: Transport,
    world: usize,
    waiting: Waiting,
    body: impl Fn(Rank) -> T + Sync,
) -> Vec<T> {
    let seats = seats(transport, world, waiting);
    std::thread::scope(|scope| {
        let body = &body;
        let start = |seat| scope.spawn(move || body(Rank::sit(seat)));
        let ranks: Vec<_> = seats.into_iter().map(start).collect();
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

/// Lengths that most world sizes do not divide.
pub const LENGTHS: [usize; 6] = [0, 1, 2, 3, 7, 1000];
/// Small slots, so that a thousand elements cross many pieces.
pub const SLOT: usize = 4096;

/// Runs `check` on every rank over each transport, for every world size from 1 to 4 and every length.
pub fn everywhere(check: impl Fn(Rank, usize) + Sync) {
    for world in 1..=4 {
        for len in LENGTHS.into_iter().chain([5003]) {
            on_all(world, |rank| check(rank, len));
        }
    }
}

/// Runs `check` on every rank of a job over each transport.
pub fn on_all(world: usize, check: impl Fn(Rank) + Sync) {
    for transport in TRANSPORTS {
        spawn_on(transport, world, PATIENT, &check);
    }
}

/// The sum of what all ranks contribute.
pub fn sum(world: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| (0..world).map(|rank| value(rank, i)).sum())
        .collect()
}
