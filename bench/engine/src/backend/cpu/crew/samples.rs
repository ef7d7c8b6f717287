//! Kernels that look at one sample at a time.
use std::ops::Range;

use super::{Crew, PRODUCTS};
use crate::backend::cpu::launch::disjoint;
use crate::backend::cpu::memory::HostMemory;
use crate::backend::cpu::{dropout, launch, loss};
use crate::kernel::{Kernel, Then, Window};
use crate::tensor::Span;

#[rustfmt::skip]
impl Crew {
    /// Kernels that look at one sample at a time.
    ///
    /// # Safety
    /// As [`Crew::run`].
    pub(super) unsafe fn by_sample(&mut self, memory: &HostMemory, kernel: &Kernel) -> bool {
        let (len, elements) = match *kernel {
            Kernel::Conv2dForward { y, window, batch, workspace, .. } if self.has_room(&window, workspace) => (batch, y.len()),
            Kernel::Conv2dBackwardInput { d_x, window, batch, workspace, .. } if self.has_room(&window, workspace) => (batch, d_x.len()),
            Kernel::MaxPoolForward { x, batch, .. } | Kernel::AveragePoolForward { x, batch, .. } => (batch, x.len()),
            Kernel::MaxPoolBackward { d_x, batch, .. } | Kernel::AveragePoolBackward { d_x, batch, .. } => (batch, d_x.len()),
            Kernel::GlobalAveragePoolForward { x, batch, .. } => (batch, x.len()),
            Kernel::GlobalAveragePoolBackward { d_x, batch, .. } => (batch, d_x.len()),
            Kernel::Transpose { from, batch, .. } => (batch, from.len()),
            Kernel::GroupNormForward { x, batch, .. } | Kernel::RmsNormForward { x, batch, .. } => (batch, x.len()),
            Kernel::GroupNormBackward { x, batch, .. } | Kernel::RmsNormBackward { x, batch, .. } => (batch, x.len()),
            Kernel::Dropout { x, batch, .. } => (batch, x.len()),
            // As long as the product that each score is.
            Kernel::AttentionForward { heads, batch, workspace, .. } | Kernel::AttentionBackward { heads, batch, workspace, .. }
                if workspace.len() >= heads.workspace() * self.parts() =>
            {
                (batch, batch * heads.count * heads.length * heads.length * heads.size / PRODUCTS)
            }
            Kernel::SoftmaxCrossEntropy { logits, batch, positions, classes, .. } if logits.len() == batch * positions * classes => {
                (batch, logits.len())
            }
            _ => return false,
        };
        if !self.worthwhile(elements) || len < self.parts() {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe {
            match *kernel {
                Kernel::GroupNormBackward { .. } | Kernel::RmsNormBackward { .. } => self.norm_backward(memory, kernel, len),
                Kernel::Dropout { x, y, p, seed, node, state, batch, write } => {
                    disjoint(&[y], &[x, state]);
                    let state = memory.read::<i32>(state);
                    let (step, first_sample) = (state[0] as u32, state[1] as u32);
                    let size = x.len() / batch;
                    self.team.run(&|part| {
                        let range = self.part(part, batch, 1);
                        let own = range.start * size..range.end * size;
                        let first_sample = first_sample.wrapping_add(range.start as u32);
                        let mask = dropout::Mask { p, seed, node, step, first_sample };
                        dropout::dropout(memory.read(x.slice(own.clone())), memory.write(y.slice(own)), mask, range.len(), write);
                    });
                }
                Kernel::SoftmaxCrossEntropy { losses, loss, scale, .. } => {
                    disjoint(&[loss], &[losses]);
                    self.each(memory, len, 1, |part, range| Self::samples(kernel, len, part, range));
                    if !loss.is_empty() {
                        memory.write::<f32>(loss)[0] = loss::total(memory.read(losses), scale);
                    }
                }
                _ => self.each(memory, len, 1, |part, range| Self::samples(kernel, len, part, range)),
            }
        }
        true
    }

    pub(super) fn has_room(&self, window: &Window, workspace: Span) -> bool {
        workspace.len() >= window.workspace() * self.parts()
    }

    /// The kernel of some samples. Operands with something for each sample are cut, the others stay.
    fn samples(kernel: &Kernel, batch: usize, part: usize, range: Range<usize>) -> Kernel {
        let s = |span: Span| {
            let size = span.len() / batch;
            span.slice(range.start * size..range.end * size)
        };
        let own = range.len();
        let room = |all: Span, window: &Window| {
            let each = window.workspace();
            all.slice(part * each..(part + 1) * each)
        };
        match *kernel {
            Kernel::Conv2dForward { x, weight, bias, y, window, algorithm, workspace, .. } => Kernel::Conv2dForward {
                x: s(x), weight, bias, y: s(y), window, algorithm, batch: own, workspace: room(workspace, &window),
            },
            Kernel::Conv2dBackwardInput { d_y, weight, d_x, window, algorithm, workspace, write, .. } => Kernel::Conv2dBackwardInput {
                d_y: s(d_y), weight, d_x: s(d_x), window, algorithm, batch: own, workspace: room(workspace, &window), write,
            },
            Kernel::MaxPoolForward { x, y, index, window, .. } => {
                Kernel::MaxPoolForward { x: s(x), y: s(y), index: s(index), window, batch: own }
            }
            Kernel::MaxPoolBackward { d_y, index, d_x, window, write, .. } => {
                Kernel::MaxPoolBackward { d_y: s(d_y), index: s(index), d_x: s(d_x), window, batch: own, write }
            }
            Kernel::AveragePoolForward { x, y, window, count_padding, .. } => {
                Kernel::AveragePoolForward { x: s(x), y: s(y), window, batch: own, count_padding }
            }
            Kernel::AveragePoolBackward { d_y, d_x, window, count_padding, write, .. } => {
                Kernel::AveragePoolBackward { d_y: s(d_y), d_x: s(d_x), window, batch: own, count_padding, write }
            }
            Kernel::GlobalAveragePoolForward { x, y, spatial, channels, .. } => {
                Kernel::GlobalAveragePoolForward { x: s(x), y: s(y), batch: own, spatial, channels }
            }
            Kernel::GlobalAveragePoolBackward { d_y, d_x, spatial, channels, write, .. } => {
                Kernel::GlobalAveragePoolBackward { d_y: s(d_y), d_x: s(d_x), batch: own, spatial, channels, write }
            }
            Kernel::Transpose { from, to, rows, columns, write, .. } => {
                Kernel::Transpose { from: s(from), to: s(to), batch: own, rows, columns, write }
            }
            Kernel::GroupNormForward { x, gamma, beta, y, mean, rstd, spatial, channels, groups, affine, eps, then, .. } => {
                let then = Then { shortcut: s(then.shortcut), ..then };
                Kernel::GroupNormForward {
                    x: s(x), gamma, beta, y: s(y), mean: s(mean), rstd: s(rstd), batch: own, spatial, channels, groups, affine, eps, then,
                }
            }
            Kernel::RmsNormForward { x, gamma, y, rstd, spatial, channels, affine, eps, then, .. } => {
                let then = Then { shortcut: s(then.shortcut), ..then };
                Kernel::RmsNormForward { x: s(x), gamma, y: s(y), rstd: s(rstd), batch: own, spatial, channels, affine, eps, then }
            }
            Kernel::AttentionForward { qkv, tokens, y, kept, masks, heads, state, first, workspace, .. } => Kernel::AttentionForward {
                qkv: s(qkv), tokens: s(tokens), y: s(y), kept: s(kept), masks: s(masks), heads, state, first: first + range.start,
                batch: own, workspace: workspace.slice(part * heads.workspace()..(part + 1) * heads.workspace()),
            },
            Kernel::AttentionBackward { qkv, tokens, y, kept, masks, d_y, d_qkv, heads, state, first, workspace, .. } => Kernel::AttentionBackward {
                qkv: s(qkv), tokens: s(tokens), y: s(y), kept: s(kept), masks: s(masks), d_y: s(d_y), d_qkv: s(d_qkv),
                heads, state, first: first + range.start, batch: own, workspace: workspace.slice(part * heads.workspace()..(part + 1) * heads.workspace()),
            },
            // The sum over all samples is the caller's.
            Kernel::SoftmaxCrossEntropy { logits, labels, losses, d_logits, positions, classes, scale, .. } => Kernel::SoftmaxCrossEntropy {
                logits: s(logits), labels: s(labels), losses: s(losses), loss: Span::EMPTY, d_logits: s(d_logits), batch: own, positions,
                classes, scale,
            },
            other => other,
        }
    }

    /// Backward of group and RMS norm, whose parts each have sums for γ and β.
    ///
    /// # Safety
    /// As [`Crew::run`].
    unsafe fn norm_backward(&mut self, memory: &HostMemory, kernel: &Kernel, batch: usize) {
        let s = |span: Span, range: &Range<usize>| {
            let size = span.len() / batch;
            span.slice(range.start * size..range.end * size)
        };
        // SAFETY: the caller's promise; parts are disjoint, and sums for γ and β their own.
        unsafe {
            match *kernel {
                Kernel::GroupNormBackward {
                    x, y, d_y, gamma, mean, rstd, d_x, d_gamma, d_beta, spatial, channels, groups, affine, write, ..
                } => {
                    disjoint(&[d_gamma, d_beta], &[x, y, d_y, gamma, mean, rstd, d_x]);
                    let width = d_gamma.len();
                    let mut to = [memory.write::<f32>(d_gamma), memory.write::<f32>(d_beta)];
                    self.accumulate(batch, &mut to, |range, sums| {
                        let (d_gamma, d_beta) = sums.split_at_mut(width);
                        let own = Kernel::GroupNormBackward {
                            x: s(x, &range), y: s(y, &range), d_y: s(d_y, &range), gamma, mean: s(mean, &range), rstd: s(rstd, &range),
                            d_x: s(d_x, &range), d_gamma: Span::EMPTY, d_beta: Span::EMPTY, batch: range.len(), spatial, channels, groups,
                            affine, write,
                        };
                        launch::norm_backward(memory, &own, d_gamma, d_beta);
                    });
                }
                Kernel::RmsNormBackward { x, y, d_y, gamma, rstd, d_x, d_gamma, spatial, channels, affine, write, .. } => {
                    disjoint(&[d_gamma], &[x, y, d_y, gamma, rstd, d_x]);
                    let mut to = [memory.write::<f32>(d_gamma)];
                    self.accumulate(batch, &mut to, |range, d_gamma| {
                        let own = Kernel::RmsNormBackward {
                            x: s(x, &range), y: s(y, &range), d_y: s(d_y, &range), gamma, rstd: s(rstd, &range), d_x: s(d_x, &range),
                            d_gamma: Span::EMPTY, batch: range.len(), spatial, channels, affine, write,
                        };
                        launch::norm_backward(memory, &own, d_gamma, &mut []);
                    });
                }
                _ => unreachable!("only these two have sums over samples"),
            }
        }
    }
}
