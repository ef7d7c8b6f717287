//! A device's memory where that is the host's: a table of arenas that streams share.
//!
//! Contract: an arena never moves and is freed when the last handle is dropped. The table hands out plain slices;
//! that no two of them conflict is guaranteed by the order of the streams (a collective runs after the event of the
//! kernel that wrote its span, and so on), not by the borrow checker, which is why both accessors are `unsafe`.
//! Reference: TRAITS of the engine's backend seam, [`crate::backend::Backend`].
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::half::{Bf16, F16};
use crate::tensor::{Dtype, Span};

/// Arenas per page of the table: pages are made on demand, so that a small model does not pay for 65535 entries.
const PAGE: usize = 256;
/// Alignment of arenas: one cache line, and one AVX-512 register.
const ALIGNMENT: usize = 64;
/// A huge page of the processors that this runs on.
const HUGE_PAGE: usize = 2 << 20;
/// Arenas from this size on are asked to lie in huge pages: the sweeps of norms and optimizers through them then miss the TLB
/// 512 times less often, and what rounding up to whole pages wastes is at most half.
const LARGE: usize = 2 * HUGE_PAGE;

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
    impl Sealed for i64 {}
    impl Sealed for crate::half::F16 {}
    impl Sealed for crate::half::Bf16 {}
}

/// A type that arenas hold.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// Its tag in a [`Span`].
    const DTYPE: Dtype;
}
impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
}
impl Element for i64 {
    const DTYPE: Dtype = Dtype::I64;
}
impl Element for F16 {
    const DTYPE: Dtype = Dtype::F16;
}
impl Element for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

struct Arena {
    base: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: an arena is a plain allocation; who may touch which part of it when is the contract of the accessors.
unsafe impl Send for Arena {}
// SAFETY: as above; the type itself offers no access.
unsafe impl Sync for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: `base` was allocated with this layout and is freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// Zeroed memory; where it begins with a huge page, made of such pages if the kernel has them. These are touched here, by the
/// thread that builds on them, so that they are near its core; small ones on first use, which is its as well.
fn zeroed(layout: Layout) -> Option<NonNull<u8>> {
    if layout.align() < HUGE_PAGE {
        // SAFETY: the layout has a size of at least ALIGNMENT.
        return NonNull::new(unsafe { alloc_zeroed(layout) });
    }
    // SAFETY: the layout has a size of at least LARGE.
    let base = NonNull::new(unsafe { alloc(layout) })?;
    // SAFETY: these pages were just allocated, and nobody else knows them.
    let advised = unsafe {
        rustix::mm::madvise(
            base.as_ptr().cast(),
            layout.size(),
            rustix::mm::Advice::LinuxHugepage,
        )
    };
    // A kernel without huge pages says so here and gives small ones: slower, not wrong.
    let _ = advised;
    // SAFETY: as above.
    unsafe { base.as_ptr().write_bytes(0, layout.size()) };
    Some(base)
}

type Page = Box<[OnceLock<Arena>]>;

struct Table {
    pages: Box<[OnceLock<Page>]>,
    used: AtomicUsize,
}

/// A handle to a device's memory; clones refer to the same arenas.
#[derive(Clone)]
pub struct HostMemory(Arc<Table>);

impl std::fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "HostMemory({} arenas)",
            self.0.used.load(Ordering::Relaxed)
        )
    }
}

impl Default for HostMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl HostMemory {
    /// No arenas yet.
    pub fn new() -> Self {
        let pages = (0..=usize::from(u16::MAX) / PAGE)
            .map(|_| OnceLock::new())
            .collect();
        Self(Arc::new(Table {
            pages,
            used: AtomicUsize::new(0),
        }))
    }

    /// A new zeroed arena of `len` elements, or `None` when memory (or the table of 65535 arenas) is exhausted.
    pub(crate) fn allocate(&self, dtype: Dtype, len: usize) -> Option<Span> {
        let bytes = len.checked_mul(dtype.size())?.max(ALIGNMENT);
        let layout = if bytes < LARGE {
            Layout::from_size_align(bytes, ALIGNMENT).ok()?
        } else {
            let bytes = bytes.checked_next_multiple_of(HUGE_PAGE)?;
            Layout::from_size_align(bytes, HUGE_PAGE).ok()?
        };
        let index = self
            .0
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < usize::from(u16::MAX)).then_some(used + 1)
            });
        let index = index.ok()?;
        let base = zeroed(layout)?;
        let page =
            self.0.pages[index / PAGE].get_or_init(|| (0..PAGE).map(|_| OnceLock::new()).collect());
        let fresh = page[index % PAGE].set(Arena { base, layout, len });
        assert!(fresh.is_ok(), "arena {index} is handed out once");
        Some(Span::of_arena(index as u16, dtype, len))
    }

    fn pointer<T: Element>(&self, span: Span) -> *mut T {
        assert_eq!(span.dtype(), T::DTYPE, "a span of another type was passed");
        let index = usize::from(span.arena());
        let arena = self.0.pages[index / PAGE]
            .get()
            .and_then(|page| page[index % PAGE].get());
        let arena = arena.expect("a span of another device was passed");
        assert!(
            span.start() + span.len() <= arena.len,
            "{span:?} leaves its arena"
        );
        // SAFETY: the start was just checked to lie within the allocation.
        unsafe { arena.base.as_ptr().cast::<T>().add(span.start()) }
    }

    /// The elements of `span`, to read. [`Span::EMPTY`] gives an empty slice.
    ///
    /// # Safety
    /// Until the slice is dropped nobody writes to the span: the caller runs in the order of a stream that makes it so.
    ///
    /// # Panics
    /// When the span is of another type or device: a bug of the caller.
    pub unsafe fn read<T: Element>(&self, span: Span) -> &[T] {
        if span.is_empty() {
            return &[];
        }
        // SAFETY: the pointer is valid for the span's length, aligned (arenas are, and elements are whole), and
        // initialised (arenas start zeroed); that nobody writes is the caller's promise.
        unsafe { std::slice::from_raw_parts(self.pointer(span), span.len()) }
    }

    /// The elements of `span`, to write. [`Span::EMPTY`] gives an empty slice.
    ///
    /// # Safety
    /// Until the slice is dropped nobody else reads or writes the span.
    ///
    /// # Panics
    /// As [`HostMemory::read`].
    #[allow(
        clippy::mut_from_ref,
        reason = "exclusive access is the caller's promise, by stream order"
    )]
    pub unsafe fn write<T: Element>(&self, span: Span) -> &mut [T] {
        if span.is_empty() {
            return &mut [];
        }
        // SAFETY: as in `read`; that nobody else touches the span is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(span), span.len()) }
    }
}

/// Elements in memory such as devices have it, of which nobody else has a handle.
pub(crate) struct Owned {
    memory: HostMemory,
    span: Span,
}

impl Owned {
    /// So many elements of one value, in memory that has been touched; `None` when there is not enough.
    pub(crate) fn filled(len: usize, value: f32) -> Option<Self> {
        let memory = HostMemory::new();
        let span = memory.allocate(Dtype::F32, len)?;
        let mut owned = Self { memory, span };
        owned.elements_mut().fill(value);
        Some(owned)
    }

    /// The elements, to read.
    pub(crate) fn elements(&self) -> &[f32] {
        // SAFETY: nobody else knows this memory, and whoever writes borrows `self` alone.
        unsafe { self.memory.read(self.span) }
    }

    /// The elements, to write.
    pub(crate) fn elements_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { self.memory.write(self.span) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owned_begins_with_a_page_as_large_as_that_of_arenas() {
        let mut owned = Owned::filled(LARGE / size_of::<f32>(), 1.0).expect("8 MiB");
        assert_eq!(owned.elements().as_ptr() as usize % HUGE_PAGE, 0);
        owned.elements_mut()[1] = 2.0;
        assert_eq!(owned.elements()[..3], [1.0, 2.0, 1.0]);
        assert!(Owned::filled(usize::MAX / 8, 1.0).is_none());
    }

    #[test]
    fn arenas_are_zeroed_aligned_and_stay_in_place() {
        let memory = HostMemory::new();
        let first = memory.allocate(Dtype::F32, 5).unwrap();
        // SAFETY: nobody else uses this memory.
        let slice = unsafe { memory.write::<f32>(first) };
        assert_eq!(slice, [0.0; 5]);
        assert_eq!(slice.as_ptr() as usize % ALIGNMENT, 0);
        slice[4] = 2.0;
        for _ in 0..2 * PAGE {
            memory.allocate(Dtype::I64, 1).unwrap();
        }
        // SAFETY: the mutable slice is not used any more.
        let read = unsafe { memory.read::<f32>(first.slice(4..5)) };
        assert_eq!(read, [2.0]);
    }

    #[test]
    fn what_cannot_be_allocated_is_refused() {
        let memory = HostMemory::new();
        assert!(memory.allocate(Dtype::F32, usize::MAX / 2).is_none());
        assert!(memory.allocate(Dtype::F32, usize::MAX / 8).is_none());
    }

    #[test]
    #[should_panic(expected = "another type")]
    fn a_span_of_another_type_is_a_bug() {
        let memory = HostMemory::new();
        let span = memory.allocate(Dtype::I32, 1).unwrap();
        // SAFETY: nobody else uses this memory.
        unsafe { memory.read::<f32>(span) };
    }
}
