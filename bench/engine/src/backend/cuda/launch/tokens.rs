//! Embeddings.
use super::{Grid, Launch, call};
use crate::backend::Result;
use crate::kernel::Kernel;

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::EmbeddingForward { tokens, table, y, features } => {
            let rows = tokens.len() as u64;
            call!(l, l.of(y)?.tokens.embedding_forward, l.over(rows * features as u64); l.at(tokens), l.at(table), l.at(y), rows, features as u32)
        }
        Kernel::EmbeddingBackward { tokens, d_y, d_table, features, padding } => {
            let rows = tokens.len();
            let padding = padding.map_or(-1, |padding| padding as i32);
            let threads = (features.next_multiple_of(32) as u32).clamp(128, 1024);
            let grid = Grid {
                blocks: [features.div_ceil(threads as usize) as u32, rows.min(super::SIDE as usize) as u32, 1],
                threads: [threads, 1],
                shared: threads * size_of::<u32>() as u32,
            };
            let rows = rows as u64;
            call!(l, l.of(d_y)?.tokens.embedding_backward, grid; l.at(tokens), l.at(d_y), l.at(d_table), rows, features as u32, padding)
        }
        _ => unreachable!("only embeddings come here"),
    }
}
