//! Stochastic gradient descent, in one pass over parameters, gradients and momentum.
//!
//! Contract: flat arenas of equal length; without momentum `buffer` is empty. A zeroed buffer makes the first step that of
//! PyTorch, whose buffer starts as the first gradient.
//! Reference: PyTorch's `torch.optim.SGD` with dampening 0.
use crate::backend::cpu::columns::widest;

widest! {
    /// g = grad + wd·p; buf = momentum·buf + g; p −= rate·buf.
    pub(super) fn sgd(
        parameter: &mut [f32], gradient: &[f32], buffer: &mut [f32], rate: f32, momentum: f32, weight_decay: f32,
    ) {
        let pairs = parameter.iter_mut().zip(gradient);
        if buffer.is_empty() {
            pairs.for_each(|(p, gradient)| *p -= rate * (gradient + weight_decay * *p));
        } else {
            pairs.zip(buffer).for_each(|((p, gradient), buffer)| {
                *buffer = momentum * *buffer + (gradient + weight_decay * *p);
                *p -= rate * *buffer;
            });
        }
    }
}
