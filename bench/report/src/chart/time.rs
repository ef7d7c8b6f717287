//! Where a step's time goes: phases stacked, one bar a trial.
//!
//! Contract: the bar is made of what the compute track was busy with or waited for, from the traced pass alone, so it
//! adds up to the traced step. Communication that overlaps computation has a thinner bar below; only `wait` is exposed.
use syncmark_record::rows::TrialRow;

use super::{
    WIDTH,
    axis::tick_label,
    bars::{Bar, BarChart, Group, Segment},
    legend::{Entry, Sign},
    palette::{Color, Fill, PHASES, phase_fill, phase_name},
    series::{Facet, alert, dp_on_cpu, name, not_shown},
};
use crate::{
    document::Figure,
    format::{milliseconds, number, percent},
    phase_totals::PhaseTotals,
    run_data::RunData,
};

/// Phases on the communication track, which can overlap the others.
const OVERLAPPING: [&str; 5] = [
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "buffer_broadcast",
    "sync_batch_norm",
];
/// Shares of a step below this are not drawn apart.
const TOO_SMALL: f64 = 0.005;
/// Time of a step that no phase claims.
const REST: Fill = Fill::solid(Color(215, 215, 215));

/// Time by phase.
pub fn time_by_phase(data: &RunData, facet: &Facet<'_>) -> Option<Figure> {
    let shown: Vec<(&TrialRow, &PhaseTotals)> = facet
        .trials
        .iter()
        .filter(|trial| trial.outcome.has_figures())
        .filter_map(|trial| Some((*trial, data.phases.get(&trial.trial)?)))
        .filter(|(_, totals)| totals.steps > 0 && totals.phase_ns.iter().any(|&ns| ns > 0))
        .collect();
    if shown.is_empty() {
        return None;
    }
    let groups: Vec<Group> = shown
        .iter()
        .map(|(trial, totals)| group(trial, totals))
        .collect();
    let used = |fill: Fill| {
        groups
            .iter()
            .flat_map(|g| &g.bars)
            .flat_map(|b| &b.segments)
            .any(|s| s.fill == fill)
    };
    let mut legend: Vec<Entry> = PHASES
        .iter()
        .filter(|(_, fill)| used(*fill))
        .map(|(phase, fill)| Entry::new(Sign::Area(*fill), phase_name(phase)))
        .collect();
    if used(REST) {
        legend.push(Entry::new(
            Sign::Area(REST),
            "between phases (starts, joins)",
        ));
    }
    let title = "Time by phase";
    let axis = "time per step in the traced pass (ms)".into();
    let chart = BarChart {
        title: title.into(),
        subtitle: facet.title.clone(),
        axis,
        legend,
        groups,
    };
    let (svg, height) = chart.draw(tick_label);
    let caption = format!(
        "Mean over traced steps and ranks, with the means of the quickest and slowest repeat in brackets; of DP the slowest device of each phase, because DP joins its devices after each. This is the traced pass, a separate pass with spans recorded: {}. Headline figures do not \
         come from it. The thick bar is the compute track; a thin hatched bar below it is how long communication took on its own track, while \
         computation went on. Waiting is that of the compute track for communication that is not hidden and for ranks that are later: it is not \
         exposed communication, which is the difference to steps without synchronization and stands in the table.{}{}",
        slowdown_words(&shown),
        dp_on_cpu(facet),
        not_shown(facet)
    );
    Some(Figure {
        name: format!("time-{}", facet.slug),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

fn group(trial: &TrialRow, totals: &PhaseTotals) -> Group {
    let segment = |phase: &str| Segment {
        value: totals.mean_ms(phase),
        fill: phase_fill(phase),
    };
    let kept = |segments: Vec<Segment>| {
        segments
            .into_iter()
            .filter(|s| s.value > 0.0)
            .collect::<Vec<_>>()
    };
    let blocking = PHASES
        .iter()
        .map(|(phase, _)| *phase)
        .filter(|phase| !OVERLAPPING.contains(phase));
    let mut main = kept(blocking.map(segment).collect());
    let rest = totals.step_ms() - main.iter().map(|s| s.value).sum::<f64>();
    if rest > TOO_SMALL * totals.step_ms() {
        main.push(Segment {
            value: rest,
            fill: REST,
        });
    }
    let overlapping = kept(OVERLAPPING.into_iter().map(segment).collect());
    let mut bars = vec![Bar {
        label: String::new(),
        segments: main,
        note: match totals.range_ms() {
            Some([low, high]) => format!(
                "{} [{}, {}]",
                milliseconds(totals.step_ms()),
                number(low),
                number(high)
            ),
            None => milliseconds(totals.step_ms()),
        },
        height: 18.0,
    }];
    let total: f64 = overlapping.iter().map(|s| s.value).sum();
    if total > TOO_SMALL * totals.step_ms() {
        let note = format!("communication {}", milliseconds(total));
        bars.push(Bar {
            label: String::new(),
            segments: overlapping,
            note,
            height: 9.0,
        });
    }
    Group {
        label: name(trial),
        alert: alert(trial),
        bars,
    }
}

/// Says how much slower steps were while they were traced.
fn slowdown_words(shown: &[(&TrialRow, &PhaseTotals)]) -> String {
    let mut slowdowns: Vec<f64> = shown
        .iter()
        .filter_map(|(trial, _)| trial.tracing_slowdown)
        .collect();
    slowdowns.sort_by(f64::total_cmp);
    match (slowdowns.first(), slowdowns.last()) {
        (Some(low), Some(high)) if percent(*low) == percent(*high) => {
            format!("its steps took {} of the window's", percent(*low))
        }
        (Some(low), Some(high)) => {
            format!(
                "its steps took between {} and {} of the window's",
                percent(*low),
                percent(*high)
            )
        }
        _ => "its slowdown was not recorded".into(),
    }
}
