//! Which tensors PowerSGD compresses, as which matrices, and where their factors lie.
//!
//! A tensor is viewed as the matrix M `[n, m]` with n its first dimension, in PyTorch's order of elements. Memory may hold the columns
//! in another order (a convolution's weight is OHWI here, OIHW there) or M transposed (γ and β per element). The algorithm
//! commutes with a permutation of columns, which merely permutes the rows of Q, and a transposed M is read as such: so
//! nothing is copied, and the result is that of PyTorch's view.
//! Reference: `powerSGD_hook` and `_should_compress` of `powerSGD_hook.py`.
use std::ops::Range;

use super::PowerSgdSettings;
use crate::kernel::{Kernel, Write};
use crate::layout::Layout;
use crate::program::Parameter;
use crate::tensor::Span;

/// A tensor of the gradient arena.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) layout: Layout,
    /// Its elements in the gradient arena.
    pub(super) range: Range<usize>,
    pub(super) form: Form,
}

/// How a tensor is exchanged.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// As it is, from these elements of the memory for such tensors.
    Plain(Range<usize>),
    /// As the product P·Qᵀ.
    Factored(Factored),
}

/// A matrix and its factors.
#[derive(Clone, Debug)]
pub(super) struct Factored {
    pub(super) n: usize,
    pub(super) m: usize,
    pub(super) rank: usize,
    /// Memory holds Mᵀ.
    transposed: bool,
    /// Elements of P and Q in the memory of all such.
    pub(super) p: Range<usize>,
    pub(super) q: Range<usize>,
    /// For the random numbers of Q.
    pub(super) stream: u32,
}

/// All tensors in the order of the arena, and how many elements each kind of memory needs.
pub(super) struct Division {
    pub(super) tensors: Vec<Tensor>,
    pub(super) plain: usize,
    pub(super) p: usize,
    pub(super) q: usize,
    pub(super) largest_rank: usize,
}

impl Division {
    pub(super) fn new(parameters: &[Parameter], settings: &PowerSgdSettings) -> Self {
        let mut division = Self {
            tensors: Vec::with_capacity(parameters.len()),
            plain: 0,
            p: 0,
            q: 0,
            largest_rank: 0,
        };
        let mut ordered: Vec<(usize, &Parameter)> = parameters.iter().enumerate().collect();
        ordered.sort_by_key(|(_, parameter)| parameter.range.start);
        for (index, parameter) in ordered {
            let form = division.form(parameter, settings, index as u32);
            division.tensors.push(Tensor {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                layout: parameter.layout,
                range: parameter.range.clone(),
                form,
            });
        }
        division
    }

    fn form(&mut self, parameter: &Parameter, settings: &PowerSgdSettings, stream: u32) -> Form {
        let elements = parameter.range.len();
        let n = parameter.shape.first().copied().unwrap_or(1);
        let m = elements / n.max(1);
        let rank = settings.rank.min(n).min(m);
        let factors = (n + m) * rank;
        let smaller = (factors as f64) * settings.min_compression_rate < elements as f64;
        if parameter.shape.len() < 2 || !smaller {
            self.plain += elements;
            return Form::Plain(self.plain - elements..self.plain);
        }
        self.p += n * rank;
        self.q += m * rank;
        self.largest_rank = self.largest_rank.max(rank);
        let transposed =
            matches!(parameter.layout, Layout::ChannelsLast { outer, .. } if outer != n);
        Form::Factored(Factored {
            n,
            m,
            rank,
            transposed,
            p: self.p - n * rank..self.p,
            q: self.q - m * rank..self.q,
            stream,
        })
    }
}

impl Factored {
    /// P = M·Q.
    pub(super) fn project(&self, matrix: Span, q: Span, p: Span) -> Kernel {
        Kernel::Matmul {
            a: matrix,
            b: q,
            c: p,
            m: self.n,
            n: self.rank,
            k: self.m,
            transpose_a: self.transposed,
            transpose_b: false,
            write: Write::Overwrite,
        }
    }

    /// Q = Mᵀ·P.
    pub(super) fn project_back(&self, matrix: Span, p: Span, q: Span) -> Kernel {
        Kernel::Matmul {
            a: matrix,
            b: p,
            c: q,
            m: self.m,
            n: self.rank,
            k: self.n,
            transpose_a: !self.transposed,
            transpose_b: false,
            write: Write::Overwrite,
        }
    }

    /// M = P·Qᵀ.
    pub(super) fn multiply(&self, p: Span, q: Span, matrix: Span) -> Kernel {
        let (a, b, m, n) = if self.transposed {
            (q, p, self.m, self.n)
        } else {
            (p, q, self.n, self.m)
        };
        Kernel::Matmul {
            a,
            b,
            c: matrix,
            m,
            n,
            k: self.rank,
            transpose_a: false,
            transpose_b: true,
            write: Write::Overwrite,
        }
    }

    /// Row of Q in PyTorch's order that memory holds as row `row`.
    pub(super) fn row_in_file(&self, layout: Layout, row: usize) -> usize {
        match layout {
            Layout::ChannelsLast {
                channels, spatial, ..
            } if !self.transposed => row % channels * spatial + row / channels,
            Layout::ChannelsLast { .. } | Layout::Same => row,
        }
    }
}
