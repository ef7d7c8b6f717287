//! A steady-state step of DP, of DDP and of ZeRO-1 allocates nothing, on any thread: neither the controller nor the devices'
//! threads nor those of the communication streams. It leaves out what happens inside matrix products and convolutions,
//! whose packing buffers `no_allocation` bounds.
mod delegate;
mod trials;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use delegate::delegated;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{
    Backend, Category, Completion, Event, HostMemory, HostSlice, HostSliceMut, HostTask, MemoryUse,
    Result, Stream,
};
use syncmark_engine::comm::links::HostLinks;
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::comm::{Communicator, HostCall};
use syncmark_engine::kernel::Kernel;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Silent;
use syncmark_engine::strategy::{
    BucketCaps, Compression, Ddp, DdpOptions, DdpSettings, Dp, DpInputs, DpLoss, DpSettings,
    NodeTimes, PowerSgdSettings, Single, SingleSettings, Strategy, Zero1, Zero1Settings,
};
use syncmark_engine::tensor::{Dtype, Span};
use trials::{Batch, OPTIMIZER, SEED, model};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Products that run on communication streams, where their packing buffers are not told from other allocations.
static PRODUCTS: AtomicUsize = AtomicUsize::new(0);
/// Most packing buffers of a product, by `no_allocation`.
const BUFFERS: usize = 2;

thread_local! {
    static IN_PRODUCT: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call is passed on to the system's allocator; the counters allocate nothing and have no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !IN_PRODUCT.get() {
            ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A CPU device that counts no allocation inside products.
struct Products(CpuBackend);

impl Backend for Products {
    delegated!(0);
    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()> {
        let product = matches!(
            kernel,
            Kernel::Matmul { .. }
                | Kernel::Conv2dForward { .. }
                | Kernel::Conv2dBackwardInput { .. }
                | Kernel::Conv2dBackwardWeight { .. }
        );
        if product && on == Stream::Communication {
            PRODUCTS.fetch_add(1, Ordering::SeqCst);
        }
        IN_PRODUCT.set(product);
        let launched = self.0.launch(on, kernel);
        IN_PRODUCT.set(false);
        launched
    }
    fn host_memory(&self) -> Option<HostMemory> {
        self.0.host_memory()
    }
    fn name(&self) -> &'static str {
        self.0.name()
    }
}

fn products() -> Box<dyn Backend> {
    Box::new(Products(CpuBackend::new(CpuDevice::default()).unwrap()))
}

/// A channel allocates the first time that a thread really parks on it, which is a matter of timing: the least of some
/// rounds counts. What a step itself allocates would show in every one of them.
const ROUNDS: usize = 8;
const STEPS: usize = 20;

/// One test, because the counter is the process's.
#[test]
fn steady_steps_allocate_nothing() {
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert!(
        ALLOCATIONS.load(Ordering::SeqCst) > before,
        "the counter counts"
    );
    for loss in [DpLoss::Gathered, DpLoss::Replica] {
        for output_device in [None, Some(1)] {
            for accumulation in [1, 2] {
                let allocations = data_parallel(loss, output_device, accumulation);
                let what = format!("{loss:?}, {output_device:?}, {accumulation} micro-batches");
                assert_eq!(allocations, 0, "DP, {what}");
            }
        }
    }
    let powersgd = PowerSgdSettings {
        rank: 3,
        start_step: 2,
        min_compression_rate: 1.0,
        ..PowerSgdSettings::default()
    };
    let cold = PowerSgdSettings {
        warm_start: false,
        ..powersgd
    };
    let capped = DdpOptions {
        bucket_caps: BucketCaps::uniform(500),
        ..DdpOptions::default()
    };
    let accumulating = DdpOptions {
        accumulation: 2,
        ..capped
    };
    let after_each = DdpOptions {
        no_sync: false,
        overlap: false,
        ..accumulating
    };
    let compressed = [
        Compression::Fp16,
        Compression::Bf16,
        Compression::PowerSgd(powersgd),
        Compression::PowerSgd(cold),
    ]
    .map(|compression| DdpOptions {
        compression,
        ..capped
    });
    for options in [capped, accumulating, after_each]
        .into_iter()
        .chain(compressed)
    {
        let allocations = distributed(4 * options.accumulation, |device, communicator, rank| {
            let settings = DdpSettings {
                max_batch: 4,
                sample_offset: 4 * rank,
                global_batch: 8,
                seed: SEED,
                optimizer: OPTIMIZER,
                options,
            };
            let model = model(Norm::SyncBatch);
            Box::new(Ddp::new(device, communicator, &model, &settings).unwrap())
        });
        assert_eq!(allocations, 0, "DDP, {options:?}");
    }
    for accumulation in [1, 2] {
        let allocations = distributed(4 * accumulation, |device, communicator, rank| {
            let settings = Zero1Settings {
                max_batch: 4,
                sample_offset: 4 * rank,
                global_batch: 8,
                accumulation,
                seed: SEED,
                optimizer: OPTIMIZER,
                bucket_caps: BucketCaps::uniform(500),
                broadcast_buffers: true,
            };
            let model = model(Norm::SyncBatch);
            Box::new(Zero1::new(device, communicator, &model, &settings).unwrap())
        });
        assert_eq!(allocations, 0, "ZeRO-1, {accumulation} micro-batches");
    }
    assert_eq!(by_node(), 0, "node by node");
}

fn by_node() -> usize {
    let model = model(Norm::Batch);
    let settings = SingleSettings {
        max_batch: 8,
        accumulation: 1,
        chunks: Vec::new(),
        seed: SEED,
        optimizer: OPTIMIZER,
    };
    let mut single = Single::new(products(), &model, &settings).unwrap();
    let mut times = NodeTimes::new(model.nodes.len());
    let batch = Batch::new(0, 8);
    let round = |_| {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        for _ in 0..STEPS {
            let replica = single.master();
            replica
                .step_by_node(batch.whole(), &mut times, &mut Silent)
                .unwrap();
        }
        ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    (0..ROUNDS).map(round).min().unwrap()
}

fn data_parallel(loss: DpLoss, output_device: Option<usize>, accumulation: usize) -> usize {
    let backends: Vec<_> = (0..3).map(|_| products()).collect();
    let links = Arc::new(HostLinks::new(backends.iter().map(|backend| &**backend)).unwrap());
    let settings = DpSettings {
        max_batch: 8,
        accumulation,
        seed: SEED,
        optimizer: OPTIMIZER,
        loss,
        inputs: DpInputs::Master,
        device_ids: Vec::new(),
        output_device,
        cores: Vec::new(),
    };
    let mut dp = Dp::new(backends, links, &model(Norm::Batch), &settings).unwrap();
    let batch = Batch::new(0, 8 * accumulation);
    let round = |_| {
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        (0..STEPS).for_each(|_| dp.step(batch.whole(), &mut Silent).unwrap());
        ALLOCATIONS.load(Ordering::SeqCst) - before
    };
    (0..ROUNDS).map(round).min().unwrap()
}

fn distributed(
    own: usize,
    build: impl Fn(Box<dyn Backend>, Box<dyn Communicator>, usize) -> Box<dyn Strategy> + Sync,
) -> usize {
    let communicators = SharedCommunicator::for_threads(2, Waiting::default()).unwrap();
    let here = Barrier::new(2);
    std::thread::scope(|scope| {
        let start = |(rank, communicator): (usize, SharedCommunicator)| {
            let (build, here) = (&build, &here);
            scope.spawn(move || {
                let mut strategy = build(products(), Box::new(communicator), rank);
                let batch = Batch::new(0, 2 * own);
                let part = batch.whole().part(own * rank..own * (rank + 1));
                let round = |_| {
                    here.wait();
                    let before = ALLOCATIONS.load(Ordering::SeqCst);
                    let products = PRODUCTS.load(Ordering::SeqCst);
                    here.wait();
                    (0..STEPS).for_each(|_| strategy.step(part, &mut Silent).unwrap());
                    strategy.finish().unwrap();
                    here.wait();
                    let products = PRODUCTS.load(Ordering::SeqCst) - products;
                    let allocations = ALLOCATIONS.load(Ordering::SeqCst) - before;
                    here.wait();
                    allocations.saturating_sub(BUFFERS * products)
                };
                (0..ROUNDS).map(round).min().unwrap()
            })
        };
        let ranks: Vec<_> = communicators.into_iter().enumerate().map(start).collect();
        ranks
            .into_iter()
            .map(|rank| rank.join().unwrap())
            .max()
            .unwrap()
    })
}
