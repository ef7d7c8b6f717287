//! What recording costs a step: reading the clock, one event of 64 bytes into a memory-mapped spool, and a sign of life.
//!
//! A timed window does this once a step (`timed_pass` in `run/rank/measure.rs`) and nothing else, so a step that takes T has
//! (time of one iteration)/T of its time in recording: 50 ns are 0.005 % of a millisecond. First touches of the spool's pages are in
//! it, as they are in a run. Run with `cargo bench -p syncmark --bench recording` on an idle machine.
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use syncmark::run::spool::{Event, Reader, Writer};
use syncmark_engine::probe::now_ns;

/// Events of one spool.
const EVENTS: u64 = 1 << 16;

/// Time that `calls` recordings take, in new spools.
fn record(folder: &std::path::Path, calls: u64) -> Duration {
    let (mut took, mut left) = (Duration::ZERO, calls);
    while left > 0 {
        let some = left.min(EVENTS);
        let path = folder.join("spool");
        Writer::create(&path, some as usize).expect("room for a spool");
        let mut spool = Writer::open(&path).expect("just created");
        let begin = Instant::now();
        for step in 0..some {
            let end_ns = now_ns();
            spool.push(Event::Step {
                pass: 0,
                step,
                start_ns: end_ns,
                end_ns,
                samples: 32,
            });
            spool.beat(end_ns);
        }
        took += begin.elapsed();
        drop(spool);
        let reader = Reader::open(&path).expect("just written");
        assert_eq!((reader.written() as u64, reader.dropped()), (some, 0));
        std::fs::remove_file(&path).expect("its folder is ours");
        left -= some;
    }
    took
}

fn recording(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    criterion.bench_function("recording/step", |bencher| {
        bencher.iter_custom(|calls| record(folder.path(), calls));
    });
}

criterion_group!(benches, recording);
criterion_main!(benches);
