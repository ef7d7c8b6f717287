//! Softmax cross-entropy, and counting errors.
use super::{BLOCK, Grid, Launch, call};
use crate::backend::Result;
use crate::kernel::Kernel;

/// Threads of a block that takes a row.
fn threads(classes: usize) -> u32 {
    (classes.next_power_of_two() as u32).clamp(32, BLOCK)
}

#[rustfmt::skip]
pub(super) fn run(l: &mut Launch<'_>, kernel: &Kernel) -> Result<()> {
    match *kernel {
        Kernel::SoftmaxCrossEntropy { logits, labels, losses, loss, d_logits, batch, positions, classes, scale } => {
            let rows = batch * positions;
            let shares = l.room(batch + rows)?;
            let row_losses = shares + (batch * size_of::<f32>()) as u64;
            let of = &l.device.gpu.kernels.loss;
            let [logits, labels, losses, loss, d_logits] = [logits, labels, losses, loss, d_logits].map(|span| l.at(span));
            let (batch, positions) = (batch as u64, positions as u32);
            call!(l, of.label_shares, l.over(batch); labels, shares, batch, positions, scale)?;
            let grid = Grid::blocks(rows as u32, threads(classes));
            call!(l, of.row_loss, grid; logits, labels, shares, row_losses, d_logits, positions, classes as u32)?;
            call!(l, of.sample_losses, Grid::blocks(1, BLOCK); row_losses, labels, losses, loss, batch, positions, scale)
        }
        Kernel::CountErrors { logits, labels, errors, rows, classes } => {
            l.zero(errors)?;
            let of = &l.device.gpu.kernels.loss;
            let grid = Grid::blocks(rows as u32, threads(classes));
            call!(l, of.count_errors, grid; l.at(logits), l.at(labels), l.at(errors), classes as u32)
        }
        _ => unreachable!("only losses and errors come here"),
    }
}
