//! The transport without a GPU, over a written-down NCCL: meeting, and what calls are made of. What is captured is in [`captured`], how it ends in
//! [`endings`], and what one controller calls for all of its devices in [`controller`].
mod captured;
mod controller;
mod endings;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fake::{Done, Fake, FakeDevice};
use super::library::Nccl;
use super::transfer::Kind;
use super::*;
use crate::backend::cpu::{CpuBackend, CpuDevice};
use crate::comm::shared::{SharedCommunicator, Waiting};
use crate::comm::tcp::TcpCommunicator;
use crate::comm::{Reduce, chunk};
use crate::probe::Phase;
use crate::tensor::Dtype;

const WAITING: Waiting = Waiting {
    spin: false,
    timeout: Duration::from_secs(20),
};
/// No passing test comes near it, and none waits for a time limit.
const SOON: Duration = Duration::from_secs(10);

fn controls(world: usize, tcp: bool) -> Vec<Box<dyn Communicator>> {
    if tcp {
        let joined = TcpCommunicator::for_threads(world, WAITING).unwrap();
        return joined.into_iter().map(|comm| Box::new(comm) as _).collect();
    }
    let joined = SharedCommunicator::for_threads(world, WAITING).unwrap();
    joined.into_iter().map(|comm| Box::new(comm) as _).collect()
}

struct Rank {
    comm: NcclCommunicator,
    device: FakeDevice,
}

impl Rank {
    fn connect(&mut self) -> Result<()> {
        let met = self.comm.meet(&mut self.device);
        self.comm.report(met)
    }

    fn call(
        &mut self,
        collective: Collective,
        from: Span,
        to: Span,
        reduce: Reduce,
        root: usize,
    ) -> Result<Event> {
        let call = CollectiveCall {
            collective,
            phase: Phase::AllReduce,
            from,
            to,
            reduce,
            root,
        };
        check(&call, self.comm.rank(), self.comm.world_size())
            .map_err(|error| BackendError::Communication(error.to_string()))?;
        self.comm
            .enqueue_on(&mut self.device, call, FakeDevice::after())
    }
}

/// Runs `body` on a thread per rank.
fn run<T: Send>(
    fake: &Arc<Fake>,
    world: usize,
    tcp: bool,
    body: impl Fn(&mut Rank) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let body = &body;
        let start = |control| {
            let nccl: Arc<dyn Nccl> = Arc::clone(fake) as _;
            scope.spawn(move || {
                let mut comm = NcclCommunicator::new(control);
                comm.nccl = Some(nccl);
                body(&mut Rank {
                    comm,
                    device: FakeDevice::new(),
                })
            })
        };
        let ranks: Vec<_> = controls(world, tcp).into_iter().map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn all_ranks_get_the_identity_of_rank_0_over_any_rendezvous() {
    for (world, tcp) in [(1, false), (2, false), (3, true), (4, false)] {
        let fake = Arc::new(Fake::default());
        run(&fake, world, tcp, |rank| {
            rank.connect().unwrap();
            assert_eq!(rank.comm.version().as_deref(), Some("2.28.9"));
            rank.comm.barrier().unwrap();
        });
        let identities = fake.identities.lock().unwrap();
        assert_eq!(identities.len(), world);
        let own = fake.unique_id().unwrap();
        assert!(identities.iter().all(|identity| *identity == own));
        for rank in 0..world {
            assert_eq!(fake.done(rank), [Done::Destroy]);
        }
    }
}

#[test]
fn what_keeps_a_rank_from_connecting_reaches_all() {
    let cases = [
        Fake {
            no_identity: Some("ncclGetUniqueId: no network"),
            ..Fake::default()
        },
        Fake {
            no_init: Some((1, "ncclCommInitRank: no memory")),
            // The others wait in NCCL meanwhile.
            stuck_init: Some(0),
            ..Fake::default()
        },
    ];
    for (fake, words) in cases.into_iter().zip(["no network", "no memory"]) {
        for tcp in [false, true] {
            let fake = Arc::new(Fake {
                no_identity: fake.no_identity,
                no_init: fake.no_init,
                stuck_init: fake.stuck_init,
                ..Fake::default()
            });
            let begin = Instant::now();
            let said = run(&fake, 2, tcp, |rank| {
                let error = rank.connect().unwrap_err().to_string();
                (error, rank.comm.failure())
            });
            *fake.released.lock().unwrap() = true;
            fake.release.notify_all();
            for (rank, (error, failure)) in said.iter().enumerate() {
                assert!(error.contains(words), "rank {rank}: {error}");
                assert!(failure.as_ref().is_some_and(|said| said.contains(words)));
            }
            assert!(begin.elapsed() < SOON);
        }
    }
}

#[test]
fn ranks_with_other_versions_are_refused() {
    let mut fake = Fake::default();
    // Ranks ask twice each: first to tell, then to compare.
    fake.versions
        .extend((0..4).map(|asked| (asked, 22800 + asked as u64)));
    let said = run(&Arc::new(fake), 2, false, |rank| {
        rank.connect().unwrap_err().to_string()
    });
    assert!(
        said.iter()
            .any(|said| said.contains("ranks must have the same")),
        "{said:?}"
    );
}

#[test]
fn a_device_that_is_no_gpu_is_refused_and_the_others_hear_of_it() {
    let fake = Arc::new(Fake::default());
    let said = run(&fake, 2, false, |rank| {
        if rank.comm.rank() == 0 {
            return rank.connect().unwrap_err().to_string();
        }
        let mut cpu = CpuBackend::new(CpuDevice::default()).unwrap();
        let error = rank.comm.connect(&mut cpu).unwrap_err();
        assert!(matches!(error, BackendError::Unsupported(_)), "{error}");
        error.to_string()
    });
    assert!(said[0].contains("rank 1 aborted the job"), "{said:?}");
    assert!(said[0].contains("NCCL without a GPU"), "{said:?}");
}

/// Small integers, so that sums are exact.
fn values(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + rank * 5) % 11) as f32).collect()
}

/// Results of every collective, as `shared` says they are, by rank.
fn expected(
    collective: Collective,
    reduce: Reduce,
    root: usize,
    world: usize,
    len: usize,
) -> Vec<Vec<f32>> {
    let inputs: Vec<_> = (0..world).map(|rank| values(rank, len)).collect();
    let combined: Vec<f32> = (0..len)
        .map(|i| {
            let all = inputs.iter().map(|input| input[i]);
            match reduce {
                Reduce::Max => all.fold(0.0, f32::max),
                Reduce::Sum => all.sum(),
                Reduce::ScaledSum(factor) => all.map(|value| value * factor).sum(),
            }
        })
        .collect();
    (0..world)
        .map(|rank| match collective {
            Collective::Broadcast => inputs[root].clone(),
            Collective::Reduce if rank != root => inputs[rank].clone(),
            Collective::Reduce | Collective::AllReduce => combined.clone(),
            Collective::AllGather => inputs.concat(),
            Collective::ReduceScatter => combined[chunk(len, world, rank)].to_vec(),
            Collective::Scatter => inputs[root][chunk(len, world, rank)].to_vec(),
            Collective::Gather if rank != root => vec![0.0; len],
            Collective::Gather => (0..world)
                .flat_map(|peer| inputs[peer][..chunk(len, world, peer).len()].to_vec())
                .collect(),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn calls_are_made_of_transfers_that_give_their_results() {
    let collectives = [
        Collective::Broadcast,
        Collective::Reduce,
        Collective::AllReduce,
        Collective::AllGather,
        Collective::ReduceScatter,
        Collective::Scatter,
        Collective::Gather,
    ];
    for (world, len) in [(1, 5), (2, 8), (2, 7), (3, 11), (4, 3), (4, 12), (3, 0)] {
        for collective in collectives {
            for reduce in [Reduce::Sum, Reduce::ScaledSum(0.5), Reduce::Max] {
                let (root, fake) = (world - 1, Arc::new(Fake::default()));
                let performed = std::sync::Barrier::new(world);
                let found = run(&fake, world, false, |rank| {
                    let own = rank.comm.rank();
                    let mine = chunk(len, world, own);
                    let span = rank.device.span(&values(own, len));
                    let mut room = |len: usize| rank.device.span(&vec![0.0; len]);
                    let (from, to) = match collective {
                        Collective::AllGather => (span, room(len * world)),
                        Collective::ReduceScatter | Collective::Scatter => (span, room(mine.len())),
                        Collective::Gather => (span.first(mine.len()), room(len)),
                        _ => (span, span),
                    };
                    rank.call(collective, from, to, reduce, root).unwrap();
                    if performed.wait().is_leader() {
                        fake.perform(world);
                    }
                    performed.wait();
                    rank.device.values(to)
                });
                assert_eq!(
                    found,
                    expected(collective, reduce, root, world, len),
                    "{collective:?} {reduce:?} of {len} on {world}"
                );
            }
        }
    }
}

#[test]
fn calls_in_place_write_where_they_read() {
    let (world, fake) = (3, Arc::new(Fake::default()));
    for len in [9, 10] {
        let performed = std::sync::Barrier::new(world);
        run(&fake, world, false, |rank| {
            let own = rank.comm.rank();
            let whole = rank.device.span(&values(own, len));
            let part = whole.slice(chunk(len, world, own));
            let blocks = rank.device.span(&values(own, 3 * world));
            let block = blocks.slice(3 * own..3 * own + 3);
            let mine = rank.device.values(block);
            let sum = Reduce::Sum;
            rank.call(Collective::ReduceScatter, whole, part, sum, 0)
                .unwrap();
            rank.call(Collective::AllGather, block, blocks, sum, 0)
                .unwrap();
            if performed.wait().is_leader() {
                fake.perform(world);
            }
            performed.wait();
            let all = expected(Collective::ReduceScatter, sum, 0, world, len);
            assert_eq!(rank.device.values(part), all[own]);
            assert_eq!(rank.device.values(block), mine);
        });
    }
}

#[test]
fn sends_and_barriers_pair_up_and_operators_are_made_once() {
    let fake = Arc::new(Fake::default());
    run(&fake, 2, false, |rank| {
        let own = rank.comm.rank();
        let span = rank.device.span(&values(own, 4));
        let none = Span::EMPTY;
        let sum = Reduce::Sum;
        let way = [Collective::Send, Collective::Receive][own];
        rank.call(way, span, span, sum, 1 - own).unwrap();
        rank.call(Collective::Barrier, none, none, sum, 0).unwrap();
        for factor in [0.5, 0.25, 0.5] {
            let reduce = Reduce::ScaledSum(factor);
            rank.call(Collective::AllReduce, span, span, reduce, 0)
                .unwrap();
        }
        // Ranks may differ in what they send to each other.
        rank.comm.barrier().unwrap();
    });
    for rank in 0..2 {
        let done = fake.done(rank);
        let kinds: Vec<_> = done
            .iter()
            .filter_map(|done| match done {
                Done::Group(transfers) => Some((transfers[0].kind, transfers.len())),
                _ => None,
            })
            .collect();
        let point = [Kind::Send { peer: 1 }, Kind::Receive { peer: 0 }][rank];
        assert_eq!(kinds[0], (point, 1));
        let operator = library::Operator::SUM;
        assert_eq!(kinds[1], (Kind::AllReduce { operator }, 1));
        let made: Vec<_> = done
            .iter()
            .filter(|done| matches!(done, Done::Scaled(..)))
            .collect();
        let scaled = |factor| Done::Scaled(Dtype::F32, factor);
        assert_eq!(made, [&scaled(0.5), &scaled(0.25)]);
        assert_eq!(done.last(), Some(&Done::Destroy));
    }
}

#[test]
fn uneven_chunks_are_reduced_in_one_group() {
    let fake = Arc::new(Fake::default());
    run(&fake, 3, false, |rank| {
        let own = rank.comm.rank();
        let whole = rank.device.span(&values(own, 7));
        let part = rank.device.span(&vec![0.0; chunk(7, 3, own).len()]);
        rank.call(Collective::ReduceScatter, whole, part, Reduce::Max, 0)
            .unwrap();
    });
    for rank in 0..3 {
        let [Done::Group(transfers), Done::Destroy] = &fake.done(rank)[..] else {
            panic!("one group");
        };
        for (root, transfer) in transfers.iter().enumerate() {
            let operator = library::Operator::MAX;
            assert_eq!(transfer.kind, Kind::Reduce { operator, root });
            assert_eq!(transfer.count, [3, 2, 2][root]);
            assert_eq!(transfer.to != transfer.from, root == rank);
        }
    }
}

#[test]
fn calls_and_times_are_counted_and_bytes_are_not() {
    run(&Arc::new(Fake::default()), 2, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        for _ in 0..3 {
            rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                .unwrap();
        }
        let [count] = &rank.comm.counts()[..] else {
            panic!("one kind of call");
        };
        assert_eq!(
            (count.calls, count.size_bytes, count.algorithm),
            (3, 24, "nccl")
        );
        assert_eq!((count.sent_bytes, count.received_bytes), (None, None));
        assert_eq!(count.transfer_ns, [1000; 3]);
        assert!(count.wait_ns.is_empty());
        rank.comm.reset_counts();
        assert_eq!(rank.comm.counts(), []);
    });
}

#[test]
fn other_calls_than_rank_0s_are_found_at_a_barrier() {
    let said = run(&Arc::new(Fake::default()), 3, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        let len = if rank.comm.rank() == 2 { 5 } else { 6 };
        let span = span.first(len);
        rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
        let first = rank.comm.barrier().map_err(|error| error.to_string());
        // Whoever came through learns it from its watching thread, or from the next barrier.
        first.and_then(|()| rank.comm.barrier().map_err(|error| error.to_string()))
    });
    for said in said {
        let said = said.unwrap_err();
        assert!(said.contains("the last all_reduce of 5 f32"), "{said}");
        assert!(said.contains("rank 2 called"), "{said}");
    }
}

#[test]
fn without_nccl_the_library_and_what_to_install_are_named() {
    let missing = crate::backend::cuda::library::Missing {
        library: crate::backend::cuda::library::Library::Nccl,
        reason: "libnccl.so.2: cannot open shared object file".into(),
    };
    let said = BackendError::from(missing).to_string();
    for word in [
        "NCCL: libnccl.so.2",
        "nvidia-nccl-cu13",
        "cuda_libraries.sh",
    ] {
        assert!(said.contains(word), "{said}");
    }
    if let Err(error) = library::load() {
        assert!(matches!(error, BackendError::Library(_)), "{error}");
    }
}

#[test]
fn nccl_itself_connects_a_rank_or_says_in_its_own_words_why_not() {
    if let Err(reason) = library::load() {
        println!("skipped: {reason}");
        return;
    }
    let control = controls(1, false).remove(0);
    let mut rank = Rank {
        comm: NcclCommunicator::new(control),
        device: FakeDevice::new(),
    };
    match rank.connect() {
        Ok(()) => assert!(rank.comm.version().is_some()),
        // Without a GPU it has an identity, but nothing to connect.
        Err(error) => assert!(
            error.to_string().starts_with("ncclCommInitRank: "),
            "{error}"
        ),
    }
}

#[test]
fn calls_that_cannot_be_are_refused_without_harm() {
    run(&Arc::new(Fake::default()), 2, false, |rank| {
        let span = rank.device.span(&[1.0; 6]);
        let wrong = rank.call(Collective::AllGather, span, span, Reduce::Sum, 0);
        assert!(wrong.unwrap_err().to_string().contains("from 6 to 6"));
        rank.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
        rank.comm.barrier().unwrap();
    });
}
