//! Every norm, forward and backward, and batch and group norm with the addition and the rectifier that follow them in a residual block. Of sync-batch that is what a rank computes between the collectives, with two ranks.
use criterion::{BenchmarkId, Criterion, Throughput};
use syncmark_engine::kernel::{Affine, Gate, Kernel, Then, Write};
use syncmark_engine::tensor::{Dtype, Span};

use crate::device::Device;

const EPS: f32 = 1e-5;
const RANKS: usize = 2;

/// Samples, positions and channels. The first two are layers of large images: 206 and 51 MB an activation, far beyond any cache, and three
/// of them in memory. The next two are a sample of as many elements that a
/// second-level cache holds. Their figures tell what width costs.
const SHAPES: [[usize; 3]; 7] = [
    [64, 112 * 112, 64],
    [64, 28 * 28, 256],
    [1, 28 * 28, 256],
    [1, 56 * 56, 64],
    [32, 56 * 56, 64],
    [64, 32 * 32, 16],
    [128, 1, 1024],
];

/// Activations, and what is per channel.
struct Operands {
    x: Span,
    y: Span,
    d_y: Span,
    d_x: Span,
    mean: Span,
    variance: Span,
    rstd: Span,
    gamma: Span,
    beta: Span,
    d_gamma: Span,
    d_beta: Span,
    sums: Span,
    count: Span,
    gathered: Span,
    tracked: Span,
}

impl Operands {
    fn new(device: &mut Device, elements: usize, channels: usize) -> Self {
        let [x, y, d_y, d_x] = [(); 4].map(|()| device.random(elements));
        let [mean, variance, rstd, gamma, beta, d_gamma, d_beta] =
            [(); 7].map(|()| device.random(channels));
        Self {
            x,
            y,
            d_y,
            d_x,
            mean,
            variance,
            rstd,
            gamma,
            beta,
            d_gamma,
            d_beta,
            sums: device.random(2 * channels),
            count: device.random(1),
            gathered: device.random(RANKS * (2 * channels + 1)),
            tracked: device.allocate(Dtype::I64, 1),
        }
    }
}

/// What follows a norm at the end of a residual block, in the norm's own kernels; `o.d_y` is the shortcut.
fn residual(o: &Operands) -> Then {
    Then {
        shortcut: o.d_y,
        relu: true,
    }
}

/// Forward and backward of batch norm; of its synchronized kind with `sync`.
fn batch(o: &Operands, rows: usize, channels: usize, sync: bool, then: Then) -> [Vec<Kernel>; 2] {
    let mut forward = vec![
        Kernel::BatchStatistics {
            x: o.x,
            mean: o.mean,
            variance: o.variance,
            rows,
        },
        Kernel::ReciprocalDeviation {
            variance: o.variance,
            rstd: o.rstd,
            eps: EPS,
        },
    ];
    if sync {
        forward.extend([
            Kernel::SyncPack {
                mean: o.mean,
                rstd: o.rstd,
                count: o.count,
                packed: o.gathered.first(2 * channels + 1),
            },
            Kernel::SyncMerge {
                gathered: o.gathered,
                ranks: RANKS,
                channels,
                eps: EPS,
                mean: o.mean,
                variance: o.variance,
                rstd: o.rstd,
                count: o.count,
            },
        ]);
    }
    forward.extend([
        Kernel::UpdateRunning {
            mean: o.mean,
            variance: o.variance,
            count: o.count,
            running_mean: o.d_gamma,
            running_variance: o.d_beta,
            tracked: o.tracked,
            momentum: Some(0.1),
        },
        Kernel::BatchNormalize {
            x: o.x,
            mean: o.mean,
            rstd: o.rstd,
            gamma: o.gamma,
            beta: o.beta,
            y: o.y,
            rows,
            then,
        },
    ]);
    let mut backward = Vec::new();
    if then.relu {
        let (y, d_y) = (o.y, o.d_y);
        backward.push(Kernel::Gate { y, d_y });
    }
    backward.extend([
        Kernel::BatchBackwardReduce {
            x: o.x,
            d_y: o.d_y,
            mean: o.mean,
            sums: o.sums,
            rows,
            gate: Gate::Open,
        },
        Kernel::BatchBackwardAffine {
            sums: o.sums,
            rstd: o.rstd,
            d_gamma: o.d_gamma,
            d_beta: o.d_beta,
        },
        Kernel::BatchBackwardInput {
            x: o.x,
            d_y: o.d_y,
            mean: o.mean,
            rstd: o.rstd,
            gamma: o.gamma,
            sums: o.sums,
            count: o.count,
            d_x: o.d_x,
            rows,
            write: Write::Overwrite,
            gate: Gate::Open,
        },
    ]);
    [forward, backward]
}

/// Forward and backward of a norm over groups of channels, with γ and β per channel.
fn group(
    device: &mut Device,
    o: &Operands,
    [batch, spatial, channels]: [usize; 3],
    groups: usize,
    then: Then,
) -> [Vec<Kernel>; 2] {
    let [mean, rstd] = [(); 2].map(|()| device.random(batch * groups));
    let (affine, write) = (Affine::Channel, Write::Overwrite);
    let forward = Kernel::GroupNormForward {
        x: o.x,
        gamma: o.gamma,
        beta: o.beta,
        y: o.y,
        mean,
        rstd,
        batch,
        spatial,
        channels,
        groups,
        affine,
        eps: EPS,
        then,
    };
    let backward = Kernel::GroupNormBackward {
        x: o.x,
        d_y: o.d_y,
        gamma: o.gamma,
        mean,
        rstd,
        d_x: o.d_x,
        d_gamma: o.d_gamma,
        d_beta: o.d_beta,
        batch,
        spatial,
        channels,
        groups,
        affine,
        write,
        y: if then.relu { o.y } else { Span::EMPTY },
    };
    [vec![forward], vec![backward]]
}

/// Forward and backward of RMS norm, with γ per channel.
fn rms(
    device: &mut Device,
    o: &Operands,
    [batch, spatial, channels]: [usize; 3],
) -> [Vec<Kernel>; 2] {
    let rstd = device.random(batch);
    let forward = Kernel::RmsNormForward {
        x: o.x,
        gamma: o.gamma,
        y: o.y,
        rstd,
        batch,
        spatial,
        channels,
        affine: Affine::Channel,
        eps: EPS,
        then: Then::NOTHING,
    };
    let backward = Kernel::RmsNormBackward {
        x: o.x,
        d_y: o.d_y,
        gamma: o.gamma,
        rstd,
        d_x: o.d_x,
        d_gamma: o.d_gamma,
        batch,
        spatial,
        channels,
        affine: Affine::Channel,
        write: Write::Overwrite,
        y: Span::EMPTY,
    };
    [vec![forward], vec![backward]]
}

pub fn norm(criterion: &mut Criterion) {
    let mut benchmarks = criterion.benchmark_group("norm");
    for shape @ [samples, spatial, channels] in SHAPES {
        let mut device = Device::new();
        let (rows, elements) = (samples * spatial, samples * spatial * channels);
        let o = Operands::new(&mut device, elements, channels);
        let (few, alone) = ((channels / 4).min(32), Then::NOTHING);
        let mut norms = vec![
            ("batch", batch(&o, rows, channels, false, alone)),
            (
                "sync-batch, local part",
                batch(&o, rows, channels, true, alone),
            ),
            ("layer", group(&mut device, &o, shape, 1, alone)),
            ("group", group(&mut device, &o, shape, few, alone)),
            ("rms", rms(&mut device, &o, shape)),
            (
                "batch + add + relu",
                batch(&o, rows, channels, false, residual(&o)),
            ),
            (
                "group + add + relu",
                group(&mut device, &o, shape, few, residual(&o)),
            ),
        ];
        if spatial > 1 {
            norms.push(("instance", group(&mut device, &o, shape, channels, alone)));
        }
        benchmarks.throughput(Throughput::Bytes(o.x.bytes() as u64));
        for (name, [forward, backward]) in &norms {
            for (direction, kernels) in [("forward", forward), ("backward", backward)] {
                let id = BenchmarkId::new(
                    format!("{name}, {direction}"),
                    format!("{samples}x{spatial}x{channels}"),
                );
                benchmarks.bench_function(id, |bencher| device.time(bencher, kernels));
            }
        }
    }
}
