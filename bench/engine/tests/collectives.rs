//! The communicators `shared` and `tcp` against what each collective is defined to do: every world size from 1 to 4, lengths that
//! do not divide, payloads larger than a slot or a socket buffer, all data types. Values are small integers, so equality is exact.
mod ranks;

use ranks::{
    LENGTHS, PATIENT, SLOT, TRANSPORTS, Transport, everywhere, on_all, spawn, spawn_on, sum, values,
};
use syncmark_engine::backend::{Category, Stream};
use syncmark_engine::comm::shared::Waiting;
use syncmark_engine::comm::{Collective, Reduce, chunk};
use syncmark_engine::probe::Phase;
use syncmark_engine::tensor::{Dtype, Span};

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
            (1, 1, Some(0))
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
