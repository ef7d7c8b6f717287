//! Steps of ranks that are captured with what the ranks exchange, and replayed, are the steps: the same losses, parameters, state and counts to
//! the bit, whatever changes from one step to the next, and all ranks go the same way in each. On the deferred backend, which captures both streams;
//! its random delays show a wait that a replay lacks. Ranks with GPUs are in `nccl_ranks`.
mod captures;
mod trials;

use std::sync::Arc;

use captures::{Captures, Way};
use syncmark_engine::backend::Backend;
use syncmark_engine::comm::{Collective, Communicator};
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::{Phase, PhaseSpan, Probe, Silent};
use syncmark_engine::program::NamedTensor;
use syncmark_engine::strategy::{
    Compression, Ddp, DdpOptions, DdpSettings, PowerSgdSettings, STEPS_BEFORE_CAPTURE, Strategy,
    Zero1,
};
use trials::sharded::Job;
use trials::{Batch, OPTIMIZER, On, SEED, Told, adamw, capped, device, model};

/// Parameters of the test model go in several buckets.
const CAP: usize = 700;
const STEPS: usize = 44;
const UNSYNCHRONIZED: std::ops::Range<usize> = 14..23;
const TRACED: usize = 26;

fn job<'a>(model: &'a Model, chunks: &'a [usize], tcp: bool) -> Job<'a> {
    Job {
        on: On::Deferred,
        model,
        chunks,
        optimizer: OPTIMIZER,
        accumulation: 1,
        cap: Some(CAP),
        tcp,
    }
}

/// What was counted, without times: phase, collective, elements, calls, bytes sent and received.
type Counted = (Phase, Collective, u64, u64, Option<u64>, Option<u64>);

fn counted(strategy: &dyn Strategy) -> Vec<Counted> {
    let counts = strategy.counts().into_iter().map(|(_, count)| {
        let (sent, received) = (count.sent_bytes, count.received_bytes);
        let what = (count.phase, count.collective);
        (what.0, what.1, count.elements, count.calls, sent, received)
    });
    let mut counts: Vec<Counted> = counts.collect();
    counts.sort_by_key(|count| (count.0, count.1, count.2));
    counts
}

/// Everything that a run of a rank leads to.
#[derive(Debug, PartialEq)]
struct Journey {
    losses: Vec<f32>,
    counts: Vec<Vec<Counted>>,
    end: Vec<NamedTensor>,
}

struct Tracing(usize);

impl Probe for Tracing {
    fn tracing(&self) -> bool {
        true
    }
    fn span(&mut self, _: PhaseSpan) {
        self.0 += 1;
    }
}

/// Steps of two batch sizes, over the rebuild of buckets, with some that exchange nothing, one that is traced, some that are told apart, one that is
/// checked, an evaluation, and a way back to a snapshot.
fn journey(strategy: &mut dyn Strategy, chunks: &[usize], rank: usize) -> Journey {
    let (mut losses, mut counts) = (Vec::new(), Vec::new());
    let smaller: Vec<usize> = chunks.iter().map(|chunk| chunk - 1).collect();
    let mut told = Told::default();
    for step in 0..STEPS {
        let chunks = if step % 4 == 3 { &smaller } else { chunks };
        let batch = Batch::new(step, chunks.iter().sum()).parts(1, chunks, rank);
        strategy.set_synchronize(!UNSYNCHRONIZED.contains(&step));
        match step {
            TRACED => {
                let mut tracing = Tracing(0);
                strategy.step(batch.whole(), &mut tracing).unwrap();
                assert!(tracing.0 > 5, "a traced step has phases");
            }
            28 => drop(strategy.checked_step(batch.whole()).unwrap()),
            30..34 => strategy.step(batch.whole(), &mut told).unwrap(),
            _ => strategy.step(batch.whole(), &mut Silent).unwrap(),
        }
        losses.push(strategy.loss().unwrap());
        counts.push(counted(strategy));
        match step {
            5 => strategy.snapshot().unwrap(),
            9 => strategy.restore().unwrap(),
            11 => losses.push(strategy.evaluate(batch.whole()).unwrap().loss as f32),
            24 => strategy.reset_counts(),
            _ => {}
        }
    }
    assert_eq!(told.0.len(), 4, "one a step");
    strategy.finish().unwrap();
    Journey {
        losses,
        counts,
        end: strategy.export().unwrap(),
    }
}

/// A device that captures, beside the list of what it does.
fn watched(rank: usize) -> (Box<dyn Backend>, Arc<std::sync::Mutex<Vec<Way>>>) {
    let device = Captures::new(device(On::Deferred, rank));
    let ways = Arc::clone(&device.ways);
    (Box::new(device), ways)
}

fn ddp_settings(job: &Job<'_>, rank: usize, options: DdpOptions) -> DdpSettings {
    DdpSettings {
        max_batch: job.chunks[rank],
        sample_offset: job.chunks[..rank].iter().sum(),
        global_batch: job.chunks.iter().sum(),
        seed: SEED,
        optimizer: job.optimizer,
        options,
    }
}

/// Runs a job of ranks that `build` makes, captured or not: the journey of each, and its ways.
fn travel<S: Strategy>(
    job: &Job<'_>,
    captures: bool,
    build: impl Fn(usize, Box<dyn Backend>, Box<dyn Communicator>) -> S + Sync,
) -> Vec<(Journey, Vec<Way>)> {
    job.ranks(|rank, communicator| {
        let (device, ways) = watched(rank);
        let mut strategy = build(rank, device, communicator);
        if captures {
            strategy.capture_steps().unwrap();
        }
        let journey = journey(&mut strategy, job.chunks, rank);
        let ways = ways.lock().unwrap().clone();
        (journey, ways)
    })
}

/// Both kinds of travel lead to the same, and the ranks go the same way in each step.
fn agree<S: Strategy>(
    name: &str,
    job: &Job<'_>,
    build: impl Fn(usize, Box<dyn Backend>, Box<dyn Communicator>) -> S + Sync,
) -> Vec<Way> {
    let usual = travel(job, false, &build);
    let captured = travel(job, true, &build);
    let ways = captured[0].1.clone();
    for (rank, ((usual, none), (captured, own))) in usual.iter().zip(&captured).enumerate() {
        assert_eq!(usual.losses, captured.losses, "{name}, rank {rank}: losses");
        assert_eq!(usual.end, captured.end, "{name}, rank {rank}: state");
        for (step, counts) in usual.counts.iter().zip(&captured.counts).enumerate() {
            assert_eq!(counts.0, counts.1, "{name}, rank {rank}, step {step}");
        }
        assert_eq!(none.len(), 0, "{name}: nobody asked for it");
        assert_eq!(*own, ways, "{name}, rank {rank}: another way than rank 0's");
    }
    ways
}

fn captures(ways: &[Way]) -> usize {
    ways.iter().filter(|way| **way == Way::Capture).count()
}

/// Of ranks that broadcast buffers, kinds of the journey that come more than [`STEPS_BEFORE_CAPTURE`] times: whole and smaller batches that
/// synchronize, and whole ones that do not.
fn enough(name: &str, ways: &[Way], kinds: usize) {
    assert_eq!(captures(ways), kinds, "{name}: {ways:?}");
    let replays = ways.len() - captures(ways);
    assert!(replays >= 12, "{name}: {replays} replays");
    for kind in 0..kinds {
        assert!(ways.contains(&Way::Replay(kind)), "{name}: {ways:?}");
    }
}

fn powersgd(warm_start: bool) -> Compression {
    Compression::PowerSgd(PowerSgdSettings {
        start_step: 4,
        warm_start,
        ..PowerSgdSettings::default()
    })
}

#[test]
fn replayed_ddp_is_ddp_to_the_bit() {
    let usual = capped(Some(CAP));
    let options = |compression| DdpOptions {
        compression,
        ..usual
    };
    let cases = [
        ("buckets while backward goes on", Norm::Batch, usual, 3),
        ("no buffers", Norm::Group, usual, 3),
        (
            "buckets after backward",
            Norm::Group,
            DdpOptions {
                overlap: false,
                ..usual
            },
            3,
        ),
        (
            "buffers of their own",
            Norm::Batch,
            DdpOptions {
                broadcast_buffers: false,
                ..usual
            },
            3,
        ),
        ("norms that meet", Norm::SyncBatch, usual, 3),
        ("fp16", Norm::Batch, options(Compression::Fp16), 3),
        ("bf16", Norm::Batch, options(Compression::Bf16), 3),
        ("PowerSGD", Norm::Batch, options(powersgd(true)), 3),
        ("PowerSGD, cold", Norm::Batch, options(powersgd(false)), 3),
    ];
    for (name, norm, options, kinds) in cases {
        let model = model(norm);
        let job = job(&model, &[3, 2], false);
        let ways = agree(name, &job, |rank, device, communicator| {
            let settings = ddp_settings(&job, rank, options);
            Ddp::new(device, communicator, &model, &settings).unwrap()
        });
        enough(name, &ways, kinds);
    }
}

#[test]
fn replayed_ddp_of_three_ranks_over_a_network_too() {
    let model = model(Norm::SyncBatch);
    let mut job = job(&model, &[3, 2, 2], true);
    job.optimizer = adamw();
    let ways = agree("tcp", &job, |rank, device, communicator| {
        let settings = ddp_settings(&job, rank, capped(job.cap));
        Ddp::new(device, communicator, &model, &settings).unwrap()
    });
    enough("tcp", &ways, 3);
}

#[test]
fn replayed_zero1_is_zero1_to_the_bit() {
    for norm in [Norm::Batch, Norm::SyncBatch] {
        let model = model(norm);
        for optimizer in [OPTIMIZER, adamw()] {
            let mut job = job(&model, &[3, 2], false);
            job.optimizer = optimizer;
            let ways = agree("zero1", &job, |rank, device, communicator| {
                Zero1::new(device, communicator, &model, &job.zero1_settings(rank)).unwrap()
            });
            enough("zero1", &ways, 3);
        }
    }
}

/// The first reduction is followed by a rebuild that blocks, so it is none of those that come before a capture.
#[test]
fn a_step_is_captured_when_its_kind_has_come_often_enough() {
    let model = model(Norm::Group);
    let job = job(&model, &[2, 2], false);
    let when = job.ranks(|rank, communicator| {
        let (device, ways) = watched(rank);
        let settings = ddp_settings(&job, rank, capped(job.cap));
        let mut ddp = Ddp::new(device, communicator, &model, &settings).unwrap();
        ddp.capture_steps().unwrap();
        (0..8)
            .map(|step| {
                ways.lock().unwrap().clear();
                let batch = job.batch(rank, step);
                ddp.step(batch.whole(), &mut Silent).unwrap();
                ways.lock().unwrap().clone()
            })
            .collect::<Vec<_>>()
    });
    let first = 1 + STEPS_BEFORE_CAPTURE as usize;
    for ways in when {
        for (step, ways) in ways.iter().enumerate() {
            let expected: &[Way] = match step {
                _ if step < first => &[],
                _ if step == first => &[Way::Capture, Way::Replay(0)],
                _ => &[Way::Replay(0)],
            };
            assert_eq!(ways, expected, "step {step}");
        }
    }
}

/// A rank whose step fails as it is captured ends the job of all.
#[test]
fn a_device_that_captures_nothing_says_so_to_all_ranks() {
    let model = model(Norm::Group);
    let job = Job {
        on: On::Cpu,
        ..job(&model, &[2, 2], false)
    };
    let said = job.ddp(|rank, ddp| {
        ddp.capture_steps().unwrap();
        let steps = (0..8).map(|step| ddp.step(job.batch(rank, step).whole(), &mut Silent));
        let failed = steps
            .enumerate()
            .find_map(|(at, step)| Some((at, step.err()?)));
        failed.map(|(at, error)| (at, error.to_string()))
    });
    for said in said {
        let (at, error) = said.expect("the CPU has no graphs");
        assert!(at >= 3, "step {at}: {error}");
        assert!(error.contains("capturing the work of a step"), "{error}");
    }
}
