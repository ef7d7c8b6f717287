//! `[evaluate]`: when and on what a model that learns is evaluated.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[evaluate]`: of `kind = "learning"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Steps between evaluations; default: those of an epoch. The last step is always followed by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<usize>,
    /// On which samples.
    pub split: EvaluationSplit,
    /// Share of the training samples that is held out of training for validation, whatever is evaluated.
    pub validation: f64,
    /// Evaluate with the statistics of batches too, where the model has batch norms.
    pub batch_statistics: bool,
    /// Batches of training samples whose statistics are averaged after the last step, for one more evaluation (PreciseBN); 0 for none.
    pub precise_batches: usize,
    /// Masks of every evaluated sample for one more evaluation after the last step with dropout on, where the model has dropout; 0 for none.
    pub dropout_masks: usize,
}

/// Samples that a model is evaluated on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluationSplit {
    /// Training samples that are held out.
    Validation,
    /// The test samples of the data set.
    Test,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self {
            every: None,
            split: EvaluationSplit::Validation,
            validation: 0.1,
            batch_statistics: true,
            precise_batches: 100,
            dropout_masks: 10,
        }
    }
}
