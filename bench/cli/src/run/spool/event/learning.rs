//! An evaluation of a trial that learns, as an event. Figures that there are none of are NaN.
use super::{EVENT_BYTES, Fields};

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningEvent {
    /// Steps taken.
    pub step: u64,
    /// Time of them, without evaluations.
    pub train_ns: u64,
    /// Mean training loss since the last evaluation.
    pub train_loss: f64,
    /// With stored statistics.
    pub eval_loss: f64,
    /// Share of the labels that are not predicted.
    pub eval_error: f64,
    /// With the statistics of batches.
    pub batch_loss: f64,
    /// Share of the labels that are not predicted.
    pub batch_error: f64,
}

impl LearningEvent {
    /// No figure.
    pub const NOTHING: Self = Self {
        step: 0,
        train_ns: 0,
        train_loss: f64::NAN,
        eval_loss: f64::NAN,
        eval_error: f64::NAN,
        batch_loss: f64::NAN,
        batch_error: f64::NAN,
    };

    pub(super) fn encode(self, kind: u8, f: &mut Fields<&mut [u8; EVENT_BYTES]>) {
        f.put([kind, 0, 0, 0, 0, 0, 0, 0])
            .words(&[self.step, self.train_ns])
            .words(&[self.train_loss, self.eval_loss, self.eval_error].map(f64::to_bits))
            .words(&[self.batch_loss, self.batch_error].map(f64::to_bits));
    }

    pub(super) fn decode(f: &mut Fields<&[u8; EVENT_BYTES]>) -> Self {
        f.at = 8;
        Self {
            step: f.u64(),
            train_ns: f.u64(),
            train_loss: f64::from_bits(f.u64()),
            eval_loss: f64::from_bits(f.u64()),
            eval_error: f64::from_bits(f.u64()),
            batch_loss: f64::from_bits(f.u64()),
            batch_error: f64::from_bits(f.u64()),
        }
    }
}
