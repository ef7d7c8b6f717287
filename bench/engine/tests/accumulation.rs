//! Gradient accumulation and DDP's options: steps of K micro-batches agree over strategies, with one larger batch, and with
//! whatever devices and ranks exchange in between, on both backends. ZeRO-1's are compared with DDP's in `zero1.rs`.
mod trials;

use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Silent;
use syncmark_engine::program::{NamedTensor, TensorData};
use syncmark_engine::strategy::{BucketCaps, DdpOptions, Dp, DpLoss, Strategy};
use trials::agree::{losses_agree, mean_losses, outcomes_agree, ranks_agree};
use trials::{
    BOTH, Batch, On, Outcome, dp_accumulating, model, ranks_with, single, single_accumulating,
    train, train_ddp_with, train_on,
};

const STEPS: usize = 4;
const PARTS: [usize; 2] = [3, 3];
const LEN: usize = 6;

/// Several buckets, and K micro-batches of which each one is reduced or only the last.
fn accumulating(accumulation: usize, no_sync: bool) -> DdpOptions {
    DdpOptions {
        accumulation,
        no_sync,
        bucket_caps: BucketCaps::uniform(400),
        ..DdpOptions::default()
    }
}

fn one_device(model: &Model, accumulation: usize, chunks: &[usize]) -> Outcome {
    let mut single = single_accumulating(On::Cpu, model, LEN, chunks, accumulation);
    train(&mut single, STEPS, accumulation * LEN, |batch| batch)
}

/// Under the names of BatchNorm's tensors.
fn unsynchronized_names(outcome: &Outcome) -> Outcome {
    let rename = |tensors: &[NamedTensor]| -> Vec<NamedTensor> {
        let rename = |t: &NamedTensor| NamedTensor {
            name: t.name.replace("sync-batch-norm", "batch-norm"),
            ..t.clone()
        };
        tensors.iter().map(rename).collect()
    };
    Outcome {
        losses: outcome.losses.clone(),
        after_first: rename(&outcome.after_first),
        end: rename(&outcome.end),
    }
}

#[test]
fn ranks_that_accumulate_are_one_device_that_accumulates() {
    for accumulation in [1, 2, 3] {
        let cases: [(Norm, &[usize]); 3] = [
            (Norm::None, &[]),
            (Norm::Batch, &PARTS),
            (Norm::SyncBatch, &[]),
        ];
        for (norm, chunks) in cases {
            let alone = if norm == Norm::SyncBatch {
                Norm::Batch
            } else {
                norm
            };
            let expected = one_device(&model(alone), accumulation, chunks);
            for (on, no_sync) in BOTH.into_iter().flat_map(|on| [(on, true), (on, false)]) {
                let what =
                    format!("{norm:?}, {accumulation} micro-batches, no_sync {no_sync}, {on:?}");
                let options = accumulating(accumulation, no_sync);
                let found: Vec<Outcome> = train_ddp_with(on, &model(norm), STEPS, &PARTS, options)
                    .iter()
                    .map(unsynchronized_names)
                    .collect();
                ranks_agree(&what, &found, &expected);
                losses_agree(&what, &mean_losses(&found), &expected.losses);
            }
        }
    }
}

#[test]
fn micro_batches_are_one_larger_batch_where_statistics_are_those_of_a_sample() {
    for norm in [Norm::None, Norm::Layer, Norm::Group] {
        let model = model(norm);
        for accumulation in [2, 3] {
            let len = accumulation * LEN;
            let whole = train(&mut single(On::Cpu, &model, len, &[]), STEPS, len, |b| b);
            let what = format!("{norm:?}, {accumulation} micro-batches");
            let alone = one_device(&model, accumulation, &[]);
            outcomes_agree(&format!("{what} on one device"), &alone, &whole);
            losses_agree(&what, &alone.losses, &whole.losses);
            for on in BOTH {
                let options = accumulating(accumulation, true);
                let found = train_ddp_with(on, &model, STEPS, &PARTS, options);
                ranks_agree(&format!("{what} over ranks, {on:?}"), &found, &whole);
                losses_agree(&what, &mean_losses(&found), &whole.losses);
            }
        }
    }
}

/// Of each replica the mean, of these the mean: with equal chunks the same as over all samples.
#[test]
fn dp_that_accumulates_is_one_device_that_accumulates() {
    for accumulation in [2, 3] {
        for (norm, chunks) in [
            (Norm::None, &[][..]),
            (Norm::Group, &[]),
            (Norm::Batch, &PARTS),
        ] {
            let model = model(norm);
            let expected = one_device(&model, accumulation, chunks);
            for (on, loss) in BOTH
                .into_iter()
                .flat_map(|on| [(on, DpLoss::Gathered), (on, DpLoss::Replica)])
            {
                let mut dp = dp_accumulating(on, &model, LEN, 2, loss, accumulation);
                let found = train(&mut dp, STEPS, accumulation * LEN, |batch| batch);
                let what = format!("{norm:?}, {accumulation} micro-batches, {loss:?}, {on:?}");
                outcomes_agree(&what, &found, &expected);
                losses_agree(&what, &found.losses, &expected.losses);
            }
        }
    }
}

#[test]
fn dp_accumulates_over_uneven_chunks_and_over_fewer_than_its_devices() {
    let model = model(Norm::Batch);
    for (len, devices, chunks) in [(7, 3, &[3, 3, 1][..]), (6, 4, &[2, 2, 2])] {
        let mut single = single_accumulating(On::Cpu, &model, len, chunks, 2);
        let expected = train(&mut single, STEPS, 2 * len, |batch| batch);
        for on in BOTH {
            let mut dp = dp_accumulating(on, &model, len, devices, DpLoss::Gathered, 2);
            let found = train(&mut dp, STEPS, 2 * len, |batch| batch);
            let what = format!("{len} samples over {devices} devices, {on:?}");
            outcomes_agree(&what, &found, &expected);
            losses_agree(&what, &found.losses, &expected.losses);
        }
    }
}

#[test]
fn without_synchronization_accumulating_devices_copy_nothing() {
    for loss in [DpLoss::Gathered, DpLoss::Replica] {
        let mut dp = dp_accumulating(On::Deferred, &model(Norm::Batch), LEN, 2, loss, 2);
        let step = |dp: &mut Dp, k: usize| {
            let batch = Batch::new(k, 2 * LEN);
            dp.step(batch.whole(), &mut Silent).unwrap();
        };
        step(&mut dp, 0);
        dp.snapshot().unwrap();
        let before = dp.export().unwrap();
        step(&mut dp, 1);
        let expected = dp.export().unwrap();
        dp.restore().unwrap();
        dp.reset_counts();
        dp.set_synchronize(false);
        (1..3).for_each(|k| step(&mut dp, k));
        dp.finish().unwrap();
        assert!(dp.counts().is_empty(), "nothing may be copied");
        dp.set_synchronize(true);
        dp.restore().unwrap();
        assert!(dp.export().unwrap() == before, "a snapshot is exact");
        step(&mut dp, 1);
        assert!(
            dp.export().unwrap() == expected,
            "and nothing is left behind"
        );
    }
}

#[test]
fn running_statistics_move_with_every_micro_batch() {
    let end = one_device(&model(Norm::Batch), 3, &[]).end;
    let counters: Vec<&NamedTensor> = end
        .iter()
        .filter(|tensor| tensor.name.ends_with("num_batches_tracked"))
        .collect();
    assert_eq!(counters.len(), 2);
    for counter in counters {
        assert_eq!(counter.data, TensorData::I64(vec![3 * STEPS as i64]));
    }
}

#[test]
fn when_buckets_are_reduced_does_not_change_a_bit() {
    let model = model(Norm::Batch);
    for on in BOTH {
        for accumulation in [1, 2] {
            let options = accumulating(accumulation, true);
            let late = DdpOptions {
                overlap: false,
                ..options
            };
            let [during, after] =
                [options, late].map(|options| train_ddp_with(on, &model, STEPS, &PARTS, options));
            for (a, b) in during.iter().zip(&after) {
                assert!(a.end == b.end && a.losses == b.losses, "{on:?}");
            }
        }
    }
}

fn buffers(tensors: &[NamedTensor]) -> Vec<&NamedTensor> {
    let buffer = |name: &str| name.contains("running_") || name.contains("num_batches");
    tensors.iter().filter(|t| buffer(&t.name)).collect()
}

#[test]
fn without_buffer_broadcasts_each_rank_keeps_the_statistics_of_its_own_samples() {
    let model = model(Norm::Batch);
    let options = DdpOptions {
        broadcast_buffers: false,
        ..accumulating(2, true)
    };
    let expected = one_device(&model, 2, &PARTS);
    for on in BOTH {
        let found = train_ddp_with(on, &model, STEPS, &PARTS, options);
        // Rank 0 holds what one device does with its chunk first, and all ranks the same parameters.
        ranks_agree("own buffers", &found, &expected);
        for (rank, outcome) in found.iter().enumerate() {
            // In the first step all ranks have the same parameters, so the statistics tell their samples.
            let mut alone = single_accumulating(On::Cpu, &model, PARTS[rank], &[], 2);
            let alone = train_on(&mut alone, 1, |step| {
                Batch::new(step, 2 * LEN).parts(2, &PARTS, rank)
            });
            assert!(
                buffers(&outcome.after_first) == buffers(&alone.end),
                "rank {rank}, {on:?}"
            );
        }
        assert!(buffers(&found[0].end) != buffers(&found[1].end));
    }
}

#[test]
fn without_synchronization_accumulating_ranks_exchange_nothing_and_part() {
    let model = model(Norm::SyncBatch);
    for no_sync in [true, false] {
        let options = accumulating(2, no_sync);
        ranks_with(On::Deferred, &model, &PARTS, options, |rank, ddp| {
            let step = |ddp: &mut dyn Strategy, k: usize| {
                let batch = Batch::new(k, 2 * LEN).parts(2, &PARTS, rank);
                ddp.step(batch.whole(), &mut Silent).unwrap();
            };
            (0..2).for_each(|k| step(ddp, k));
            ddp.snapshot().unwrap();
            let before = ddp.export().unwrap();
            ddp.reset_counts();
            ddp.set_synchronize(false);
            (2..4).for_each(|k| step(ddp, k));
            ddp.finish().unwrap();
            assert!(ddp.counts().is_empty(), "nothing may be exchanged");
            assert_eq!(ddp.parameters_equal().unwrap(), Some(false));
            ddp.set_synchronize(true);
            ddp.restore().unwrap();
            assert!(ddp.export().unwrap() == before, "a snapshot is exact");
            step(ddp, 4);
            assert_eq!(ddp.parameters_equal().unwrap(), Some(true));
        });
    }
}

#[test]
fn batches_that_are_no_whole_micro_batches_are_refused_with_what_would_do() {
    let mut alone = single_accumulating(On::Cpu, &model(Norm::None), LEN, &[], 3);
    let mut refused = |len: usize| {
        let batch = Batch::new(0, len);
        let error = alone.step(batch.whole(), &mut Silent).unwrap_err();
        error.to_string()
    };
    let message = refused(8);
    assert!(
        message.ends_with("expected a multiple of 3 samples, one part for each micro-batch"),
        "{message}"
    );
    let message = refused(21);
    assert!(message.ends_with("expected 1 to 18 samples"), "{message}");
    alone
        .step(Batch::new(0, 9).whole(), &mut Silent)
        .expect("three smaller micro-batches");
}
