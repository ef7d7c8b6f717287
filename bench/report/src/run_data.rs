//! Everything that a report reads from a run folder, loaded once.
//!
//! Contract: `steps.csv` and `phases.csv` are streamed, because they can have hundreds of thousands of rows: of the
//! first only sums are kept, of the second one traced step a trial. A folder of an interrupted run loads too.
use std::{collections::BTreeMap, path::PathBuf};

use syncmark_record::{
    Environment, FolderError, Outcome, RunFolder,
    rows::{
        AlgorithmRow, CeilingRow, CollectiveRow, CommRow, CompressionRow, DeviceRow, GateRow,
        GpuRow, LayerRow, LearningRow, NormStatisticsRow, PhaseRow, RepeatRow, TrialRow,
    },
    table::Row,
};

use crate::{
    analyse::{placeholder_trial, summarise, trains},
    dispatch,
    error::ReportError,
    gaps::{Gaps, missing, whole_repeats},
    phase_totals::{PhaseTotals, phase_totals},
    scenario::ScenarioHead,
};

/// The records of one run.
#[derive(Clone, Debug)]
pub struct RunData {
    /// The folder.
    pub folder: PathBuf,
    /// Where the run took place.
    pub environment: Option<Environment>,
    /// What was asked.
    pub scenario: ScenarioHead,
    /// Trials with their figures, in the order in which a report lists them.
    pub trials: Vec<TrialRow>,
    /// Repeats.
    pub repeats: Vec<RepeatRow>,
    /// Communication.
    pub comm: Vec<CommRow>,
    /// Devices.
    pub devices: Vec<DeviceRow>,
    /// Their GPUs.
    pub gpus: Vec<GpuRow>,
    /// What NVIDIA's libraries took.
    pub algorithms: Vec<AlgorithmRow>,
    /// Gates.
    pub gates: Vec<GateRow>,
    /// Times of collectives.
    pub collectives: Vec<CollectiveRow>,
    /// Times of the nodes of models.
    pub layers: Vec<LayerRow>,
    /// What the machine could do at best.
    pub ceilings: Vec<CeilingRow>,
    /// Accuracy of compressed gradients.
    pub compression: Vec<CompressionRow>,
    /// Evaluations of trials that learn.
    pub learning: Vec<LearningRow>,
    /// Noise of batch statistics.
    pub norm_statistics: Vec<NormStatisticsRow>,
    /// Phase sums by trial.
    pub phases: BTreeMap<String, PhaseTotals>,
    /// The host's times beside the device's by trial.
    pub dispatch: BTreeMap<String, dispatch::Repeats>,
    /// Spans of one traced step by trial.
    pub timelines: BTreeMap<String, Vec<PhaseRow>>,
    /// What of all that is gone.
    pub gaps: Gaps,
}

impl RunData {
    /// Loads a run folder.
    ///
    /// # Errors
    /// [`FolderError::NoRecords`] for a folder without trials and repeats; otherwise as the folder's readers.
    pub fn load(folder: &RunFolder) -> Result<Self, ReportError> {
        let mut torn = Vec::new();
        let path = folder.path().to_path_buf();
        let recorded: Vec<TrialRow> = read(folder, &mut torn)?;
        let repeats: Vec<RepeatRow> = read(folder, &mut torn)?;
        if recorded.is_empty() && repeats.is_empty() {
            return Err(FolderError::NoRecords { path }.into());
        }
        let comm: Vec<CommRow> = read(folder, &mut torn)?;
        let (comm, incomplete) = whole_repeats(comm, &repeats, torn.contains(&CommRow::FILE));
        let devices: Vec<DeviceRow> = read(folder, &mut torn)?;
        let gpus: Vec<GpuRow> = read(folder, &mut torn)?;
        let algorithms = read(folder, &mut torn)?;
        let gates: Vec<GateRow> = read(folder, &mut torn)?;
        let collectives = read(folder, &mut torn)?;
        let layers = read(folder, &mut torn)?;
        let ceilings = read(folder, &mut torn)?;
        let compression = read(folder, &mut torn)?;
        let learning = read(folder, &mut torn)?;
        let norm_statistics = read(folder, &mut torn)?;
        let scenario = match folder.scenario()? {
            Some(text) => {
                ScenarioHead::parse(&path.join(syncmark_record::folder::SCENARIO_FILE), &text)?
            }
            None => ScenarioHead::default(),
        };
        let trials_missing = recorded.is_empty();
        let known = if trials_missing {
            placeholders(&repeats)
        } else {
            recorded
        };
        let mut trials = summarise(&known, &repeats, &comm, &devices);
        crate::gpus::warn(&mut trials, &gpus);
        sort_trials(&mut trials);
        let phases = phase_totals(folder, &trials, &mut torn)?;
        let dispatch = dispatch::host_and_device(folder)?;
        let timelines = timelines(folder, &mut torn)?;
        let environment = folder.environment()?;
        let gaps = Gaps {
            missing: missing(&path, &trials, &repeats),
            trials_missing,
            torn,
            incomplete,
        };
        Ok(Self {
            folder: path,
            environment,
            scenario,
            trials,
            repeats,
            comm,
            devices,
            gpus,
            algorithms,
            gates,
            collectives,
            layers,
            ceilings,
            compression,
            learning,
            norm_statistics,
            phases,
            dispatch,
            timelines,
            gaps,
        })
    }

    /// Trials that show figures.
    pub fn measured(&self) -> impl Iterator<Item = &TrialRow> {
        self.trials
            .iter()
            .filter(|trial| excluded_reason(trial).is_none())
    }

    /// Repeats of a trial that have a window.
    pub fn repeats_of<'a>(&'a self, trial: &'a str) -> impl Iterator<Item = &'a RepeatRow> {
        self.repeats
            .iter()
            .filter(move |row| row.trial == trial && row.outcome.has_figures())
    }
}

fn read<R: Row>(folder: &RunFolder, torn: &mut Vec<&'static str>) -> Result<Vec<R>, FolderError> {
    let rows = folder.rows::<R>()?;
    if rows.torn() {
        torn.push(R::FILE);
    }
    rows.collect()
}

/// Trials that only their repeats are left of.
fn placeholders(repeats: &[RepeatRow]) -> Vec<TrialRow> {
    let mut ids: Vec<&str> = Vec::new();
    for row in repeats {
        if !ids.contains(&row.trial.as_str()) {
            ids.push(&row.trial);
        }
    }
    ids.into_iter().map(placeholder_trial).collect()
}

/// One traced step of each trial: of its first traced repeat, the one of median length.
fn timelines(
    folder: &RunFolder,
    torn: &mut Vec<&'static str>,
) -> Result<BTreeMap<String, Vec<PhaseRow>>, FolderError> {
    let mut first: BTreeMap<String, (u32, Vec<PhaseRow>)> = BTreeMap::new();
    let rows = folder.rows::<PhaseRow>()?;
    if rows.torn() {
        torn.push(PhaseRow::FILE);
    }
    for row in rows {
        let row = row?;
        let (repeat, spans) = first
            .entry(row.trial.clone())
            .or_insert_with(|| (row.repeat, Vec::new()));
        if row.repeat < *repeat {
            (*repeat, *spans) = (row.repeat, Vec::new());
        }
        if row.repeat == *repeat {
            spans.push(row);
        }
    }
    Ok(first
        .into_iter()
        .map(|(trial, (_, spans))| (trial, typical_step(spans)))
        .collect())
}

/// Keeps the spans of the step of median length: the middle one in time could be the one that was disturbed.
fn typical_step(mut spans: Vec<PhaseRow>) -> Vec<PhaseRow> {
    let mut extents: BTreeMap<(u64, u32), (u64, u64)> = BTreeMap::new();
    for span in &spans {
        let (start, end) = extents
            .entry((span.step, span.rank))
            .or_insert((span.start_ns, span.end_ns));
        (*start, *end) = (span.start_ns.min(*start), span.end_ns.max(*end));
    }
    // A step is as long as on its slowest rank; ranks of `independent` share no start.
    let mut lengths: BTreeMap<u64, u64> = BTreeMap::new();
    for ((step, _), (start, end)) in extents {
        let length = lengths.entry(step).or_default();
        *length = end.saturating_sub(start).max(*length);
    }
    let mut by_length: Vec<(u64, u64)> = lengths
        .into_iter()
        .map(|(step, length)| (length, step))
        .collect();
    by_length.sort_unstable();
    let chosen = by_length.get(by_length.len() / 2).map(|(_, step)| *step);
    spans.retain(|span| Some(span.step) == chosen);
    spans.sort_by(|a, b| {
        (a.rank, a.device, &a.track, a.start_ns).cmp(&(b.rank, b.device, &b.track, b.start_ns))
    });
    spans
}

/// Strategies from the plainest to the one that is asked about most.
pub fn strategy_order(strategy: &str) -> usize {
    ["single", "independent", "dp", "ddp", "zero1"]
        .iter()
        .position(|known| *known == strategy)
        .unwrap_or(usize::MAX)
}

/// Models and norms in the order in which they first appear; within them by strategy, launch and device count.
fn sort_trials(trials: &mut [TrialRow]) {
    let mut facets: Vec<(String, String)> = Vec::new();
    for trial in trials.iter() {
        let facet = (trial.model.clone(), trial.norm.clone());
        if !facets.contains(&facet) {
            facets.push(facet);
        }
    }
    trials.sort_by_cached_key(|trial| {
        let facet = facets
            .iter()
            .position(|(model, norm)| *model == trial.model && *norm == trial.norm);
        let batch = trial.global_batch / u64::from(trial.devices.max(1));
        let order = strategy_order(&trial.strategy);
        (
            facet,
            trial.scaling.clone(),
            order,
            trial.launch.clone(),
            trial.dp_loss.clone(),
            trial.dp_transport.clone(),
            trial.variant.clone(),
            trial.devices,
            batch,
        )
    });
}

/// Whether a trial failed in a way that a reader must see.
pub fn excluded_reason(trial: &TrialRow) -> Option<String> {
    if trial.outcome.has_figures() {
        let nothing = match trains(trial) {
            true => trial.step_ms.is_none(),
            false => trial.repeats == 0,
        };
        return nothing.then(|| "no finished repeat".to_string());
    }
    let outcome = outcome_name(trial.outcome);
    Some(match &trial.reason {
        Some(reason) => format!("{outcome}: {reason}"),
        None => outcome.to_string(),
    })
}

/// An outcome as it stands in the files.
pub fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "failed",
        Outcome::Timeout => "timeout",
        Outcome::RankFailed => "rank-failed",
        Outcome::OutOfMemory => "out-of-memory",
        Outcome::Diverged => "diverged",
        Outcome::Invalid => "invalid",
        Outcome::Unsteady => "unsteady",
        Outcome::Disturbed => "disturbed",
        Outcome::Skipped => "skipped",
        Outcome::Interrupted => "interrupted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(step: u64, rank: u32, start_ns: u64, end_ns: u64) -> PhaseRow {
        PhaseRow {
            trial: "a".into(),
            repeat: 0,
            rank,
            device: rank,
            track: "compute".into(),
            phase: "forward".into(),
            bucket: None,
            step,
            start_ns,
            end_ns,
            clock: "host".into(),
        }
    }

    #[test]
    fn the_timeline_shows_the_step_of_median_length() {
        // Steps of 10, 90 and 30 ns on their slowest rank; the second one was disturbed.
        let spans = vec![
            span(0, 0, 0, 10),
            span(1, 0, 10, 20),
            span(1, 1, 10, 100),
            span(2, 0, 500, 530),
        ];
        let typical = typical_step(spans);
        assert!(typical.len() == 1 && typical[0].step == 2, "{typical:?}");
        assert!(typical_step(Vec::new()).is_empty());
    }
}
