//! What strategies do besides stepping: take over rank 0's parameters, refuse what cannot work, report the lowest device
//! that failed, evaluate, remember and go back.
mod trials;

use std::sync::Arc;

use syncmark_engine::backend::Category;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::comm::links::{Copy, HostLinks, Links, PIECE_BYTES, pieces};
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::data::HostBatch;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::{Phase, Silent};
use syncmark_engine::strategy::{
    Ddp, DdpOptions, DdpSettings, Dp, DpInputs, DpLoss, DpSettings, Independent,
    IndependentSettings, Strategy, StrategyError,
};
use syncmark_engine::tensor::Dtype;
use trials::{BOTH, Batch, OPTIMIZER, On, SEED, device, dp, model, single, train};

fn ddp_settings(rank: usize, seed: u64) -> DdpSettings {
    DdpSettings {
        max_batch: 3,
        sample_offset: rank * 3,
        global_batch: 9,
        seed,
        optimizer: OPTIMIZER,
        options: DdpOptions::default(),
    }
}

#[test]
fn ranks_take_over_the_parameters_of_rank_0() {
    for on in BOTH {
        let communicators = SharedCommunicator::for_threads(3, Waiting::default()).unwrap();
        let model = model(Norm::Batch);
        let exports: Vec<_> = std::thread::scope(|scope| {
            let start = |(rank, communicator): (usize, SharedCommunicator)| {
                let model = &model;
                scope.spawn(move || {
                    let settings = ddp_settings(rank, SEED + rank as u64);
                    let mut ddp =
                        Ddp::new(device(on, rank), Box::new(communicator), model, &settings)
                            .unwrap();
                    assert_eq!(ddp.parameters_equal().unwrap(), Some(true));
                    assert!(ddp.counts().is_empty(), "set-up is no part of a step");
                    ddp.export().unwrap()
                })
            };
            let ranks: Vec<_> = communicators.into_iter().enumerate().map(start).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        let first = single(on, &model, 3, &[]).export().unwrap();
        assert!(exports.iter().all(|export| *export == first));
    }
}

#[test]
fn ranks_with_different_models_are_told_so() {
    let communicators = SharedCommunicator::for_threads(3, Waiting::default()).unwrap();
    std::thread::scope(|scope| {
        for (rank, communicator) in communicators.into_iter().enumerate() {
            scope.spawn(move || {
                let model = model(if rank == 2 { Norm::None } else { Norm::Group });
                let built = Ddp::new(
                    device(On::Cpu, rank),
                    Box::new(communicator),
                    &model,
                    &ddp_settings(rank, SEED),
                );
                assert!(matches!(
                    built.err(),
                    Some(StrategyError::Model { rank: 2 })
                ));
            });
        }
    });
}

#[test]
fn batches_that_do_not_fit_are_refused_and_do_no_harm() {
    let model = model(Norm::Group);
    let batch = Batch::new(0, 7);
    let whole = batch.whole();
    let mut strategies: Vec<Box<dyn Strategy>> = vec![
        Box::new(single(On::Cpu, &model, 6, &[])),
        Box::new(dp(On::Cpu, &model, 6, 2, DpLoss::Gathered)),
    ];
    for strategy in &mut strategies {
        let wrong = [whole, whole.part(0..0), HostBatch { len: 5, ..whole }];
        for batch in wrong {
            let error = strategy.step(batch, &mut Silent).unwrap_err();
            assert!(matches!(error, StrategyError::Batch { .. }), "{error}");
        }
        strategy.step(whole.part(0..6), &mut Silent).unwrap();
        assert!(strategy.loss().unwrap().is_finite());
    }
    let mut chunked = single(On::Cpu, &model, 6, &[4, 2]);
    let error = chunked
        .step(whole.part(0..5), &mut Silent)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("6 samples, the sum of the normalization chunks"),
        "{error}"
    );
    assert!(matches!(chunked.restore(), Err(StrategyError::NoSnapshot)));
}

#[test]
fn dp_without_devices_or_samples_is_refused() {
    let model = model(Norm::None);
    let links = || Arc::new(HostLinks::new([]).unwrap());
    let settings = DpSettings {
        max_batch: 4,
        accumulation: 1,
        seed: 0,
        optimizer: OPTIMIZER,
        loss: DpLoss::Gathered,
        inputs: DpInputs::Master,
        device_ids: vec![],
        output_device: None,
        cores: vec![],
    };
    let error = Dp::new(Vec::new(), links(), &model, &settings)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("number of devices is 0"),
        "{error}"
    );
    let error = Dp::new(
        vec![device(On::Cpu, 0)],
        links(),
        &model,
        &DpSettings {
            max_batch: 0,
            ..settings
        },
    );
    assert!(
        error
            .err()
            .unwrap()
            .to_string()
            .contains("maximum batch is 0")
    );
}

#[test]
fn dp_names_the_lowest_device_that_failed() {
    // A normalization chunk of one element per channel cannot be normalized: only the last device, with one sample of
    // a single value per channel, has one.
    let layers = serde_json::from_str(
        r#"[{"conv2d":{"channels":4,"kernel":3}},"global-average-pool","norm",{"linear":{"features":"classes"}}]"#,
    );
    let spec = syncmark_engine::model::spec::ModelSpec {
        name: "test".into(),
        input: trials::INPUT.to_vec(),
        classes: trials::CLASSES,
        layers: layers.unwrap(),
    };
    let options = syncmark_engine::model::NormOptions::default();
    let model = syncmark_engine::model::lower(
        &spec,
        &trials::INPUT,
        trials::CLASSES,
        Norm::Batch,
        &options,
    )
    .unwrap();
    let mut strategy = dp(On::Cpu, &model, 7, 3, DpLoss::Gathered);
    let error = strategy
        .step(Batch::new(0, 7).whole(), &mut Silent)
        .unwrap_err();
    assert!(
        matches!(error, StrategyError::Device { device: 2, .. }),
        "{error}"
    );
    let mut strategy = dp(On::Cpu, &model, 3, 3, DpLoss::Gathered);
    let error = strategy
        .step(Batch::new(0, 3).whole(), &mut Silent)
        .unwrap_err();
    assert!(
        matches!(error, StrategyError::Device { device: 0, .. }),
        "{error}"
    );
}

#[test]
fn a_core_that_does_not_exist_is_named_at_the_start() {
    let backends: Vec<_> = (0..2).map(|index| device(On::Cpu, index)).collect();
    let links = Arc::new(HostLinks::new(backends.iter().map(|backend| &**backend)).unwrap());
    let cores = vec![vec![], vec![1_000_000]];
    let settings = DpSettings {
        max_batch: 4,
        accumulation: 1,
        seed: 0,
        optimizer: OPTIMIZER,
        loss: DpLoss::Gathered,
        inputs: DpInputs::Master,
        device_ids: Vec::new(),
        output_device: None,
        cores,
    };
    let error = Dp::new(backends, links, &model(Norm::None), &settings)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("device 1") && error.contains("1000000"),
        "{error}"
    );
}

#[test]
fn evaluation_takes_any_number_of_samples_and_changes_nothing() {
    let model = model(Norm::Batch);
    for on in BOTH {
        let mut alone = single(on, &model, 6, &[3, 3]);
        let mut parallel = dp(on, &model, 6, 2, DpLoss::Gathered);
        let ends = [
            train(&mut alone, 2, 6, |b| b).end,
            train(&mut parallel, 2, 6, |b| b).end,
        ];
        let batch = Batch::new(9, 20);
        let strategies: [&mut dyn Strategy; 2] = [&mut alone, &mut parallel];
        let found = strategies.map(|strategy| {
            let found = strategy.evaluate(batch.whole()).unwrap();
            assert_eq!(found, strategy.evaluate(batch.whole()).unwrap());
            found
        });
        assert_eq!(found[0].samples, 20);
        assert!(
            found[0].errors <= 20 && (found[0].loss - found[1].loss).abs() < 1e-4,
            "{found:?}"
        );
        assert!(alone.export().unwrap() == ends[0] && parallel.export().unwrap() == ends[1]);
    }
}

#[test]
fn state_is_exported_and_taken_over_with_the_optimizers() {
    let model = model(Norm::Batch);
    let mut one = single(On::Cpu, &model, 6, &[3, 3]);
    train(&mut one, 2, 6, |b| b);
    let state = one.export().unwrap();
    assert!(
        state
            .iter()
            .any(|tensor| tensor.name.starts_with("momentum."))
    );
    let mut other = dp(On::Cpu, &model, 6, 2, DpLoss::Gathered);
    other.import(&state).unwrap();
    assert!(other.export().unwrap() == state);
}

#[test]
fn the_learning_rate_can_change_between_steps() {
    let model = model(Norm::Group);
    let mut strategy = single(On::Deferred, &model, 6, &[]);
    let before = strategy.export().unwrap();
    strategy.set_learning_rate(0.0).unwrap();
    strategy
        .step(Batch::new(0, 6).whole(), &mut Silent)
        .unwrap();
    let frozen = |name: &str| !name.starts_with("momentum.");
    let after = strategy.export().unwrap();
    assert!(
        before
            .iter()
            .zip(&after)
            .filter(|(a, _)| frozen(&a.name))
            .all(|(a, b)| a == b)
    );
    strategy.set_learning_rate(0.1).unwrap();
    strategy
        .step(Batch::new(0, 6).whole(), &mut Silent)
        .unwrap();
    assert!(strategy.export().unwrap() != after);
}

#[test]
fn independent_replicas_are_single_devices_that_know_their_samples() {
    let model = model(Norm::Batch);
    let build = |index: usize, sample_offset: usize| {
        let settings = IndependentSettings {
            index,
            sample_offset,
            global_batch: 6,
            max_batch: 3,
            accumulation: 1,
            seed: SEED,
            optimizer: OPTIMIZER,
        };
        Independent::new(device(On::Cpu, index), &model, &settings).unwrap()
    };
    let run = |strategy: &mut dyn Strategy| train(strategy, 2, 3, |b| b).end;
    let expected = run(&mut single(On::Cpu, &model, 3, &[]));
    assert!(run(&mut build(0, 0)) == expected);
    assert!(
        run(&mut build(1, 3)) != expected,
        "dropout masks are those of other samples"
    );
}

#[test]
fn links_refuse_what_does_not_match_and_cut_large_spans() {
    let mut devices: Vec<_> = (0..2)
        .map(|_| CpuBackend::new(CpuDevice::default()).unwrap())
        .collect();
    use syncmark_engine::backend::{Backend, Stream};
    let links = HostLinks::new(devices.iter().map(|device| device as &dyn Backend)).unwrap();
    let a = devices[0]
        .allocate(Category::Workspace, Dtype::F32, 4)
        .unwrap();
    let b = devices[1]
        .allocate(Category::Workspace, Dtype::F32, 3)
        .unwrap();
    let event = devices[0].record(Stream::Compute);
    let after = devices[0].completion(event);
    for (from, to, says) in [
        ((0, a), (1, b), "cannot fill"),
        ((0, a), (0, a), "no link from device 0 to 0"),
        ((2, a), (1, b), "no link from device 2"),
    ] {
        let error = links
            .copy(
                &mut devices[1],
                &after,
                Copy {
                    phase: Phase::Scatter,
                    from,
                    to,
                },
            )
            .unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let large = devices[0]
        .allocate(Category::Workspace, Dtype::I64, PIECE_BYTES / 8 * 2 + 5)
        .unwrap();
    let sizes: Vec<usize> = pieces(large).map(|piece| piece.bytes()).collect();
    assert_eq!(sizes, [PIECE_BYTES, PIECE_BYTES, 40]);
    assert_eq!(pieces(large.first(0)).count(), 0);
}

/// What another device computes on while nothing is fetched must be of the usual size: remains of memory that backward
/// uses again shrink through denormal numbers, and the arm without synchronization would time those.
#[test]
fn without_synchronization_other_devices_compute_on_ordinary_numbers() {
    for loss in [DpLoss::Gathered, DpLoss::Replica] {
        let devices: Vec<_> = (0..2).map(|index| device(On::Cpu, index)).collect();
        let memory = devices[1]
            .host_memory()
            .expect("a CPU's memory is the host's");
        let links = Arc::new(HostLinks::new(devices.iter().map(|device| &**device)).unwrap());
        let settings = DpSettings {
            max_batch: 6,
            accumulation: 1,
            seed: SEED,
            optimizer: OPTIMIZER,
            loss,
            inputs: DpInputs::Master,
            device_ids: Vec::new(),
            output_device: None,
            cores: Vec::new(),
        };
        let mut dp = Dp::new(devices, links, &model(Norm::Batch), &settings).unwrap();
        let batch = Batch::new(0, 6);
        dp.step(batch.whole(), &mut Silent).unwrap();
        dp.set_synchronize(false);
        for _ in 0..60 {
            dp.step(batch.whole(), &mut Silent).unwrap();
        }
        dp.finish().unwrap();
        // Both devices allocate their programs first and alike, so spans are the same. Gradients of parameters are cleared
        // by now; where the output's gradient was lie those of values, which shrink or not just as well.
        let span = dp.master().program().d_output();
        // SAFETY: the device is idle, and it is not stepped while the slice lives.
        let gradients = unsafe { memory.read::<f32>(span) };
        let subnormal = gradients
            .iter()
            .filter(|value| value.is_subnormal())
            .count();
        let largest = gradients
            .iter()
            .fold(0.0f32, |most, value| most.max(value.abs()));
        assert_eq!(subnormal, 0, "{loss:?}: of {}", gradients.len());
        assert!(
            largest > 1e-5 && largest < 1e4,
            "{loss:?}: the largest gradient is {largest}"
        );
    }
}
