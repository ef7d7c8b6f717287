//! Ranks over NCCL on one GPU: one alone, and two and four as processes, whose results are those of the transport `shared` on the CPU; their
//! bytes on the loopback interface; steps as CUDA graphs, which are the steps to the bit; and what a rank does whose peer is killed. This program
//! starts itself once per rank, so it brings its own `main`. Without a GPU it says why nothing was run, and fails if SYNCMARK_REQUIRE_GPU=1.
mod captures;
mod graphs;
mod sides;
mod trials;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use graphs::{End, Seat};
use sides::{ALL, Extent, FEW, Side, compare};
use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cuda::library::{self, Library};
use syncmark_engine::backend::cuda::{CudaBackend, CudaDevice};
use syncmark_engine::comm::nccl::{NcclCommunicator, carried, one_gpu};
use syncmark_engine::comm::shared::{Region, SharedCommunicator, Waiting};
use syncmark_engine::comm::{Collective, Communicator, Reduce};
use syncmark_engine::model::spec::Norm;
use syncmark_engine::strategy::{Ddp, DdpSettings};
use syncmark_engine::tensor::Dtype;
use trials::agree::{described, devices_agree};
use trials::{On, capped, device, model, train, train_ddp};

const STEPS: usize = 3;
/// Parameters of the test model, in bytes, go in several buckets.
const CAP: usize = 700;
/// No rank takes longer; one that does is stuck, and ends itself.
const LIMIT: Duration = Duration::from_secs(60);

/// A test of so many ranks.
type Test = fn(usize);

/// Samples of each rank.
fn chunks(world: usize) -> &'static [usize] {
    &[3, 2, 2, 1][..world]
}

/// What ranks call: four on one GPU wait for each other's turns.
fn extent(world: usize) -> Extent {
    if world > 2 { FEW } else { ALL }
}

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
    let tests: [(&str, Test, usize); 11] = [
        ("a rank alone gets what shared gives", alone, 1),
        ("ranks on one GPU get what shared gives", together, 2),
        ("ranks on one GPU get what shared gives", together, 4),
        ("ddp equals ddp over shared on the CPU", distributed, 2),
        ("ddp equals ddp over shared on the CPU", distributed, 4),
        ("a killed rank ends the other, which names it", killed, 2),
        ("a graph of a rank alone is its step", graph_alone, 1),
        ("graphs of ddp are its steps, to the bit", ddp_graphs, 2),
        (
            "graphs of zero1 are its steps, to the bit",
            sharded_graphs,
            2,
        ),
        ("graphs of ddp are its steps, to the bit", ddp_graphs, 4),
        (
            "a killed rank ends the other's graph, which names it",
            killed_in_a_graph,
            2,
        ),
    ];
    for (name, test, world) in tests {
        let begin = Instant::now();
        test(world);
        let seconds = begin.elapsed().as_secs_f64();
        println!("test {name}, of {world} ... ok ({seconds:.1} s)");
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

/// Runs a role on every rank; the output of each.
fn run(role: &str, world: usize) -> Vec<String> {
    let (control, region) = Region::create_memfd(world, 64 << 10).unwrap();
    let (reference, _other) = Region::create_memfd(world, 64 << 10).unwrap();
    let children: Vec<Child> = (0..world)
        .map(|rank| start(role, rank, [&control, &reference]))
        .collect();
    let finish = |(rank, child): (usize, Child)| {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            // The others would wait for it.
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
    let world = nccl.world_size();
    match role {
        "together" => {
            let mut over = [
                Side::new(backend, Box::new(nccl)),
                Side::new(device(On::Cpu, rank), Box::new(joined(&reference, rank))),
            ];
            println!("{} calls", compare(&mut over, extent(world)));
            count_bytes(&mut over[0]);
        }
        "ddp" => {
            let chunks = chunks(world);
            let settings = DdpSettings {
                max_batch: chunks[rank],
                sample_offset: chunks[..rank].iter().sum(),
                global_batch: chunks.iter().sum(),
                seed: trials::SEED,
                optimizer: trials::OPTIMIZER,
                options: capped(Some(CAP)),
            };
            let first = settings.sample_offset;
            let model = model(Norm::SyncBatch);
            let mut ddp = Ddp::new(backend, Box::new(nccl), &model, &settings).unwrap();
            let outcome = train(&mut ddp, STEPS, settings.global_batch, |batch| {
                batch.part(first..first + chunks[rank])
            });
            print!("{}", described(&outcome));
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
        "graphs" | "sharded graphs" | "compressed graphs" => {
            // Each side has a device and a communicator of its own, one after the other.
            let first = std::cell::RefCell::new(Some((backend, Box::new(nccl) as _)));
            let one = || first.take().expect("it is made once");
            let other = || over_nccl(Box::new(joined(&reference, rank)));
            let chunks = chunks(world);
            let seat = Seat { rank, chunks };
            match role {
                "graphs" => graphs::ddp(&seat, [&one, &other]),
                "sharded graphs" => graphs::zero1(&seat, [&one, &other]),
                _ => graphs::compressed(&seat, [&one, &other]),
            }
        }
        "forever in graphs" => {
            let chunks = chunks(world);
            return graphs::forever(&Seat { rank, chunks }, (backend, Box::new(nccl)));
        }
        other => panic!("role {other}"),
    }
    ExitCode::SUCCESS
}

/// A device, and a communicator that is connected.
fn over_nccl(control: Box<dyn Communicator>) -> End {
    let mut backend = gpu();
    let mut nccl = NcclCommunicator::new(control);
    nccl.connect(&mut *backend).unwrap();
    (backend, Box::new(nccl))
}

/// What a ring sends for an all-reduce: each of N ranks 2·(N − 1)/N of the payload, all of it over this interface. Within a twentieth, for
/// the headers of packets.
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
    let ranks = side.comm.world_size() as u64;
    let predicted = CALLS * 2 * (ranks - 1) * span.bytes() as u64;
    println!("{sent} bytes on lo, {predicted} predicted");
    let excess = sent.abs_diff(predicted);
    assert!(
        20 * excess <= predicted,
        "{sent} bytes, {predicted} predicted"
    );
}

/// The comparison itself, which needs no GPU: a test that cannot pass would be a waste of one.
fn rehearsed() {
    for world in [1, 2, 4] {
        let ranks = || SharedCommunicator::for_threads(world, Waiting::default()).unwrap();
        std::thread::scope(|scope| {
            for (one, other) in ranks().into_iter().zip(ranks()) {
                scope.spawn(move || {
                    let side = |comm: SharedCommunicator| {
                        Side::new(device(On::Cpu, comm.rank()), Box::new(comm))
                    };
                    let calls = compare(&mut [side(one), side(other)], extent(world));
                    assert!(calls > if world > 2 { 70 } else { 200 }, "{calls}");
                });
            }
        });
    }
}

fn alone(world: usize) {
    let mut backend = gpu();
    let control = || {
        let mut ranks = SharedCommunicator::for_threads(world, Waiting::default()).unwrap();
        Box::new(ranks.remove(0))
    };
    let mut nccl = NcclCommunicator::new(control());
    nccl.connect(&mut *backend).unwrap();
    println!("NCCL {}", nccl.version().unwrap());
    let mut over = [
        Side::new(backend, Box::new(nccl)),
        Side::new(device(On::Cpu, 0), control()),
    ];
    println!("{} calls", compare(&mut over, ALL));
}

fn graph_alone(world: usize) {
    let end = || {
        let mut ranks = SharedCommunicator::for_threads(world, Waiting::default()).unwrap();
        over_nccl(Box::new(ranks.remove(0)))
    };
    let seat = Seat {
        rank: 0,
        chunks: chunks(world),
    };
    graphs::ddp(&seat, [&end, &end]);
    graphs::zero1(&seat, [&end, &end]);
}

fn ddp_graphs(world: usize) {
    tell("graphs", world);
    if world == 2 {
        tell("compressed graphs", world);
    }
}

fn sharded_graphs(world: usize) {
    tell("sharded graphs", world);
}

fn together(world: usize) {
    tell("together", world);
}

/// Runs a role on every rank and says what each says.
fn tell(role: &str, world: usize) {
    for (rank, said) in run(role, world).iter().enumerate() {
        println!("rank {rank}: {}", said.trim().replace('\n', ", "));
    }
}

fn distributed(world: usize) {
    let found = run("ddp", world);
    let model = model(Norm::SyncBatch);
    let expected = train_ddp(On::Cpu, &model, STEPS, chunks(world), Some(CAP));
    let mut furthest = 0.0_f32;
    for (rank, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let distance = devices_agree(&format!("rank {rank}"), found, &described(expected));
        furthest = furthest.max(distance);
    }
    println!("furthest from the CPU: {furthest:.1e}");
}

/// The supervisor sees the death and says so; the other's collective ends with its words, though its peer will never come.
fn killed(world: usize) {
    kill_one("forever", world);
}

fn killed_in_a_graph(world: usize) {
    kill_one("forever in graphs", world);
}

fn kill_one(role: &str, world: usize) {
    let (control, region) = Region::create_memfd(world, 64 << 10).unwrap();
    let (reference, _other) = Region::create_memfd(world, 64 << 10).unwrap();
    let mut children: Vec<Child> = (0..world)
        .map(|rank| start(role, rank, [&control, &reference]))
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
