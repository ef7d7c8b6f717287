//! The Gaussian error linear unit, exact and in the tanh approximation, and the functions that it needs.
//!
//! Contract: elementwise; NaN stays NaN. `erf` is a polynomial that LLVM makes vector code of, as [`super::exp`] is, good to about two
//! units in the last place; so every machine computes the same bits, which a system's libm does not promise. The approximation is x·σ(2u), the same as x/2·(1 + tanh u) without its cancellation.
//! Reference: Hendrycks and Gimpel, *Gaussian error linear units*, 2016; PyTorch's `nn.GELU`.
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use crate::backend::cpu::columns::widest;
use crate::backend::cpu::exp::exp;
use crate::kernel::{Gelu, Write};

/// erf(x): an odd polynomial near 0, 1 − e^polynomial beyond.
#[inline(always)]
fn erf(x: f32) -> f32 {
    // Minimax coefficients by N. Juffa (public domain), https://stackoverflow.com/questions/35148198.
    const NEAR: [f32; 6] = [
        -5.967_617e-4,
        4.991_194e-3,
        -2.676_813_5e-2,
        1.128_199_25e-1,
        -3.761_253_4e-1,
        1.283_791_7e-1,
    ];
    const FAR: [f32; 7] = [
        -1.728_534_7e-5,
        3.831_971_3e-4,
        -3.883_964_4e-3,
        2.425_462_2e-2,
        -1.067_778_8e-1,
        -6.348_467e-1,
        -1.287_175_1e-1,
    ];
    let (t, s) = (x.abs(), x * x);
    let near = NEAR.iter().fold(0.0, |sum, c| sum * s + c) * x + x;
    // From |x| = 4 on, erf is 1 in f32; the polynomial is made for no more.
    let t = t.min(4.0);
    let exponent = FAR.iter().fold(0.0, |sum, c| sum * t + c) * t - t;
    let far = (1.0 - exp(exponent)).copysign(x);
    if s > 0.927_734_4 * 0.927_734_4 {
        far
    } else {
        near
    }
}

/// Φ(x), the standard normal distribution function.
#[inline(always)]
fn normal(x: f32) -> f32 {
    0.5 + 0.5 * erf(x * FRAC_1_SQRT_2)
}

/// √(2/π), and the factor of x³ in u.
const TANH: [f32; 2] = [FRAC_2_SQRT_PI * FRAC_1_SQRT_2, 0.044_715];

/// σ(2u) = (1 + tanh u)/2.
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    let u = TANH[0] * (x + TANH[1] * x * x * x);
    1.0 / (1.0 + exp(-2.0 * u))
}

#[inline(always)]
fn exact_gradient(x: f32) -> f32 {
    // 1/√(2π)
    let peak = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
    normal(x) + x * (peak * exp(-0.5 * x * x))
}

#[inline(always)]
fn tanh_gradient(x: f32) -> f32 {
    // Beyond ±10 it is 0 or 1 in f32; there x² could overflow.
    let x = x.clamp(-10.0, 10.0);
    let share = sigmoid(x);
    let slope = 2.0 * TANH[0] * (1.0 + 3.0 * TANH[1] * x * x);
    share + x * share * (1.0 - share) * slope
}

widest! {
    /// y = x·Φ(x).
    pub(super) fn forward(x: &[f32], y: &mut [f32], formula: Gelu) {
        let pairs = y.iter_mut().zip(x);
        match formula {
            Gelu::None => pairs.for_each(|(y, &x)| *y = x * normal(x)),
            Gelu::Tanh => pairs.for_each(|(y, &x)| *y = x * sigmoid(x)),
        }
    }
}

widest! {
    /// dx (+)= dy·y′(x).
    pub(super) fn backward(x: &[f32], d_y: &[f32], d_x: &mut [f32], formula: Gelu, write: Write) {
        let pairs = d_x.iter_mut().zip(x.iter().zip(d_y));
        match (formula, write) {
            (Gelu::None, Write::Overwrite) => pairs.for_each(|(d_x, (&x, d_y))| *d_x = d_y * exact_gradient(x)),
            (Gelu::None, Write::Accumulate) => pairs.for_each(|(d_x, (&x, d_y))| *d_x += d_y * exact_gradient(x)),
            (Gelu::Tanh, Write::Overwrite) => pairs.for_each(|(d_x, (&x, d_y))| *d_x = d_y * tanh_gradient(x)),
            (Gelu::Tanh, Write::Accumulate) => pairs.for_each(|(d_x, (&x, d_y))| *d_x += d_y * tanh_gradient(x)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest distance of `found` from `expected`, relative to the latter.
    fn worst(range: f32, found: impl Fn(f32) -> f32, expected: impl Fn(f64) -> f64) -> f64 {
        let points = (-200_000..=200_000).map(|i| range * i as f32 / 200_000.0);
        points.filter(|x| *x != 0.0).fold(0.0, |worst, x| {
            let right = expected(f64::from(x));
            worst.max((f64::from(found(x)) - right).abs() / right.abs())
        })
    }

    /// erf by its series (below 3) and its continued fraction, in f64.
    fn erf_f64(x: f64) -> f64 {
        let (t, two_over_sqrt_pi) = (x.abs(), f64::from(2.0f32) / std::f64::consts::PI.sqrt());
        let value = if t < 3.0 {
            let (mut term, mut sum) = (t, t);
            for n in 1..100 {
                term *= -t * t / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            two_over_sqrt_pi * sum
        } else {
            let fraction = (1..60)
                .rev()
                .fold(t, |below, n| t + 0.5 * f64::from(n) / below);
            1.0 - (-t * t).exp() / std::f64::consts::PI.sqrt() / fraction
        };
        value.copysign(x)
    }

    #[test]
    fn exp_and_erf_are_good_to_the_last_places() {
        let ulp = f64::from(f32::EPSILON);
        assert!(worst(86.9, exp, f64::exp) < 2.0 * ulp);
        assert!((erf_f64(1.0) - 0.842_700_792_949_714_9).abs() < 1e-15);
        assert!(worst(6.0, erf, erf_f64) < 2.0 * ulp);
        assert_eq!((erf(f32::INFINITY), erf(-50.0), erf(0.0)), (1.0, -1.0, 0.0));
        assert_eq!((exp(0.0), exp(-1e4)), (1.0, exp(-87.0)));
    }

    #[test]
    fn far_from_zero_gelu_is_zero_or_the_identity_and_nan_stays() {
        let x = [-1e30, -20.0, 20.0, 1e30, f32::NAN];
        for formula in [Gelu::None, Gelu::Tanh] {
            let (mut y, mut d_x) = ([1.0; 5], [1.0; 5]);
            forward(&x, &mut y, formula);
            backward(&x, &[1.0; 5], &mut d_x, formula, Write::Overwrite);
            assert!(
                y[1].abs() < 1e-30 && y[2] == 20.0 && y[3] == 1e30,
                "{formula:?} {y:?}"
            );
            assert!(
                d_x[1].abs() < 1e-30 && d_x[2] == 1.0 && d_x[3] == 1.0,
                "{formula:?} {d_x:?}"
            );
            assert!(y[4].is_nan() && d_x[4].is_nan());
        }
    }
}
