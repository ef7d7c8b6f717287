//! A kernel that has run once allocates nothing when it runs again, on the thread that runs it.
//!
//! The exception is named: matrix products, and convolutions through them, are the `gemm` crate's, which allocates its
//! packing buffers in each call and frees them before it returns. For them the test bounds the number of allocations and
//! checks that all is given back.
mod kernels;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kernels::{
    BATCH, CHANNELS, Spans, batch_norm, elementwise_and_pooling, group_norm, loss_and_optimizer,
    products, rms_norm,
};
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{Backend, Category, HostSlice, Stream};
use syncmark_engine::kernel::{Affine, Kernel};
use syncmark_engine::tensor::Dtype;

struct Counting;

thread_local! {
    /// Allocations of this thread, and bytes that it holds.
    static COUNTS: Cell<(usize, isize)> = const { Cell::new((0, 0)) };
}

fn count(calls: usize, bytes: isize) {
    // The thread may be past its locals' end; nobody asks any more then.
    let _ = COUNTS.try_with(|counts| {
        let (n, held) = counts.get();
        counts.set((n + calls, held + bytes));
    });
}

// SAFETY: everything is handed to the system's allocator; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(0, -(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations and bytes kept by `work`.
fn allocations_of(work: impl FnOnce()) -> (usize, isize) {
    let before = COUNTS.get();
    work();
    let after = COUNTS.get();
    (after.0 - before.0, after.1 - before.1)
}

/// A device of one thread, and one whose kernels are all cut into parts.
fn devices() -> [CpuBackend; 2] {
    [1, 2].map(|threads| {
        let device = CpuDevice {
            threads,
            smallest_part: Some(1),
            ..CpuDevice::default()
        };
        CpuBackend::new(device).unwrap()
    })
}

#[test]
fn the_second_launch_of_a_kernel_allocates_nothing() {
    devices().into_iter().for_each(second_launches);
}

fn second_launches(backend: CpuBackend) {
    let mut spans = Spans { backend };
    let mut kernels = elementwise_and_pooling(&mut spans);
    kernels.extend(batch_norm(&mut spans));
    for affine in [Affine::None, Affine::Channel, Affine::Element] {
        for groups in [1, 4, CHANNELS] {
            kernels.extend(group_norm(&mut spans, affine, groups));
        }
        kernels.extend(rms_norm(&mut spans, affine));
    }
    kernels.extend(loss_and_optimizer(&mut spans));
    for kernel in kernels {
        spans.backend.launch(Stream::Compute, kernel).unwrap();
        let found = allocations_of(|| spans.backend.launch(Stream::Compute, kernel).unwrap());
        assert_eq!(found, (0, 0), "allocations and bytes kept by {kernel:?}");
    }
}

#[test]
fn products_give_back_what_they_allocate() {
    let mut spans = Spans {
        backend: CpuBackend::new(CpuDevice::default()).unwrap(),
    };
    for kernel in products(&mut spans) {
        spans.backend.launch(Stream::Compute, kernel).unwrap();
        let (calls, kept) =
            allocations_of(|| spans.backend.launch(Stream::Compute, kernel).unwrap());
        println!("{calls} allocations in {kernel:?}");
        // Two a product (packing buffer, list of packed blocks), and a product for each group of samples.
        assert!(calls <= 2 * BATCH, "{calls} allocations in {kernel:?}");
        assert_eq!(kept, 0, "bytes kept by {kernel:?}");
    }
}

#[test]
fn uploads_events_and_waits_allocate_nothing() {
    let mut backend = CpuBackend::new(CpuDevice::default()).unwrap();
    let span = backend
        .allocate(Category::Workspace, Dtype::F32, 8)
        .unwrap();
    let step = |backend: &mut CpuBackend| {
        backend
            .upload(Stream::Compute, HostSlice::F32(&[1.0; 8]), span)
            .unwrap();
        let filled = backend.record(Stream::Compute);
        backend.wait(Stream::Communication, filled).unwrap();
        backend
            .launch(
                Stream::Communication,
                Kernel::Scale {
                    to: span,
                    factor: 2.0,
                },
            )
            .unwrap();
        let scaled = backend.record(Stream::Communication);
        let completion = backend.completion(scaled);
        backend.wait_for(Stream::Compute, &completion).unwrap();
        backend.synchronize().unwrap();
    };
    step(&mut backend);
    assert_eq!(
        allocations_of(|| (0..100).for_each(|_| step(&mut backend))),
        (0, 0)
    );
}
