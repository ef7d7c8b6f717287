//! Rows of a table by tokens, and the gradient of the table.
//!
//! Contract: tokens are whole numbers below the table's rows, in f32 (data loaders check theirs; another one is a bug). The gradient
//! is added in the order of the tokens.
//! Reference: PyTorch's `nn.Embedding` with `padding_idx`.

/// The token as an index below `vocabulary`.
fn index(token: f32, vocabulary: usize) -> usize {
    let index = token as usize;
    assert!(
        index as f32 == token && index < vocabulary,
        "token {token} is not one of {vocabulary}"
    );
    index
}

/// y[r,:] = table[tokens[r],:].
pub(super) fn forward(tokens: &[f32], table: &[f32], y: &mut [f32], features: usize) {
    let vocabulary = table.len() / features;
    for (token, y) in tokens.iter().zip(y.chunks_exact_mut(features)) {
        y.copy_from_slice(&table[index(*token, vocabulary) * features..][..features]);
    }
}

/// d_table[tokens[r],:] += d_y[r,:], but for the row of `padding`.
pub(super) fn backward(
    tokens: &[f32],
    d_y: &[f32],
    d_table: &mut [f32],
    features: usize,
    padding: Option<usize>,
) {
    let vocabulary = d_table.len() / features;
    for (token, d_y) in tokens.iter().zip(d_y.chunks_exact(features)) {
        let row = index(*token, vocabulary);
        if Some(row) == padding {
            continue;
        }
        let to = &mut d_table[row * features..][..features];
        to.iter_mut().zip(d_y).for_each(|(to, d_y)| *to += d_y);
    }
}
