//! Attention: products by cuBLAS, what lies between them by our kernels.
//!
//! Scores of all heads of some samples at once lie in scratch, at most [`MOST`] bytes of each matrix.
use super::super::blas::{Matrix, Product};
use super::{Grid, Launch, call};
use cudarc::driver::sys::CUdeviceptr;

use crate::backend::Result;
use crate::kernel::{Heads, Kernel, Write};

/// Bytes of scores of which there may be one matrix (forward) or two (backward) at once.
const MOST: usize = 1 << 30;

/// Some samples' queries, keys, values and scores.
#[derive(Clone, Copy)]
struct Part {
    heads: Heads,
    /// Bytes from the start of the operands to this part's.
    first: usize,
    samples: usize,
}

impl Part {
    fn of(heads: Heads, batch: usize) -> impl Iterator<Item = Self> {
        let scores = heads.count * heads.length * heads.length * size_of::<f32>();
        let samples = (MOST / scores.max(1)).clamp(1, batch.max(1));
        (0..batch).step_by(samples).map(move |first| Self {
            heads,
            first,
            samples: samples.min(batch - first),
        })
    }

    fn width(&self) -> usize {
        self.heads.count * self.heads.size
    }

    /// Queries (0), keys (1) or values (2) of all heads of one sample.
    fn of_qkv(&self, qkv: CUdeviceptr, sample: usize, which: usize) -> Matrix {
        let row = 3 * self.width();
        let element = (self.first + sample) * self.heads.length * row + which * self.width();
        Matrix {
            at: qkv + (element * size_of::<f32>()) as u64,
            row,
            stride: self.heads.size,
            transposed: false,
        }
    }

    /// Outputs, or their gradients, of all heads of one sample.
    fn of_y(&self, y: CUdeviceptr, sample: usize) -> Matrix {
        let element = (self.first + sample) * self.heads.length * self.width();
        Matrix {
            at: y + (element * size_of::<f32>()) as u64,
            row: self.width(),
            stride: self.heads.size,
            transposed: false,
        }
    }

    /// A matrix of scores of all heads of one sample.
    fn of_scores(&self, scores: CUdeviceptr, sample: usize) -> Matrix {
        let square = self.heads.length * self.heads.length;
        let element = sample * self.heads.count * square;
        Matrix {
            at: scores + (element * size_of::<f32>()) as u64,
            row: self.heads.length,
            stride: square,
            transposed: false,
        }
    }

    fn elements(&self) -> usize {
        self.samples * self.heads.count * self.heads.length * self.heads.length
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.size as f32).sqrt()
    }

    fn padding(&self) -> i32 {
        self.heads.padding.map_or(-1, |padding| padding as i32)
    }

    /// A block for each row of scores.
    fn rows(&self) -> Grid {
        let rows = self.samples * self.heads.count * self.heads.length;
        Grid::blocks(rows as u32, threads(self.heads.length))
    }

    fn product(&self, m: usize, n: usize, k: usize, scale: f32) -> Product {
        Product {
            m,
            n,
            k,
            scale,
            batch: self.heads.count,
            write: Write::Overwrite,
        }
    }
}

const fn transposed(matrix: Matrix) -> Matrix {
    Matrix {
        transposed: !matrix.transposed,
        ..matrix
    }
}

fn threads(length: usize) -> u32 {
    (length.div_ceil(4).next_multiple_of(32) as u32).clamp(32, 1024)
}

/// What both directions read.
#[derive(Clone, Copy)]
struct Operands {
    qkv: CUdeviceptr,
    tokens: CUdeviceptr,
    kept: CUdeviceptr,
    state: CUdeviceptr,
    /// The batch's sample that is first here.
    first: usize,
}

impl Operands {
    /// scores = Q·Kᵀ/√size of a part.
    fn scores(&self, l: &Launch<'_>, part: Part, scores: CUdeviceptr) -> Result<()> {
        let Heads { length, size, .. } = part.heads;
        let product = part.product(length, length, size, part.scale());
        for sample in 0..part.samples {
            let (q, k) = (
                part.of_qkv(self.qkv, sample, 0),
                part.of_qkv(self.qkv, sample, 1),
            );
            l.product(product, q, transposed(k), part.of_scores(scores, sample))?;
        }
        Ok(())
    }

    /// Tokens and kept logarithms of a part, and its first sample's number.
    fn of(&self, part: Part) -> (CUdeviceptr, CUdeviceptr, u32) {
        let positions = part.first * part.heads.length * size_of::<f32>();
        let tokens = self.tokens + positions as u64;
        let kept = self.kept + (positions * part.heads.count) as u64;
        (tokens, kept, (self.first + part.first) as u32)
    }
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::AttentionForward { qkv, tokens, y, kept, heads, state, first, batch, .. } => {
            let [qkv, tokens, y, kept, state] = [qkv, tokens, y, kept, state].map(|span| l.at(span));
            let operands = Operands { qkv, tokens, kept, state, first };
            Part::of(heads, batch).try_for_each(|part| forward(l, part, operands, y))
        }
        Kernel::AttentionBackward { qkv, tokens, kept, d_y, d_qkv, heads, state, first, batch, .. } => {
            let [qkv, tokens, kept, state, d_y, d_qkv] = [qkv, tokens, kept, state, d_y, d_qkv].map(|span| l.at(span));
            let operands = Operands { qkv, tokens, kept, state, first };
            Part::of(heads, batch).try_for_each(|part| backward(l, part, operands, d_y, d_qkv))
        }
        _ => unreachable!("only attention comes here"),
    }
}

#[rustfmt::skip]
fn forward(l: &mut Launch<'_>, part: Part, operands: Operands, y: CUdeviceptr) -> Result<()> {
    let Heads { length, size, count, dropout, seed, node, .. } = part.heads;
    let scores = l.room(part.elements())?;
    operands.scores(l, part, scores)?;
    let (tokens, kept, first) = operands.of(part);
    let of = &l.device.gpu.kernels.tokens;
    call!(
        l, of.attention_softmax, part.rows();
        scores, tokens, kept, length as u32, count as u32, part.padding(), dropout, seed, node, operands.state, first,
    )?;
    let product = part.product(length, size, length, 1.0);
    for sample in 0..part.samples {
        l.product(product, part.of_scores(scores, sample), part.of_qkv(operands.qkv, sample, 2), part.of_y(y, sample))?;
    }
    Ok(())
}

/// With A = Q·Kᵀ/√size and B = dy·Vᵀ, the kernel between the products leaves the dropped weights in A and the scores' gradient in B.
#[rustfmt::skip]
fn backward(l: &mut Launch<'_>, part: Part, operands: Operands, d_y: CUdeviceptr, d_qkv: CUdeviceptr) -> Result<()> {
    let Heads { length, size, count, dropout, seed, node, .. } = part.heads;
    let a = l.room(2 * part.elements())?;
    let b = a + (part.elements() * size_of::<f32>()) as u64;
    operands.scores(l, part, a)?;
    for sample in 0..part.samples {
        let v = part.of_qkv(operands.qkv, sample, 2);
        l.product(part.product(length, length, size, 1.0), part.of_y(d_y, sample), transposed(v), part.of_scores(b, sample))?;
    }
    let (tokens, kept, first) = operands.of(part);
    let of = &l.device.gpu.kernels.tokens;
    call!(
        l, of.attention_softmax_backward, part.rows();
        a, b, tokens, kept, length as u32, count as u32, part.padding(), dropout, seed, node, operands.state, first,
    )?;
    let product = |scale| part.product(length, size, length, scale);
    for sample in 0..part.samples {
        let (weights, slopes) = (part.of_scores(a, sample), part.of_scores(b, sample));
        let (q, k) = (part.of_qkv(operands.qkv, sample, 0), part.of_qkv(operands.qkv, sample, 1));
        let [d_q, d_k, d_v] = [0, 1, 2].map(|which| part.of_qkv(d_qkv, sample, which));
        l.product(product(1.0), transposed(weights), part.of_y(d_y, sample), d_v)?;
        l.product(product(part.scale()), slopes, k, d_q)?;
        l.product(product(part.scale()), transposed(slopes), q, d_k)?;
    }
    Ok(())
}
