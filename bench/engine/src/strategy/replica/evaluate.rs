//! Evaluation on one device: with running statistics, with those of batches, after estimating them anew, with dropout on, and how noisy
//! the statistics of batches are.
//!
//! All of it blocks and is no part of a step. Nothing here changes parameters; only [`Replica::reestimate`] changes running statistics.
//! Reference: METHODOLOGY.md, "Learning"; Wu and Johnson 2021, *Rethinking "Batch" in BatchNorm* (PreciseBN);
//! `torch.optim.swa_utils.update_bn`.
use super::Replica;
use crate::backend::{HostSlice, HostSliceMut, Stream};
use crate::data::HostBatch;
use crate::layer::{Mode, NormStatistics, Step};
use crate::loss::Errors;
use crate::program::BufferKind;
use crate::strategy::{Evaluation, Result, StrategyError};
use crate::tensor::Span;

/// The step whose masks are the first to be evaluated with.
const FIRST_MASK: i32 = 1 << 30;

/// How far statistics of batches are from the running ones, by batch norm.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Noise {
    /// In execution order.
    pub layers: Vec<LayerNoise>,
}

/// How far statistics of batches are from the running ones in one batch norm: means over channels and batches.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNoise {
    /// `3.batch-norm`.
    pub name: String,
    /// Channels.
    pub channels: usize,
    /// Values that one statistic is over, on average.
    pub values: f64,
    /// Batches.
    pub batches: usize,
    /// (μ_B − μ_run)²/v_run.
    pub mean: f64,
    /// (ln v_B − ln v_run)², both unbiased.
    pub variance: f64,
}

impl LayerNoise {
    fn add(&mut self, values: f64, [mean, variance]: [f64; 2]) {
        self.batches += 1;
        let weight = 1.0 / self.batches as f64;
        self.values += (values - self.values) * weight;
        self.mean += (mean - self.mean) * weight;
        self.variance += (variance - self.variance) * weight;
    }
}

impl Replica {
    /// Mean loss and errors with running statistics; any number of samples.
    pub(in crate::strategy) fn evaluate(&mut self, batch: HostBatch<'_>) -> Result<Evaluation> {
        self.evaluate_as(Mode::Eval, batch, &[], &mut |_, _| Ok(()))
    }

    /// Mean loss and errors with running statistics and dropout on, over `masks` masks of every sample: those of steps that come after
    /// 2³⁰, which no training reaches.
    ///
    /// # Errors
    /// [`StrategyError::Setting`] without a mask; a device's failure.
    pub fn evaluate_with_dropout(
        &mut self,
        batch: HostBatch<'_>,
        masks: usize,
    ) -> Result<Evaluation> {
        if masks == 0 {
            return Err(StrategyError::Setting {
                setting: "number of dropout masks",
                value: masks.to_string(),
                expected: "at least 1",
            });
        }
        let step = std::mem::replace(&mut self.step, FIRST_MASK);
        let mut all = Ok(Evaluation::default());
        for _ in 0..masks {
            all = all.and_then(|sum| {
                let found = self.evaluate_as(Mode::Dropout, batch, &[], &mut |_, _| Ok(()))?;
                self.step += 1;
                Ok(Evaluation {
                    samples: sum.samples + found.samples,
                    loss: sum.loss + found.loss / masks as f64,
                    errors: sum.errors + found.errors,
                    labels: sum.labels + found.labels,
                })
            });
        }
        self.step = step;
        all
    }

    /// Mean loss and errors with running statistics, on this device alone; any number of samples. Blocks.
    ///
    /// # Errors
    /// A device's failure.
    pub fn evaluate_stored(&mut self, batch: HostBatch<'_>) -> Result<Evaluation> {
        self.evaluate(batch)
    }

    /// Mean loss and errors with the statistics of `chunk` samples at a time, and if that is wanted how noisy those are. Samples that do
    /// not fill a chunk are left out.
    ///
    /// # Errors
    /// [`StrategyError::Setting`] when no chunk fits; a device's failure.
    pub fn evaluate_with_batch_statistics(
        &mut self,
        batch: HostBatch<'_>,
        chunk: usize,
        mut noise: Option<&mut Noise>,
    ) -> Result<Evaluation> {
        let most = self.program.settings().max_chunks;
        let chunks = (self.max_batch / chunk.max(1)).min(most);
        if chunk == 0 || chunks == 0 || batch.len < chunk {
            return Err(StrategyError::Setting {
                setting: "number of samples whose statistics are taken together",
                value: chunk.to_string(),
                expected: "at least 1, and no more than a batch holds",
            });
        }
        let whole = batch.part(0..batch.len / chunk * chunk);
        let mut after = |replica: &mut Self, chunks| match &mut noise {
            Some(noise) => replica.add_noise(noise, chunks),
            None => Ok(()),
        };
        self.evaluate_as(
            Mode::BatchStatistics,
            whole,
            &vec![chunk; chunks],
            &mut after,
        )
    }

    /// Estimates running statistics anew, as means of those of the batches that `next` gives until it has no more: PreciseBN.
    ///
    /// # Errors
    /// A device's failure.
    pub fn reestimate<'a>(
        &mut self,
        mut next: impl FnMut() -> Option<HostBatch<'a>>,
    ) -> Result<()> {
        let buffers = self.program.buffers();
        if buffers.table.is_empty() {
            return Ok(());
        }
        let (floats, integers) = (buffers.floats, buffers.integers);
        let mut start = vec![0.0; floats.len()];
        for buffer in &buffers.table {
            if buffer.kind == BufferKind::RunningVariance {
                start[buffer.range.clone()].fill(1.0);
            }
        }
        self.backend
            .upload(Stream::Compute, HostSlice::F32(&start), floats)?;
        let zeros = vec![0; integers.len()];
        self.backend
            .upload(Stream::Compute, HostSlice::I64(&zeros), integers)?;
        while let Some(batch) = next() {
            let input = self.program.cut(self.program.input(), batch.len);
            self.backend
                .upload(Stream::Compute, HostSlice::F32(batch.inputs), input)?;
            self.run_forward(Mode::Reestimate, batch.len, &[batch.len])?;
        }
        Ok(self.backend.synchronize()?)
    }

    /// Adds the distances of the statistics that the last forward took of `chunks` chunks from the running ones.
    fn add_noise(&mut self, noise: &mut Noise, chunks: usize) -> Result<()> {
        struct Norm {
            name: String,
            running: [Span; 2],
            chunks: Vec<[Span; 3]>,
        }
        let norm = |kept: NormStatistics<'_>| Norm {
            name: kept.name.to_owned(),
            running: [kept.running_mean, kept.running_variance],
            chunks: kept.chunks[..chunks]
                .iter()
                .map(|chunk| [chunk.mean, chunk.variance, chunk.count])
                .collect(),
        };
        let norms: Vec<Norm> = self.program.statistics().map(norm).collect();
        for (index, norm) in norms.into_iter().enumerate() {
            let running = [
                self.download(norm.running[0])?,
                self.download(norm.running[1])?,
            ];
            if noise.layers.len() == index {
                noise.layers.push(LayerNoise {
                    name: norm.name,
                    channels: running[0].len(),
                    values: 0.0,
                    batches: 0,
                    mean: 0.0,
                    variance: 0.0,
                });
            }
            for [mean, variance, count] in norm.chunks {
                let taken = [self.download(mean)?, self.download(variance)?];
                let count = f64::from(self.download(count)?[0]);
                if let Some(distances) = distances(&running, &taken, count) {
                    noise.layers[index].add(count, distances);
                }
            }
        }
        Ok(())
    }

    fn run_forward(&mut self, mode: Mode, len: usize, chunks: &[usize]) -> Result<()> {
        self.program.forward(&mut Step {
            backend: &mut *self.backend,
            group: None,
            mode,
            batch: len,
            chunks,
            state: self.state,
            fresh: false,
        })?;
        Ok(())
    }

    /// Evaluates in parts of at most the maximum batch, or of whole `chunks` where there are some; `after` each forward is told how many
    /// chunks it had.
    fn evaluate_as(
        &mut self,
        mode: Mode,
        batch: HostBatch<'_>,
        chunks: &[usize],
        after: &mut dyn FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<Evaluation> {
        let (mut total, mut errors) = (0.0, Errors::default());
        let mut losses = vec![0.0; self.max_batch];
        let most = match chunks {
            [] => self.max_batch,
            chunks => chunks.iter().sum(),
        };
        for start in (0..batch.len).step_by(most) {
            let part = batch.part(start..(start + most).min(batch.len));
            let input = self.program.cut(self.program.input(), part.len);
            self.backend
                .upload(Stream::Compute, HostSlice::F32(part.inputs), input)?;
            self.loss.upload_labels(&mut *self.backend, part.labels)?;
            if mode.drops() {
                self.upload_state(start)?;
            }
            let whole = [part.len];
            let chunks = match chunks {
                [] => &whole[..],
                chunks => &chunks[..part.len / chunks[0]],
            };
            self.run_forward(mode, part.len, chunks)?;
            after(self, chunks.len())?;
            let logits = self.program.cut(self.program.output(), part.len);
            let d_logits = self.program.cut(self.program.d_output(), part.len);
            self.loss
                .compute(&mut *self.backend, logits, d_logits, part.len, 1.0)?;
            self.backend.download(
                self.loss.losses().first(part.len),
                HostSliceMut::F32(&mut losses[..part.len]),
            )?;
            total += losses[..part.len]
                .iter()
                .map(|loss| f64::from(*loss))
                .sum::<f64>();
            let found = self.loss.errors(&mut *self.backend, logits, part.len)?;
            errors.wrong += found.wrong;
            errors.labels += found.labels;
        }
        Ok(Evaluation {
            samples: batch.len,
            loss: total / batch.len as f64,
            errors: errors.wrong,
            labels: errors.labels,
        })
    }
}

/// Means over channels of (μ_B − μ_run)²/v_run and (ln v_B − ln v_run)², both unbiased. Channels without variance, which rectifiers that
/// never open make, are left out; none where nothing is left, or where one value has no variance.
fn distances(running: &[Vec<f32>; 2], taken: &[Vec<f32>; 2], count: f64) -> Option<[f64; 2]> {
    if count < 2.0 {
        return None;
    }
    let (mut sums, mut channels) = ([0.0; 2], 0);
    for c in 0..running[0].len() {
        let at = |values: &[Vec<f32>; 2]| [f64::from(values[0][c]), f64::from(values[1][c])];
        let ([running_mean, running_variance], [mean, variance]) = (at(running), at(taken));
        if running_variance > 0.0 && variance > 0.0 {
            let unbiased = variance * count / (count - 1.0);
            sums[0] += (mean - running_mean).powi(2) / running_variance;
            sums[1] += (unbiased.ln() - running_variance.ln()).powi(2);
            channels += 1;
        }
    }
    (channels > 0).then(|| sums.map(|sum| sum / f64::from(channels)))
}
