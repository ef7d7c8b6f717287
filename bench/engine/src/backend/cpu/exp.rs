//! The exponential function, as GELU, attention and the loss need it.
//!
//! Contract: NaN stays NaN. A polynomial that LLVM makes vector code of, good to about two units in the last place; so every machine
//! computes the same bits, which a system's libm does not promise.
//! Reference: Cody and Waite, *Software Manual for the Elementary Functions*, 1980, chapter 6.
use std::f32::consts::LOG2_E;

/// eˣ for x within ±87, and its values there beyond.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// ln 2 in two parts: the first has so few digits that its multiples are exact.
    const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    /// 1.5·2²³: adding it rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    // Taylor's series to r⁷ over |r| ≤ ln 2/2: what is left is 5e-9 of eʳ.
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        p = p * r + coefficient;
    }
    let e = (p * r) * r + r + 1.0;
    // The whole number lies in the low bits of `shifted`; |n| ≤ 126, so 2ⁿ is a normal number.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    e * power
}
