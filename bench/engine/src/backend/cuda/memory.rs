//! A GPU's memory: arenas that live as long as the device, scratch that grows, and pinned memory of the host on the way to it.
//!
//! Contract: nothing is freed before the device is dropped, since freeing waits for the whole GPU, collectives included. Scratch and
//! staging grow in the first steps and not after.
//! Reference: CUDA driver API, "Memory Management".
use crate::backend::cuda::api::driver;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUdeviceptr, CUevent, CUresult, CUstream};

use super::gpu::{Gpu, check};
use crate::backend::{BackendError, Category, MemoryUse, Result};
use crate::tensor::{Dtype, Span};

#[derive(Clone, Copy)]
struct Arena {
    base: CUdeviceptr,
    dtype: Dtype,
    len: usize,
}

impl Arena {
    fn address(&self, span: Span) -> CUdeviceptr {
        assert!(
            self.dtype == span.dtype() && span.start() + span.len() <= self.len,
            "{span:?} leaves its arena"
        );
        self.base + (span.start() * span.dtype().size()) as u64
    }
}

/// Where a device's arenas lie, for whoever copies from them while the device is elsewhere.
#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<Mutex<Vec<Arena>>>);

impl Directory {
    fn arenas(&self) -> MutexGuard<'_, Vec<Arena>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a span of the device lies.
    ///
    /// # Panics
    /// When it is another device's: a bug of the caller.
    pub(crate) fn address(&self, span: Span) -> CUdeviceptr {
        self.arenas()[usize::from(span.arena())].address(span)
    }
}

/// All that a device has allocated on its GPU.
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    arenas: Vec<Arena>,
    /// The same, shared.
    pub(super) directory: Directory,
    other: Vec<CUdeviceptr>,
    by_category: MemoryUse,
    /// Whether nothing more may be taken.
    fixed: bool,
}

impl Memory {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Self {
        Self {
            gpu: Arc::clone(gpu),
            arenas: Vec::new(),
            directory: Directory::default(),
            other: Vec::new(),
            by_category: MemoryUse::default(),
            fixed: false,
        }
    }

    /// Lets nothing more be taken, or something again: a step that is captured must find all of its scratch.
    pub(super) fn fix(&mut self, fixed: bool) {
        self.fixed = fixed;
    }

    fn take(&mut self, category: Category, bytes: usize) -> Result<CUdeviceptr> {
        if self.fixed {
            return Err(BackendError::Device(format!(
                "a step that is captured asks for {bytes} bytes of {category:?} that the steps before it did not take: graphs hold what was there, so no step of one batch size may need more than the first"
            )));
        }
        let mut base = 0;
        // SAFETY: the context is the thread's.
        let taken = unsafe { driver::cuMemAlloc_v2(&mut base, bytes.max(64)) };
        if taken == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(BackendError::OutOfMemory {
                bytes,
                category,
                held: self.by_category.iter().sum(),
            });
        }
        check(taken, "failed to allocate memory on the GPU")?;
        self.by_category[category as usize] += bytes;
        Ok(base)
    }

    /// A new arena, with anything in it.
    pub(super) fn allocate(
        &mut self,
        category: Category,
        dtype: Dtype,
        len: usize,
    ) -> Result<(Span, CUdeviceptr)> {
        let index = self.arenas.len();
        let bytes = len.saturating_mul(dtype.size());
        if index >= usize::from(u16::MAX) {
            return Err(BackendError::OutOfMemory {
                bytes,
                category,
                held: self.by_category.iter().sum(),
            });
        }
        let base = self.take(category, bytes)?;
        let arena = Arena { base, dtype, len };
        self.arenas.push(arena);
        self.directory.arenas().push(arena);
        Ok((Span::of_arena(index as u16, dtype, len), base))
    }

    /// Where a span lies; 0, which kernels take for "none", where it is empty.
    ///
    /// # Panics
    /// When the span is of another device: a bug of the caller.
    pub(super) fn address(&self, span: Span) -> CUdeviceptr {
        if span.is_empty() {
            return 0;
        }
        self.arenas[usize::from(span.arena())].address(span)
    }

    pub(super) fn by_category(&self) -> MemoryUse {
        self.by_category
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            for base in self
                .arenas
                .iter()
                .map(|arena| arena.base)
                .chain(self.other.drain(..))
            {
                // SAFETY: the device's streams are gone, so nobody uses the memory.
                let _ = unsafe { driver::cuMemFree_v2(base) };
            }
        }
    }
}

/// Room for what kernels of one stream leave for the next kernel.
#[derive(Default)]
pub(super) struct Scratch {
    base: CUdeviceptr,
    bytes: usize,
}

impl Scratch {
    /// At least so many bytes, aligned to 256; what was in it is lost.
    pub(super) fn room(&mut self, memory: &mut Memory, bytes: usize) -> Result<CUdeviceptr> {
        if bytes > self.bytes {
            let wanted = bytes
                .next_power_of_two()
                .min(bytes.saturating_add(256 << 20));
            let base = memory.take(Category::Workspace, wanted)?;
            memory.other.push(base);
            (self.base, self.bytes) = (base, wanted);
        }
        Ok(self.base)
    }
}

/// Pinned memory of the host that one upload at a time goes through.
struct Slot {
    base: *mut u8,
    bytes: usize,
    done: CUevent,
    used: bool,
}

/// Pinned memory between host data and the GPU, so that the host need not wait for the copy.
pub(super) struct Staging {
    gpu: Arc<Gpu>,
    small: Vec<Slot>,
    large: Vec<Slot>,
    next: [usize; 2],
}

// SAFETY: pinned memory and events may be used on any thread.
unsafe impl Send for Staging {}

/// Bytes that a small upload has at most: a step's number and learning rate.
const SMALL: usize = 256;
/// Uploads that may be under way: small ones, and others (two steps' inputs and labels).
const SLOTS: [usize; 2] = [256, 4];
/// From `CUevent_flags`: no times.
const WITHOUT_TIMES: u32 = 2;

impl Staging {
    pub(super) fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        let slot = |bytes| -> Result<Slot> {
            let mut done = std::ptr::null_mut();
            // SAFETY: the context is the thread's.
            let made = unsafe { driver::cuEventCreate(&mut done, WITHOUT_TIMES) };
            check(made, "failed to make an event")?;
            Ok(Slot {
                base: if bytes > 0 {
                    pinned(bytes)?
                } else {
                    std::ptr::null_mut()
                },
                bytes,
                done,
                used: false,
            })
        };
        Ok(Self {
            gpu: Arc::clone(gpu),
            small: (0..SLOTS[0]).map(|_| slot(SMALL)).collect::<Result<_>>()?,
            large: (0..SLOTS[1]).map(|_| slot(0)).collect::<Result<_>>()?,
            next: [0; 2],
        })
    }

    /// Enqueues a copy of `from` to `to`.
    pub(super) fn upload(&mut self, on: CUstream, from: &[u8], to: CUdeviceptr) -> Result<()> {
        let large = usize::from(from.len() > SMALL);
        let slots = if large == 1 {
            &mut self.large
        } else {
            &mut self.small
        };
        let slot = &mut slots[self.next[large]];
        self.next[large] = (self.next[large] + 1) % SLOTS[large];
        // SAFETY: events and memory are the slot's own; it is written only after the copy that was last made from it.
        unsafe {
            if slot.used {
                check(driver::cuEventSynchronize(slot.done), "failed on the GPU")?;
            }
            if from.len() > slot.bytes {
                if !slot.base.is_null() {
                    check(
                        driver::cuMemFreeHost(slot.base.cast()),
                        "failed to free pinned memory",
                    )?;
                    (slot.base, slot.bytes) = (std::ptr::null_mut(), 0);
                }
                slot.base = pinned(from.len())?;
                slot.bytes = from.len();
            }
            std::ptr::copy_nonoverlapping(from.as_ptr(), slot.base, from.len());
            check(
                driver::cuMemcpyHtoDAsync_v2(to, slot.base.cast(), from.len(), on),
                "failed to copy to the GPU",
            )?;
            check(
                driver::cuEventRecord(slot.done, on),
                "failed to record an event",
            )?;
        }
        slot.used = true;
        Ok(())
    }
}

fn pinned(bytes: usize) -> Result<*mut u8> {
    let mut base = std::ptr::null_mut();
    // SAFETY: the context is the thread's.
    let taken = unsafe { driver::cuMemHostAlloc(&mut base, bytes, 0) };
    check(taken, "failed to allocate pinned memory of the host")?;
    Ok(base.cast())
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            for slot in self.small.iter().chain(&self.large) {
                // SAFETY: the device's streams are gone, so no copy is under way.
                unsafe {
                    let _ = driver::cuEventDestroy_v2(slot.done);
                    if !slot.base.is_null() {
                        let _ = driver::cuMemFreeHost(slot.base.cast());
                    }
                }
            }
        }
    }
}
