//! DDP with compressed gradients, as a strategy: against DDP without, on both backends, with its state over snapshots, and what it
//! says about its own accuracy. `golden_hooks.rs` compares the hooks themselves with PyTorch's.
mod trials;

use std::sync::Arc;

use syncmark_engine::comm::shared::{DEFAULT_SLOT_BYTES, Region, SharedCommunicator, Waiting};
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Silent;
use syncmark_engine::program::{NamedTensor, TensorData};
use syncmark_engine::strategy::{
    Compression, Ddp, DdpOptions, DdpSettings, PowerSgdSettings, Strategy, StrategyError,
};
use trials::{BOTH, Batch, OPTIMIZER, On, SEED, device, model};

const RANKS: usize = 2;
const EACH: usize = 4;

/// PowerSGD as early as its state allows.
const EARLY: PowerSgdSettings = PowerSgdSettings {
    rank: 2,
    start_step: 2,
    min_compression_rate: 1.2,
    error_feedback: true,
    warm_start: true,
};
/// Factors as large as their matrices, of every matrix: nothing is lost but to rounding.
const FULL: PowerSgdSettings = PowerSgdSettings {
    rank: usize::MAX,
    min_compression_rate: 0.0,
    ..EARLY
};

fn settings(rank: usize, compression: Compression, cap: Option<usize>) -> DdpSettings {
    DdpSettings {
        max_batch: EACH,
        sample_offset: rank * EACH,
        global_batch: RANKS * EACH,
        seed: SEED,
        optimizer: OPTIMIZER,
        options: DdpOptions {
            compression,
            ..trials::capped(cap)
        },
    }
}

/// Runs `body` on every rank of a new job, with small buckets.
fn ranks<T: Send>(
    on: On,
    compression: Compression,
    body: impl Fn(usize, &mut Ddp) -> T + Sync,
) -> Vec<T> {
    let region = Arc::new(Region::for_threads(RANKS, DEFAULT_SLOT_BYTES).unwrap());
    let model = model(Norm::Group);
    std::thread::scope(|scope| {
        let (region, body, model) = (&region, &body, &model);
        let start = |rank| {
            scope.spawn(move || {
                let waiting = Waiting::default();
                let communicator =
                    SharedCommunicator::join(Arc::clone(region), rank, waiting).unwrap();
                let settings = settings(rank, compression, Some(700));
                let mut ddp =
                    Ddp::new(device(on, rank), Box::new(communicator), model, &settings).unwrap();
                body(rank, &mut ddp)
            })
        };
        let ranks: Vec<_> = (0..RANKS).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn steps(rank: usize, ddp: &mut Ddp, steps: std::ops::Range<usize>) {
    for step in steps {
        let batch = Batch::new(step, RANKS * EACH);
        let part = batch.whole().part(rank * EACH..(rank + 1) * EACH);
        ddp.step(part, &mut Silent).unwrap();
    }
    ddp.finish().unwrap();
}

fn trained(on: On, compression: Compression, count: usize) -> Vec<NamedTensor> {
    let all = ranks(on, compression, |rank, ddp| {
        steps(rank, ddp, 0..count);
        assert_eq!(
            ddp.parameters_equal().unwrap(),
            Some(true),
            "{compression:?}"
        );
        ddp.export().unwrap()
    });
    all.into_iter().next().unwrap()
}

fn floats(tensor: &NamedTensor) -> Vec<f64> {
    match &tensor.data {
        TensorData::F32(values) => values.iter().map(|v| f64::from(*v)).collect(),
        TensorData::I64(values) => values.iter().map(|v| *v as f64).collect(),
    }
}

/// Largest relative difference of two states' momentum buffers, which are sums of gradients, and of which tensor.
fn difference(a: &[NamedTensor], b: &[NamedTensor]) -> (f64, String) {
    let pairs = a
        .iter()
        .zip(b)
        .filter(|(a, _)| a.name.starts_with("momentum."));
    let each = pairs.map(|(a, b)| {
        let (x, y) = (floats(a), floats(b));
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>().sqrt();
        let off = norm(&mut x.iter().zip(&y).map(|(x, y)| x - y));
        (off / norm(&mut y.iter().copied()), a.name.clone())
    });
    let worst = each.max_by(|a, b| a.0.total_cmp(&b.0));
    worst.expect("momentum")
}

#[test]
fn factors_of_full_rank_give_the_exact_mean() {
    for on in BOTH {
        let exact = trained(on, Compression::None, 3);
        let found = trained(on, Compression::PowerSgd(FULL), 3);
        let (off, name) = difference(&found, &exact);
        // The third step alone is compressed; its products round as those of a layer do.
        assert!(off < 1e-4, "{name} on {on:?} is off by {off:.1e}");
        assert!(off > 0.0, "nothing was compressed");
    }
}

#[test]
fn before_its_first_step_powersgd_is_plain() {
    let exact = trained(On::Cpu, Compression::None, 2);
    let late = PowerSgdSettings { rank: 1, ..EARLY };
    assert_eq!(trained(On::Cpu, Compression::PowerSgd(late), 2), exact);
    let (off, _) = difference(
        &trained(On::Cpu, Compression::PowerSgd(late), 3),
        &trained(On::Cpu, Compression::None, 3),
    );
    assert!(off > 0.05, "rank 1 loses more than {off}");
}

#[test]
fn half_precision_is_as_far_from_the_mean_as_its_significand_is_short() {
    for (compression, unit) in [
        (Compression::Fp16, 2f64.powi(-11)),
        (Compression::Bf16, 2f64.powi(-8)),
    ] {
        let (off, name) = difference(
            &trained(On::Cpu, compression, 1),
            &trained(On::Cpu, Compression::None, 1),
        );
        // Three roundings of each number, at most half a unit of each.
        assert!(
            off < 3.0 * unit && off > unit / 20.0,
            "{name}: {off:.1e} with {compression:?}"
        );
    }
}

#[test]
fn a_device_that_runs_late_has_the_same_bits() {
    for compression in [
        Compression::Fp16,
        Compression::Bf16,
        Compression::PowerSgd(EARLY),
    ] {
        assert_eq!(
            trained(On::Cpu, compression, 5),
            trained(On::Deferred, compression, 5),
            "{compression:?}"
        );
    }
}

#[test]
fn a_snapshot_holds_the_error_the_factors_and_the_step() {
    for on in BOTH {
        // The first time round takes the snapshot before PowerSGD starts, the second time after.
        for taken in [1, 4] {
            ranks(on, Compression::PowerSgd(EARLY), |rank, ddp| {
                steps(rank, ddp, 0..taken);
                ddp.snapshot().unwrap();
                steps(rank, ddp, taken..7);
                let (first, state) = (ddp.export().unwrap(), ddp.export_compression().unwrap());
                assert!(
                    state
                        .iter()
                        .any(|t| t.name.starts_with("q.") && floats(t).iter().any(|v| *v != 0.0))
                );
                ddp.restore().unwrap();
                steps(rank, ddp, taken..7);
                assert_eq!(ddp.export().unwrap(), first, "on {on:?} from step {taken}");
                assert_eq!(ddp.export_compression().unwrap(), state);
            });
        }
    }
}

#[test]
fn a_checked_step_says_how_far_its_gradients_are_from_the_mean() {
    for on in BOTH {
        let full = Compression::PowerSgd(FULL);
        let low = Compression::PowerSgd(PowerSgdSettings {
            rank: 1,
            error_feedback: false,
            ..EARLY
        });
        for (compression, at_least, at_most) in [
            (Compression::None, 0.0, 0.0),
            (Compression::Fp16, 1e-5, 2e-3),
            (Compression::Bf16, 1e-4, 2e-2),
            (full, 1e-8, 1e-4),
            (low, 0.05, 1.0),
        ] {
            let all = ranks(on, compression, |rank, ddp| {
                steps(rank, ddp, 0..3);
                ddp.reset_counts();
                let batch = Batch::new(3, RANKS * EACH);
                let part = batch.whole().part(rank * EACH..(rank + 1) * EACH);
                let found = ddp.checked_step(part).unwrap();
                assert_eq!(found.len(), ddp.buckets().len());
                (found, ddp.export().unwrap())
            });
            for (a, b) in all[0].0.iter().zip(&all[1].0) {
                assert_eq!(
                    (a.error, a.product),
                    (b.error, b.product),
                    "the ranks hold the same mean"
                );
            }
            let total = all[0]
                .0
                .iter()
                .copied()
                .sum::<syncmark_engine::strategy::Fidelity>();
            let error = total.relative_error();
            assert!(
                error >= at_least && error <= at_most,
                "{compression:?}: {error:.1e}"
            );
            // An error as short as it can be for its cosine: cos² ≥ 1 − error².
            assert!(total.cosine() <= 1.0 + 1e-12);
            assert!(total.cosine().powi(2) >= 1.0 - error * error - 1e-12);
            let share = total.sent_bytes.unwrap() as f64 / total.uncompressed_bytes.unwrap() as f64;
            let expected = match compression {
                Compression::None => 1.0..=1.0,
                Compression::Fp16 | Compression::Bf16 => 0.5..=0.5,
                Compression::PowerSgd(power) if power.rank == 1 => 0.1..=0.9,
                Compression::PowerSgd(_) => 1.0..=3.0,
            };
            assert!(expected.contains(&share), "{compression:?}: {share}");
            // Looking did not change what was trained.
            assert_eq!(all[0].1, trained(on, compression, 4), "{compression:?}");
        }
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let early = PowerSgdSettings {
        start_step: 1,
        ..EARLY
    };
    let none = PowerSgdSettings { rank: 0, ..EARLY };
    let negative = PowerSgdSettings {
        min_compression_rate: -1.0,
        ..EARLY
    };
    for (wrong, expected) in [
        (early, "start_step"),
        (none, "rank"),
        (negative, "min_compression_rate"),
    ] {
        let communicator = SharedCommunicator::for_threads(1, Waiting::default())
            .unwrap()
            .remove(0);
        let settings = settings(0, Compression::PowerSgd(wrong), None);
        let model = model(Norm::None);
        let built = Ddp::new(
            device(On::Cpu, 0),
            Box::new(communicator),
            &model,
            &settings,
        );
        match built.err() {
            Some(StrategyError::Setting { setting, .. }) => assert!(setting.starts_with(expected)),
            other => panic!("{other:?}"),
        }
    }
}
