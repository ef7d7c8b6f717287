//! Counted bytes equal, to the byte, what METHODOLOGY.md and the algorithm say, written out here independently: every
//! collective, DP and DDP, 1 to 4 ranks, odd sizes. And what one rank says it sent, the others have read.
mod ranks;
mod trials;

use std::collections::BTreeMap;
use std::sync::Arc;

use ranks::{PATIENT, Rank, TRANSPORTS, Transport, spawn_on, values};
use syncmark_engine::backend::Category;
use syncmark_engine::comm::shared::Region;
use syncmark_engine::comm::tcp::HEADER_BYTES;
use syncmark_engine::comm::{Collective, Count, Reduce};
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::{Phase, Silent};
use syncmark_engine::strategy::{BucketCaps, DdpOptions, DpLoss, Strategy};
use syncmark_engine::tensor::{Dtype, Span};
use trials::{BOTH, Batch, CLASSES, INPUT, On, dp, model, ranks as ddp_ranks, ranks_with};

/// Sizes of the standard split: the first `len % n` chunks have one element more.
fn split(len: u64, n: u64) -> Vec<u64> {
    (0..n).map(|r| len / n + u64::from(r < len % n)).collect()
}

/// Elements (sent, received) by `rank` of `n` on a ring, and the messages that it sends: worked out chunk by chunk.
fn ring(collective: Collective, len: u64, n: u64, rank: u64, root: u64) -> (u64, u64, u64) {
    let chunks = split(len, n);
    let chunk = |place: u64| chunks[(place % n) as usize];
    let (next, previous) = ((rank + 1) % n, (rank + n - 1) % n);
    let others: Vec<u64> = (0..n).filter(|other| *other != rank).collect();
    // All chunks but one: the one that a rank keeps, or that it has from the beginning.
    let but = |place: u64| len - chunk(place);
    match collective {
        Collective::AllReduce => (but(rank) + but(next), but(previous) + but(rank), 1),
        Collective::ReduceScatter => (but(rank), but(previous), 1),
        Collective::AllGather => (len * (n - 1), len * (n - 1), 1),
        Collective::Broadcast => {
            let (sends, receives) = (u64::from(next != root), u64::from(rank != root));
            (len * sends, len * receives, sends)
        }
        Collective::Reduce => {
            let (sends, receives) = (u64::from(rank != root), u64::from(previous != root));
            (len * sends, len * receives, sends)
        }
        // The root tells each other rank the total, with its part or before it takes that.
        Collective::Scatter if rank == root => (others.iter().map(|p| chunk(*p)).sum(), 0, n - 1),
        Collective::Scatter => (0, chunk(rank), 0),
        Collective::Gather if rank == root => (0, others.iter().map(|p| chunk(*p)).sum(), n - 1),
        Collective::Gather => (chunk(rank), 0, 1),
        other => panic!("no formula for {other:?}"),
    }
}

/// Elements (sent, received) by `rank` of `n`, for a payload of `len`, worked out from what each rank needs.
fn elements(collective: Collective, len: u64, n: u64, rank: u64, root: u64) -> (u64, u64) {
    let own = split(len, n)[rank as usize];
    let (others, is_root) = (n - 1, rank == root);
    match collective {
        Collective::Broadcast if is_root => (len * others, 0),
        Collective::Broadcast => (0, len * u64::from(n > 1)),
        Collective::Reduce if is_root => (0, len * others),
        Collective::Reduce => (len, 0),
        // Contributions to the others' chunks, then the own reduced chunk to each of them.
        Collective::AllReduce => ((len - own) + own * others, own * others + (len - own)),
        Collective::AllGather => (len * others, len * others),
        Collective::ReduceScatter => (len - own, own * others),
        Collective::Scatter if is_root => (len - own, 0),
        Collective::Scatter => (0, own),
        Collective::Gather if is_root => (0, len - own),
        Collective::Gather => (own, 0),
        other => panic!("no formula for {other:?}"),
    }
}

#[test]
fn every_collective_moves_what_its_formula_says() {
    use Collective::{
        AllGather, AllReduce, Broadcast, Gather, Reduce as ToRoot, ReduceScatter, Scatter,
    };
    for n in 1..=4_usize {
        // 4099 elements cross several slots of 4096 bytes in uneven pieces.
        for (len, transport) in [0_usize, 1, 2, 3, 7, 129, 4099]
            .into_iter()
            .flat_map(|len| TRANSPORTS.map(|transport| (len, transport)))
        {
            let root = n - 1;
            spawn_on(transport, n, PATIENT, |mut r| {
                for collective in [
                    Broadcast,
                    ToRoot,
                    AllReduce,
                    AllGather,
                    ReduceScatter,
                    Scatter,
                    Gather,
                ] {
                    let own = split(len as u64, n as u64)[r.rank] as usize;
                    let whole = r.f32(&values(r.rank, len));
                    let part = r
                        .backend
                        .allocate(Category::Workspace, Dtype::F32, own)
                        .unwrap();
                    let all = r
                        .backend
                        .allocate(Category::Workspace, Dtype::F32, len * n)
                        .unwrap();
                    let (from, to) = match collective {
                        AllGather => (whole, all),
                        ReduceScatter | Scatter => (whole, part),
                        Gather => (part, whole),
                        _ => (whole, whole),
                    };
                    r.comm.reset_counts();
                    r.call(collective, from, to, Reduce::Sum, root).unwrap();
                    let sizes = (len as u64, n as u64, r.rank as u64, root as u64);
                    let (sent, received, messages) = match transport {
                        _ if n == 1 => (0, 0, 0),
                        Transport::Shared(_) => {
                            let (sent, received) =
                                elements(collective, sizes.0, sizes.1, sizes.2, sizes.3);
                            (sent, received, 0)
                        }
                        Transport::Tcp { .. } => {
                            ring(collective, sizes.0, sizes.1, sizes.2, sizes.3)
                        }
                    };
                    // Read after the counts, which wait until the kernel has sent all it took.
                    let measured: Option<u64> = r
                        .comm
                        .counts()
                        .iter()
                        .map(|count| count.measured_sent_bytes)
                        .sum();
                    let framing = messages * HEADER_BYTES as u64;
                    match transport {
                        Transport::Tcp { .. } => assert_eq!(measured, Some(4 * sent + framing)),
                        Transport::Shared(_) => assert!(n == 1 || measured.is_none()),
                    }
                    assert_eq!(
                        r.traffic(),
                        (4 * sent, 4 * received),
                        "{collective:?} of {len} on rank {} of {n}, {transport:?}",
                        r.rank
                    );
                }
            });
        }
    }
}

#[test]
fn what_the_kernel_counts_is_the_payload_within_two_percent_and_exactly_with_the_headers() {
    use Collective::{
        AllGather, AllReduce, Barrier, Broadcast, Gather, Receive, Reduce as ToRoot, ReduceScatter,
        Scatter, Send,
    };
    // At least 1 MiB for every rank that sends, also where each sends its part alone.
    const LEN: usize = (1 << 20) + 3;
    for n in 2..=4_usize {
        spawn_on(TRANSPORTS[1], n, PATIENT, |mut r| {
            let (rank, n) = (r.rank as u64, n as u64);
            let whole = r.f32(&values(r.rank, LEN));
            let part = r.f32(&vec![0.0; split(LEN as u64, n)[r.rank] as usize]);
            let all = r.f32(&vec![0.0; LEN * r.world]);
            for collective in [
                Broadcast,
                ToRoot,
                AllReduce,
                AllGather,
                ReduceScatter,
                Scatter,
                Gather,
                Send,
                Barrier,
            ] {
                let (called, peer) = match (collective, rank) {
                    (Send, 0) => (Send, 1),
                    (Send, 1) => (Receive, 0),
                    (Send, _) => continue,
                    _ => (collective, 0),
                };
                let (from, to) = match collective {
                    AllGather => (whole, all),
                    ReduceScatter | Scatter => (whole, part),
                    Gather => (part, whole),
                    Barrier => (Span::EMPTY, Span::EMPTY),
                    _ => (whole, whole),
                };
                let (sent, messages) = match called {
                    Send => (LEN as u64, 1),
                    Receive => (0, 0),
                    // Dissemination: each round reaches twice as far as the one before.
                    Barrier => (0, u64::from(n.next_power_of_two().ilog2())),
                    _ => {
                        let (sent, _, messages) = ring(collective, LEN as u64, n, rank, 0);
                        (sent, messages)
                    }
                };
                r.comm.reset_counts();
                r.call(called, from, to, Reduce::Sum, peer).unwrap();
                let count = r.comm.counts().remove(0);
                let measured = count
                    .measured_sent_bytes
                    .expect("this kernel counts what a connection sends");
                let what = format!("{called:?} on rank {rank} of {n}");
                let counted = count.sent_bytes.expect("this transport counts");
                assert_eq!(counted, 4 * sent, "{what}");
                let framing = messages * HEADER_BYTES as u64;
                assert_eq!(measured, counted + framing, "{what}");
                if sent > 0 {
                    let excess = measured.abs_diff(counted);
                    assert!(50 * excess <= counted, "{what}: {measured}");
                }
            }
        });
    }
}

#[test]
fn what_a_rank_sent_is_what_the_others_read_from_it() {
    for n in 2..=4 {
        let region = Arc::new(Region::for_threads(n, 4096).unwrap());
        let body = |rank: usize| {
            let mut r = Rank::join(&region, rank, PATIENT);
            let span = r.f32(&values(r.rank, 5003));
            let all = r.f32(&vec![0.0; 5003 * r.world]);
            r.call(Collective::AllReduce, span, span, Reduce::Sum, 0)
                .unwrap();
            r.call(Collective::AllGather, span, all, Reduce::Sum, 0)
                .unwrap();
            r.call(Collective::Broadcast, span, span, Reduce::Sum, 1)
                .unwrap();
            match r.rank {
                0 => r
                    .call(Collective::Send, span, span, Reduce::Sum, 1)
                    .unwrap(),
                1 => r
                    .call(Collective::Receive, span, span, Reduce::Sum, 0)
                    .unwrap(),
                _ => {}
            }
            r.comm.barrier().unwrap();
            let (sent, received) = r.traffic();
            assert_eq!(sent, region.read_from(r.rank), "rank {}", r.rank);
            (sent, received)
        };
        let sums: Vec<_> = std::thread::scope(|scope| {
            let body = &body;
            let ranks: Vec<_> = (0..n).map(|rank| scope.spawn(move || body(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let sent: u64 = sums.iter().map(|(sent, _)| sent).sum();
        assert_eq!(sent, sums.iter().map(|(_, received)| received).sum::<u64>());
    }
}

/// (sent, received) by phase.
fn by_phase<'a>(counts: impl Iterator<Item = &'a Count>) -> BTreeMap<Phase, (u64, u64)> {
    let mut sums = BTreeMap::new();
    for count in counts {
        let sum: &mut (u64, u64) = sums.entry(count.phase).or_default();
        sum.0 += count.sent_bytes.unwrap();
        sum.1 += count.received_bytes.unwrap();
    }
    sums
}

#[test]
fn a_ddp_step_moves_its_buckets_its_buffers_and_nothing_else() {
    for norm in [Norm::None, Norm::Batch, Norm::SyncBatch] {
        let model = model(norm);
        for n in 1..=4_usize {
            for cap in [None, Some(300)] {
                let chunks = vec![3; n];
                ddp_ranks(On::Cpu, &model, &chunks, cap, |rank, ddp| {
                    let mut step = |k: usize| {
                        let batch = Batch::new(k, 3 * n);
                        ddp.step(batch.whole().part(rank * 3..rank * 3 + 3), &mut Silent)
                            .unwrap();
                    };
                    (0..2).for_each(&mut step);
                    ddp.reset_counts();
                    let mut step = |k: usize| {
                        let batch = Batch::new(k, 3 * n);
                        ddp.step(batch.whole().part(rank * 3..rank * 3 + 3), &mut Silent)
                            .unwrap();
                    };
                    (2..4).for_each(&mut step);
                    ddp.finish().unwrap();
                    let found = by_phase(ddp.counts().iter().map(|(of, count)| {
                        assert_eq!((*of, count.algorithm), (rank, "shared-direct"));
                        count
                    }));
                    let buckets: Vec<u64> = (0..ddp.buckets().len())
                        .map(|b| ddp.buckets().range(b).len() as u64)
                        .collect();
                    assert_eq!(buckets.len() > 3, cap.is_some());
                    assert_eq!(
                        found,
                        expected_ddp(
                            norm,
                            n as u64,
                            rank as u64,
                            &buckets,
                            2,
                            DdpOptions::default()
                        ),
                        "{norm:?}, rank {rank} of {n}"
                    );
                });
            }
        }
    }
}

#[test]
fn each_option_of_ddp_changes_the_calls_that_it_is_there_for() {
    let caps = [
        BucketCaps::uniform(4096),
        BucketCaps {
            bytes: 1200,
            first_bytes: 300,
        },
    ];
    for (norm, bucket_caps) in [(Norm::Batch, caps[0]), (Norm::SyncBatch, caps[1])] {
        for (accumulation, no_sync) in [(1, true), (2, true), (2, false), (3, true)] {
            for (overlap, broadcast_buffers) in [(true, false), (false, true)] {
                let options = DdpOptions {
                    bucket_caps,
                    overlap,
                    broadcast_buffers,
                    accumulation,
                    no_sync,
                    ..DdpOptions::default()
                };
                for on in BOTH {
                    check_options(on, norm, options);
                }
            }
        }
    }
}

fn check_options(on: On, norm: Norm, options: DdpOptions) {
    let chunks = [2, 2, 2];
    ranks_with(on, &model(norm), &chunks, options, |rank, ddp| {
        for k in 0..4 {
            if k == 2 {
                // What is still in the queue would count for the steps that follow.
                ddp.finish().unwrap();
                ddp.reset_counts();
            }
            let batch = Batch::new(k, 6 * options.accumulation);
            let own = batch.parts(options.accumulation, &chunks, rank);
            ddp.step(own.whole(), &mut Silent).unwrap();
        }
        ddp.finish().unwrap();
        let buckets: Vec<u64> = (0..ddp.buckets().len())
            .map(|b| ddp.buckets().range(b).len() as u64)
            .collect();
        assert!(buckets.len() > 1, "one bucket shows no cap");
        let counts = ddp.counts();
        let found = by_phase(counts.iter().map(|(_, count)| count));
        let expected = expected_ddp(norm, 3, rank as u64, &buckets, 2, options);
        assert_eq!(
            found, expected,
            "rank {rank}, {norm:?}, {options:?}, {on:?}"
        );
    });
}

/// The bytes of `steps` steps of the test model: its norms have 8 channels each, two layers.
fn expected_ddp(
    norm: Norm,
    n: u64,
    rank: u64,
    buckets: &[u64],
    steps: u64,
    options: DdpOptions,
) -> BTreeMap<Phase, (u64, u64)> {
    let mut expected = BTreeMap::new();
    let micro_batches = options.accumulation as u64;
    // Without no_sync every micro-batch ends in a reduction, after which the next one begins with rank 0's buffers.
    let reductions = if options.no_sync { 1 } else { micro_batches };
    if n == 1 {
        return expected;
    }
    let mut add = |phase, collective, len, width: u64, calls: u64| {
        let (sent, received) = elements(collective, len, n, rank, 0);
        let sum: &mut (u64, u64) = expected.entry(phase).or_default();
        sum.0 += sent * width * calls * steps;
        sum.1 += received * width * calls * steps;
    };
    for elements in buckets {
        let (phase, collective) = (Phase::AllReduce, Collective::AllReduce);
        add(phase, collective, *elements, 4, reductions);
    }
    if norm != Norm::None && options.broadcast_buffers {
        let (phase, collective) = (Phase::BufferBroadcast, Collective::Broadcast);
        add(phase, collective, 2 * 2 * 8, 4, reductions);
        add(phase, collective, 2, 8, reductions);
    }
    if norm == Norm::SyncBatch {
        let (phase, layers) = (Phase::SyncBatchNorm, 2 * micro_batches);
        add(phase, Collective::AllGather, 2 * 8 + 1, 4, layers);
        add(phase, Collective::AllReduce, 2 * 8, 4, layers);
    }
    expected
}

#[test]
fn a_dp_step_moves_what_the_table_of_the_semantics_says_for_its_real_chunks() {
    let model = model(Norm::Batch);
    let facts: u64 = model
        .nodes
        .iter()
        .flat_map(|node| node.parameters())
        .map(|slot| slot.elements() as u64)
        .sum();
    let (parameters, buffers) = (4 * facts, 2 * 2 * 8 * 4 + 2 * 8);
    let input = 4 * INPUT.iter().product::<usize>() as u64;
    for loss in [DpLoss::Gathered, DpLoss::Replica] {
        for (len, devices) in [(6, 1), (6, 2), (9, 3), (10, 4), (9, 4), (3, 4), (7, 2)] {
            let mut strategy = dp(On::Cpu, &model, len, devices, loss);
            for step in 0..3 {
                strategy
                    .step(Batch::new(step, len).whole(), &mut Silent)
                    .unwrap();
                if step == 0 {
                    strategy.reset_counts();
                }
            }
            let size = len.div_ceil(devices);
            let chunks: Vec<u64> = (0..len)
                .step_by(size)
                .map(|start| size.min(len - start) as u64)
                .collect();
            let counts = strategy.counts();
            assert!(
                counts
                    .iter()
                    .all(|(_, count)| count.algorithm == "peer-copy")
            );
            for device in 0..devices {
                let found = by_phase(
                    counts
                        .iter()
                        .filter(|(of, _)| *of == device)
                        .map(|(_, count)| count),
                );
                let mut expected = BTreeMap::new();
                for (other, samples) in chunks.iter().enumerate().skip(1) {
                    let output = if loss == DpLoss::Gathered {
                        samples * CLASSES as u64 * 4
                    } else {
                        4
                    };
                    let label = if loss == DpLoss::Gathered { 0 } else { 4 };
                    let mut add = |phase, bytes: u64, from: usize, to: usize| {
                        let sum: &mut (u64, u64) = if [from, to].contains(&device) {
                            expected.entry(phase).or_default()
                        } else {
                            return;
                        };
                        sum.0 += if from == device { 2 * bytes } else { 0 };
                        sum.1 += if to == device { 2 * bytes } else { 0 };
                    };
                    add(Phase::Scatter, samples * (input + label), 0, other);
                    add(Phase::Replicate, parameters + buffers, 0, other);
                    add(Phase::Gather, output, other, 0);
                    add(Phase::ScatterGradients, output, 0, other);
                    add(Phase::Reduce, parameters, other, 0);
                }
                assert_eq!(
                    found, expected,
                    "device {device} of {devices}, {len} samples, {loss:?}"
                );
            }
        }
    }
}
