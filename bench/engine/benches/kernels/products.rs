//! Every matrix product of the model presets, forward and both gradients, and convolutions of networks for images.
use criterion::{BenchmarkId, Criterion, Throughput};
use syncmark_engine::kernel::{ConvAlgorithm, Kernel, Window, Write};
use syncmark_engine::model::spec::{ModelSpec, Norm};
use syncmark_engine::model::{NormOptions, Op, resolve};
use syncmark_engine::tensor::Span;

use crate::device::Device;

/// The presets, with the samples of a step that they are timed with.
const PRESETS: [(&str, usize); 5] = [
    ("mlp", 128),
    ("convnet", 64),
    ("resnet20", 64),
    ("resnet18", 8),
    ("resnet50", 8),
];

/// Rows of x, features of y, features of x: of each linear layer and each convolution that is a product, without repetition.
fn shapes() -> Vec<(usize, usize, usize)> {
    let mut found = Vec::new();
    for (name, batch) in PRESETS {
        let folder = env!("CARGO_MANIFEST_DIR");
        let text = std::fs::read_to_string(format!("{folder}/../../scenarios/models/{name}.toml"))
            .expect("a preset");
        let spec: ModelSpec = toml::from_str(&text).expect("a model file");
        let options = NormOptions::default();
        let model = resolve(&spec, &spec.input, spec.classes, Norm::Batch, &options)
            .expect("presets resolve");
        for node in &model.nodes {
            let shape = match &node.op {
                Op::Linear { .. } => (batch, node.output.elements(), node.input.elements()),
                Op::Conv2d { window: w, .. } if (w.kernel, w.stride) == (1, 1) => {
                    (batch * w.out_h * w.out_w, w.out_c, w.c)
                }
                _ => continue,
            };
            if !found.contains(&shape) {
                found.push(shape);
            }
        }
    }
    found
}

pub fn matmul(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matmul");
    for (rows, outputs, inputs) in shapes() {
        let mut device = Device::new();
        let (x, weight, y) = (
            device.random(rows * inputs),
            device.random(outputs * inputs),
            device.random(rows * outputs),
        );
        let product =
            |[a, b, c]: [Span; 3], [m, n, k]: [usize; 3], [transpose_a, transpose_b]: [bool; 2]| {
                Kernel::Matmul {
                    a,
                    b,
                    c,
                    m,
                    n,
                    k,
                    transpose_a,
                    transpose_b,
                    write: Write::Overwrite,
                }
            };
        group.throughput(Throughput::Elements((rows * outputs * inputs) as u64));
        for (name, kernel) in [
            (
                "forward",
                product([x, weight, y], [rows, outputs, inputs], [false, true]),
            ),
            (
                "dx",
                product([y, weight, x], [rows, inputs, outputs], [false, false]),
            ),
            (
                "dw",
                product([y, x, weight], [outputs, inputs, rows], [true, false]),
            ),
        ] {
            let id = BenchmarkId::new(format!("{rows}x{outputs}x{inputs}"), name);
            group.bench_function(id, |bencher| device.time(bencher, &[kernel]));
        }
    }
}

pub fn convolution(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv");
    for (batch, c, out_c, side, kernel, stride) in [
        (8, 64, 64, 56, 3, 1),
        (8, 256, 256, 14, 3, 1),
        (64, 16, 16, 32, 3, 1),
        (64, 32, 32, 16, 3, 1),
        (64, 64, 64, 8, 3, 1),
        (8, 3, 64, 224, 7, 2),
        (8, 64, 128, 56, 3, 2),
        (8, 64, 256, 56, 1, 1),
        (8, 512, 512, 7, 3, 1),
        // First layers of networks for small images.
        (64, 3, 16, 32, 3, 1),
        (64, 1, 32, 28, 3, 1),
        (64, 16, 64, 32, 1, 1),
        (64, 64, 16, 32, 1, 1),
        // Single pixels: as wide as they come in residual networks, and with stride.
        (64, 16, 32, 32, 1, 2),
        (8, 64, 64, 56, 1, 1),
        (8, 256, 64, 56, 1, 1),
        (8, 128, 512, 28, 1, 1),
        (8, 512, 128, 28, 1, 1),
        (8, 256, 1024, 14, 1, 1),
        (8, 1024, 256, 14, 1, 1),
        (8, 512, 2048, 7, 1, 1),
        (8, 2048, 512, 7, 1, 1),
        (8, 64, 128, 56, 1, 2),
        (8, 256, 512, 56, 1, 2),
        (8, 1024, 2048, 14, 1, 2),
        // Wide kernels over few channels.
        (64, 3, 32, 32, 5, 1),
        (8, 3, 64, 224, 11, 4),
        (8, 3, 64, 224, 3, 2),
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
        let mut device = Device::new();
        let (x, y) = (
            device.random(batch * side * side * c),
            device.random(batch * out * out * out_c),
        );
        let (d_x, d_y) = (device.random(x.len()), device.random(y.len()));
        let weight = device.random(out_c * kernel * kernel * c);
        let d_weight = device.random(weight.len());
        let workspace = device.random(window.workspace());
        group.throughput(Throughput::Elements((y.len() * kernel * kernel * c) as u64));
        for algorithm in [ConvAlgorithm::Direct, ConvAlgorithm::Im2row] {
            for (name, call) in [
                (
                    "forward",
                    Kernel::Conv2dForward {
                        x,
                        weight,
                        bias: Span::EMPTY,
                        y,
                        window,
                        algorithm,
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
                        algorithm,
                        batch,
                        workspace,
                        write: Write::Overwrite,
                    },
                ),
                (
                    "dw",
                    Kernel::Conv2dBackwardWeight {
                        x,
                        d_y,
                        d_weight,
                        window,
                        algorithm,
                        batch,
                        workspace,
                    },
                ),
            ] {
                let shape = format!("{batch}x{c}-{out_c},{side},{kernel}x{kernel}/{stride}");
                let id = BenchmarkId::new(shape, format!("{name}/{algorithm:?}"));
                group.bench_function(id, |bencher| device.time(bencher, &[call]));
            }
        }
    }
}
