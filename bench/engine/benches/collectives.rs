//! What a call of each collective costs between two ranks that are threads, over each transport.
//!
//! Rank 0 is timed, rank 1 answers; both wait in the kernel as ranks on cores that they share do. A latency (256 elements)
//! and a bandwidth (262,144 elements, 1 MiB) for each. Throughput is of payload, not of bytes sent. Run with
//! `cargo bench -p syncmark-engine --bench collectives` on an idle machine.
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{Backend, Category, Stream};
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::comm::tcp::TcpCommunicator;
use syncmark_engine::comm::{Collective, CollectiveCall, Communicator, Reduce, chunk};
use syncmark_engine::probe::Phase;
use syncmark_engine::tensor::{Dtype, Span};

const ELEMENTS: [usize; 2] = [256, 256 << 10];
/// A send is timed together with its receive.
const COLLECTIVES: [Collective; 9] = [
    Collective::Broadcast,
    Collective::Reduce,
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Scatter,
    Collective::Gather,
    Collective::Send,
    Collective::Barrier,
];

/// One of the two ranks.
struct Rank {
    backend: Box<dyn Backend>,
    comm: Box<dyn Communicator>,
    whole: Span,
    part: Span,
    all: Span,
}

impl Rank {
    fn new(comm: Box<dyn Communicator>, len: usize) -> Self {
        let mut backend = CpuBackend::new(CpuDevice::default()).expect("a device");
        let mut take = |len| {
            let span = backend.allocate(Category::Workspace, Dtype::F32, len);
            span.expect("memory")
        };
        let (whole, part) = (take(len), take(chunk(len, 2, comm.rank()).len()));
        let all = take(2 * len);
        Self {
            backend: Box::new(backend),
            comm,
            whole,
            part,
            all,
        }
    }

    fn call(&mut self, collective: Collective) {
        let (mut collective, mut root) = (collective, 0);
        if collective == Collective::Send {
            root = 1 - self.comm.rank();
            if root == 0 {
                collective = Collective::Receive;
            }
        }
        let (from, to) = match collective {
            Collective::AllGather => (self.whole, self.all),
            Collective::ReduceScatter | Collective::Scatter => (self.whole, self.part),
            Collective::Gather => (self.part, self.whole),
            Collective::Barrier => (Span::EMPTY, Span::EMPTY),
            _ => (self.whole, self.whole),
        };
        let call = CollectiveCall {
            collective,
            phase: Phase::AllReduce,
            from,
            to,
            reduce: Reduce::Sum,
            root,
        };
        let after = self.backend.record(Stream::Compute);
        let done = self.comm.enqueue(&mut *self.backend, call, after);
        let waited = done.and_then(|event| self.backend.wait(Stream::Compute, event));
        waited.expect("the other rank answers");
    }
}

fn ranks(transport: &str) -> Vec<Box<dyn Communicator>> {
    let waiting = Waiting::default();
    let boxed = |comm: TcpCommunicator| Box::new(comm) as Box<dyn Communicator>;
    let shared = |comm: SharedCommunicator| Box::new(comm) as Box<dyn Communicator>;
    if transport == "tcp" {
        let joined = TcpCommunicator::for_threads(2, waiting).expect("the loopback interface");
        joined.into_iter().map(boxed).collect()
    } else {
        let joined = SharedCommunicator::for_threads(2, waiting).expect("memory");
        joined.into_iter().map(shared).collect()
    }
}

/// Time of `calls` calls on rank 0. Rank 0 tells rank 1 beforehand how many there will be; 0 ends it.
fn time(rank: &mut Rank, collective: Collective, calls: u64) -> Duration {
    rank.comm.agree(calls).expect("rank 1 answers");
    let begin = Instant::now();
    (0..calls).for_each(|_| rank.call(collective));
    begin.elapsed()
}

fn answer(mut rank: Rank, collective: Collective) {
    loop {
        match rank.comm.agree(0).expect("rank 0 asks") {
            0 => return,
            calls => (0..calls).for_each(|_| rank.call(collective)),
        }
    }
}

fn collectives(criterion: &mut Criterion) {
    for transport in ["shared", "tcp"] {
        let mut group = criterion.benchmark_group(transport);
        for collective in COLLECTIVES {
            for len in ELEMENTS {
                let mut ranks = ranks(transport).into_iter();
                let (first, second) = (ranks.next().expect("rank 0"), ranks.next());
                let second = second.expect("rank 1");
                let answers =
                    std::thread::spawn(move || answer(Rank::new(second, len), collective));
                let mut rank = Rank::new(first, len);
                let bytes = if collective == Collective::Barrier {
                    0
                } else {
                    4 * len as u64
                };
                group.throughput(Throughput::Bytes(bytes));
                let id = BenchmarkId::new(collective.name(), bytes);
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|calls| time(&mut rank, collective, calls));
                });
                rank.comm.agree(0).expect("rank 1 listens");
                answers.join().expect("rank 1 ends well");
                if collective == Collective::Barrier {
                    break;
                }
            }
        }
    }
}

criterion_group!(benches, collectives);
criterion_main!(benches);
