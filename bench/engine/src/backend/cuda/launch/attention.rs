//! Attention: products by cuBLAS, what lies between them by our kernels.
//!
//! Scores of all heads of some samples at once lie in scratch, at most [`MOST`] bytes of each matrix.
use super::super::blas::{Matrix, Product};
use super::{Grid, Launch, call};
use cudarc::driver::sys::CUdeviceptr;

use crate::backend::Result;
use crate::kernel::{Heads, Kernel, Write};
use crate::tensor::Span;

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
    (length.next_power_of_two() as u32).clamp(32, 256)
}

/// scores = softmax(Q·Kᵀ/√size) with dropout; `plain` takes them before dropout, where it is not 0.
#[rustfmt::skip]
fn weights(l: &Launch<'_>, part: Part, qkv: CUdeviceptr, tokens: Span, kept: CUdeviceptr, scores: CUdeviceptr, state: Span, first: usize) -> Result<()> {
    let Heads { length, size, count, padding, dropout, seed, node } = part.heads;
    let scale = 1.0 / (size as f32).sqrt();
    for sample in 0..part.samples {
        let (q, k) = (part.of_qkv(qkv, sample, 0), part.of_qkv(qkv, sample, 1));
        l.product(part.product(length, length, size, scale), q, transposed(k), part.of_scores(scores, sample))?;
    }
    let tokens = l.at(tokens) + (part.first * length * size_of::<f32>()) as u64;
    let kept = kept + (part.first * count * length * size_of::<f32>()) as u64;
    let padding = padding.map_or(-1, |padding| padding as i32);
    let grid = Grid::blocks((part.samples * count * length) as u32, threads(length));
    let of = &l.device.gpu.kernels.tokens;
    let first = (first + part.first) as u32;
    call!(l, of.attention_softmax, grid; scores, tokens, kept, length as u32, count as u32, padding, dropout, seed, node, l.at(state), first)
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::AttentionForward { qkv, tokens, y, kept, heads, state, first, batch, .. } => {
            let (qkv, y, kept) = (l.at(qkv), l.at(y), l.at(kept));
            for part in Part::of(heads, batch) {
                let scores = l.room(part.elements())?;
                weights(l, part, qkv, tokens, kept, scores, state, first)?;
                for sample in 0..part.samples {
                    let v = part.of_qkv(qkv, sample, 2);
                    let product = part.product(heads.length, heads.size, heads.length, 1.0);
                    l.product(product, part.of_scores(scores, sample), v, part.of_y(y, sample))?;
                }
            }
            Ok(())
        }
        _ => unreachable!("only attention comes here"),
    }
}
