//! Attention: products by cuBLAS, what lies between them by our kernels; or all by our kernels ([`super::flash`]) where they are made for it.
//!
//! Scores of all heads of some samples at once lie in scratch, at most [`MOST`] bytes of each matrix, and one call multiplies those of all of
//! them: their addresses, which no single stride leads to, are written out on the GPU before. Scores and weights are of the values' type
//! in memory; softmax computes in f32.
use cudarc::driver::sys::CUdeviceptr;

use super::super::blas::{Addresses, Product};
use super::{Grid, Launch, call, flash};
use crate::backend::Result;
use crate::backend::cuda::module::Tokens;
use crate::kernel::{Heads, Kernel, Write};
use crate::tensor::Dtype;

/// Bytes of scores of which there may be one matrix (forward) or two (backward) at once.
const MOST: usize = 1 << 30;
/// Operands whose addresses are written out at most.
const OPERANDS: usize = 9;
const FLOAT: usize = size_of::<f32>();

/// One operand's matrices, as the kernel takes it: the first one, and bytes from one sample and from one head to the next.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Operand {
    base: u64,
    sample: u64,
    head: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Operands([Operand; OPERANDS]);

/// Matrices of an operand: where their addresses lie, and how each is stored.
#[derive(Clone, Copy)]
struct Matrices {
    operand: Operand,
    row: usize,
    dtype: Dtype,
}

/// Some samples of the batch.
#[derive(Clone, Copy)]
struct Part {
    heads: Heads,
    first: usize,
    samples: usize,
    /// Of queries, keys, values and outputs, of scores and weights, and of all their gradients.
    values: Dtype,
}

impl Part {
    fn of(heads: Heads, values: Dtype, batch: usize) -> impl Iterator<Item = Self> {
        let scores = heads.count * heads.length * heads.length * values.size();
        let samples = (MOST / scores.max(1)).clamp(1, batch.max(1));
        (0..batch).step_by(samples).map(move |first| Self {
            heads,
            first,
            values,
            samples: samples.min(batch - first),
        })
    }

    fn width(&self) -> usize {
        self.heads.count * self.heads.size
    }

    /// Queries (0), keys (1) or values (2), or their gradients.
    fn of_qkv(&self, qkv: CUdeviceptr, which: usize) -> Matrices {
        self.rows_of(qkv, 3 * self.width(), which * self.width())
    }

    /// Outputs, or their gradients.
    fn of_y(&self, y: CUdeviceptr) -> Matrices {
        self.rows_of(y, self.width(), 0)
    }

    fn rows_of(&self, base: CUdeviceptr, row: usize, element: usize) -> Matrices {
        let each = self.values.size();
        let sample = self.heads.length * row * each;
        Matrices {
            operand: Operand {
                base: base + (self.first * sample + element * each) as u64,
                sample: sample as u64,
                head: (self.heads.size * each) as u64,
            },
            row,
            dtype: self.values,
        }
    }

    fn of_scores(&self, scores: CUdeviceptr) -> Matrices {
        let square = self.heads.length * self.heads.length * self.values.size();
        Matrices {
            operand: Operand {
                base: scores,
                sample: (self.heads.count * square) as u64,
                head: square as u64,
            },
            row: self.heads.length,
            dtype: self.values,
        }
    }

    /// Products of a kind.
    fn matrices(&self) -> usize {
        self.samples * self.heads.count
    }

    /// Bytes of all scores, aligned as what lies behind them wants it.
    fn scores_bytes(&self) -> usize {
        let elements = self.matrices() * self.heads.length * self.heads.length;
        (elements * self.values.size()).next_multiple_of(256)
    }

    /// The kernels that lie between the products.
    fn kernels<'a>(&self, l: &'a Launch<'_>) -> Result<&'a Tokens> {
        Ok(&l.device.gpu.kernels.of(self.values)?.tokens)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.size as f32).sqrt()
    }

    fn padding(&self) -> i32 {
        self.heads.padding.map_or(-1, |padding| padding as i32)
    }

    /// A block for each row of scores.
    fn rows(&self) -> Grid {
        let length = self.heads.length;
        let threads = (length.div_ceil(4).next_multiple_of(32) as u32).clamp(32, 1024);
        Grid::blocks((self.matrices() * length) as u32, threads)
    }

    fn product(&self, [m, n, k]: [usize; 3], scale: f32) -> Product {
        Product {
            m,
            n,
            k,
            scale,
            batch: self.matrices(),
            write: Write::Overwrite,
        }
    }

    /// Bytes of the addresses of all operands, aligned as scores behind them want it.
    fn addresses_bytes(&self) -> usize {
        (OPERANDS * self.matrices() * size_of::<u64>()).next_multiple_of(256)
    }

    /// Scratch for addresses and so many matrices of scores; the scores' first place.
    fn room(&self, l: &mut Launch<'_>, scores: usize) -> Result<(CUdeviceptr, CUdeviceptr)> {
        let bytes = self.addresses_bytes();
        let room = l.room((bytes + scores * self.scores_bytes()) / FLOAT)?;
        Ok((room, room + bytes as u64))
    }

    /// Writes out the addresses of `of` at `to`.
    fn write_out<const N: usize>(
        &self,
        l: &Launch<'_>,
        to: CUdeviceptr,
        of: [Matrices; N],
    ) -> Result<[Addresses; N]> {
        const { assert!(N <= OPERANDS) };
        let mut operands = Operands::default();
        for (place, matrices) in operands.0.iter_mut().zip(of) {
            *place = matrices.operand;
        }
        let (count, heads, matrices) = (N as u32, self.heads.count as u32, self.matrices() as u32);
        let function = self.kernels(l)?.addresses;
        let grid = l.over(u64::from(count) * u64::from(matrices));
        call!(l, function, grid; operands, count, heads, matrices, to)?;
        let mut place = 0;
        Ok(of.map(|own| {
            let at = to + place * u64::from(matrices) * size_of::<u64>() as u64;
            place += 1;
            Addresses {
                at,
                row: own.row,
                dtype: own.dtype,
                transposed: false,
            }
        }))
    }
}

const fn transposed(addresses: Addresses) -> Addresses {
    Addresses {
        transposed: !addresses.transposed,
        ..addresses
    }
}

/// What the kernel between the products reads in both directions.
#[derive(Clone, Copy)]
struct Inputs {
    qkv: CUdeviceptr,
    tokens: CUdeviceptr,
    kept: CUdeviceptr,
    state: CUdeviceptr,
    /// The batch's sample that is first here.
    first: usize,
}

impl Inputs {
    /// Tokens and kept logarithms of a part, and its first sample's number.
    fn of(&self, part: Part) -> (CUdeviceptr, CUdeviceptr, u32) {
        let positions = part.first * part.heads.length * FLOAT;
        let tokens = self.tokens + positions as u64;
        let kept = self.kept + (positions * part.heads.count) as u64;
        (tokens, kept, (self.first + part.first) as u32)
    }
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::AttentionForward { qkv, tokens, y, kept, heads, state, first, batch, .. } => {
            if let Some(of) = flash::kernels(l, &heads, &[qkv, y])? {
                return flash::run(l, &of, kernel);
            }
            let values = qkv.dtype();
            let [qkv, tokens, y, kept, state] = [qkv, tokens, y, kept, state].map(|span| l.at(span));
            let inputs = Inputs { qkv, tokens, kept, state, first };
            Part::of(heads, values, batch).try_for_each(|part| forward(l, part, inputs, y))
        }
        Kernel::AttentionBackward { qkv, tokens, y, kept, d_y, d_qkv, heads, state, first, batch, .. } => {
            if let Some(of) = flash::kernels(l, &heads, &[qkv, y, d_y, d_qkv])? {
                return flash::run(l, &of, kernel);
            }
            let values = qkv.dtype();
            let [qkv, tokens, kept, state, d_y, d_qkv] = [qkv, tokens, kept, state, d_y, d_qkv].map(|span| l.at(span));
            let inputs = Inputs { qkv, tokens, kept, state, first };
            Part::of(heads, values, batch).try_for_each(|part| backward(l, part, inputs, d_y, d_qkv))
        }
        _ => unreachable!("only attention comes here"),
    }
}

#[rustfmt::skip]
fn forward(l: &mut Launch<'_>, part: Part, inputs: Inputs, y: CUdeviceptr) -> Result<()> {
    let Heads { length, size, count, dropout, seed, node, .. } = part.heads;
    let (at, scores) = part.room(l, 1)?;
    let [q, k, v] = [0, 1, 2].map(|which| part.of_qkv(inputs.qkv, which));
    let [q, k, v, s, y] = part.write_out(l, at, [q, k, v, part.of_scores(scores), part.of_y(y)])?;
    l.products(part.product([length, length, size], part.scale()), q, transposed(k), s)?;
    let (tokens, kept, first) = inputs.of(part);
    let of = part.kernels(l)?;
    call!(
        l, of.attention_softmax, part.rows();
        scores, tokens, kept, length as u32, count as u32, part.padding(), dropout, seed, node, inputs.state, first,
    )?;
    l.products(part.product([length, size, length], 1.0), s, v, y)
}

/// With A = Q·Kᵀ/√size and B = dy·Vᵀ, the kernel between the products leaves the dropped weights in A and the scores' gradient in B.
#[rustfmt::skip]
fn backward(l: &mut Launch<'_>, part: Part, inputs: Inputs, d_y: CUdeviceptr, d_qkv: CUdeviceptr) -> Result<()> {
    let Heads { length, size, count, dropout, seed, node, .. } = part.heads;
    let (at, first_scores) = part.room(l, 2)?;
    let second_scores = first_scores + part.scores_bytes() as u64;
    let [q, k, v] = [0, 1, 2].map(|which| part.of_qkv(inputs.qkv, which));
    let [d_q, d_k, d_v] = [0, 1, 2].map(|which| part.of_qkv(d_qkv, which));
    let (a, b) = (part.of_scores(first_scores), part.of_scores(second_scores));
    let [q, k, v, d_q, d_k, d_v, a, b, d_y] = part.write_out(l, at, [q, k, v, d_q, d_k, d_v, a, b, part.of_y(d_y)])?;
    let square = [length, length, size];
    l.products(part.product(square, part.scale()), q, transposed(k), a)?;
    l.products(part.product(square, 1.0), d_y, transposed(v), b)?;
    let (tokens, kept, first) = inputs.of(part);
    let of = part.kernels(l)?;
    call!(
        l, of.attention_softmax_backward, part.rows();
        first_scores, second_scores, tokens, kept, length as u32, count as u32, part.padding(), dropout, seed, node, inputs.state, first,
    )?;
    let narrow = [length, size, length];
    l.products(part.product(narrow, 1.0), transposed(a), d_y, d_v)?;
    l.products(part.product(narrow, part.scale()), b, k, d_q)?;
    l.products(part.product(narrow, part.scale()), transposed(b), q, d_k)
}
