//! What of a run folder is gone: files that were left behind, rows that an interruption tore.
//!
//! Contract: a gap is named wherever the report is shown, what it would have told is left out, and nothing stands in its
//! place. A chart or trace that could not be made again is left as an earlier rendering made it.
use std::{collections::BTreeMap, path::Path};

use syncmark_record::{
    rows::{CommRow, DeviceRow, GateRow, LearningRow, PhaseRow, RepeatRow, StepRow, TrialRow},
    table::Row,
};

use crate::{analyse::trains, format::count};

/// Files, what a report tells by them, and how the names of the charts begin that it draws from them.
const TOLD: [(&str, &str, Option<&str>); 6] = [
    (
        RepeatRow::FILE,
        "every ratio, spread and comparison: figures are those of trials.csv",
        None,
    ),
    (
        GateRow::FILE,
        "whether the trials were shown to train like one device",
        None,
    ),
    (StepRow::FILE, "the time by phase", Some("time-")),
    (
        PhaseRow::FILE,
        "the timelines and trace.json",
        Some("timeline-"),
    ),
    (CommRow::FILE, "all figures of bytes", Some("bytes-")),
    (DeviceRow::FILE, "memory", Some("memory-")),
];

/// What is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gaps {
    /// `trials.csv` was missing, so trials are known by their ids only.
    pub trials_missing: bool,
    /// Other files that the run must have written and that are not in the folder.
    pub missing: Vec<&'static str>,
    /// Files whose last row an interruption tore.
    pub torn: Vec<&'static str>,
    /// Repeats of which `comm.csv` has a part only, which is left out.
    pub incomplete: usize,
}

impl Gaps {
    /// Whether this file is not in the folder, though it must have been.
    pub fn lacks(&self, file: &str) -> bool {
        self.missing.contains(&file)
    }

    /// Whether a chart cannot be drawn for want of the records that it is made from.
    pub fn hide(&self, chart: &str) -> bool {
        TOLD.iter().any(|(file, _, begin)| {
            begin.is_some_and(|begin| chart.starts_with(begin)) && self.lacks(file)
        })
    }

    /// A sentence for each kind of gap.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.trials_missing {
            words.push(
                "trials.csv is missing, so it is not known what the trials were. They are listed by their ids, with the figures of the \
                 repeats that finished; nothing is compared."
                    .to_owned(),
            );
        }
        let told: Vec<String> = TOLD
            .iter()
            .filter(|(file, ..)| self.lacks(file))
            .map(|(file, what, _)| format!("{file} ({what})"))
            .collect();
        if !told.is_empty() {
            words.push(format!(
                "The run folder lacks {}: what they tell is not in this report. Charts and traces that an earlier rendering made from them are \
                 left as they are.",
                told.join(" and ")
            ));
        }
        if !self.torn.is_empty() {
            words.push(format!(
                "The last row of {} was torn by an interruption and is left out.",
                self.torn.join(", ")
            ));
        }
        if self.incomplete > 0 {
            words.push(format!(
                "comm.csv has a part only of {}, whose bytes are left out.",
                count(self.incomplete, "repeat")
            ));
        }
        words
    }
}

/// Drops the rows of repeats that are not all there, and counts those repeats: half of its calls are no count of a repeat's
/// bytes. Every repeat of a trial that ended well has equally many rows; and of a file that ends in a torn row, the last
/// repeat lacks one.
pub(crate) fn whole_repeats(
    mut rows: Vec<CommRow>,
    repeats: &[RepeatRow],
    torn: bool,
) -> (Vec<CommRow>, usize) {
    type Key = (String, u32);
    let last: Option<Key> = rows
        .last()
        .filter(|_| torn)
        .map(|row| (row.trial.clone(), row.repeat));
    let ended_well = repeats.iter().filter(|row| row.outcome.has_figures());
    let mut counts: BTreeMap<Key, usize> = ended_well
        .map(|row| ((row.trial.clone(), row.repeat), 0))
        .collect();
    for row in &rows {
        if let Some(count) = counts.get_mut(&(row.trial.clone(), row.repeat)) {
            *count += 1;
        }
    }
    let mut most: BTreeMap<&str, usize> = BTreeMap::new();
    for ((trial, _), count) in &counts {
        let most = most.entry(trial).or_default();
        *most = (*most).max(*count);
    }
    let partial =
        |key: &Key, count: usize| count < most[key.0.as_str()] || last.as_ref() == Some(key);
    let incomplete: Vec<&Key> = counts
        .iter()
        .filter(|(key, count)| partial(key, **count))
        .map(|(key, _)| key)
        .collect();
    rows.retain(|row| {
        !incomplete
            .iter()
            .any(|(trial, repeat)| *trial == row.trial && *repeat == row.repeat)
    });
    (rows, incomplete.len())
}

/// Which files of finished repeats are gone, as where a folder is handed on without its largest files.
pub(crate) fn missing(
    folder: &Path,
    trials: &[TrialRow],
    repeats: &[RepeatRow],
) -> Vec<&'static str> {
    let trial_of = |row: &RepeatRow| trials.iter().find(|trial| trial.trial == row.trial);
    let stepped = || {
        let finished = repeats.iter().filter(|row| row.window_ns.is_some());
        finished.filter(|row| row.outcome.has_figures() && trial_of(row).is_some_and(trains))
    };
    let exchanged = |row: &RepeatRow| {
        trial_of(row).is_some_and(|trial| {
            trial.devices > 1 && matches!(trial.strategy.as_str(), "dp" | "ddp" | "zero1")
        })
    };
    let gated = |trial: &TrialRow| {
        trains(trial) && trial.outcome.has_figures() && trial.transport.is_some()
    };
    let needed = [
        (
            RepeatRow::FILE,
            trials.iter().any(|trial| trial.step_ms.is_some()),
        ),
        (GateRow::FILE, trials.iter().any(gated)),
        (StepRow::FILE, stepped().next().is_some()),
        (
            PhaseRow::FILE,
            stepped().any(|row| row.traced_window_ns.is_some()),
        ),
        (CommRow::FILE, stepped().any(exchanged)),
        (DeviceRow::FILE, stepped().next().is_some()),
        (
            LearningRow::FILE,
            trials
                .iter()
                .any(|trial| trial.kind == "learning" && trial.repeats > 0),
        ),
    ];
    needed
        .into_iter()
        .filter(|(file, needed)| *needed && !folder.join(file).exists())
        .map(|(file, _)| file)
        .collect()
}
