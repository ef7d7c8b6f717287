//! The section on the GPUs that trials ran on: where they sit, and what state they were in while they were timed.
//!
//! Contract: nothing where no trial ran on a GPU. Of several repeats the table has the middle of what was usual and the worst of what
//! was not; `gpus.csv` has each.
use std::collections::BTreeSet;

use syncmark_record::rows::{GpuRow, Pass};

use crate::{
    chart::{layers::subject, series::name},
    document::{
        Alignment::{Left, Right},
        Block, Table,
    },
    format::{bytes, or_dash, percent},
    run_data::RunData,
    stats::median,
};

pub(super) fn section(data: &RunData) -> Vec<Block> {
    if data.gpus.is_empty() {
        return Vec::new();
    }
    let mut blocks = vec![Block::heading(1, "GPUs"), Block::Table(places(&data.gpus))];
    if data.gpus.iter().any(|row| row.samples.is_some()) {
        blocks.push(Block::Table(states(data)));
        blocks.push(Block::note(NOTE));
    }
    blocks
}

const NOTE: &str = "Sampled through NVML every 100 ms from the barrier that opens a window until its last step. Spread: by how much the mean clock of one third of \
a window was below that of another. At its power cap a GPU lowers its clock as it was built to, and that alone disturbs nothing; heat, a power brake or another slowdown of the \
hardware, a spread above 5 % or another process on the GPU does.";

fn dash(text: Option<&str>) -> String {
    text.unwrap_or("–").to_owned()
}

/// Where each device was; one row for devices that were there in all trials.
fn places(rows: &[GpuRow]) -> Table {
    let mut table = Table::new(
        "Where devices and their GPUs were. Peers: devices of the same process whose memory its GPU reaches.",
        &[
            ("device", Right),
            ("GPU", Left),
            ("NUMA node", Left),
            ("cores", Left),
            ("near", Left),
            ("network", Left),
            ("peers", Left),
        ],
    );
    let mut known = BTreeSet::new();
    for row in rows {
        let peers: Vec<String> = [
            ("", &row.peers_direct),
            ("through the host ", &row.peers_through_host),
        ]
        .into_iter()
        .filter_map(|(how, peers)| Some(format!("{how}{}", peers.as_ref()?)))
        .collect();
        let cells = vec![
            row.device.to_string(),
            row.pci_bus_id.clone(),
            dash(row.numa_node.map(|node| node.to_string()).as_deref()),
            row.cores.clone(),
            match row.bound {
                true => "yes".to_owned(),
                false => format!("no: {}", dash(row.unbound_because.as_deref())),
            },
            dash(row.network.as_deref()),
            match peers.is_empty() {
                true => "–".to_owned(),
                false => peers.join(", "),
            },
        ];
        known.insert((row.device, cells));
    }
    known.into_iter().for_each(|(_, cells)| table.push(cells));
    table
}

/// A row for each trial and device that was sampled.
fn states(data: &RunData) -> Table {
    let mut table = Table::new(
        "The GPUs' state in the windows: medians over repeats of median clock, mean power and bytes; the worst repeat of all else.",
        &[
            ("trial", Left),
            ("device", Right),
            ("SM clock", Right),
            ("lowest", Right),
            ("spread", Right),
            ("hottest", Right),
            ("power", Right),
            ("highest", Right),
            ("held back by", Left),
            ("others", Right),
            ("NVLink sent | received a step", Right),
        ],
    );
    let several = data
        .trials
        .iter()
        .any(|t| subject(t) != subject(&data.trials[0]));
    for trial in &data.trials {
        let own = |row: &&GpuRow| {
            row.trial == trial.trial && row.pass == Pass::Window && row.samples.is_some()
        };
        let rows: Vec<&GpuRow> = data.gpus.iter().filter(own).collect();
        let devices: BTreeSet<u32> = rows.iter().map(|row| row.device).collect();
        for device in devices {
            let of_device: Vec<&GpuRow> = rows
                .iter()
                .copied()
                .filter(|row| row.device == device)
                .collect();
            let called = match several {
                true => format!("{}, {}", subject(trial), name(trial)),
                false => name(trial),
            };
            let mut cells = vec![called, device.to_string()];
            cells.extend(state(data, &of_device));
            table.push(cells);
        }
    }
    table
}

fn state(data: &RunData, rows: &[&GpuRow]) -> Vec<String> {
    let values = |column: &dyn Fn(&GpuRow) -> Option<f64>| -> Vec<f64> {
        rows.iter().filter_map(|row| column(row)).collect()
    };
    let middle = |column: &dyn Fn(&GpuRow) -> Option<f64>| median(&values(column));
    let most =
        |column: &dyn Fn(&GpuRow) -> Option<f64>| values(column).into_iter().reduce(f64::max);
    let per_step = |column: &dyn Fn(&GpuRow) -> Option<u64>| {
        let each = |row: &GpuRow| {
            let own = |r: &&syncmark_record::rows::RepeatRow| {
                r.trial == row.trial && r.repeat == row.repeat && r.steps > 0
            };
            let steps = data.repeats.iter().find(own)?.steps;
            Some(column(row)? as f64 / steps as f64)
        };
        or_dash(middle(&each), bytes)
    };
    let (mhz, watts) = (|x: f64| format!("{x:.0} MHz"), |x: f64| format!("{x:.0} W"));
    let lowest = values(&|row| row.sm_clock_min_mhz.map(f64::from));
    let reasons: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row.held_back_by.as_deref())
        .collect();
    // The repeat that was slowed down most, or else the one with most to say.
    let worst = rows.iter().max_by(|a, b| {
        let share = |row: &GpuRow| row.slowdown_share.unwrap_or(0.0);
        share(a).total_cmp(&share(b))
    });
    let held = match worst.filter(|row| row.slowdown.is_some()) {
        Some(row) => row.held_back_by.as_deref(),
        None => reasons
            .iter()
            .copied()
            .find(|words| *words != "nothing")
            .or_else(|| reasons.first().copied()),
    };
    let sent = per_step(&|row| row.nvlink_sent_bytes);
    let received = per_step(&|row| row.nvlink_received_bytes);
    vec![
        or_dash(middle(&|row| row.sm_clock_median_mhz.map(f64::from)), mhz),
        or_dash(lowest.into_iter().reduce(f64::min), mhz),
        or_dash(most(&|row| row.sm_clock_spread), percent),
        or_dash(
            most(&|row| row.temperature_max_celsius.map(f64::from)),
            |x: f64| format!("{x:.0} °C"),
        ),
        or_dash(middle(&|row| row.power_mean_watts), watts),
        or_dash(most(&|row| row.power_max_watts), watts),
        dash(held),
        or_dash(
            most(&|row| row.foreign_processes.map(|count| count as f64)),
            |x: f64| format!("{x:.0}"),
        ),
        match (sent.as_str(), received.as_str()) {
            ("–", "–") => "–".to_owned(),
            _ => format!("{sent} | {received}"),
        },
    ]
}
