//! A steady-state training step allocates nothing on the host.
//!
//! The count is of the calling thread, which on the CPU backend is the compute stream. It leaves out what happens inside
//! matrix products and convolutions: the `gemm` crate allocates its packing buffers in each call, which
//! `no_allocation` bounds.
mod delegate;
mod devices;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use delegate::delegated;
use devices::Device;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{
    Backend, Category, Completion, Event, HostMemory, HostSlice, HostSliceMut, HostTask, MemoryUse,
    Result, Stream,
};
use syncmark_engine::comm::HostCall;
use syncmark_engine::data::{Loader, Random, Synthetic};
use syncmark_engine::kernel::Kernel;
use syncmark_engine::layer::Mode;
use syncmark_engine::loss::Loss;
use syncmark_engine::model::spec::{LayerSpec, ModelSpec, Norm};
use syncmark_engine::model::{NormOptions, resolve};
use syncmark_engine::optim::{AdamwSettings, Optimizer, OptimizerSettings, SgdSettings};
use syncmark_engine::program::Program;
use syncmark_engine::shape::Shape;
use syncmark_engine::tensor::{Dtype, Span};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator; the counter allocates nothing and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
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

const NET: &str = r#"[{"conv2d":{"channels":8,"kernel":3,"padding":1}},"norm","relu",
    {"residual":{"body":[{"conv2d":{"channels":8,"kernel":3,"padding":1}},"norm"]}},{"dropout":{"p":0.1}},
    {"max-pool":{"kernel":2}},{"conv2d":{"channels":16,"kernel":1}},"norm","relu","global-average-pool",
    {"linear":{"features":"classes"}}]"#;
const BATCH: usize = 6;

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
        let before = ALLOCATIONS.get();
        let launched = self.0.launch(on, kernel);
        if product {
            ALLOCATIONS.set(before);
        }
        launched
    }
    fn host_memory(&self) -> Option<HostMemory> {
        self.0.host_memory()
    }
    fn name(&self) -> &'static str {
        self.0.name()
    }
}

struct Training {
    device: Device,
    loader: Loader,
    loss: Loss,
    optimizer: Optimizer,
    step: i32,
}

impl Training {
    fn new(norm: Norm, settings: OptimizerSettings) -> Self {
        let layers: Vec<LayerSpec> = serde_json::from_str(NET).expect("layers");
        let spec = ModelSpec {
            name: "test".into(),
            input: vec![3, 8, 8],
            classes: 10,
            layers,
        };
        let model =
            resolve(&spec, &spec.input, 10, norm, &NormOptions::default()).expect("a model");
        let cpu = CpuBackend::new(CpuDevice::default()).expect("a thread");
        let mut device = Device::new(Box::new(Products(cpu)), |b| {
            Program::build(b, &model, BATCH, 2, 1, 0).expect("enough memory")
        });
        let backend = device.backend.as_mut();
        let loss = Loss::new(backend, 10, 1, BATCH).expect("enough memory");
        let optimizer = Optimizer::new(backend, &device.program, settings).expect("enough memory");
        // Two batches an epoch, so that the counted steps begin a new one.
        let data = Synthetic {
            len: 2 * BATCH,
            shape: Shape::Image { c: 3, h: 8, w: 8 },
            classes: 10,
            seed: 0,
        };
        let random = Box::new(Random {
            len: 2 * BATCH,
            seed: 0,
        });
        let loader = Loader::new(Arc::new(data), random, BATCH, true).expect("two batches");
        Self {
            device,
            loader,
            loss,
            optimizer,
            step: 0,
        }
    }

    fn step(&mut self) {
        let Self {
            device,
            loader,
            loss,
            optimizer,
            step,
        } = self;
        let batch = loader.next_batch();
        let input = device.program.input();
        device
            .backend
            .upload(Stream::Compute, HostSlice::F32(batch.inputs), input)
            .expect("upload");
        loss.upload_labels(device.backend.as_mut(), batch.labels)
            .expect("upload");
        device
            .state
            .set_counters(device.backend.as_mut(), *step, 0)
            .expect("upload");
        device.forward(Mode::Train, &[4, 2]);
        let (output, d_output) = (device.program.output(), device.program.d_output());
        loss.compute(
            device.backend.as_mut(),
            output,
            d_output,
            BATCH,
            1.0 / BATCH as f32,
        )
        .expect("loss");
        device.backward(Mode::Train, &[4, 2]);
        optimizer
            .step(device.backend.as_mut(), device.state)
            .expect("step");
        let to = device.program.gradients();
        let zero = Kernel::Fill { to, value: 0.0 };
        device.backend.launch(Stream::Compute, zero).expect("zero");
        device.backend.synchronize().expect("synchronize");
        *step += 1;
    }
}

#[test]
fn a_step_allocates_nothing_after_the_first_ones() {
    let sgd = OptimizerSettings::sgd(SgdSettings {
        learning_rate: 0.1,
        momentum: 0.9,
        weight_decay: 1e-4,
        nesterov: true,
    });
    let adamw = OptimizerSettings::adamw(AdamwSettings::default());
    for (norm, optimizer) in [
        (Norm::Batch, sgd),
        (Norm::SyncBatch, sgd),
        (Norm::Group, adamw),
        (Norm::Layer, sgd),
        (Norm::None, adamw),
    ] {
        let before = ALLOCATIONS.get();
        let mut training = Training::new(norm, optimizer);
        assert!(ALLOCATIONS.get() > before, "the counter counts");
        (0..3).for_each(|_| training.step());
        for counted in 0..3 {
            let before = ALLOCATIONS.get();
            training.step();
            assert_eq!(
                ALLOCATIONS.get() - before,
                0,
                "{norm:?}, step {counted} after three"
            );
        }
    }
}
