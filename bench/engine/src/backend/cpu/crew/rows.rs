//! Kernels over the rows of a matrix, and sums over them.
use std::ops::Range;

use super::{Crew, LINE};
use crate::backend::cpu::launch::{disjoint, rectifier};
use crate::backend::cpu::masked_norm::{self, Rows};
use crate::backend::cpu::memory::HostMemory;
use crate::backend::cpu::{batch_norm, matmul};
use crate::kernel::{Kernel, Then};
use crate::tensor::Span;

#[rustfmt::skip]
impl Crew {
    /// Kernels over the rows of a matrix, and sums over them.
    ///
    /// # Safety
    /// As [`Crew::run`].
    pub(super) unsafe fn by_row(&mut self, memory: &HostMemory, kernel: &Kernel) -> bool {
        let (x, rows) = match *kernel {
            Kernel::BatchStatistics { x, rows, .. } | Kernel::BatchNormalize { x, rows, .. } => (x, rows),
            Kernel::BatchBackwardReduce { x, rows, .. } | Kernel::BatchBackwardInput { x, rows, .. } => (x, rows),
            Kernel::BatchBackwardEval { d_y, rows, .. } | Kernel::BiasBackward { d_y, rows, .. } => (d_y, rows),
            Kernel::AddBias { y, rows, .. } => (y, rows),
            Kernel::MaskedStatistics { x, rows, .. } | Kernel::MaskedNormalize { x, rows, .. } => (x, rows),
            Kernel::MaskedBackwardReduce { x, rows, .. } | Kernel::MaskedBackwardInput { x, rows, .. } => (x, rows),
            Kernel::MaskedBackwardEval { d_y, rows, .. } => (d_y, rows),
            _ => return false,
        };
        if rows < self.parts() || !self.worthwhile(x.len()) {
            return false;
        }
        let width = x.len() / rows;
        let s = |span: Span, range: &Range<usize>| {
            if span.is_empty() { span } else { span.slice(range.start * width..range.end * width) }
        };
        // Rows of whole cache lines, so that no two threads write to one.
        let unit = LINE.div_ceil(width);
        // SAFETY: the caller's promise; ranges are disjoint.
        unsafe {
            match *kernel {
                Kernel::BatchStatistics { x, mean, variance, .. } => {
                    disjoint(&[mean, variance], &[x]);
                    self.sum(rows, 2 * width, |range, sums| {
                        batch_norm::partial_statistics(memory.read(s(x, &range)), sums, range.len());
                    });
                    let parts = self.parts();
                    let of = |part: usize| rows * (part + 1) / parts - rows * part / parts;
                    let mut done = of(0);
                    let merged = self.merge(|part, merged, own| {
                        batch_norm::merge_statistics(merged, done, own, of(part));
                        done += of(part);
                    });
                    let (means, squares) = merged.split_at(width);
                    let (mean, variance) = (memory.write::<f32>(mean), memory.write::<f32>(variance));
                    mean.iter_mut().zip(means).for_each(|(to, mean)| *to = *mean as f32);
                    variance.iter_mut().zip(squares).for_each(|(to, squares)| *to = (squares / rows as f64) as f32);
                }
                Kernel::BatchBackwardReduce { x, d_y, mean, sums, gate, .. } => {
                    disjoint(&[sums], &[x, d_y, mean]);
                    let gate = rectifier(memory, gate, sums);
                    let to = memory.write::<f32>(sums);
                    let mean = memory.read::<f32>(mean);
                    self.sum(rows, 2 * width, |range, sums| {
                        let (x, d_y) = (memory.read(s(x, &range)), memory.read(s(d_y, &range)));
                        batch_norm::backward_reduce(x, d_y, mean, gate, sums, range.len());
                    });
                    let total = self.merge(|_, total, own| total.iter_mut().zip(own).for_each(|(total, own)| *total += own));
                    to.iter_mut().zip(total).for_each(|(to, total)| *to = *total as f32);
                }
                Kernel::MaskedStatistics { x, tokens, padding, mean, variance, count, .. } => {
                    disjoint(&[mean, variance, count], &[x, tokens]);
                    let of = |range: &Range<usize>| Rows { tokens: memory.read(tokens.slice(range.clone())), padding };
                    // Twice: what is kept, and room for one run.
                    self.sum(rows, 4 * width, |range, sums| {
                        let (kept, room) = sums.split_at_mut(2 * width);
                        masked_norm::partial_statistics(memory.read(s(x, &range)), of(&range), kept, room);
                    });
                    let parts = self.parts();
                    let of = |part: usize| of(&(rows * part / parts..rows * (part + 1) / parts)).count();
                    let mut done = of(0);
                    let merged = self.merge(|part, merged, own| {
                        let more = of(part);
                        if done == 0 {
                            merged.copy_from_slice(own);
                        } else {
                            batch_norm::merge_statistics(&mut merged[..2 * width], done, &own[..2 * width], more);
                        }
                        done += more;
                    });
                    masked_norm::finish(&merged[..2 * width], done, memory.write(mean), memory.write(variance));
                    memory.write::<f32>(count)[0] = done as f32;
                }
                Kernel::MaskedBackwardReduce { x, d_y, tokens, padding, mean, sums, .. } => {
                    disjoint(&[sums], &[x, d_y, tokens, mean]);
                    let to = memory.write::<f32>(sums);
                    let mean = memory.read::<f32>(mean);
                    self.sum(rows, 4 * width, |range, sums| {
                        let (x, d_y) = (memory.read(s(x, &range)), memory.read(s(d_y, &range)));
                        let of = Rows { tokens: memory.read(tokens.slice(range)), padding };
                        let (sums, room) = sums.split_at_mut(2 * width);
                        masked_norm::partial_backward_reduce(x, d_y, of, mean, sums, room);
                    });
                    let total = self.merge(|_, total, own| total.iter_mut().zip(own).for_each(|(total, own)| *total += own));
                    to.iter_mut().zip(total).for_each(|(to, total)| *to = *total as f32);
                }
                Kernel::MaskedNormalize { x, tokens, padding, mean, rstd, gamma, beta, y, .. } => {
                    self.each(memory, rows, unit, |_, range| Kernel::MaskedNormalize {
                        x: s(x, &range), tokens: tokens.slice(range.clone()), padding, mean, rstd, gamma, beta, y: s(y, &range),
                        rows: range.len(),
                    });
                }
                Kernel::MaskedBackwardInput { x, d_y, tokens, padding, mean, rstd, gamma, sums, count, d_x, write, .. } => {
                    self.each(memory, rows, unit, |_, range| Kernel::MaskedBackwardInput {
                        x: s(x, &range), d_y: s(d_y, &range), tokens: tokens.slice(range.clone()), padding, mean, rstd, gamma, sums, count,
                        d_x: s(d_x, &range), rows: range.len(), write,
                    });
                }
                Kernel::MaskedBackwardEval { d_y, tokens, padding, rstd, gamma, d_x, write, .. } => {
                    self.each(memory, rows, unit, |_, range| Kernel::MaskedBackwardEval {
                        d_y: s(d_y, &range), tokens: tokens.slice(range.clone()), padding, rstd, gamma, d_x: s(d_x, &range),
                        rows: range.len(), write,
                    });
                }
                Kernel::BiasBackward { d_y, d_bias, .. } => {
                    disjoint(&[d_bias], &[d_y]);
                    let to = memory.write::<f32>(d_bias);
                    self.accumulate(rows, &mut [to], |range, sums| {
                        matmul::bias_backward(memory.read(s(d_y, &range)), sums, range.len());
                    });
                }
                Kernel::BatchNormalize { x, mean, rstd, gamma, beta, y, then, .. } => self.each(memory, rows, unit, |_, range| {
                    let then = Then { shortcut: s(then.shortcut, &range), ..then };
                    Kernel::BatchNormalize { x: s(x, &range), mean, rstd, gamma, beta, y: s(y, &range), rows: range.len(), then }
                }),
                Kernel::BatchBackwardInput { x, d_y, mean, rstd, gamma, sums, count, d_x, write, gate, .. } => {
                    self.each(memory, rows, unit, |_, range| Kernel::BatchBackwardInput {
                        x: s(x, &range), d_y: s(d_y, &range), mean, rstd, gamma, sums, count, d_x: s(d_x, &range),
                        rows: range.len(), write, gate,
                    });
                }
                Kernel::BatchBackwardEval { d_y, rstd, gamma, d_x, write, .. } => self.each(memory, rows, unit, |_, range| {
                    Kernel::BatchBackwardEval { d_y: s(d_y, &range), rstd, gamma, d_x: s(d_x, &range), rows: range.len(), write }
                }),
                Kernel::AddBias { y, bias, .. } => {
                    self.each(memory, rows, unit, |_, range| Kernel::AddBias { y: s(y, &range), bias, rows: range.len() });
                }
                _ => return false,
            }
        }
        true
    }
}
