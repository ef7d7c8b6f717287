//! Scaled dot-product self-attention over whole sequences, head by head.
//!
//! Contract: rows of `qkv` hold queries, keys and values of all heads, each `count·size` wide. Scores of one head are a matrix in
//! `workspace`; forward keeps the logarithm of each row's Σ exp, from which backward computes the weights again, so that memory
//! grows with the length and not with its square. A position whose keys are all padding gets zeros. Dropout's mask is
//! that of [`crate::backend::cpu::dropout`], of element (head·length + row)·length + column of the sample.
//! Reference: Vaswani et al., *Attention is all you need*, 2017, 3.2; Dao et al., *FlashAttention*, 2022, algorithm 4 (backward);
//! PyTorch's `scaled_dot_product_attention`.
use crate::backend::cpu::columns::widest;
use crate::backend::cpu::dropout::{self, Mask};
use crate::backend::cpu::exp::exp;
use crate::backend::cpu::matmul::{Strided, StridedMut, product};
use crate::kernel::{Heads, Write};

/// Numbers of a row that are worked on side by side.
const LANES: usize = 16;

/// Where one head's queries, keys and values lie in the rows of a sample.
struct Head {
    length: usize,
    size: usize,
    /// Elements of a row of `qkv`, and of one of y.
    wide: usize,
    width: usize,
    /// First element of the head's queries.
    first: usize,
    scale: f32,
}

impl Head {
    fn of(heads: &Heads, head: usize) -> Self {
        let width = heads.count * heads.size;
        Self {
            length: heads.length,
            size: heads.size,
            wide: 3 * width,
            width,
            first: head * heads.size,
            scale: 1.0 / (heads.size as f32).sqrt(),
        }
    }

    /// Queries (0), keys (1) or values (2) of a sample.
    fn part<'a>(&self, qkv: &'a [f32], which: usize) -> Strided<'a> {
        Strided::rows(&qkv[which * self.width + self.first..], self.wide)
    }

    fn part_mut<'a>(&self, qkv: &'a mut [f32], which: usize) -> StridedMut<'a> {
        StridedMut::rows(&mut qkv[which * self.width + self.first..], self.wide)
    }

    /// scores = Q·Kᵀ/√size.
    fn scores(&self, qkv: &[f32], scores: &mut [f32]) {
        let (q, k) = (self.part(qkv, 0), self.part(qkv, 1));
        let shape = [self.length, self.length, self.size];
        let to = StridedMut::rows(scores, self.length);
        product(shape, self.scale, q, k.transposed(), to, Write::Overwrite);
    }
}

/// Workspace of one thread, cut.
struct Room<'a> {
    weights: &'a mut [f32],
    other: &'a mut [f32],
    /// 1 where a key is looked at, else 0.
    seen: &'a mut [f32],
    /// Room for the factors of a row's dropout.
    factors: &'a mut [f32],
}

impl<'a> Room<'a> {
    fn new(workspace: &'a mut [f32], length: usize) -> Self {
        let (weights, rest) = workspace.split_at_mut(length * length);
        let (other, rest) = rest.split_at_mut(length * length);
        let (seen, rest) = rest.split_at_mut(length);
        Self {
            weights,
            other,
            seen,
            factors: &mut rest[..length],
        }
    }

    fn look(&mut self, tokens: &[f32], padding: Option<usize>) {
        let padding = padding.map(|padding| padding as f32);
        for (seen, token) in self.seen.iter_mut().zip(tokens) {
            *seen = if Some(*token) == padding { 0.0 } else { 1.0 };
        }
    }
}

/// y and kept of `batch` samples, the first of which is sample `mask.first_sample`.
#[allow(
    clippy::too_many_arguments,
    reason = "a kernel's operands are what its formula names"
)]
pub(super) fn forward(
    qkv: &[f32],
    tokens: &[f32],
    y: &mut [f32],
    kept: &mut [f32],
    heads: &Heads,
    mask: Mask,
    batch: usize,
    workspace: &mut [f32],
) {
    let (length, width) = (heads.length, heads.count * heads.size);
    let mut room = Room::new(workspace, length);
    for b in 0..batch {
        let qkv = &qkv[b * length * 3 * width..][..length * 3 * width];
        let y = &mut y[b * length * width..][..length * width];
        room.look(&tokens[b * length..][..length], heads.padding);
        for head in 0..heads.count {
            let place = Head::of(heads, head);
            let kept = &mut kept[(b * heads.count + head) * length..][..length];
            place.scores(qkv, room.weights);
            softmax(room.weights, room.seen, kept);
            if mask.p > 0.0 {
                for (i, row) in room.weights.chunks_exact_mut(length).enumerate() {
                    let first = (head * length + i) * length;
                    dropout::factors(mask, b, first, room.factors);
                    row.iter_mut()
                        .zip(&*room.factors)
                        .for_each(|(weight, factor)| *weight *= factor);
                }
            }
            let weights = Strided::rows(room.weights, length);
            let to = StridedMut::rows(&mut y[place.first..], width);
            let shape = [length, place.size, length];
            product(
                shape,
                1.0,
                weights,
                place.part(qkv, 2),
                to,
                Write::Overwrite,
            );
        }
    }
}

/// d_qkv of `batch` samples.
#[allow(
    clippy::too_many_arguments,
    reason = "a kernel's operands are what its formula names"
)]
pub(super) fn backward(
    qkv: &[f32],
    tokens: &[f32],
    kept: &[f32],
    d_y: &[f32],
    d_qkv: &mut [f32],
    heads: &Heads,
    mask: Mask,
    batch: usize,
    workspace: &mut [f32],
) {
    let (length, width) = (heads.length, heads.count * heads.size);
    let mut room = Room::new(workspace, length);
    for b in 0..batch {
        let samples = b * length * 3 * width..(b + 1) * length * 3 * width;
        let (qkv, d_qkv) = (&qkv[samples.clone()], &mut d_qkv[samples]);
        let d_y = &d_y[b * length * width..][..length * width];
        room.look(&tokens[b * length..][..length], heads.padding);
        for head in 0..heads.count {
            let place = Head::of(heads, head);
            let kept = &kept[(b * heads.count + head) * length..][..length];
            let d_out = Strided::rows(&d_y[place.first..], width);
            let (square, tall) = ([length, length, place.size], [length, place.size, length]);
            place.scores(qkv, room.weights);
            weights(room.weights, room.seen, kept);
            // dV = drop(P)ᵀ·dO.
            let dropped = if mask.p > 0.0 {
                drop_rows(&mut room, head, length, mask, b);
                Strided::rows(room.other, length)
            } else {
                Strided::rows(room.weights, length)
            };
            let d_v = place.part_mut(d_qkv, 2);
            product(
                tall,
                1.0,
                dropped.transposed(),
                d_out,
                d_v,
                Write::Overwrite,
            );
            // dP = drop(dO·Vᵀ), dS = P·(dP − Σ P·dP).
            let v = place.part(qkv, 2).transposed();
            let to = StridedMut::rows(room.other, length);
            product(square, 1.0, d_out, v, to, Write::Overwrite);
            if mask.p > 0.0 {
                for (i, row) in room.other.chunks_exact_mut(length).enumerate() {
                    dropout::factors(mask, b, (head * length + i) * length, room.factors);
                    row.iter_mut()
                        .zip(&*room.factors)
                        .for_each(|(d_weight, factor)| *d_weight *= factor);
                }
            }
            softmax_backward(room.weights, room.other, length);
            let d_scores = Strided::rows(room.other, length);
            let d_q = place.part_mut(d_qkv, 0);
            let k = place.part(qkv, 1);
            product(tall, place.scale, d_scores, k, d_q, Write::Overwrite);
            let d_k = place.part_mut(d_qkv, 1);
            let q = place.part(qkv, 0);
            product(
                tall,
                place.scale,
                d_scores.transposed(),
                q,
                d_k,
                Write::Overwrite,
            );
        }
    }
}

/// other = drop(weights).
fn drop_rows(room: &mut Room<'_>, head: usize, length: usize, mask: Mask, sample: usize) {
    let rows = room
        .weights
        .chunks_exact(length)
        .zip(room.other.chunks_exact_mut(length));
    for (i, (from, to)) in rows.enumerate() {
        dropout::factors(mask, sample, (head * length + i) * length, room.factors);
        for ((to, from), factor) in to.iter_mut().zip(from).zip(&*room.factors) {
            *to = from * factor;
        }
    }
}

widest! {
    /// Each row of scores becomes its softmax over the keys that are seen; kept[row] = ln Σ exp.
    fn softmax(scores: &mut [f32], seen: &[f32], kept: &mut [f32]) {
        let length = seen.len();
        let nothing = seen.iter().all(|seen| *seen == 0.0);
        for (row, kept) in scores.chunks_exact_mut(length).zip(kept) {
            if nothing {
                row.fill(0.0);
                *kept = f32::INFINITY;
                continue;
            }
            let largest = lanes(row, seen, f32::NEG_INFINITY, |largest, score, seen| {
                if seen > 0.0 && score > largest { score } else { largest }
            }, f32::max);
            for (score, seen) in row.iter_mut().zip(seen) {
                // Where a key is not seen its score does not matter, even where it is no number.
                *score = if *seen > 0.0 { exp(*score - largest) } else { 0.0 };
            }
            let sum = lanes(row, seen, 0.0, |sum, term, _| sum + term, |a, b| a + b);
            let share = 1.0 / sum;
            row.iter_mut().for_each(|weight| *weight *= share);
            *kept = largest + sum.ln();
        }
    }
}

widest! {
    /// Each row of scores becomes what [`softmax`] made of it.
    fn weights(scores: &mut [f32], seen: &[f32], kept: &[f32]) {
        for (row, kept) in scores.chunks_exact_mut(seen.len()).zip(kept) {
            for (score, seen) in row.iter_mut().zip(seen) {
                *score = if *seen > 0.0 { exp(*score - kept) } else { 0.0 };
            }
        }
    }
}

widest! {
    /// d_weights = weights·(d_weights − Σ weights·d_weights), by rows.
    fn softmax_backward(weights: &[f32], d_weights: &mut [f32], length: usize) {
        for (weights, d_weights) in weights.chunks_exact(length).zip(d_weights.chunks_exact_mut(length)) {
            let mean = lanes(d_weights, weights, 0.0, |sum, d_weight, weight| sum + d_weight * weight, |a, b| a + b);
            for (d_weight, weight) in d_weights.iter_mut().zip(weights) {
                *d_weight = weight * (*d_weight - mean);
            }
        }
    }
}

/// Folds pairs of two rows in lanes, and then the lanes.
#[inline(always)]
fn lanes(
    a: &[f32],
    b: &[f32],
    start: f32,
    fold: impl Fn(f32, f32, f32) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    let (wide_a, wide_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = wide_a.remainder().iter().zip(wide_b.remainder());
    let rest = rest.fold(start, |folded, (a, b)| fold(folded, *a, *b));
    for (a, b) in wide_a.zip(wide_b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane = fold(*lane, *a, *b);
        }
    }
    lanes.into_iter().fold(rest, join)
}
