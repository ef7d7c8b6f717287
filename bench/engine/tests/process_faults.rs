//! Ranks that are processes and are killed with SIGKILL, in each phase of each collective, over each transport: the others end
//! with an error that names the lost rank, long before the time limit, and nothing hangs. Over TCP they notice by
//! themselves; in shared memory a killed process leaves no trace, so a supervisor tells, as the conductor does.
//!
//! This program starts itself once per rank, so it brings its own `main`. The cases are generated, as in `fault_table.rs`.
mod ranks;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ranks::{PATIENT, Rank, values};
use rustix::process::{Signal, getpid, kill_process};
use syncmark_engine::comm::shared::{Region, SharedCommunicator};
use syncmark_engine::comm::tcp::{Settings, TcpCommunicator};
use syncmark_engine::comm::{Collective, Reduce, chunk};
use syncmark_engine::tensor::Span;

const LEN: usize = 30_011;
const SLOT: usize = 16 << 10;
const WORLD: usize = 3;
/// Within this time after the death every other rank must have ended; the time limit is a minute.
const NOTICED: Duration = Duration::from_secs(10);
/// Points of a rank's life at which it is killed: on entering its first call, in the midst of it, and calls later.
const POINTS: [usize; 4] = [0, 1, 4, 60];
const AT_A_TIME: usize = 3;
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

#[derive(Clone, Copy, Debug)]
struct Case {
    tcp: bool,
    collective: usize,
    victim: usize,
    point: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, numbers @ ..] = &arguments[..]
        && role == "rank"
    {
        let numbers: Vec<usize> = numbers.iter().map(|n| n.parse().unwrap()).collect();
        return rank(&numbers);
    }
    // Test runners pass filters and options; there is little enough here to run it all the time.
    for tcp in [false, true] {
        let cases = Mutex::new(cases(tcp).into_iter());
        let next = || cases.lock().unwrap().next();
        std::thread::scope(|scope| {
            for _ in 0..AT_A_TIME {
                scope.spawn(|| std::iter::from_fn(next).for_each(|case| run(&case)));
            }
        });
        let transport = if tcp { "tcp" } else { "shared memory" };
        println!("test a rank killed in any phase over {transport} ... ok");
    }
    ExitCode::SUCCESS
}

fn cases(tcp: bool) -> Vec<Case> {
    let of = |collective| {
        (0..WORLD).flat_map(move |victim| {
            POINTS.map(|point| Case {
                tcp,
                collective,
                victim,
                point,
            })
        })
    };
    (0..COLLECTIVES.len()).flat_map(of).collect()
}

/// What the ranks of a case meet in; dropping it lets go of this process's end.
enum Point {
    Memory(OwnedFd, Region),
    Socket(TcpListener, SocketAddr),
}

impl Point {
    fn new(tcp: bool) -> Self {
        if !tcp {
            let (fd, region) = Region::create_memfd(WORLD, SLOT).unwrap();
            return Self::Memory(fd, region);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
        let address = listener.local_addr().unwrap();
        Self::Socket(listener, address)
    }

    /// Descriptor and port for the command line of a rank.
    fn arguments(&self) -> [usize; 2] {
        match self {
            Self::Memory(fd, _) => [fd.as_raw_fd() as usize, 0],
            Self::Socket(listener, address) => {
                [listener.as_raw_fd() as usize, usize::from(address.port())]
            }
        }
    }
}

fn start(case: &Case, rank: usize, point: &Point) -> Child {
    let [fd, port] = point.arguments();
    let Case {
        tcp,
        collective,
        victim,
        point,
    } = *case;
    let numbers = [usize::from(tcp), collective, victim, point, rank, fd, port];
    Command::new(std::env::current_exe().unwrap())
        .arg("rank")
        .args(numbers.map(|n| n.to_string()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run(case: &Case) {
    let point = Point::new(case.tcp);
    let mut children: Vec<Option<Child>> = (0..WORLD)
        .map(|rank| Some(start(case, rank, &point)))
        .collect();
    let mut victim = children[case.victim].take().unwrap();
    let status = victim.wait().unwrap();
    let begin = Instant::now();
    assert_eq!(status.signal(), Some(9), "{case:?}: the victim {status}");
    if let Point::Memory(_, region) = &point {
        let reason = format!("rank {} was killed by signal 9", case.victim);
        region.abort(None, &reason);
    }
    for (rank, child) in children.into_iter().enumerate() {
        let Some(child) = child else {
            continue;
        };
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&stderr);
        let took = begin.elapsed();
        assert!(took < NOTICED, "{case:?}: rank {rank} took {took:?}");
        assert_eq!(status.code(), Some(1), "{case:?}: rank {rank} says: {said}");
        let expected = if case.tcp {
            format!("rank {} is gone: its control connection ended", case.victim)
        } else {
            format!("rank {} was killed by signal 9", case.victim)
        };
        assert!(said.contains(&expected), "{case:?}: rank {rank}: {said}");
    }
}

/// The process of one rank: calls the collective for ever, until it is killed or fails.
fn rank(numbers: &[usize]) -> ExitCode {
    let [tcp, collective, victim, point, rank, fd, port] = *numbers else {
        panic!("{numbers:?}");
    };
    let mut r = if tcp == 1 {
        over_tcp(rank, fd as RawFd, port as u16)
    } else {
        in_memory(rank, fd as RawFd)
    };
    if rank == victim {
        r.fault.arm(point, || {
            kill_process(getpid(), Signal::KILL).unwrap();
            // The signal is delivered before anything else happens here.
            loop {
                std::thread::park();
            }
        });
    }
    let whole = r.f32(&values(rank, LEN));
    let part = r.f32(&vec![0.0; chunk(LEN, WORLD, rank).len()]);
    let all = r.f32(&vec![0.0; LEN * WORLD]);
    loop {
        if let Err(error) = round(&mut r, [whole, part, all], COLLECTIVES[collective]) {
            eprintln!("{error}");
            return ExitCode::from(1);
        }
    }
}

fn over_tcp(rank: usize, listener: RawFd, port: u16) -> Rank {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut settings = Settings::new(rank, WORLD, address, u64::from(port));
    settings.waiting = PATIENT;
    if rank == 0 {
        // SAFETY: the parent made this descriptor for its children, and nothing else in this process owns it.
        settings.listener = Some(unsafe { TcpListener::from_raw_fd(listener) });
    }
    let comm = TcpCommunicator::join(settings).unwrap();
    let fault = comm.fault();
    Rank::sit((Box::new(comm), fault))
}

fn in_memory(rank: usize, fd: RawFd) -> Rank {
    // SAFETY: as above.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let region = Arc::new(Region::from_fd(&fd).unwrap());
    let comm = SharedCommunicator::join(region, rank, PATIENT).unwrap();
    let fault = comm.fault();
    Rank::sit((Box::new(comm), fault))
}

/// One call of a collective, or a message from each rank to the next.
fn round(r: &mut Rank, spans: [Span; 3], collective: Collective) -> Result<(), String> {
    let [whole, part, all] = spans;
    let sum = Reduce::Sum;
    let (next, previous) = ((r.rank + 1) % WORLD, (r.rank + WORLD - 1) % WORLD);
    match collective {
        Collective::AllGather => r.call(collective, whole, all, sum, 0),
        Collective::ReduceScatter | Collective::Scatter => r.call(collective, whole, part, sum, 0),
        Collective::Gather => r.call(collective, part, whole, sum, 0),
        Collective::Barrier => r.call(collective, Span::EMPTY, Span::EMPTY, sum, 0),
        Collective::Send if r.rank == 0 => {
            r.call(Collective::Send, whole, whole, sum, next)?;
            r.call(Collective::Receive, whole, whole, sum, previous)
        }
        Collective::Send => {
            r.call(Collective::Receive, whole, whole, sum, previous)?;
            r.call(Collective::Send, whole, whole, sum, next)
        }
        _ => r.call(collective, whole, whole, sum, 0),
    }
}
