//! From kernels as data to kernels as functions on slices: one `match`.
//!
//! Contract: spans become slices here and nowhere else; the functions behind are safe Rust. A kernel whose output overlaps
//! another operand is a bug of the caller and panics, before two slices could alias.
//! Reference: [`crate::kernel::Kernel`], which states each formula.
use crate::backend::cpu::memory::HostMemory;
use crate::backend::cpu::samples::{Gated, Samples};
use crate::backend::cpu::{
    attention, average_pool, batch_norm, compression, conv, dropout, elementwise, embedding, gelu,
    group_norm, library_norm, loss, masked_norm, matmul, optimizer, pool, rms_norm,
};
use crate::kernel::{Gate, Heads, Kernel, Then};
use crate::tensor::{Dtype, Span};

/// Panics when one of `outputs` overlaps another operand.
pub(super) fn disjoint(outputs: &[Span], inputs: &[Span]) {
    let overlap = |a: &Span, b: &Span| {
        a.arena() == b.arena() && a.start() < b.start() + b.len() && b.start() < a.start() + a.len()
    };
    for (i, output) in outputs.iter().enumerate() {
        let others = outputs[i + 1..].iter().chain(inputs);
        for other in others.filter(|other| !output.is_empty() && !other.is_empty()) {
            assert!(
                !overlap(output, other),
                "a kernel's output {output:?} overlaps its operand {other:?}"
            );
        }
    }
}

/// Shorthand of this file: operands by name, as slices.
#[derive(Clone, Copy)]
struct Operands<'a>(&'a HostMemory);

impl<'a> Operands<'a> {
    /// # Safety
    /// As [`run`]; the kernel's operands were found disjoint.
    unsafe fn r(&self, span: Span) -> &'a [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.0.read(span) }
    }
    /// # Safety
    /// As [`run`]; the kernel's operands were found disjoint.
    #[allow(
        clippy::mut_from_ref,
        reason = "exclusive access is the caller's promise"
    )]
    unsafe fn w(&self, span: Span) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.0.write(span) }
    }
}

/// What a gate's kernel reads, which its output must not overlap.
///
/// # Safety
/// As [`run`].
pub(super) unsafe fn rectifier<'a>(
    memory: &'a HostMemory,
    gate: Gate,
    output: Span,
) -> Option<batch_norm::Rectifier<'a>> {
    let Gate::Again { beta, gamma, rstd } = gate else {
        return None;
    };
    disjoint(&[output], &[beta, gamma, rstd]);
    let m = Operands(memory);
    // SAFETY: the caller's promise.
    let [rstd, gamma, beta] = unsafe { [m.r(rstd), m.r(gamma), m.r(beta)] };
    Some(batch_norm::Rectifier { rstd, gamma, beta })
}

/// The gradient of a norm's output, with the rectified output if there is a rectifier.
///
/// # Safety
/// As [`run`]; y and d_y were found disjoint.
unsafe fn gated<'a>(m: Operands<'a>, y: Span, d_y: Span) -> Gated<'a> {
    // SAFETY: the caller's promise.
    unsafe {
        if y.is_empty() {
            return Gated::Open(m.r(d_y));
        }
        disjoint(&[d_y], &[y]);
        Gated::Closed {
            y: m.r(y),
            d_y: m.w(d_y),
        }
    }
}

/// Whose dropout an attention has, from the device-side `state` of the step and the sample that is first in this call.
pub(super) fn attention_mask(heads: &Heads, state: &[i32], first: usize) -> dropout::Mask {
    dropout::Mask {
        p: heads.dropout,
        seed: heads.seed,
        node: heads.node,
        step: state[0] as u32,
        first_sample: (state[1] as u32).wrapping_add(first as u32),
    }
}

/// Backward of a group or RMS norm, with the gradients of γ and β (which RMS norm has not) where the caller wants them.
///
/// # Safety
/// As [`run`].
///
/// # Panics
/// When `kernel` is another one.
#[rustfmt::skip]
pub(super) unsafe fn norm_backward(memory: &HostMemory, kernel: &Kernel, d_gamma: &mut [f32], d_beta: &mut [f32]) {
    let m = Operands(memory);
    // SAFETY: the caller's promise.
    unsafe {
        match *kernel {
            Kernel::GroupNormBackward {
                x,
                y,
                d_y,
                gamma,
                mean,
                rstd,
                d_x,
                batch,
                spatial,
                channels,
                groups,
                affine,
                write,
                ..
            } => {
                disjoint(&[d_x], &[x, y, d_y, gamma, mean, rstd]);
                let shape = group_norm::Groups { spatial, channels, groups, affine };
                let samples = Samples { batch, size: spatial * channels, kept: groups };
                let gamma = m.r(gamma);
                let gated = gated(m, y, d_y);
                samples.backward(m.r(x), gated, m.w(d_x), [m.r(mean), m.r(rstd)], |x, d_y, d_x, [mean, rstd]| {
                    group_norm::backward(x, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta, shape, write);
                });
            }
            Kernel::RmsNormBackward { x, y, d_y, gamma, rstd, d_x, batch, spatial, channels, affine, write, .. } => {
                disjoint(&[d_x], &[x, y, d_y, gamma, rstd]);
                let shape = rms_norm::Shape { spatial, channels, affine };
                let samples = Samples { batch, size: spatial * channels, kept: 1 };
                let gamma = m.r(gamma);
                let gated = gated(m, y, d_y);
                samples.backward(m.r(x), gated, m.w(d_x), [m.r(rstd)], |x, d_y, d_x, [rstd]| {
                    rms_norm::backward(x, d_y, gamma, rstd, d_x, d_gamma, shape, write);
                });
            }
            _ => unreachable!("only these norms look at a sample at a time"),
        }
    }
}

/// Runs `kernel`.
///
/// # Safety
/// Nobody else touches what the kernel writes, nobody writes what it reads.
#[rustfmt::skip]
#[allow(clippy::too_many_lines, reason = "one arm per kernel")]
pub(super) unsafe fn run(memory: &HostMemory, kernel: &Kernel) {
    let m = Operands(memory);
    // SAFETY: the caller's promise, and each arm has `disjoint` check its operands before it makes slices of them.
    unsafe {
        match *kernel {
            Kernel::Fill { to, value } => m.w(to).fill(value),
            Kernel::Copy { from, to, write } => {
                disjoint(&[to], &[from]);
                elementwise::copy(m.r(from), m.w(to), write);
            }
            Kernel::Add { a, b, to } => {
                disjoint(&[to], &[a, b]);
                elementwise::add(m.r(a), m.r(b), m.w(to));
            }
            Kernel::Scale { to, factor } => elementwise::scale(m.w(to), factor),
            Kernel::ReluForward { x, y } => {
                disjoint(&[y], &[x]);
                elementwise::relu_forward(m.r(x), m.w(y));
            }
            Kernel::ReluBackward { y, d_y, d_x, write } => {
                disjoint(&[d_x], &[y, d_y]);
                elementwise::relu_backward(m.r(y), m.r(d_y), m.w(d_x), write);
            }
            Kernel::Gate { y, d_y } => {
                disjoint(&[d_y], &[y]);
                elementwise::gate(m.r(y), m.w(d_y));
            }
            Kernel::Rectify { y, shortcut } => {
                disjoint(&[y], &[shortcut]);
                elementwise::finish(m.w(y), m.r(shortcut), true);
            }
            Kernel::GeluForward { x, y, formula } => {
                disjoint(&[y], &[x]);
                gelu::forward(m.r(x), m.w(y), formula);
            }
            Kernel::GeluBackward { x, d_y, d_x, formula, write } => {
                disjoint(&[d_x], &[x, d_y]);
                gelu::backward(m.r(x), m.r(d_y), m.w(d_x), formula, write);
            }
            Kernel::Transpose { from, to, batch, rows, columns, write } => {
                disjoint(&[to], &[from]);
                elementwise::transpose(m.r(from), m.w(to), batch, rows, columns, write);
            }
            Kernel::Dropout { x, y, p, seed, node, state, batch, write } => {
                disjoint(&[y], &[x, state]);
                let state = memory.read::<i32>(state);
                let (step, first_sample) = (state[0] as u32, state[1] as u32);
                dropout::dropout(m.r(x), m.w(y), dropout::Mask { p, seed, node, step, first_sample }, batch, write);
            }
            Kernel::EmbeddingForward { tokens, table, y, features } => {
                disjoint(&[y], &[tokens, table]);
                embedding::forward(m.r(tokens), m.r(table), m.w(y), features);
            }
            Kernel::EmbeddingBackward { tokens, d_y, d_table, features, padding } => {
                disjoint(&[d_table], &[tokens, d_y]);
                embedding::backward(m.r(tokens), m.r(d_y), m.w(d_table), features, padding);
            }
            Kernel::AttentionForward { qkv, tokens, y, kept, heads, state, first, batch, workspace, .. } => {
                disjoint(&[y, kept, workspace], &[qkv, tokens, state]);
                let mask = attention_mask(&heads, memory.read(state), first);
                attention::forward(m.r(qkv), m.r(tokens), m.w(y), m.w(kept), &heads, mask, batch, m.w(workspace));
            }
            Kernel::AttentionBackward { qkv, tokens, y, kept, d_y, d_qkv, heads, state, first, batch, workspace, .. } => {
                disjoint(&[d_qkv, workspace], &[qkv, tokens, y, kept, d_y, state]);
                let mask = attention_mask(&heads, memory.read(state), first);
                let (qkv, tokens, kept, d_y) = (m.r(qkv), m.r(tokens), m.r(kept), m.r(d_y));
                attention::backward(qkv, tokens, kept, d_y, m.w(d_qkv), &heads, mask, batch, m.w(workspace));
            }
            Kernel::Narrow { from, to, divisor } => {
                disjoint(&[to], &[from]);
                match to.dtype() {
                    Dtype::F16 => compression::narrow_f16(m.r(from), memory.write(to), divisor),
                    _ => compression::narrow_bf16(m.r(from), memory.write(to), divisor),
                }
            }
            Kernel::Widen { from, to } => {
                disjoint(&[to], &[from]);
                match from.dtype() {
                    Dtype::F16 => compression::widen_f16(memory.read(from), m.w(to)),
                    _ => compression::widen_bf16(memory.read(from), m.w(to)),
                }
            }
            Kernel::Subtract { from, to } => {
                disjoint(&[to], &[from]);
                compression::subtract(m.r(from), m.w(to));
            }
            Kernel::FillNormal { to, seed, stream, state } => {
                disjoint(&[to], &[state]);
                let step = memory.read::<i32>(state)[0] as u32;
                compression::fill_normal(m.w(to), seed, step, stream);
            }
            Kernel::Orthogonalize { matrix, columns, workspace } => {
                disjoint(&[matrix, workspace], &[]);
                compression::orthogonalize(m.w(matrix), columns, m.w(workspace));
            }
            Kernel::Matmul { a, b, c, m: rows, n, k, transpose_a, transpose_b, write } => {
                disjoint(&[c], &[a, b]);
                let product = matmul::Product { m: rows, n, k, transpose_a, transpose_b };
                matmul::matmul(product, m.r(a), m.r(b), m.w(c), write);
            }
            Kernel::AddBias { y, bias, rows } => {
                disjoint(&[y], &[bias]);
                matmul::add_bias(m.w(y), m.r(bias), rows);
            }
            Kernel::BiasBackward { d_y, d_bias, rows } => {
                disjoint(&[d_bias], &[d_y]);
                matmul::bias_backward(m.r(d_y), m.w(d_bias), rows);
            }
            Kernel::Conv2dForward { x, weight, bias, y, window, algorithm, batch, workspace } => {
                disjoint(&[y, workspace], &[x, weight, bias]);
                let call = conv::Call { algorithm, window: &window, batch };
                conv::forward(call, m.r(x), m.r(weight), m.r(bias), m.w(y), m.w(workspace));
            }
            Kernel::Conv2dBackwardInput { d_y, weight, d_x, window, algorithm, batch, workspace, write } => {
                disjoint(&[d_x, workspace], &[d_y, weight]);
                let call = conv::Call { algorithm, window: &window, batch };
                conv::backward_input(call, m.r(d_y), m.r(weight), m.w(d_x), m.w(workspace), write);
            }
            Kernel::Conv2dBackwardWeight { x, d_y, d_weight, window, algorithm, batch, workspace } => {
                disjoint(&[d_weight, workspace], &[x, d_y]);
                let (to, room) = (m.w(d_weight), m.w(workspace));
                let call = conv::Call { algorithm, window: &window, batch };
                conv::backward_weight(call, m.r(x), m.r(d_y), to, room, 0..window.out_c);
            }
            Kernel::MaxPoolForward { x, y, index, window, batch } => {
                disjoint(&[y, index], &[x]);
                pool::max_forward(m.r(x), m.w(y), memory.write(index), &window, batch);
            }
            Kernel::MaxPoolBackward { d_y, index, d_x, window, batch, write } => {
                disjoint(&[d_x], &[d_y, index]);
                pool::max_backward(m.r(d_y), memory.read(index), m.w(d_x), &window, batch, write);
            }
            Kernel::AveragePoolForward { x, y, window, batch, count_padding } => {
                disjoint(&[y], &[x]);
                average_pool::forward(m.r(x), m.w(y), &window, batch, count_padding);
            }
            Kernel::AveragePoolBackward { d_y, d_x, window, batch, count_padding, write } => {
                disjoint(&[d_x], &[d_y]);
                average_pool::backward(m.r(d_y), m.w(d_x), &window, batch, count_padding, write);
            }
            Kernel::GlobalAveragePoolForward { x, y, batch, spatial, channels } => {
                disjoint(&[y], &[x]);
                let x = m.r(x.first(batch * spatial * channels));
                pool::average_forward(x, m.w(y), spatial, channels);
            }
            Kernel::GlobalAveragePoolBackward { d_y, d_x, batch, spatial, channels, write } => {
                disjoint(&[d_x], &[d_y]);
                let d_x = m.w(d_x.first(batch * spatial * channels));
                pool::average_backward(m.r(d_y), d_x, spatial, channels, write);
            }
            Kernel::BatchStatistics { x, mean, variance, rows } => {
                disjoint(&[mean, variance], &[x]);
                batch_norm::statistics(m.r(x), m.w(mean), m.w(variance), rows);
            }
            Kernel::ReciprocalDeviation { variance, rstd, eps } => {
                disjoint(&[rstd], &[variance]);
                batch_norm::reciprocal_deviation(m.r(variance), m.w(rstd), eps);
            }
            Kernel::UpdateRunning { mean, variance, count, running_mean, running_variance, tracked, momentum } => {
                disjoint(&[running_mean, running_variance, tracked], &[mean, variance, count]);
                let tracked = &mut memory.write::<i64>(tracked)[0];
                let running = batch_norm::Running { mean: m.w(running_mean), variance: m.w(running_variance), tracked };
                batch_norm::update_running(m.r(mean), m.r(variance), m.r(count)[0], running, momentum);
            }
            Kernel::BatchNormalize { x, mean, rstd, gamma, beta, y, rows, then: Then { shortcut, relu } } => {
                disjoint(&[y], &[x, mean, rstd, gamma, beta, shortcut]);
                let (mean, rstd, gamma, beta) = (m.r(mean), m.r(rstd), m.r(gamma), m.r(beta));
                batch_norm::normalize(m.r(x), mean, rstd, gamma, beta, m.r(shortcut), relu, m.w(y), rows);
            }
            Kernel::BatchBackwardReduce { x, d_y, mean, sums, rows, gate } => {
                disjoint(&[sums], &[x, d_y, mean]);
                batch_norm::backward_reduce(m.r(x), m.r(d_y), m.r(mean), rectifier(memory, gate, sums), m.w(sums), rows);
            }
            Kernel::BatchBackwardAffine { sums, rstd, d_gamma, d_beta } => {
                disjoint(&[d_gamma, d_beta], &[sums, rstd]);
                batch_norm::backward_affine(m.r(sums), m.r(rstd), m.w(d_gamma), m.w(d_beta));
            }
            Kernel::BatchBackwardInput { x, d_y, mean, rstd, gamma, sums, count, d_x, rows, write, gate } => {
                disjoint(&[d_x], &[x, d_y, mean, rstd, gamma, sums, count]);
                let (mean, rstd, gamma, sums) = (m.r(mean), m.r(rstd), m.r(gamma), m.r(sums));
                let (x, d_y, count, gate) = (m.r(x), m.r(d_y), m.r(count)[0], rectifier(memory, gate, d_x));
                batch_norm::backward_input(x, d_y, mean, rstd, gamma, gate, sums, count, m.w(d_x), rows, write);
            }
            Kernel::LibraryBatchNorm { x, gamma, beta, y, mean, rstd, running_mean, running_variance, eps, momentum, .. } => {
                disjoint(&[y, mean, rstd, running_mean, running_variance], &[x, gamma, beta]);
                let affine = library_norm::Affine { gamma: m.r(gamma), beta: m.r(beta) };
                let averages = library_norm::Averages { mean: m.w(running_mean), variance: m.w(running_variance), momentum };
                library_norm::forward(m.r(x), &affine, m.w(y), [m.w(mean), m.w(rstd)], averages, eps);
            }
            Kernel::LibraryBatchNormBackward { x, d_y, gamma, mean, rstd, d_gamma, d_beta, d_x, write, .. } => {
                disjoint(&[d_gamma, d_beta, d_x], &[x, d_y, gamma, mean, rstd]);
                let kept = library_norm::Kept { x: m.r(x), d_y: m.r(d_y), gamma: m.r(gamma), mean: m.r(mean), rstd: m.r(rstd) };
                library_norm::backward(&kept, [m.w(d_gamma), m.w(d_beta)], m.w(d_x), write);
            }
            Kernel::LibraryBatchNormEval { x, gamma, beta, running_mean, running_variance, y, eps, .. } => {
                disjoint(&[y], &[x, gamma, beta, running_mean, running_variance]);
                let affine = library_norm::Affine { gamma: m.r(gamma), beta: m.r(beta) };
                library_norm::eval(m.r(x), &affine, m.r(running_mean), m.r(running_variance), m.w(y), eps);
            }
            Kernel::BatchBackwardEval { d_y, rstd, gamma, d_x, rows, write } => {
                disjoint(&[d_x], &[d_y, rstd, gamma]);
                batch_norm::backward_eval(m.r(d_y), m.r(rstd), m.r(gamma), m.w(d_x), rows, write);
            }
            Kernel::SyncMerge { gathered, ranks, channels, eps, mean, variance, rstd, count } => {
                disjoint(&[mean, variance, rstd, count], &[gathered]);
                let gathered = m.r(gathered.first(ranks * (2 * channels + 1)));
                let (mean, variance, rstd, count) = (m.w(mean), m.w(variance), m.w(rstd), m.w(count));
                batch_norm::sync_merge(gathered, channels, eps, batch_norm::Merged { mean, variance, rstd, count });
            }
            Kernel::SyncPack { mean, rstd, count, packed } => {
                disjoint(&[packed], &[mean, rstd, count]);
                batch_norm::sync_pack(m.r(mean), m.r(rstd), m.r(count)[0], m.w(packed));
            }
            Kernel::MaskedStatistics { x, tokens, padding, mean, variance, count, .. } => {
                disjoint(&[mean, variance, count], &[x, tokens]);
                let rows = masked_norm::Rows { tokens: m.r(tokens), padding };
                masked_norm::statistics(m.r(x), rows, m.w(mean), m.w(variance), m.w(count));
            }
            Kernel::MaskedNormalize { x, tokens, padding, mean, rstd, gamma, beta, y, .. } => {
                disjoint(&[y], &[x, tokens, mean, rstd, gamma, beta]);
                let rows = masked_norm::Rows { tokens: m.r(tokens), padding };
                masked_norm::normalize(m.r(x), rows, [mean, rstd, gamma, beta].map(|span| m.r(span)), m.w(y));
            }
            Kernel::MaskedBackwardReduce { x, d_y, tokens, padding, mean, sums, .. } => {
                disjoint(&[sums], &[x, d_y, tokens, mean]);
                let rows = masked_norm::Rows { tokens: m.r(tokens), padding };
                masked_norm::backward_reduce(m.r(x), m.r(d_y), rows, m.r(mean), m.w(sums));
            }
            Kernel::MaskedBackwardInput { x, d_y, tokens, padding, mean, rstd, gamma, sums, count, d_x, write, .. } => {
                disjoint(&[d_x], &[x, d_y, tokens, mean, rstd, gamma, sums, count]);
                let rows = masked_norm::Rows { tokens: m.r(tokens), padding };
                let [mean, rstd, gamma, sums] = [mean, rstd, gamma, sums].map(|span| m.r(span));
                let kept = masked_norm::Kept { mean, rstd, gamma, sums, count: m.r(count)[0] };
                masked_norm::backward_input(m.r(x), m.r(d_y), rows, kept, m.w(d_x), write);
            }
            Kernel::MaskedBackwardEval { d_y, tokens, padding, rstd, gamma, d_x, write, .. } => {
                disjoint(&[d_x], &[d_y, tokens, rstd, gamma]);
                let rows = masked_norm::Rows { tokens: m.r(tokens), padding };
                masked_norm::backward_eval(m.r(d_y), rows, [m.r(rstd), m.r(gamma)], m.w(d_x), write);
            }
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
                then: Then { shortcut, relu },
            } => {
                disjoint(&[y, mean, rstd], &[x, gamma, beta, shortcut]);
                let shape = group_norm::Groups { spatial, channels, groups, affine };
                let samples = Samples { batch, size: spatial * channels, kept: groups };
                let (gamma, beta, shortcut) = (m.r(gamma), m.r(beta), m.r(shortcut));
                samples.forward(m.r(x), shortcut, relu, m.w(y), [m.w(mean), m.w(rstd)], |x, y, [mean, rstd]| {
                    group_norm::forward(x, gamma, beta, y, mean, rstd, shape, eps);
                });
            }
            Kernel::GroupNormBackward { x, y, d_y, gamma, mean, rstd, d_gamma, d_beta, .. } => {
                disjoint(&[d_gamma, d_beta], &[x, y, d_y, gamma, mean, rstd]);
                norm_backward(memory, kernel, m.w(d_gamma), m.w(d_beta));
            }
            Kernel::RmsNormForward {
                x,
                gamma,
                y,
                rstd,
                batch,
                spatial,
                channels,
                affine,
                eps,
                then: Then { shortcut, relu },
            } => {
                disjoint(&[y, rstd], &[x, gamma, shortcut]);
                let shape = rms_norm::Shape { spatial, channels, affine };
                let samples = Samples { batch, size: spatial * channels, kept: 1 };
                let gamma = m.r(gamma);
                samples.forward(m.r(x), m.r(shortcut), relu, m.w(y), [m.w(rstd)], |x, y, [rstd]| {
                    rms_norm::forward(x, gamma, y, rstd, shape, eps);
                });
            }
            Kernel::RmsNormBackward { x, y, d_y, gamma, rstd, d_gamma, .. } => {
                disjoint(&[d_gamma], &[x, y, d_y, gamma, rstd]);
                norm_backward(memory, kernel, m.w(d_gamma), &mut []);
            }
            Kernel::SoftmaxCrossEntropy { logits, labels, losses, loss, d_logits, batch, positions, classes, scale } => {
                disjoint(&[losses, loss, d_logits], &[logits, labels]);
                let logits = m.r(logits.first(batch * positions * classes));
                let (losses, loss) = (m.w(losses), m.w(loss));
                loss::softmax_cross_entropy(logits, memory.read(labels), losses, m.w(d_logits), positions, classes, scale);
                if let Some(loss) = loss.first_mut() {
                    *loss = loss::total(losses, scale);
                }
            }
            Kernel::CountErrors { logits, labels, errors, rows, classes } => {
                disjoint(&[errors], &[logits, labels]);
                let logits = m.r(logits.first(rows * classes));
                memory.write::<i32>(errors).copy_from_slice(&loss::count_errors(logits, memory.read(labels), classes));
            }
            Kernel::Sgd { parameter, gradient, buffer, rates, momentum, weight_decay, nesterov } => {
                disjoint(&[parameter, buffer], &[gradient, rates]);
                let rate = m.r(rates)[0];
                optimizer::sgd(m.w(parameter), m.r(gradient), m.w(buffer), rate, momentum, weight_decay, nesterov);
            }
            Kernel::Adamw { parameter, gradient, average, square, rates, counters, beta1, beta2, eps, weight_decay } => {
                disjoint(&[parameter, average, square], &[gradient, rates, counters]);
                let updates = memory.read::<i32>(counters)[0] + 1;
                let factors = optimizer::Factors::new(m.r(rates)[0], updates, beta1, beta2, weight_decay);
                optimizer::adamw(m.w(parameter), m.r(gradient), m.w(average), m.w(square), factors, eps);
            }
        }
    }
}
