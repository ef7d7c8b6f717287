//! From kernels as data to kernels as functions on slices: one `match`.
//!
//! Contract: spans become slices here and nowhere else; the functions behind are safe Rust.
//! Reference: [`crate::kernel::Kernel`], which states each formula.
use crate::backend::cpu::memory::HostMemory;
use crate::kernel::Kernel;

/// Runs `kernel`.
///
/// # Safety
/// Nobody else touches what the kernel writes, nobody writes what it reads.
pub(super) unsafe fn run(memory: &HostMemory, kernel: &Kernel) {
    match *kernel {
        // SAFETY: the caller's promise.
        Kernel::Fill { to, value } => unsafe { memory.write::<f32>(to) }.fill(value),
        ref other => panic!("{other:?} is not a kernel of the CPU"),
    }
}
