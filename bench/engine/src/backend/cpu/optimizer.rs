//! Optimizers, each in one pass over parameters, gradients and state.
//!
//! Contract: flat arenas of equal length; SGD's `buffer` is empty without momentum. A zeroed buffer makes the first step that
//! of PyTorch, whose buffer starts as the first gradient.
//! Reference: PyTorch's `torch.optim.SGD` with dampening 0, and `torch.optim.AdamW` without AMSGrad.
use crate::backend::cpu::columns::widest;

widest! {
    /// g = grad + wd·p; buf = momentum·buf + g; p −= rate·buf, or rate·(g + momentum·buf).
    pub(super) fn sgd(
        parameter: &mut [f32], gradient: &[f32], buffer: &mut [f32], rate: f32, momentum: f32, weight_decay: f32,
        nesterov: bool,
    ) {
        let pairs = parameter.iter_mut().zip(gradient);
        if buffer.is_empty() {
            pairs.for_each(|(p, gradient)| *p -= rate * (gradient + weight_decay * *p));
            return;
        }
        // A step of `ahead`·g + `along`·buf is both kinds, so that one loop serves them.
        let (ahead, along) = if nesterov { (1.0, momentum) } else { (0.0, 1.0) };
        pairs.zip(buffer).for_each(|((p, gradient), buffer)| {
            let g = gradient + weight_decay * *p;
            *buffer = momentum * *buffer + g;
            *p -= rate * (ahead * g + along * *buffer);
        });
    }
}

/// What is equal for all elements of one update with AdamW, computed in f64 as PyTorch does.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// 1 − lr·wd.
    kept: f32,
    /// 1 − β₁.
    fresh: f32,
    /// β₂.
    beta2: f32,
    /// 1 − β₂.
    fresh_square: f32,
    /// lr/(1 − β₁ᵗ).
    step: f32,
    /// √(1 − β₂ᵗ).
    root: f32,
}

impl Factors {
    /// Those of update number `updates`, counted from 1.
    pub(super) fn new(rate: f32, updates: i32, beta1: f64, beta2: f64, weight_decay: f32) -> Self {
        let rate = f64::from(rate);
        Self {
            kept: (1.0 - rate * f64::from(weight_decay)) as f32,
            fresh: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            fresh_square: (1.0 - beta2) as f32,
            step: (rate / (1.0 - beta1.powi(updates))) as f32,
            root: (1.0 - beta2.powi(updates)).sqrt() as f32,
        }
    }
}

widest! {
    /// p ← kept·p; m += fresh·(g − m); v ← β₂·v + (1 − β₂)·g²; p −= step·m/(√v/root + eps).
    pub(super) fn adamw(
        parameter: &mut [f32], gradient: &[f32], average: &mut [f32], square: &mut [f32], factors: Factors, eps: f32,
    ) {
        let Factors { kept, fresh, beta2, fresh_square, step, root } = factors;
        let state = average.iter_mut().zip(square);
        parameter.iter_mut().zip(gradient).zip(state).for_each(|((p, g), (m, v))| {
            *m += fresh * (g - *m);
            *v = beta2 * *v + fresh_square * (g * g);
            *p = *p * kept - step * (*m / (v.sqrt() / root + eps));
        });
    }
}
