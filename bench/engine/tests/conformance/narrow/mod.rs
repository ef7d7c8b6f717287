//! Kernels on values in bfloat16, which a GPU has, against the CPU's f32 kernels on the same numbers: those that bfloat16 has exactly.
//!
//! Every operand is compared afterwards, so that what a kernel should only read is checked too. What is written as bfloat16 may be off by
//! its rounding; what stays f32, by roundings of f32 in another order. The same comparison is made between the CPU and a CPU that cuts its
//! work otherwise, in f32: what it would find wrong in a launch it finds without a GPU as well.
mod attention;
mod biases;
mod norms;
mod pointwise;
mod products;

use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::cuda::Precision;
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::half::{Bf16, Half};
use syncmark_engine::kernel::{Kernel, Write};
use syncmark_engine::philox::{Purpose, fill_symmetric};
use syncmark_engine::tensor::{Dtype, Span};

use crate::gpu::{gpu_of, gpu_with_cublaslt};

/// Of a value that is rounded to 8 bits of significand once or twice: relative to itself, and to the root mean square of all, since what
/// is rounded before it is added to may be larger than the sum.
const ROUNDED: f64 = 1.0 / 256.0;
/// Of sums of f32 in another order, in the same way.
const REORDERED: f64 = 2e-5;

const BOTH: [Write; 2] = [Write::Overwrite, Write::Accumulate];

/// What a kernel is given, by what it is.
#[derive(Clone)]
enum Operand {
    /// An activation or a gradient of one, or a weight as products read it: bfloat16 on the GPU.
    Value(Vec<f32>),
    /// f32 everywhere.
    Float(Vec<f32>),
    /// f32 everywhere, and made by way of bfloat16.
    Rounded(Vec<f32>),
    /// i32.
    Integer(Vec<i32>),
    /// So many f32 that nobody looks at afterwards.
    Workspace(usize),
    None,
}

/// Numbers that are others on each call.
struct Numbers(u64);

impl Numbers {
    fn uniform(&mut self, len: usize) -> Vec<f32> {
        let mut values = vec![0.0; len];
        self.0 += 1;
        fill_symmetric(self.0, Purpose::Inputs, 0, 0, 1.0, &mut values);
        values
    }
    /// In (−1, 1), and numbers that bfloat16 has.
    fn value(&mut self, len: usize) -> Operand {
        let rounded = |v: &f32| Bf16::narrow(*v).widen();
        Operand::Value(self.uniform(len).iter().map(rounded).collect())
    }
    fn float(&mut self, len: usize) -> Operand {
        Operand::Float(self.uniform(len))
    }
    fn rounded(&mut self, len: usize) -> Operand {
        Operand::Rounded(self.uniform(len))
    }
}

/// A device, and what values are on it.
struct Side {
    backend: Box<dyn Backend>,
    values: Dtype,
}

fn cpu(threads: usize) -> Side {
    let device = CpuDevice {
        threads,
        smallest_part: (threads > 1).then_some(1),
        ..CpuDevice::default()
    };
    Side {
        backend: Box::new(CpuBackend::new(device).unwrap()),
        values: Dtype::F32,
    }
}

impl Side {
    fn give(&mut self, operand: &Operand) -> Span {
        let threads = self.backend.compute_threads();
        let (dtype, len) = match operand {
            Operand::Value(values) => (self.values, values.len()),
            Operand::Float(values) | Operand::Rounded(values) => (Dtype::F32, values.len()),
            Operand::Integer(values) => (Dtype::I32, values.len()),
            Operand::Workspace(len) => (Dtype::F32, len * threads),
            Operand::None => return Span::EMPTY,
        };
        let to = self
            .backend
            .allocate(Category::Workspace, dtype, len)
            .unwrap();
        let mut upload = |from: HostSlice<'_>| {
            self.backend.upload(Stream::Compute, from, to).unwrap();
        };
        match operand {
            Operand::Value(values) if dtype == Dtype::Bf16 => {
                let narrow: Vec<Bf16> = values.iter().map(|v| Bf16::narrow(*v)).collect();
                upload(HostSlice::Bf16(&narrow));
            }
            Operand::Value(values) | Operand::Float(values) | Operand::Rounded(values) => {
                upload(HostSlice::F32(values));
            }
            Operand::Integer(values) => upload(HostSlice::I32(values)),
            Operand::Workspace(_) | Operand::None => {}
        }
        to
    }

    fn read(&mut self, span: Span) -> Vec<f64> {
        let len = span.len();
        match span.dtype() {
            Dtype::Bf16 => {
                let mut values = vec![Bf16(0); len];
                let to = HostSliceMut::Bf16(&mut values);
                self.backend.download(span, to).unwrap();
                values.iter().map(|v| f64::from(v.widen())).collect()
            }
            Dtype::I32 => {
                let mut values = vec![0; len];
                let to = HostSliceMut::I32(&mut values);
                self.backend.download(span, to).unwrap();
                values.iter().map(|v| f64::from(*v)).collect()
            }
            _ => {
                let mut values = vec![0.0; len];
                let to = HostSliceMut::F32(&mut values);
                self.backend.download(span, to).unwrap();
                values.iter().map(|v| f64::from(*v)).collect()
            }
        }
    }

    /// All operands after the kernels that `of` makes of their places. A second kernel goes with the first.
    fn run(&mut self, operands: &[Operand], of: &dyn Fn(&[Span]) -> Vec<Kernel>) -> Vec<Vec<f64>> {
        let spans: Vec<Span> = operands.iter().map(|operand| self.give(operand)).collect();
        for kernels in of(&spans).chunks(2) {
            match *kernels {
                [first, second] => self.backend.launch_both(Stream::Compute, [first, second]),
                ref alone => alone
                    .iter()
                    .try_for_each(|kernel| self.backend.launch(Stream::Compute, *kernel)),
            }
            .unwrap();
        }
        let read = |(operand, span): (&Operand, &Span)| match operand {
            Operand::Workspace(_) | Operand::None => Vec::new(),
            _ => self.read(*span),
        };
        operands.iter().zip(&spans).map(read).collect()
    }
}

/// What is compared: a CPU, and each of the others.
struct Sides {
    first: Side,
    others: Vec<Side>,
    numbers: Numbers,
}

impl Sides {
    fn new() -> Self {
        let gpu = gpu_of(Precision::Bf16).map(|backend| Side {
            values: backend.values(),
            backend,
        });
        if let Some(gpu) = &gpu {
            assert_eq!(gpu.values, Dtype::Bf16);
        }
        Self {
            first: cpu(1),
            others: std::iter::once(cpu(2)).chain(gpu).collect(),
            numbers: Numbers(0),
        }
    }

    /// The others multiply by cuBLASLt, in bfloat16 and in TF32, which rounds no number that bfloat16 has.
    fn with_cublaslt() -> Self {
        let gpus = [Precision::Bf16, Precision::Tf32].map(gpu_with_cublaslt);
        let side = |backend: Box<dyn Backend>| Side {
            values: backend.values(),
            backend,
        };
        Self {
            first: cpu(1),
            others: std::iter::once(cpu(2))
                .chain(gpus.into_iter().flatten().map(side))
                .collect(),
            numbers: Numbers(0),
        }
    }

    /// Runs the kernels that `of` makes of the operands' places, and compares all operands. `times`: how many roundings to bfloat16
    /// lie one after the other on the way to what is written.
    fn agree(
        &mut self,
        what: &str,
        times: f64,
        operands: &[Operand],
        of: &dyn Fn(&[Span]) -> Vec<Kernel>,
    ) {
        let expected = self.first.run(operands, of);
        for other in &mut self.others {
            let found = other.run(operands, of);
            let narrow = other.values == Dtype::Bf16;
            for (i, operand) in operands.iter().enumerate() {
                let allowed = match operand {
                    Operand::Value(_) | Operand::Rounded(_) if narrow => times * ROUNDED,
                    // Statistics of what is the same number.
                    Operand::Value(_) | Operand::Rounded(_) | Operand::Float(_) => REORDERED,
                    _ => 0.0,
                };
                let what = format!("{what}, operand {i} of {:?}", other.values);
                close(&what, &found[i], &expected[i], allowed);
            }
        }
    }
}

/// |found − expected| ≤ allowed·(|expected| + the root mean square of all), for each.
fn close(what: &str, found: &[f64], expected: &[f64], allowed: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let finite = expected.iter().filter(|v| v.is_finite());
    let squares: f64 = finite.map(|v| v * v).sum();
    let size = (squares / expected.len().max(1) as f64).sqrt();
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let off = (found - expected).abs();
        assert!(
            found == expected || off <= allowed * (expected.abs() + size),
            "{what}: element {i} is {found:e}, not {expected:e}; all are about {size:e}"
        );
    }
}
