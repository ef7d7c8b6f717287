//! Order: streams, events, completions between devices, failures, times, memory.
use std::sync::Arc;
use std::time::Duration;

use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::deferred::DeferredBackend;
use syncmark_engine::backend::{
    Backend, BackendError, Category, HostMemory, HostSlice, HostTask, Stream,
};
use syncmark_engine::comm::HostCall;
use syncmark_engine::kernel::{Kernel, Write};
use syncmark_engine::probe::{Phase, now_ns};
use syncmark_engine::tensor::{Dtype, Span};

use crate::device::on_every_host_backend;

/// to = 2·from + 1 after a pause: late enough that a missing wait is seen.
struct Twice {
    source: HostMemory,
    pause: Duration,
}

impl HostTask for Twice {
    fn run(&self, memory: &HostMemory, call: HostCall) -> Result<(), String> {
        let HostCall::Link { from, to, .. } = call else {
            return Err("not a link".into());
        };
        std::thread::sleep(self.pause);
        // SAFETY: the test orders this task against whatever else touches the spans.
        let (from, to) = unsafe { (self.source.read::<f32>(from), memory.write::<f32>(to)) };
        to.iter_mut()
            .zip(from)
            .for_each(|(to, from)| *to = 2.0 * from + 1.0);
        Ok(())
    }
}

/// Fails, or panics.
struct Broken {
    panic: bool,
}

impl HostTask for Broken {
    fn run(&self, _: &HostMemory, _: HostCall) -> Result<(), String> {
        assert!(!self.panic, "rank {} broke", 3);
        Err("rank 1 is gone".into())
    }
}

fn link(from: Span, to: Span) -> HostCall {
    HostCall::Link {
        source: 0,
        from,
        destination: 0,
        to,
        phase: Phase::Replicate,
    }
}

fn task(backend: &dyn Backend, milliseconds: u64) -> Arc<dyn HostTask> {
    let source = backend
        .host_memory()
        .expect("these backends live in host memory");
    Arc::new(Twice {
        source,
        pause: Duration::from_millis(milliseconds),
    })
}

fn pairs(test: impl Fn(Box<dyn Backend>, Box<dyn Backend>)) {
    let cpu = |spin| -> Box<dyn Backend> {
        Box::new(
            CpuBackend::new(CpuDevice {
                spin,
                ..CpuDevice::default()
            })
            .unwrap(),
        )
    };
    let deferred = |seed| -> Box<dyn Backend> { Box::new(DeferredBackend::new(seed).unwrap()) };
    test(cpu(false), cpu(true));
    test(cpu(false), deferred(1));
    test(deferred(2), cpu(true));
    test(deferred(3), deferred(4));
}

#[test]
fn compute_and_communication_wait_for_each_other() {
    on_every_host_backend(|device| {
        for round in 0..20 {
            let (a, b, c) = (device.zeros(100), device.zeros(100), device.zeros(100));
            let backend = device.backend.as_mut();
            let twice = task(backend, round % 2);
            backend
                .launch(Stream::Compute, Kernel::Fill { to: a, value: 3.0 })
                .unwrap();
            let filled = backend.record(Stream::Compute);
            let after = backend.completion(filled);
            let done = backend
                .enqueue_host(Stream::Communication, &after, &twice, link(a, b))
                .unwrap();
            backend.wait(Stream::Compute, done).unwrap();
            backend
                .launch(
                    Stream::Compute,
                    Kernel::Copy {
                        from: b,
                        to: c,
                        write: Write::Overwrite,
                    },
                )
                .unwrap();
            let copied = backend.record(Stream::Compute);
            // Overwriting b is safe only after the copy; the communication stream is told so.
            backend.wait(Stream::Communication, copied).unwrap();
            backend
                .launch(Stream::Communication, Kernel::Fill { to: b, value: -1.0 })
                .unwrap();
            assert_eq!(device.read(c), [7.0; 100]);
            assert_eq!(
                device.read(b),
                [-1.0; 100],
                "a download waits for both streams"
            );
        }
    });
}

#[test]
fn devices_wait_for_each_other() {
    pairs(|mut first, mut second| {
        let [a, b, c] =
            [(); 3].map(|()| first.allocate(Category::Workspace, Dtype::F32, 50).unwrap());
        let [x, y] = [(); 2].map(|()| {
            second
                .allocate(Category::Workspace, Dtype::F32, 50)
                .unwrap()
        });
        let there = task(first.as_ref(), 2);
        let back = task(second.as_ref(), 2);
        first
            .upload(Stream::Compute, HostSlice::F32(&[5.0; 50]), a)
            .unwrap();
        let uploaded = first.record(Stream::Compute);
        let uploaded = first.completion(uploaded);
        let arrived = second
            .enqueue_host(Stream::Communication, &uploaded, &there, link(a, x))
            .unwrap();
        second.wait(Stream::Compute, arrived).unwrap();
        second
            .launch(
                Stream::Compute,
                Kernel::Copy {
                    from: x,
                    to: y,
                    write: Write::Overwrite,
                },
            )
            .unwrap();
        let computed = second.record(Stream::Compute);
        let computed = second.completion(computed);
        let returned = first
            .enqueue_host(Stream::Communication, &computed, &back, link(y, b))
            .unwrap();
        first.wait(Stream::Compute, returned).unwrap();
        first
            .launch(
                Stream::Compute,
                Kernel::Copy {
                    from: b,
                    to: c,
                    write: Write::Overwrite,
                },
            )
            .unwrap();
        let mut found = [0.0; 50];
        first
            .download(c, syncmark_engine::backend::HostSliceMut::F32(&mut found))
            .unwrap();
        assert_eq!(found, [23.0; 50]);
        let arrived = second.completion(arrived);
        assert!(arrived.is_done());
        first.wait_for(Stream::Compute, &arrived).unwrap();
        first.wait_for(Stream::Communication, &arrived).unwrap();
        first.synchronize().unwrap();
    });
}

#[test]
fn host_work_also_runs_on_the_compute_stream() {
    on_every_host_backend(|device| {
        let (a, b) = (device.given(&[4.0]).span, device.zeros(1));
        let backend = device.backend.as_mut();
        let twice = task(backend, 3);
        let start = backend.record(Stream::Communication);
        let start = backend.completion(start);
        let end = backend
            .enqueue_host(Stream::Compute, &start, &twice, link(a, b))
            .unwrap();
        backend.synchronize().unwrap();
        let spent = backend.time_ns(end).unwrap() - backend.begin_ns(end).unwrap();
        assert!(
            spent >= 3_000_000,
            "{spent} ns for a task that sleeps for 3 ms"
        );
        assert_eq!(device.read(b), [9.0]);
    });
}

#[test]
fn failures_stick_and_reach_whoever_waits() {
    for panic in [false, true] {
        pairs(|mut failing, mut waiting| {
            let reason = if panic {
                "a device thread panicked: rank 3 broke"
            } else {
                "rank 1 is gone"
            };
            let expect = |result: Result<(), BackendError>| {
                assert_eq!(result.unwrap_err().to_string(), reason);
            };
            let span = failing
                .allocate(Category::Workspace, Dtype::F32, 1)
                .unwrap();
            let good = failing.record(Stream::Communication);
            let good = failing.completion(good);
            let broken: Arc<dyn HostTask> = Arc::new(Broken { panic });
            let bad = failing
                .enqueue_host(Stream::Communication, &good, &broken, link(span, span))
                .unwrap();
            let completion = failing.completion(bad);
            expect(completion.wait());
            assert!(
                good.wait().is_ok(),
                "what came before the failure succeeded"
            );
            expect(failing.synchronize());
            expect(failing.synchronize());
            expect(failing.launch(
                Stream::Communication,
                Kernel::Fill {
                    to: span,
                    value: 1.0,
                },
            ));
            expect(failing.download(
                span,
                syncmark_engine::backend::HostSliceMut::F32(&mut [0.0]),
            ));
            // A backend that runs at once tells of the failure here, one with a queue when it gets there.
            let waited = waiting.wait_for(Stream::Compute, &completion);
            expect(waited.and_then(|()| waiting.synchronize()));
            expect(waiting.synchronize());
            // Events behind a failure are still reached: nobody waits for ever.
            let later = failing.record(Stream::Communication);
            expect(failing.completion(later).wait());
        });
    }
}

#[test]
fn events_have_times_after_synchronize() {
    on_every_host_backend(|device| {
        let (a, b) = (device.given(&[1.0]).span, device.zeros(1));
        let backend = device.backend.as_mut();
        let before = now_ns();
        let first = backend.record(Stream::Compute);
        let after = backend.completion(first);
        let twice = task(backend, 5);
        let end = backend
            .enqueue_host(Stream::Communication, &after, &twice, link(a, b))
            .unwrap();
        assert!(
            matches!(backend.time_ns(end), Err(BackendError::Unsupported(_))),
            "asked too early"
        );
        let next = backend.record(Stream::Communication);
        assert_eq!(next.sequence, end.sequence + 1);
        backend.synchronize().unwrap();
        let times = [first, end, next].map(|event| backend.time_ns(event).unwrap());
        let begin = backend.begin_ns(end).unwrap();
        assert!(
            before <= times[0] && times[0] <= begin && times[1] <= times[2] && times[2] <= now_ns()
        );
        assert!(times[1] - begin >= 5_000_000);
        for _ in 0..4096 {
            backend.record(Stream::Compute);
        }
        backend.synchronize().unwrap();
        assert!(
            matches!(backend.time_ns(first), Err(BackendError::Unsupported(_))),
            "asked too late"
        );
    });
}

#[test]
fn times_wait_for_synchronize_where_work_is_queued() {
    let mut backend = DeferredBackend::new(1).unwrap();
    let event = backend.record(Stream::Compute);
    backend.completion(event).wait().unwrap();
    assert!(
        matches!(backend.time_ns(event), Err(BackendError::Unsupported(_))),
        "reached, but not synchronized"
    );
    backend.synchronize().unwrap();
    assert!(backend.time_ns(event).is_ok());
}

#[test]
fn uploads_keep_their_data() {
    on_every_host_backend(|device| {
        let spans: Vec<Span> = (0..50).map(|_| device.zeros(10)).collect();
        let mut data = [0.0; 10];
        for (i, &span) in spans.iter().enumerate() {
            data.fill(i as f32);
            let on = if i % 2 == 0 {
                Stream::Compute
            } else {
                Stream::Communication
            };
            device
                .backend
                .upload(on, HostSlice::F32(&data), span)
                .unwrap();
        }
        for (i, &span) in spans.iter().enumerate() {
            assert_eq!(device.read(span), [i as f32; 10]);
        }
    });
}

#[test]
fn memory_is_zeroed_and_counted() {
    on_every_host_backend(|device| {
        let backend = device.backend.as_mut();
        let a = backend
            .allocate(Category::Parameters, Dtype::F32, 3)
            .unwrap();
        backend.allocate(Category::Buffers, Dtype::I64, 2).unwrap();
        backend
            .allocate(Category::Parameters, Dtype::I32, 5)
            .unwrap();
        assert_eq!(backend.memory_use(), [32, 0, 0, 0, 16, 0]);
        let huge = backend.allocate(Category::Activations, Dtype::F32, usize::MAX / 8);
        assert!(matches!(
            huge,
            Err(BackendError::OutOfMemory {
                category: Category::Activations,
                held: 48,
                ..
            })
        ));
        assert_eq!(device.read(a), [0.0; 3]);
    });
}

#[test]
fn a_limit_runs_out() {
    let device = CpuDevice {
        memory_limit: Some(100),
        ..CpuDevice::default()
    };
    let mut backend = CpuBackend::new(device).unwrap();
    backend
        .allocate(Category::Gradients, Dtype::F32, 20)
        .unwrap();
    let error = backend
        .allocate(Category::Optimizer, Dtype::F32, 6)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "out of memory: 24 bytes for Optimizer on top of 80 bytes"
    );
    backend
        .allocate(Category::Optimizer, Dtype::F32, 5)
        .unwrap();
}

#[test]
fn cores_that_do_not_exist_are_named() {
    let start = |core| {
        CpuBackend::new(CpuDevice {
            cores: vec![core],
            ..CpuDevice::default()
        })
        .err()
        .unwrap()
    };
    assert_eq!(
        start(100_000).to_string(),
        "device thread: core 100000 does not exist"
    );
    assert!(start(1000).to_string().contains("[1000]"));
}

#[test]
fn results_repeat_bit_by_bit() {
    on_every_host_backend(|device| {
        let (x, w) = (device.random(37 * 211), device.random(211 * 45));
        let y = [device.zeros(37 * 45), device.zeros(37 * 45)];
        let sums = [device.zeros(211), device.zeros(211)];
        for round in 0..2 {
            let (a, b, c, write) = (x.span, w.span, y[round], Write::Overwrite);
            let (transpose_a, transpose_b) = (false, false);
            device.launch(Kernel::Matmul {
                a,
                b,
                c,
                m: 37,
                n: 45,
                k: 211,
                transpose_a,
                transpose_b,
                write,
            });
            device.launch(Kernel::BiasBackward {
                d_y: a,
                d_bias: sums[round],
                rows: 37,
            });
        }
        assert_eq!(device.read(y[0]), device.read(y[1]));
        assert_eq!(device.read(sums[0]), device.read(sums[1]));
    });
}

/// Whoever waits for the event may let go of the last other handle and end the process: what the task does when it is dropped
/// (a communicator's good-bye) must not be left to the stream's thread.
#[test]
fn a_task_is_let_go_before_its_event() {
    on_every_host_backend(|device| {
        let backend = &mut *device.backend;
        let (from, to) = (
            backend
                .allocate(Category::Workspace, Dtype::F32, 1)
                .unwrap(),
            backend
                .allocate(Category::Workspace, Dtype::F32, 1)
                .unwrap(),
        );
        let task = task(backend, 0);
        for _ in 0..2000 {
            let start = backend.record(Stream::Compute);
            let start = backend.completion(start);
            let end = backend
                .enqueue_host(Stream::Communication, &start, &task, link(from, to))
                .unwrap();
            backend.completion(end).wait().unwrap();
            assert_eq!(
                Arc::strong_count(&task),
                1,
                "the stream still holds the task"
            );
        }
    });
}
