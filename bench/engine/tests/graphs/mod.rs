//! Steps of a rank over NCCL as CUDA graphs beside the same steps one by one.
use std::process::ExitCode;

use syncmark_engine::backend::Backend;
use syncmark_engine::comm::{Collective, Communicator};
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::{Phase, Silent};
use syncmark_engine::program::NamedTensor;
use syncmark_engine::strategy::{
    BucketCaps, Compression, Ddp, DdpOptions, DdpSettings, STEPS_BEFORE_CAPTURE, Strategy, Zero1,
    Zero1Settings,
};

use crate::captures::{Captures, Way};
use crate::trials::{Batch, OPTIMIZER, SEED, capped, model};

/// Parameters of the test model, in bytes, go in several buckets.
const CAP: usize = 700;
const STEPS: usize = 24;
/// Enough of one kind, after the rebuild of buckets, that it is replayed.
const CAPTURED: usize = STEPS_BEFORE_CAPTURE as usize + 3;

/// A device and who it exchanges with.
pub type End = (Box<dyn Backend>, Box<dyn Communicator>);

/// One rank of a job.
pub struct Seat<'a> {
    pub rank: usize,
    /// Samples of each rank.
    pub chunks: &'a [usize],
}

impl Seat<'_> {
    fn offset(&self) -> usize {
        self.chunks[..self.rank].iter().sum()
    }

    fn ddp(&self, norm: Norm, compression: Compression, (backend, communicator): End) -> Ddp {
        let settings = DdpSettings {
            max_batch: self.chunks[self.rank],
            sample_offset: self.offset(),
            global_batch: self.chunks.iter().sum(),
            seed: SEED,
            optimizer: OPTIMIZER,
            options: DdpOptions {
                compression,
                ..capped(Some(CAP))
            },
        };
        Ddp::new(backend, communicator, &model(norm), &settings).unwrap()
    }

    fn zero1(&self, (backend, communicator): End) -> Zero1 {
        let settings = Zero1Settings {
            max_batch: self.chunks[self.rank],
            sample_offset: self.offset(),
            global_batch: self.chunks.iter().sum(),
            accumulation: 1,
            seed: SEED,
            optimizer: OPTIMIZER,
            bucket_caps: BucketCaps::uniform(CAP),
            broadcast_buffers: true,
        };
        Zero1::new(backend, communicator, &model(Norm::Batch), &settings).unwrap()
    }

    fn batch(&self, step: usize) -> Batch {
        let len = self.chunks.iter().sum();
        Batch::new(step, len).parts(1, self.chunks, self.rank)
    }
}

/// Phase, collective, elements and calls.
type Counted = (Phase, Collective, u64, u64);

struct Journey {
    losses: Vec<f32>,
    counts: Vec<Counted>,
    end: Vec<NamedTensor>,
}

/// Steps that exchange, some that do not, and again some that do.
fn journey(strategy: &mut dyn Strategy, seat: &Seat<'_>) -> Journey {
    let mut losses = Vec::new();
    for step in 0..STEPS {
        strategy.set_synchronize(!(10..17).contains(&step));
        strategy
            .step(seat.batch(step).whole(), &mut Silent)
            .unwrap();
        // Ranks that share a GPU wait for each other's turns.
        losses.push(strategy.loss().unwrap());
    }
    strategy.finish().unwrap();
    strategy.barrier().unwrap();
    let counts = strategy.counts().into_iter();
    let mut counts: Vec<Counted> = counts
        .map(|(_, count)| (count.phase, count.collective, count.elements, count.calls))
        .collect();
    counts.sort();
    Journey {
        losses,
        counts,
        end: strategy.export().unwrap(),
    }
}

/// The same steps at one end one by one, at the other as graphs.
fn agree<S: Strategy>(
    name: &str,
    seat: &Seat<'_>,
    [one, other]: [&dyn Fn() -> End; 2],
    build: impl Fn(End) -> S,
) {
    let usual = journey(&mut build(one()), seat);
    let (backend, communicator) = other();
    let backend = Captures::new(backend);
    let ways = std::sync::Arc::clone(&backend.ways);
    let mut captured = build((Box::new(backend), communicator));
    captured.capture_steps().unwrap();
    let captured = journey(&mut captured, seat);
    assert_eq!(captured.losses, usual.losses, "{name}: losses");
    assert_eq!(captured.counts, usual.counts, "{name}: calls");
    assert!(captured.end == usual.end, "{name}: state");
    let ways = ways.lock().unwrap();
    let count = |of: fn(&Way) -> bool| ways.iter().filter(|way| of(way)).count();
    let captures = count(|way| *way == Way::Capture);
    let replays = count(|way| matches!(way, Way::Replay(_)));
    assert_eq!(captures, 2, "{name}: with and without exchanges");
    assert!(replays >= 12, "{name}: {replays} replays");
    println!("{name}: {replays} replays of {captures} graphs");
}

/// DDP over the ends that `one` and `other` make, with norms that meet.
pub fn ddp(seat: &Seat<'_>, ends: [&dyn Fn() -> End; 2]) {
    agree("ddp", seat, ends, |end| {
        seat.ddp(Norm::SyncBatch, Compression::None, end)
    });
}

/// As [`ddp`], with gradients in bfloat16, and buffers.
pub fn compressed(seat: &Seat<'_>, ends: [&dyn Fn() -> End; 2]) {
    agree("bf16", seat, ends, |end| {
        seat.ddp(Norm::Batch, Compression::Bf16, end)
    });
}

/// As [`ddp`], of ZeRO-1.
pub fn zero1(seat: &Seat<'_>, ends: [&dyn Fn() -> End; 2]) {
    agree("zero1", seat, ends, |end| seat.zero1(end));
}

/// Replays until something fails, and says what.
pub fn forever(seat: &Seat<'_>, end: End) -> ExitCode {
    let mut ddp = seat.ddp(Norm::Batch, Compression::None, end);
    ddp.capture_steps().unwrap();
    let batch = seat.batch(0);
    for time in 0_u64.. {
        let step = ddp.step(batch.whole(), &mut Silent);
        if let Err(error) = step.and_then(|()| ddp.finish()) {
            eprintln!("{error}");
            return ExitCode::from(3);
        }
        if time == CAPTURED as u64 {
            println!("ready");
        }
    }
    ExitCode::SUCCESS
}
