//! The communicators `shared` and `tcp` against what each collective is defined to do: every world size from 1 to 4, lengths that
//! do not divide, payloads larger than a slot or a socket buffer, all data types. Values are small integers, so equality is exact.
mod ranks;

use ranks::{PATIENT, Rank, TRANSPORTS, Transport, spawn, spawn_on, value, values};
use syncmark_engine::backend::{Category, Stream};
use syncmark_engine::comm::shared::Waiting;
use syncmark_engine::comm::{Collective, Reduce, chunk};
use syncmark_engine::probe::Phase;
use syncmark_engine::tensor::{Dtype, Span};

const LENGTHS: [usize; 6] = [0, 1, 2, 3, 7, 1000];
/// Small slots, so that a thousand elements cross many pieces.
const SLOT: usize = 4096;

fn everywhere(check: impl Fn(Rank, usize) + Sync) {
    for world in 1..=4 {
        for len in LENGTHS.into_iter().chain([5003]) {
            on_all(world, |rank| check(rank, len));
        }
    }
}

/// Runs `check` on every rank of a job over each transport.
fn on_all(world: usize, check: impl Fn(Rank) + Sync) {
    for transport in TRANSPORTS {
        spawn_on(transport, world, PATIENT, &check);
    }
}

fn sum(world: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| (0..world).map(|rank| value(rank, i)).sum())
        .collect()
}

#[test]
fn all_reduce_sums_scales_and_takes_the_largest() {
    everywhere(|mut r, len| {
        let (all, world) = (sum(r.world, len), r.world);
        let span = r.f32(&values(r.rank, len));
        r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
        assert_eq!(r.read_f32(span), all);

        let span = r.f32(&values(r.rank, len));
        r.call(Collective::AllReduce, span, span, Reduce::ScaledSum(0.5), 0)
            .unwrap();
        let half: Vec<f32> = all.iter().map(|sum| sum * 0.5).collect();
        assert_eq!(r.read_f32(span), half);

        let span = r.f32(&values(r.rank, len));
        r.call(Collective::AllReduce, span, span, Reduce::Max, 0)
            .unwrap();
        let largest = |i: usize| {
            (0..world)
                .map(|rank| value(rank, i))
                .fold(f32::MIN, f32::max)
        };
        assert_eq!(r.read_f32(span), (0..len).map(largest).collect::<Vec<_>>());

        let wide: Vec<i64> = values(r.rank, len)
            .iter()
            .map(|v| (*v as i64) << 33)
            .collect();
        let span = r.i64(&wide);
        r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
            .unwrap();
        assert_eq!(
            r.read_i64(span),
            all.iter().map(|v| (*v as i64) << 33).collect::<Vec<_>>()
        );
    });
}

/// Integers up to 60 are exact in both formats, and so are sums of four of them, all even ones up to 240 in bfloat16.
#[test]
fn halves_are_reduced_broadcast_and_gathered() {
    everywhere(|mut r, len| {
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let (all, world) = (sum(r.world, len), r.world);
            let doubled: Vec<f32> = values(r.rank, len).iter().map(|v| 2.0 * v).collect();
            let span = r.halves(dtype, &doubled);
            r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                .unwrap();
            let expected: Vec<f32> = all.iter().map(|v| 2.0 * v).collect();
            assert_eq!(r.read_halves(span), expected, "{dtype:?}");

            let span = r.halves(dtype, &doubled);
            r.call(Collective::AllReduce, span, span, Reduce::ScaledSum(0.5), 0)
                .unwrap();
            assert_eq!(r.read_halves(span), all, "{dtype:?}, scaled");

            let span = r.halves(dtype, &doubled);
            r.call(Collective::AllReduce, span, span, Reduce::Max, 0)
                .unwrap();
            let each = |i| (0..world).map(move |rank| 2.0 * value(rank, i));
            let largest = |i| each(i).fold(f32::MIN, f32::max);
            let expected: Vec<f32> = (0..len).map(largest).collect();
            assert_eq!(r.read_halves(span), expected, "{dtype:?}, largest");

            let span = r.halves(dtype, &doubled);
            let gathered = r.halves(dtype, &vec![0.0; len * world]);
            r.call(Collective::AllGather, span, gathered, Reduce::Sum, 0)
                .unwrap();
            let blocks = (0..world).flat_map(|rank| values(rank, len));
            let expected: Vec<f32> = blocks.map(|v| 2.0 * v).collect();
            assert_eq!(r.read_halves(gathered), expected, "{dtype:?}, gathered");

            r.call(Collective::Broadcast, span, span, Reduce::Sum, world - 1)
                .unwrap();
            let expected: Vec<f32> = values(world - 1, len).iter().map(|v| 2.0 * v).collect();
            assert_eq!(r.read_halves(span), expected, "{dtype:?}, broadcast");
        }
    });
}

#[test]
fn large_payloads_cross_full_size_slots_and_buffers() {
    let len = 1_000_003;
    let expected = sum(3, len);
    for transport in [Transport::Shared(1 << 20), TRANSPORTS[1], TRANSPORTS[2]] {
        spawn_on(transport, 3, PATIENT, |mut r| {
            let span = r.f32(&values(r.rank, len));
            r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                .unwrap();
            assert!(r.read_f32(span) == expected);

            let span = r.f32(&values(r.rank, len));
            let own = chunk(len, r.world, r.rank);
            let part = r.f32(&vec![0.0; own.len()]);
            r.call(
                Collective::ReduceScatter,
                span,
                part,
                Reduce::ScaledSum(0.5),
                0,
            )
            .unwrap();
            let half: Vec<f32> = expected[own].iter().map(|sum| sum * 0.5).collect();
            assert!(r.read_f32(part) == half);

            r.call(Collective::Reduce, span, span, Reduce::ScaledSum(2.0), 1)
                .unwrap();
            let after = r.read_f32(span);
            let doubled = |(sum, value): (&f32, &f32)| *value == sum * 2.0;
            if r.rank == 1 {
                assert!(expected.iter().zip(&after).all(doubled));
            } else {
                assert!(after == values(r.rank, len));
            }

            let all = r.f32(&vec![0.0; len * r.world]);
            r.call(Collective::Broadcast, span, span, Reduce::Sum, 1)
                .unwrap();
            r.call(Collective::AllGather, span, all, Reduce::Sum, 0)
                .unwrap();
            let all = r.read_f32(all);
            assert!(
                all.chunks(len)
                    .all(|block| expected.iter().zip(block).all(doubled))
            );
        });
    }
}

#[test]
fn reduce_scatter_and_all_gather_work_in_place() {
    everywhere(|mut r, len| {
        let own = chunk(len, r.world, r.rank);
        let expected: Vec<f32> = sum(r.world, len).iter().map(|sum| sum * 0.5).collect();
        let span = r.f32(&values(r.rank, len));
        let (half, part) = (Reduce::ScaledSum(0.5), span.slice(own.clone()));
        r.call(Collective::ReduceScatter, span, part, half, 0)
            .unwrap();
        assert_eq!(r.read_f32(part), expected[own]);

        // A tenth of the length, so that it divides among the ranks; blocks still cross several slots.
        let block = len / 10;
        let all = r.f32(&vec![f32::NAN; block * r.world]);
        let mine = r.f32(&values(r.rank, block));
        let place = all.slice(r.rank * block..(r.rank + 1) * block);
        r.copy(mine, place);
        r.call(Collective::AllGather, place, all, Reduce::Sum, 0)
            .unwrap();
        let everyone: Vec<f32> = (0..r.world).flat_map(|rank| values(rank, block)).collect();
        assert_eq!(r.read_f32(all), everyone);
    });
}

#[test]
fn a_part_of_another_rank_is_refused_as_an_overlap() {
    on_all(2, |mut r| {
        let span = r.f32(&[0.0; 4]);
        let theirs = chunk(4, 2, 1 - r.rank);
        for (collective, from, to) in [
            (Collective::ReduceScatter, span, span.slice(theirs.clone())),
            (Collective::AllGather, span.slice(theirs.clone()), span),
        ] {
            let error = r.call(collective, from, to, Reduce::Sum, 0).unwrap_err();
            assert!(error.contains("overlap"), "{error}");
        }
    });
}

#[test]
fn waiting_may_spin() {
    let waiting = Waiting {
        spin: true,
        ..PATIENT
    };
    for transport in TRANSPORTS {
        spawn_on(transport, 2, waiting, |mut r| {
            let span = r.f32(&values(0, 5003));
            for _ in 0..3 {
                r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                    .unwrap();
            }
            let expected: Vec<f32> = values(0, 5003).iter().map(|v| v * 8.0).collect();
            assert_eq!(r.read_f32(span), expected);
        });
    }
}

#[test]
fn rounding_is_the_same_on_every_rank() {
    let inexact =
        |rank: usize| -> Vec<f32> { (0..999).map(|i| 1.0 / (i + 3 * rank + 1) as f32).collect() };
    let reduced = |mut r: Rank| {
        let span = r.f32(&inexact(r.rank));
        r.call(
            Collective::AllReduce,
            span,
            span,
            Reduce::ScaledSum(0.25),
            0,
        )
        .unwrap();
        r.read_f32(span)
    };
    // Over shared memory in rank order; on the ring a chunk's sum begins with the rank after its owner.
    let summed = |i: usize, first: usize| {
        (1..4).fold(inexact(first)[i] * 0.25, |sum, by| {
            sum + inexact((first + by) % 4)[i] * 0.25
        })
    };
    let owner = |i: usize| {
        (0..4)
            .find(|rank| chunk(999, 4, *rank).contains(&i))
            .unwrap()
    };
    for transport in TRANSPORTS {
        let first = |i: usize| match transport {
            Transport::Shared(_) => 0,
            Transport::Tcp { .. } => owner(i) + 1,
        };
        let expected: Vec<f32> = (0..999).map(|i| summed(i, first(i) % 4)).collect();
        for result in spawn_on(transport, 4, PATIENT, reduced) {
            assert!(result == expected, "{transport:?}");
        }
    }
}

#[test]
fn a_reduce_scatter_has_the_bits_of_an_all_reduce() {
    for transport in TRANSPORTS {
        spawn_on(transport, 3, PATIENT, |mut r| {
            let inexact: Vec<f32> = (0..1001)
                .map(|i| 1.0 / (i + 3 * r.rank + 1) as f32)
                .collect();
            let whole = r.f32(&inexact);
            let own = chunk(1001, 3, r.rank);
            let part = r.f32(&vec![0.0; own.len()]);
            let mean = Reduce::ScaledSum(1.0 / 3.0);
            r.call(Collective::ReduceScatter, whole, part, mean, 0)
                .unwrap();
            r.call(Collective::AllReduce, whole, whole, mean, 0)
                .unwrap();
            assert!(r.read_f32(part) == r.read_f32(whole)[own]);
        });
    }
}

#[test]
fn broadcast_and_reduce_work_from_every_root() {
    everywhere(|mut r, len| {
        for root in 0..r.world {
            let span = r.f32(&values(r.rank, len));
            r.call(Collective::Broadcast, span, span, Reduce::Sum, root)
                .unwrap();
            assert_eq!(r.read_f32(span), values(root, len));

            let wide: Vec<i64> = (0..len as i64).map(|i| (i << 40) + r.rank as i64).collect();
            let span = r.i64(&wide);
            r.call(Collective::Broadcast, span, span, Reduce::Sum, root)
                .unwrap();
            assert_eq!(
                r.read_i64(span),
                (0..len as i64)
                    .map(|i| (i << 40) + root as i64)
                    .collect::<Vec<_>>()
            );

            let span = r.f32(&values(r.rank, len));
            r.call(Collective::Reduce, span, span, Reduce::Sum, root)
                .unwrap();
            let expected = if r.rank == root {
                sum(r.world, len)
            } else {
                values(r.rank, len)
            };
            assert_eq!(r.read_f32(span), expected);
        }
    });
}

#[test]
fn all_gather_concatenates_in_rank_order() {
    everywhere(|mut r, len| {
        let from = r.f32(&values(r.rank, len));
        let to = r.f32(&vec![0.0; len * r.world]);
        r.call(Collective::AllGather, from, to, Reduce::Sum, 0)
            .unwrap();
        let expected: Vec<f32> = (0..r.world).flat_map(|rank| values(rank, len)).collect();
        assert_eq!(r.read_f32(to), expected);
    });
}

#[test]
fn reduce_scatter_leaves_each_rank_its_chunk() {
    everywhere(|mut r, len| {
        let own = chunk(len, r.world, r.rank);
        let from = r.f32(&values(r.rank, len));
        let to = r.f32(&vec![0.0; own.len()]);
        r.call(Collective::ReduceScatter, from, to, Reduce::Sum, 0)
            .unwrap();
        assert_eq!(r.read_f32(to), sum(r.world, len)[own]);
        assert_eq!(r.read_f32(from), values(r.rank, len));
    });
}

#[test]
fn scatter_and_gather_are_each_others_mirror() {
    everywhere(|mut r, len| {
        for root in 0..r.world {
            let own = chunk(len, r.world, r.rank);
            let on_root = r.rank == root;
            let whole = r.f32(&if on_root { values(root, len) } else { vec![] });
            let part = r.f32(&vec![0.0; own.len()]);
            r.call(Collective::Scatter, whole, part, Reduce::Sum, root)
                .unwrap();
            assert_eq!(r.read_f32(part), values(root, len)[own.clone()]);

            let back = r.f32(&vec![0.0; if on_root { len } else { 0 }]);
            r.call(Collective::Gather, part, back, Reduce::Sum, root)
                .unwrap();
            if on_root {
                assert_eq!(r.read_f32(back), values(root, len));
            }
        }
    });
}

#[test]
fn messages_pass_between_two_ranks_while_others_do_nothing() {
    // 40,000 floats are three pieces of a mailbox.
    for len in LENGTHS.into_iter().chain([40_000]) {
        on_all(4, |mut r| {
            let span = r.f32(&values(r.rank, len));
            match r.rank {
                1 => r
                    .call(Collective::Send, span, span, Reduce::Sum, 3)
                    .unwrap(),
                3 => r
                    .call(Collective::Receive, span, span, Reduce::Sum, 1)
                    .unwrap(),
                _ => {}
            }
            let from = if r.rank == 3 { 1 } else { r.rank };
            assert_eq!(r.read_f32(span), values(from, len));
        });
    }
}

#[test]
fn barriers_hold_everyone_back_and_bring_the_word_of_rank_0() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    for transport in TRANSPORTS {
        let arrived = AtomicUsize::new(0);
        spawn_on(transport, 4, PATIENT, |mut r| {
            for round in 1..=50 {
                arrived.fetch_add(1, Ordering::SeqCst);
                r.comm.barrier().unwrap();
                assert!(arrived.load(Ordering::SeqCst) >= 4 * round);
                let word = r.comm.agree((round * 10 + r.rank) as u64).unwrap();
                assert_eq!(word, round as u64 * 10);
            }
        });
    }
}

#[test]
fn a_collective_barrier_runs_on_the_stream() {
    on_all(3, |mut r| {
        r.call(
            Collective::Barrier,
            Span::EMPTY,
            Span::EMPTY,
            Reduce::Sum,
            0,
        )
        .unwrap();
        let counts = r.comm.counts();
        assert_eq!(
            (counts.len(), counts[0].calls, counts[0].sent_bytes),
            (1, 1, 0)
        );
    });
}

#[test]
fn calls_run_in_order_and_after_what_they_name() {
    on_all(3, |mut r| {
        let len = 3001;
        let span = r.f32(&values(0, len));
        let mut last = r.backend.record(Stream::Compute);
        for _ in 0..5 {
            let event = r
                .comm
                .all_reduce(&mut *r.backend, Phase::AllReduce, span, Reduce::Sum, last)
                .unwrap();
            assert_eq!(event.stream, Stream::Communication);
            last = event;
        }
        r.backend.wait(Stream::Compute, last).unwrap();
        let expected: Vec<f32> = values(0, len).iter().map(|v| v * 243.0).collect();
        assert_eq!(r.read_f32(span), expected);
    });
}

#[test]
fn counts_are_kept_apart_by_phase_collective_and_size_and_times_are_kept() {
    for transport in TRANSPORTS {
        spawn_on(transport, 2, PATIENT, |mut r| {
            for len in [10, 10, 20] {
                let span = r.f32(&values(r.rank, len));
                r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                    .unwrap();
            }
            let mut counts = r.comm.counts();
            counts.sort_by_key(|count| count.elements);
            let seen: Vec<_> = counts
                .iter()
                .map(|c| (c.elements, c.calls, c.size_bytes, c.wait_ns.len()))
                .collect();
            assert_eq!(seen, [(10, 2, 40, 2), (20, 1, 80, 1)]);
            let algorithm = match transport {
                Transport::Shared(_) => "shared-direct",
                Transport::Tcp { .. } => "ring",
            };
            assert!(
                counts
                    .iter()
                    .all(|c| c.algorithm == algorithm && c.transfer_ns.iter().all(|ns| *ns > 0))
            );
            r.comm.reset_counts();
            assert!(r.comm.counts().is_empty());
        });
    }
}

#[test]
fn wrong_calls_are_refused_with_a_reason() {
    let mut rank = spawn(1, SLOT, PATIENT, |rank| rank).remove(0);
    let floats = rank.f32(&[0.0; 4]);
    let whole = rank
        .backend
        .allocate(Category::Workspace, Dtype::I64, 4)
        .unwrap();
    let cases = [
        (
            Collective::AllReduce,
            floats,
            floats.first(2),
            Reduce::Sum,
            0,
            "from 4 to 2 elements",
        ),
        (
            Collective::AllReduce,
            whole,
            whole,
            Reduce::ScaledSum(0.5),
            0,
            "only floats can be scaled",
        ),
        (
            Collective::Broadcast,
            floats,
            floats,
            Reduce::Sum,
            1,
            "root or peer 1",
        ),
        (
            Collective::AllGather,
            floats,
            whole,
            Reduce::Sum,
            0,
            "F32, to I64",
        ),
        (
            Collective::Scatter,
            floats,
            floats,
            Reduce::Sum,
            0,
            "overlap",
        ),
        (Collective::Send, floats, floats, Reduce::Sum, 0, "send"),
    ];
    for (collective, from, to, reduce, root, expected) in cases {
        let error = rank.call(collective, from, to, reduce, root).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
