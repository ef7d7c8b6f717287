//! Half-precision numbers: IEEE binary16 (`fp16`) and bfloat16, for gradients on their way between ranks.
//!
//! Conversions from f32 round to nearest, ties to even; too large becomes infinite; NaN stays NaN (its payload is not kept). Nothing
//! is flushed: subnormal numbers are converted exactly. Integer arithmetic without branches, so that loops over slices
//! become vector code on any processor and give the same bits on all of them. A sum is made in f32 and rounded, which for both
//! formats is the correctly rounded sum (Figueroa, *When is double rounding innocuous?*, 1995: 24 >= 2·11 + 2), and is what
//! gloo and PyTorch's CPU kernels do (`gloo/math.h`, `c10/util/BFloat16-math.h`).

/// An IEEE binary16 number, by its bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct F16(pub u16);

/// A bfloat16 number, by its bits: the upper half of an f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// A number of 16 bits that f32 contains.
pub trait Half: Copy {
    /// The nearest number, ties to even.
    fn narrow(value: f32) -> Self;
    /// The same number.
    fn widen(self) -> f32;
}

const SIGN: u32 = 0x8000_0000;
const INFINITY: u32 = 0x7f80_0000;
/// What is added to an exponent of binary16 to make it one of f32, and the places that its significand moves.
const REBIAS: u32 = (127 - 15) << 23;
const PLACES: u32 = 13;

impl Half for F16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        // 2^16, from which all is infinite; 2^-14, below which numbers are subnormal.
        const OVERFLOW: u32 = (127 + 16) << 23;
        const NORMAL: u32 = (127 - 14) << 23;
        // 1/2: adding it leaves the units of the smallest subnormal, 2^-24, in the last place of an f32, rounded.
        const ALIGN: u32 = (127 - 1) << 23;
        let bits = value.to_bits();
        let magnitude = bits & !SIGN;
        let infinite = 0x7c00 | (u32::from(magnitude > INFINITY) << 9);
        let aligned = f32::from_bits(magnitude) + f32::from_bits(ALIGN);
        let subnormal = aligned.to_bits().wrapping_sub(ALIGN);
        let odd = (magnitude >> PLACES) & 1;
        let normal = magnitude.wrapping_sub(REBIAS).wrapping_add(0xfff + odd) >> PLACES;
        let finite = if magnitude < NORMAL {
            subnormal
        } else {
            normal
        };
        let rounded = if magnitude >= OVERFLOW {
            infinite
        } else {
            finite
        };
        Self((rounded | (bits & SIGN) >> 16) as u16)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        const EXPONENT: u32 = 0x7c00 << PLACES;
        const SMALLEST_NORMAL: f32 = f32::from_bits((127 - 14) << 23);
        let bits = u32::from(self.0);
        let shifted = (bits & 0x7fff) << PLACES;
        let exponent = shifted & EXPONENT;
        // Infinity and NaN have the largest exponent in both formats.
        let top = if exponent == EXPONENT { REBIAS } else { 0 };
        let normal = shifted.wrapping_add(REBIAS + top);
        // A subnormal number lacks the leading one: it is given one, which is then subtracted.
        let subnormal = f32::from_bits(shifted.wrapping_add(REBIAS + (1 << 23))) - SMALLEST_NORMAL;
        let magnitude = if exponent == 0 {
            subnormal.to_bits()
        } else {
            normal
        };
        f32::from_bits(magnitude | (bits & 0x8000) << 16)
    }
}

impl Half for Bf16 {
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        let is_nan = bits & !SIGN > INFINITY;
        Self(if is_nan { nan } else { rounded } as u16)
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of all numbers of the format the nearest to `value`, found by trying: the one whose last bit is zero on a tie.
    fn nearest<T: Half>(value: f32, of_bits: fn(u16) -> T, infinity: u16, past: f64) -> f32 {
        let magnitude = f64::from(value.abs());
        let (mut best, mut distance) = (0, f64::INFINITY);
        for bits in 0..=infinity {
            // Rounding treats infinity as the number that would come next.
            let at = if bits == infinity {
                past
            } else {
                f64::from(of_bits(bits).widen())
            };
            let off = (at - magnitude).abs();
            if off < distance || (off == distance && bits % 2 == 0) {
                (best, distance) = (bits, off);
            }
        }
        of_bits(best).widen().copysign(value)
    }

    fn samples() -> impl Iterator<Item = f32> {
        let corners = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            65504.0,
            65519.996,
            65520.0,
            65536.0,
            -1e9,
            6e-8,
            2.9e-8,
            2.98e-8,
            5.96e-8,
            6.1e-5,
            6.097e-5,
            3.3895e38,
            3.3953e38,
            1e-40,
            1e-45,
            f32::MAX,
            f32::MIN_POSITIVE,
        ];
        // Exact ties between neighbours of both formats, and random numbers near binary16's range.
        let ties = (0..40).map(|i| f32::from_bits(0x3f80_1000 + i * 0x1000));
        let random = (0..150u32).map(|i| {
            let word = i.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995;
            f32::from_bits((word & 0x807f_ffff) | ((100 + i % 46) << 23))
        });
        corners.into_iter().chain(ties).chain(random)
    }

    #[test]
    fn narrowing_finds_the_nearest_number_and_the_even_one_of_two() {
        for value in samples() {
            let found = F16::narrow(value).widen();
            let expected = nearest(value, F16, 0x7c00, 65536.0);
            assert_eq!(found.to_bits(), expected.to_bits(), "binary16 of {value:e}");
            let found = Bf16::narrow(value).widen();
            let expected = nearest(value, Bf16, 0x7f80, 2f64.powi(128));
            assert_eq!(found.to_bits(), expected.to_bits(), "bfloat16 of {value:e}");
        }
    }

    #[test]
    fn what_is_infinite_or_no_number_stays_so() {
        for sign in [1.0f32, -1.0] {
            let infinite = sign * f32::INFINITY;
            assert_eq!(F16::narrow(infinite).widen(), infinite);
            assert_eq!(Bf16::narrow(infinite).widen(), infinite);
        }
        // A NaN whose payload lies in the bits that are cut off must not become infinite.
        for bits in [
            0x7fc0_0000,
            0x7f80_0001,
            0xff80_0001,
            0x7fff_ffff,
            0xffff_ffff,
        ] {
            assert!(F16::narrow(f32::from_bits(bits)).widen().is_nan());
            assert!(Bf16::narrow(f32::from_bits(bits)).widen().is_nan());
        }
    }

    #[test]
    fn widening_knows_the_values_of_the_format() {
        let known = [
            (0x0001, 2f32.powi(-24)),
            (0x03ff, 1023.0 * 2f32.powi(-24)),
            (0x0400, 2f32.powi(-14)),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
        ];
        for (bits, value) in known {
            assert_eq!(F16(bits).widen(), value, "{bits:#x}");
        }
        assert_eq!(Bf16(0x3f80).widen(), 1.0);
        assert_eq!(Bf16(0xff80).widen(), f32::NEG_INFINITY);
    }
}
