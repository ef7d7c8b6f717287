//! Buckets: what PyTorch's assignment by size does, as properties and by hand, and how DDP uses them.
mod trials;

use proptest::prelude::*;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::{Phase, PhaseSpan, Probe, Silent, Track};
use syncmark_engine::strategy::bucket::Buckets;
use syncmark_engine::strategy::{BucketCaps, DdpOptions, Strategy};
use trials::{Batch, On, model, ranks, ranks_with};

const MIB: usize = 1 << 20;

#[test]
fn a_cap_is_a_closing_threshold() {
    // Two of four bytes reach a cap of eight; a large one overshoots; the rest is the last bucket.
    let eight = BucketCaps::uniform(8);
    assert_eq!(Buckets::assign(&[1, 1, 9, 1], eight).ends(), [2, 11, 12]);
    assert_eq!(Buckets::assign(&[2, 2], eight).ends(), [2, 4]);
    assert!(Buckets::assign(&[], eight).is_empty());
    assert_eq!(Buckets::unlimited(7).ends(), [7]);
    assert!(Buckets::unlimited(0).is_empty());
}

#[test]
fn the_first_bucket_has_a_cap_of_its_own() {
    let quarter = MIB / 4 / 4;
    let sizes = vec![quarter; 200];
    let default = Buckets::assign(&sizes, BucketCaps::default());
    assert_eq!(default.range(0).len() * 4, MIB);
    assert_eq!(default.range(1).len() * 4, 25 * MIB);
    assert_eq!(default.len(), 3);
    let uniform = Buckets::assign(&sizes, BucketCaps::uniform(25 * MIB));
    assert_eq!(uniform.range(0).len() * 4, 25 * MIB);
    let chosen = BucketCaps {
        bytes: 12,
        first_bytes: 4,
    };
    // One element, then threes; a large parameter overshoots the first cap and the other one alike.
    assert_eq!(Buckets::assign(&[1; 8], chosen).ends(), [1, 4, 7, 8]);
    assert_eq!(Buckets::assign(&[9, 2, 9, 1], chosen).ends(), [9, 20, 21]);
}

proptest! {
    #[test]
    fn buckets_tile_the_arena_and_close_when_full(
        sizes in prop::collection::vec(1_usize..5000, 0..60), bytes in 1_usize..40_000, first_bytes in 1_usize..40_000
    ) {
        let buckets = Buckets::assign(&sizes, BucketCaps { bytes, first_bytes });
        let total: usize = sizes.iter().sum();
        let mut next = 0;
        for index in 0..buckets.len() {
            let range = buckets.range(index);
            prop_assert_eq!(range.start, next);
            next = range.end;
            // Whole parameters: the end is a boundary between two.
            let mut sum = 0;
            let last = sizes.iter().find(|size| { sum += **size; sum >= range.end }).copied().unwrap();
            prop_assert_eq!(sum, range.end);
            let cap = if index == 0 { first_bytes } else { bytes };
            prop_assert!((range.len() - last) * 4 < cap, "it was full before its last parameter");
            if index + 1 < buckets.len() {
                prop_assert!(range.len() * 4 >= cap, "it closed before it was full");
            }
        }
        prop_assert_eq!(next, total);
    }
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
fn the_first_step_has_one_bucket_and_later_ones_overlap_backward() {
    for on in [On::Cpu, On::Deferred] {
        ranks(
            on,
            &model(Norm::SyncBatch),
            &[3, 3],
            Some(600),
            |rank, ddp| {
                let step = |ddp: &mut dyn Strategy, k: usize, probe: &mut dyn Probe| {
                    let batch = Batch::new(k, 6);
                    ddp.step(batch.whole().part(rank * 3..rank * 3 + 3), probe)
                        .unwrap();
                };
                assert_eq!(ddp.buckets().len(), 1);
                let mut first = Collected::default();
                step(ddp, 0, &mut first);
                let reduces = |spans: &Collected| -> Vec<PhaseSpan> {
                    spans
                        .0
                        .iter()
                        .filter(|span| span.phase == Phase::AllReduce)
                        .copied()
                        .collect()
                };
                assert_eq!(reduces(&first).len(), 1);
                let buckets = ddp.buckets().len();
                assert!(buckets > 2, "{buckets}");
                step(ddp, 1, &mut Silent);

                let mut later = Collected::default();
                step(ddp, 2, &mut later);
                let found = reduces(&later);
                let numbers: Vec<_> = found.iter().map(|span| span.bucket.unwrap()).collect();
                assert_eq!(
                    numbers,
                    (0..buckets as u16).collect::<Vec<_>>(),
                    "strictly in the order of the buckets"
                );
                let backward = later
                    .0
                    .iter()
                    .find(|span| span.phase == Phase::Backward)
                    .unwrap();
                assert!(
                    found[0].host_ns[0] < backward.host_ns[1],
                    "the first bucket leaves while backward goes on"
                );
                for span in &later.0 {
                    assert_eq!(span.device, rank as u16);
                    assert!(
                        span.device_ns[0] <= span.device_ns[1]
                            && span.host_ns[0] <= span.host_ns[1],
                        "{span:?}"
                    );
                    let communicates = [
                        Phase::AllReduce,
                        Phase::BufferBroadcast,
                        Phase::SyncBatchNorm,
                    ]
                    .contains(&span.phase);
                    assert_eq!(span.track == Track::Communication, communicates, "{span:?}");
                }
                // Two layers, a gather forward and a reduce backward each.
                assert_eq!(
                    later
                        .0
                        .iter()
                        .filter(|span| span.phase == Phase::SyncBatchNorm)
                        .count(),
                    4
                );
                for phase in [
                    Phase::HostToDevice,
                    Phase::Forward,
                    Phase::Loss,
                    Phase::Wait,
                    Phase::Optimizer,
                    Phase::Zero,
                ] {
                    assert!(
                        later.0.iter().any(|span| span.phase == phase),
                        "{phase:?} is missing"
                    );
                }
            },
        );
    }
}

fn of(phase: Phase, spans: &Collected) -> Vec<PhaseSpan> {
    let spans = spans.0.iter().filter(|span| span.phase == phase);
    spans.copied().collect()
}

#[test]
fn without_overlap_all_buckets_leave_in_order_once_backward_is_over() {
    for on in [On::Cpu, On::Deferred] {
        let options = DdpOptions {
            overlap: false,
            bucket_caps: BucketCaps::uniform(600),
            ..DdpOptions::default()
        };
        ranks_with(on, &model(Norm::Batch), &[3, 3], options, |rank, ddp| {
            let mut step = |k: usize, probe: &mut dyn Probe| {
                let batch = Batch::new(k, 6);
                ddp.step(batch.whole().part(rank * 3..rank * 3 + 3), probe)
                    .unwrap();
            };
            (0..2).for_each(|k| step(k, &mut Silent));
            let mut spans = Collected::default();
            step(2, &mut spans);
            let reduces = of(Phase::AllReduce, &spans);
            let numbers: Vec<_> = reduces.iter().map(|span| span.bucket.unwrap()).collect();
            assert!(numbers.len() > 2);
            assert!(numbers.into_iter().eq(0..reduces.len() as u16));
            let backward = of(Phase::Backward, &spans)[0];
            for reduce in reduces {
                assert!(backward.host_ns[1] <= reduce.host_ns[0], "{reduce:?}");
            }
        });
    }
}

#[test]
fn the_first_reduction_has_one_bucket_and_with_no_sync_the_last_micro_batch_has_all() {
    for (no_sync, first, later) in [(true, [0, 1], [0, 3]), (false, [1, 3], [3, 3])] {
        let options = DdpOptions {
            accumulation: 2,
            no_sync,
            bucket_caps: BucketCaps::uniform(2000),
            ..DdpOptions::default()
        };
        ranks_with(
            On::Cpu,
            &model(Norm::Batch),
            &[3, 3],
            options,
            |rank, ddp| {
                for expected in [first, later] {
                    let mut spans = Collected::default();
                    let own = Batch::new(0, 12).parts(2, &[3, 3], rank);
                    ddp.step(own.whole(), &mut spans).unwrap();
                    let forwards = of(Phase::Forward, &spans);
                    assert_eq!(forwards.len(), 2);
                    let reduces = of(Phase::AllReduce, &spans);
                    let (early, late) = reduces
                        .iter()
                        .partition::<Vec<&_>, _>(|span| span.host_ns[0] < forwards[1].host_ns[0]);
                    assert_eq!([early.len(), late.len()], expected, "no_sync {no_sync}");
                    assert_eq!(of(Phase::Optimizer, &spans).len(), 1);
                }
            },
        );
    }
}

#[test]
fn dp_traces_every_device() {
    let mut strategy = trials::dp(
        On::Deferred,
        &model(Norm::Batch),
        7,
        3,
        syncmark_engine::strategy::DpLoss::Gathered,
    );
    strategy
        .step(Batch::new(0, 7).whole(), &mut Silent)
        .unwrap();
    let mut spans = Collected::default();
    strategy.step(Batch::new(1, 7).whole(), &mut spans).unwrap();
    let has = |device: u16, phase: Phase| {
        spans
            .0
            .iter()
            .any(|span| (span.device, span.phase) == (device, phase))
    };
    for phase in [
        Phase::HostToDevice,
        Phase::Gather,
        Phase::Loss,
        Phase::Reduce,
        Phase::Optimizer,
    ] {
        assert!(has(0, phase) && !has(1, phase), "{phase:?}");
    }
    for device in 1..3 {
        for phase in [
            Phase::Scatter,
            Phase::Replicate,
            Phase::Forward,
            Phase::ScatterGradients,
            Phase::Backward,
        ] {
            assert!(has(device, phase), "{phase:?} on {device}");
        }
    }
    assert!(
        spans
            .0
            .iter()
            .all(|span| span.device_ns[0] <= span.device_ns[1])
    );
}
