//! The fused updates of optimizers: every value of a parameter, its gradient and the optimizer's state is read and written once.
use criterion::{BenchmarkId, Criterion, Throughput};
use syncmark_engine::kernel::Kernel;
use syncmark_engine::tensor::{Dtype, Span};

use crate::device::Device;

/// A parameter that a second-level cache holds, and one of 100 MB.
const ELEMENTS: [usize; 2] = [64 << 10, 25 << 20];
/// Small, so that parameters stay what numbers are after any number of updates.
const RATE: f32 = 1e-6;

struct Operands {
    parameter: Span,
    gradient: Span,
    /// Not negative: the square root of one is taken.
    state: [Span; 2],
    rates: Span,
    counters: Span,
}

impl Operands {
    fn new(device: &mut Device, len: usize) -> Self {
        let operands = Self {
            parameter: device.random(len),
            gradient: device.random(len),
            state: [(); 2].map(|()| device.allocate(Dtype::F32, len)),
            rates: device.allocate(Dtype::F32, 1),
            counters: device.allocate(Dtype::I32, 1),
        };
        device.launch(Kernel::Fill {
            to: operands.rates,
            value: RATE,
        });
        operands
    }
}

pub fn optimizer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("optimizer");
    for len in ELEMENTS {
        let mut device = Device::new();
        let o = Operands::new(&mut device, len);
        let (parameter, gradient, rates) = (o.parameter, o.gradient, o.rates);
        let sgd = |buffer| Kernel::Sgd {
            parameter,
            gradient,
            buffer,
            rates,
            momentum: if buffer == Span::EMPTY { 0.0 } else { 0.9 },
            weight_decay: 1e-4,
            nesterov: false,
        };
        let adamw = Kernel::Adamw {
            parameter,
            gradient,
            average: o.state[0],
            square: o.state[1],
            rates,
            counters: o.counters,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
        };
        // Spans read and written an update, of the parameter's size.
        let optimizers = [
            ("sgd", sgd(Span::EMPTY), 3),
            ("adamw", adamw, 7),
            ("sgd, momentum", sgd(o.state[0]), 5),
        ];
        for (name, kernel, spans) in optimizers {
            group.throughput(Throughput::Bytes((spans * parameter.bytes()) as u64));
            let id = BenchmarkId::new(name, len);
            group.bench_function(id, |bencher| device.time(bencher, &[kernel]));
        }
    }
}
