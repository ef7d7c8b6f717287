//! Rows of `learning.csv` and `norm_statistics.csv`.
//!
//! Contract: training losses are means over ranks, evaluations those of rank 0; what there is none of stays empty.
use std::collections::BTreeMap;

use syncmark_record::rows::{LearningRow, NormStatisticsRow};

use super::RepeatFacts;
use crate::run::spool::{Event, LearningEvent};

/// A figure, unless it is none.
fn figure(value: f64) -> Option<f64> {
    (!value.is_nan()).then_some(value)
}

pub(super) fn learning_rows(facts: &RepeatFacts<'_>, ranks: &[Vec<Event>]) -> Vec<LearningRow> {
    let mut by_step: BTreeMap<u64, Vec<LearningEvent>> = BTreeMap::new();
    for event in ranks.iter().flatten() {
        if let Event::Learning(found) = event {
            by_step.entry(found.step).or_default().push(*found);
        }
    }
    let samples = facts.config.step_samples() as u64;
    let row = |(step, found): (u64, Vec<LearningEvent>)| {
        let of_first =
            |get: fn(&LearningEvent) -> f64| found.iter().find_map(|event| figure(get(event)));
        let losses: f64 = found.iter().map(|event| event.train_loss).sum();
        LearningRow {
            trial: facts.trial.to_owned(),
            repeat: facts.repeat,
            step,
            samples_seen: step * samples,
            train_loss: figure(losses / found.len() as f64),
            eval_loss: of_first(|event| event.eval_loss),
            eval_error: of_first(|event| event.eval_error),
            batch_statistics_loss: of_first(|event| event.batch_loss),
            batch_statistics_error: of_first(|event| event.batch_error),
            train_ns: found.iter().map(|event| event.train_ns).max(),
            train_eval_loss: None,
            train_eval_error: None,
            precise_loss: None,
            precise_error: None,
            dropout_loss: None,
            dropout_error: None,
        }
    };
    let mut rows: Vec<LearningRow> = by_step.into_iter().map(row).collect();
    for event in ranks.iter().flatten() {
        let Event::LearningEnd {
            step,
            train_eval: [train_loss, train_error],
            dropout: [dropout_loss, dropout_error],
            precise: [precise_loss, precise_error],
        } = *event
        else {
            continue;
        };
        if let Some(last) = rows.iter_mut().find(|row| row.step == step) {
            (last.train_eval_loss, last.train_eval_error) =
                (figure(train_loss), figure(train_error));
            (last.dropout_loss, last.dropout_error) = (figure(dropout_loss), figure(dropout_error));
            (last.precise_loss, last.precise_error) = (figure(precise_loss), figure(precise_error));
        }
    }
    rows
}

pub(super) fn norm_statistics_rows(
    facts: &RepeatFacts<'_>,
    ranks: &[Vec<Event>],
) -> Vec<NormStatisticsRow> {
    let row = |event: &Event| match *event {
        Event::NormStatistics {
            layer,
            channels,
            step,
            values,
            batches,
            mean_noise,
            variance_noise,
        } => Some(NormStatisticsRow {
            trial: facts.trial.to_owned(),
            repeat: facts.repeat,
            step,
            layer: u32::from(layer),
            channels,
            normalization_batch: facts.config.normalization_batch() as u64,
            values,
            batches,
            mean_noise,
            variance_noise,
        }),
        _ => None,
    };
    ranks.iter().flatten().filter_map(row).collect()
}
