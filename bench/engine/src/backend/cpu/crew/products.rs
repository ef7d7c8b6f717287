//! Matrix products, and the gradient of a convolution's weights.
use super::{Crew, LINE, PRODUCTS};
use crate::backend::cpu::launch::disjoint;
use crate::backend::cpu::memory::HostMemory;
#[cfg(target_arch = "x86_64")]
use crate::backend::cpu::narrow;
use crate::backend::cpu::{conv, matmul};
use crate::kernel::Kernel;

#[rustfmt::skip]
impl Crew {
    /// Matrix products, and the gradient of a convolution's weights.
    ///
    /// # Safety
    /// As [`Crew::run`].
    pub(super) unsafe fn product(&self, memory: &HostMemory, kernel: &Kernel) -> bool {
        match *kernel {
            Kernel::Matmul { a, b, c, m, n, k, transpose_a, transpose_b, write } => {
                let longer = m.max(n);
                if !self.worthwhile(m * n * k / PRODUCTS) || longer < LINE * self.parts() {
                    return false;
                }
                disjoint(&[c], &[a, b]);
                let product = matmul::Product { m, n, k, transpose_a, transpose_b };
                #[cfg(target_arch = "x86_64")]
                if narrow::applies(product) {
                    // As one thread does it, on rows of its own.
                    self.team.run(&|part| {
                        let rows = self.part(part, m, LINE);
                        let own = matmul::Product { m: rows.len(), ..product };
                        let [a, c] = [(a, k), (c, n)].map(|(span, width)| span.slice(rows.start * width..rows.end * width));
                        // SAFETY: the caller's promise; parts have rows of c of their own.
                        unsafe { matmul::matmul(own, memory.read(a), memory.read(b), memory.write(c), write) }
                    });
                    return true;
                }
                // SAFETY: the caller's promise.
                let (a, b, c) = unsafe { (memory.read(a), memory.read(b), memory.write::<f32>(c)) };
                let whole = matmul::Whole::new(product, a, b, c);
                self.team.run(&|part| {
                    let own = self.part(part, longer, LINE);
                    let (rows, columns) = if m > n { (own, 0..n) } else { (0..m, own) };
                    // SAFETY: parts have rows, or columns, of c of their own.
                    unsafe { whole.part(rows, columns, write) }
                });
                true
            }
            Kernel::Conv2dBackwardWeight { x, d_y, d_weight, window, algorithm, batch, workspace } => {
                if !self.has_room(&window, workspace) || window.out_c < self.parts() || !self.worthwhile(x.len()) {
                    return false;
                }
                disjoint(&[d_weight, workspace], &[x, d_y]);
                let (each, size) = (window.workspace(), d_weight.len() / window.out_c);
                self.team.run(&|part| {
                    let channels = self.part(part, window.out_c, 1);
                    // SAFETY: the caller's promise; parts have output channels and a workspace of their own.
                    unsafe {
                        let to = memory.write(d_weight.slice(channels.start * size..channels.end * size));
                        let room = memory.write(workspace.slice(part * each..(part + 1) * each));
                        let call = conv::Call { algorithm, window: &window, batch };
                        conv::backward_weight(call, memory.read(x), memory.read(d_y), to, room, channels);
                    }
                });
                true
            }
            _ => false,
        }
    }
}
