//! Kernels as data: what a layer asks its device to compute.
//!
//! A kernel is a small `Copy` value, so every backend can queue it, a test can record it, and a backend is one
//! `match`. Shapes are element counts; images are NHWC (`rows` = batch·height·width, channels fastest). All spans
//! are already cut to the batch of the call. `Write` says whether a result overwrites or adds. What a kernel writes
//! never overlaps another of its operands.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "formulas write indices in brackets"
)]
mod settings;

use crate::tensor::Span;

pub use settings::{Affine, ConvAlgorithm, ConvAlgorithms, Gate, Gelu, Heads, Then, Window, Write};

/// Everything a device can be asked to compute. Families stand together; each has its file in `backend/cpu`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "each variant states its formula, which names its operands"
)]
pub enum Kernel {
    // --- elementwise ---
    /// to[i] = value.
    Fill { to: Span, value: f32 },
    /// to[i] = from[i] (or += with `Accumulate`); f32.
    Copy { from: Span, to: Span, write: Write },
    /// to[i] = a[i] + b[i].
    Add { a: Span, b: Span, to: Span },
    /// to[i] *= factor.
    Scale { to: Span, factor: f32 },
    /// y = max(x, 0).
    ReluForward { x: Span, y: Span },
    /// dx = dy where y > 0, else 0.
    ReluBackward {
        y: Span,
        d_y: Span,
        d_x: Span,
        write: Write,
    },
    /// y = x·Φ(x), or its approximation.
    GeluForward { x: Span, y: Span, formula: Gelu },
    /// dx (+)= dy·(Φ(x) + x·Φ′(x)), or the same of the approximation.
    GeluBackward {
        x: Span,
        d_y: Span,
        d_x: Span,
        formula: Gelu,
        write: Write,
    },
    /// d_y = 0 where y is not positive: the gradient of what a rectifier's output `y` was made of.
    Gate { y: Span, d_y: Span },
    /// y = max(y + shortcut, 0) in place; the shortcut is empty for none. NaN stays NaN.
    Rectify { y: Span, shortcut: Span },
    /// Transposes each of `batch` row-major matrices: `[rows, columns]` to `[columns, rows]` (NHWC to NCHW: rows = h·w, columns = c).
    Transpose {
        from: Span,
        to: Span,
        batch: usize,
        rows: usize,
        columns: usize,
        write: Write,
    },
    /// y = x·mask/(1−p), or the same on gradients. `state` is i32 `[step, sample_offset]`; the mask is Philox4x32-10 of
    /// (seed, node, step, global sample index, element in NCHW-independent memory order).
    Dropout {
        x: Span,
        y: Span,
        p: f32,
        seed: u64,
        node: u32,
        state: Span,
        batch: usize,
        write: Write,
    },

    // --- tokens: whole numbers in f32, `[batch, length]` ---
    /// y[r,:] = table[tokens[r],:].
    EmbeddingForward {
        tokens: Span,
        table: Span,
        y: Span,
        features: usize,
    },
    /// d_table[tokens[r],:] += d_y[r,:], but for the row of `padding`.
    EmbeddingBackward {
        tokens: Span,
        d_y: Span,
        d_table: Span,
        features: usize,
        padding: Option<usize>,
    },
    /// Of each sample and head, with queries Q, keys K and values V beside each other in each row of `qkv`:
    /// y = drop(softmax(Q·Kᵀ/√size))·V over the keys that are not padding, 0 where all are. `kept` `[batch, heads, length]` is the
    /// logarithm of each row's Σ exp. `masks`: room for [`Heads::masks`] elements a sample, in which a device may leave for backward what it drew, or
    /// empty. `state` as in [`Kernel::Dropout`]; `first`: the batch's sample that is first here. `workspace` at least [`Heads::workspace`] elements.
    AttentionForward {
        qkv: Span,
        tokens: Span,
        y: Span,
        kept: Span,
        masks: Span,
        heads: Heads,
        state: Span,
        first: usize,
        batch: usize,
        workspace: Span,
    },
    /// The gradients of Q, K and V, from what forward read and wrote; d_qkv is overwritten.
    AttentionBackward {
        qkv: Span,
        tokens: Span,
        y: Span,
        kept: Span,
        masks: Span,
        d_y: Span,
        d_qkv: Span,
        heads: Heads,
        state: Span,
        first: usize,
        batch: usize,
        workspace: Span,
    },

    // --- compression of gradients ---
    /// to[i] = from[i] rounded to the type of `to` (f16 or bf16), divided by `divisor` in f32, and rounded again.
    Narrow { from: Span, to: Span, divisor: f32 },
    /// to[i] = from[i]; `from` is f16 or bf16.
    Widen { from: Span, to: Span },
    /// to[i] −= from[i]; f32.
    Subtract { from: Span, to: Span },
    /// Standard normal numbers; a function of seed, stream, place, and the step in `state` (i32 `[step, ..]`).
    FillNormal {
        to: Span,
        seed: u64,
        stream: u32,
        state: Span,
    },
    /// The columns of `matrix` (`columns` of them, row-major, no fewer rows) become orthonormal: up to two by Gram-Schmidt, more by
    /// Householder reflections. `workspace`: two elements a column.
    Orthogonalize {
        matrix: Span,
        columns: usize,
        workspace: Span,
    },

    // --- matrix products (row-major) ---
    /// c[m,n] (+)= op(a)·op(b); op(a) is [m,k] and op(b) [k,n]; a transposed operand is stored the other way round.
    Matmul {
        a: Span,
        b: Span,
        c: Span,
        m: usize,
        n: usize,
        k: usize,
        transpose_a: bool,
        transpose_b: bool,
        write: Write,
    },
    /// y[r,c] += bias[c].
    AddBias { y: Span, bias: Span, rows: usize },
    /// bias_gradient[c] += Σ_r d_y[r,c].
    BiasBackward {
        d_y: Span,
        d_bias: Span,
        rows: usize,
    },

    // --- convolution (weights [out_c, kernel, kernel, c] in memory) ---
    /// y = x ⋆ w; `bias` empty for none. `workspace` at least [`Window::workspace`] elements.
    Conv2dForward {
        x: Span,
        weight: Span,
        bias: Span,
        y: Span,
        window: Window,
        algorithm: ConvAlgorithm,
        batch: usize,
        workspace: Span,
    },
    /// dx (+)= the input gradient.
    Conv2dBackwardInput {
        d_y: Span,
        weight: Span,
        d_x: Span,
        window: Window,
        algorithm: ConvAlgorithm,
        batch: usize,
        workspace: Span,
        write: Write,
    },
    /// d_weight += the weight gradient.
    Conv2dBackwardWeight {
        x: Span,
        d_y: Span,
        d_weight: Span,
        window: Window,
        algorithm: ConvAlgorithm,
        batch: usize,
        workspace: Span,
    },

    // --- pooling ---
    /// y = window maximum; `index` (i32, like y) is the winner's offset h·W+w in its image; first in row-major order on ties, as PyTorch.
    MaxPoolForward {
        x: Span,
        y: Span,
        index: Span,
        window: Window,
        batch: usize,
    },
    /// dx gets dy at the winners.
    MaxPoolBackward {
        d_y: Span,
        index: Span,
        d_x: Span,
        window: Window,
        batch: usize,
        write: Write,
    },
    /// y = mean of each window: Σ x over the window, divided by kernel² with `count_padding`, else by its elements inside the
    /// image.
    AveragePoolForward {
        x: Span,
        y: Span,
        window: Window,
        batch: usize,
        count_padding: bool,
    },
    /// dx gets dy over the same divisor, from each window that holds it.
    AveragePoolBackward {
        d_y: Span,
        d_x: Span,
        window: Window,
        batch: usize,
        count_padding: bool,
        write: Write,
    },
    /// y[b,c] = mean over `spatial` of x[b,s,c].
    GlobalAveragePoolForward {
        x: Span,
        y: Span,
        batch: usize,
        spatial: usize,
        channels: usize,
    },
    /// dx[b,s,c] (+)= dy[b,c]/spatial.
    GlobalAveragePoolBackward {
        d_y: Span,
        d_x: Span,
        batch: usize,
        spatial: usize,
        channels: usize,
        write: Write,
    },

    // --- batch norm over rows, per channel ---
    /// mean[c], variance[c] (biased) of x[rows, c]: two passes or Welford, never E[x²] − E[x]².
    BatchStatistics {
        x: Span,
        mean: Span,
        variance: Span,
        rows: usize,
    },
    /// rstd[c] = 1/sqrt(variance[c] + eps).
    ReciprocalDeviation {
        variance: Span,
        rstd: Span,
        eps: f32,
    },
    /// rm ← (1−m)·rm + m·mean; rv ← (1−m)·rv + m·variance·n/(n−1); tracked (i64) += 1. `momentum` none: m = 1/tracked.
    /// `count` (f32, 1 element on the device) is n; where it is 0, nothing happens.
    UpdateRunning {
        mean: Span,
        variance: Span,
        count: Span,
        running_mean: Span,
        running_variance: Span,
        tracked: Span,
        momentum: Option<f32>,
    },
    /// y = γ·(x − mean)·rstd + β, and what `then` says; γ and β empty for none.
    BatchNormalize {
        x: Span,
        mean: Span,
        rstd: Span,
        gamma: Span,
        beta: Span,
        y: Span,
        rows: usize,
        then: Then,
    },
    /// sums[0..c] = Σ d_y, sums[c..2c] = Σ d_y·(x − mean), of the d_y that pass the gate: local sums, not scaled.
    BatchBackwardReduce {
        x: Span,
        d_y: Span,
        mean: Span,
        sums: Span,
        rows: usize,
        gate: Gate,
    },
    /// d_gamma += sums[c..]·rstd; d_beta += sums[..c].
    BatchBackwardAffine {
        sums: Span,
        rstd: Span,
        d_gamma: Span,
        d_beta: Span,
    },
    /// dx (+)= γ·rstd·[d_y − sums[c]/n − (x−mean)·rstd²·sums[C+c]/n], n = `count`, of the d_y that pass the gate.
    BatchBackwardInput {
        x: Span,
        d_y: Span,
        mean: Span,
        rstd: Span,
        gamma: Span,
        sums: Span,
        count: Span,
        d_x: Span,
        rows: usize,
        write: Write,
        gate: Gate,
    },
    /// The whole of batch norm's forward in one call of a library, where the device has one (`Backend::library_batch_norm`): mean and
    /// rstd[c] of x[samples·spatial, c], y = γ·(x − mean)·rstd + β, rm ← (1−m)·rm + m·mean, rv ← (1−m)·rv + m·variance·n/(n−1). Empty
    /// running statistics stay as they are; γ and β are there. At least two rows.
    LibraryBatchNorm {
        x: Span,
        gamma: Span,
        beta: Span,
        y: Span,
        mean: Span,
        rstd: Span,
        running_mean: Span,
        running_variance: Span,
        samples: usize,
        spatial: usize,
        eps: f32,
        momentum: f32,
    },
    /// The whole of its backward: d_gamma += Σ d_y·(x − mean)·rstd, d_beta += Σ d_y, and dx (+)= the input gradient, unless `d_x` is empty.
    /// Behind a [`Kernel::LibraryBatchNorm`] of the same x, mean, rstd and shape.
    LibraryBatchNormBackward {
        x: Span,
        d_y: Span,
        gamma: Span,
        mean: Span,
        rstd: Span,
        d_gamma: Span,
        d_beta: Span,
        d_x: Span,
        samples: usize,
        spatial: usize,
        eps: f32,
        write: Write,
    },
    /// Its forward in evaluation mode: y = γ·(x − rm)/sqrt(rv + eps) + β.
    LibraryBatchNormEval {
        x: Span,
        gamma: Span,
        beta: Span,
        running_mean: Span,
        running_variance: Span,
        y: Span,
        samples: usize,
        spatial: usize,
        eps: f32,
    },
    /// Evaluation mode: dx (+)= γ·rstd·d_y.
    BatchBackwardEval {
        d_y: Span,
        rstd: Span,
        gamma: Span,
        d_x: Span,
        rows: usize,
        write: Write,
    },
    /// Merges per-rank `[mean(C), rstd(C), count(1)]` blocks in rank order: M2 += v_j·n_j + (μ − μ_j)²·n·n_j/(n + n_j);
    /// a block with count 0 is left out. Writes the global mean, biased variance, rstd and count.
    SyncMerge {
        gathered: Span,
        ranks: usize,
        channels: usize,
        eps: f32,
        mean: Span,
        variance: Span,
        rstd: Span,
        count: Span,
    },
    /// packed = [mean(C), rstd(C), count]; all 0 where `count` (f32, 1 element on the device) is.
    SyncPack {
        mean: Span,
        rstd: Span,
        count: Span,
        packed: Span,
    },

    // --- batch norm over the rows whose token is not `padding` ---
    /// As [`Kernel::BatchStatistics`]; count[0] = such rows. Without any, mean and variance are 0.
    MaskedStatistics {
        x: Span,
        tokens: Span,
        padding: usize,
        mean: Span,
        variance: Span,
        count: Span,
        rows: usize,
    },
    /// As [`Kernel::BatchNormalize`] with nothing behind it; y = 0 in the other rows.
    MaskedNormalize {
        x: Span,
        tokens: Span,
        padding: usize,
        mean: Span,
        rstd: Span,
        gamma: Span,
        beta: Span,
        y: Span,
        rows: usize,
    },
    /// As [`Kernel::BatchBackwardReduce`] without a gate.
    MaskedBackwardReduce {
        x: Span,
        d_y: Span,
        tokens: Span,
        padding: usize,
        mean: Span,
        sums: Span,
        rows: usize,
    },
    /// As [`Kernel::BatchBackwardInput`] without a gate; the other rows' gradient is 0.
    MaskedBackwardInput {
        x: Span,
        d_y: Span,
        tokens: Span,
        padding: usize,
        mean: Span,
        rstd: Span,
        gamma: Span,
        sums: Span,
        count: Span,
        d_x: Span,
        rows: usize,
        write: Write,
    },
    /// As [`Kernel::BatchBackwardEval`]; the other rows' gradient is 0.
    MaskedBackwardEval {
        d_y: Span,
        tokens: Span,
        padding: usize,
        rstd: Span,
        gamma: Span,
        d_x: Span,
        rows: usize,
        write: Write,
    },

    // --- group norm (layer norm is one group, instance norm a group per channel) ---
    /// Per sample and group: mean and rstd (each [batch·groups]) kept, y = γ·x̂ + β, and what `then` says.
    GroupNormForward {
        x: Span,
        gamma: Span,
        beta: Span,
        y: Span,
        mean: Span,
        rstd: Span,
        batch: usize,
        spatial: usize,
        channels: usize,
        groups: usize,
        affine: Affine,
        eps: f32,
        then: Then,
    },
    /// dx (+)= rstd·[g − mean(g) − x̂·mean(g·x̂)], g = γ·d_y; d_gamma and d_beta accumulate. With `y`, the rectified output, d_y
    /// becomes 0 first where y is not positive; empty for none.
    GroupNormBackward {
        x: Span,
        y: Span,
        d_y: Span,
        gamma: Span,
        mean: Span,
        rstd: Span,
        d_x: Span,
        d_gamma: Span,
        d_beta: Span,
        batch: usize,
        spatial: usize,
        channels: usize,
        groups: usize,
        affine: Affine,
        write: Write,
    },

    // --- RMS norm ---
    /// Per sample: rstd = 1/sqrt(mean(x²) + eps), [batch], kept; y = γ·x·rstd, and what `then` says; γ empty for none.
    RmsNormForward {
        x: Span,
        gamma: Span,
        y: Span,
        rstd: Span,
        batch: usize,
        spatial: usize,
        channels: usize,
        affine: Affine,
        eps: f32,
        then: Then,
    },
    /// dx (+)= rstd·[g − x̂·mean(g·x̂)], g = γ·d_y, x̂ = x·rstd; d_gamma += Σ d_y·x̂. An empty `d_x` is not wanted. `y` as in
    /// [`Kernel::GroupNormBackward`].
    RmsNormBackward {
        x: Span,
        y: Span,
        d_y: Span,
        gamma: Span,
        rstd: Span,
        d_x: Span,
        d_gamma: Span,
        batch: usize,
        spatial: usize,
        channels: usize,
        affine: Affine,
        write: Write,
    },

    // --- loss ---
    /// Softmax cross-entropy with `labels` (i32), `positions` of each sample, of which negative ones are none: losses[b] = the mean over a
    /// sample's labels, 0 without any; loss[0] = scale·Σ losses (in order); d_logits = scale·(softmax − onehot)/(a sample's labels),
    /// 0 where there is no label.
    SoftmaxCrossEntropy {
        logits: Span,
        labels: Span,
        losses: Span,
        loss: Span,
        d_logits: Span,
        batch: usize,
        positions: usize,
        classes: usize,
        scale: f32,
    },
    /// errors[0] (i32) = rows whose largest logit is not their label; errors[1] = rows with a label.
    CountErrors {
        logits: Span,
        labels: Span,
        errors: Span,
        rows: usize,
        classes: usize,
    },

    // --- optimizer ---
    /// g = grad + wd·p; buf = momentum·buf + g; p −= lr·buf, or with `nesterov` p −= lr·(g + momentum·buf); p −= lr·g without
    /// momentum (`buffer` empty). lr = rates[0] on the device.
    Sgd {
        parameter: Span,
        gradient: Span,
        buffer: Span,
        rates: Span,
        momentum: f32,
        weight_decay: f32,
        nesterov: bool,
    },
    /// p ← p·(1 − lr·wd); m = average ← β₁·m + (1 − β₁)·grad; v = square ← β₂·v + (1 − β₂)·grad²;
    /// p −= lr/(1 − β₁ᵗ)·m/(√v/√(1 − β₂ᵗ) + eps). lr = rates[0] and t = counters[0] + 1 (i32) on the device.
    Adamw {
        parameter: Span,
        gradient: Span,
        average: Span,
        square: Span,
        rates: Span,
        counters: Span,
        beta1: f64,
        beta2: f64,
        eps: f32,
        weight_decay: f32,
    },
}
