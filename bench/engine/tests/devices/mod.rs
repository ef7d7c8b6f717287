//! What the engine's tests share: every backend they run on, and running a program on one of them.
#![allow(dead_code, reason = "each test binary uses its part")]
#[path = "../gpu/mod.rs"]
mod gpu;

use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::deferred::DeferredBackend;
use syncmark_engine::backend::{Backend, HostSlice, HostSliceMut, Stream};
use syncmark_engine::layer::{Mode, State, Step};
use syncmark_engine::layout::Layout;
use syncmark_engine::program::Program;
use syncmark_engine::shape::Shape;
use syncmark_engine::tensor::Span;

/// A device whose compute stream runs at once.
pub fn cpu() -> Box<dyn Backend> {
    Box::new(CpuBackend::new(CpuDevice::default()).expect("a progress thread starts"))
}

/// A device whose every operation runs late.
pub fn deferred() -> Box<dyn Backend> {
    Box::new(DeferredBackend::new(17).expect("both streams' threads start"))
}

/// A device that cuts every kernel into parts for its threads, however small it is.
pub fn in_parts(threads: usize) -> Box<dyn Backend> {
    let device = CpuDevice {
        threads,
        smallest_part: Some(1),
        ..CpuDevice::default()
    };
    Box::new(CpuBackend::new(device).expect("its threads start"))
}

/// Devices that add in the order in which a single thread does: what they give differs from PyTorch by the same roundings.
pub fn whole() -> Vec<Box<dyn Backend>> {
    vec![cpu(), deferred()]
}

/// Devices that train as PyTorch does: [`whole`], and a GPU where there is one, in f32.
pub fn training() -> Vec<Box<dyn Backend>> {
    whole().into_iter().chain(gpu::gpu()).collect()
}

/// One device of each kind, a GPU included where there is one.
pub fn all() -> Vec<Box<dyn Backend>> {
    let hosts = [cpu(), deferred(), in_parts(2)];
    hosts.into_iter().chain(gpu::gpu()).collect()
}

/// A program, its device, and the device's step state.
pub struct Device {
    pub backend: Box<dyn Backend>,
    pub program: Program,
    pub state: State,
    /// Whether backward may write over gradients.
    pub fresh: bool,
}

impl Device {
    pub fn new(
        mut backend: Box<dyn Backend>,
        build: impl FnOnce(&mut dyn Backend) -> Program,
    ) -> Self {
        let program = build(backend.as_mut());
        let state = State::allocate(backend.as_mut()).expect("a few bytes");
        Self {
            backend,
            program,
            state,
            fresh: false,
        }
    }

    /// Enqueues forward with `chunks`, whose sum is the batch.
    pub fn forward(&mut self, mode: Mode, chunks: &[usize]) {
        let (program, mut step) = self.step(mode, chunks);
        program.forward(&mut step).expect("forward");
    }

    /// Enqueues backward; the output's gradient must be there.
    pub fn backward(&mut self, mode: Mode, chunks: &[usize]) {
        let (program, mut step) = self.step(mode, chunks);
        program.backward(&mut step).expect("backward");
    }

    pub fn step<'a>(&'a mut self, mode: Mode, chunks: &'a [usize]) -> (&'a mut Program, Step<'a>) {
        let batch = chunks.iter().sum();
        let backend = self.backend.as_mut();
        let step = Step {
            backend,
            group: None,
            mode,
            batch,
            chunks,
            state: self.state,
            fresh: self.fresh,
        };
        (&mut self.program, step)
    }

    /// Uploads activations in file order (NCHW) to a span for the maximum batch.
    pub fn write(&mut self, span: Span, shape: Shape, file: &[f32]) {
        let batch = file.len() / shape.elements();
        let mut memory = vec![0.0; file.len()];
        Layout::activation(shape, batch).to_memory(file, &mut memory);
        let to = self.program.cut(span, batch);
        self.backend
            .upload(Stream::Compute, HostSlice::F32(&memory), to)
            .expect("upload");
    }

    /// Downloads the activations of `batch` samples in file order.
    pub fn read(&mut self, span: Span, shape: Shape, batch: usize) -> Vec<f32> {
        let mut memory = vec![0.0; shape.elements() * batch];
        let from = self.program.cut(span, batch);
        self.backend
            .download(from, HostSliceMut::F32(&mut memory))
            .expect("download");
        let mut file = vec![0.0; memory.len()];
        Layout::activation(shape, batch).to_file(&memory, &mut file);
        file
    }
}
