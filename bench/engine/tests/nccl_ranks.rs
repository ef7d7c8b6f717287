//! Ranks over NCCL on one GPU: one alone, and two as processes, whose results are those of the transport `shared` on the CPU; their bytes
//! on the loopback interface; and what a rank does whose peer is killed. This program starts itself once per rank, so it brings its own
//! `main`. Without a GPU it says why nothing was run, and fails if SYNCMARK_REQUIRE_GPU=1.
mod trials;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use syncmark_engine::backend::cuda::library::{self, Library};
use syncmark_engine::backend::cuda::{CudaBackend, CudaDevice};
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::nccl::{NcclCommunicator, carried, one_gpu};
use syncmark_engine::comm::shared::{Region, SharedCommunicator, Waiting};
use syncmark_engine::comm::{Collective, CollectiveCall, Communicator, Reduce, chunk};
use syncmark_engine::half::{Bf16, F16, Half};
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Phase;
use syncmark_engine::program::TensorData;
use syncmark_engine::strategy::{Ddp, DdpSettings};
use syncmark_engine::tensor::{Dtype, Span};
use trials::{On, capped, device, model, train, train_ddp};

const WORLD: usize = 2;
const CHUNKS: [usize; WORLD] = [3, 2];
const STEPS: usize = 3;
/// Parameters of the test model, in bytes, go in several buckets.
const CAP: usize = 700;
/// No rank takes longer; one that does is stuck, and ends itself.
const LIMIT: Duration = Duration::from_secs(60);
/// One element, an equal split, and one that is not.
const LENGTHS: [usize; 3] = [1, 4096, 4099];
/// What ranks are compared with differs in the order of sums within kernels, of some hundred terms, over three steps.
const TOLERANCE: f32 = 5e-4;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, rank, control, reference] = &arguments[..] {
        let number = |text: &String| text.parse::<usize>().unwrap();
        let regions = [control, reference].map(|fd| inherited(number(fd) as i32));
        std::thread::spawn(|| {
            std::thread::sleep(LIMIT);
            eprintln!("this rank is stuck");
            std::process::abort();
        });
        return child(role, number(rank), regions);
    }
    rehearsed();
    println!("test what is compared is equal where both sides are shared ... ok");
    if let Err(reason) = usable() {
        let required = std::env::var_os("SYNCMARK_REQUIRE_GPU").is_some_and(|value| value == "1");
        assert!(!required, "SYNCMARK_REQUIRE_GPU is set: {reason}");
        println!("not run on a GPU: {reason}");
        return ExitCode::SUCCESS;
    }
    for (name, test) in [
        ("one rank gets what shared gives", alone as fn()),
        ("two ranks on one GPU get what shared gives", together),
        (
            "ddp over nccl equals ddp over shared on the CPU",
            distributed,
        ),
        ("a killed rank ends the other, which names it", killed),
    ] {
        let begin = Instant::now();
        test();
        println!(
            "test {name} ... ok ({:.1} s)",
            begin.elapsed().as_secs_f64()
        );
    }
    ExitCode::SUCCESS
}

fn usable() -> Result<(), String> {
    library::find(Library::Nccl).map_err(|missing| missing.to_string())?;
    CudaBackend::new(CudaDevice::default())
        .map(drop)
        .map_err(|error| error.to_string())
}

fn inherited(fd: i32) -> Arc<Region> {
    // SAFETY: the parent made this descriptor for its children, and nothing else in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Arc::new(Region::from_fd(&fd).unwrap())
}

fn start(role: &str, rank: usize, fds: [&OwnedFd; 2]) -> Child {
    let numbers = fds.map(|fd| fd.as_raw_fd().to_string());
    Command::new(std::env::current_exe().unwrap())
        .args([role, &rank.to_string(), &numbers[0], &numbers[1]])
        .envs(one_gpu(rank, true))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a role on both ranks; the output of each.
fn run(role: &str) -> Vec<String> {
    let (control, region) = Region::create_memfd(WORLD, 64 << 10).unwrap();
    let (reference, _other) = Region::create_memfd(WORLD, 64 << 10).unwrap();
    let children: Vec<Child> = (0..WORLD)
        .map(|rank| start(role, rank, [&control, &reference]))
        .collect();
    let finish = |(rank, child): (usize, Child)| {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            // The other would wait for it.
            region.abort(None, &format!("rank {rank} ended with {}", output.status));
        }
        (output.status.success(), said, output.stdout)
    };
    let ended: Vec<_> = std::thread::scope(|scope| {
        let finish = &finish;
        let start = |child| scope.spawn(move || finish(child));
        let waiting: Vec<_> = children.into_iter().enumerate().map(start).collect();
        let waiting = waiting.into_iter();
        waiting.map(|child| child.join().unwrap()).collect()
    });
    let said: Vec<_> = ended.iter().map(|(_, said, _)| said).collect();
    assert!(ended.iter().all(|(good, ..)| *good), "{role}: {said:#?}");
    ended
        .into_iter()
        .map(|(.., out)| String::from_utf8(out).unwrap())
        .collect()
}

fn joined(region: &Arc<Region>, rank: usize) -> SharedCommunicator {
    SharedCommunicator::join(Arc::clone(region), rank, Waiting::default()).unwrap()
}

fn gpu() -> Box<dyn Backend> {
    Box::new(CudaBackend::new(CudaDevice::default()).unwrap())
}

fn child(role: &str, rank: usize, [control, reference]: [Arc<Region>; 2]) -> ExitCode {
    let mut backend = gpu();
    let mut nccl = NcclCommunicator::new(Box::new(joined(&control, rank)));
    nccl.connect(&mut *backend).unwrap();
    match role {
        "together" => {
            let mut over = [
                Side::new(backend, Box::new(nccl)),
                Side::new(device(On::Cpu, rank), Box::new(joined(&reference, rank))),
            ];
            println!("{} calls", compare(&mut over));
            count_bytes(&mut over[0]);
        }
        "ddp" => {
            let settings = DdpSettings {
                max_batch: CHUNKS[rank],
                sample_offset: CHUNKS[..rank].iter().sum(),
                global_batch: CHUNKS.iter().sum(),
                seed: trials::SEED,
                optimizer: trials::OPTIMIZER,
                options: capped(Some(CAP)),
            };
            let first = settings.sample_offset;
            let model = model(Norm::SyncBatch);
            let mut ddp = Ddp::new(backend, Box::new(nccl), &model, &settings).unwrap();
            let outcome = train(&mut ddp, STEPS, settings.global_batch, |batch| {
                batch.part(first..first + CHUNKS[rank])
            });
            println!("{}", described(&outcome));
        }
        "forever" => {
            let mut side = Side::new(backend, Box::new(nccl));
            let span = side.put(Dtype::F32, &[1.0; 1000]);
            for time in 0_u64.. {
                let done = side.call(Collective::AllReduce, span, span, Reduce::Max, 0);
                if let Err(error) = done {
                    eprintln!("{error}");
                    return ExitCode::from(3);
                }
                if time == 0 {
                    println!("ready");
                }
            }
        }
        other => panic!("role {other}"),
    }
    ExitCode::SUCCESS
}

/// A rank on one of the transports.
struct Side {
    backend: Box<dyn Backend>,
    comm: Box<dyn Communicator>,
}

impl Side {
    fn new(backend: Box<dyn Backend>, comm: Box<dyn Communicator>) -> Self {
        Self { backend, comm }
    }

    fn put(&mut self, dtype: Dtype, values: &[f32]) -> Span {
        let span = self
            .backend
            .allocate(Category::Workspace, dtype, values.len())
            .unwrap();
        self.write(span, values);
        span
    }

    fn write(&mut self, span: Span, values: &[f32]) {
        let of = |f: fn(f32) -> F16| values.iter().map(|v| f(*v)).collect::<Vec<_>>();
        let f16 = of(F16::narrow);
        let bf16: Vec<_> = values.iter().map(|v| Bf16::narrow(*v)).collect();
        let i32: Vec<_> = values.iter().map(|v| *v as i32).collect();
        let i64: Vec<_> = values.iter().map(|v| (*v as i64) << 40).collect();
        let from = match span.dtype() {
            Dtype::F32 => HostSlice::F32(values),
            Dtype::F16 => HostSlice::F16(&f16),
            Dtype::Bf16 => HostSlice::Bf16(&bf16),
            Dtype::I32 => HostSlice::I32(&i32),
            Dtype::I64 => HostSlice::I64(&i64),
        };
        self.backend.upload(Stream::Compute, from, span).unwrap();
    }

    /// The bits of a span, widened.
    fn bits(&mut self, span: Span) -> Vec<i64> {
        let len = span.len();
        macro_rules! read {
            ($kind:ident, $zero:expr, $bits:expr) => {{
                let mut values = vec![$zero; len];
                let to = HostSliceMut::$kind(&mut values);
                self.backend.download(span, to).unwrap();
                values.into_iter().map($bits).collect()
            }};
        }
        match span.dtype() {
            Dtype::F32 => read!(F32, 0.0, |v: f32| i64::from(v.to_bits())),
            Dtype::F16 => read!(F16, F16(0), |v: F16| i64::from(v.0)),
            Dtype::Bf16 => read!(Bf16, Bf16(0), |v: Bf16| i64::from(v.0)),
            Dtype::I32 => read!(I32, 0, i64::from),
            Dtype::I64 => read!(I64, 0, |v: i64| v),
        }
    }

    fn call(
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
        done.and_then(|event| self.backend.wait(Stream::Compute, event))
            .and_then(|()| self.backend.synchronize())
            .map_err(|error| error.to_string())
    }
}

/// Small integers: their sums are exact in every data type, so that the order of a sum does not show.
fn values(rank: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7 + rank * 5) % 23) as f32 - 11.0)
        .collect()
}

/// Every collective in every data type, combination and length on both sides; results must be bit-equal. The number of calls.
fn compare(over: &mut [Side; 2]) -> usize {
    let mut calls = 0;
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I32, Dtype::I64] {
        for len in LENGTHS {
            let world = over[0].comm.world_size();
            let spans: Vec<_> = over
                .iter_mut()
                .map(|side| {
                    let zeros = vec![0.0; len * world];
                    (side.put(dtype, &zeros[..len]), side.put(dtype, &zeros))
                })
                .collect();
            let scaled = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16);
            let reduces = [Reduce::Sum, Reduce::Max, Reduce::ScaledSum(0.5)];
            for reduce in &reduces[..if scaled { 3 } else { 2 }] {
                for case in CASES
                    .iter()
                    .filter(|case| case.reduces || *reduce == Reduce::Sum)
                {
                    let found = [0, 1].map(|side| {
                        let (own, all) = spans[side];
                        one(&mut over[side], case, (own, all), *reduce)
                    });
                    let [nccl, shared] = &found;
                    let what = (case.collective, case.in_place, dtype, len, *reduce);
                    assert_eq!(nccl, shared, "{what:?}");
                    calls += 1;
                }
            }
        }
    }
    over[0].comm.barrier().unwrap();
    calls
}

struct Case {
    collective: Collective,
    in_place: bool,
    reduces: bool,
}

const fn case(collective: Collective, in_place: bool, reduces: bool) -> Case {
    Case {
        collective,
        in_place,
        reduces,
    }
}

const CASES: [Case; 11] = [
    case(Collective::AllReduce, true, true),
    case(Collective::Reduce, true, true),
    case(Collective::ReduceScatter, false, true),
    case(Collective::ReduceScatter, true, true),
    case(Collective::Broadcast, true, false),
    case(Collective::AllGather, false, false),
    case(Collective::AllGather, true, false),
    case(Collective::Scatter, false, false),
    case(Collective::Gather, false, false),
    case(Collective::Send, true, false),
    case(Collective::Barrier, false, false),
];

/// One call, the last rank being the root, and the bits of its result, and of what was not to be changed.
fn one(side: &mut Side, case: &Case, (own, all): (Span, Span), reduce: Reduce) -> Vec<i64> {
    let (rank, world) = (side.comm.rank(), side.comm.world_size());
    let (len, root) = (own.len(), world - 1);
    side.write(own, &values(rank, len));
    side.write(all, &vec![0.0; len * world]);
    let part = chunk(len, world, rank);
    let (from, to) = match (case.collective, case.in_place) {
        (Collective::Barrier, _) => (Span::EMPTY, Span::EMPTY),
        (Collective::AllGather, true) => {
            side.write(all, &values(rank, len * world));
            (all.slice(rank * len..(rank + 1) * len), all)
        }
        (Collective::AllGather, false) => (own, all),
        (Collective::ReduceScatter, true) => (own, own.slice(part)),
        (Collective::ReduceScatter | Collective::Scatter, _) => (own, all.first(part.len())),
        (Collective::Gather, _) => (own.first(part.len()), all.first(len)),
        _ => (own, own),
    };
    let (collective, peer) = match case.collective {
        // From the last rank to the first; alone, nobody sends.
        Collective::Send if world == 1 => return Vec::new(),
        Collective::Send if rank == root => (Collective::Send, 0),
        Collective::Send if rank == 0 => (Collective::Receive, root),
        Collective::Send => return Vec::new(),
        other => (other, root),
    };
    let done = side.call(collective, from, to, reduce, peer);
    done.unwrap_or_else(|error| panic!("{collective:?}: {error}"));
    let input = if case.in_place || from.is_empty() {
        Vec::new()
    } else {
        side.bits(from)
    };
    if to.is_empty() {
        return input;
    }
    [input, side.bits(to)].concat()
}

/// What a ring sends for an all-reduce is twice the payload on two ranks, all of it over this interface: within a twentieth, for the
/// headers of packets.
fn count_bytes(side: &mut Side) {
    const CALLS: u64 = 8;
    const LEN: usize = 1 << 20;
    let span = side.put(Dtype::F32, &vec![0.0; LEN]);
    side.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
        .unwrap();
    side.comm.barrier().unwrap();
    let before = carried("lo").unwrap().expect("there is a loopback");
    side.comm.barrier().unwrap();
    for _ in 0..CALLS {
        side.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
    }
    side.comm.barrier().unwrap();
    let sent = carried("lo").unwrap().unwrap().since(before).sent_bytes;
    side.comm.barrier().unwrap();
    let predicted = CALLS * 2 * span.bytes() as u64;
    println!("{sent} bytes on lo, {predicted} predicted");
    let excess = sent.abs_diff(predicted);
    assert!(
        20 * excess <= predicted,
        "{sent} bytes, {predicted} predicted"
    );
}

/// The comparison itself, which needs no GPU: a test that cannot pass would be a waste of one.
fn rehearsed() {
    for world in 1..=WORLD {
        let ranks = || SharedCommunicator::for_threads(world, Waiting::default()).unwrap();
        std::thread::scope(|scope| {
            for (one, other) in ranks().into_iter().zip(ranks()) {
                scope.spawn(move || {
                    let side = |comm: SharedCommunicator| {
                        Side::new(device(On::Cpu, comm.rank()), Box::new(comm))
                    };
                    assert!(compare(&mut [side(one), side(other)]) > 200);
                });
            }
        });
    }
}

fn alone() {
    let mut backend = gpu();
    let control = || {
        let mut ranks = SharedCommunicator::for_threads(1, Waiting::default()).unwrap();
        Box::new(ranks.remove(0))
    };
    let mut nccl = NcclCommunicator::new(control());
    nccl.connect(&mut *backend).unwrap();
    println!("NCCL {}", nccl.version().unwrap());
    let mut over = [
        Side::new(backend, Box::new(nccl)),
        Side::new(device(On::Cpu, 0), control()),
    ];
    println!("{} calls", compare(&mut over));
}

fn together() {
    for (rank, said) in run("together").iter().enumerate() {
        println!("rank {rank}: {}", said.trim().replace('\n', ", "));
    }
}

/// Losses and tensors, a line each.
fn described(outcome: &trials::Outcome) -> String {
    let line = |name: &str, values: &[f32]| {
        let values: Vec<_> = values.iter().map(ToString::to_string).collect();
        format!("{name} {}", values.join(" "))
    };
    let mut lines = vec![line("losses", &outcome.losses)];
    for tensor in &outcome.end {
        if let TensorData::F32(values) = &tensor.data {
            lines.push(line(&tensor.name, values));
        }
    }
    lines.join("\n")
}

fn distributed() {
    let found = run("ddp");
    let expected = train_ddp(On::Cpu, &model(Norm::SyncBatch), STEPS, &CHUNKS, Some(CAP));
    let mut furthest = 0.0_f32;
    for (rank, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let expected = described(expected);
        assert_eq!(found.trim().lines().count(), expected.lines().count());
        for (found, expected) in found.trim().lines().zip(expected.lines()) {
            let (mut found, mut expected) = (found.split(' '), expected.split(' '));
            let name = found.next();
            assert_eq!(name, expected.next());
            for (found, expected) in found.zip(expected) {
                let [found, expected] = [found, expected].map(|text| text.parse::<f32>().unwrap());
                let distance = (found - expected).abs() / expected.abs().max(1.0);
                assert!(
                    distance <= TOLERANCE,
                    "rank {rank}, {name:?}: {found}, {expected} on the CPU"
                );
                furthest = furthest.max(distance);
            }
        }
    }
    println!("furthest from the CPU: {furthest:.1e}");
}

/// The supervisor sees the death and says so; the other's collective ends with its words, though its peer will never come.
fn killed() {
    let (control, region) = Region::create_memfd(WORLD, 64 << 10).unwrap();
    let (reference, _other) = Region::create_memfd(WORLD, 64 << 10).unwrap();
    let mut children: Vec<Child> = (0..WORLD)
        .map(|rank| start("forever", rank, [&control, &reference]))
        .collect();
    for child in &mut children {
        let mut line = String::new();
        let out = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        assert_eq!(line, "ready\n");
    }
    children[1].kill().unwrap();
    children[1].wait().unwrap();
    let begin = Instant::now();
    region.abort(None, "rank 1 was killed by signal 9");
    let survivor = children.remove(0).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&survivor.stderr);
    assert_eq!(survivor.status.code(), Some(3), "{said}");
    assert!(said.contains("rank 1 was killed by signal 9"), "{said}");
    println!("the other ended after {:?}", begin.elapsed());
}
