//! A CPU device with spans of random numbers.
use criterion::Bencher;
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{Backend, Category, HostSlice, Stream};
use syncmark_engine::kernel::Kernel;
use syncmark_engine::philox::{Purpose, fill_symmetric};
use syncmark_engine::tensor::{Dtype, Span};

pub struct Device(CpuBackend);

impl Device {
    pub fn new() -> Self {
        Self(CpuBackend::new(CpuDevice::default()).expect("a thread can be started"))
    }

    /// A span of random numbers: zeros would time other paths of the machine.
    pub fn random(&mut self, len: usize) -> Span {
        let span = self.allocate(Dtype::F32, len);
        let mut values = vec![0.0; len];
        fill_symmetric(1, Purpose::Inputs, 0, 0, 1.0, &mut values);
        self.0
            .upload(Stream::Compute, HostSlice::F32(&values), span)
            .expect("the stream has not failed");
        span
    }

    pub fn allocate(&mut self, dtype: Dtype, len: usize) -> Span {
        self.0
            .allocate(Category::Workspace, dtype, len)
            .expect("benchmarks fit into memory")
    }

    pub fn launch(&mut self, kernel: Kernel) {
        self.0
            .launch(Stream::Compute, kernel)
            .expect("the stream has not failed");
    }

    /// Times `kernels`, one after the other.
    pub fn time(&mut self, bencher: &mut Bencher<'_>, kernels: &[Kernel]) {
        bencher.iter(|| {
            for kernel in kernels {
                self.launch(*kernel);
            }
        });
    }
}
