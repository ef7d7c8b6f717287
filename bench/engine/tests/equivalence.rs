//! The equivalences that must hold before any timing counts: one device, DataParallel and DistributedDataParallel
//! make the same steps, for 2, 3 and 4 devices, even and uneven chunks, every norm, with dropout, on both backends.
mod instructions;
mod trials;

use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Silent;
use syncmark_engine::program::NamedTensor;
use syncmark_engine::strategy::{DpLoss, Strategy};
use trials::agree::{agree, losses_agree, mean_losses, outcomes_agree, ranks_agree};
use trials::{BOTH, On, Outcome, dp, model, ranks, single, train, train_ddp};

const STEPS: usize = 4;

/// Norms that look at one sample at a time, or at none: the chunks of a batch cannot matter.
const PER_SAMPLE: [Norm; 5] = [
    Norm::None,
    Norm::Layer,
    Norm::Instance,
    Norm::Group,
    Norm::Rms,
];

/// DP's chunks of `len` samples over `devices`.
fn chunks(len: usize, devices: usize) -> Vec<usize> {
    let size = len.div_ceil(devices);
    (0..len)
        .step_by(size)
        .map(|start| size.min(len - start))
        .collect()
}

#[test]
fn one_device_dp_and_ddp_agree_for_even_chunks() {
    for on in BOTH {
        for norm in PER_SAMPLE.into_iter().chain([Norm::Batch]) {
            let model = model(norm);
            for devices in [2, 3, 4] {
                let what = format!("{norm:?} on {devices} devices, {on:?}");
                let (len, parts) = (devices * 3, vec![3; devices]);
                // Without batch statistics the chunks cannot matter, so the reference takes the batch whole.
                let reference = if norm == Norm::Batch { &parts[..] } else { &[] };
                let expected = train(
                    &mut single(On::Cpu, &model, len, reference),
                    STEPS,
                    len,
                    |b| b,
                );
                let found = train(
                    &mut dp(on, &model, len, devices, DpLoss::Gathered),
                    STEPS,
                    len,
                    |b| b,
                );
                outcomes_agree(&format!("DP, {what}"), &found, &expected);
                losses_agree(&what, &found.losses, &expected.losses);
                let found = train(
                    &mut dp(on, &model, len, devices, DpLoss::Replica),
                    STEPS,
                    len,
                    |b| b,
                );
                outcomes_agree(
                    &format!("DP with the replicas' losses, {what}"),
                    &found,
                    &expected,
                );
                losses_agree(&what, &found.losses, &expected.losses);
                let found = train_ddp(on, &model, STEPS, &parts, Some(400));
                ranks_agree(&format!("DDP, {what}"), &found, &expected);
                losses_agree(&what, &mean_losses(&found), &expected.losses);
            }
        }
    }
}

#[test]
fn uneven_chunks_of_dp_agree_with_one_device() {
    for on in BOTH {
        for norm in PER_SAMPLE.into_iter().chain([Norm::Batch]) {
            let model = model(norm);
            for (len, devices) in [(10, 4), (9, 4), (7, 3), (5, 2), (2, 4)] {
                let what = format!("{norm:?}, {len} over {devices}, {on:?}");
                let parts = chunks(len, devices);
                let expected = train(&mut single(On::Cpu, &model, len, &parts), STEPS, len, |b| b);
                let found = train(
                    &mut dp(on, &model, len, devices, DpLoss::Gathered),
                    STEPS,
                    len,
                    |b| b,
                );
                outcomes_agree(&what, &found, &expected);
                losses_agree(&what, &found.losses, &expected.losses);
            }
        }
    }
}

#[test]
fn dp_takes_batches_of_changing_size_and_uses_fewer_devices_for_small_ones() {
    for on in BOTH {
        let model = model(Norm::Group);
        let mut alone = single(On::Cpu, &model, 10, &[]);
        let mut parallel = dp(on, &model, 10, 4, DpLoss::Gathered);
        for (step, len) in [10, 3, 9, 1, 10, 2].into_iter().enumerate() {
            let batch = trials::Batch::new(step, len);
            for strategy in [&mut alone as &mut dyn Strategy, &mut parallel] {
                strategy.step(batch.whole(), &mut Silent).unwrap();
            }
        }
        agree(
            &format!("{on:?}"),
            &parallel.export().unwrap(),
            &alone.export().unwrap(),
        );
    }
}

#[test]
fn uneven_ranks_weigh_equally_as_replicas_with_their_own_losses_do() {
    for on in BOTH {
        for norm in PER_SAMPLE.into_iter().chain([Norm::Batch]) {
            let model = model(norm);
            for (len, devices) in [(10, 4), (7, 3), (5, 2)] {
                let what = format!("{norm:?}, {len} over {devices}, {on:?}");
                let expected = train(
                    &mut dp(On::Cpu, &model, len, devices, DpLoss::Replica),
                    STEPS,
                    len,
                    |b| b,
                );
                let found = train_ddp(on, &model, STEPS, &chunks(len, devices), None);
                ranks_agree(&what, &found, &expected);
                losses_agree(&what, &mean_losses(&found), &expected.losses);
            }
        }
    }
}

#[test]
fn sync_batch_norm_over_ranks_is_batch_norm_of_the_whole_batch() {
    for on in BOTH {
        for devices in [2, 3, 4] {
            let (len, parts) = (devices * 3, vec![3; devices]);
            let expected = train(
                &mut single(On::Cpu, &model(Norm::Batch), len, &[]),
                STEPS,
                len,
                |b| b,
            );
            let found = train_ddp(on, &model(Norm::SyncBatch), STEPS, &parts, Some(400));
            let rename = |tensors: &[NamedTensor]| -> Vec<NamedTensor> {
                let rename = |name: &str| name.replace("sync-batch-norm", "batch-norm");
                tensors
                    .iter()
                    .map(|t| NamedTensor {
                        name: rename(&t.name),
                        ..t.clone()
                    })
                    .collect()
            };
            for outcome in &found {
                let renamed = Outcome {
                    losses: outcome.losses.clone(),
                    after_first: rename(&outcome.after_first),
                    end: rename(&outcome.end),
                };
                outcomes_agree(
                    &format!("SyncBN on {devices} ranks, {on:?}"),
                    &renamed,
                    &expected,
                );
            }
            losses_agree("SyncBN", &mean_losses(&found), &expected.losses);
        }
    }
}

#[test]
fn one_device_of_each_strategy_is_a_single_device_bit_by_bit() {
    let model = model(Norm::Batch);
    for on in BOTH {
        let expected = train(&mut single(On::Cpu, &model, 6, &[]), STEPS, 6, |b| b);
        let found = train(&mut dp(on, &model, 6, 1, DpLoss::Gathered), STEPS, 6, |b| b);
        assert!(
            found.end == expected.end && found.losses == expected.losses,
            "DP"
        );
        let found = train_ddp(on, &model, STEPS, &[6], None).remove(0);
        assert!(
            found.end == expected.end && found.losses == expected.losses,
            "DDP"
        );
    }
}

#[test]
fn the_backends_agree_bit_by_bit() {
    let model = model(Norm::SyncBatch);
    let [cpu, deferred] = BOTH.map(|on| train_ddp(on, &model, STEPS, &[3, 2, 4], None));
    for (a, b) in cpu.iter().zip(&deferred) {
        assert!(a.end == b.end && a.losses == b.losses);
    }
    let model = trials::model(Norm::Batch);
    let [cpu, deferred] = BOTH.map(|on| {
        train(
            &mut dp(on, &model, 10, 4, DpLoss::Gathered),
            STEPS,
            10,
            |b| b,
        )
    });
    assert!(cpu.end == deferred.end && cpu.losses == deferred.losses);
}

#[test]
fn norms_of_samples_are_flat_in_the_normalization_batch() {
    for norm in PER_SAMPLE {
        let model = model(norm);
        let whole = train(&mut single(On::Cpu, &model, 12, &[]), STEPS, 12, |b| b);
        for own in [1, 2, 3, 4, 6] {
            let chunks = vec![own; 12 / own];
            let ghosts = train(&mut single(On::Cpu, &model, 12, &chunks), STEPS, 12, |b| b);
            assert!(
                ghosts.end == whole.end && ghosts.losses == whole.losses,
                "{norm:?} at {own}"
            );
        }
    }
    // Batch norm is not: the test would see it.
    let model = model(Norm::Batch);
    let [whole, ghosts] = [&[12][..], &[4, 4, 4]]
        .map(|chunks| train(&mut single(On::Cpu, &model, 12, chunks), STEPS, 12, |b| b));
    assert!(ghosts.end != whole.end);
}

#[test]
fn bucket_sizes_do_not_change_results() {
    let model = model(Norm::Batch);
    let [one, many] = [None, Some(1)].map(|cap| train_ddp(On::Cpu, &model, STEPS, &[3, 3, 3], cap));
    assert!(one[0].losses == many[0].losses);
    for (a, b) in one.iter().zip(&many) {
        // Chunks of the sum lie elsewhere, but every element is summed in rank order all the same.
        assert!(a.end == b.end);
    }
}

#[test]
fn without_synchronization_ranks_part_and_a_snapshot_brings_them_back() {
    let model = model(Norm::Batch);
    ranks(On::Deferred, &model, &[3, 3], None, |rank, ddp| {
        let part = rank * 3..rank * 3 + 3;
        let first = train(ddp, 2, 6, |batch| batch.part(part.clone()));
        ddp.snapshot().unwrap();
        ddp.reset_counts();
        ddp.set_synchronize(false);
        for step in 0..2 {
            let batch = trials::Batch::new(step, 6);
            ddp.step(batch.whole().part(part.clone()), &mut Silent)
                .unwrap();
        }
        ddp.finish().unwrap();
        assert!(ddp.counts().is_empty(), "nothing may be exchanged");
        assert_eq!(ddp.parameters_equal().unwrap(), Some(false));
        ddp.set_synchronize(true);
        ddp.restore().unwrap();
        assert_eq!(ddp.parameters_equal().unwrap(), Some(true));
        assert!(ddp.export().unwrap() == first.end, "a snapshot is exact");
    });
}

#[test]
fn without_synchronization_dp_copies_nothing_and_goes_on() {
    let model = model(Norm::Batch);
    for loss in [DpLoss::Gathered, DpLoss::Replica] {
        let mut strategy = dp(On::Deferred, &model, 6, 2, loss);
        let before = train(&mut strategy, 2, 6, |b| b);
        strategy.snapshot().unwrap();
        strategy.reset_counts();
        strategy.set_synchronize(false);
        for step in 0..3 {
            strategy
                .step(trials::Batch::new(step, 6).whole(), &mut Silent)
                .unwrap();
        }
        strategy.finish().unwrap();
        assert!(strategy.counts().is_empty());
        assert!(strategy.loss().unwrap().is_finite());
        strategy.set_synchronize(true);
        strategy.restore().unwrap();
        assert!(strategy.export().unwrap() == before.end);
    }
}

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
