//! Steps that are captured and replayed are the steps: the same losses, parameters and optimizer state to the bit, whatever changes from
//! one step to the next. On the deferred backend, whose captures are lists of kernels, and on a GPU where there is one; without it each test
//! says why nothing was run there, and fails if SYNCMARK_REQUIRE_GPU=1.
mod gpu;
mod trials;

use syncmark_engine::backend::cuda::Precision;
use syncmark_engine::backend::deferred::DeferredBackend;
use syncmark_engine::backend::{Backend, BackendError, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::kernel::{Kernel, Write};
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::optim::OptimizerSettings;
use syncmark_engine::probe::{Dispatch, Silent};
use syncmark_engine::strategy::{
    DdpOptions, DpLoss, Independent, IndependentSettings, Single, SingleSettings, Strategy,
};
use syncmark_engine::tensor::{Dtype, Span};
use trials::{
    Batch, OPTIMIZER, On, SEED, Told, adamw, dp, model, ranks, ranks_with, single_accumulating,
};

const LEN: usize = 6;
/// More than are taken before one of a size is captured, and some replays of each of two sizes.
const STEPS: usize = 20;

fn deferred() -> Box<dyn Backend> {
    Box::new(DeferredBackend::new(3).unwrap())
}

/// Devices that can capture, two of each kind; GPUs multiply by cuBLAS, and by cuBLASLt.
fn pairs() -> Vec<[Box<dyn Backend>; 2]> {
    let of_gpu = gpu::gpu().zip(gpu::gpu()).map(<[_; 2]>::from);
    let cublaslt = || gpu::gpu_with_cublaslt(Precision::Tf32);
    let with_cublaslt = cublaslt().zip(cublaslt()).map(<[_; 2]>::from);
    std::iter::once([deferred(), deferred()])
        .chain(of_gpu)
        .chain(with_cublaslt)
        .collect()
}

fn single(backend: Box<dyn Backend>, model: &Model, optimizer: OptimizerSettings) -> Single {
    let settings = SingleSettings {
        max_batch: LEN,
        accumulation: 1,
        chunks: Vec::new(),
        seed: SEED,
        optimizer,
    };
    Single::new(backend, model, &settings).unwrap()
}

/// Steps of two batch sizes in turn, with an evaluation and a way back to a snapshot between.
fn losses(strategy: &mut dyn Strategy) -> Vec<f32> {
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let batch = Batch::new(step, if step % 3 == 2 { LEN - 2 } else { LEN });
        strategy.step(batch.whole(), &mut Silent).unwrap();
        losses.push(strategy.loss().unwrap());
        match step {
            5 => strategy.snapshot().unwrap(),
            7 => losses.push(strategy.evaluate(batch.whole()).unwrap().loss as f32),
            9 => strategy.restore().unwrap(),
            _ => {}
        }
    }
    strategy.finish().unwrap();
    losses
}

#[test]
fn replayed_steps_are_the_steps_to_the_bit() {
    for norm in [Norm::Batch, Norm::Group, Norm::Rms] {
        let model = model(norm);
        for optimizer in [OPTIMIZER, adamw()] {
            for [one, other] in pairs() {
                let name = one.name();
                let mut usual = single(one, &model, optimizer);
                let mut captured = single(other, &model, optimizer);
                captured.capture_steps().unwrap();
                let (expected, found) = (losses(&mut usual), losses(&mut captured));
                assert_eq!(found, expected, "{name}, {norm:?}, {optimizer:?}");
                assert_eq!(
                    captured.export().unwrap(),
                    usual.export().unwrap(),
                    "{name}, {norm:?}"
                );
            }
        }
    }
}

#[test]
fn replicas_that_never_meet_replay_too() {
    let model = model(Norm::Batch);
    let settings = IndependentSettings {
        index: 1,
        sample_offset: LEN,
        global_batch: 2 * LEN,
        max_batch: LEN,
        accumulation: 1,
        seed: SEED,
        optimizer: OPTIMIZER,
    };
    for [one, other] in pairs() {
        let mut usual = Independent::new(one, &model, &settings).unwrap();
        let mut captured = Independent::new(other, &model, &settings).unwrap();
        captured.capture_steps().unwrap();
        assert_eq!(losses(&mut captured), losses(&mut usual));
        assert_eq!(captured.export().unwrap(), usual.export().unwrap());
    }
}

#[test]
fn steps_that_cannot_be_one_graph_are_refused_with_what_would_do() {
    let model = model(Norm::Group);
    let refused = |strategy: &mut dyn Strategy| {
        let error = strategy.capture_steps().expect_err("no graph holds it");
        error.to_string()
    };
    let mut dp = dp(On::Cpu, &model, LEN, 2, DpLoss::Gathered);
    assert_eq!(
        refused(&mut dp),
        "graph of a step is of DataParallel, whose controller joins its devices' threads between phases: one device, ranks, or replicas that never meet"
    );
    let twice = DdpOptions {
        accumulation: 2,
        ..DdpOptions::default()
    };
    ranks_with(On::Cpu, &model, &[3, 3], twice, |_, ddp| {
        assert!(refused(ddp).contains("of several micro-batches"));
    });
    let mut twice = single_accumulating(On::Deferred, &model, LEN, &[], 2);
    assert_eq!(
        refused(&mut twice),
        "graph of a step is of several micro-batches: one micro-batch a step"
    );
}

#[test]
fn a_backend_that_runs_at_once_has_nothing_to_capture() {
    let mut strategy = trials::single(On::Cpu, &model(Norm::Group), LEN, &[]);
    strategy.capture_steps().unwrap();
    let steps: Vec<_> = (0..4)
        .map(|step| strategy.step(Batch::new(step, LEN).whole(), &mut Silent))
        .collect();
    assert!(steps[..3].iter().all(Result::is_ok));
    let error = steps[3].as_ref().expect_err("the CPU has no graphs");
    assert!(error.to_string().contains("capturing"), "{error}");
}

fn floats(backend: &mut dyn Backend, len: usize) -> Span {
    let floats = backend.allocate(Category::Workspace, Dtype::F32, len);
    floats.unwrap()
}

#[test]
fn what_is_captured_has_not_run_and_may_be_nothing_but_kernels() {
    for [mut backend, _] in pairs() {
        let backend = backend.as_mut();
        let name = backend.name();
        let (to, two) = (floats(backend, 8), floats(backend, 2));
        let fill = |value| Kernel::Fill { to, value };
        let read = |backend: &mut dyn Backend| {
            let mut values = [0.0; 8];
            backend
                .download(to, HostSliceMut::F32(&mut values))
                .map(|()| values[7])
        };
        backend.launch(Stream::Compute, fill(1.0)).unwrap();
        let earlier = backend.record(Stream::Compute);
        backend.begin_capture().unwrap();
        backend.launch(Stream::Compute, fill(2.0)).unwrap();
        let refused = [
            backend.wait(Stream::Communication, earlier),
            backend.upload(Stream::Compute, HostSlice::F32(&[1.0, 2.0]), two),
            backend.launch(Stream::Communication, fill(3.0)),
            backend.synchronize(),
            backend.begin_capture(),
            read(backend).map(|_| ()),
            backend
                .allocate(Category::Workspace, Dtype::F32, 1)
                .map(|_| ()),
        ];
        for refused in refused {
            assert!(
                matches!(refused, Err(BackendError::Unsupported(_))),
                "{name}: {refused:?}"
            );
        }
        let captured = backend.end_capture().unwrap();
        assert_eq!(read(backend).unwrap(), 1.0, "{name}: it has run");
        backend.replay(captured).unwrap();
        assert_eq!(read(backend).unwrap(), 2.0, "{name}");
        backend.launch(Stream::Compute, fill(3.0)).unwrap();
        backend.replay(captured).unwrap();
        assert_eq!(read(backend).unwrap(), 2.0, "{name}: order");
        assert!(backend.end_capture().is_err(), "{name}: nothing was begun");
    }
}

/// Both streams, each of which waits for the other, and kernels of both that are there before and after.
#[test]
fn the_other_stream_is_captured_from_where_it_waits() {
    for [mut backend, _] in pairs() {
        let backend = backend.as_mut();
        let name = backend.name();
        let (to, over) = (floats(backend, 1 << 16), floats(backend, 1 << 16));
        let copy = |from, to| Kernel::Copy {
            from,
            to,
            write: Write::Accumulate,
        };
        let scaled = |to, factor| Kernel::Scale { to, factor };
        let fill = |to, value| Kernel::Fill { to, value };
        backend.launch(Stream::Compute, fill(to, 1.0)).unwrap();
        backend
            .launch(Stream::Communication, fill(over, 1.0))
            .unwrap();
        backend.synchronize().unwrap();
        backend.begin_capture().unwrap();
        backend.launch(Stream::Compute, scaled(to, 2.0)).unwrap();
        let forked = backend.record(Stream::Compute);
        backend.wait(Stream::Communication, forked).unwrap();
        backend
            .launch(Stream::Communication, copy(to, over))
            .unwrap();
        let joined = backend.record(Stream::Communication);
        backend.wait(Stream::Compute, joined).unwrap();
        backend.launch(Stream::Compute, copy(over, to)).unwrap();
        // Nobody waits for this one but the end of what is captured.
        let last = backend.record(Stream::Compute);
        let last = backend.completion(last);
        backend.wait_for(Stream::Communication, &last).unwrap();
        backend
            .launch(Stream::Communication, scaled(over, 0.5))
            .unwrap();
        let captured = backend.end_capture().unwrap();
        let (mut here, mut there) = (1.0_f32, 1.0_f32);
        for _ in 0..5 {
            // Work of either stream in front of a replay, and of either behind it, is in order with all of it.
            backend
                .launch(Stream::Communication, scaled(over, 3.0))
                .unwrap();
            backend.replay(captured).unwrap();
            backend
                .launch(Stream::Communication, copy(to, over))
                .unwrap();
            let end = backend.record(Stream::Communication);
            backend.wait(Stream::Compute, end).unwrap();
            backend.launch(Stream::Compute, scaled(to, 0.25)).unwrap();
            there *= 3.0;
            here *= 2.0;
            there += here;
            here += there;
            there *= 0.5;
            there += here;
            here *= 0.25;
        }
        for (span, expected) in [(to, here), (over, there)] {
            let mut values = vec![0.0; span.len()];
            backend
                .download(span, HostSliceMut::F32(&mut values))
                .unwrap();
            assert!(values.iter().all(|v| *v == expected), "{name}");
        }
    }
}

#[test]
fn scratch_that_was_not_there_before_is_refused_on_a_gpu() {
    let Some(mut backend) = gpu::gpu() else {
        return;
    };
    let (rows, channels) = (1 << 16, 256);
    let sums = Kernel::BiasBackward {
        d_y: floats(backend.as_mut(), rows * channels),
        d_bias: floats(backend.as_mut(), channels),
        rows,
    };
    backend.begin_capture().unwrap();
    let error = backend
        .launch(Stream::Compute, sums)
        .expect_err("its scratch is not there");
    assert!(
        error
            .to_string()
            .contains("a step that is captured asks for")
    );
    assert!(backend.end_capture().is_err(), "the device stays failed");
}

#[test]
fn the_host_is_told_apart_from_its_device() {
    let model = model(Norm::Batch);
    for [usual, captured] in pairs() {
        let name = usual.name();
        for (backend, captures) in [(usual, false), (captured, true)] {
            let mut strategy = single(backend, &model, OPTIMIZER);
            if captures {
                strategy.capture_steps().unwrap();
            }
            let mut told = Told::default();
            let begin = std::time::Instant::now();
            for step in 0..STEPS {
                strategy
                    .step(Batch::new(step, LEN).whole(), &mut told)
                    .unwrap();
            }
            let whole = begin.elapsed().as_nanos() as u64;
            assert_eq!(told.0.len(), STEPS, "{name}: one a step");
            let sum = |of: fn(&Dispatch) -> u64| told.0.iter().map(of).sum::<u64>();
            let (host, device) = (
                sum(|told| told.dispatch_ns + told.upload_ns),
                sum(|told| told.device_ns),
            );
            println!("{name}, captured {captures}: host {host} ns, device {device} ns");
            assert!(host > 0 && host < whole, "{name}: {host} of {whole}");
            assert!(device > 0 && device < whole, "{name}: {device} of {whole}");
            // This backend's device sleeps for tens of microseconds between kernels, which its host does not wait for.
            if name == "deferred" {
                assert!(
                    sum(|told| told.dispatch_ns) < device,
                    "{name}: the host waited"
                );
            }
        }
    }
}

#[test]
fn ranks_tell_of_their_own_devices_and_dp_tells_nothing() {
    let model = model(Norm::Batch);
    let told = ranks(On::Deferred, &model, &[3, 3], None, |rank, ddp| {
        let mut told = Told::default();
        let batch = Batch::new(0, 3);
        ddp.step(batch.whole(), &mut told).unwrap();
        (rank, told.0)
    });
    for (rank, told) in told {
        let [told] = told[..] else {
            panic!("rank {rank}: {told:?}")
        };
        assert_eq!(usize::from(told.device), rank);
        assert!(told.dispatch_ns > 0 && told.device_ns > 0, "{told:?}");
    }
    let mut told = Told::default();
    let mut dp = dp(On::Deferred, &model, LEN, 2, DpLoss::Gathered);
    dp.step(Batch::new(0, LEN).whole(), &mut told).unwrap();
    assert!(told.0.is_empty(), "several threads enqueue there");
}
