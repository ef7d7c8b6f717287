//! ZeRO-1 trains like DDP, bit by bit where sums go in rank order, with 1/N of the optimizer's state on each rank; it moves what
//! its formula says, and its whole state can be exported, taken over and gone back to.
mod instructions;
mod trials;

use std::collections::BTreeMap;

use proptest::prelude::*;
use syncmark_engine::backend::{Category, MemoryUse};
use syncmark_engine::model::spec::Norm;
use syncmark_engine::optim::{AdamwSettings, OptimizerSettings, Schedule, SgdSettings};
use syncmark_engine::probe::{Phase, PhaseSpan, Probe, Silent, Track};
use syncmark_engine::program::TensorData;
use syncmark_engine::strategy::bucket::Buckets;
use syncmark_engine::strategy::{BucketCaps, Strategy, StrategyError, Zero1};
use trials::sharded::Job;
use trials::{BOTH, OPTIMIZER, On, Outcome, model, single, train};

const STEPS: usize = 4;
const NESTEROV: OptimizerSettings = OptimizerSettings::sgd(SgdSettings {
    learning_rate: 0.05,
    momentum: 0.9,
    weight_decay: 1e-3,
    nesterov: true,
});
const PLAIN: OptimizerSettings = OptimizerSettings::sgd(SgdSettings {
    learning_rate: 0.05,
    momentum: 0.0,
    weight_decay: 0.0,
    nesterov: false,
});
/// AdamW's rate changes at every step.
const ADAMW: OptimizerSettings = OptimizerSettings {
    schedule: Schedule::Step {
        every: 1,
        factor: 0.5,
    },
    ..OptimizerSettings::adamw(AdamwSettings {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.1,
    })
};

proptest! {
    #[test]
    fn divisible_buckets_tile_the_padded_arena(
        sizes in prop::collection::vec(1_usize..300, 0..30), cap in 1_usize..2000, parts in 1_usize..6
    ) {
        let whole = Buckets::assign(&sizes, BucketCaps::uniform(cap));
        let buckets = whole.divisible(parts);
        let mut next = 0;
        for index in 0..buckets.len() {
            let range = buckets.range(index);
            prop_assert_eq!(range.start, next);
            prop_assert!(!range.is_empty() && range.len().is_multiple_of(parts));
            next = range.end;
            if index + 1 < buckets.len() {
                let before = whole.ends().iter().any(|end| (range.end..range.end + parts).contains(end));
                prop_assert!(before, "no bucket of DDP ends at {} or just behind", range.end);
            }
        }
        prop_assert_eq!(next, sizes.iter().sum::<usize>().next_multiple_of(parts));
    }
}

fn assert_same(what: &str, zero1: &[Outcome], ddp: &[Outcome]) {
    for (rank, (a, b)) in zero1.iter().zip(ddp).enumerate() {
        assert!(a.losses == b.losses, "{what}, rank {rank}: losses");
        assert!(
            a.after_first == b.after_first,
            "{what}, rank {rank}: after a step"
        );
        assert!(a.end == b.end, "{what}, rank {rank}: at the end");
    }
}

/// Both strategies, to the same bits: parameters, buffers, and all of the optimizer's state.
fn check(what: &str, job: &Job<'_>) {
    let zero1 = job.zero1(|rank, strategy| job.train(rank, strategy, STEPS));
    let ddp = job.ddp(|rank, strategy| job.train(rank, strategy, STEPS));
    assert_same(what, &zero1, &ddp);
}

#[test]
fn zero1_is_ddp_bit_by_bit_whatever_the_norm_the_optimizer_and_the_chunks() {
    for on in BOTH {
        for chunks in [&[3, 3][..], &[3, 2, 4], &[2, 2, 2, 2]] {
            for (norm, optimizer) in [
                (Norm::None, PLAIN),
                (Norm::Batch, OPTIMIZER),
                (Norm::SyncBatch, NESTEROV),
                (Norm::Group, ADAMW),
            ] {
                let job = Job {
                    on,
                    model: &model(norm),
                    chunks,
                    optimizer,
                    accumulation: 1,
                    cap: Some(400),
                    tcp: false,
                };
                check(&format!("{norm:?}, {chunks:?} on {on:?}"), &job);
            }
        }
    }
}

#[test]
fn zero1_accumulates_as_ddp_does_whatever_the_norm_and_the_chunks() {
    for on in BOTH {
        for (norm, optimizer) in [
            (Norm::Batch, OPTIMIZER),
            (Norm::SyncBatch, NESTEROV),
            (Norm::Group, ADAMW),
        ] {
            for accumulation in [2, 3] {
                let job = Job {
                    on,
                    model: &model(norm),
                    chunks: &[3, 2, 3],
                    optimizer,
                    accumulation,
                    cap: Some(400),
                    tcp: false,
                };
                check(
                    &format!("{norm:?}, {accumulation} micro-batches on {on:?}"),
                    &job,
                );
            }
        }
    }
}

#[test]
fn buckets_of_any_size_do_not_change_results() {
    let model = model(Norm::Batch);
    for cap in [None, Some(1), Some(100), Some(3000)] {
        for chunks in [&[3, 3, 3][..], &[2, 2, 2, 2]] {
            let job = Job {
                on: On::Cpu,
                model: &model,
                chunks,
                optimizer: ADAMW,
                accumulation: 1,
                cap,
                tcp: false,
            };
            check(&format!("{cap:?}, {chunks:?}"), &job);
        }
    }
}

#[test]
fn over_tcp_the_sums_of_two_ranks_are_the_same_and_three_agree_among_themselves() {
    let model = model(Norm::SyncBatch);
    let job = Job {
        on: On::Cpu,
        model: &model,
        chunks: &[3, 4],
        optimizer: ADAMW,
        accumulation: 1,
        cap: Some(700),
        tcp: true,
    };
    check("two ranks over TCP", &job);
    let three = Job {
        chunks: &[2, 3, 2],
        ..job
    };
    // A ring adds in another order for each chunk, and chunks lie elsewhere under DDP: only `train` compares the ranks.
    let outcomes = three.zero1(|rank, strategy| three.train(rank, strategy, STEPS));
    assert!(outcomes.iter().all(|outcome| outcome.losses[0].is_finite()));
}

#[test]
fn one_rank_is_a_single_device_bit_by_bit() {
    let model = model(Norm::Batch);
    let job = Job {
        on: On::Cpu,
        model: &model,
        chunks: &[6],
        optimizer: OPTIMIZER,
        accumulation: 1,
        cap: Some(400),
        tcp: false,
    };
    let expected = train(&mut single(On::Cpu, &model, 6, &[]), STEPS, 6, |b| b);
    let found = job.zero1(|rank, strategy| {
        let outcome = job.train(rank, strategy, STEPS);
        assert!(
            strategy
                .counts()
                .iter()
                .all(|(_, count)| count.sent_bytes == Some(0)),
            "one rank sends nothing"
        );
        outcome
    });
    assert_same("one rank", &found, &[expected]);
}

fn step(strategy: &mut dyn Strategy, job: &Job<'_>, rank: usize, k: usize, probe: &mut dyn Probe) {
    strategy.step(job.batch(rank, k).whole(), probe).unwrap();
}

/// Elements of the test model's parameters.
fn elements(job: &Job<'_>) -> u64 {
    let slots = job.model.nodes.iter().flat_map(|node| node.parameters());
    slots.map(|slot| slot.elements() as u64).sum()
}

#[test]
fn a_step_moves_twice_its_share_of_the_parameters_and_the_buffers() {
    for (norm, tcp) in [
        (Norm::None, false),
        (Norm::None, true),
        (Norm::Batch, false),
        (Norm::Batch, true),
    ] {
        for n in 1..=4_usize {
            for (cap, accumulation) in [(None, 1), (Some(300), 1), (Some(300), 3)] {
                let job = Job {
                    on: On::Cpu,
                    model: &model(norm),
                    chunks: &vec![2; n],
                    optimizer: OPTIMIZER,
                    accumulation,
                    cap,
                    tcp,
                };
                job.zero1(|rank, strategy| {
                    step(strategy, &job, rank, 0, &mut Silent);
                    strategy.reset_counts();
                    (1..3).for_each(|k| step(strategy, &job, rank, k, &mut Silent));
                    strategy.finish().unwrap();
                    assert_counts(strategy, &job, rank, 2);
                });
            }
        }
    }
}

/// Two phases of (N − 1)/N of the padded parameters each, whatever the transport, the rank and the number of micro-batches: parts
/// are equal, and only the last micro-batch is reduced.
fn assert_counts(strategy: &Zero1, job: &Job<'_>, rank: usize, steps: u64) {
    let n = job.chunks.len() as u64;
    let mut sums: BTreeMap<Phase, (u64, u64)> = BTreeMap::new();
    for (of, count) in strategy.counts() {
        assert_eq!(of, rank);
        let sum = sums.entry(count.phase).or_default();
        *sum = (
            sum.0 + count.sent_bytes.unwrap(),
            sum.1 + count.received_bytes.unwrap(),
        );
    }
    let buffers = sums.remove(&Phase::BufferBroadcast);
    if rank == 0 && n > 1 {
        let running = job
            .model
            .nodes
            .iter()
            .filter_map(|node| node.running_channels());
        let bytes: u64 = running.map(|channels| 2 * 4 * channels as u64 + 8).sum();
        let (sent, _) = buffers.unwrap_or_default();
        // How often rank 0 sends them is the transport's matter: once to all in shared memory, once along a ring.
        assert!(
            sent.is_multiple_of(steps) && (sent / steps).is_multiple_of(bytes.max(1)),
            "{sent}"
        );
        assert!(sent / steps <= (n - 1) * bytes, "once a step: {sent}");
        assert_eq!(sent > 0, bytes > 0);
    }
    if n == 1 {
        assert!(sums.values().all(|moved| *moved == (0, 0)), "{sums:?}");
        return;
    }
    let padded = elements(job).next_multiple_of(n);
    let moved = steps * 4 * padded / n * (n - 1);
    let expected = BTreeMap::from([
        (Phase::ReduceScatter, (moved, moved)),
        (Phase::AllGather, (moved, moved)),
    ]);
    assert_eq!(sums, expected, "rank {rank} of {n}, tcp: {}", job.tcp);
    let buckets = strategy.buckets();
    assert_eq!(buckets.len() > 3, job.cap.is_some());
    assert!((0..buckets.len()).all(|index| buckets.range(index).len().is_multiple_of(n as usize)));
    if elements(job).is_multiple_of(n) {
        let whole = 4 * elements(job);
        assert_eq!(2 * moved, steps * 2 * whole * (n - 1) / n, "2·f·P");
    }
}

#[test]
fn the_optimizers_state_is_divided_among_the_ranks() {
    let of = |memory: &[MemoryUse]| {
        let place = Category::ALL
            .iter()
            .position(|category| *category == Category::Optimizer);
        memory[0][place.unwrap()] as u64
    };
    for n in [2, 3, 4] {
        let job = Job {
            on: On::Cpu,
            model: &model(Norm::Batch),
            chunks: &vec![2; n],
            optimizer: ADAMW,
            accumulation: 1,
            cap: Some(300),
            tcp: false,
        };
        let whole = 2 * 4 * elements(&job);
        let parts = job.zero1(|_, strategy| (of(&strategy.memory()), strategy.buckets().len()));
        let replicas = job.ddp(|_, strategy| of(&strategy.memory()));
        assert!(replicas.iter().all(|bytes| *bytes == whole), "{replicas:?}");
        let sum: u64 = parts.iter().map(|(bytes, _)| bytes).sum();
        assert_eq!(sum, whole, "every element has one owner");
        for (bytes, _) in &parts {
            // The last rank lacks what pads the arena: fewer elements than there are ranks.
            let share = 2 * 4 * elements(&job).div_ceil(n as u64);
            assert!(
                (share - 2 * 4 * n as u64..=share).contains(bytes),
                "{parts:?}"
            );
        }
    }
}

#[test]
fn the_state_goes_from_zero1_to_ddp_and_back() {
    let model = model(Norm::Batch);
    let job = Job {
        on: On::Deferred,
        model: &model,
        chunks: &[3, 2, 3],
        optimizer: ADAMW,
        accumulation: 1,
        cap: Some(300),
        tcp: false,
    };
    let whole = job.zero1(|rank, strategy| job.train(rank, strategy, STEPS).end);
    let halfway = job.zero1(|rank, strategy| {
        (0..2).for_each(|k| step(strategy, &job, rank, k, &mut Silent));
        strategy.export().unwrap()
    });
    let named = |name: &str| halfway[0].iter().any(|tensor| tensor.name == name);
    assert!(named("step") && named("exp_avg.0.conv2d.weight"));
    let go_on = |rank: usize, strategy: &mut dyn Strategy| {
        strategy.import(&halfway[rank]).unwrap();
        (2..STEPS).for_each(|k| step(strategy, &job, rank, k, &mut Silent));
        strategy.export().unwrap()
    };
    let as_zero1 = job.zero1(|rank, strategy| go_on(rank, strategy));
    let as_ddp = job.ddp(|rank, strategy| go_on(rank, strategy));
    assert!(as_zero1 == whole, "ZeRO-1 goes on bit by bit");
    assert!(as_ddp == whole, "DDP takes over the gathered state");
}

#[test]
fn without_synchronization_shards_part_and_a_snapshot_brings_them_back() {
    let model = model(Norm::SyncBatch);
    let job = Job {
        on: On::Deferred,
        model: &model,
        chunks: &[3, 3],
        optimizer: ADAMW,
        accumulation: 1,
        cap: Some(400),
        tcp: false,
    };
    job.zero1(|rank, strategy| {
        let first = job.train(rank, strategy, 2);
        strategy.snapshot().unwrap();
        strategy.reset_counts();
        strategy.set_synchronize(false);
        (0..2).for_each(|k| step(strategy, &job, rank, k, &mut Silent));
        strategy.finish().unwrap();
        assert!(strategy.counts().is_empty(), "nothing may be exchanged");
        assert_eq!(strategy.parameters_equal().unwrap(), Some(false));
        let updated = strategy.export().unwrap();
        let changed = updated.iter().zip(&first.end).any(|(now, then)| {
            now.name.ends_with("weight")
                && !now.name.starts_with("exp_")
                && match (&now.data, &then.data) {
                    (TensorData::F32(a), TensorData::F32(b)) => a != b,
                    _ => false,
                }
        });
        assert!(changed, "a rank still updates its shard");
        strategy.set_synchronize(true);
        strategy.restore().unwrap();
        assert_eq!(strategy.parameters_equal().unwrap(), Some(true));
        assert!(
            strategy.export().unwrap() == first.end,
            "a snapshot is exact"
        );
    });
}

#[test]
fn ranks_with_other_buckets_are_told_so() {
    let model = model(Norm::Group);
    let job = Job {
        on: On::Cpu,
        model: &model,
        chunks: &[3, 3, 3],
        optimizer: OPTIMIZER,
        accumulation: 1,
        cap: Some(300),
        tcp: false,
    };
    let errors = job.ranks(|rank, communicator| {
        let mut settings = job.zero1_settings(rank);
        settings.bucket_caps = BucketCaps::uniform(if rank == 1 { 3000 } else { 300 });
        let device = trials::device(On::Cpu, rank);
        Zero1::new(device, communicator, &model, &settings).err()
    });
    let told = |error: &Option<StrategyError>| {
        matches!(error, Some(StrategyError::Buckets { rank: 1 }))
            || error
                .as_ref()
                .is_some_and(|error| error.to_string().contains("other bucket caps"))
    };
    assert!(errors.iter().all(told), "{errors:?}");
}

#[derive(Default)]
struct Collected(Vec<PhaseSpan>);

impl Probe for Collected {
    fn tracing(&self) -> bool {
        true
    }
    fn span(&mut self, span: PhaseSpan) {
        self.0.push(span);
    }
}

#[test]
fn buckets_leave_while_backward_goes_on_and_come_back_one_by_one() {
    for on in BOTH {
        let job = Job {
            on,
            model: &model(Norm::Batch),
            chunks: &[3, 3],
            optimizer: OPTIMIZER,
            accumulation: 1,
            cap: Some(600),
            tcp: false,
        };
        job.zero1(|rank, strategy| {
            let mut spans = Collected::default();
            step(strategy, &job, rank, 0, &mut spans);
            let buckets = strategy.buckets().len() as u16;
            let of = |phase| {
                let found = spans.0.iter().filter(move |span| span.phase == phase);
                found.copied().collect::<Vec<_>>()
            };
            for phase in [Phase::ReduceScatter, Phase::AllGather] {
                let numbers: Vec<_> = of(phase).iter().map(|span| span.bucket.unwrap()).collect();
                assert_eq!(numbers, (0..buckets).collect::<Vec<_>>(), "{phase:?}");
                assert!(
                    of(phase)
                        .iter()
                        .all(|span| span.track == Track::Communication)
                );
            }
            let backward = of(Phase::Backward)[0];
            assert!(of(Phase::ReduceScatter)[0].host_ns[0] < backward.host_ns[1]);
            let updates = of(Phase::Optimizer);
            assert_eq!(
                updates.len(),
                usize::from(buckets),
                "one shard of each bucket"
            );
            assert!(of(Phase::AllGather)[0].host_ns[0] < updates[1].host_ns[1]);
            assert_eq!(of(Phase::Zero).len(), 1);
        });
    }
}

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
