//! How far statistics of batches are from the stored ones, by depth and normalization batch: a heat map of each noise.
//!
//! Contract: each cell is a median over finished repeats and carries its number, so that colour is never all there is; colours are
//! logarithmic between the smallest and the largest cell.
use std::collections::BTreeMap;

use syncmark_record::rows::NormStatisticsRow;

use super::{
    WIDTH,
    canvas::{self, Anchor, Canvas},
    legend,
    palette::{Color, Fill, LABEL, PANEL},
};
use crate::{
    document::Figure,
    format::significant,
    learning::{Learned, learned, setting},
    run_data::RunData,
    stats::median,
};

const MARGIN: f64 = 16.0;
/// Room for the names of layers.
const LEFT: f64 = 74.0;
const ROW: f64 = 22.0;
/// Room for a panel's heading, and for the axis below it.
const ABOVE: f64 = 26.0;
const BELOW: f64 = 46.0;

/// A noise of a row.
type Noise = fn(&NormStatisticsRow) -> f64;

/// Medians by layer (downwards) and normalization batch.
struct Map {
    title: &'static str,
    batches: Vec<u64>,
    layers: Vec<u32>,
    cells: BTreeMap<(u32, u64), f64>,
}

/// The heat maps; none where fewer than two normalization batches were tried.
pub fn noise(data: &RunData) -> Option<Figure> {
    let all = learned(data);
    let by_batch = || all.iter().filter(|learned| learned.trial.norm == "batch");
    let first = by_batch().next()?.trial;
    // Layers of several models do not share an axis, nor do norms that were trained differently.
    if by_batch().any(|learned| setting(learned.trial) != setting(first)) {
        return None;
    }
    let subtitle = &format!("{} · {}", first.model, first.data);
    let maps = [
        map(
            data,
            &all,
            "(batch mean − stored mean)² / stored variance",
            |row| row.mean_noise,
        )?,
        map(
            data,
            &all,
            "(ln batch variance − ln stored variance)²",
            |row| row.variance_noise,
        )?,
    ];
    let height = legend::HEADING + ABOVE + ROW * maps[0].layers.len() as f64 + BELOW;
    let title = "Noise of batch statistics";
    let svg = canvas::draw(
        WIDTH,
        height.ceil() as u32,
        &format!("{title}: {subtitle}"),
        |canvas| {
            legend::heading(canvas, f64::from(WIDTH), title, subtitle);
            let width = (f64::from(WIDTH) - MARGIN) / maps.len() as f64;
            for (index, map) in maps.iter().enumerate() {
                map.draw(
                    canvas,
                    MARGIN + width * index as f64,
                    legend::HEADING,
                    width - MARGIN,
                );
            }
        },
    );
    Some(Figure {
        name: "noise-of-batch-statistics".into(),
        title: title.into(),
        caption: "Each batch norm from the first (top) to the last, against how many samples its statistics are taken over: means over channels and batches of \
                  training samples after the last step, medians over repeats. Colours are logarithmic. A layer with many positions averages over all of them, but \
                  positions of one sample are much alike, so early layers need not be less noisy than late ones."
            .into(),
        svg,
        width: WIDTH,
        height: height.ceil() as u32,
    })
}

fn map(data: &RunData, all: &[Learned<'_>], title: &'static str, noise: Noise) -> Option<Map> {
    let mut values: BTreeMap<(u32, u64), Vec<f64>> = BTreeMap::new();
    for learned in all.iter().filter(|learned| learned.trial.norm == "batch") {
        let own = |row: &&NormStatisticsRow| {
            row.trial == learned.trial.trial && learned.ends.contains_key(&row.repeat)
        };
        for row in data.norm_statistics.iter().filter(own) {
            let cell = values
                .entry((row.layer, row.normalization_batch))
                .or_default();
            cell.push(noise(row));
        }
    }
    let cells: BTreeMap<(u32, u64), f64> = values
        .into_iter()
        .filter_map(|(cell, values)| Some((cell, median(&values)?)))
        .collect();
    let mut batches: Vec<u64> = cells.keys().map(|(_, batch)| *batch).collect();
    let mut layers: Vec<u32> = cells.keys().map(|(layer, _)| *layer).collect();
    batches.sort_unstable();
    batches.dedup();
    layers.dedup();
    (batches.len() > 1).then_some(Map {
        title,
        batches,
        layers,
        cells,
    })
}

impl Map {
    fn draw(&self, canvas: &mut Canvas<'_>, left: f64, top: f64, width: f64) {
        canvas.text(left, top + 16.0, self.title, Anchor::Start, PANEL);
        let (first, first_row) = (left + LEFT, top + ABOVE);
        let column = (width - LEFT) / self.batches.len() as f64;
        let positive = || self.cells.values().copied().filter(|value| *value > 0.0);
        let low = positive().fold(f64::INFINITY, f64::min).ln();
        let high = positive().fold(f64::NEG_INFINITY, f64::max).ln();
        for (row, layer) in self.layers.iter().enumerate() {
            let y = first_row + ROW * row as f64;
            let name = format!("norm {}", layer + 1);
            canvas.text(first - 8.0, y + ROW / 2.0 + 4.0, &name, Anchor::End, LABEL);
            for (index, batch) in self.batches.iter().enumerate() {
                let Some(value) = self.cells.get(&(*layer, *batch)) else {
                    continue;
                };
                // No spread at all is one colour.
                let share = if high > low && *value > 0.0 {
                    (value.ln() - low) / (high - low)
                } else {
                    0.0
                };
                let color = Color::VERMILION.tint(0.92 * (1.0 - share));
                let x = first + column * index as f64;
                canvas.rect(x, y, column - 1.0, ROW - 1.0, Fill::solid(color));
                let look = canvas::Type {
                    color: color.ink(),
                    ..LABEL
                };
                let middle = x + (column - 1.0) / 2.0;
                canvas.text(
                    middle,
                    y + ROW / 2.0 + 4.0,
                    &significant(*value, 2),
                    Anchor::Middle,
                    look,
                );
            }
        }
        let below = first_row + ROW * self.layers.len() as f64;
        for (index, batch) in self.batches.iter().enumerate() {
            let middle = first + column * (index as f64 + 0.5);
            canvas.text(
                middle,
                below + 16.0,
                &batch.to_string(),
                Anchor::Middle,
                LABEL,
            );
        }
        let middle = first + (width - LEFT) / 2.0;
        canvas.text(
            middle,
            below + 36.0,
            "samples normalized together",
            Anchor::Middle,
            LABEL,
        );
    }
}
