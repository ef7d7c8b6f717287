//! A figure against a setting that was swept over sizes: buckets, batches, accumulated micro-batches.
//!
//! Contract: a line joins trials that are equal in everything but the setting; a setting with fewer than three values in
//! every line is no sweep and has no chart. Facets are joined where the setting itself is what tells them apart.
use std::collections::BTreeSet;

use syncmark_record::rows::TrialRow;

use super::{
    WIDTH,
    curves::{self, Curve, CurvePoint, LOOKS, Plot, Show, binary_bytes},
    legend,
    series::{Facet, dp_on_cpu, not_shown_of, slug, way_without},
};
use crate::{document::Figure, factor::fair, run_data::RunData};

/// Fewest values that make a line worth drawing.
const FEWEST: usize = 3;

/// A setting that grows by factors.
struct Setting {
    /// Dotted key in a scenario.
    key: &'static str,
    title: &'static str,
    axis: &'static str,
    show: Show,
    x: fn(&TrialRow) -> Option<f64>,
    /// Whether a step's work changes with it: then throughput is shown beside the step's time.
    work: bool,
    words: &'static str,
}

const SETTINGS: [Setting; 3] = [
    Setting {
        key: "parallel.bucket_cap",
        title: "Step time against bucket size",
        axis: "bucket cap",
        show: binary_bytes,
        x: |trial| trial.bucket_cap_bytes.map(|bytes| bytes as f64),
        work: false,
        words: "Small buckets start early and pay for many calls; large ones wait for more of backward. A bucket closes once it holds the \
                cap or more, so a large parameter makes a large bucket whatever the cap.",
    },
    Setting {
        key: "data.batch_size",
        title: "Throughput and step time against batch size",
        axis: "samples a device and step",
        show: whole,
        x: |trial| (trial.scaling == "weak").then_some(trial.device_batch as f64),
        work: true,
        words: "The gradients that are exchanged do not grow with the batch, so communication weighs less in larger ones.",
    },
    Setting {
        key: "train.accumulation",
        title: "Throughput and step time against accumulated micro-batches",
        axis: "micro-batches a step",
        show: whole,
        x: |trial| trial.accumulation.map(|count| count as f64),
        work: true,
        words: "A step takes the gradients of this many micro-batches together; with no_sync only the last one's backward synchronizes.",
    },
];

/// Optimizer and schedule, which few runs vary.
fn training_words(trial: &TrialRow) -> String {
    let words = [trial.optimizer.as_deref(), trial.schedule.as_deref()];
    words.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

fn whole(value: f64) -> String {
    format!("{value:.0}")
}

/// The charts of every setting that was swept.
pub fn sweeps(data: &RunData, facets: &[Facet<'_>]) -> Vec<Figure> {
    SETTINGS
        .iter()
        .flat_map(|setting| setting.figures(data, facets))
        .collect()
}

/// One line: its trials by the setting.
struct Line<'a> {
    name: String,
    way: String,
    trials: Vec<(f64, &'a TrialRow)>,
}

impl Setting {
    fn figures(&self, data: &RunData, facets: &[Facet<'_>]) -> Vec<Figure> {
        let trainings: BTreeSet<String> = data.measured().map(training_words).collect();
        let group = |trial: &TrialRow| self.group(trial, trainings.len() > 1);
        let mut groups: Vec<(String, Vec<&TrialRow>)> = Vec::new();
        for trial in data.measured().filter(|trial| (self.x)(trial).is_some()) {
            let own = group(trial);
            match groups.iter_mut().find(|(group, _)| *group == own) {
                Some((_, trials)) => trials.push(trial),
                None => groups.push((own, vec![trial])),
            }
        }
        groups
            .iter()
            .filter_map(|(own, trials)| {
                let in_facets = facets.iter().flat_map(|facet| &facet.trials).copied();
                let of_group = in_facets.filter(|trial| group(trial) == *own).collect();
                self.figure(own, trials, of_group, facets)
            })
            .collect()
    }

    /// What a chart's trials share: everything that is not compared in it.
    fn group(&self, trial: &TrialRow, several_trainings: bool) -> String {
        let mut words = vec![
            trial.model.clone(),
            format!("{} norm", trial.norm),
            trial.data.clone(),
            format!("{} scaling", trial.scaling),
            trial.backend.clone(),
        ];
        words.extend(trial.precision.clone());
        let micro_batches = trial.accumulation.unwrap_or(1);
        if micro_batches > 1 && self.key != "train.accumulation" {
            words.push(format!("{micro_batches} micro-batches"));
        }
        words.extend(several_trainings.then(|| training_words(trial)));
        match self.key {
            "data.batch_size" => {}
            // A step has the samples of all its micro-batches, of which this compares different numbers.
            "train.accumulation" => {
                words.push(format!(
                    "{} samples a device and micro-batch",
                    trial.micro_batch()
                ));
            }
            _ => words.push(format!("{} samples a device", trial.device_batch)),
        }
        words.join(" · ")
    }

    fn lines<'a>(&self, trials: &[&'a TrialRow]) -> Vec<Line<'a>> {
        let several = trials
            .iter()
            .any(|trial| trial.devices != trials[0].devices);
        let mut lines: Vec<Line<'a>> = Vec::new();
        for trial in trials {
            let way = way_without(trial, self.key);
            let name = match several || trial.strategy == "single" {
                true => format!("{way} ×{}", trial.devices),
                false => way,
            };
            let Some(x) = (self.x)(trial) else { continue };
            let joins =
                |line: &&mut Line<'_>| line.way == name && fair(line.trials[0].1, trial, self.key);
            match lines.iter_mut().find(joins) {
                Some(line) => line.trials.push((x, trial)),
                None => lines.push(Line {
                    // Two ways of one name differ in what no name tells: the trial's id does.
                    name: match lines.iter().any(|line| line.way == name) {
                        true => format!("{name} ({})", trial.trial),
                        false => name.clone(),
                    },
                    way: name,
                    trials: vec![(x, trial)],
                }),
            }
        }
        for line in &mut lines {
            line.trials.sort_by(|a, b| a.0.total_cmp(&b.0));
            line.trials.dedup_by(|a, b| a.0 == b.0);
        }
        lines
    }

    /// `planned` are all trials of the group, those without figures included.
    fn figure(
        &self,
        group: &str,
        trials: &[&TrialRow],
        planned: Vec<&TrialRow>,
        facets: &[Facet<'_>],
    ) -> Option<Figure> {
        let lines = self.lines(trials);
        if lines.iter().all(|line| line.trials.len() < FEWEST) {
            return None;
        }
        let plot =
            |title: &str, axis: &'static str, figure: fn(&TrialRow) -> [Option<f64>; 3]| Plot {
                title: title.to_owned(),
                x: (self.axis, Some(self.show)),
                y: (axis, None),
                curves: curves_of(&lines, figure),
                level: None,
            };
        let step = |t: &TrialRow| [t.step_ms, t.step_ms_low, t.step_ms_high];
        let speed = |t: &TrialRow| [t.samples_per_s, t.samples_per_s_low, t.samples_per_s_high];
        let plots = match self.work {
            true => vec![
                plot("throughput", "throughput (samples / s)", speed),
                plot("step", "step time (ms)", step),
            ],
            false => vec![plot("", "step time (ms)", step)],
        };
        let spread = legend::spread(trials.iter().copied());
        let (svg, height) = curves::draw(self.title, group, &plots, 2, spread)?;
        let copies = facets
            .iter()
            .map(dp_on_cpu)
            .find(|words| !words.is_empty())
            .filter(|_| trials.iter().any(|trial| trial.strategy == "dp"));
        let caption = format!(
            "Medians over repeats with their spread; the x axis is logarithmic. {}{}{}",
            self.words,
            copies.unwrap_or_default(),
            not_shown_of(&planned)
        );
        Some(Figure {
            name: slug(&format!("{} {}", self.title, group)),
            title: self.title.into(),
            caption,
            svg,
            width: WIDTH,
            height,
        })
    }
}

fn curves_of(lines: &[Line<'_>], figure: fn(&TrialRow) -> [Option<f64>; 3]) -> Vec<Curve> {
    lines
        .iter()
        .enumerate()
        .map(|(index, line)| {
            let (marker, color) = LOOKS[index % LOOKS.len()];
            let points = line.trials.iter().filter_map(|(x, trial)| {
                let [value, low, high] = figure(trial);
                Some(CurvePoint {
                    x: *x,
                    value: value?,
                    low: low?,
                    high: high?,
                })
            });
            Curve {
                name: line.name.clone(),
                marker,
                color,
                points: points.collect(),
                flat: None,
            }
        })
        .collect()
}
