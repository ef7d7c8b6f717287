//! Embeddings.
use cudarc::driver::sys::CUdeviceptr;

use super::columns::vector;
use super::{BLOCK, Grid, Launch, SIDE, call};
use crate::backend::Result;
use crate::kernel::Kernel;
use crate::tensor::Span;

/// Rows of a token that a block adds up, as `embedding.cu` has it.
const PIECE: usize = 64;
/// Rows of a chunk: fewer are ranked faster, more have fewer counts.
const CHUNKS: [usize; 2] = [512, 1024];
/// Rows from which on chunks are the larger ones.
const MANY: usize = 1 << 16;

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::EmbeddingForward { tokens, table, y, features } => {
            let rows = tokens.len() as u64;
            call!(l, l.of(y)?.tokens.embedding_forward, l.over(rows * features as u64); l.at(tokens), l.at(table), l.at(y), rows, features as u32)
        }
        Kernel::EmbeddingBackward { tokens, d_y, d_table, features, padding } => backward(l, tokens, d_y, d_table, features, padding),
        _ => unreachable!("only embeddings come here"),
    }
}

/// Where the numbers that a backward needs lie in the scratch, in elements of 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    chunk: usize,
    chunks: usize,
    counts: usize,
    totals: usize,
    starts: usize,
    slots: usize,
    ranks: usize,
    places: usize,
    jobs: usize,
    several: usize,
    partial: usize,
    end: usize,
}

impl Layout {
    fn new(rows: usize, words: usize, features: usize) -> Self {
        let chunk = CHUNKS[usize::from(rows >= MANY)];
        let chunks = rows.div_ceil(chunk);
        let mut end = 0;
        let mut take = |elements: usize| {
            let at = end;
            end += elements.next_multiple_of(4);
            at
        };
        // Cursors come first: they and the counts are zeroed together.
        take(4);
        Self {
            chunk,
            chunks,
            counts: take(chunks * words),
            totals: take(words),
            starts: take(words),
            slots: take(words),
            ranks: take(rows),
            places: take(rows),
            jobs: take(4 * rows),
            several: take(rows.div_ceil(PIECE)),
            // Tokens of more than a piece have at most one that is not full.
            partial: take(2 * rows.div_ceil(PIECE) * features),
            end,
        }
    }
}

#[rustfmt::skip]
fn backward(l: &mut Launch<'_>, tokens: Span, d_y: Span, d_table: Span, features: usize, padding: Option<usize>) -> Result<()> {
    let (rows, words) = (tokens.len(), d_table.len() / features.max(1));
    if rows == 0 || words == 0 {
        return Ok(());
    }
    let layout = Layout::new(rows, words, features);
    let cursors = l.room(layout.end)?;
    let at = |element: usize| -> CUdeviceptr { cursors + (element * size_of::<u32>()) as u64 };
    l.zero_at(cursors, layout.totals * size_of::<u32>())?;
    let [counts, totals, starts, slots, ranks] = [layout.counts, layout.totals, layout.starts, layout.slots, layout.ranks].map(at);
    let [places, jobs, several, partial] = [layout.places, layout.jobs, layout.several, layout.partial].map(at);
    let of = &l.of(d_y)?.embedding;
    let [tokens, d_y, d_table] = [tokens, d_y, d_table].map(|span| l.at(span));
    let padding = padding.map_or(-1, |padding| padding as i32);
    let (all, chunk, across) = (rows as u64, layout.chunk as u32, words as u32);
    call!(l, of.token_ranks, Grid::blocks(layout.chunks as u32, chunk); tokens, ranks, counts, all, across, padding)?;
    let by_word = Grid::blocks(words.div_ceil(BLOCK as usize) as u32, BLOCK);
    call!(l, of.token_starts, by_word; counts, totals, starts, slots, cursors, layout.chunks as u32, across)?;
    call!(
        l, of.token_places, l.over(all);
        tokens, ranks, counts, totals, starts, slots, cursors, places, jobs, several, all, across, chunk, padding,
    )?;
    let four = vector(features, &[d_y, d_table]) == 4;
    let threads = features.div_ceil(if four { 4 } else { 1 });
    let block = (threads.next_multiple_of(32) as u32).min(BLOCK);
    let tiles = threads.div_ceil(block as usize) as u32;
    let grid = |down: usize| Grid { blocks: [tiles, down.clamp(1, SIDE as usize) as u32, 1], threads: [block, 1], shared: 0 };
    let (wide, four) = (features as u32, i32::from(four));
    call!(l, of.embedding_sums, grid(rows); tokens, jobs, places, d_y, d_table, partial, all, wide, four)?;
    if rows <= PIECE {
        return Ok(());
    }
    call!(l, of.embedding_rest, grid(rows / PIECE); tokens, jobs, cursors, several, d_table, partial, wide, four)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backward_keeps_does_not_overlap() {
        for (rows, words, features) in [
            (1, 1, 1),
            (70, 5, 3),
            (16_384, 30_522, 768),
            (131_072, 50_257, 8),
        ] {
            let layout = Layout::new(rows, words, features);
            let Layout {
                chunk,
                chunks,
                counts,
                totals,
                starts,
                slots,
                ranks,
                places,
                jobs,
                several,
                partial,
                end,
            } = layout;
            assert!(chunks * chunk >= rows && (chunks - 1) * chunk < rows);
            let sizes = [
                (counts, chunks * words),
                (totals, words),
                (starts, words),
                (slots, words),
                (ranks, rows),
                (places, rows),
                (jobs, 4 * rows),
                (several, rows / (PIECE + 1)),
                (partial, (rows / PIECE + rows / (PIECE + 1)) * features),
            ];
            let ends = sizes[1..].iter().map(|(at, _)| *at).chain([end]);
            assert!(counts >= 3, "three cursors come first");
            for ((at, size), next) in sizes.into_iter().zip(ends) {
                assert!(at.is_multiple_of(4) && at + size <= next, "{layout:?}");
            }
        }
    }
}
