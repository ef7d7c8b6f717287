//! Where data lies: typed spans of a device's arenas.
//!
//! The backend owns all memory. Everyone else passes [`Span`]s, which are plain copyable descriptions and
//! can be queued, so that nothing in the engine depends on when a kernel runs.
use std::ops::Range;

/// Element type of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// 32-bit signed integer: labels, indices, device-side counters.
    I32,
    /// 64-bit signed integer: `num_batches_tracked`.
    I64,
    /// IEEE binary16: compressed gradients.
    F16,
    /// bfloat16: compressed gradients.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A contiguous range of elements in one arena of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    arena: u16,
    dtype: Dtype,
    start: usize,
    len: usize,
}

impl Span {
    /// For backends: the span that covers a whole new arena.
    pub const fn of_arena(arena: u16, dtype: Dtype, len: usize) -> Self {
        Self {
            arena,
            dtype,
            start: 0,
            len,
        }
    }
    /// A span of no elements, for optional operands.
    pub const EMPTY: Self = Self {
        arena: u16::MAX,
        dtype: Dtype::F32,
        start: 0,
        len: 0,
    };

    /// The arena's index on its device.
    pub const fn arena(self) -> u16 {
        self.arena
    }
    /// Element type.
    pub const fn dtype(self) -> Dtype {
        self.dtype
    }
    /// First element, counted from the start of the arena.
    pub const fn start(self) -> usize {
        self.start
    }
    /// Number of elements.
    pub const fn len(self) -> usize {
        self.len
    }
    /// Whether it holds no element.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }
    /// Size in bytes.
    pub const fn bytes(self) -> usize {
        self.len * self.dtype.size()
    }
    /// The part `range` of this span, in elements.
    ///
    /// # Panics
    /// When the range leaves the span: that is a bug of the caller, never of its input.
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} leaves a span of {}",
            self.len
        );
        Self {
            start: self.start + range.start,
            len: range.end - range.start,
            ..self
        }
    }
    /// The first `len` elements.
    pub fn first(self, len: usize) -> Self {
        self.slice(0..len)
    }
}
