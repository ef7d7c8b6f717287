//! Attention on values in bfloat16 by kernels of our own, which keep scores in registers: heads of 32 or 64 elements, of any length.
//!
//! Forward: which weights dropout keeps, a bit each, then y and kept. Backward: gradients of queries with two numbers for each, then gradients of
//! keys and values. Where there is no room that outlives forward, bits lie in scratch and are drawn again by backward; those of as many samples
//! at a time as [`MOST`] bytes hold.
//! Reference: `kernels/attention.cu`.
use cudarc::driver::sys::CUdeviceptr;

use super::{Grid, Launch, call};
use crate::backend::Result;
use crate::backend::cuda::module::Attention;
use crate::kernel::{Heads, Kernel};
use crate::tensor::{Dtype, Span};

/// Bytes of bits that there may be at once.
const MOST: usize = 1 << 30;
/// Threads of a block, queries of one forward and queries or keys of one backward: as the kernels have them.
const THREADS: u32 = 128;
const FORWARD: usize = 128;
const BACKWARD: usize = 64;
/// Bytes at multiples of which the kernels' copies begin.
const ALIGNMENT: u64 = 16;

/// Kernels for these heads and values, where there are any. That depends on the GPU's generation, the values' type and the heads' size; values of
/// programs are always aligned.
pub(super) fn kernels(l: &Launch<'_>, heads: &Heads, values: &[Span]) -> Result<Option<Attention>> {
    let aligned = |span: &Span| l.at(*span).is_multiple_of(ALIGNMENT);
    if values[0].dtype() != Dtype::Bf16 || !values.iter().all(aligned) {
        return Ok(None);
    }
    let [small, large] = match l.of(values[0])?.attention {
        Some(attention) => attention,
        None => return Ok(None),
    };
    Ok(match heads.size {
        32 => Some(small),
        64 => Some(large),
        _ => None,
    })
}

/// Some samples of a batch.
#[derive(Clone, Copy)]
struct Part {
    heads: Heads,
    /// The first one, in the batch and in what dropout draws for.
    begin: usize,
    first: usize,
    samples: usize,
}

impl Part {
    fn of(heads: Heads, first: usize, batch: usize) -> impl Iterator<Item = Self> {
        let bits = heads.masks() * size_of::<u32>();
        let samples = (MOST / bits.max(1)).clamp(1, batch.max(1));
        (0..batch).step_by(samples).map(move |begin| Self {
            heads,
            begin,
            first: first + begin,
            samples: samples.min(batch - begin),
        })
    }

    /// Where the part's share of something begins that has so many bytes for each position.
    fn at(&self, all: CUdeviceptr, each: usize) -> CUdeviceptr {
        all + (self.begin * self.heads.length * each) as u64
    }

    /// Where queries, keys and values, or their gradients, begin, and outputs, or theirs.
    fn values(&self, qkv: CUdeviceptr, y: CUdeviceptr) -> (CUdeviceptr, CUdeviceptr) {
        let each = self.heads.count * self.heads.size * Dtype::Bf16.size();
        (self.at(qkv, 3 * each), self.at(y, each))
    }

    /// Where tokens and kept logarithms begin.
    fn numbers(&self, tokens: CUdeviceptr, kept: CUdeviceptr) -> (CUdeviceptr, CUdeviceptr) {
        let each = size_of::<f32>();
        (
            self.at(tokens, each),
            self.at(kept, self.heads.count * each),
        )
    }

    /// Positions of all heads.
    fn rows(&self) -> usize {
        self.samples * self.heads.count * self.heads.length
    }

    /// Scratch for two numbers for each row, and a place for the part's bits: of `masks` where there are, else in scratch too; 0 without dropout.
    fn room(&self, l: &mut Launch<'_>, masks: Span) -> Result<(CUdeviceptr, CUdeviceptr)> {
        let numbers = (2 * self.rows()).next_multiple_of(64);
        let bits = self.heads.masks();
        let drawn_here = if masks.is_empty() {
            self.samples * bits
        } else {
            0
        };
        let room = l.room(numbers + drawn_here)?;
        let bits = match bits {
            0 => 0,
            _ if masks.is_empty() => room + (numbers * size_of::<f32>()) as u64,
            _ => l.at(masks) + (self.begin * bits * size_of::<u32>()) as u64,
        };
        Ok((room, bits))
    }

    fn blocks(&self, rows: usize) -> Grid {
        let tiles = self.heads.length.div_ceil(rows);
        Grid::blocks((self.samples * self.heads.count * tiles) as u32, THREADS)
    }

    fn padding(&self) -> i32 {
        self.heads.padding.map_or(-1, |padding| padding as i32)
    }

    /// What dropout multiplies by what it keeps.
    fn factor(&self) -> f32 {
        match self.heads.dropout {
            p if p < 1.0 => 1.0 / (1.0 - p),
            _ => 0.0,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.size as f32).sqrt()
    }

    /// Draws which weights dropout keeps.
    fn draw(
        &self,
        l: &Launch<'_>,
        of: &Attention,
        bits: CUdeviceptr,
        state: CUdeviceptr,
    ) -> Result<()> {
        if bits == 0 {
            return Ok(());
        }
        let Heads {
            length,
            count,
            dropout,
            seed,
            node,
            ..
        } = self.heads;
        let (rows, first) = (self.rows() as u64, self.first as u32);
        let grid = l.over((self.samples * self.heads.masks()) as u64);
        call!(l, of.dropout_bits, grid; bits, rows, length as u32, count as u32, dropout, seed, node, state, first)
    }
}

/// Enqueues attention by the kernels `of`.
#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, of: &Attention, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::AttentionForward { qkv, tokens, y, kept, masks, heads, state, first, batch, .. } => {
            let [qkv, tokens, y, kept, state] = [qkv, tokens, y, kept, state].map(|span| l.at(span));
            Part::of(heads, first, batch).try_for_each(|part| {
                let (_, bits) = part.room(l, masks)?;
                part.draw(l, of, bits, state)?;
                let ((qkv, y), (tokens, kept)) = (part.values(qkv, y), part.numbers(tokens, kept));
                let (length, count) = (heads.length as u32, heads.count as u32);
                call!(
                    l, of.flash_forward, part.blocks(FORWARD);
                    qkv, tokens, y, kept, bits, length, count, part.padding(), part.factor(), part.scale(),
                )
            })
        }
        Kernel::AttentionBackward { qkv, tokens, y, kept, masks, d_y, d_qkv, heads, state, first, batch, .. } => {
            let [qkv, tokens, y, kept, state, d_y, d_qkv] = [qkv, tokens, y, kept, state, d_y, d_qkv].map(|span| l.at(span));
            Part::of(heads, first, batch).try_for_each(|part| {
                let (numbers, bits) = part.room(l, masks)?;
                if masks.is_empty() {
                    part.draw(l, of, bits, state)?;
                }
                let ((qkv, y), (tokens, kept)) = (part.values(qkv, y), part.numbers(tokens, kept));
                let (d_qkv, d_y) = part.values(d_qkv, d_y);
                let (length, count) = (heads.length as u32, heads.count as u32);
                let (padding, factor, scale) = (part.padding(), part.factor(), part.scale());
                call!(
                    l, of.flash_queries, part.blocks(BACKWARD);
                    qkv, tokens, y, kept, d_y, d_qkv, bits, numbers, length, count, padding, factor, scale,
                )?;
                call!(
                    l, of.flash_keys, part.blocks(BACKWARD);
                    qkv, tokens, d_y, d_qkv, bits, numbers, length, count, padding, factor, scale,
                )
            })
        }
        _ => unreachable!("only attention comes here"),
    }
}
