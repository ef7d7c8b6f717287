//! Arithmetic of the elements that collectives combine.
//!
//! Reference: the semantics of sum and max in MPI_Reduce; integers wrap, as they do in every transport.
use crate::backend::cpu::memory::Element;
use crate::half::{Bf16, F16, Half};

/// Arithmetic of what can be reduced.
pub(super) trait Number: Element {
    fn add(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    /// Times the factor of [`crate::comm::Reduce::ScaledSum`], which only floats have.
    fn scaled(self, factor: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        // A NaN must reach every rank: divergence may not be hidden by the reduction.
        if self.is_nan() || self > other {
            self
        } else {
            other
        }
    }
    #[inline(always)]
    fn scaled(self, factor: f32) -> Self {
        self * factor
    }
}

macro_rules! half {
    ($($kind:ty),*) => {$(
        /// Each result is rounded: what gloo's sums do, so that two ranks get gloo's bits.
        impl Number for $kind {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                Self::narrow(self.widen() + other.widen())
            }
            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                Self::narrow(Number::larger(self.widen(), other.widen()))
            }
            #[inline(always)]
            fn scaled(self, factor: f32) -> Self {
                Self::narrow(self.widen() * factor)
            }
        }
    )*};
}
half!(F16, Bf16);

macro_rules! integer {
    ($($kind:ty),*) => {$(
        impl Number for $kind {
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            #[inline(always)]
            fn scaled(self, _: f32) -> Self {
                self
            }
        }
    )*};
}
integer!(i32, i64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_a_nan_and_a_number_is_nan() {
        assert!(Number::larger(f32::NAN, 1.0).is_nan());
        assert!(Number::larger(1.0, f32::NAN).is_nan());
        assert_eq!(Number::larger(-1.0_f32, 2.0), 2.0);
        let nan = F16::narrow(f32::NAN);
        assert!(Number::larger(nan, F16(0)).widen().is_nan());
        assert!(Number::larger(F16(0), nan).widen().is_nan());
    }

    #[test]
    fn sums_of_halves_are_rounded_to_even_and_overflow() {
        let f16 = |value| F16::narrow(value);
        // 2048 + 1 lies between two numbers of binary16: the even one. 2050 + 1 as well.
        assert_eq!(f16(2048.0).add(f16(1.0)), f16(2048.0));
        assert_eq!(f16(2050.0).add(f16(1.0)), f16(2052.0));
        assert_eq!(f16(65504.0).add(f16(65504.0)).widen(), f32::INFINITY);
        let bf16 = |value| Bf16::narrow(value);
        assert_eq!(bf16(256.0).add(bf16(1.0)), bf16(256.0));
        assert_eq!(bf16(258.0).add(bf16(1.0)), bf16(260.0));
        assert_eq!(bf16(3.0).scaled(0.5).widen(), 1.5);
    }
}
