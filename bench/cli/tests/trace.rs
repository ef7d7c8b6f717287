//! `trace.json` of a real run holds to the Trace Event Format: what Perfetto would refuse or misdraw is found here.
//! Reference: "Trace Event Format", Google, 2016.
use std::collections::{BTreeMap, BTreeSet};

use assert_cmd::Command;
use serde_json::Value;

const SCENARIO: &str = r#"
name = "traced"
question = "What does a step consist of?"
kind = "train"
[model]
layers = [{ conv2d = { channels = 8, kernel = 3, padding = 1 } }, "norm", "relu", "flatten", { linear = { features = "classes" } }]
input = [3, 8, 8]
classes = 10
norm = "batch"
[data]
source = "synthetic"
batch_size = 8
[parallel]
devices = 2
[measure]
smoke = true
repeats = 1
steps = 3
min_time = "1ms"
warmup_time = "1ms"
trace_steps = 3
unsynchronized = false
timeout = "2m"
[[variant]]
name = "dp"
set = { "parallel.strategy" = "dp" }
[[variant]]
name = "threads"
set = { "parallel.strategy" = "ddp", "parallel.launch" = "threads" }
[[variant]]
name = "processes"
set = { "parallel.strategy" = "ddp", "parallel.launch" = "processes" }
[[variant]]
name = "synced"
set = { "parallel.strategy" = "ddp", "parallel.launch" = "processes", "model.norm" = "sync-batch" }
"#;

/// A span in whole nanoseconds.
#[derive(Debug)]
struct Span {
    start: i64,
    end: i64,
}

fn trace() -> Value {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("traced.toml");
    std::fs::write(&path, SCENARIO).expect("the scenario is written");
    let out = folder.path().join("out");
    let output = Command::cargo_bin("syncmark")
        .expect("the binary is built")
        .args(["run", "--quiet", "--out"])
        .args([&out, &path])
        .output()
        .expect("the binary starts");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let run = std::fs::read_dir(&out)
        .expect("there is a run")
        .next()
        .expect("there is a run");
    let text = std::fs::read_to_string(run.expect("it is listed").path().join("trace.json"));
    serde_json::from_str(&text.expect("there is a trace")).expect("it is JSON")
}

fn whole(event: &Value, key: &str) -> i64 {
    event[key]
        .as_i64()
        .unwrap_or_else(|| panic!("{key} of {event}"))
}

/// Microseconds as nanoseconds.
fn nanoseconds(event: &Value, key: &str) -> i64 {
    let micros = event[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} of {event}"));
    assert!(micros >= 0.0, "{event}");
    (micros * 1e3).round() as i64
}

/// Spans of one thread, in the order of the file, nest or stand apart.
fn check_thread(thread: (i64, i64), spans: &[Span]) {
    let mut open: Vec<&Span> = Vec::new();
    let mut last = 0;
    for span in spans {
        assert!(
            span.start >= last && span.end >= span.start,
            "{thread:?}: {span:?} after {last}"
        );
        last = span.start;
        open.retain(|outer| outer.end > span.start);
        if let Some(outer) = open.last() {
            assert!(span.end <= outer.end, "{thread:?}: {span:?} cuts {outer:?}");
        }
        open.push(span);
    }
}

#[test]
fn the_trace_of_a_real_run_holds_to_the_format() {
    let trace = trace();
    assert_eq!(trace["displayTimeUnit"], "ms");
    let events = trace["traceEvents"].as_array().expect("events");
    let (mut processes, mut named, mut threads) = (
        BTreeMap::new(),
        BTreeSet::new(),
        BTreeMap::<_, Vec<Span>>::new(),
    );
    let mut flows: BTreeMap<i64, Vec<&Value>> = BTreeMap::new();
    for event in events {
        let thread = (whole(event, "pid"), whole(event, "tid"));
        assert!(
            event["name"].as_str().is_some_and(|name| !name.is_empty()),
            "{event}"
        );
        match event["ph"].as_str() {
            Some("M") if event["name"] == "process_name" => {
                let name = event["args"]["name"].as_str().expect("a name").to_owned();
                assert!(processes.insert(thread.0, name).is_none(), "{event}");
            }
            Some("M") if event["name"] == "thread_name" => assert!(named.insert(thread), "{event}"),
            Some("M") => assert!(event["args"]["sort_index"].is_i64(), "{event}"),
            Some("X") => {
                assert!(
                    named.contains(&thread),
                    "{event} comes before its thread has a name"
                );
                assert!(
                    event["args"]["step"].is_u64() && event["args"]["phase"].is_string(),
                    "{event}"
                );
                let start = nanoseconds(event, "ts");
                let end = start + nanoseconds(event, "dur");
                threads.entry(thread).or_default().push(Span { start, end });
            }
            Some("s" | "f") => flows.entry(whole(event, "id")).or_default().push(event),
            other => panic!("{other:?} in {event}"),
        }
    }
    // Four ways with two devices each.
    assert_eq!(processes.len(), 8, "{processes:?}");
    let names: BTreeSet<&String> = processes.values().collect();
    assert_eq!(names.len(), 8, "{names:?}");
    assert!(
        names
            .iter()
            .all(|name| name.contains("rank ") && name.contains("device ")),
        "{names:?}"
    );
    threads
        .iter()
        .for_each(|(thread, spans)| check_thread(*thread, spans));
    assert!(
        threads.len() >= 2 * 8,
        "a device has compute and communication: {}",
        threads.len()
    );
    assert!(!flows.is_empty(), "ranks of ddp meet in buckets");
    for ends in flows.values() {
        let [start, finish] = ends[..] else {
            panic!("{ends:?}")
        };
        assert_eq!(
            (&start["ph"], &finish["ph"]),
            (&Value::from("s"), &Value::from("f"))
        );
        assert!(
            nanoseconds(finish, "ts") >= nanoseconds(start, "ts") && start["pid"] != finish["pid"]
        );
        for end in ends {
            let at = nanoseconds(end, "ts");
            let spans = &threads[&(whole(end, "pid"), whole(end, "tid"))];
            assert!(
                spans.iter().any(|s| s.start <= at && at <= s.end),
                "{end} lies in no span"
            );
        }
    }
}
