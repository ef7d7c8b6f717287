//! A rank that is slow, late to a call or held up in the midst of one: nothing aborts within the time limit, results are right,
//! and the time is counted as waiting on the ranks that depend on it, not as moving bytes.
mod ranks;

use std::time::Duration;

use ranks::{Rank, Transport, spawn_on, values};
use syncmark_engine::comm::shared::Waiting;
use syncmark_engine::comm::{Collective, Count, Reduce, chunk};
use syncmark_engine::tensor::Span;

const WORLD: usize = 3;
const LEN: usize = 3001;
/// How late the slow rank is; the time limit is far beyond.
const LATE: Duration = Duration::from_millis(200);
/// What must have been counted of that: a rank comes to its own call a little after the others came to theirs.
const COUNTED_NS: u64 = 120_000_000;
const WAITING: Waiting = Waiting {
    spin: false,
    timeout: Duration::from_secs(30),
};
const OVER: [Transport; 2] = [
    Transport::Shared(4096),
    Transport::Tcp {
        small_buffers: false,
    },
];
const COLLECTIVES: [Collective; 8] = [
    Collective::Broadcast,
    Collective::Reduce,
    Collective::AllReduce,
    Collective::AllGather,
    Collective::ReduceScatter,
    Collective::Scatter,
    Collective::Gather,
    Collective::Barrier,
];

/// Whether `rank` cannot end its call before `slow` has come; the root is rank 0.
fn depends(transport: Transport, collective: Collective, slow: usize, rank: usize) -> bool {
    if transport == OVER[0] {
        // In shared memory all ranks meet in every call.
        return true;
    }
    match collective {
        // Passed on from the root to rank 1 to rank 2.
        Collective::Broadcast => slow < rank,
        // From rank 1 to rank 2 to the root.
        Collective::Reduce => slow != 0 && (rank == 0 || slow < rank),
        Collective::Scatter => slow == 0,
        // The root takes one after the other, and tells each when it is ready for it.
        Collective::Gather => rank == 0 || slow < rank,
        _ => true,
    }
}

fn call(r: &mut Rank, collective: Collective) -> (Vec<f32>, Count) {
    let whole = r.f32(&values(r.rank, LEN));
    let part = r.f32(&vec![0.0; chunk(LEN, WORLD, r.rank).len()]);
    let all = r.f32(&vec![0.0; LEN * WORLD]);
    let (from, to) = match collective {
        Collective::AllGather => (whole, all),
        Collective::ReduceScatter | Collective::Scatter => (whole, part),
        Collective::Gather => (part, whole),
        Collective::Barrier => (Span::EMPTY, Span::EMPTY),
        _ => (whole, whole),
    };
    r.call(collective, from, to, Reduce::Sum, 0).unwrap();
    let result = match collective {
        Collective::Barrier => Vec::new(),
        _ => r.read_f32(to),
    };
    (result, r.comm.counts().remove(0))
}

#[test]
fn a_late_rank_is_waited_for_and_the_wait_is_counted() {
    for transport in OVER {
        for collective in COLLECTIVES {
            for slow in 0..WORLD {
                let ranks = spawn_on(transport, WORLD, WAITING, |mut r| {
                    r.comm.barrier().unwrap();
                    if r.rank == slow {
                        std::thread::sleep(LATE);
                    }
                    call(&mut r, collective).1
                });
                for (rank, count) in ranks.iter().enumerate() {
                    let must = rank != slow && depends(transport, collective, slow, rank);
                    let waited = count.wait_ns[0];
                    assert!(
                        (waited >= COUNTED_NS) == must,
                        "{collective:?} over {transport:?}: rank {rank} counts {waited} ns of waiting for rank {slow}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_rank_that_is_held_up_within_a_call_aborts_nothing_and_changes_no_result() {
    for transport in OVER {
        for collective in COLLECTIVES {
            let on_time = spawn_on(transport, WORLD, WAITING, |mut r| {
                call(&mut r, collective).0
            });
            for slow in 0..WORLD {
                let held_up = spawn_on(transport, WORLD, WAITING, |mut r| {
                    if r.rank == slow {
                        r.fault.arm(1, || std::thread::sleep(LATE / 4));
                    }
                    let result = call(&mut r, collective).0;
                    assert!(r.comm.failure().is_none());
                    result
                });
                assert!(held_up == on_time, "{collective:?} over {transport:?}");
            }
        }
    }
}

/// What all but rank `hangs` say, which is alive, with its connections open, but nowhere near a call.
fn complaints(transport: Transport, collective: Collective, hangs: usize) -> Vec<String> {
    let waiting = Waiting {
        timeout: Duration::from_millis(1500),
        ..WAITING
    };
    let said = spawn_on(transport, WORLD, waiting, |mut r| {
        if r.rank == hangs {
            std::thread::sleep(3 * waiting.timeout);
            return None;
        }
        let whole = r.f32(&values(r.rank, LEN));
        let all = r.f32(&vec![0.0; LEN * WORLD]);
        let part = r.f32(&vec![0.0; chunk(LEN, WORLD, r.rank).len()]);
        let (from, to) = match collective {
            Collective::AllGather => (whole, all),
            Collective::ReduceScatter => (whole, part),
            Collective::Barrier => (Span::EMPTY, Span::EMPTY),
            _ => (whole, whole),
        };
        let mut call = || r.call(collective, from, to, Reduce::Sum, 0).err();
        Some((0..100).find_map(|_| call()).expect("a rank is missing"))
    });
    said.into_iter().flatten().collect()
}

#[test]
fn a_rank_that_hangs_is_named_when_the_time_is_up_and_not_who_waits_for_it() {
    const MUTUAL: [Collective; 4] = [
        Collective::AllReduce,
        Collective::AllGather,
        Collective::ReduceScatter,
        Collective::Barrier,
    ];
    for transport in OVER {
        std::thread::scope(|scope| {
            for collective in MUTUAL {
                for hangs in 0..WORLD {
                    scope.spawn(move || {
                        for error in complaints(transport, collective, hangs) {
                            let called = error.contains(collective.name());
                            assert!(
                                called && error.contains(&format!(") for rank {hangs}")),
                                "{collective:?} over {transport:?}, rank {hangs} hangs: {error}"
                            );
                        }
                    });
                }
            }
        });
    }
}
