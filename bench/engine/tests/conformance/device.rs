//! A device under test: uploads, launches and reads back, and says what differs.
use crate::gpu::{gpu, gpu_with};
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::cuda::{BatchNormBy, Precision};
use syncmark_engine::backend::deferred::DeferredBackend;
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::kernel::{Kernel, Write};
use syncmark_engine::philox::{Purpose, fill_symmetric};
use syncmark_engine::tensor::{Dtype, Span};

/// Norm-wise relative error that a kernel may have against f64: about 100 rounding errors of f32, as sums of random
/// signs over some thousand elements make.
pub const TOLERANCE: f64 = 1e-5;

pub struct Device {
    pub backend: Box<dyn Backend>,
    seed: u64,
}

/// Runs a test on each backend, and on a GPU where there is one.
pub fn on_every_backend(test: impl Fn(&mut Device)) {
    on_every_host_backend(&test);
    if let Some(backend) = gpu() {
        println!("backend {}", backend.name());
        test(&mut Device { backend, seed: 0 });
    }
}

/// Runs a test of a library's batch norm on each backend, of a GPU on cuDNN's.
pub fn on_every_library(test: impl Fn(&mut Device)) {
    on_every_host_backend(&test);
    if let Some(backend) = gpu_with(Precision::Fp32, BatchNormBy::Cudnn) {
        println!("backend {}, batch norm by cuDNN", backend.name());
        test(&mut Device { backend, seed: 0 });
    }
}

/// Runs a test on each backend whose memory is the host's.
pub fn on_every_host_backend(test: impl Fn(&mut Device)) {
    let cpu = CpuBackend::new(CpuDevice::default()).unwrap();
    let deferred = DeferredBackend::new(5).unwrap();
    let in_parts = |threads| {
        let device = CpuDevice {
            threads,
            smallest_part: Some(1),
            ..CpuDevice::default()
        };
        Box::new(CpuBackend::new(device).unwrap())
    };
    let backends: [Box<dyn Backend>; 4] =
        [Box::new(cpu), Box::new(deferred), in_parts(2), in_parts(3)];
    for backend in backends {
        println!(
            "backend {}, {} threads",
            backend.name(),
            backend.compute_threads()
        );
        test(&mut Device { backend, seed: 0 });
    }
}

/// A span with what it was filled with.
pub struct Operand {
    pub span: Span,
    pub values: Vec<f64>,
}

impl Device {
    fn allocate(&mut self, dtype: Dtype, len: usize) -> Span {
        self.backend
            .allocate(Category::Workspace, dtype, len)
            .unwrap()
    }
    pub fn zeros(&mut self, len: usize) -> Span {
        self.allocate(Dtype::F32, len)
    }
    pub fn given(&mut self, values: &[f32]) -> Operand {
        let span = self.zeros(values.len());
        self.backend
            .upload(Stream::Compute, HostSlice::F32(values), span)
            .unwrap();
        Operand {
            span,
            values: values.iter().map(|&v| f64::from(v)).collect(),
        }
    }
    /// Uniform numbers in (−1, 1), others on each call.
    pub fn random(&mut self, len: usize) -> Operand {
        self.random_about(0.0, len)
    }
    pub fn random_about(&mut self, center: f32, len: usize) -> Operand {
        let mut values = vec![0.0; len];
        self.seed += 1;
        fill_symmetric(self.seed, Purpose::Inputs, 0, 0, 1.0, &mut values);
        values.iter_mut().for_each(|v| *v += center);
        self.given(&values)
    }
    /// No operand.
    pub fn none(&mut self) -> Operand {
        Operand {
            span: Span::EMPTY,
            values: Vec::new(),
        }
    }
    pub fn given_i32(&mut self, values: &[i32]) -> Span {
        let span = self.allocate(Dtype::I32, values.len());
        self.backend
            .upload(Stream::Compute, HostSlice::I32(values), span)
            .unwrap();
        span
    }
    pub fn given_i64(&mut self, values: &[i64]) -> Span {
        let span = self.allocate(Dtype::I64, values.len());
        self.backend
            .upload(Stream::Compute, HostSlice::I64(values), span)
            .unwrap();
        span
    }
    pub fn launch(&mut self, kernel: Kernel) {
        self.backend.launch(Stream::Compute, kernel).unwrap();
    }
    pub fn read(&mut self, span: Span) -> Vec<f32> {
        let mut values = vec![0.0; span.len()];
        self.backend
            .download(span, HostSliceMut::F32(&mut values))
            .unwrap();
        values
    }
    pub fn read_i32(&mut self, span: Span) -> Vec<i32> {
        let mut values = vec![0; span.len()];
        self.backend
            .download(span, HostSliceMut::I32(&mut values))
            .unwrap();
        values
    }
    pub fn read_i64(&mut self, span: Span) -> Vec<i64> {
        let mut values = vec![0; span.len()];
        self.backend
            .download(span, HostSliceMut::I64(&mut values))
            .unwrap();
        values
    }
    /// Reads `span` and compares it with `expected`.
    pub fn expect(&mut self, what: &str, span: Span, expected: &[f64]) {
        let found = self.read(span);
        assert_close(what, &found, expected);
    }
    /// Launches a kernel that writes in both ways over an output with random content.
    pub fn expect_writes(
        &mut self,
        what: &str,
        expected: &[f64],
        kernel: impl Fn(Span, Write) -> Kernel,
    ) {
        for write in [Write::Overwrite, Write::Accumulate] {
            let output = self.random(expected.len());
            self.launch(kernel(output.span, write));
            let total: Vec<f64> = match write {
                Write::Overwrite => expected.to_vec(),
                Write::Accumulate => expected
                    .iter()
                    .zip(&output.values)
                    .map(|(a, b)| a + b)
                    .collect(),
            };
            self.expect(&format!("{what}, {write:?}"), output.span, &total);
        }
    }
    /// Launches a kernel that adds to an output with random content.
    pub fn expect_added(&mut self, what: &str, expected: &[f64], kernel: impl Fn(Span) -> Kernel) {
        let output = self.random(expected.len());
        self.launch(kernel(output.span));
        let total: Vec<f64> = expected
            .iter()
            .zip(&output.values)
            .map(|(a, b)| a + b)
            .collect();
        self.expect(what, output.span, &total);
    }
}

/// ‖found − expected‖ ≤ TOLERANCE·‖expected‖.
pub fn assert_close(what: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(&f, e)| f64::from(f) - e));
    let size = norm(&mut expected.iter().copied());
    assert!(
        error <= TOLERANCE * size,
        "{what}: error {error:e} of {size:e}\n{found:?}\n{expected:?}"
    );
}
