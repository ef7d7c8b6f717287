//! One traced step on a time axis: a row for every rank and track.
//!
//! Contract: spans of one step of one repeat, on the recorded clock, shifted so that the earliest starts at 0. Trials
//! of a facet share the axis, so lengths compare across panels.
use syncmark_record::rows::{PhaseRow, TrialRow};

use super::{
    WIDTH,
    axis::{Area, Scale, horizontal, tick_label},
    canvas::{self, Anchor, Canvas, Type, text_width},
    legend::{self, Entry, Sign},
    palette::{ALERT, Color, Fill, PANEL, PHASES, SMALL, phase_fill, phase_name},
    series::{Facet, alert, dp_on_cpu, name},
};
use crate::{document::Figure, run_data::RunData};

const MARGIN: f64 = 16.0;
const LANE: f64 = 17.0;
const LANE_GAP: f64 = 3.0;
const PANEL_TITLE: f64 = 22.0;
const PANEL_GAP: f64 = 10.0;

/// The spans of one rank (or device) and track.
struct Lane<'a> {
    label: String,
    spans: Vec<&'a PhaseRow>,
    /// Where its time starts.
    zero_ns: u64,
}

struct Panel<'a> {
    trial: &'a TrialRow,
    lanes: Vec<Lane<'a>>,
    /// Length of the longest lane.
    length_ns: u64,
}

/// The timelines of the facet's trials on the most devices.
pub fn timeline(data: &RunData, facet: &Facet<'_>) -> Option<Figure> {
    let traced = |trial: &&&TrialRow| {
        trial.outcome.has_figures() && data.timelines.contains_key(&trial.trial)
    };
    let most = facet
        .trials
        .iter()
        .filter(traced)
        .map(|trial| trial.devices)
        .max()?;
    let panels: Vec<Panel<'_>> = facet
        .trials
        .iter()
        .filter(|trial| trial.devices == most)
        .filter(traced)
        .filter_map(|trial| panel(trial, &data.timelines[&trial.trial]))
        .collect();
    let longest = panels.iter().map(|panel| panel.length_ns).max()? as f64 / 1e6;
    let used = |phase: &str| {
        panels
            .iter()
            .flat_map(|p| &p.lanes)
            .flat_map(|l| &l.spans)
            .any(|s| s.phase == phase)
    };
    let entries: Vec<Entry> = PHASES
        .iter()
        .filter(|(phase, _)| used(phase))
        .map(|(phase, fill)| Entry::new(Sign::Area(*fill), phase_name(phase)))
        .collect();
    let width = f64::from(WIDTH);
    let top = legend::HEADING + legend::height(&entries, width - 2.0 * MARGIN) + 6.0;
    let rows: f64 = panels.iter().map(Panel::height).sum();
    let height = (top + rows + 48.0).ceil() as u32;
    let title = "Timeline of one step";
    let svg = canvas::draw(
        WIDTH,
        height,
        &format!("{title}: {}", facet.title),
        |canvas| {
            legend::heading(canvas, width, title, &facet.title);
            legend::draw(
                canvas,
                MARGIN,
                legend::HEADING,
                width - 2.0 * MARGIN,
                &entries,
            );
            let lanes = panels.iter().flat_map(|panel| &panel.lanes);
            let labels = lanes
                .map(|lane| text_width(&lane.label, SMALL))
                .fold(0.0, f64::max);
            let area = Area {
                left: MARGIN + labels + 10.0,
                top,
                right: width - MARGIN,
                bottom: top + rows,
            };
            let x = horizontal(
                canvas,
                area,
                longest,
                "time since the step's first span (ms)",
                tick_label,
            );
            // Titles stand on paper, before the grid and not across it; so do the gaps between panels.
            let mut y = top;
            for panel in &panels {
                // Above the first panel stands the legend.
                let gap = if y > top { PANEL_GAP } else { 0.0 };
                canvas.rect(
                    0.0,
                    y - gap,
                    area.right + 2.0,
                    gap + PANEL_TITLE,
                    Fill::solid(Color::WHITE),
                );
                y += panel.height();
            }
            let mut y = top;
            for panel in &panels {
                panel.paint(canvas, y, area, &x);
                y += panel.height();
            }
        },
    );
    let caption = format!(
        "One traced step of each trial on {most} device{}, of the first repeat the one of median length, per rank and track. Numbers on \
         communication spans are DDP buckets, in launch order. Where communication lies under backward it is hidden; waiting on \
         the compute track is for what is left of it, or for a rank that is later. Independent replicas run freely, so each starts at its own zero.{}",
        if most == 1 { "" } else { "s" },
        dp_on_cpu(facet)
    );
    Some(Figure {
        name: format!("timeline-{}", facet.slug),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

fn panel<'a>(trial: &'a TrialRow, spans: &'a [PhaseRow]) -> Option<Panel<'a>> {
    let start_ns = spans.iter().map(|span| span.start_ns).min()?;
    // Ranks that never meet drift apart; a common zero would show when they were started and nothing else.
    let free_running = trial.strategy == "independent";
    let zero_of = |rank: u32| {
        spans
            .iter()
            .filter(|span| span.rank == rank)
            .map(|span| span.start_ns)
            .min()
    };
    let mut lanes: Vec<Lane<'a>> = Vec::new();
    for span in spans {
        let label = lane_label(trial, span);
        let zero_ns = if free_running {
            zero_of(span.rank).unwrap_or(start_ns)
        } else {
            start_ns
        };
        match lanes.iter_mut().find(|lane| lane.label == label) {
            Some(lane) => lane.spans.push(span),
            None => lanes.push(Lane {
                label,
                spans: vec![span],
                zero_ns,
            }),
        }
    }
    lanes.sort_by_key(|lane| {
        (
            lane.spans[0].rank,
            lane.spans[0].device,
            lane.spans[0].track == "communication",
        )
    });
    let length = |lane: &Lane<'_>| {
        lane.spans
            .iter()
            .map(|span| span.end_ns.saturating_sub(lane.zero_ns))
            .max()
    };
    let length_ns = lanes.iter().filter_map(length).max()?;
    Some(Panel {
        trial,
        lanes,
        length_ns,
    })
}

/// DP has one rank with several devices; everything else has a device a rank. What the host does before computation
/// starts (waiting for data) stands on the lane of the computation that waits for it.
fn lane_label(trial: &TrialRow, span: &PhaseRow) -> String {
    let (noun, index) = if trial.strategy == "dp" {
        ("device", span.device)
    } else {
        ("rank", span.rank)
    };
    let track = if span.track == "host" {
        "compute"
    } else {
        &span.track
    };
    format!("{noun} {index} {track}")
}

impl Panel<'_> {
    fn height(&self) -> f64 {
        PANEL_TITLE + self.lanes.len() as f64 * (LANE + LANE_GAP) + PANEL_GAP
    }

    fn paint(&self, canvas: &mut Canvas<'_>, top: f64, area: Area, x: &Scale) {
        let title = name(self.trial);
        canvas.text(MARGIN, top + 12.0, &title, Anchor::Start, PANEL);
        canvas.text(
            MARGIN + text_width(&title, PANEL) + 12.0,
            top + 12.0,
            &alert(self.trial),
            Anchor::Start,
            ALERT,
        );
        let mut y = top + PANEL_TITLE;
        for lane in &self.lanes {
            canvas.text(
                area.left - 8.0,
                y + LANE / 2.0,
                &lane.label,
                Anchor::End,
                SMALL,
            );
            for span in &lane.spans {
                let at = |ns: u64| x.at(ns.saturating_sub(lane.zero_ns) as f64 / 1e6);
                paint_span(
                    canvas,
                    (at(span.start_ns), at(span.end_ns.max(span.start_ns))),
                    y,
                    span,
                );
            }
            y += LANE + LANE_GAP;
        }
    }
}

fn paint_span(canvas: &mut Canvas<'_>, (left, right): (f64, f64), y: f64, span: &PhaseRow) {
    // A span shorter than half a pixel would vanish; it is drawn half a pixel wide.
    let width = (right - left).max(0.5);
    let fill = phase_fill(&span.phase);
    canvas.rect(left, y, width, LANE, fill);
    if width > 2.0 {
        canvas.outline(left, y, width, LANE, Color::WHITE, 0.6);
    }
    if let Some(bucket) = span.bucket {
        let label = bucket.to_string();
        let look = Type {
            size: 9.5,
            bold: true,
            color: Color::BLACK,
        };
        let needed = text_width(&label, look);
        if width > needed + 5.0 {
            let middle = left + width / 2.0;
            let back = Fill::solid(Color::WHITE);
            canvas.rect(
                middle - needed / 2.0 - 2.0,
                y + 3.0,
                needed + 4.0,
                LANE - 6.0,
                back,
            );
            canvas.text(middle, y + LANE / 2.0, &label, Anchor::Middle, look);
        }
    }
}
