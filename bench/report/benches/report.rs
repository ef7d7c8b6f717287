//! From a run folder to its report: reading, the statistics, composing with all charts, and writing every file.
//!
//! The folder is the tests' made-up one (9 trials, 10 repeats), and once more with 198 trials and 5,000 steps of each, which are a million
//! rows: what is timed does not depend on the figures in it.
//! Run with `cargo bench -p syncmark-report` on an idle machine.
#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeMap;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use syncmark_record::RunFolder;
use syncmark_report::compose::compose;
use syncmark_report::render;
use syncmark_report::run_data::RunData;
use syncmark_report::stats::bootstrap::estimate;
use syncmark_report::stats::random::SplitMix64;

const REPEATS: u32 = 10;

fn reports(criterion: &mut Criterion) {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = fixtures::write(&parent.path().join("run"), &fixtures::SMALL, REPEATS);
    let path = folder.path().to_owned();
    let load = || {
        let folder = RunFolder::open(&path).expect("just written");
        RunData::load(&folder).expect("readable rows")
    };
    let mut group = criterion.benchmark_group("report");
    group.sample_size(10);
    group.bench_function("load", |bencher| bencher.iter(load));
    let data = load();
    group.bench_function("compose", |bencher| bencher.iter(|| compose(&data)));
    group.bench_function("render", |bencher| {
        bencher.iter(|| render(&path).expect("a folder that can be written"));
    });
}

/// The small plan for 22 models.
fn many_ways() -> Vec<fixtures::Way> {
    let models = (0..22).map(|i| &*Box::leak(format!("model-{i}").into_boxed_str()));
    let of = |model| fixtures::SMALL.map(|way| fixtures::Way { model, ..way });
    models.flat_map(of).collect()
}

/// Adds steps of the window to `steps.csv`: the last traced one of each trial again and again.
fn lengthen(path: &Path, steps: usize) {
    let file = path.join("steps.csv");
    let text = std::fs::read_to_string(&file).expect("just written");
    let mut last = BTreeMap::new();
    for line in text.lines().filter(|line| line.contains(",traced,")) {
        last.insert(line.split(',').next(), line.replace(",traced,", ",window,"));
    }
    assert!(!last.is_empty(), "no traced steps: {text:.400}");
    let mut longer = text.clone();
    for line in last.values() {
        (0..steps).for_each(|_| {
            longer.push_str(line);
            longer.push('\n');
        });
    }
    std::fs::write(file, longer).expect("a folder that can be written");
}

fn large_reports(criterion: &mut Criterion) {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = fixtures::write(&parent.path().join("run"), &many_ways(), REPEATS);
    let path = folder.path().to_owned();
    lengthen(&path, 5_000);
    let mut group = criterion.benchmark_group("report/198 trials");
    group.sample_size(10);
    let load = || RunData::load(&RunFolder::open(&path).expect("a folder")).expect("rows");
    group.bench_function("load a million steps", |bencher| bencher.iter(load));
    let data = load();
    group.bench_function("compose", |bencher| bencher.iter(|| compose(&data)));
    group.bench_function("render", |bencher| {
        bencher.iter(|| render(&path).expect("a folder that can be written"));
    });
}

fn bootstrap(criterion: &mut Criterion) {
    let mut random = SplitMix64::new(1);
    let blocks: Vec<f64> = (0..REPEATS).map(|_| random.normal()).collect();
    criterion.bench_function("bootstrap/10 blocks", |bencher| {
        bencher.iter(|| estimate(&blocks));
    });
}

criterion_group!(benches, reports, large_reports, bootstrap);
criterion_main!(benches);
