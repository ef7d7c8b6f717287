//! What each node of a model costs, forward and backward, as bars.
//!
//! Contract: the median over repeats of a repeat's median call; the share is that of all nodes together. The bars of a
//! chart are the nodes of one model; what of a step they are says the table beside them. Where ceilings were measured, the solid
//! part of a bar is the time that the work would take at the ceiling; what took less is solid to its end, and its share is
//! written all the same.
use syncmark_record::rows::TrialRow;

use super::{
    WIDTH,
    axis::tick_label,
    bars::{Bar, BarChart, Group, Segment},
    legend::{Entry, Sign},
    palette::{Color, Fill, Hatch},
    series::alert,
};
use crate::{
    document::Figure,
    format,
    nodes::{Held, NodeCost, nodes},
    norm_cost::norm_of,
    run_data::RunData,
};

/// Nodes that are drawn one by one; the cheapest of a longer model are one bar together.
const SHOWN: usize = 40;

/// What a trial of this kind is about: `resnet20, batch norm, 32 samples`.
pub fn subject(trial: &TrialRow) -> String {
    let norm = match trial.norm.as_str() {
        "none" => "no norm".to_owned(),
        _ => format!("{} norm", norm_of(trial)),
    };
    let samples = format::count(trial.global_batch as usize, "sample");
    format!("{}, {norm}, {samples}", trial.model)
}

/// One figure a trial of kind `layer-cost`.
pub fn layers(data: &RunData) -> Vec<Figure> {
    data.trials
        .iter()
        .filter(|trial| trial.kind == "layer-cost" && trial.outcome.has_figures())
        .filter_map(|trial| figure(data, trial))
        .collect()
}

/// What a caption says of shares.
const SHARES: &str = " The solid part of a bar is what the work would take at the ceiling that bounds it (operations over the peak of \
multiply-adds for conv2d and linear, fewest bytes over the bandwidth of memory for all others), the hatched part is beyond it. Shares behind \
the bars are forward / backward; more than 100 %: the data came from a cache.";

fn figure(data: &RunData, trial: &TrialRow) -> Option<Figure> {
    let mut costs = nodes(data, trial);
    let total: f64 = costs.iter().map(NodeCost::total).sum();
    if total <= 0.0 {
        return None;
    }
    let held = costs.iter().any(|cost| cost.lost().is_some());
    let rest = cheapest(&mut costs);
    let mut groups: Vec<Group> = costs.iter().map(|cost| group(cost, total)).collect();
    if let Some((count, time)) = rest {
        groups.push(Group {
            label: format!("{count} cheaper nodes"),
            alert: String::new(),
            bars: vec![bar(
                &[(time, Fill::solid(Color::SILVER))],
                note(time, total),
            )],
        });
    }
    let title = format!("Time by node, {}", trial.model);
    let subtitle = [subject(trial), trial.backend.clone(), alert(trial)];
    let words: Vec<String> = subtitle.into_iter().filter(|w| !w.is_empty()).collect();
    let area = |fill, name: &str| Entry::new(Sign::Area(fill), name);
    let (forward, backward) = (Color::SKY, Color::BLUE);
    let mut legend = vec![
        area(Fill::solid(forward), "forward"),
        area(Fill::solid(backward), "backward"),
    ];
    if held {
        let words = ["forward beyond its ceiling", "backward beyond its ceiling"];
        legend.insert(1, area(beyond(forward), words[0]));
        legend.push(area(beyond(backward), words[1]));
    }
    let chart = BarChart {
        title: title.clone(),
        subtitle: words.join(" · "),
        axis: "time of a call (µs)".into(),
        legend,
        groups,
    };
    let (svg, height) = chart.draw(tick_label);
    let caption = format!(
        "Each node was timed within whole steps, in the order of the program: median call, median over {}, with the smallest and largest \
         repeat in brackets and the share of all nodes. A time includes one reading of the clock.{}",
        format::count(trial.repeats as usize, "repeat"),
        if held { SHARES } else { "" }
    );
    Some(Figure {
        name: format!("layers-{}", super::series::slug(&trial.label)),
        title,
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// How the part of a bar is filled that a ceiling does not explain.
fn beyond(color: Color) -> Fill {
    Fill::hatched(color, Hatch::Rising)
}

/// Takes the cheapest nodes out of a long model: how many, and their time.
fn cheapest(costs: &mut Vec<NodeCost>) -> Option<(usize, f64)> {
    if costs.len() <= SHOWN {
        return None;
    }
    let mut totals: Vec<f64> = costs.iter().map(NodeCost::total).collect();
    totals.sort_by(|a, b| b.total_cmp(a));
    let least = totals[SHOWN - 1];
    let (mut count, mut time) = (0, 0.0);
    costs.retain(|cost| {
        let keep = cost.total() >= least;
        if !keep {
            count += 1;
            time += cost.total();
        }
        keep
    });
    (count > 0).then_some((count, time))
}

/// A direction's time: what it would take at its ceiling, and what is beyond.
fn parts(time: Option<[f64; 3]>, held: &Held, color: Color) -> Vec<(f64, Fill)> {
    let ns = time.map_or(0.0, |time| time[0]);
    match held.lost {
        None => vec![(ns, Fill::solid(color))],
        // Those that are executed within it are in what it lost, but not in its own bar.
        Some(lost) => {
            let lost = lost.clamp(0.0, ns);
            vec![(ns - lost, Fill::solid(color)), (lost, beyond(color))]
        }
    }
}

fn group(cost: &NodeCost, total: f64) -> Group {
    let segments = [
        parts(cost.forward, &cost.held_forward, Color::SKY),
        parts(cost.backward, &cost.held_backward, Color::BLUE),
    ]
    .concat();
    let ends = |index: usize| -> f64 {
        [cost.forward, cost.backward]
            .iter()
            .flatten()
            .map(|time| time[index])
            .sum()
    };
    let spread = format!(
        "{} [{}, {}]{}",
        note(cost.total(), total),
        format::significant(ends(1) / 1e3, 3),
        format::significant(ends(2) / 1e3, 3),
        shares(cost)
    );
    Group {
        label: format!("{} {}", cost.node, cost.name),
        alert: String::new(),
        bars: vec![bar(&segments, spread)],
    }
}

/// `; 61 % / 48 % of ceiling`, forward and backward.
fn shares(cost: &NodeCost) -> String {
    if let Some(leader) = cost.within {
        return format!("; in node {leader}");
    }
    let share =
        |held: &Held| format::or_dash(held.share, |[share, ..]| format!("{:.0} %", share * 100.0));
    match cost.lost() {
        None => String::new(),
        Some(_) => format!(
            "; {} / {} of ceiling",
            share(&cost.held_forward),
            share(&cost.held_backward)
        ),
    }
}

fn bar(segments: &[(f64, Fill)], note: String) -> Bar {
    Bar {
        label: String::new(),
        segments: segments
            .iter()
            .map(|(ns, fill)| Segment {
                value: ns / 1e3,
                fill: *fill,
            })
            .collect(),
        note,
        height: 12.0,
    }
}

fn note(ns: f64, total: f64) -> String {
    format!(
        "{} µs, {}",
        format::significant(ns / 1e3, 3),
        format::percent(ns / total)
    )
}
