//! The child's side of the kind `learning`: steps to the end, with evaluations in between, and a closer look after the last.
//!
//! Contract: every rank takes the same steps and calls the same evaluations; rank 0's are spooled. The time of the steps is counted
//! without evaluations, and reading the loss of each step is in it. Evaluation changes nothing that training sees: running
//! statistics that are estimated anew at the end come after everything else.
//! Reference: METHODOLOGY.md, "Learning".
use std::sync::Arc;

use syncmark_engine::data::{Dataset, HostBatch, Loader, Sequential};
use syncmark_engine::probe::{Silent, now_ns};
use syncmark_engine::strategy::{Evaluation, Noise};
use syncmark_record::rows::Pass;

use super::build::Participant;
use super::measure::memory;
use super::{RankError, choices, data, say};
use crate::plan::config::{LearningConfig, Length};
use crate::run::protocol::{Assignment, Message};
use crate::run::recorder::pass_number;
use crate::run::spool::{Event, LearningEvent};

/// Trains to the end.
///
/// # Errors
/// The first failure of this rank; [`RankError::Diverged`] when the loss is no number.
pub fn run(assignment: &Assignment, mut participant: Participant) -> Result<(), RankError> {
    let config = &assignment.trial;
    let Some(learning) = config.learning() else {
        return Err(RankError::Assignment(
            "a trial that does not learn".to_owned(),
        ));
    };
    let [evaluated, trained_on] = data::evaluation(config, learning)?;
    let (evaluated, trained_on) = (Samples::of(&*evaluated), Samples::of(&*trained_on));
    let epoch = participant.loader.batches() as u64;
    let steps = match learning.length {
        Length::Epochs(epochs) => epochs as u64 * epoch,
        Length::Steps(steps) => steps as u64,
    };
    let every = learning.every.map_or(epoch, |every| every as u64).max(1);
    let chunk = config.normalization_batch();
    if participant.first_rank {
        say(&Message::Pass {
            name: "learning".to_owned(),
            steps,
        });
    }
    let (mut train_ns, mut samples) = (0, 0);
    let (mut losses, mut counted) = (0.0, 0u32);
    let mut last = 0.0;
    participant.barrier()?;
    for step in 1..=steps {
        let begin = now_ns();
        samples += participant.step(&mut Silent)?;
        let loss = participant.strategy.loss()?;
        let end = now_ns();
        train_ns += end - begin;
        participant.spool.beat(end);
        if !loss.is_finite() {
            let pass = "";
            return Err(RankError::Diverged { loss, step, pass });
        }
        last = f64::from(loss);
        (losses, counted) = (losses + last, counted + 1);
        if step % every != 0 && step != steps {
            continue;
        }
        let found = evaluate(&mut participant, learning, &evaluated, chunk)?;
        participant.spool.push(Event::Learning(LearningEvent {
            step,
            train_ns,
            train_loss: losses / f64::from(counted),
            ..found
        }));
        participant.spool.beat(now_ns());
        (losses, counted) = (0.0, 0);
        // Rank 0 looks at more than the others, which must not wait for it within a step.
        participant.barrier()?;
    }
    participant.strategy.finish()?;
    let end = now_ns();
    participant.spool.push(Event::Pass {
        pass: pass_number(Pass::Window),
        steps,
        samples,
        start_ns: end.saturating_sub(train_ns),
        end_ns: end,
    });
    participant.spool.push(Event::Loss {
        step: steps,
        loss: last,
    });
    if let Some(equal) = participant.strategy.parameters_equal()? {
        participant.spool.push(Event::ParametersEqual { equal });
    }
    memory(&mut participant);
    choices::tell(&mut participant);
    look_closer(
        &mut participant,
        learning,
        [&evaluated, &trained_on],
        chunk,
        steps,
    )
}

/// Samples in host memory.
struct Samples {
    inputs: Vec<f32>,
    labels: Vec<i32>,
    len: usize,
}

impl Samples {
    fn of(data: &dyn Dataset) -> Self {
        let (elements, labels_each) = (data.shape().elements(), data.labels_per_sample());
        let len = data.len();
        let (mut inputs, mut labels) = (vec![0.0; len * elements], vec![0; len * labels_each]);
        let places = inputs
            .chunks_exact_mut(elements)
            .zip(labels.chunks_exact_mut(labels_each));
        for (sample, (input, labels)) in places.enumerate() {
            data.write(sample, input);
            data.write_labels(sample, labels);
        }
        Self {
            inputs,
            labels,
            len,
        }
    }

    fn batch(&self) -> HostBatch<'_> {
        HostBatch {
            inputs: &self.inputs,
            labels: &self.labels,
            len: self.len,
        }
    }
}

fn error(found: &Evaluation) -> f64 {
    found.errors as f64 / found.labels.max(1) as f64
}

/// Whether a batch norm takes statistics of batches.
fn has_batch_norms(participant: &mut Participant) -> bool {
    let program = participant.strategy.master().program();
    program.statistics().next().is_some()
}

/// Whether statistics of `chunk` samples can be taken: those of all ranks together cannot, by one of them.
fn takes_chunks(participant: &mut Participant, samples: &Samples, chunk: usize) -> bool {
    let most = participant.strategy.master().max_batch();
    has_batch_norms(participant) && samples.len >= chunk && most >= chunk
}

/// With stored statistics, and with those of batches where there are any. Ranks evaluate together; all but rank 0 say nothing of it.
fn evaluate(
    participant: &mut Participant,
    learning: &LearningConfig,
    samples: &Samples,
    chunk: usize,
) -> Result<LearningEvent, RankError> {
    let stored = participant.strategy.evaluate(samples.batch())?;
    let mut event = LearningEvent::NOTHING;
    if participant.device > 0 {
        return Ok(event);
    }
    (event.eval_loss, event.eval_error) = (stored.loss, error(&stored));
    if learning.batch_statistics && takes_chunks(participant, samples, chunk) {
        let replica = participant.strategy.master();
        let found = replica.evaluate_with_batch_statistics(samples.batch(), chunk, None)?;
        (event.batch_loss, event.batch_error) = (found.loss, error(&found));
    }
    Ok(event)
}

/// After the last step: errors on training samples, how noisy batch statistics are, and what better estimates of the stored ones change.
fn look_closer(
    participant: &mut Participant,
    learning: &LearningConfig,
    [evaluated, trained_on]: [&Samples; 2],
    chunk: usize,
    step: u64,
) -> Result<(), RankError> {
    let on_training = participant.strategy.evaluate(trained_on.batch())?;
    if participant.device > 0 {
        return Ok(());
    }
    // Before the stored statistics are estimated anew.
    let mut dropout = [f64::NAN; 2];
    if learning.dropout_masks > 0 {
        let replica = participant.strategy.master();
        let found = replica.evaluate_with_dropout(evaluated.batch(), learning.dropout_masks)?;
        dropout = [found.loss, error(&found)];
    }
    let mut precise = [f64::NAN; 2];
    if has_batch_norms(participant) {
        let batches = precise_batches(participant, learning)?;
        if learning.batch_statistics && takes_chunks(participant, trained_on, chunk) {
            let mut noise = Noise::default();
            let replica = participant.strategy.master();
            replica.evaluate_with_batch_statistics(trained_on.batch(), chunk, Some(&mut noise))?;
            for (layer, found) in noise.layers.iter().enumerate() {
                participant.spool.push(Event::NormStatistics {
                    layer: layer as u16,
                    channels: found.channels as u32,
                    step,
                    values: found.values,
                    batches: found.batches as u64,
                    mean_noise: found.mean,
                    variance_noise: found.variance,
                });
            }
        }
        if !batches.is_empty() {
            let replica = participant.strategy.master();
            let mut batches = batches.iter().map(Samples::batch);
            replica.reestimate(|| batches.next())?;
            let found = replica.evaluate_stored(evaluated.batch())?;
            precise = [found.loss, error(&found)];
        }
    }
    participant.spool.push(Event::LearningEnd {
        step,
        train_eval: [on_training.loss, error(&on_training)],
        dropout,
        precise,
    });
    participant.spool.beat(now_ns());
    Ok(())
}

/// The first training batches of the data's own order, each as large as this device takes at once.
fn precise_batches(
    participant: &mut Participant,
    learning: &LearningConfig,
) -> Result<Vec<Samples>, RankError> {
    let size = participant.strategy.master().max_batch();
    let data: Arc<dyn Dataset> = participant.loader.dataset();
    let sampler = Box::new(Sequential { len: data.len() });
    let size = size.min(data.len());
    let mut loader = Loader::new(data, sampler, size, true)
        .map_err(|problem| RankError::Assignment(problem.to_string()))?;
    let mut batches = Vec::new();
    while batches.len() < learning.precise_batches {
        let Some(batch) = loader.next_in_epoch() else {
            break;
        };
        batches.push(Samples {
            inputs: batch.inputs.to_vec(),
            labels: batch.labels.to_vec(),
            len: batch.len,
        });
    }
    Ok(batches)
}
