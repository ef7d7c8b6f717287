//! One traced step of every trial in the Chrome trace format, for Perfetto and `chrome://tracing`.
//!
//! Contract: a process is a device of a trial, a thread one of its tracks; times are microseconds since the trial's first
//! span. Spans of one thread nest or stand apart, as the format demands: a span that would cut another one gets a thread
//! beside it. Events of a thread are in order, an outer span before what lies in it. The last rank to arrive at a bucket's
//! all-reduce has arrows to those that waited for it.
//! Reference: "Trace Event Format", Google, 2016.
use std::collections::BTreeMap;

use serde_json::{Value, json};
use syncmark_record::rows::{PhaseRow, TrialRow};

use crate::{analyse::is_placeholder, chart::series, run_data::RunData};

/// Tracks in the order in which they stand below each other.
const TRACKS: [&str; 3] = ["host", "compute", "communication"];

/// The trace as JSON text.
pub fn trace(data: &RunData) -> String {
    let mut trace = Trace::default();
    for trial in &data.trials {
        if let Some(spans) = data.timelines.get(&trial.trial) {
            trace.add(data, trial, spans);
        }
    }
    let mut text = json!({
        "traceEvents": trace.events,
        "displayTimeUnit": "ms",
        "otherData": {
            "scenario": data.scenario.name,
            "about": "one traced step of each trial; times of different clocks are not comparable",
        },
    })
    .to_string();
    text.push('\n');
    text
}

#[derive(Default)]
struct Trace {
    events: Vec<Value>,
    processes: usize,
    flows: usize,
}

/// A span in its place.
struct Placed<'a> {
    span: &'a PhaseRow,
    process: usize,
    thread: usize,
}

impl Trace {
    fn add(&mut self, data: &RunData, trial: &TrialRow, spans: &[PhaseRow]) {
        let mut devices: BTreeMap<(u32, u32), Vec<&PhaseRow>> = BTreeMap::new();
        for span in spans {
            devices
                .entry((span.rank, span.device))
                .or_default()
                .push(span);
        }
        let bytes = sizes(data, trial);
        let start = spans.iter().map(|span| span.start_ns).min().unwrap_or(0);
        let mut placed = Vec::new();
        for ((rank, device), spans) in devices {
            self.processes += 1;
            let process = self.processes;
            let name = process_name(data, trial, rank, device);
            self.describe("process", process, 0, &name, process);
            placed.extend(self.place(process, spans));
        }
        placed.sort_by_key(|p| {
            (
                p.process,
                p.thread,
                p.span.start_ns,
                u64::MAX - p.span.end_ns,
            )
        });
        for p in &placed {
            let device = p.span.device;
            let bytes = bytes
                .get(&(device, p.span.phase.as_str()))
                .copied()
                .flatten();
            self.events.push(complete(p, start, bytes));
        }
        self.arrows(&placed, start);
    }

    /// Gives each span of a device its thread, and describes the threads.
    fn place<'a>(&mut self, process: usize, spans: Vec<&'a PhaseRow>) -> Vec<Placed<'a>> {
        let mut placed = Vec::new();
        let mut threads = 0;
        for track in TRACKS {
            let own: Vec<&PhaseRow> = spans.iter().copied().filter(|s| s.track == track).collect();
            for (index, lane) in lanes(own).into_iter().enumerate() {
                threads += 1;
                let name = match index {
                    0 => track.to_owned(),
                    _ => format!("{track} {}", index + 1),
                };
                self.describe("thread", process, threads, &name, threads);
                placed.extend(lane.into_iter().map(|span| Placed {
                    span,
                    process,
                    thread: threads,
                }));
            }
        }
        placed
    }

    /// The metadata events that name a process or thread and say where it stands.
    fn describe(&mut self, what: &str, process: usize, thread: usize, name: &str, index: usize) {
        let metadata = |kind: &str, arguments: Value| json!({ "name": format!("{what}_{kind}"), "ph": "M", "pid": process, "tid": thread, "args": arguments });
        self.events.push(metadata("name", json!({ "name": name })));
        self.events
            .push(metadata("sort_index", json!({ "sort_index": index })));
    }

    /// An arrow from the rank that came last to an all-reduce to each that waited for it there.
    fn arrows(&mut self, placed: &[Placed<'_>], start: u64) {
        let mut meetings: BTreeMap<(&str, u64, u32), Vec<&Placed<'_>>> = BTreeMap::new();
        for p in placed.iter().filter(|p| p.span.phase == "all_reduce") {
            if let Some(bucket) = p.span.bucket {
                let meeting = (p.span.clock.as_str(), p.span.step, bucket);
                meetings.entry(meeting).or_default().push(p);
            }
        }
        for ((_, _, bucket), ranks) in meetings {
            let Some(last) = ranks.iter().max_by_key(|p| p.span.start_ns) else {
                continue;
            };
            let at = last.span.start_ns;
            for other in ranks
                .iter()
                .filter(|p| p.process != last.process && p.span.end_ns > at)
            {
                self.flows += 1;
                let end = |phase: &str, p: &Placed<'_>| {
                    json!({
                        "name": format!("bucket {bucket}"), "cat": "all_reduce", "ph": phase, "bp": "e", "id": self.flows,
                        "ts": micros(at - start), "pid": p.process, "tid": p.thread,
                    })
                };
                let arrow = [end("s", last), end("f", other)];
                self.events.extend(arrow);
            }
        }
    }
}

/// `resnet20 batch ddp-processes ×2 · rank 0 · device 0 · node7`.
fn process_name(data: &RunData, trial: &TrialRow, rank: u32, device: u32) -> String {
    let environment = data.environment.as_ref();
    let launched = environment.and_then(|e| e.launched.as_ref());
    let agent = launched
        .filter(|_| trial.launch.as_deref() == Some("processes"))
        .and_then(|l| l.agents.iter().find(|agent| agent.rank == rank));
    let host = agent.map(|agent| agent.host.as_str());
    let host = host.or_else(|| environment.map(|e| e.host.as_str()));
    let own = series::name(trial);
    let trial = match is_placeholder(trial) {
        true => own,
        false => format!("{} {} {own}", trial.model, trial.norm),
    };
    let mut name = format!("{trial} · rank {rank} · device {device}");
    if let Some(host) = host {
        name.push_str(" · ");
        name.push_str(host);
    }
    name
}

/// Spreads spans over as few threads as let them nest or stand apart on each.
fn lanes(mut spans: Vec<&PhaseRow>) -> Vec<Vec<&PhaseRow>> {
    spans.sort_by_key(|span| (span.start_ns, u64::MAX - span.end_ns));
    // Of each lane its spans, and the ends of those that are still open.
    let mut lanes: Vec<(Vec<&PhaseRow>, Vec<u64>)> = Vec::new();
    for span in spans {
        let fits = |(_, open): &mut (Vec<&PhaseRow>, Vec<u64>)| {
            open.retain(|end| *end > span.start_ns);
            open.last().is_none_or(|end| span.end_ns <= *end)
        };
        let index = lanes.iter_mut().position(fits).unwrap_or_else(|| {
            lanes.push(Default::default());
            lanes.len() - 1
        });
        lanes[index].0.push(span);
        lanes[index].1.push(span.end_ns);
    }
    lanes.into_iter().map(|(spans, _)| spans).collect()
}

/// Payload bytes of a device's phase, where all its calls have one size.
fn sizes<'a>(data: &'a RunData, trial: &TrialRow) -> BTreeMap<(u32, &'a str), Option<u64>> {
    let mut sizes = BTreeMap::new();
    for row in data.comm.iter().filter(|row| row.trial == trial.trial) {
        sizes
            .entry((row.rank, row.phase.as_str()))
            .and_modify(|size| {
                if *size != Some(row.size_bytes) {
                    *size = None;
                }
            })
            .or_insert(Some(row.size_bytes));
    }
    sizes
}

fn micros(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// The event of a span with its beginning and length.
fn complete(placed: &Placed<'_>, start: u64, bytes: Option<u64>) -> Value {
    let span = placed.span;
    let mut arguments = json!({
        "step": span.step, "repeat": span.repeat, "phase": span.phase, "rank": span.rank, "device": span.device, "clock": span.clock,
    });
    if let Some(bucket) = span.bucket {
        arguments["bucket"] = json!(bucket);
    }
    if let Some(bytes) = bytes {
        arguments["payload_bytes"] = json!(bytes);
    }
    let name = match span.bucket {
        Some(bucket) => format!("{} {bucket}", span.phase),
        None => span.phase.clone(),
    };
    json!({
        "name": name,
        "cat": span.track,
        "ph": "X",
        "ts": micros(span.start_ns.saturating_sub(start)),
        "dur": micros(span.end_ns.saturating_sub(span.start_ns)),
        "pid": placed.process,
        "tid": placed.thread,
        "args": arguments,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start_ns: u64, end_ns: u64) -> PhaseRow {
        PhaseRow {
            trial: "a".into(),
            repeat: 0,
            rank: 0,
            device: 0,
            track: "compute".into(),
            phase: "forward".into(),
            bucket: None,
            step: 0,
            start_ns,
            end_ns,
            clock: "host".into(),
        }
    }

    #[test]
    fn spans_that_cut_each_other_stand_on_different_threads() {
        let spans = [
            span(0, 10),
            span(10, 30),
            span(12, 20),
            span(12, 18),
            span(25, 40),
            span(40, 40),
        ];
        let placed: Vec<Vec<(u64, u64)>> = lanes(spans.iter().collect())
            .into_iter()
            .map(|lane| lane.into_iter().map(|s| (s.start_ns, s.end_ns)).collect())
            .collect();
        let first = vec![(0, 10), (10, 30), (12, 20), (12, 18), (40, 40)];
        assert_eq!(placed, [first, vec![(25, 40)]]);
    }
}
