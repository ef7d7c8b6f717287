//! A rank that is lost, in each phase of each collective, over each transport, of 2 and 3 ranks, whoever it is: every other
//! rank ends with an error that names it, long before the time limit.
//!
//! The table is generated: a round without a fault tells how many points a rank passes in it (`comm/fault.rs`), and each
//! case stops one rank at one of them. Ranks that are killed as processes are in `process_faults.rs`.
mod ranks;

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ranks::{PATIENT, Rank, Transport, spawn_on, values};
use syncmark_engine::comm::{Collective, Reduce, chunk};
use syncmark_engine::tensor::Span;

/// Elements of a payload: several pieces of every transport here.
const LEN: usize = 3001;
/// By then every rank must have ended, on a machine that does other things as well; the time limit is a minute.
const NOTICED: Duration = Duration::from_secs(20);
/// Rounds after which a rank that was to be lost must have been.
const ROUNDS: usize = 10_000;
/// Cases at a time: most of one is spent waiting.
const AT_A_TIME: usize = 8;

const OVER: [Transport; 2] = [
    Transport::Shared(4096),
    Transport::Tcp {
        small_buffers: true,
    },
];

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

/// What happens to the rank that is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// It panics in the midst of its call; its connections close.
    Panics,
    /// It gives up for a reason of its own.
    Aborts,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    transport: Transport,
    collective: Collective,
    world: usize,
    victim: usize,
    loss: Loss,
    point: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transport,
            collective,
            world,
            victim,
            loss,
            point,
        } = self;
        write!(
            f,
            "{} over {transport:?}: rank {victim} of {world} {loss:?} at point {point}",
            collective.name()
        )
    }
}

/// Memory for the calls of one rank.
struct Spans {
    whole: Span,
    part: Span,
    all: Span,
}

impl Spans {
    fn new(r: &mut Rank) -> Self {
        let part = chunk(LEN, r.world, r.rank).len();
        Self {
            whole: r.f32(&values(r.rank, LEN)),
            part: r.f32(&vec![0.0; part]),
            all: r.f32(&vec![0.0; LEN * r.world]),
        }
    }
}

/// One call of a collective, or a message from each rank to the next, so that all depend on all.
fn round(r: &mut Rank, spans: &Spans, collective: Collective) -> Result<(), String> {
    let Spans { whole, part, all } = *spans;
    let (from, to) = match collective {
        Collective::AllGather => (whole, all),
        Collective::ReduceScatter | Collective::Scatter => (whole, part),
        Collective::Gather => (part, whole),
        Collective::Barrier => (Span::EMPTY, Span::EMPTY),
        _ => (whole, whole),
    };
    if collective != Collective::Send {
        return r.call(collective, from, to, Reduce::Sum, 0);
    }
    let (next, previous) = ((r.rank + 1) % r.world, (r.rank + r.world - 1) % r.world);
    let send = |r: &mut Rank| r.call(Collective::Send, from, to, Reduce::Sum, next);
    if r.rank == 0 {
        send(r)?;
    }
    r.call(Collective::Receive, from, to, Reduce::Sum, previous)?;
    if r.rank == 0 { Ok(()) } else { send(r) }
}

/// Points that each rank passes in a round without a fault.
fn points(transport: Transport, collective: Collective, world: usize) -> Vec<usize> {
    spawn_on(transport, world, PATIENT, |mut r| {
        r.fault.arm(usize::MAX, || {});
        let spans = Spans::new(&mut r);
        round(&mut r, &spans, collective).unwrap();
        let passed = r.fault.passed();
        r.comm.barrier().unwrap();
        passed
    })
}

/// Every case of a transport: the first points of a round, its middle and end, and a later round.
fn cases(transport: Transport) -> Vec<Case> {
    let mut cases = Vec::new();
    for collective in COLLECTIVES {
        for world in [2, 3] {
            for (victim, passed) in points(transport, collective, world).into_iter().enumerate() {
                assert!(passed > 0, "{collective:?} passes no point");
                let mut chosen = vec![0, 1, passed / 2, passed - 1, 2 * passed + 1];
                chosen.sort_unstable();
                chosen.dedup();
                for point in chosen {
                    cases.extend([Loss::Panics, Loss::Aborts].map(|loss| Case {
                        transport,
                        collective,
                        world,
                        victim,
                        loss,
                        point,
                    }));
                }
            }
        }
    }
    cases
}

/// Whether an error says who was lost.
fn names(error: &str, case: &Case) -> bool {
    let victim = case.victim;
    match case.loss {
        Loss::Aborts => error.contains(&format!("rank {victim} aborted the job: it was told to")),
        Loss::Panics => {
            let alone = format!("rank {victim} left the job");
            // Once rank 0 is gone, whoever ended for want of it may have gone as well.
            let first = victim == 0 && error.contains("ranks 0, ");
            error.contains(&alone) || (first && error.contains(" left the job"))
        }
    }
}

fn run(case: &Case) {
    let Case {
        transport,
        collective,
        world,
        victim,
        loss,
        point,
    } = *case;
    let begin = Instant::now();
    let errors = spawn_on(transport, world, PATIENT, |mut r| {
        if r.rank == victim {
            let aborter = r.comm.aborter();
            r.fault.arm(point, move || match loss {
                Loss::Panics => panic!("it was told to"),
                Loss::Aborts => aborter.abort("it was told to"),
            });
        }
        let spans = Spans::new(&mut r);
        let failed = (0..ROUNDS).find_map(|_| round(&mut r, &spans, collective).err());
        failed.unwrap_or_else(|| panic!("{case}: rank {} never failed", r.rank))
    });
    for (rank, error) in errors
        .iter()
        .enumerate()
        .filter(|(rank, _)| *rank != victim)
    {
        assert!(names(error, case), "{case}: rank {rank} says: {error}");
    }
    let took = begin.elapsed();
    assert!(took < NOTICED, "{case} took {took:?}");
}

fn run_all(transport: Transport) {
    // A panic of a device's thread is what these tests are about: thousands of messages of it would hide any other.
    std::panic::set_hook(Box::new(|panic| {
        if !panic.to_string().contains("it was told to") {
            eprintln!("{panic}");
        }
    }));
    let cases = Mutex::new(cases(transport).into_iter());
    let next = || cases.lock().unwrap().next();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| std::iter::from_fn(next).for_each(|case| run(&case)));
        }
    });
}

#[test]
fn over_shared_memory() {
    run_all(OVER[0]);
}

#[test]
fn over_tcp() {
    run_all(OVER[1]);
}

#[test]
fn a_rank_that_leaves_before_a_barrier_of_the_host_is_named() {
    for transport in OVER {
        for world in [2, 3] {
            for victim in 0..world {
                let begin = Instant::now();
                let said = spawn_on(transport, world, PATIENT, |mut r| {
                    r.comm.barrier().unwrap();
                    let leaves = r.rank == victim;
                    (!leaves).then(|| r.comm.barrier().unwrap_err().to_string())
                });
                for error in said.into_iter().flatten() {
                    assert!(
                        error.contains(&format!("rank {victim} left the job")),
                        "rank {victim} of {world} over {transport:?}: {error}"
                    );
                }
                assert!(begin.elapsed() < NOTICED);
            }
        }
    }
}
