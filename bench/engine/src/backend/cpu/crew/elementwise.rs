//! Kernels whose operands are all cut alike.
use std::ops::Range;

use super::{Crew, LINE};
use crate::backend::cpu::memory::HostMemory;
use crate::kernel::Kernel;
use crate::tensor::Span;

#[rustfmt::skip]
impl Crew {
    /// Kernels whose operands are all cut alike.
    ///
    /// # Safety
    /// As [`Crew::run`].
    pub(super) unsafe fn elementwise(&self, memory: &HostMemory, kernel: &Kernel) -> bool {
        let len = match *kernel {
            Kernel::Fill { to, .. } | Kernel::Copy { to, .. } | Kernel::Add { to, .. } | Kernel::Scale { to, .. } => to.len(),
            Kernel::Narrow { to, .. } | Kernel::Widen { to, .. } | Kernel::Subtract { to, .. } => to.len(),
            Kernel::ReluForward { y, .. } | Kernel::GeluForward { y, .. } | Kernel::Gate { y, .. } => y.len(),
            Kernel::ReluBackward { d_x, .. } | Kernel::GeluBackward { d_x, .. } => d_x.len(),
            Kernel::Sgd { parameter, .. } | Kernel::Adamw { parameter, .. } => parameter.len(),
            _ => return false,
        };
        if !self.worthwhile(len) {
            return false;
        }
        let cut = |range: Range<usize>| {
            let s = |span: Span| if span.is_empty() { span } else { span.slice(range.clone()) };
            match *kernel {
                Kernel::Fill { to, value } => Kernel::Fill { to: s(to), value },
                Kernel::Copy { from, to, write } => Kernel::Copy { from: s(from), to: s(to), write },
                Kernel::Add { a, b, to } => Kernel::Add { a: s(a), b: s(b), to: s(to) },
                Kernel::Scale { to, factor } => Kernel::Scale { to: s(to), factor },
                Kernel::Narrow { from, to, divisor } => Kernel::Narrow { from: s(from), to: s(to), divisor },
                Kernel::Widen { from, to } => Kernel::Widen { from: s(from), to: s(to) },
                Kernel::Subtract { from, to } => Kernel::Subtract { from: s(from), to: s(to) },
                Kernel::ReluForward { x, y } => Kernel::ReluForward { x: s(x), y: s(y) },
                Kernel::Gate { y, d_y } => Kernel::Gate { y: s(y), d_y: s(d_y) },
                Kernel::GeluForward { x, y, formula } => Kernel::GeluForward { x: s(x), y: s(y), formula },
                Kernel::ReluBackward { y, d_y, d_x, write } => Kernel::ReluBackward { y: s(y), d_y: s(d_y), d_x: s(d_x), write },
                Kernel::GeluBackward { x, d_y, d_x, formula, write } => {
                    Kernel::GeluBackward { x: s(x), d_y: s(d_y), d_x: s(d_x), formula, write }
                }
                Kernel::Sgd { parameter, gradient, buffer, rates, momentum, weight_decay, nesterov } => Kernel::Sgd {
                    parameter: s(parameter), gradient: s(gradient), buffer: s(buffer), rates, momentum, weight_decay, nesterov,
                },
                Kernel::Adamw { parameter, gradient, average, square, rates, counters, beta1, beta2, eps, weight_decay } => Kernel::Adamw {
                    parameter: s(parameter), gradient: s(gradient), average: s(average), square: s(square),
                    rates, counters, beta1, beta2, eps, weight_decay,
                },
                other => other,
            }
        };
        // SAFETY: the caller's promise; ranges are disjoint.
        unsafe { self.each(memory, len, LINE, |_, range| cut(range)) };
        true
    }
}
