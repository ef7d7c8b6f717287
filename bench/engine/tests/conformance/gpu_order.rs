//! Order on a GPU: streams, events, completions between devices, times, memory; and that results repeat.
use syncmark_engine::backend::{Backend, BackendError, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::kernel::{Kernel, Write};
use syncmark_engine::probe::now_ns;
use syncmark_engine::tensor::{Dtype, Span};

use crate::gpu::gpu;

/// Elements of work that takes the GPU long enough for a missing wait to be seen.
const LONG: usize = 32 << 20;

fn floats(backend: &mut dyn Backend, len: usize) -> Span {
    backend
        .allocate(Category::Workspace, Dtype::F32, len)
        .unwrap()
}

fn fill(backend: &mut dyn Backend, on: Stream, to: Span, value: f32) {
    backend.launch(on, Kernel::Fill { to, value }).unwrap();
}

fn copy(backend: &mut dyn Backend, on: Stream, from: Span, to: Span) {
    let write = Write::Overwrite;
    backend
        .launch(on, Kernel::Copy { from, to, write })
        .unwrap();
}

fn read(backend: &mut dyn Backend, span: Span) -> Vec<f32> {
    let mut values = vec![0.0; span.len()];
    backend
        .download(span, HostSliceMut::F32(&mut values))
        .unwrap();
    values
}

#[test]
fn memory_starts_as_zeros_and_is_counted() {
    let Some(mut backend) = gpu() else { return };
    let before = backend.memory_use()[Category::Gradients as usize];
    let span = backend
        .allocate(Category::Gradients, Dtype::F32, 1000)
        .unwrap();
    assert_eq!(read(backend.as_mut(), span), vec![0.0; 1000]);
    assert_eq!(
        backend.memory_use()[Category::Gradients as usize],
        before + 4000
    );
}

#[test]
fn streams_wait_for_each_other() {
    let Some(mut backend) = gpu() else { return };
    let backend = backend.as_mut();
    let (a, b, c) = (
        floats(backend, LONG),
        floats(backend, LONG),
        floats(backend, LONG),
    );
    for round in 0..10 {
        let value = round as f32 + 1.0;
        for _ in 0..4 {
            fill(backend, Stream::Compute, a, 0.5);
        }
        fill(backend, Stream::Compute, a, value);
        let filled = backend.record(Stream::Compute);
        backend.wait(Stream::Communication, filled).unwrap();
        copy(backend, Stream::Communication, a, b);
        let copied = backend.record(Stream::Communication);
        backend.wait(Stream::Compute, copied).unwrap();
        copy(backend, Stream::Compute, b, c);
        let done = backend.record(Stream::Compute);
        backend.wait(Stream::Communication, done).unwrap();
        fill(backend, Stream::Communication, b, -1.0);
        let ends = [c.first(3), c.slice(LONG - 3..LONG)];
        for end in ends {
            assert_eq!(read(backend, end), [value; 3], "round {round}");
        }
    }
}

#[test]
fn a_device_waits_for_another_on_the_same_gpu() {
    let (Some(mut first), Some(mut second)) = (gpu(), gpu()) else {
        return;
    };
    let from = floats(first.as_mut(), LONG);
    for round in 0..5 {
        for value in [0.5, round as f32] {
            fill(first.as_mut(), Stream::Compute, from, value);
        }
        let event = first.record(Stream::Compute);
        let completion = first.completion(event);
        second.wait_for(Stream::Compute, &completion).unwrap();
        let after = second.record(Stream::Compute);
        let reached = second.completion(after);
        reached.wait().unwrap();
        assert!(completion.is_done() && reached.is_done(), "round {round}");
    }
}

#[test]
fn times_are_those_of_the_host_and_come_after_a_synchronize() {
    let Some(mut backend) = gpu() else { return };
    let backend = backend.as_mut();
    let span = floats(backend, LONG);
    fill(backend, Stream::Compute, span, 1.0);
    backend.synchronize().unwrap();
    for round in 0..4 {
        // Past the age at which the clock is set again.
        std::thread::sleep(std::time::Duration::from_millis(120));
        let before = now_ns();
        let first = backend.record(Stream::Compute);
        for _ in 0..50 {
            fill(backend, Stream::Compute, span, 2.0);
        }
        let last = backend.record(Stream::Compute);
        let early = backend.time_ns(last).unwrap_err();
        assert!(matches!(early, BackendError::Unsupported(_)), "{early}");
        backend.synchronize().unwrap();
        let after = now_ns();
        let (begin, end) = (
            backend.time_ns(first).unwrap(),
            backend.time_ns(last).unwrap(),
        );
        // The host looks at its clock within 15 microseconds of the event that sets the GPU's, unless it is busy.
        let slack = 100_000;
        assert!(
            before < begin + slack && begin < end && end < after + slack,
            "round {round}: {before} {begin} {end} {after}"
        );
        // 50 times 128 MiB: no GPU writes that in less than 0.2 ms.
        assert!(end - begin > 200_000, "{}", end - begin);
        assert_eq!(backend.begin_ns(last).unwrap(), end);
    }
    let old = backend.record(Stream::Compute);
    for _ in 0..4096 {
        backend.record(Stream::Compute);
    }
    backend.synchronize().unwrap();
    assert!(backend.time_ns(old).is_err());
}

#[test]
fn what_was_uploaded_may_change_at_once() {
    let Some(mut backend) = gpu() else { return };
    let backend = backend.as_mut();
    let busy = floats(backend, LONG);
    let spans: Vec<Span> = (0..600).map(|_| floats(backend, 3)).collect();
    let large: Vec<Span> = (0..9).map(|_| floats(backend, 100_000)).collect();
    fill(backend, Stream::Compute, busy, 1.0);
    let mut host = vec![0.0f32; 100_000];
    for (i, span) in spans.iter().enumerate() {
        host[..3].fill(i as f32);
        backend
            .upload(Stream::Compute, HostSlice::F32(&host[..3]), *span)
            .unwrap();
    }
    for (i, span) in large.iter().enumerate() {
        host.fill(i as f32 + 0.5);
        backend
            .upload(Stream::Compute, HostSlice::F32(&host), *span)
            .unwrap();
    }
    host.fill(-1.0);
    for (i, span) in spans.iter().enumerate() {
        assert_eq!(read(backend, *span), [i as f32; 3]);
    }
    for (i, span) in large.iter().enumerate() {
        assert_eq!(read(backend, *span), vec![i as f32 + 0.5; 100_000]);
    }
}

#[test]
fn too_much_memory_is_an_error_after_which_the_device_goes_on() {
    let Some(mut backend) = gpu() else { return };
    let error = backend
        .allocate(Category::Activations, Dtype::F32, 1 << 46)
        .unwrap_err();
    assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
    let span = floats(backend.as_mut(), 4);
    fill(backend.as_mut(), Stream::Compute, span, 3.0);
    assert_eq!(read(backend.as_mut(), span), [3.0; 4]);
}

#[test]
fn results_repeat_to_the_bit() {
    let (Some(mut first), Some(mut second)) = (gpu(), gpu()) else {
        return;
    };
    let (rows, channels) = (100_000, 64);
    let values: Vec<f32> = (0..rows * channels)
        .map(|i| ((i * 7919) % 10_007) as f32 * 1e-3)
        .collect();
    let statistics = |backend: &mut dyn Backend| {
        let (x, mean, variance) = (
            floats(backend, rows * channels),
            floats(backend, channels),
            floats(backend, channels),
        );
        backend
            .upload(Stream::Compute, HostSlice::F32(&values), x)
            .unwrap();
        backend
            .launch(
                Stream::Compute,
                Kernel::BatchStatistics {
                    x,
                    mean,
                    variance,
                    rows,
                },
            )
            .unwrap();
        [read(backend, mean), read(backend, variance)]
    };
    let expected = statistics(first.as_mut());
    for _ in 0..5 {
        assert_eq!(statistics(first.as_mut()), expected);
        assert_eq!(statistics(second.as_mut()), expected);
    }
}
