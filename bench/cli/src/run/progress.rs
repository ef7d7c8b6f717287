//! What the user sees while a run goes on: a bar, the trial, the remaining time.
//!
//! Contract: everything goes to stderr, and nothing when `--quiet` was given. Where stderr is no terminal, as in a night's log, it is
//! a line a minute at most, and one for each problem. The bar is drawn
//! between jobs only: a thread that redraws it would run on the cores that are being measured.
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use syncmark_record::Outcome;

use crate::plan::config::TrialConfig;
use crate::plan::estimate;

/// Receives the course of a run.
pub trait Progress {
    /// A run of this many jobs begins.
    fn begin(&mut self, jobs: usize);
    /// A job begins; `remaining` counts it and all later ones.
    fn start(&mut self, what: &str, remaining: Duration);
    /// A job ended, or was left out.
    fn finish(&mut self);
    /// Something did not pass.
    fn problem(&mut self, what: &str, outcome: Outcome, reason: &str);
    /// The run has ended.
    fn end(&mut self);
}

/// A bar on stderr; where that is no terminal, a line now and then.
pub struct Bar {
    bar: ProgressBar,
    lines: bool,
    jobs: usize,
    done: usize,
    said: Option<Instant>,
}

/// Shortest time between two lines: a night's log stays readable.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

impl Bar {
    /// Nothing is shown when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self {
            bar: ProgressBar::with_draw_target(None, target),
            lines: !quiet && !std::io::stderr().is_terminal(),
            jobs: 0,
            done: 0,
            said: None,
        }
    }
}

impl Progress for Bar {
    fn begin(&mut self, jobs: usize) {
        self.jobs = jobs;
        self.bar.set_length(jobs as u64);
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}");
        self.bar
            .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    }

    fn start(&mut self, what: &str, remaining: Duration) {
        let message = format!("{what} · about {} left", estimate::in_words(remaining));
        if self.lines && self.said.is_none_or(|at| at.elapsed() >= BETWEEN_LINES) {
            self.said = Some(Instant::now());
            eprintln!("{}/{} {message}", self.done, self.jobs);
        }
        self.bar.set_message(message);
    }

    fn finish(&mut self) {
        self.done += 1;
        self.bar.inc(1);
    }

    fn problem(&mut self, what: &str, outcome: Outcome, reason: &str) {
        let words = format!("{what}: {}: {reason}", outcome_name(outcome));
        match self.lines {
            true => eprintln!("{words}"),
            false => self.bar.println(words),
        }
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// `kebab-case` name of an outcome, as in the CSV files.
pub fn outcome_name(outcome: Outcome) -> String {
    match serde_json::to_value(outcome) {
        Ok(serde_json::Value::String(name)) => name,
        _ => format!("{outcome:?}"),
    }
}

/// How long a run will still take: what each trial took so far, and before that what its settings ask for.
pub struct Estimate {
    expected: Vec<Duration>,
    /// Trials whose settings say how many steps they take, and not for how long.
    by_steps: Vec<bool>,
    observed: Vec<(u32, Duration)>,
    left: Vec<usize>,
}

impl Estimate {
    /// Nothing observed yet, `repeats` of each trial to come.
    pub fn new<'a>(trials: impl Iterator<Item = &'a TrialConfig>, repeats: usize) -> Self {
        let (expected, by_steps): (Vec<Duration>, Vec<bool>) = trials
            .map(|trial| (estimate::repeat(trial), trial.learning().is_some()))
            .unzip();
        Self {
            by_steps,
            observed: vec![(0, Duration::ZERO); expected.len()],
            left: vec![repeats; expected.len()],
            expected,
        }
    }

    /// One repeat of a trial is no longer to come.
    pub fn take(&mut self, trial: usize) {
        self.left[trial] = self.left[trial].saturating_sub(1);
    }

    /// A repeat of a trial took this long.
    pub fn observe(&mut self, trial: usize, took: Duration) {
        self.observed[trial].0 += 1;
        self.observed[trial].1 += took;
    }

    /// How long one repeat of a trial takes.
    pub fn expected(&self, trial: usize) -> Duration {
        match self.observed[trial] {
            (0, _) if self.by_steps[trial] => self.expected[trial].mul_f64(self.pace()),
            (0, _) => self.expected[trial],
            (times, total) => total / times,
        }
    }

    /// How much longer than expected the trials took that count steps: what one of them says of this machine is true of the others.
    fn pace(&self) -> f64 {
        let (mut took, mut expected) = (Duration::ZERO, Duration::ZERO);
        for (trial, (times, total)) in self.observed.iter().enumerate() {
            if self.by_steps[trial] && *times > 0 {
                took += *total / *times;
                expected += self.expected[trial];
            }
        }
        match expected.is_zero() {
            true => 1.0,
            false => took.as_secs_f64() / expected.as_secs_f64(),
        }
    }

    /// All repeats to come.
    pub fn remaining(&self) -> Duration {
        self.left
            .iter()
            .enumerate()
            .map(|(trial, &left)| self.expected(trial) * left as u32)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::{LearningConfig, Length, StrategyConfig, Work};
    use crate::run::mock::config;
    use crate::scenario::file::EvaluationSplit;

    #[test]
    fn the_estimate_turns_from_settings_to_observations() {
        let mut trial = config(StrategyConfig::Single, 1);
        trial.measure.warmup_time_ns = 700_000_000;
        trial.measure.min_time_ns = 1_000_000_000;
        trial.measure.trace_steps = 0;
        let mut estimate = Estimate::new([&trial, &trial].into_iter(), 3);
        assert_eq!(estimate.remaining(), Duration::from_secs(12));
        estimate.take(0);
        estimate.observe(0, Duration::from_secs(5));
        assert_eq!(estimate.remaining(), Duration::from_secs(2 * 5 + 3 * 2));
        (0..9).for_each(|_| estimate.take(0));
        assert_eq!(estimate.remaining(), Duration::from_secs(3 * 2));
    }

    #[test]
    fn what_one_learning_trial_took_says_how_fast_the_others_are() {
        let learns = |steps| {
            let mut trial = config(StrategyConfig::Single, 1);
            trial.work = Work::Learning(LearningConfig {
                length: Length::Steps(steps),
                normalization_batch: None,
                every: None,
                split: EvaluationSplit::Test,
                validation: 0.1,
                batch_statistics: false,
                precise_batches: 0,
                dropout_masks: 0,
            });
            trial
        };
        let (short, long) = (learns(100), learns(1000));
        let (first, second) = (estimate::repeat(&short), estimate::repeat(&long));
        let mut estimate = Estimate::new([&short, &long].into_iter(), 2);
        assert_eq!(estimate.remaining(), first * 2 + second * 2);
        estimate.take(0);
        estimate.observe(0, first * 3);
        assert_eq!(estimate.remaining(), first * 3 + second * 3 * 2);
    }

    #[test]
    fn outcomes_are_named_as_in_the_records() {
        assert_eq!(outcome_name(Outcome::RankFailed), "rank-failed");
    }
}
