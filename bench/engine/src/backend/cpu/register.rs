//! A vector register of f32 behind one trait, so that a kernel is written once for AVX-512, AVX2 and any machine.
//!
//! Contract: products are fused with sums where the instructions do so (AVX-512, AVX2), so the sets agree to rounding, not to
//! the bit. Methods are inlined into functions that enable the instructions; nothing here does so itself.
//! Reference: Intel Intrinsics Guide.
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
    _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps,
    _mm512_storeu_ps,
};

/// The widest register, in f32.
pub(super) const MOST_LANES: usize = 16;

/// Neighbouring f32 that are worked on together.
pub(super) trait Register: Copy {
    /// How many.
    const LANES: usize;

    /// All lanes equal.
    ///
    /// # Safety
    /// The machine has the register's instructions; so for every method.
    unsafe fn splat(value: f32) -> Self;
    /// # Safety
    /// `from` can be read for [`Self::LANES`] elements.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` can be written for [`Self::LANES`] elements.
    unsafe fn store(self, to: *mut f32);
    /// self + other.
    ///
    /// # Safety
    /// As for [`Register::splat`].
    unsafe fn add(self, other: Self) -> Self;
    /// self + a·b.
    ///
    /// # Safety
    /// As for [`Register::splat`].
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}

/// Implements [`Register`] with intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! register {
    ($register:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident, $add:ident, $multiply_add:ident) => {
        impl Register for $register {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                // SAFETY: the caller has the instructions.
                unsafe { $splat(value) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: the caller has the instructions and the elements.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: the caller has the instructions and the elements.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: the caller has the instructions.
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            unsafe fn add_product(self, a: Self, b: Self) -> Self {
                // SAFETY: the caller has the instructions.
                unsafe { $multiply_add(a, b, self) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
register!(
    __m256,
    8,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps
);
#[cfg(target_arch = "x86_64")]
register!(
    __m512,
    16,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps
);

/// Four lanes of plain Rust, which LLVM maps to what the target always has (SSE2, NEON).
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 4]);

impl Register for Plain {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
}
