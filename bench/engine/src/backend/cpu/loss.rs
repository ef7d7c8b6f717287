//! Softmax cross-entropy with its gradient, and counting errors.
//!
//! Contract: rows of `classes` logits; a label is below `classes` or [`UNLABELLED`] (data loaders check theirs; another one is a bug).
//! The largest logit is subtracted before [`exp`]; sums over pieces of a row, and logarithms, are f64.
//! Reference: PyTorch's `cross_entropy` with `reduction="none"`, scaled; its `ignore_index`.
use crate::backend::cpu::columns::widest;
use crate::backend::cpu::exp::exp;
use crate::loss::UNLABELLED;

/// Logits whose exponentials are summed in f32 before their sum is added in f64.
const PIECE: usize = 512;
/// Sums of a piece that are made side by side.
const LANES: usize = 16;

/// The row's label as an index; none where it has none.
fn class(label: i32, classes: usize) -> Option<usize> {
    if label == UNLABELLED {
        return None;
    }
    let class = usize::try_from(label).unwrap_or(usize::MAX);
    assert!(
        class < classes,
        "label {label} is not one of {classes} classes"
    );
    Some(class)
}

/// losses[b]: the mean over the labels of each sample, which has `positions` rows; d_logits = scale·(softmax − onehot) over the number
/// of those labels, 0 in rows without one. `d_logits` may be empty.
pub(super) fn softmax_cross_entropy(
    logits: &[f32],
    labels: &[i32],
    losses: &mut [f32],
    d_logits: &mut [f32],
    positions: usize,
    classes: usize,
    scale: f32,
) {
    let samples = logits
        .chunks_exact(positions * classes)
        .zip(labels.chunks_exact(positions));
    for (b, (logits, labels)) in samples.enumerate() {
        let labelled = labels.iter().filter(|label| **label != UNLABELLED).count();
        let share = f64::from(scale) / labelled.max(1) as f64;
        let mut total = 0.0;
        for (row, (logits, label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
            let to = if d_logits.is_empty() {
                &mut []
            } else {
                &mut d_logits[(b * positions + row) * classes..][..classes]
            };
            match class(*label, classes) {
                None => to.fill(0.0),
                Some(label) => {
                    let mut loss = 0.0;
                    row_loss(logits, label, share, &mut loss, to);
                    total += loss;
                }
            }
        }
        losses[b] = (total / labelled.max(1) as f64) as f32;
    }
}

/// scale·Σ losses, in order.
pub(super) fn total(losses: &[f32], scale: f32) -> f32 {
    let total: f64 = losses.iter().copied().map(f64::from).sum();
    (f64::from(scale) * total) as f32
}

widest! {
    /// The loss of a row of logits, and its gradient times `scale`.
    fn row_loss(logits: &[f32], label: usize, scale: f64, loss: &mut f64, d_logits: &mut [f32]) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let pieces = logits.chunks_exact(LANES);
        let rest = pieces.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for piece in pieces {
            for (largest, logit) in lanes.iter_mut().zip(piece) {
                *largest = if *logit > *largest { *logit } else { *largest };
            }
        }
        let largest = lanes.into_iter().fold(rest, f32::max);
        // The label is summed apart: as its probability nears 1, only the others say how much is missing.
        let own = f64::from(exp(logits[label] - largest));
        let (before, after) = (&logits[..label], &logits[label + 1..]);
        let others = if d_logits.is_empty() {
            exponentials(before, largest, &mut []) + exponentials(after, largest, &mut [])
        } else {
            let (to, rest) = d_logits.split_at_mut(label);
            exponentials(before, largest, to) + exponentials(after, largest, &mut rest[1..])
        };
        *loss = if own > others {
            (others / own).ln_1p()
        } else {
            (own + others).ln() - f64::from(logits[label] - largest)
        };
        let share = scale / (own + others);
        d_logits.iter_mut().for_each(|d_logit| *d_logit *= share as f32);
        if let Some(d_logit) = d_logits.get_mut(label) {
            *d_logit = (-others * share) as f32;
        }
    }
}

/// Σ exp(logit − largest), and its terms unless `to` is empty.
#[inline(always)]
fn exponentials(logits: &[f32], largest: f32, to: &mut [f32]) -> f64 {
    let mut room = [0.0; PIECE];
    let mut total = 0.0;
    for (index, piece) in logits.chunks(PIECE).enumerate() {
        let terms = if to.is_empty() {
            &mut room[..piece.len()]
        } else {
            &mut to[index * PIECE..][..piece.len()]
        };
        for (term, logit) in terms.iter_mut().zip(piece) {
            *term = exp(logit - largest);
        }
        let mut lanes = [0.0f32; LANES];
        let wide = terms.chunks_exact(LANES);
        let rest: f64 = wide.remainder().iter().copied().map(f64::from).sum();
        for terms in wide {
            for (lane, term) in lanes.iter_mut().zip(terms) {
                *lane += term;
            }
        }
        total += rest + lanes.into_iter().map(f64::from).sum::<f64>();
    }
    total
}

/// [rows whose first largest logit is not their label, rows with a label]; logits that are no numbers count as errors.
pub(super) fn count_errors(logits: &[f32], labels: &[i32], classes: usize) -> [i32; 2] {
    let mut counts = [0, 0];
    for (logits, label) in logits.chunks_exact(classes).zip(labels) {
        let Some(label) = class(*label, classes) else {
            continue;
        };
        let (before, rest) = logits.split_at(label);
        let own = logits[label];
        let right =
            before.iter().all(|&other| own > other) && rest.iter().all(|&other| own >= other);
        counts[0] += i32::from(!right);
        counts[1] += 1;
    }
    counts
}
