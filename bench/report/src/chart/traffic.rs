//! Bytes by phase and direction through device 0, predicted beside counted.
//!
//! Contract: bytes per step of rank (for DP: device) 0, which carries the most under DP and as much as any under DDP.
//! Counted are bytes at our own copies, predicted is the formula of the named algorithm over its actual chunks, and
//! measured is a counter that is not ours, where there is one.
use std::collections::BTreeMap;

use syncmark_record::rows::{CommRow, TrialRow};

use super::{
    WIDTH,
    axis::nice_step,
    bars::{Bar, BarChart, Group, Segment},
    legend::{Entry, Sign},
    palette::{PHASES, phase_name},
    series::{Facet, alert, dp_on_cpu, name, not_shown},
};
use crate::{document::Figure, format, run_data::RunData};

/// Bytes per step of one phase through one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PhaseBytes {
    /// Counted, out of the rank; `None` where that cannot be counted.
    pub sent: Option<f64>,
    /// Counted, into it.
    pub received: Option<f64>,
    /// Predicted, out; `None` where a row has no prediction.
    pub predicted_sent: Option<f64>,
    /// Predicted, in.
    pub predicted_received: Option<f64>,
    /// Independent counter, out.
    pub measured_sent: Option<f64>,
    /// Whether counted equals predicted in both directions, to the byte in every row; `None` without predictions.
    pub agrees: Option<bool>,
}

impl PhaseBytes {
    /// Whether the phase moved nothing and was not expected to: a barrier has no payload.
    fn nothing(&self) -> bool {
        let expected = self.predicted_sent.unwrap_or(0.0) + self.predicted_received.unwrap_or(0.0);
        let counted = self.sent.zip(self.received);
        counted.is_some_and(|(sent, received)| sent + received + expected == 0.0)
    }

    /// Whether a library moved it out of sight, or it was counted as predicted.
    fn is_uncounted_or_agrees(&self) -> bool {
        self.sent.is_none() || self.agrees == Some(true)
    }

    /// Whether bytes of it were counted.
    fn moved(&self) -> bool {
        self.sent.unwrap_or(0.0) + self.received.unwrap_or(0.0) > 0.0
    }
}

/// Bytes per step by phase: of one rank, or with `None` over all ranks. The mean over repeats.
pub fn bytes_by_phase(
    comm: &[CommRow],
    trial: &str,
    rank: Option<u32>,
) -> BTreeMap<String, PhaseBytes> {
    let rows: Vec<&CommRow> = comm
        .iter()
        .filter(|c| c.trial == trial && c.steps > 0)
        .collect();
    let mut repeats: Vec<u32> = rows.iter().map(|c| c.repeat).collect();
    repeats.sort_unstable();
    repeats.dedup();
    let mut phases: BTreeMap<String, Vec<&CommRow>> = BTreeMap::new();
    for row in rows
        .into_iter()
        .filter(|row| rank.is_none_or(|rank| row.rank == rank))
    {
        phases.entry(row.phase.clone()).or_default().push(row);
    }
    let per_step = |rows: &[&CommRow], bytes: fn(&CommRow) -> Option<u64>| -> Option<f64> {
        let sums = rows
            .iter()
            .map(|row| Some(bytes(row)? as f64 / row.steps as f64));
        Some(sums.sum::<Option<f64>>()? / repeats.len() as f64)
    };
    let fold = |rows: Vec<&CommRow>| PhaseBytes {
        sent: per_step(&rows, |c| c.sent_bytes),
        received: per_step(&rows, |c| c.received_bytes),
        predicted_sent: per_step(&rows, |c| c.predicted_sent_bytes),
        predicted_received: per_step(&rows, |c| c.predicted_received_bytes),
        measured_sent: per_step(&rows, |c| c.measured_sent_bytes),
        agrees: agrees(&rows),
    };
    phases
        .into_iter()
        .map(|(phase, rows)| (phase, fold(rows)))
        .filter(|(_, bytes)| !bytes.nothing())
        .collect()
}

/// Compares row by row: over ranks and sizes a call of the wrong size could make up for one that never came.
fn agrees(rows: &[&CommRow]) -> Option<bool> {
    let equal = |row: &&CommRow| {
        let (sent, received) = (row.predicted_sent_bytes?, row.predicted_received_bytes?);
        Some(sent == row.sent_bytes? && received == row.received_bytes?)
    };
    rows.iter()
        .map(equal)
        .try_fold(true, |all, equal| Some(all & equal?))
}

/// Phases in the order of a step, unknown ones last.
pub fn phase_order(phase: &str) -> usize {
    PHASES
        .iter()
        .position(|(known, _)| *known == phase)
        .unwrap_or(usize::MAX)
}

/// The chart of a facet's bytes.
pub fn bytes(data: &RunData, facet: &Facet<'_>) -> Option<Figure> {
    let shown: Vec<(&TrialRow, BTreeMap<String, PhaseBytes>)> = facet
        .trials
        .iter()
        .filter(|trial| trial.outcome.has_figures())
        .map(|trial| (*trial, bytes_by_phase(&data.comm, &trial.trial, Some(0))))
        .filter(|(_, phases)| phases.values().any(PhaseBytes::moved))
        .collect();
    if shown.is_empty() {
        return None;
    }
    let groups: Vec<Group> = shown
        .iter()
        .map(|(trial, phases)| group(trial, phases))
        .collect();
    let occurs = |phase: &str| shown.iter().any(|(_, phases)| phases.contains_key(phase));
    let legend = PHASES
        .iter()
        .filter(|(phase, _)| occurs(phase))
        .map(|(phase, fill)| Entry::new(Sign::Area(*fill), phase_name(phase)))
        .collect();
    let title = "Bytes by phase and direction";
    let longest = groups
        .iter()
        .flat_map(|g| &g.bars)
        .map(|b| b.segments.iter().map(|s| s.value).sum::<f64>())
        .fold(0.0, f64::max);
    let (divisor, unit) = unit(longest);
    let axis = format!("bytes per step through device 0 ({unit})");
    let chart = BarChart {
        title: title.into(),
        subtitle: facet.title.clone(),
        axis,
        legend,
        groups,
    };
    let (svg, height) =
        chart.draw(|tick, step| super::axis::tick_label(tick / divisor, step / divisor));
    let measured = shown
        .iter()
        .any(|(_, phases)| phases.values().any(|phase| phase.measured_sent.is_some()));
    let over_nccl = shown
        .iter()
        .any(|(trial, _)| trial.transport.as_deref() == Some("nccl"));
    let counter = if measured {
        "measured is a counter that is not ours."
    } else if over_nccl {
        "There is no independent counter of what is exchanged here."
    } else {
        "Ranks here exchange bytes in shared memory or by copies, for which there is no independent counter."
    };
    let uncounted = shown
        .iter()
        .any(|(_, phases)| phases.values().any(|phase| phase.sent.is_none()));
    let uncounted = if uncounted {
        " What NCCL moves is not counted: it is in the prediction alone, by its ring with the devices in their order."
    } else {
        ""
    };
    let caption = format!(
        "What device 0 sends and receives in a step. counted is taken at our own copies; predicted sums the actual chunks of the \
         named algorithm; they must agree to the byte, and a trial where they do not is named under its bars. {counter}{uncounted}{}{}",
        dp_on_cpu(facet),
        not_shown(facet)
    );
    Some(Figure {
        name: format!("bytes-{}", facet.slug),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// The decimal unit of an axis that reaches to `high` bytes.
fn unit(high: f64) -> (f64, &'static str) {
    let top = nice_step(high, 1);
    [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")]
        .into_iter()
        .find(|(size, _)| top >= *size)
        .unwrap_or((1.0, "B"))
}

/// Name of a direction, and how to read its counted and predicted bytes.
type Direction = (
    &'static str,
    fn(&PhaseBytes) -> Option<f64>,
    fn(&PhaseBytes) -> Option<f64>,
);

fn group(trial: &TrialRow, phases: &BTreeMap<String, PhaseBytes>) -> Group {
    let ordered = || {
        PHASES
            .iter()
            .filter_map(|(phase, fill)| Some((*fill, phases.get(*phase)?)))
    };
    let segments = |bytes: &dyn Fn(&PhaseBytes) -> Option<f64>| -> Vec<Segment> {
        ordered()
            .map(|(fill, phase)| Segment {
                value: bytes(phase).unwrap_or(0.0),
                fill,
            })
            .filter(|s| s.value > 0.0)
            .collect()
    };
    let predicted = |bytes: &dyn Fn(&PhaseBytes) -> Option<f64>| -> Option<f64> {
        ordered().map(|(_, phase)| bytes(phase)).sum()
    };
    let total = |segments: &[Segment]| segments.iter().map(|s| s.value).sum::<f64>();
    // Equal to the byte, which a comparison of rounded means could not say.
    let equal = phases.values().all(|phase| phase.agrees == Some(true));
    let counted_agrees = phases.values().all(PhaseBytes::is_uncounted_or_agrees);
    let mut bars = Vec::new();
    let directions: [Direction; 2] = [
        ("sent", |p| p.sent, |p| p.predicted_sent),
        ("received", |p| p.received, |p| p.predicted_received),
    ];
    for (direction, counted, forecast) in directions {
        let pieces = segments(&counted);
        let sum = total(&pieces);
        bars.push(Bar {
            label: format!("{direction}, counted"),
            segments: pieces,
            note: format::bytes(sum),
            height: 13.0,
        });
        let Some(expected) = predicted(&forecast) else {
            continue;
        };
        let pieces = segments(&forecast);
        let verdict = if equal {
            "equal".into()
        } else if counted_agrees {
            format!("{} with what is not counted", format::bytes(expected))
        } else {
            format!("differs: {}", format::bytes(expected))
        };
        bars.push(Bar {
            label: "predicted".into(),
            segments: pieces,
            note: verdict,
            height: 9.0,
        });
    }
    if let Some(measured) = predicted(&|phase| phase.measured_sent) {
        let pieces = segments(&|phase| phase.measured_sent);
        bars.push(Bar {
            label: "sent, measured".into(),
            segments: pieces,
            note: format::bytes(measured),
            height: 9.0,
        });
    }
    Group {
        label: name(trial),
        alert: alert(trial),
        bars,
    }
}
