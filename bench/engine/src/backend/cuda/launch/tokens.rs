//! Embeddings.
use super::{BLOCK, Grid, Launch, call};
use crate::backend::Result;
use crate::kernel::Kernel;

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    let of = &l.device.gpu.kernels.tokens;
    match *kernel {
        Kernel::EmbeddingForward { tokens, table, y, features } => {
            let rows = tokens.len() as u64;
            call!(l, of.embedding_forward, l.over(rows * features as u64); l.at(tokens), l.at(table), l.at(y), rows, features as u32)
        }
        Kernel::EmbeddingBackward { tokens, d_y, d_table, features, padding } => {
            let (rows, words) = (tokens.len() as u64, d_table.len() / features.max(1));
            let padding = padding.map_or(-1, |padding| padding as i32);
            let grid = Grid {
                blocks: [features.div_ceil(BLOCK as usize) as u32, words as u32, 1],
                threads: [BLOCK, 1],
                shared: BLOCK * size_of::<u32>() as u32,
            };
            call!(l, of.embedding_backward, grid; l.at(tokens), l.at(d_y), l.at(d_table), rows, features as u32, padding)
        }
        _ => unreachable!("only embeddings come here"),
    }
}
