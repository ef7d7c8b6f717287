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
        let exp = |logit: f32| f64::from((logit - largest).exp());
        let sum_of = |logits: &[f32]| logits.iter().map(|&logit| exp(logit)).sum::<f64>();
        // The label is summed apart: as its probability nears 1, only the others say how much is missing.
        let (own, others) = (
            exp(logits[label]),
            sum_of(&logits[..label]) + sum_of(&logits[label + 1..]),
        );
        let sum = own + others;
        losses[b] = if own > others {
            (others / own).ln_1p() as f32
        } else {
            (sum.ln() - f64::from(logits[label] - largest)) as f32
        };
        total += f64::from(losses[b]);
        if d_logits.is_empty() {
            continue;
        }
        let d_logits = &mut d_logits[b * classes..][..classes];
        let share = f64::from(scale) / sum;
        for (d_logit, &logit) in d_logits.iter_mut().zip(logits) {
            *d_logit = (exp(logit) * share) as f32;
        }
        d_logits[label] = (-others * share) as f32;
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
