//! Weak scaling beside strong scaling: the same ways to run one model, with work that grows and with work that is shared.
//!
//! Contract: one figure for every model that was run both ways. Both panels show efficiency against `single` on one
//! device with the same scaling's work, so 100 % is the same promise in both: N devices, N times the throughput.
use super::{
    WIDTH,
    axis::Area,
    canvas::{self, Anchor},
    legend::{self, Entry, Sign},
    palette::{Color, PANEL},
    panel::{Panel, Point, share_top},
    scaling::{efficiency_points, spread_words},
    series::{Facet, Series, dp_on_cpu, not_shown, series, slug},
};
use crate::{document::Figure, run_data::RunData};

const MARGIN: f64 = 16.0;
const PLOT_HEIGHT: f64 = 290.0;

/// The figures of all models that were run with both scalings.
pub fn weak_beside_strong(data: &RunData, facets: &[Facet<'_>]) -> Vec<Figure> {
    let of = |scaling: &'static str| {
        facets
            .iter()
            .filter(move |facet| facet.trials.iter().all(|trial| trial.scaling == scaling))
    };
    of("weak")
        .flat_map(|weak| of("strong").map(move |strong| (weak, strong)))
        .filter(|(weak, strong)| same_model(weak, strong))
        .filter_map(|(weak, strong)| figure(data, weak, strong))
        .collect()
}

fn same_model(weak: &Facet<'_>, strong: &Facet<'_>) -> bool {
    let key = |facet: &Facet<'_>| {
        let trial = facet.trials[0];
        (
            trial.model.clone(),
            trial.norm.clone(),
            trial.data.clone(),
            trial.backend.clone(),
        )
    };
    key(weak) == key(strong)
}

fn figure(data: &RunData, weak: &Facet<'_>, strong: &Facet<'_>) -> Option<Figure> {
    let mut all = series(weak);
    for other in series(strong) {
        if !all.iter().any(|known| known.name == other.name) {
            all.push(Series {
                trials: Vec::new(),
                ..other
            });
        }
    }
    let sides = [
        ("weak: work grows with N", weak),
        ("strong: work is shared", strong),
    ];
    let mut panels: Vec<(Panel<'_>, &Facet<'_>)> = sides
        .iter()
        .map(|(title, facet)| {
            let panel = Panel {
                title,
                axis: "efficiency (%)",
                points: points(data, facet, &all),
                top: 0.0,
                ideal: Some(Box::new(|_| 100.0)),
            };
            (panel, *facet)
        })
        .collect();
    let empty = |panel: &Panel<'_>| panel.points.iter().all(Vec::is_empty);
    if panels.iter().any(|(panel, _)| empty(panel)) {
        return None;
    }
    share_top(panels.iter_mut().map(|(panel, _)| panel));
    let title = "Weak beside strong scaling";
    let subtitle = both(&weak.title, &strong.title);
    let (svg, height) = draw(title, &subtitle, &all, &panels);
    let caption = format!(
        "Throughput over N times that of single on one device, within blocks. Weak: every device keeps its batch, and communication \
         stays what it is. Strong: the batch is shared, so each device computes less while the same gradients are exchanged. {}{}{}{}",
        spread_words(weak),
        dp_on_cpu(weak),
        not_shown(weak),
        not_shown(strong)
    );
    Some(Figure {
        name: format!("weak-strong-{}", slug(&weak.trials[0].model)),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// What two titles share, then what each has for itself: both whole would be longer than the chart is wide.
fn both(weak: &str, strong: &str) -> String {
    let parts = |title: &str| -> Vec<String> { title.split(" · ").map(str::to_owned).collect() };
    let (weak, strong) = (parts(weak), parts(strong));
    let own = |one: &[String], other: &[String]| -> String {
        let own = one.iter().filter(|part| !other.contains(part));
        own.cloned().collect::<Vec<_>>().join(" · ")
    };
    let shared: Vec<String> = weak
        .iter()
        .filter(|part| strong.contains(part))
        .cloned()
        .collect();
    let apart = format!("{} | {}", own(&weak, &strong), own(&strong, &weak));
    format!("{} · {apart}", shared.join(" · "))
}

/// The points of a facet in the order of `all`.
fn points(data: &RunData, facet: &Facet<'_>, all: &[Series<'_>]) -> Vec<Vec<Point>> {
    let own = series(facet);
    let mut points = efficiency_points(data, &own, true);
    all.iter()
        .map(|wanted| {
            own.iter()
                .position(|series| series.name == wanted.name)
                .map(|index| std::mem::take(&mut points[index]))
                .unwrap_or_default()
        })
        .collect()
}

fn draw(
    title: &str,
    subtitle: &str,
    all: &[Series<'_>],
    panels: &[(Panel<'_>, &Facet<'_>)],
) -> (String, u32) {
    let width = f64::from(WIDTH);
    let drawn = |index: usize| {
        panels
            .iter()
            .any(|(panel, _)| !panel.points[index].is_empty())
    };
    let mut entries: Vec<Entry> = all
        .iter()
        .enumerate()
        .filter(|(index, _)| drawn(*index))
        .map(|(_, series)| Entry::new(Sign::Series(series.marker, series.color), &series.name))
        .collect();
    entries.push(Entry::new(Sign::Dashes(Color::GREY), "100 %"));
    let trials = panels.iter().flat_map(|(_, facet)| &facet.trials);
    let spread = legend::spread(trials.copied());
    entries.push(Entry::new(Sign::Interval, spread));
    entries.push(Entry::new(Sign::Dot, "one repeat"));
    let top = legend::HEADING + legend::height(&entries, width - 2.0 * MARGIN) + 36.0;
    let height = (top + PLOT_HEIGHT + 56.0) as u32;
    let svg = canvas::draw(WIDTH, height, &format!("{title}: {subtitle}"), |canvas| {
        legend::heading(canvas, width, title, subtitle);
        legend::draw(
            canvas,
            MARGIN,
            legend::HEADING,
            width - 2.0 * MARGIN,
            &entries,
        );
        let share = (width - MARGIN) / panels.len() as f64;
        for (index, (panel, facet)) in panels.iter().enumerate() {
            let left = index as f64 * share + 80.0;
            let area = Area {
                left,
                top,
                right: (index + 1) as f64 * share - 6.0,
                bottom: top + PLOT_HEIGHT,
            };
            let middle = (area.left + area.right) / 2.0;
            canvas.text(middle, top - 14.0, panel.title, Anchor::Middle, PANEL);
            panel.paint(canvas, area, all, facet);
        }
    });
    (svg, height)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_two_titles_share_is_said_once() {
        let (weak, strong) = (
            "mlp · cpu · 8 samples a device · sgd",
            "mlp · cpu · 8 samples in all · sgd",
        );
        assert_eq!(
            super::both(weak, strong),
            "mlp · cpu · sgd · 8 samples a device | 8 samples in all"
        );
    }
}
