//! What norms cost of a step, as bars: forward and backward, up to what memory's bandwidth explains and beyond.
//!
//! Contract: one figure a model and batch; a bar is a norm, in the order of the trials. Its length is the time of all norms of a
//! step on one device, with what their kernels do beside it; the solid parts are what the bytes would take at the ceiling.
use super::{
    WIDTH,
    axis::tick_label,
    bars::{Bar, BarChart, Group, Segment},
    legend::{Entry, Sign},
    palette::{Color, Fill, Hatch},
    series::{alert, slug},
};
use crate::{
    document::Figure,
    format::{count, estimated, or_dash, percent, ratio, significant},
    norm_cost::{Direction, NormCost, by_model, norm_costs, norm_of},
    run_data::RunData,
    stats::Estimate,
};

/// One figure for each model, batch and precision whose norms were timed.
pub fn norm_cost(data: &RunData) -> Vec<Figure> {
    let costs = norm_costs(data);
    let precision = |cost: &NormCost<'_>| cost.trial.precision.clone();
    let several = costs
        .iter()
        .any(|cost| precision(cost) != precision(&costs[0]));
    let figure = |costs: &[NormCost<'_>]| figure(costs, several);
    by_model(&costs).filter_map(figure).collect()
}

/// With `several` precisions in the run, the figure's name has its own.
fn figure(costs: &[NormCost<'_>], several: bool) -> Option<Figure> {
    let groups: Vec<Group> = costs
        .iter()
        .filter(|cost| cost.nodes > 0)
        .map(group)
        .collect();
    let first = costs[0].trial;
    if groups.is_empty() {
        return None;
    }
    let (forward, backward) = (Color::SKY, Color::BLUE);
    let area = |fill, name: &str| Entry::new(Sign::Area(fill), name);
    let beyond = |color| Fill::hatched(color, Hatch::Rising);
    let held = costs.iter().any(|cost| cost.forward.share.is_some());
    let mut legend = vec![area(Fill::solid(forward), "forward")];
    if held {
        legend.push(area(beyond(forward), "forward beyond its ceiling"));
    }
    legend.push(area(Fill::solid(backward), "backward"));
    if held {
        legend.push(area(beyond(backward), "backward beyond its ceiling"));
    }
    let title = format!("Time of norms in a step, {}", first.model);
    let samples = count(first.global_batch as usize, "sample");
    let chart = BarChart {
        title: title.clone(),
        subtitle: match &first.precision {
            Some(precision) => format!(
                "{}, {samples}, one device, {} in {precision}",
                first.model, first.backend
            ),
            None => format!("{}, {samples}, one device, {}", first.model, first.backend),
        },
        axis: "time of all norms in a step (ms)".into(),
        legend,
        groups,
    };
    let (svg, height) = chart.draw(tick_label);
    let caption = format!(
        "All norms of a step, timed within whole steps, with the rectifiers and additions that their kernels do: {}. Behind a bar: its time, its share of the \
         step, the share of memory's bandwidth forward / backward, and the whole step over one without norms. The solid part of a bar is what its bytes would take at \
         that bandwidth.{}",
        spread_words(costs),
        above_words(costs)
    );
    let name = format!("norm-cost-{}-{}", slug(&first.model), first.global_batch);
    Some(Figure {
        name: match &first.precision {
            Some(precision) if several => format!("{name}-{precision}"),
            _ => name,
        },
        title,
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// What a share above the ceiling is, where there is one: such a bar has no part beyond.
fn above_words(costs: &[NormCost<'_>]) -> &'static str {
    let directions = costs
        .iter()
        .flat_map(|cost| [&cost.forward, &cost.backward]);
    let above = |direction: &Direction| direction.share.is_some_and(|share| share.value > 1.0);
    match directions.into_iter().any(above) {
        true => {
            " A share above 100 % (marked ↑) is no speed of memory: values were still in a cache, or more of them were read than written, which costs less than \
             the ceiling's equal halves."
        }
        false => "",
    }
}

/// What the brackets are.
fn spread_words(costs: &[NormCost<'_>]) -> String {
    let repeats = costs.iter().map(|cost| cost.trial.repeats).max();
    match costs[0].trial.spread.as_deref() {
        Some("interval") => format!(
            "medians over {}, with 95 % intervals in brackets",
            count(repeats.unwrap_or(0) as usize, "repeat")
        ),
        _ => format!(
            "medians over {}, with the smallest and largest in brackets",
            count(repeats.unwrap_or(0) as usize, "repeat")
        ),
    }
}

fn group(cost: &NormCost<'_>) -> Group {
    let parts = |direction: &Direction, color| {
        let time = direction.time.map_or(0.0, |time| time.value);
        let solid = direction.at_ceiling.unwrap_or(time).min(time);
        let segment = |value, fill| Segment { value, fill };
        [
            segment(solid, Fill::solid(color)),
            segment(time - solid, Fill::hatched(color, Hatch::Rising)),
        ]
    };
    let segments = [
        parts(&cost.forward, Color::SKY),
        parts(&cost.backward, Color::BLUE),
    ]
    .concat();
    let total = |of: fn(&Estimate) -> f64| -> f64 {
        let both = [cost.forward.time, cost.backward.time];
        both.iter().flatten().map(of).sum()
    };
    let share = |direction: &Direction| {
        or_dash(direction.share, |share| {
            let mark = if share.value > 1.0 { " ↑" } else { "" };
            format!("{:.0} %{mark}", share.value * 100.0)
        })
    };
    let beside = cost.beside_none.map_or(String::new(), |e| {
        format!("; step {}", estimated(Some(e), ratio))
    });
    let note = format!(
        "{} ms, {}; {} / {}{beside}",
        significant(total(|e| e.value), 3),
        or_dash(cost.of_step, |share| percent(share.value)),
        share(&cost.forward),
        share(&cost.backward)
    );
    Group {
        label: format!("{} norm", norm_of(cost.trial)),
        alert: alert(cost.trial),
        bars: vec![Bar {
            label: String::new(),
            segments,
            note,
            height: 14.0,
        }],
    }
}
