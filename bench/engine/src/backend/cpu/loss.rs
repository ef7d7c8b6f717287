//! Softmax cross-entropy with its gradient, and counting errors.
//!
//! Contract: rows of `classes` logits, labels below `classes` (data loaders check theirs; another one is a bug). The largest
//! logit is subtracted before `exp`; sums and logarithms are f64.
//! Reference: PyTorch's `cross_entropy` with `reduction="none"`, scaled.

/// The row's label as an index.
fn class(label: i32, classes: usize) -> usize {
    let class = usize::try_from(label).unwrap_or(usize::MAX);
    assert!(
        class < classes,
        "label {label} is not one of {classes} classes"
    );
    class
}

/// losses[b]; loss[0] = scale·Σ losses; d_logits = scale·(softmax − onehot). `loss` and `d_logits` may be empty.
pub(super) fn softmax_cross_entropy(
    logits: &[f32],
    labels: &[i32],
    losses: &mut [f32],
    loss: &mut [f32],
    d_logits: &mut [f32],
    classes: usize,
    scale: f32,
) {
    let mut total = 0.0f64;
    for (b, (logits, &label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        let label = class(label, classes);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits
            .iter()
            .map(|logit| f64::from((logit - largest).exp()))
            .sum();
        losses[b] = (sum.ln() - f64::from(logits[label] - largest)) as f32;
        total += f64::from(losses[b]);
        if d_logits.is_empty() {
            continue;
        }
        let d_logits = &mut d_logits[b * classes..][..classes];
        let share = (1.0 / sum) as f32;
        for (d_logit, logit) in d_logits.iter_mut().zip(logits) {
            *d_logit = scale * ((logit - largest).exp() * share);
        }
        // The label's own gradient is −scale·Σ of the other probabilities: 1 − p would lose them as p nears 1.
        let p = f64::from((logits[label] - largest).exp());
        d_logits[label] = -scale * ((sum - p) / sum) as f32;
    }
    if let Some(loss) = loss.first_mut() {
        *loss = (f64::from(scale) * total) as f32;
    }
}

/// How many samples' first largest logit is not their label; logits that are no numbers count as errors.
pub(super) fn count_errors(logits: &[f32], labels: &[i32], classes: usize) -> i32 {
    let wrong = |(logits, &label): (&[f32], &i32)| {
        let label = class(label, classes);
        let (before, rest) = logits.split_at(label);
        let own = logits[label];
        !(before.iter().all(|&other| own > other) && rest.iter().all(|&other| own >= other))
    };
    logits
        .chunks_exact(classes)
        .zip(labels)
        .filter(|&pair| wrong(pair))
        .count() as i32
}
