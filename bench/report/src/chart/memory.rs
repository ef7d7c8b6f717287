//! Memory per device, by category.
//!
//! Contract: the largest peak over repeats of what the engine allocated on each device; categories add up to it.
use std::collections::BTreeMap;

use syncmark_record::rows::{DeviceRow, TrialRow};

use super::{
    WIDTH,
    bars::{Bar, BarChart, Group, Segment},
    legend::{Entry, Sign},
    palette::{Color, Fill, Hatch},
    series::{Facet, alert, dp_on_cpu, name, not_shown},
};
use crate::{document::Figure, format, run_data::RunData};

type Category = (&'static str, Fill, fn(&DeviceRow) -> u64);

const CATEGORIES: [Category; 6] = [
    ("parameters", Fill::solid(Color::BLUE), |d| {
        d.parameters_bytes
    }),
    (
        "gradients",
        Fill::hatched(Color::BLUE, Hatch::Rising),
        |d| d.gradients_bytes,
    ),
    ("optimizer state", Fill::solid(Color::GREEN), |d| {
        d.optimizer_bytes
    }),
    ("activations", Fill::solid(Color::SKY), |d| {
        d.activations_bytes
    }),
    ("buffers", Fill::solid(Color::YELLOW), |d| d.buffers_bytes),
    (
        "communication and workspace",
        Fill::hatched(Color::VERMILION, Hatch::Falling),
        |d| d.workspace_bytes,
    ),
];

/// Memory per device.
pub fn memory(data: &RunData, facet: &Facet<'_>) -> Option<Figure> {
    let shown: Vec<(&TrialRow, Vec<&DeviceRow>)> = facet
        .trials
        .iter()
        .filter(|trial| trial.outcome.has_figures())
        .map(|trial| (*trial, peaks(&data.devices, &trial.trial)))
        .filter(|(_, devices)| !devices.is_empty())
        .collect();
    let longest = shown
        .iter()
        .flat_map(|(_, devices)| devices)
        .map(|d| d.peak_memory_bytes)
        .max()
        .unwrap_or(0);
    if longest == 0 {
        return None;
    }
    let groups = shown
        .iter()
        .map(|(trial, devices)| group(trial, devices))
        .collect();
    let legend = CATEGORIES
        .iter()
        .filter(|(_, _, bytes)| {
            shown
                .iter()
                .flat_map(|(_, devices)| devices)
                .any(|d| bytes(d) > 0)
        })
        .map(|(category, fill, _)| Entry::new(Sign::Area(*fill), *category))
        .collect();
    let title = "Memory per device";
    let (divisor, unit) = if longest >= 2_000_000_000 {
        (1e9, "GB")
    } else {
        (1e6, "MB")
    };
    let axis = format!("peak of what the engine allocated ({unit})");
    let chart = BarChart {
        title: title.into(),
        subtitle: facet.title.clone(),
        axis,
        legend,
        groups,
    };
    let (svg, height) =
        chart.draw(|tick, step| super::axis::tick_label(tick / divisor, step / divisor));
    let caption = format!(
        "Peak of the engine's own allocations on each device, by category; the largest over repeats. It leaves out code, stacks and the \
         data loader. Under DP device 0 also holds the gathered outputs, the loss and the optimizer state, so it is the one that runs out \
         first.{}{}",
        dp_on_cpu(facet),
        not_shown(facet)
    );
    Some(Figure {
        name: format!("memory-{}", facet.slug),
        title: title.into(),
        caption,
        svg,
        width: WIDTH,
        height,
    })
}

/// The row of the largest peak of each device.
fn peaks<'a>(devices: &'a [DeviceRow], trial: &str) -> Vec<&'a DeviceRow> {
    let mut largest: BTreeMap<u32, &DeviceRow> = BTreeMap::new();
    for row in devices.iter().filter(|row| row.trial == trial) {
        let entry = largest.entry(row.device).or_insert(row);
        if row.peak_memory_bytes > entry.peak_memory_bytes {
            *entry = row;
        }
    }
    largest.into_values().collect()
}

fn group(trial: &TrialRow, devices: &[&DeviceRow]) -> Group {
    let bar = |device: &&DeviceRow| Bar {
        label: format!("device {}", device.device),
        segments: CATEGORIES
            .iter()
            .map(|(_, fill, bytes)| Segment {
                value: bytes(device) as f64,
                fill: *fill,
            })
            .filter(|segment| segment.value > 0.0)
            .collect(),
        note: format::bytes(device.peak_memory_bytes as f64),
        height: 13.0,
    };
    Group {
        label: name(trial),
        alert: alert(trial),
        bars: devices.iter().map(bar).collect(),
    }
}
