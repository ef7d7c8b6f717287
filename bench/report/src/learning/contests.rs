//! Which trials are held against which: norms in pairs that share all but the norm and what it takes together.
use syncmark_record::rows::TrialRow;

use super::{Learned, comparable};

/// A trial, and the one that it is held against.
pub type Pair<'a, 'b> = (&'b Learned<'a>, &'b Learned<'a>);

/// A norm, and the norm that its trials are held against.
#[derive(Clone, Debug)]
pub struct Contest<'a, 'b> {
    /// The norm.
    pub own: &'static str,
    /// The other one.
    pub baseline: &'static str,
    /// Trials of the first, each beside the one of the other that it can be compared with; never none.
    pub pairs: Vec<Pair<'a, 'b>>,
}

/// What can be held against what: batch norm and synchronized batch norm each against group norm, or, in a run without it, layer norm; the
/// synchronized one against the other where each device has as many samples; and last, the norms without batch statistics against that same norm.
pub fn contests<'a, 'b>(all: &'b [Learned<'a>]) -> Vec<Contest<'a, 'b>> {
    type Also = fn(&TrialRow, &TrialRow) -> bool;
    let shared = comparable(all);
    let has_group = all.iter().any(|learned| learned.trial.norm == "group");
    let still = if has_group { "group" } else { "layer" };
    let any: Also = |_, _| true;
    let same_devices: Also = |own, other| {
        let on_a_device = other.normalization_batch;
        on_a_device.map(|batch| batch * u64::from(own.devices)) == own.normalization_batch
    };
    let contest = |(own, baseline, also): (&'static str, &'static str, Also)| {
        let other = |trial: &TrialRow| {
            all.iter().find(|other| {
                let other = other.trial;
                other.norm == baseline && shared(other) == shared(trial) && also(trial, other)
            })
        };
        let pairs: Vec<_> = all
            .iter()
            .filter(|learned| learned.trial.norm == own)
            .filter_map(|learned| Some((learned, other(learned.trial)?)))
            .collect();
        (!pairs.is_empty()).then_some(Contest {
            own,
            baseline,
            pairs,
        })
    };
    let by_batch = [
        ("batch", still, any),
        ("sync-batch", "batch", same_devices),
        ("sync-batch", still, any),
    ];
    let others = ["none", "layer", "instance", "rms"];
    let others = others.into_iter().filter(|own| *own != still);
    by_batch
        .into_iter()
        .chain(others.map(|own| (own, still, any)))
        .filter_map(contest)
        .collect()
}

impl Contest<'_, '_> {
    /// Whether the norm has statistics of batches.
    pub fn by_batch(&self) -> bool {
        matches!(self.own, "batch" | "sync-batch")
    }
}
