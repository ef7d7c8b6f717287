//! Attention, whose scores and weights are narrow between its products.
use syncmark_engine::kernel::{Heads, Kernel};

use super::{Operand, Sides};

#[test]
fn attention() {
    let mut sides = Sides::new();
    for (length, count, size, padding, dropout) in [
        (11, 2, 3, Some(0), 0.0),
        (11, 2, 3, Some(0), 0.3),
        (32, 4, 16, None, 0.1),
        (65, 3, 64, Some(0), 0.0),
    ] {
        let batch = 3;
        let heads = Heads {
            length,
            count,
            size,
            padding,
            dropout,
            seed: 9,
            node: 3,
        };
        let width = count * size;
        // Whole, filled up, and nothing but padding.
        let tokens = (0..batch * length).map(|i| {
            let (sample, position) = (i / length, i % length);
            let padded = [false, position >= length / 2, true][sample];
            if padded { 0.0 } else { (1 + i % 5) as f32 }
        });
        let numbers = &mut sides.numbers;
        let operands = [
            numbers.value(batch * length * 3 * width),
            Operand::Float(tokens.collect()),
            numbers.value(batch * length * width),
            // ln Σ exp of scores that were rounded.
            Operand::Rounded(vec![0.0; batch * count * length]),
            numbers.value(batch * length * width),
            numbers.value(batch * length * 3 * width),
            Operand::Integer(vec![2, 5]),
            Operand::Workspace(heads.workspace()),
        ];
        // Scores, weights, and what is made of them: and sums of what was rounded.
        sides.agree(&format!("{heads:?}"), 4.0, &operands, &|s| {
            let (qkv, tokens, y, kept, d_y, d_qkv) = (s[0], s[1], s[2], s[3], s[4], s[5]);
            let (state, workspace, first) = (s[6], s[7], 0);
            vec![
                Kernel::AttentionForward {
                    qkv,
                    tokens,
                    y,
                    kept,
                    heads,
                    state,
                    first,
                    batch,
                    workspace,
                },
                Kernel::AttentionBackward {
                    qkv,
                    tokens,
                    kept,
                    d_y,
                    d_qkv,
                    heads,
                    state,
                    first,
                    batch,
                    workspace,
                },
            ]
        });
    }
}
