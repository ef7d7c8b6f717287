//! Pooling.
use super::columns::vector;
use super::{DeviceWindow, Grid, Launch, accumulate, call};
use crate::backend::Result;
use crate::kernel::Kernel;
use crate::tensor::Span;

#[rustfmt::skip]
pub(super) fn run(l: &Launch<'_>, kernel: &Kernel) -> Result<()> {
    let of = |x: Span| l.of(x).map(|kernels| &kernels.pool);
    match *kernel {
        Kernel::MaxPoolForward { x, y, index, window, batch } => {
            let (batch, shape) = (batch as u64, DeviceWindow::from(&window));
            let n = batch * (window.out_h * window.out_w * window.c) as u64;
            call!(l, of(x)?.max_forward, l.over(n); l.at(x), l.at(y), l.at(index), shape, batch)
        }
        Kernel::MaxPoolBackward { d_y, index, d_x, window, batch, write } => {
            let function = of(d_y)?.max_backward;
            let (batch, shape) = (batch as u64, DeviceWindow::from(&window));
            let [d_y, index, d_x] = [d_y, index, d_x].map(|span| l.at(span));
            let four = vector(window.c, &[d_y, index, d_x]) == 4;
            let n = batch * (window.h * window.w * window.c) as u64;
            let threads = if four { n / 4 } else { n };
            call!(l, function, l.over(threads); d_y, index, d_x, shape, batch, accumulate(write), i32::from(four))
        }
        Kernel::AveragePoolForward { x, y, window, batch, count_padding } => {
            let (batch, shape) = (batch as u64, DeviceWindow::from(&window));
            let n = batch * (window.out_h * window.out_w * window.c) as u64;
            call!(l, of(x)?.average_forward, l.over(n); l.at(x), l.at(y), shape, batch, i32::from(count_padding))
        }
        Kernel::AveragePoolBackward { d_y, d_x, window, batch, count_padding, write } => {
            let (batch, shape) = (batch as u64, DeviceWindow::from(&window));
            let n = batch * (window.h * window.w * window.c) as u64;
            call!(l, of(d_y)?.average_backward, l.over(n); l.at(d_y), l.at(d_x), shape, batch, i32::from(count_padding), accumulate(write))
        }
        Kernel::GlobalAveragePoolForward { x, y, batch, spatial, channels } => {
            let grid = Grid { blocks: [channels.div_ceil(32) as u32, batch as u32, 1], threads: [32, 8], shared: 0 };
            call!(l, of(x)?.global_average_forward, grid; l.at(x), l.at(y), spatial as u64, channels as u32)
        }
        Kernel::GlobalAveragePoolBackward { d_y, d_x, batch, spatial, channels, write } => {
            let n = (batch * spatial * channels) as u64;
            let function = of(d_y)?.global_average_backward;
            let (d_y, d_x, batch, spatial) = (l.at(d_y), l.at(d_x), batch as u64, spatial as u64);
            call!(l, function, l.over(n); d_y, d_x, batch, spatial, channels as u32, accumulate(write))
        }
        _ => unreachable!("only pooling comes here"),
    }
}
