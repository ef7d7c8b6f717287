//! What learning trials record.
use serde::{Deserialize, Serialize};

/// `learning.csv`: of learning trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningRow {
    pub trial: String,
    pub repeat: u32,
    pub step: u64,
    pub samples_seen: u64,
    pub train_loss: Option<f64>,
    pub eval_loss: Option<f64>,
    pub eval_error: Option<f64>,
    pub batch_statistics_loss: Option<f64>,
    pub batch_statistics_error: Option<f64>,
    /// Time of the training steps so far, without evaluations.
    #[serde(default)]
    pub train_ns: Option<u64>,
    /// After the last step: on samples of the training set, as many as are evaluated, with stored statistics.
    #[serde(default)]
    pub train_eval_loss: Option<f64>,
    #[serde(default)]
    pub train_eval_error: Option<f64>,
    /// After the last step: with statistics that were estimated anew (PreciseBN).
    #[serde(default)]
    pub precise_loss: Option<f64>,
    #[serde(default)]
    pub precise_error: Option<f64>,
    /// After the last step: with stored statistics and dropout on, means over masks.
    #[serde(default)]
    pub dropout_loss: Option<f64>,
    #[serde(default)]
    pub dropout_error: Option<f64>,
}

/// `norm_statistics.csv`: how far statistics of batches are from the stored ones, after the last step of a learning trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormStatisticsRow {
    pub trial: String,
    pub repeat: u32,
    pub step: u64,
    /// The batch norm, from 0 in execution order.
    pub layer: u32,
    pub channels: u32,
    /// Samples whose statistics are taken together.
    pub normalization_batch: u64,
    /// Values that one statistic is over, on average.
    pub values: f64,
    /// Batches whose statistics were taken.
    pub batches: u64,
    /// Mean over channels and batches of (batch mean − stored mean)² / stored variance.
    pub mean_noise: f64,
    /// The same of (ln batch variance − ln stored variance)², both unbiased.
    pub variance_noise: f64,
}
