//! Threads within a device: results stay within tolerance of one thread's, and repeat to the bit with the same number of threads.
//!
//! Sums over samples and rows are made in as many parts as there are threads, and the parts added in order, so the number of
//! threads decides how sums are rounded and the clock does not. Also with DDP, whose ranks then have two threads each.
mod instructions;
mod trials;

use std::sync::Arc;

use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::comm::shared::{DEFAULT_SLOT_BYTES, Region, SharedCommunicator, Waiting};
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::program::{NamedTensor, TensorData};
use syncmark_engine::strategy::{Ddp, DdpOptions, DdpSettings, Single, SingleSettings};
use trials::{Batch, OPTIMIZER, Outcome, SEED, model, train, train_on};

const STEPS: usize = 3;
const LEN: usize = 10;
const NORMS: [Norm; 5] = [
    Norm::Batch,
    Norm::Layer,
    Norm::Group,
    Norm::Instance,
    Norm::Rms,
];

/// A device whose kernels are all cut into parts, however small they are.
fn device(threads: usize) -> Box<dyn Backend> {
    let device = CpuDevice {
        threads,
        smallest_part: Some(1),
        ..CpuDevice::default()
    };
    Box::new(CpuBackend::new(device).unwrap())
}

fn trained(model: &Model, threads: usize) -> Outcome {
    let settings = SingleSettings {
        max_batch: LEN,
        accumulation: 1,
        chunks: Vec::new(),
        seed: SEED,
        optimizer: OPTIMIZER,
    };
    let mut single = Single::new(device(threads), model, &settings).unwrap();
    train(&mut single, STEPS, LEN, |batch| batch)
}

fn trained_by_ranks(model: &Model, threads: usize) -> Vec<Outcome> {
    const RANKS: usize = 2;
    let region = Arc::new(Region::for_threads(RANKS, DEFAULT_SLOT_BYTES).unwrap());
    let rank = |rank: usize| {
        let joined =
            SharedCommunicator::join(Arc::clone(&region), rank, Waiting::default()).unwrap();
        let settings = DdpSettings {
            max_batch: LEN / RANKS,
            sample_offset: rank * LEN / RANKS,
            global_batch: LEN,
            seed: SEED,
            optimizer: OPTIMIZER,
            options: DdpOptions::default(),
        };
        let mut ddp = Ddp::new(device(threads), Box::new(joined), model, &settings).unwrap();
        train_on(&mut ddp, STEPS, |step| {
            Batch::new(step, LEN).parts(1, &[LEN / RANKS; RANKS], rank)
        })
    };
    std::thread::scope(|scope| {
        let rank = &rank;
        let ranks: Vec<_> = (0..RANKS)
            .map(|index| scope.spawn(move || rank(index)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn floats(tensor: &NamedTensor) -> Vec<f64> {
    match &tensor.data {
        TensorData::F32(values) => values.iter().map(|value| f64::from(*value)).collect(),
        TensorData::I64(values) => values.iter().map(|value| *value as f64).collect(),
    }
}

/// Every tensor agrees to 1e-4 of its norm, every loss to 1e-5: rounding of another order of sums, carried through three steps.
fn expect_close(what: &str, found: &Outcome, expected: &Outcome) {
    for (step, (a, b)) in found.losses.iter().zip(&expected.losses).enumerate() {
        let error = (a - b).abs() / b.abs();
        assert!(error <= 1e-5, "{what}: loss of step {step} is {a}, not {b}");
    }
    assert_eq!(found.end.len(), expected.end.len());
    for (a, b) in found.end.iter().zip(&expected.end) {
        assert_eq!(a.name, b.name);
        let (a, values) = (floats(a), floats(b));
        let norm =
            |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut a.iter().zip(&values).map(|(a, b)| a - b));
        let size = norm(&mut values.iter().copied());
        assert!(
            error <= 1e-4 * size,
            "{what}: {} is off by {error:e} of {size:e}",
            b.name
        );
    }
}

fn expect_equal(what: &str, found: &Outcome, expected: &Outcome) {
    assert_eq!(found.losses, expected.losses, "{what}");
    assert_eq!(found.end, expected.end, "{what}");
}

#[test]
fn one_to_four_threads_agree_and_repeat_to_the_bit() {
    for norm in NORMS {
        let model = model(norm);
        let one = trained(&model, 1);
        for threads in 1..=4 {
            let what = format!("{norm:?}, {threads} threads");
            let (first, second) = (trained(&model, threads), trained(&model, threads));
            expect_equal(&what, &second, &first);
            expect_close(&what, &first, &one);
        }
    }
}

#[test]
fn ranks_of_two_threads_agree_with_ranks_of_one_and_repeat_to_the_bit() {
    for norm in [Norm::SyncBatch, Norm::Group] {
        let model = model(norm);
        let one = trained_by_ranks(&model, 1);
        let (first, second) = (trained_by_ranks(&model, 2), trained_by_ranks(&model, 2));
        for rank in 0..one.len() {
            let what = format!("{norm:?}, rank {rank}");
            expect_equal(&what, &second[rank], &first[rank]);
            expect_close(&what, &first[rank], &one[rank]);
        }
    }
}

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
