//! Softmax cross-entropy, and counting errors.
use super::{Grid, Launch, call};
use crate::backend::Result;
use crate::kernel::Kernel;

/// Threads of a block that takes a row of `classes`, `each` a thread.
fn threads(classes: usize, each: usize, most: u32) -> u32 {
    (classes.div_ceil(each).next_multiple_of(32) as u32).clamp(32, most)
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::SoftmaxCrossEntropy { logits, labels, losses, loss, d_logits, batch, positions, classes, scale } => {
            let rows = batch * positions;
            let shares = l.room(batch + rows)?;
            let row_losses = shares + (batch * size_of::<f32>()) as u64;
            let of = &l.of(logits)?.loss;
            let [logits, labels, losses, loss, d_logits] = [logits, labels, losses, loss, d_logits].map(|span| l.at(span));
            let samples = (batch as u64, positions as u32);
            call!(l, of.label_shares, Grid::blocks(batch.div_ceil(8) as u32, 256); labels, shares, samples.0, samples.1, scale)?;
            let grid = Grid::blocks(rows as u32, threads(classes, 4, 1024));
            call!(l, of.row_loss, grid; logits, labels, shares, row_losses, d_logits, samples.1, classes as u32)?;
            call!(l, of.sample_losses, Grid::blocks(1, 1024); row_losses, labels, losses, loss, samples.0, samples.1, scale)
        }
        Kernel::CountErrors { logits, labels, errors, rows, classes } => {
            l.zero(errors)?;
            let of = &l.of(logits)?.loss;
            let grid = Grid::blocks(rows as u32, threads(classes, 1, 256));
            call!(l, of.count_errors, grid; l.at(logits), l.at(labels), l.at(errors), classes as u32)
        }
        _ => unreachable!("only losses and errors come here"),
    }
}
