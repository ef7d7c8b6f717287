//! One traced step of every trial in the Chrome trace format, for `chrome://tracing` and Perfetto.
//!
//! Contract: a process is a trial, a thread is a rank's (DP: a device's) track; times are microseconds since the step's
//! first span. Reference: "Trace Event Format", Google, 2016.
use serde_json::{Value, json};
use syncmark_record::rows::{PhaseRow, TrialRow};

use crate::{chart::series, run_data::RunData};

/// The trace as JSON text.
pub fn trace(data: &RunData) -> String {
    let mut events: Vec<Value> = Vec::new();
    for (index, trial) in data.trials.iter().enumerate() {
        if let Some(spans) = data.timelines.get(&trial.trial) {
            trial_events(&mut events, index + 1, trial, spans);
        }
    }
    let mut text = json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string();
    text.push('\n');
    text
}

fn trial_events(events: &mut Vec<Value>, process: usize, trial: &TrialRow, spans: &[PhaseRow]) {
    let name = format!("{} {} {}", trial.model, trial.norm, series::name(trial));
    events.push(metadata("process_name", process, 0, &name));
    let start = spans.iter().map(|span| span.start_ns).min().unwrap_or(0);
    let mut threads: Vec<String> = Vec::new();
    for span in spans {
        let track = format!("rank {} device {} {}", span.rank, span.device, span.track);
        let thread = threads
            .iter()
            .position(|known| *known == track)
            .unwrap_or_else(|| {
                threads.push(track.clone());
                events.push(metadata("thread_name", process, threads.len(), &track));
                threads.len() - 1
            });
        let micros = |ns: u64| ns as f64 / 1e3;
        let mut arguments =
            json!({ "step": span.step, "repeat": span.repeat, "clock": span.clock });
        if let Some(bucket) = span.bucket {
            arguments["bucket"] = json!(bucket);
        }
        events.push(json!({
            "name": span.bucket.map_or_else(|| span.phase.clone(), |bucket| format!("{} {bucket}", span.phase)),
            "cat": span.track,
            "ph": "X",
            "ts": micros(span.start_ns.saturating_sub(start)),
            "dur": micros(span.end_ns.saturating_sub(span.start_ns)),
            "pid": process,
            "tid": thread + 1,
            "args": arguments,
        }));
    }
}

fn metadata(kind: &str, process: usize, thread: usize, name: &str) -> Value {
    json!({ "name": kind, "ph": "M", "pid": process, "tid": thread, "args": { "name": name } })
}
