//! What a call of each collective costs between two ranks that are threads, over each transport.
//!
//! Rank 0 is timed, rank 1 answers, each pinned to a core where there are two. A latency (256 elements) and a bandwidth
//! (262,144 elements, 1 MiB) for each; all-reduce with 4 KiB and 64 MiB besides, and beside those a floor: the least that any
//! program would do with these bytes. For shared memory, two threads that each add half of both buffers where they lie and meet
//! once; for TCP, two threads that send as much as they receive, into memory that is used again. Throughput is of payload, not of
//! bytes sent: an all-reduce's share of its floor is the quotient of the two. Run with
//! `cargo bench -p syncmark-engine --bench collectives` on an idle machine.
use std::net::TcpStream;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice, pin_to_cores};
use syncmark_engine::backend::{Backend, Category, Stream};
use syncmark_engine::ceiling::{exchange, socket_pair};
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::comm::tcp::TcpCommunicator;
use syncmark_engine::comm::{Collective, CollectiveCall, Communicator, Reduce, chunk};
use syncmark_engine::probe::Phase;
use syncmark_engine::tensor::{Dtype, Span};

const ELEMENTS: [usize; 2] = [256, 256 << 10];
/// Those of an all-reduce and of its floor besides.
const MORE_ELEMENTS: [usize; 2] = [1 << 10, 16 << 20];
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

/// The core of each rank; none where there is but one.
fn core(rank: usize) -> Vec<usize> {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    let cores = CORES.get_or_init(|| {
        let set = rustix::thread::sched_getaffinity(None).expect("an affinity");
        let cores: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|core| set.is_set(*core))
            .collect();
        if cores.len() > 1 { cores } else { Vec::new() }
    });
    cores.get(rank).copied().into_iter().collect()
}

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
        let cores = core(comm.rank());
        pin_to_cores(&cores).expect("a core of its own");
        let device = CpuDevice {
            cores,
            ..CpuDevice::default()
        };
        let mut backend = CpuBackend::new(device).expect("a device");
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
    let waiting = Waiting {
        // As in a run: over memory that ranks see they look before they wait.
        spin: transport == "shared" && !core(0).is_empty(),
        ..Waiting::default()
    };
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
            let more = match collective {
                Collective::AllReduce => &MORE_ELEMENTS[..],
                _ => &[],
            };
            for len in ELEMENTS.iter().chain(more) {
                time_calls(&mut group, transport, collective, *len);
                if collective == Collective::Barrier {
                    break;
                }
            }
        }
        for len in MORE_ELEMENTS {
            group.throughput(Throughput::Bytes(4 * len as u64));
            let id = BenchmarkId::new("floor_of_all_reduce", 4 * len);
            // What a floor works with is made here: criterion calls its closure for each sample.
            if transport == "tcp" {
                let mut ends = socket_pair().expect("the loopback interface");
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|calls| time_sockets(&mut ends, 4 * len, calls));
                });
            } else {
                let mut data = [vec![1.0_f32; len], vec![1.0_f32; len]];
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|calls| time_memory(&mut data, calls));
                });
            }
        }
    }
}

fn time_calls(
    group: &mut BenchmarkGroup<'_, WallTime>,
    transport: &str,
    collective: Collective,
    len: usize,
) {
    let mut ranks = ranks(transport).into_iter();
    let (first, second) = (ranks.next().expect("rank 0"), ranks.next());
    let second = second.expect("rank 1");
    let answers = std::thread::spawn(move || answer(Rank::new(second, len), collective));
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
}

/// Time in which two threads each add half of both buffers, to both, so many times; they meet after each.
fn time_memory(data: &mut [Vec<f32>; 2], calls: u64) -> Duration {
    let arrived = AtomicU64::new(0);
    let meet = |meeting: u64| {
        arrived.fetch_add(1, Ordering::SeqCst);
        let mut looks = 0;
        while arrived.load(Ordering::Acquire) < 2 * meeting {
            looks += 1;
            if looks % 1000 == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    };
    let half = |rank: usize, ours: &mut [f32], theirs: &mut [f32]| {
        pin_to_cores(&core(rank)).expect("a core of its own");
        meet(1);
        let begin = Instant::now();
        for call in 0..calls {
            for (a, b) in ours.iter_mut().zip(theirs.iter_mut()) {
                let sum = *a + *b;
                (*a, *b) = (0.5 * sum, 0.5 * sum);
            }
            meet(2 + call);
        }
        begin.elapsed()
    };
    let [first, second] = data;
    let middle = first.len() / 2;
    let (first, second) = (first.split_at_mut(middle), second.split_at_mut(middle));
    std::thread::scope(|scope| {
        scope.spawn(|| half(1, first.1, second.1));
        half(0, first.0, second.0)
    })
}

/// Time in which two threads exchange `bytes` each way, so many times.
fn time_sockets(ends: &mut [TcpStream; 2], bytes: usize, calls: u64) -> Duration {
    let rank = |rank: usize, end: &mut TcpStream| {
        pin_to_cores(&core(rank)).expect("a core of its own");
        let (data, mut room) = (vec![1; bytes], vec![0; bytes.min(256 << 10)]);
        let mut both_ways = || exchange(end, &data, &mut room).expect("the other end answers");
        // The first one waits for the other thread.
        both_ways();
        let begin = Instant::now();
        (0..calls).for_each(|_| both_ways());
        begin.elapsed()
    };
    let [first, second] = ends;
    std::thread::scope(|scope| {
        scope.spawn(|| rank(1, second));
        rank(0, first)
    })
}

criterion_group!(benches, collectives);
criterion_main!(benches);
