//! From a run folder to its report: reading, the statistics, composing with all charts, and writing every file.
//!
//! The folder is the tests' made-up one (9 trials, 10 repeats), and once more with 198 trials and 100,000 steps of each, which are 20 million
//! rows (2.4 GB in the temporary folder): what is timed does not depend on the figures in it. The PDF is not among it; the bench `report` of
//! the command line times the whole command.
//! Run with `cargo bench -p syncmark-report` on an idle machine.
#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

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

fn large_reports(criterion: &mut Criterion) {
    let parent = tempfile::tempdir().expect("a folder");
    let path = fixtures::large(&parent.path().join("run"), REPEATS, 100_000);
    let mut group = criterion.benchmark_group("report/198 trials");
    group.sample_size(10);
    let load = || RunData::load(&RunFolder::open(&path).expect("a folder")).expect("rows");
    group.bench_function("load 20 million steps", |bencher| bencher.iter(load));
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
