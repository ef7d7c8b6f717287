//! Where the time of traced steps went, summed from `steps.csv` in one streaming pass.
//!
//! Contract: only the traced pass counts, because no other has phases. A step of DDP or ZeRO-1 is averaged over its ranks. DP
//! has a row a device, and joins its devices after every phase: of each phase and step the slowest device counts,
//! since a mean over devices would belong to none of them.
//! Reference: the columns of [`StepRow`].
use std::collections::BTreeMap;

use syncmark_record::{
    FolderError, RunFolder,
    rows::{Pass, StepRow, TrialRow},
};

use crate::chart::palette::PHASES;

/// Time of each phase in nanoseconds, in the order of [`PHASES`].
type Phases = [u64; PHASES.len()];

/// Sums over the traced steps of a trial, all ranks and repeats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PhaseTotals {
    /// Steps summed over repeats, and over ranks unless one controller drives all devices.
    pub steps: u64,
    /// Their time.
    pub step_ns: u64,
    /// Time in each phase, in the order of [`PHASES`].
    pub phase_ns: Phases,
    /// Steps and their time by repeat.
    repeats: BTreeMap<u32, (u64, u64)>,
}

impl PhaseTotals {
    /// Mean time of a phase per step in milliseconds; 0 for a phase that does not occur.
    pub fn mean_ms(&self, phase: &str) -> f64 {
        let index = PHASES.iter().position(|(name, _)| *name == phase);
        index.map_or(0.0, |index| {
            self.phase_ns[index] as f64 / self.steps.max(1) as f64 / 1e6
        })
    }

    /// Mean time of a step in milliseconds.
    pub fn step_ms(&self) -> f64 {
        self.step_ns as f64 / self.steps.max(1) as f64 / 1e6
    }

    /// Mean time of a step in milliseconds in the quickest and in the slowest repeat; `None` with fewer than two.
    pub fn range_ms(&self) -> Option<[f64; 2]> {
        let mut means: Vec<f64> = self
            .repeats
            .values()
            .map(|(steps, ns)| *ns as f64 / *steps as f64 / 1e6)
            .collect();
        means.sort_by(f64::total_cmp);
        (means.len() > 1).then(|| [means[0], means[means.len() - 1]])
    }

    fn add(&mut self, repeat: u32, step_ns: u64, phases: &Phases) {
        let own = self.repeats.entry(repeat).or_default();
        *own = (own.0 + 1, own.1 + step_ns);
        self.steps += 1;
        self.step_ns += step_ns;
        self.phase_ns
            .iter_mut()
            .zip(phases)
            .for_each(|(total, value)| *total += value);
    }
}

/// Sums `steps.csv` by trial.
///
/// # Errors
/// As the folder's readers.
pub fn phase_totals(
    folder: &RunFolder,
    trials: &[TrialRow],
    torn: &mut Vec<&'static str>,
) -> Result<BTreeMap<String, PhaseTotals>, FolderError> {
    let rows = folder.rows_where::<StepRow>("pass", "traced")?;
    if rows.torn() {
        torn.push("steps.csv");
    }
    let joined = |id: &str| {
        trials
            .iter()
            .any(|trial| trial.trial == id && trial.strategy == "dp")
    };
    let mut totals: BTreeMap<String, PhaseTotals> = BTreeMap::new();
    let mut steps: BTreeMap<(String, u32, u64), (u64, Phases)> = BTreeMap::new();
    for row in rows {
        let row = row?;
        if row.pass != Pass::Traced {
            continue;
        }
        let phases = phases_of(&row).map(|phase| phase.unwrap_or(0));
        if joined(&row.trial) {
            let (step_ns, slowest) = steps.entry((row.trial, row.repeat, row.step)).or_default();
            *step_ns = row.step_ns.max(*step_ns);
            slowest
                .iter_mut()
                .zip(phases)
                .for_each(|(most, value)| *most = value.max(*most));
        } else {
            totals
                .entry(row.trial)
                .or_default()
                .add(row.repeat, row.step_ns, &phases);
        }
    }
    for ((trial, repeat, _), (step_ns, phases)) in steps {
        totals
            .entry(trial)
            .or_default()
            .add(repeat, step_ns, &phases);
    }
    Ok(totals)
}

/// The phase columns of a step in the order of [`PHASES`].
fn phases_of(row: &StepRow) -> [Option<u64>; PHASES.len()] {
    [
        row.data_ns,
        row.host_to_device_ns,
        row.scatter_ns,
        row.replicate_ns,
        row.buffer_broadcast_ns,
        row.forward_ns,
        row.gather_ns,
        row.loss_ns,
        row.scatter_gradients_ns,
        row.backward_ns,
        row.sync_batch_norm_ns,
        row.all_reduce_ns,
        row.reduce_scatter_ns,
        row.reduce_ns,
        row.wait_ns,
        row.optimizer_ns,
        row.all_gather_ns,
        row.zero_ns,
    ]
}
