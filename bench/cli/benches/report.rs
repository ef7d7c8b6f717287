//! `syncmark report` as a user runs it, PDF included: 198 trials with 100,000 steps each.
//!
//! Those are 20 million rows, 2.4 GB in the temporary folder. Run with `cargo bench -p syncmark --bench report` on an idle machine; what
//! the command holds at most is printed first.
#[path = "../../report/tests/fixtures/mod.rs"]
mod fixtures;

use std::path::Path;
use std::process::{Command, Stdio};

use criterion::{Criterion, criterion_group, criterion_main};

const REPEATS: u32 = 10;
const STEPS: usize = 100_000;

fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_syncmark"));
    command.arg("report").arg(folder).stdout(Stdio::null());
    command
}

/// What a process has held at most so far, in KiB, as the kernel tells it.
fn held(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn reports(criterion: &mut Criterion) {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = fixtures::large(&parent.path().join("run"), REPEATS, STEPS);
    let mut child = command(&folder).spawn().expect("the binary starts");
    let mut most = None;
    while child.try_wait().expect("a child of this process").is_none() {
        most = most.max(held(child.id()));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    println!(
        "held at most: {} MiB",
        most.expect("a process that was seen") / 1024
    );
    let mut group = criterion.benchmark_group("syncmark report");
    group.sample_size(10);
    group.bench_function("198 trials, 20 million steps", |bencher| {
        bencher.iter(|| {
            let status = command(&folder).status().expect("the binary starts");
            assert!(status.success());
        });
    });
}

criterion_group!(benches, reports);
criterion_main!(benches);
