//! Which samples a rank takes, and in which order.
//!
//! All strategies see the same global batches: `ddp`'s ranks take the shards of PyTorch's distributed sampler, `single` and
//! `dp` the ranks' batches one after the other. `independent`'s replicas take the same shards as `ddp`'s ranks. A step of K
//! micro-batches takes the next K of those batches, a rank its parts of them, so the k-th micro-batch is the same everywhere.
use std::sync::Arc;

use syncmark_engine::data::{
    Dataset, Digits, Distributed, Loader, Masking, Predict, RankOrder, Resident, Sampler,
    Sequential, Split, Synthetic, SyntheticTokens, cifar10, fashion_mnist,
};
use syncmark_engine::shape::Shape;

use super::RankError;
use crate::plan::config::{SourceConfig, StrategyConfig, TrialConfig};
use crate::run::data_folder::DataSet;
use crate::scenario::file;

const DIGITS_IMAGES: &[u8] =
    include_bytes!("../../../../../scenarios/data/digits.images.idx3-ubyte");
const DIGITS_LABELS: &[u8] =
    include_bytes!("../../../../../scenarios/data/digits.labels.idx1-ubyte");

/// Synthetic samples held in memory: many batches, but not more bytes than this.
const SYNTHETIC_BYTES: usize = 256 << 20;
const SYNTHETIC_SAMPLES: usize = 2048;

/// The trial's data set, in host memory.
///
/// # Errors
/// When the embedded data is damaged or the input shape is none.
pub fn dataset(config: &TrialConfig) -> Result<Arc<dyn Dataset>, RankError> {
    if let Some((set, path)) = DataSet::of(&config.data.source) {
        let folder = set
            .locate(path)
            .map_err(|missing| RankError::Assignment(missing.to_string()))?;
        let pixels = match set {
            DataSet::FashionMnist => fashion_mnist::open(&folder, Split::Train),
            DataSet::Cifar10 => cifar10::open(&folder, Split::Train),
        };
        return Ok(Arc::new(
            pixels.map_err(|error| RankError::Assignment(error.to_string()))?,
        ));
    }
    Ok(Arc::new(match config.data.source {
        SourceConfig::Digits => {
            let digits = Digits::parse(DIGITS_IMAGES, DIGITS_LABELS, Split::Train)
                .map_err(|e| RankError::Assignment(e.to_string()))?;
            Resident::of(&digits)
        }
        SourceConfig::FashionMnist { .. } | SourceConfig::Cifar10 { .. } => {
            unreachable!("read from files above")
        }
        SourceConfig::SyntheticTokens { shortest, masking } => {
            let length = config.model.input.iter().product();
            let labels = 2 * length * size_of::<f32>();
            Resident::of(&SyntheticTokens {
                len: synthetic_samples(config, labels),
                length,
                shortest,
                vocabulary: config.model.classes,
                masking: Masking {
                    share: masking.share,
                    predict: match masking.predict {
                        file::Predict::Hidden => Predict::Hidden,
                        file::Predict::All => Predict::All,
                    },
                    seed: config.data.seed,
                },
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
