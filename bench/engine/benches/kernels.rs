//! Speed of the CPU's kernels at the shapes of training, on one thread.
//!
//! Products and convolutions report elements as multiply-adds, norms report bytes of the activation: compare with the
//! machine's peak and with its memory bandwidth. Run with `cargo bench -p syncmark-engine` on an idle machine.
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::{Backend, Category, HostSlice, Stream};
use syncmark_engine::kernel::{Affine, Kernel, Window, Write};
use syncmark_engine::philox::{Purpose, fill_symmetric};
use syncmark_engine::tensor::{Dtype, Span};

fn backend() -> CpuBackend {
    CpuBackend::new(CpuDevice::default()).expect("a thread can be started")
}

/// A span of random numbers: zeros would time other paths of the machine.
fn random(backend: &mut CpuBackend, len: usize) -> Span {
    let span = backend
        .allocate(Category::Workspace, Dtype::F32, len)
        .expect("benchmarks fit into memory");
    let mut values = vec![0.0; len];
    fill_symmetric(1, Purpose::Inputs, 0, 0, 1.0, &mut values);
    backend
        .upload(Stream::Compute, HostSlice::F32(&values), span)
        .expect("the stream has not failed");
    span
}

fn launch(backend: &mut CpuBackend, kernel: Kernel) {
    backend
        .launch(Stream::Compute, kernel)
        .expect("the stream has not failed");
}

fn matmul(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matmul");
    for (m, n, k) in [
        (128, 1024, 784),
        (128, 1024, 1024),
        (128, 10, 1024),
        (1024, 1024, 128),
        (64, 64, 64),
    ] {
        let mut cpu = backend();
        let (a, b, c) = (
            random(&mut cpu, m * k),
            random(&mut cpu, k * n),
            random(&mut cpu, m * n),
        );
        group.throughput(Throughput::Elements((m * n * k) as u64));
        for (transpose_a, transpose_b) in [(false, true), (false, false), (true, false)] {
            let id = BenchmarkId::new(
                format!("{m}x{n}x{k}"),
                format!("{transpose_a} {transpose_b}"),
            );
            let write = Write::Overwrite;
            let kernel = Kernel::Matmul {
                a,
                b,
                c,
                m,
                n,
                k,
                transpose_a,
                transpose_b,
                write,
            };
            group.bench_function(id, |bencher| bencher.iter(|| launch(&mut cpu, kernel)));
        }
    }
}

fn convolution(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv");
    for (batch, c, out_c, side, kernel, stride) in [
        (8, 64, 64, 56, 3, 1),
        (8, 256, 256, 14, 3, 1),
        (64, 16, 16, 32, 3, 1),
        (64, 32, 32, 16, 3, 1),
        (64, 64, 64, 8, 3, 1),
        (8, 3, 64, 224, 7, 2),
    ] {
        let padding = kernel / 2;
        let out = (side + 2 * padding - kernel) / stride + 1;
        let window = Window {
            h: side,
            w: side,
            c,
            out_h: out,
            out_w: out,
            out_c,
            kernel,
            stride,
            padding,
        };
        let mut cpu = backend();
        let (x, y) = (
            random(&mut cpu, batch * side * side * c),
            random(&mut cpu, batch * out * out * out_c),
        );
        let (d_x, d_y) = (random(&mut cpu, x.len()), random(&mut cpu, y.len()));
        let weight = random(&mut cpu, out_c * kernel * kernel * c);
        let d_weight = random(&mut cpu, weight.len());
        let (workspace, bias, write) = (
            random(&mut cpu, window.workspace()),
            Span::EMPTY,
            Write::Overwrite,
        );
        group.throughput(Throughput::Elements((y.len() * kernel * kernel * c) as u64));
        for (name, call) in [
            (
                "forward",
                Kernel::Conv2dForward {
                    x,
                    weight,
                    bias,
                    y,
                    window,
                    batch,
                    workspace,
                },
            ),
            (
                "dx",
                Kernel::Conv2dBackwardInput {
                    d_y,
                    weight,
                    d_x,
                    window,
                    batch,
                    workspace,
                    write,
                },
            ),
            (
                "dw",
                Kernel::Conv2dBackwardWeight {
                    x,
                    d_y,
                    d_weight,
                    window,
                    batch,
                    workspace,
                },
            ),
        ] {
            let id = BenchmarkId::new(format!("{batch}x{c},{side},{kernel}x{kernel}"), name);
            group.bench_function(id, |bencher| bencher.iter(|| launch(&mut cpu, call)));
        }
    }
}

fn norm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("norm");
    for (batch, spatial, channels) in [(32, 56 * 56, 64), (64, 32 * 32, 16), (128, 1, 1024)] {
        let mut cpu = backend();
        let rows = batch * spatial;
        let [x, y, d_y] = [(); 3].map(|()| random(&mut cpu, rows * channels));
        let [mean, variance, rstd, gamma, beta, d_gamma, d_beta] =
            [(); 7].map(|()| random(&mut cpu, channels));
        let (sums, count) = (random(&mut cpu, 2 * channels), random(&mut cpu, 1));
        let write = Write::Overwrite;
        let batch_norm = [
            Kernel::BatchStatistics {
                x,
                mean,
                variance,
                rows,
            },
            Kernel::ReciprocalDeviation {
                variance,
                rstd,
                eps: 1e-5,
            },
            Kernel::BatchNormalize {
                x,
                mean,
                rstd,
                gamma,
                beta,
                y,
                rows,
            },
            Kernel::BatchBackwardReduce {
                x,
                d_y,
                mean,
                sums,
                rows,
            },
            Kernel::BatchBackwardInput {
                x,
                d_y,
                mean,
                rstd,
                gamma,
                sums,
                count,
                d_x: y,
                rows,
                write,
            },
        ];
        group.throughput(Throughput::Bytes(x.bytes() as u64));
        let shape = format!("{batch}x{spatial}x{channels}");
        group.bench_function(BenchmarkId::new("batch", &shape), |bencher| {
            bencher.iter(|| {
                batch_norm
                    .iter()
                    .for_each(|&kernel| launch(&mut cpu, kernel))
            });
        });
        for (name, groups) in [
            ("layer", 1),
            ("group", channels.min(32)),
            ("instance", channels),
        ] {
            let [mean, rstd] = [(); 2].map(|()| random(&mut cpu, batch * groups));
            let (affine, eps) = (Affine::Channel, 1e-5);
            let forward = Kernel::GroupNormForward {
                x,
                gamma,
                beta,
                y,
                mean,
                rstd,
                batch,
                spatial,
                channels,
                groups,
                affine,
                eps,
            };
            let backward = Kernel::GroupNormBackward {
                x,
                d_y,
                gamma,
                mean,
                rstd,
                d_x: y,
                d_gamma,
                d_beta,
                batch,
                spatial,
                channels,
                groups,
                affine,
                write,
            };
            group.bench_function(BenchmarkId::new(name, &shape), |bencher| {
                bencher.iter(|| {
                    launch(&mut cpu, forward);
                    launch(&mut cpu, backward);
                });
            });
        }
    }
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(20);
    targets = matmul, convolution, norm
}
criterion_main!(kernels);
