//! Kernels for tokens: embedding, attention, and batch norm without padding.
use syncmark_engine::kernel::{Heads, Kernel};
use syncmark_engine::philox;
use syncmark_engine::tensor::Span;

use crate::device::{Device, on_every_backend};

const LENGTH: usize = 11;
const BATCH: usize = 4;
const PADDING: usize = 0;
const SEED: u64 = 9;
const NODE: u32 = 3;
const STEP: u32 = 2;
const OFFSET: u32 = 5;

/// Tokens of four samples: whole, filled up, with padding inside, and nothing but padding.
fn tokens() -> Vec<f32> {
    (0..BATCH * LENGTH)
        .map(|i| {
            let (b, t) = (i / LENGTH, i % LENGTH);
            let padded = [false, t >= 7, t % 3 == 0, true][b];
            if padded { 0.0 } else { (1 + i % 5) as f32 }
        })
        .collect()
}

/// Of many rows, some tokens have more than a GPU's block adds up at once, and some none.
#[test]
fn gradients_of_many_rows_add_up_by_token() {
    on_every_backend(|device| {
        for (rows, vocabulary, features) in [(1300, 9, 8), (1300, 2000, 5), (700, 1, 4)] {
            // A third of them are the same.
            let of = |i: usize| {
                if i.is_multiple_of(3) {
                    0
                } else {
                    i * i % vocabulary
                }
            };
            let ids: Vec<f32> = (0..rows).map(|i| of(i) as f32).collect();
            let tokens = device.given(&ids).span;
            let d_y = device.random(rows * features);
            for padding in [None, Some(1)] {
                let mut expected = vec![0.0; vocabulary * features];
                for (i, slope) in d_y.values.iter().enumerate() {
                    let word = of(i / features);
                    if padding != Some(word) {
                        expected[word * features + i % features] += slope;
                    }
                }
                let what = format!("{rows} rows of {vocabulary} × {features}, {padding:?}");
                device.expect_added(&what, &expected, |d_table| Kernel::EmbeddingBackward {
                    tokens,
                    d_y: d_y.span,
                    d_table,
                    features,
                    padding,
                });
            }
        }
    });
}

#[test]
fn tokens_choose_rows_and_their_gradients_add_up() {
    on_every_backend(|device| {
        let (features, vocabulary) = (6, 7);
        let ids = tokens();
        let (tokens, table) = (
            device.given(&ids).span,
            device.random(vocabulary * features),
        );
        let y = device.random(ids.len() * features).span;
        device.launch(Kernel::EmbeddingForward {
            tokens,
            table: table.span,
            y,
            features,
        });
        let rows = ids.iter().flat_map(|id| {
            let row = *id as usize * features;
            table.values[row..row + features].iter().copied()
        });
        device.expect("y", y, &rows.collect::<Vec<_>>());
        let d_y = device.random(ids.len() * features);
        for padding in [None, Some(PADDING)] {
            let mut expected = vec![0.0; vocabulary * features];
            for (row, id) in ids.iter().enumerate() {
                if Some(*id as usize) != padding {
                    for c in 0..features {
                        expected[*id as usize * features + c] += d_y.values[row * features + c];
                    }
                }
            }
            device.expect_added("the table's gradient", &expected, |d_table| {
                Kernel::EmbeddingBackward {
                    tokens,
                    d_y: d_y.span,
                    d_table,
                    features,
                    padding,
                }
            });
        }
    });
}

/// mask/(1 − p) of an element of a sample.
fn factor(p: f32, sample: usize, element: usize) -> f64 {
    if p == 0.0 {
        return 1.0;
    }
    let counter = philox::dropout_counter((element / 4) as u32, OFFSET + sample as u32, STEP, NODE);
    let word = philox::block(philox::key(SEED), counter)[element % 4];
    if philox::uniform(word) >= p {
        1.0 / f64::from(1.0 - p)
    } else {
        0.0
    }
}

struct Expected {
    y: Vec<f64>,
    d_qkv: Vec<f64>,
}

/// By the formulas, in f64, without a thought for speed.
fn attention(heads: &Heads, ids: &[f32], qkv: &[f64], d_y: &[f64]) -> Expected {
    let (size, width) = (heads.size, heads.count * heads.size);
    let at = |b: usize, t: usize, part: usize, head: usize, c: usize| {
        ((b * LENGTH + t) * 3 + part) * width + head * size + c
    };
    let out =
        |b: usize, t: usize, head: usize, c: usize| (b * LENGTH + t) * width + head * size + c;
    let scale = 1.0 / (size as f64).sqrt();
    let mut expected = Expected {
        y: vec![0.0; d_y.len()],
        d_qkv: vec![0.0; qkv.len()],
    };
    for (b, head) in (0..BATCH).flat_map(|b| (0..heads.count).map(move |head| (b, head))) {
        for i in 0..LENGTH {
            let seen = |j: usize| heads.padding != Some(ids[b * LENGTH + j] as usize);
            let dot = |j: usize| {
                (0..size)
                    .map(|c| qkv[at(b, i, 0, head, c)] * qkv[at(b, j, 1, head, c)])
                    .sum::<f64>()
            };
            let scores: Vec<f64> = (0..LENGTH)
                .map(|j| if seen(j) { (scale * dot(j)).exp() } else { 0.0 })
                .collect();
            let sum: f64 = scores.iter().sum();
            let weights: Vec<f64> = scores
                .iter()
                .map(|s| if sum > 0.0 { s / sum } else { 0.0 })
                .collect();
            let kept: Vec<f64> = (0..LENGTH)
                .map(|j| factor(heads.dropout, b, (head * LENGTH + i) * LENGTH + j))
                .collect();
            let d_weights: Vec<f64> = (0..LENGTH)
                .map(|j| {
                    kept[j]
                        * (0..size)
                            .map(|c| d_y[out(b, i, head, c)] * qkv[at(b, j, 2, head, c)])
                            .sum::<f64>()
                })
                .collect();
            let mean: f64 = weights.iter().zip(&d_weights).map(|(w, d)| w * d).sum();
            for j in 0..LENGTH {
                let d_score = weights[j] * (d_weights[j] - mean) * scale;
                for c in 0..size {
                    expected.y[out(b, i, head, c)] +=
                        weights[j] * kept[j] * qkv[at(b, j, 2, head, c)];
                    expected.d_qkv[at(b, j, 2, head, c)] +=
                        weights[j] * kept[j] * d_y[out(b, i, head, c)];
                    expected.d_qkv[at(b, i, 0, head, c)] += d_score * qkv[at(b, j, 1, head, c)];
                    expected.d_qkv[at(b, j, 1, head, c)] += d_score * qkv[at(b, i, 0, head, c)];
                }
            }
        }
    }
    expected
}

fn check_attention(device: &mut Device, padding: Option<usize>, dropout: f32) {
    let heads = Heads {
        length: LENGTH,
        count: 3,
        size: 5,
        padding,
        dropout,
        seed: SEED,
        node: NODE,
    };
    let ids = tokens();
    let width = heads.count * heads.size;
    let rows = BATCH * LENGTH;
    let (qkv, d_y) = (device.random(rows * 3 * width), device.random(rows * width));
    let tokens = device.given(&ids).span;
    let state = device.given_i32(&[STEP as i32, OFFSET as i32]);
    let expected = attention(&heads, &ids, &qkv.values, &d_y.values);
    let threads = device.backend.compute_threads();
    let workspace = device.random(heads.workspace() * threads).span;
    let y = device.random(rows * width).span;
    let kept = device.random(BATCH * heads.count * LENGTH).span;
    device.launch(Kernel::AttentionForward {
        qkv: qkv.span,
        tokens,
        y,
        kept,
        masks: Span::EMPTY,
        heads,
        state,
        first: 0,
        batch: BATCH,
        workspace,
    });
    device.expect("y", y, &expected.y);
    let d_qkv = device.random(qkv.values.len()).span;
    device.launch(Kernel::AttentionBackward {
        qkv: qkv.span,
        tokens,
        y,
        kept,
        masks: Span::EMPTY,
        d_y: d_y.span,
        d_qkv,
        heads,
        state,
        first: 0,
        batch: BATCH,
        workspace,
    });
    device.expect(
        "the gradient of queries, keys and values",
        d_qkv,
        &expected.d_qkv,
    );
}

#[test]
fn attention_leaves_padding_and_what_is_dropped_out() {
    on_every_backend(|device| {
        for padding in [None, Some(PADDING)] {
            for dropout in [0.0, 0.4, 1.0] {
                check_attention(device, padding, dropout);
            }
        }
    });
}

#[test]
fn what_padding_holds_matters_to_nobody() {
    on_every_backend(|device| {
        let channels = 5;
        let ids = tokens();
        let rows = ids.len();
        let [mut x, mut d_y] = [(); 2].map(|()| {
            let random = device.random(rows * channels);
            random
                .values
                .iter()
                .map(|v| *v as f32)
                .collect::<Vec<f32>>()
        });
        let kept: Vec<usize> = (0..rows).filter(|row| ids[*row] != 0.0).collect();
        let select = |from: &[f32]| -> Vec<f32> {
            let row = |row: &usize| from[row * channels..(row + 1) * channels].to_vec();
            kept.iter().flat_map(row).collect()
        };
        let (dense_x, dense_d_y) = (select(&x), select(&d_y));
        for row in (0..rows).filter(|row| ids[*row] == 0.0) {
            x[row * channels] = f32::NAN;
            d_y[row * channels + 1] = f32::INFINITY;
        }
        let spans = [&x, &d_y, &dense_x, &dense_d_y].map(|values| device.given(values).span);
        let masked = batch_norm(device, [spans[0], spans[1]], rows, channels, Some(&ids));
        let dense = batch_norm(device, [spans[2], spans[3]], kept.len(), channels, None);
        for (what, (masked, dense)) in ["mean", "variance", "sums"]
            .iter()
            .zip(masked.sums.iter().zip(&dense.sums))
        {
            let dense: Vec<f64> = dense.iter().map(|v| f64::from(*v)).collect();
            crate::device::assert_close(what, masked, &dense);
        }
        for (what, (masked, dense)) in ["y", "dx", "dx in evaluation"]
            .iter()
            .zip(masked.rows.iter().zip(&dense.rows))
        {
            let dense: Vec<f64> = dense.iter().map(|v| f64::from(*v)).collect();
            crate::device::assert_close(what, &select(masked), &dense);
            for row in (0..rows).filter(|row| ids[*row] == 0.0) {
                assert_eq!(
                    masked[row * channels..(row + 1) * channels],
                    [0.0; 5],
                    "{what}"
                );
            }
        }
    });
}

/// Results by channel, and by row.
struct Results {
    sums: Vec<Vec<f32>>,
    rows: Vec<Vec<f32>>,
}

/// Batch norm forward, backward, and backward in evaluation, over all rows or those that `ids` says.
fn batch_norm(
    device: &mut Device,
    [x, d_y]: [Span; 2],
    rows: usize,
    channels: usize,
    ids: Option<&[f32]>,
) -> Results {
    use syncmark_engine::kernel::{Gate, Then, Write};
    let gamma = device.given(&[1.0, 0.5, -1.5, 2.0, 0.1]).span;
    let beta = device.given(&[0.0, 0.5, 1.0, -0.5, 0.3]).span;
    let [mean, variance, rstd] = [(); 3].map(|()| device.random(channels).span);
    let (sums, count) = (device.random(2 * channels).span, device.given(&[0.0]).span);
    let [y, d_x, d_x_eval] = [(); 3].map(|()| device.random(rows * channels).span);
    let (padding, write) = (PADDING, Write::Overwrite);
    let deviation = Kernel::ReciprocalDeviation {
        variance,
        rstd,
        eps: 1e-5,
    };
    match ids {
        Some(ids) => {
            let tokens = device.given(ids).span;
            device.launch(Kernel::MaskedStatistics {
                x,
                tokens,
                padding,
                mean,
                variance,
                count,
                rows,
            });
            device.launch(deviation);
            device.launch(Kernel::MaskedNormalize {
                x,
                tokens,
                padding,
                mean,
                rstd,
                gamma,
                beta,
                y,
                rows,
            });
            device.launch(Kernel::MaskedBackwardReduce {
                x,
                d_y,
                tokens,
                padding,
                mean,
                sums,
                rows,
            });
            device.launch(Kernel::MaskedBackwardInput {
                x,
                d_y,
                tokens,
                padding,
                mean,
                rstd,
                gamma,
                sums,
                count,
                d_x,
                rows,
                write,
            });
            device.launch(Kernel::MaskedBackwardEval {
                d_y,
                tokens,
                padding,
                rstd,
                gamma,
                d_x: d_x_eval,
                rows,
                write,
            });
        }
        None => {
            let (gate, then) = (Gate::Open, Then::NOTHING);
            device.launch(Kernel::Fill {
                to: count,
                value: rows as f32,
            });
            device.launch(Kernel::BatchStatistics {
                x,
                mean,
                variance,
                rows,
            });
            device.launch(deviation);
            device.launch(Kernel::BatchNormalize {
                x,
                mean,
                rstd,
                gamma,
                beta,
                y,
                rows,
                then,
            });
            device.launch(Kernel::BatchBackwardReduce {
                x,
                d_y,
                mean,
                sums,
                rows,
                gate,
            });
            device.launch(Kernel::BatchBackwardInput {
                x,
                d_y,
                mean,
                rstd,
                gamma,
                sums,
                count,
                d_x,
                rows,
                write,
                gate,
            });
            device.launch(Kernel::BatchBackwardEval {
                d_y,
                rstd,
                gamma,
                d_x: d_x_eval,
                rows,
                write,
            });
        }
    }
    Results {
        sums: [mean, variance, sums]
            .map(|span| device.read(span))
            .to_vec(),
        rows: [y, d_x, d_x_eval].map(|span| device.read(span)).to_vec(),
    }
}

#[test]
fn a_batch_of_padding_has_no_statistics_and_changes_none() {
    on_every_backend(|device| {
        let (channels, rows) = (3, 6);
        let x = device.random(rows * channels).span;
        let tokens = device.given(&[0.0; 6]).span;
        let [mean, variance] = [(); 2].map(|()| device.random(channels).span);
        let count = device.random(1).span;
        device.launch(Kernel::MaskedStatistics {
            x,
            tokens,
            padding: PADDING,
            mean,
            variance,
            count,
            rows,
        });
        assert_eq!(device.read(mean), [0.0; 3]);
        assert_eq!(device.read(variance), [0.0; 3]);
        assert_eq!(device.read(count), [0.0]);
        let [running_mean, running_variance] = [(); 2].map(|()| device.random(channels));
        let tracked = device.given_i64(&[7]);
        device.launch(Kernel::UpdateRunning {
            mean,
            variance,
            count,
            running_mean: running_mean.span,
            running_variance: running_variance.span,
            tracked,
            momentum: Some(0.1),
        });
        device.expect("running mean", running_mean.span, &running_mean.values);
        device.expect(
            "running variance",
            running_variance.span,
            &running_variance.values,
        );
        assert_eq!(device.read_i64(tracked), [7]);
    });
}
