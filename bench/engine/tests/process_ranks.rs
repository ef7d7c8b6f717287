//! Ranks that are processes: the same collectives, DDP and ZeRO-1 over an inherited memfd, and what the others do when
//! one is killed. This program starts itself once per rank, so it brings its own `main`.
mod instructions;
mod trials;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use syncmark_engine::backend::{Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::shared::{Region, SharedCommunicator, Waiting};
use syncmark_engine::comm::{Communicator, Reduce};
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Phase;
use syncmark_engine::strategy::{DdpOptions, Zero1};
use syncmark_engine::tensor::Dtype;
use trials::sharded::Job;
use trials::{OPTIMIZER, On, ddp, device, model, train, train_ddp};

const WORLD: usize = 3;
const SLOT: usize = 64 << 10;
const LEN: usize = 100_003;
const STEPS: usize = 3;
const CHUNKS: [usize; WORLD] = [3, 2, 4];
/// Samples of each rank where 1 to 4 train: the first so many.
const MORE_CHUNKS: [usize; 4] = [3, 2, 4, 1];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, rank, world, fd] = &arguments[..] {
        let [rank, world] = [rank, world].map(|number| number.parse().unwrap());
        return child(role, rank, world, fd.parse().unwrap());
    }
    // Test runners pass filters and options; there is little enough here to run it all the time.
    for (name, test) in [
        ("collectives between processes", collectives as fn()),
        ("a region of another kind is refused", foreign),
        (
            "ddp between 1 to 4 processes repeats to the bit and equals ddp between threads",
            distributed,
        ),
        (
            "zero1 between processes equals zero1 between threads",
            sharded,
        ),
        ("a killed rank ends the others", killed),
    ] {
        test();
        println!("test {name} ... ok");
    }
    instructions::run_again_without_filters();
    ExitCode::SUCCESS
}

fn region(world: usize) -> (OwnedFd, Arc<Region>) {
    let (fd, region) = Region::create_memfd(world, SLOT).unwrap();
    (fd, Arc::new(region))
}

fn start(role: &str, rank: usize, world: usize, fd: RawFd) -> Child {
    let program = std::env::current_exe().unwrap();
    let [rank, world, fd] = [rank, world, fd as usize].map(|number| number.to_string());
    let arguments = [role, &rank, &world, &fd];
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a role on every rank; the output of each.
fn run(role: &str, world: usize) -> Vec<String> {
    let (fd, _region) = region(world);
    let children: Vec<Child> = (0..world)
        .map(|rank| start(role, rank, world, fd.as_raw_fd()))
        .collect();
    let finish = |child: Child| {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{role}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    children.into_iter().map(finish).collect()
}

fn child(role: &str, rank: usize, world: usize, fd: RawFd) -> ExitCode {
    // SAFETY: the parent made this descriptor for its children, and nothing else in this process owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let region = match Region::from_fd(&fd) {
        Ok(region) => Arc::new(region),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(3);
        }
    };
    match role {
        "collectives" => all_reduce(&region, rank, 3),
        "forever" => {
            println!("ready");
            all_reduce(&region, rank, usize::MAX);
        }
        "ddp" => {
            let chunks = &MORE_CHUNKS[..world];
            let start: usize = chunks[..rank].iter().sum();
            let mut ddp = ddp(
                On::Cpu,
                &model(Norm::SyncBatch),
                &region,
                rank,
                chunks,
                DdpOptions::default(),
            );
            let outcome = train(&mut ddp, STEPS, chunks.iter().sum(), |batch| {
                batch.part(start..start + chunks[rank])
            });
            println!("{:?}", (&outcome.losses, &outcome.end));
        }
        "zero1" => {
            let model = model(Norm::SyncBatch);
            let job = sharded_job(&model);
            let communicator = SharedCommunicator::join(region, rank, Waiting::default()).unwrap();
            let settings = job.zero1_settings(rank);
            let device = device(On::Cpu, rank);
            let mut zero1 = Zero1::new(device, Box::new(communicator), &model, &settings).unwrap();
            let outcome = job.train(rank, &mut zero1, STEPS);
            println!("{:?}", (&outcome.losses, &outcome.end));
        }
        other => panic!("role {other}"),
    }
    ExitCode::SUCCESS
}

/// Sums small integers over the ranks, `times` times, and checks every result.
fn all_reduce(region: &Arc<Region>, rank: usize, times: usize) {
    let mut communicator =
        SharedCommunicator::join(Arc::clone(region), rank, Waiting::default()).unwrap();
    let mut backend = device(On::Cpu, rank);
    let span = backend
        .allocate(Category::Workspace, Dtype::F32, LEN)
        .unwrap();
    let mut values = vec![0.0; LEN];
    for time in 0..times {
        let contribution: Vec<f32> = (0..LEN).map(|i| ((i + time) % 17 + rank) as f32).collect();
        let done = backend
            .upload(Stream::Compute, HostSlice::F32(&contribution), span)
            .and_then(|()| {
                let after = backend.record(Stream::Compute);
                communicator.all_reduce(&mut *backend, Phase::AllReduce, span, Reduce::Sum, after)
            })
            .and_then(|event| backend.wait(Stream::Compute, event))
            .and_then(|()| backend.download(span, HostSliceMut::F32(&mut values)));
        if let Err(error) = done {
            eprintln!("{error}");
            std::process::exit(1);
        }
        let ranks = (0..WORLD).sum::<usize>();
        let right =
            |(i, value): (usize, &f32)| *value == (WORLD * ((i + time) % 17) + ranks) as f32;
        assert!(
            values.iter().enumerate().all(right),
            "rank {rank}, time {time}"
        );
    }
    communicator.barrier().unwrap();
    let counts = communicator.counts();
    println!(
        "{} {}",
        counts.iter().map(|c| c.sent_bytes.unwrap()).sum::<u64>(),
        region.read_from(rank)
    );
}

fn collectives() {
    for (rank, output) in run("collectives", WORLD).iter().enumerate() {
        let [sent, read] = output
            .trim()
            .split(' ')
            .map(|n| n.parse().unwrap())
            .collect::<Vec<u64>>()[..]
        else {
            panic!("{output}");
        };
        let own = LEN / WORLD + usize::from(rank < LEN % WORLD);
        let expected = 3 * 4 * ((LEN - own) + own * (WORLD - 1));
        assert_eq!(
            (sent, read),
            (expected as u64, expected as u64),
            "rank {rank}"
        );
    }
}

fn foreign() {
    let file = std::fs::File::open("/dev/null").unwrap();
    // Descriptors of std are close-on-exec; one above the standard three is passed on by number only if it is not.
    let fd = rustix::io::dup(&file).unwrap();
    let output = start("collectives", 0, WORLD, fd.as_raw_fd())
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("not a communication region"), "{said}");
}

fn distributed() {
    for world in 1..=MORE_CHUNKS.len() {
        let processes = run("ddp", world);
        assert_eq!(
            processes,
            run("ddp", world),
            "{world} processes do not repeat"
        );
        let chunks = &MORE_CHUNKS[..world];
        let threads = train_ddp(On::Cpu, &model(Norm::SyncBatch), STEPS, chunks, None);
        for (rank, (process, thread)) in processes.iter().zip(&threads).enumerate() {
            assert_eq!(
                process.trim(),
                format!("{:?}", (&thread.losses, &thread.end)),
                "rank {rank} of {world}"
            );
        }
    }
}

fn sharded_job(model: &Model) -> Job<'_> {
    Job {
        on: On::Cpu,
        model,
        chunks: &CHUNKS,
        optimizer: OPTIMIZER,
        accumulation: 1,
        cap: Some(700),
        tcp: false,
    }
}

fn sharded() {
    let processes = run("zero1", WORLD);
    let model = model(Norm::SyncBatch);
    let job = sharded_job(&model);
    let threads = job.zero1(|rank, strategy| job.train(rank, strategy, STEPS));
    for (rank, (process, thread)) in processes.iter().zip(&threads).enumerate() {
        let expected = format!("{:?}", (&thread.losses, &thread.end));
        assert_eq!(process.trim(), expected, "rank {rank}");
    }
}

/// The supervisor sees the death and aborts; the others end with its words, long before any time limit.
fn killed() {
    let (fd, region) = region(WORLD);
    let mut children: Vec<Child> = (0..WORLD)
        .map(|rank| start("forever", rank, WORLD, fd.as_raw_fd()))
        .collect();
    let begin = Instant::now();
    while (0..WORLD).any(|rank| region.heartbeat_ns(rank) == 0) {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "ranks did not start"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    children[1].kill().unwrap();
    children[1].wait().unwrap();
    let begin = Instant::now();
    region.abort(None, "rank 1 was killed by signal 9");
    for rank in [0, 2] {
        assert!(!children[rank].wait().unwrap().success());
        let mut said = String::new();
        std::io::Read::read_to_string(children[rank].stderr.as_mut().unwrap(), &mut said).unwrap();
        assert!(
            said.contains("the supervisor aborted the job: rank 1 was killed by signal 9"),
            "{said}"
        );
    }
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "the others took {:?}",
        begin.elapsed()
    );
}
