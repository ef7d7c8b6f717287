//! Which samples a rank takes, and in which order.
//!
//! All strategies see the same global batches: `ddp`'s ranks take the shards of PyTorch's distributed sampler, `single` and
//! `dp` the ranks' batches one after the other. `independent`'s replicas take the same shards as `ddp`'s ranks. A step of K
//! micro-batches takes the next K of those batches, a rank its parts of them, so the k-th micro-batch is the same everywhere.
use std::borrow::Cow;
use std::sync::Arc;

use syncmark_engine::data::{
    Dataset, Digits, Distributed, Loader, Masking, Predict, RankOrder, Resident, Sampler,
    Sequential, Split, Subset, Synthetic, SyntheticTokens, Words, cifar10, fashion_mnist,
};
use syncmark_engine::shape::Shape;

use super::RankError;
use crate::plan::config::{
    LearningConfig, MaskingConfig, SourceConfig, StrategyConfig, TrialConfig,
};
use crate::run::data_folder::DataSet;
use crate::scenario::file::{self, EvaluationSplit};

const DIGITS_IMAGES: &[u8] =
    include_bytes!("../../../../../scenarios/data/digits.images.idx3-ubyte");
const DIGITS_LABELS: &[u8] =
    include_bytes!("../../../../../scenarios/data/digits.labels.idx1-ubyte");

const WORDS: &[u8] = include_bytes!("../../../../../scenarios/data/words.txt");
/// Seed of which characters are hidden.
const TEXT_SEED: u64 = 0;

/// Synthetic samples held in memory: many batches, but not more bytes than this.
const SYNTHETIC_BYTES: usize = 256 << 20;
const SYNTHETIC_SAMPLES: usize = 2048;

/// The samples that the trial trains on, in host memory.
///
/// # Errors
/// When the embedded data is damaged or the input shape is none.
pub fn dataset(config: &TrialConfig) -> Result<Arc<dyn Dataset>, RankError> {
    let all = samples(config, Split::Train)?;
    Ok(match config.learning() {
        Some(learning) => {
            let [kept, _] = Subset::hold_out(&all, learning.validation);
            Arc::new(kept)
        }
        None => all,
    })
}

/// What a trial that learns is evaluated on, and as many samples of those that it trains on.
///
/// # Errors
/// As [`dataset`]; when there is nothing to evaluate on.
pub fn evaluation(
    config: &TrialConfig,
    learning: &LearningConfig,
) -> Result<[Arc<dyn Dataset>; 2], RankError> {
    let training = samples(config, Split::Train)?;
    let [kept, held_out] = Subset::hold_out(&training, learning.validation);
    let evaluated: Arc<dyn Dataset> = match learning.split {
        EvaluationSplit::Validation => Arc::new(held_out),
        EvaluationSplit::Test => samples(config, Split::Test)?,
    };
    if evaluated.is_empty() {
        let problem =
            "there is no sample to evaluate on: hold out a larger share of the training samples";
        return Err(RankError::Assignment(problem.to_owned()));
    }
    let most = evaluated.len();
    Ok([evaluated, Arc::new(Subset::first(Arc::new(kept), most))])
}

fn samples(config: &TrialConfig, split: Split) -> Result<Arc<dyn Dataset>, RankError> {
    if let Some((set, path)) = DataSet::of(&config.data.source) {
        let folder = set
            .locate(path)
            .map_err(|missing| RankError::Assignment(missing.to_string()))?;
        let pixels = match set {
            DataSet::FashionMnist => fashion_mnist::open(&folder, split),
            DataSet::Cifar10 => cifar10::open(&folder, split),
        };
        return Ok(Arc::new(
            pixels.map_err(|error| RankError::Assignment(error.to_string()))?,
        ));
    }
    Ok(Arc::new(match config.data.source {
        SourceConfig::Digits => {
            let digits = Digits::parse(DIGITS_IMAGES, DIGITS_LABELS, split)
                .map_err(|e| RankError::Assignment(e.to_string()))?;
            Resident::of(&digits)
        }
        SourceConfig::FashionMnist { .. } | SourceConfig::Cifar10 { .. } => {
            unreachable!("read from files above")
        }
        SourceConfig::Text { ref path, masking } => {
            let length = config.model.input.iter().product();
            // The same characters are hidden whatever the trial's seeds: what is evaluated must not differ between repeats.
            let masking = hiding(masking, TEXT_SEED);
            let (name, text) = match path {
                Some(path) => {
                    let read = std::fs::read(path).map_err(|error| unreadable(path, &error));
                    (path.as_str(), Cow::Owned(read?))
                }
                None => ("the shipped list of words", Cow::Borrowed(WORDS)),
            };
            let words = Words::parse(&text, length, masking, split)
                .map_err(|error| RankError::Assignment(format!("{name} {error}")))?;
            Resident::of(&words)
        }
        SourceConfig::SyntheticTokens { shortest, masking } => {
            let length = config.model.input.iter().product();
            Resident::of(&SyntheticTokens {
                len: synthetic_samples(config, 2 * length * size_of::<f32>()),
                length,
                shortest,
                vocabulary: config.model.classes,
                masking: hiding(masking, config.data.seed),
            })
        }
        SourceConfig::Synthetic => {
            let input = &config.model.input;
            let shape = Shape::from_dimensions(input)
                .ok_or_else(|| RankError::Model(format!("{input:?} is no shape of a sample")))?;
            Resident::of(&Synthetic {
                len: synthetic_samples(config, shape.elements() * size_of::<f32>()),
                shape,
                classes: config.model.classes,
                seed: config.data.seed,
            })
        }
    }))
}

fn hiding(masking: MaskingConfig, seed: u64) -> Masking {
    let predict = match masking.predict {
        file::Predict::Hidden => Predict::Hidden,
        file::Predict::All => Predict::All,
    };
    Masking {
        share: masking.share,
        predict,
        seed,
    }
}

fn unreadable(path: &str, error: &std::io::Error) -> RankError {
    RankError::Assignment(format!("cannot read the words of {path}: {error}"))
}

/// How many synthetic samples of `bytes` are held.
fn synthetic_samples(config: &TrialConfig, bytes: usize) -> usize {
    SYNTHETIC_SAMPLES
        .min(SYNTHETIC_BYTES / bytes)
        .max(2 * config.step_samples())
}

/// Batches of `rank` for a timed trial.
///
/// # Errors
/// When the data set holds less than one batch.
pub fn timed(
    config: &TrialConfig,
    data: Arc<dyn Dataset>,
    rank: usize,
) -> Result<Loader, RankError> {
    let ranks = match config.strategy {
        StrategyConfig::Single => 1,
        _ => config.devices,
    };
    let (global, seed) = (config.batch.global, Some(config.data.seed));
    let shard = Distributed {
        len: data.len(),
        ranks,
        rank,
        seed,
        drop_last: true,
    };
    let whole = Distributed {
        ranks: 1,
        rank: 0,
        ..shard
    };
    let (sampler, micro_batch): (Box<dyn Sampler>, usize) = match config.strategy {
        StrategyConfig::Independent { .. } | StrategyConfig::Ddp(_) | StrategyConfig::Zero1(_) => {
            (Box::new(shard), config.batch.chunks[rank])
        }
        // Uneven chunks have no counterpart among ranks, whose batches are equal.
        _ if global % ranks != 0 => (Box::new(whole), global),
        _ => (
            Box::new(RankOrder {
                ranks: shard,
                batch: global / ranks,
            }),
            global,
        ),
    };
    loader(config, data, sampler, micro_batch)
}

/// The first batches of all ranks of a timed trial: inputs of shape (steps, ranks, batch, ...) and their labels.
///
/// # Errors
/// As `dataset` and `timed`.
pub fn batches(config: &TrialConfig, steps: usize) -> Result<(Vec<f32>, Vec<i32>), RankError> {
    let data = dataset(config)?;
    let rank = |rank| timed(config, Arc::clone(&data), rank);
    let mut loaders: Vec<Loader> = (0..config.devices).map(rank).collect::<Result<_, _>>()?;
    let (mut inputs, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        for loader in &mut loaders {
            let batch = loader.next_batch();
            inputs.extend_from_slice(batch.inputs);
            labels.extend_from_slice(batch.labels);
        }
    }
    Ok((inputs, labels))
}

/// Batches of `rank` for a gate: every strategy takes the same samples in the data set's own order.
///
/// # Errors
/// When the data set holds less than one batch.
pub fn gate(
    config: &TrialConfig,
    data: Arc<dyn Dataset>,
    rank: usize,
    global: usize,
) -> Result<Loader, RankError> {
    let sampler: Box<dyn Sampler> = Box::new(Sequential { len: data.len() });
    let (sampler, micro_batch) = match config.strategy {
        StrategyConfig::Ddp(_) | StrategyConfig::Zero1(_) => {
            let batch = global / config.devices;
            (
                Box::new(Part {
                    whole: data.len(),
                    global,
                    batch,
                    rank,
                }) as Box<dyn Sampler>,
                batch,
            )
        }
        _ => (sampler, global),
    };
    loader(config, data, sampler, micro_batch)
}

/// Whole steps of `micro_batch` samples in each micro-batch.
fn loader(
    config: &TrialConfig,
    data: Arc<dyn Dataset>,
    sampler: Box<dyn Sampler>,
    micro_batch: usize,
) -> Result<Loader, RankError> {
    let step = micro_batch * config.accumulation;
    Loader::new(data, sampler, step, true).map_err(|e| RankError::Assignment(e.to_string()))
}

/// Part `rank` of each global batch of a sequential order.
struct Part {
    whole: usize,
    global: usize,
    batch: usize,
    rank: usize,
}

impl Sampler for Part {
    fn len(&self) -> usize {
        self.whole / self.global * self.batch
    }
    fn indices(&self, _epoch: u64, to: &mut Vec<usize>) {
        to.clear();
        for step in 0..self.whole / self.global {
            let start = step * self.global + self.rank * self.batch;
            to.extend(start..start + self.batch);
        }
    }
}
