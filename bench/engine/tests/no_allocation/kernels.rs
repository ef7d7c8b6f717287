//! A launch of every kernel, by kind, over spans of a CPU device.
use syncmark_engine::backend::cpu::CpuBackend;
use syncmark_engine::backend::{Backend, Category};
use syncmark_engine::kernel::{Affine, ConvAlgorithm, Gate, Gelu, Kernel, Then, Window, Write};
use syncmark_engine::tensor::{Dtype, Span};

/// Where spans come from.
pub struct Spans {
    pub backend: CpuBackend,
}

impl Spans {
    pub fn f32(&mut self, len: usize) -> Span {
        self.backend
            .allocate(Category::Workspace, Dtype::F32, len)
            .unwrap()
    }
    pub fn i32(&mut self, len: usize) -> Span {
        self.backend
            .allocate(Category::Workspace, Dtype::I32, len)
            .unwrap()
    }
}

pub const BATCH: usize = 3;
const SPATIAL: usize = 64;
pub const CHANNELS: usize = 16;
const ROWS: usize = BATCH * SPATIAL;

pub fn products(spans: &mut Spans) -> Vec<Kernel> {
    let (m, n, k) = (96, 80, 120);
    let (a, b, c) = (spans.f32(m * k), spans.f32(k * n), spans.f32(m * n));
    let (transpose_a, transpose_b, write) = (false, true, Write::Accumulate);
    let window = Window {
        h: 8,
        w: 8,
        c: CHANNELS,
        out_h: 8,
        out_w: 8,
        out_c: 8,
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    let batch = BATCH;
    let (x, y) = (spans.f32(ROWS * CHANNELS), spans.f32(ROWS * 8));
    let (weight, bias, workspace) = (
        spans.f32(8 * 9 * CHANNELS),
        spans.f32(8),
        spans.f32(window.workspace()),
    );
    let (d_x, d_y, d_weight) = (
        spans.f32(x.len()),
        spans.f32(y.len()),
        spans.f32(weight.len()),
    );
    vec![
        Kernel::Matmul {
            a,
            b,
            c,
            m,
            n,
            k,
            transpose_a,
            transpose_b,
            write,
        },
        Kernel::Conv2dForward {
            x,
            weight,
            bias,
            y,
            window,
            algorithm: ConvAlgorithm::Direct,
            batch,
            workspace,
        },
        Kernel::Conv2dBackwardInput {
            d_y,
            weight,
            d_x,
            window,
            algorithm: ConvAlgorithm::Direct,
            batch,
            workspace,
            write,
        },
        Kernel::Conv2dBackwardWeight {
            x,
            d_y,
            d_weight,
            window,
            algorithm: ConvAlgorithm::Direct,
            batch,
            workspace,
        },
    ]
}

pub fn elementwise_and_pooling(spans: &mut Spans) -> Vec<Kernel> {
    let [x, y, z] = [(); 3].map(|()| spans.f32(ROWS * CHANNELS));
    let (bias, state, write) = (spans.f32(CHANNELS), spans.i32(2), Write::Accumulate);
    let window = Window {
        h: 8,
        w: 8,
        c: CHANNELS,
        out_h: 4,
        out_w: 4,
        out_c: CHANNELS,
        kernel: 2,
        stride: 2,
        padding: 0,
    };
    let (batch, spatial, channels) = (BATCH, SPATIAL, CHANNELS);
    let (formula, count_padding) = (Gelu::None, false);
    let pooled = spans.f32(BATCH * 16 * CHANNELS);
    let index = spans.i32(pooled.len());
    let averaged = spans.f32(BATCH * CHANNELS);
    vec![
        Kernel::Fill { to: x, value: 1.0 },
        Kernel::Copy {
            from: x,
            to: y,
            write,
        },
        Kernel::Add { a: x, b: y, to: z },
        Kernel::Scale { to: x, factor: 0.5 },
        Kernel::ReluForward { x, y },
        Kernel::Gate { y: x, d_y: z },
        Kernel::ReluBackward {
            y,
            d_y: x,
            d_x: z,
            write,
        },
        Kernel::GeluForward { x, y, formula },
        Kernel::GeluBackward {
            x,
            d_y: y,
            d_x: z,
            formula: Gelu::Tanh,
            write,
        },
        Kernel::Transpose {
            from: x,
            to: y,
            batch,
            rows: SPATIAL,
            columns: CHANNELS,
            write,
        },
        Kernel::Dropout {
            x,
            y,
            p: 0.5,
            seed: 1,
            node: 2,
            state,
            batch,
            write,
        },
        Kernel::AddBias {
            y,
            bias,
            rows: ROWS,
        },
        Kernel::BiasBackward {
            d_y: y,
            d_bias: bias,
            rows: ROWS,
        },
        Kernel::MaxPoolForward {
            x,
            y: pooled,
            index,
            window,
            batch,
        },
        Kernel::MaxPoolBackward {
            d_y: pooled,
            index,
            d_x: y,
            window,
            batch,
            write,
        },
        Kernel::AveragePoolForward {
            x,
            y: pooled,
            window,
            batch,
            count_padding,
        },
        Kernel::AveragePoolBackward {
            d_y: pooled,
            d_x: y,
            window,
            batch,
            count_padding,
            write,
        },
        Kernel::GlobalAveragePoolForward {
            x,
            y: averaged,
            batch,
            spatial,
            channels,
        },
        Kernel::GlobalAveragePoolBackward {
            d_y: averaged,
            d_x: y,
            batch,
            spatial,
            channels,
            write,
        },
    ]
}

pub fn batch_norm(spans: &mut Spans) -> Vec<Kernel> {
    let [x, d_y, y] = [(); 3].map(|()| spans.f32(ROWS * CHANNELS));
    let [
        mean,
        variance,
        rstd,
        gamma,
        beta,
        running_mean,
        running_variance,
        d_gamma,
        d_beta,
    ] = [(); 9].map(|()| spans.f32(CHANNELS));
    let (sums, count) = (spans.f32(2 * CHANNELS), spans.f32(1));
    let tracked = spans
        .backend
        .allocate(Category::Buffers, Dtype::I64, 1)
        .unwrap();
    let gathered = spans.f32(2 * (2 * CHANNELS + 1));
    let (rows, eps, channels, write) = (ROWS, 1e-5, CHANNELS, Write::Accumulate);
    let momentum = Some(0.1);
    vec![
        Kernel::BatchStatistics {
            x,
            mean,
            variance,
            rows,
        },
        Kernel::ReciprocalDeviation {
            variance,
            rstd,
            eps,
        },
        Kernel::UpdateRunning {
            mean,
            variance,
            count,
            running_mean,
            running_variance,
            tracked,
            momentum,
        },
        Kernel::BatchNormalize {
            x,
            mean,
            rstd,
            gamma,
            beta,
            y,
            rows,
            then: Then::NOTHING,
        },
        Kernel::BatchBackwardReduce {
            x,
            d_y,
            mean,
            sums,
            rows,
            gate: Gate::Open,
        },
        Kernel::BatchBackwardAffine {
            sums,
            rstd,
            d_gamma,
            d_beta,
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
            gate: Gate::Open,
        },
        Kernel::BatchBackwardEval {
            d_y,
            rstd,
            gamma,
            d_x: y,
            rows,
            write,
        },
        Kernel::SyncPack {
            mean,
            rstd,
            count,
            packed: gathered.first(2 * CHANNELS + 1),
        },
        Kernel::SyncMerge {
            gathered,
            ranks: 2,
            channels,
            eps,
            mean,
            variance,
            rstd,
            count,
        },
    ]
}

pub fn group_norm(spans: &mut Spans, affine: Affine, groups: usize) -> Vec<Kernel> {
    let [x, d_y, y] = [(); 3].map(|()| spans.f32(ROWS * CHANNELS));
    let len = match affine {
        Affine::None => 0,
        Affine::Channel => CHANNELS,
        Affine::Element => SPATIAL * CHANNELS,
    };
    let [gamma, beta, d_gamma, d_beta] = [(); 4].map(|()| spans.f32(len));
    let (batch, spatial, channels, eps, write) =
        (BATCH, SPATIAL, CHANNELS, 1e-5, Write::Accumulate);
    let [mean, rstd] = [(); 2].map(|()| spans.f32(BATCH * groups));
    vec![
        Kernel::GroupNormForward {
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
            then: Then::NOTHING,
        },
        Kernel::GroupNormBackward {
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
            y: Span::EMPTY,
        },
    ]
}

pub fn rms_norm(spans: &mut Spans, affine: Affine) -> Vec<Kernel> {
    let [x, d_y, y] = [(); 3].map(|()| spans.f32(ROWS * CHANNELS));
    let len = match affine {
        Affine::None => 0,
        Affine::Channel => CHANNELS,
        Affine::Element => SPATIAL * CHANNELS,
    };
    let ([gamma, d_gamma], rstd) = ([(); 2].map(|()| spans.f32(len)), spans.f32(BATCH));
    let (batch, spatial, channels) = (BATCH, SPATIAL, CHANNELS);
    vec![
        Kernel::RmsNormForward {
            x,
            gamma,
            y,
            rstd,
            batch,
            spatial,
            channels,
            affine,
            eps: 1e-5,
            then: Then::NOTHING,
        },
        Kernel::RmsNormBackward {
            x,
            d_y,
            gamma,
            rstd,
            d_x: y,
            d_gamma,
            batch,
            spatial,
            channels,
            affine,
            write: Write::Accumulate,
            y: Span::EMPTY,
        },
    ]
}

pub fn loss_and_optimizer(spans: &mut Spans) -> Vec<Kernel> {
    let (batch, classes) = (7, 10);
    let (logits, d_logits) = (spans.f32(batch * classes), spans.f32(batch * classes));
    let (losses, loss, labels, errors) = (
        spans.f32(batch),
        spans.f32(1),
        spans.i32(batch),
        spans.i32(2),
    );
    let [parameter, gradient, buffer, square] = [(); 4].map(|()| spans.f32(1000));
    let rates = spans.f32(1);
    let counters = spans.i32(2);
    vec![
        Kernel::SoftmaxCrossEntropy {
            logits,
            labels,
            losses,
            loss,
            d_logits,
            batch,
            positions: 1,
            classes,
            scale: 0.1,
        },
        Kernel::CountErrors {
            logits,
            labels,
            errors,
            rows: batch,
            classes,
        },
        Kernel::Sgd {
            parameter,
            gradient,
            buffer,
            rates,
            momentum: 0.9,
            weight_decay: 1e-4,
            nesterov: true,
        },
        Kernel::Adamw {
            parameter,
            gradient,
            average: buffer,
            square,
            rates,
            counters,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
        },
    ]
}
