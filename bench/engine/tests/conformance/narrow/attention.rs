//! Attention, whose scores and weights are narrow between its products.
use syncmark_engine::kernel::{Heads, Kernel};
use syncmark_engine::tensor::Span;

use super::{Numbers, Operand, Sides};

const BATCH: usize = 3;

/// Heads of so many positions, heads, elements of a head, a padding token and dropout.
fn heads((length, count, size, padding, dropout): Case) -> Heads {
    Heads {
        length,
        count,
        size,
        padding,
        dropout,
        seed: 9,
        node: 3,
    }
}

type Case = (usize, usize, usize, Option<usize>, f32);

/// Three samples: whole, filled up, and nothing but padding. `keeps`: whether there is room for what forward draws.
fn operands(heads: Heads, keeps: bool, numbers: &mut Numbers) -> Vec<Operand> {
    let (length, width) = (heads.length, heads.count * heads.size);
    let tokens = (0..BATCH * length).map(|i| {
        let (sample, position) = (i / length, i % length);
        let padded = [false, position >= length / 2, true][sample];
        if padded { 0.0 } else { (1 + i % 5) as f32 }
    });
    vec![
        numbers.value(BATCH * length * 3 * width),
        Operand::Float(tokens.collect()),
        numbers.value(BATCH * length * width),
        // ln Σ exp of scores that were rounded.
        Operand::Rounded(vec![0.0; BATCH * heads.count * length]),
        numbers.value(BATCH * length * width),
        numbers.value(BATCH * length * 3 * width),
        Operand::Integer(vec![2, 5]),
        Operand::Workspace(heads.workspace()),
        if keeps {
            Operand::Workspace(BATCH * heads.masks())
        } else {
            Operand::None
        },
    ]
}

/// Forward and backward of the operands' places.
fn kernels(heads: Heads, s: &[Span]) -> Vec<Kernel> {
    let (qkv, tokens, y, kept, d_y, d_qkv) = (s[0], s[1], s[2], s[3], s[4], s[5]);
    let (state, workspace, masks, first, batch) = (s[6], s[7], s[8], 1, BATCH);
    vec![
        Kernel::AttentionForward {
            qkv,
            tokens,
            y,
            kept,
            masks,
            heads,
            state,
            first,
            batch,
            workspace,
        },
        Kernel::AttentionBackward {
            qkv,
            tokens,
            y,
            kept,
            masks,
            d_y,
            d_qkv,
            heads,
            state,
            first,
            batch,
            workspace,
        },
    ]
}

#[test]
fn attention() {
    let mut sides = Sides::new();
    for case in [
        (11, 2, 3, Some(0), 0.0),
        (11, 2, 3, Some(0), 0.3),
        (32, 4, 16, None, 0.1),
        // Heads for which a GPU has kernels that keep scores in registers: whole tiles, edges, several tiles.
        (64, 2, 64, Some(0), 0.1),
        (65, 3, 64, Some(0), 0.0),
        (200, 2, 64, Some(0), 0.1),
        (200, 2, 64, None, 0.0),
        (64, 3, 32, Some(0), 0.0),
        (65, 3, 32, Some(0), 0.1),
        (200, 1, 32, None, 0.3),
        (65, 1, 32, Some(0), 1.0),
    ] {
        let heads = heads(case);
        for keeps in [false, heads.dropout > 0.0] {
            let operands = operands(heads, keeps, &mut sides.numbers);
            // Scores, weights, and what is made of them: and sums of what was rounded. Gradients of values are several times those of queries and keys,
            // and are held against the root mean square of all.
            sides.agree(&format!("{heads:?}, {keeps}"), 8.0, &operands, &|s| {
                kernels(heads, s)
            });
        }
    }
}

#[test]
fn attention_repeats_to_the_bit() {
    let mut sides = Sides::new();
    for case in [(200, 3, 64, Some(0), 0.1), (130, 3, 32, None, 0.1)] {
        let heads = heads(case);
        let operands = operands(heads, true, &mut sides.numbers);
        for side in &mut sides.others {
            let mut run = || side.run(&operands, &|s| kernels(heads, s));
            let first = run();
            for _ in 0..3 {
                assert_eq!(first, run(), "{heads:?}");
            }
        }
    }
}
