//! What handing over a batch costs: an epoch's order, and batches out of floats, bytes and random numbers.
//!
//! A step's data wait is this and nothing else, since timed trials hold their samples in memory. Orders report indices,
//! batches report bytes of input. Run with `cargo bench -p syncmark-engine --bench loading` on an idle machine.
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use syncmark_engine::data::{
    Dataset, Distributed, Loader, Pixels, Random, RankOrder, Resident, Sampler, Sequential,
    Synthetic,
};
use syncmark_engine::shape::Shape;

/// Samples of Fashion-MNIST's training set.
const SAMPLES: usize = 60_000;
const BATCH: usize = 128;
const IMAGE: Shape = Shape::Image { c: 3, h: 32, w: 32 };

fn orders(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sampler");
    let distributed = |ranks| Distributed {
        len: SAMPLES,
        ranks,
        rank: ranks - 1,
        seed: Some(1),
        drop_last: true,
    };
    let samplers: [(&str, Box<dyn Sampler>); 5] = [
        ("sequential", Box::new(Sequential { len: SAMPLES })),
        (
            "random",
            Box::new(Random {
                len: SAMPLES,
                seed: 1,
            }),
        ),
        ("distributed-1", Box::new(distributed(1))),
        ("distributed-8", Box::new(distributed(8))),
        (
            "rank-order-8",
            Box::new(RankOrder {
                ranks: distributed(8),
                batch: BATCH,
            }),
        ),
    ];
    group.throughput(Throughput::Elements(SAMPLES as u64));
    let mut order = Vec::with_capacity(2 * SAMPLES);
    for (name, sampler) in samplers {
        let mut epoch = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                epoch += 1;
                sampler.indices(epoch, &mut order);
            });
        });
    }
}

fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("loader");
    let synthetic = Synthetic {
        len: 2048,
        shape: IMAGE,
        classes: 10,
        seed: 1,
    };
    let pixels = (0..2048 * IMAGE.elements())
        .map(|at| (at % 251) as u8)
        .collect();
    let sources: [(&str, Arc<dyn Dataset>); 3] = [
        ("floats", Arc::new(Resident::of(&synthetic))),
        (
            "bytes",
            Arc::new(Pixels::new(IMAGE, 10, u8::MAX, pixels, vec![3; 2048])),
        ),
        ("random", Arc::new(synthetic)),
    ];
    group.throughput(Throughput::Bytes(
        (BATCH * IMAGE.elements() * size_of::<f32>()) as u64,
    ));
    for (name, source) in sources {
        let order = Distributed {
            len: source.len(),
            ranks: 1,
            rank: 0,
            seed: Some(1),
            drop_last: true,
        };
        let mut loader =
            Loader::new(source, Box::new(order), BATCH, true).expect("an epoch has batches");
        group.bench_function(BenchmarkId::new(name, BATCH), |bencher| {
            bencher.iter(|| loader.next_batch().len);
        });
    }
}

criterion_group!(benches, orders, batches);
criterion_main!(benches);
