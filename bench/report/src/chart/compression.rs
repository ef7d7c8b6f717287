//! What compressing gradients costs in accuracy and saves in bytes.
//!
//! Contract: each trial is one point: bytes sent for gradients as a share of the uncompressed ones, and the relative
//! error of the synchronized gradient against the exact mean of the ranks' gradients in the same step, median and range
//! over the checked steps of all repeats. The error is measured beside training, in a pass that is not timed.
//! Reference: Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019.
use syncmark_record::rows::{CompressionRow, TrialRow};

use super::{
    WIDTH,
    curves::{self, Curve, CurvePoint, LOOKS, Plot},
    series::{Facet, name, not_shown},
};
use crate::{document::Figure, format, run_data::RunData, stats::median};

/// Error and bytes of one trial's gradients.
pub struct Compressed<'a> {
    /// The trial.
    pub trial: &'a TrialRow,
    /// Sent bytes over uncompressed bytes.
    pub share: f64,
    /// ‖compressed mean − exact mean‖ / ‖exact mean‖: median, smallest, largest.
    pub error: [f64; 3],
    /// Cosine of the angle between them, median.
    pub cosine: f64,
    /// Steps that were checked, over all repeats.
    pub steps: usize,
    /// Training steps before the first and the last of them.
    pub after: (u64, u64),
}

/// The compressed trials of a facet.
pub fn compressed<'a>(data: &RunData, facet: &Facet<'a>) -> Vec<Compressed<'a>> {
    let of_trial = |trial: &&'a TrialRow| {
        let rows: Vec<&CompressionRow> = data
            .compression
            .iter()
            .filter(|row| row.trial == trial.trial && row.bucket.is_none())
            .collect();
        let errors: Vec<f64> = rows.iter().map(|row| row.relative_error).collect();
        let shares: Vec<f64> = rows
            .iter()
            .filter_map(|row| Some(row.sent_bytes? as f64 / row.uncompressed_bytes? as f64))
            .collect();
        let cosines: Vec<f64> = rows.iter().map(|row| row.cosine).collect();
        Some(Compressed {
            trial,
            share: median(&shares)?,
            error: [
                median(&errors)?,
                errors.iter().copied().fold(f64::INFINITY, f64::min),
                errors.iter().copied().fold(0.0, f64::max),
            ],
            cosine: median(&cosines)?,
            steps: rows.len(),
            after: (
                rows.iter().map(|row| row.step).min()?,
                rows.iter().map(|row| row.step).max()?,
            ),
        })
    };
    facet
        .trials
        .iter()
        .filter(|trial| trial.outcome.has_figures())
        .filter_map(of_trial)
        .collect()
}

/// Error against bytes.
pub fn accuracy(data: &RunData, facet: &Facet<'_>) -> Option<Figure> {
    let points = compressed(data, facet);
    let curves = points
        .iter()
        // Exact gradients have no place on a logarithmic axis; the caption says that they are exact.
        .filter(|point| point.error[1] > 0.0)
        .enumerate()
        .map(|(index, point)| {
            let (marker, color) = LOOKS[index % LOOKS.len()];
            let [value, low, high] = point.error;
            Curve {
                flat: None,
                name: name(point.trial),
                marker,
                color,
                points: vec![CurvePoint {
                    x: point.share,
                    value,
                    low,
                    high,
                }],
            }
        });
    let plot = Plot {
        title: String::new(),
        x: (
            "bytes sent for gradients, as a share of uncompressed",
            Some(share),
        ),
        y: ("relative error of the mean gradient", Some(error)),
        curves: curves.collect(),
        level: None,
    };
    let title = "Accuracy of compressed gradients against bytes";
    let (svg, height) = curves::draw(title, &facet.title, &[plot], 1, "range of steps")?;
    let exact: Vec<String> = points
        .iter()
        .filter(|point| point.error[1] == 0.0)
        .map(|point| name(point.trial))
        .collect();
    let exact = match exact.is_empty() {
        true => String::new(),
        false => format!(" Exact in every step: {}.", exact.join(", ")),
    };
    let caption = format!(
        "{}The distance between the gradient that training used and the exact mean of the ranks' gradients, over the norm of the latter; lower \
         and further left is better. Both axes are logarithmic. With error feedback a gradient repays what earlier steps left out, so its \
         error contains theirs and can pass 1.{exact}{}",
        unequal_moments(&points),
        not_shown(facet)
    );
    Some(Figure {
        name: format!("compression-{}", facet.slug),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// Errors grow and shrink with training: what is checked at other steps is no fair pair.
fn unequal_moments(points: &[Compressed<'_>]) -> &'static str {
    match points.iter().all(|point| point.after == points[0].after) {
        true => "",
        false => {
            "Checked at different moments of training (the table says at which), so points are not to be compared. "
        }
    }
}

fn share(value: f64) -> String {
    format!(
        "{} %",
        format::significant(value * 100.0, 3).trim_end_matches(".0")
    )
}

fn error(value: f64) -> String {
    format!("{value:.0e}")
}
