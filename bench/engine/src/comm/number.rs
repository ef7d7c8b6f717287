//! Arithmetic of the elements that collectives combine.
//!
//! Reference: the semantics of sum and max in MPI_Reduce; integers wrap, as they do in every transport.
use crate::backend::cpu::memory::Element;
use crate::comm::Reduce;

/// Arithmetic of what can be reduced.
pub(super) trait Number: Element {
    fn add(self, other: Self) -> Self;
    fn larger(self, other: Self) -> Self;
    /// Times the factor of [`Reduce::ScaledSum`], which only floats have.
    fn scaled(self, factor: f32) -> Self;
}

impl Number for f32 {
    fn add(self, other: Self) -> Self {
        self + other
    }
    fn larger(self, other: Self) -> Self {
        // A NaN must reach every rank: divergence may not be hidden by the reduction.
        if self.is_nan() || self > other {
            self
        } else {
            other
        }
    }
    fn scaled(self, factor: f32) -> Self {
        self * factor
    }
}

macro_rules! integer {
    ($($kind:ty),*) => {$(
        impl Number for $kind {
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn larger(self, other: Self) -> Self {
                self.max(other)
            }
            fn scaled(self, _: f32) -> Self {
                self
            }
        }
    )*};
}
integer!(i32, i64);

/// What a reduction of one contribution leaves.
pub(super) fn scale<T: Number>(reduce: Reduce, data: &mut [T]) {
    if let Reduce::ScaledSum(factor) = reduce
        && factor != 1.0
    {
        data.iter_mut()
            .for_each(|value| *value = value.scaled(factor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_a_nan_and_a_number_is_nan() {
        assert!(Number::larger(f32::NAN, 1.0).is_nan());
        assert!(Number::larger(1.0, f32::NAN).is_nan());
        assert_eq!(Number::larger(-1.0_f32, 2.0), 2.0);
    }
}
