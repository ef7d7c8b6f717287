//! From the text of a scenario to a plan: what every command pays before it does anything.
//!
//! Run with `cargo bench -p syncmark --bench plan` on an idle machine.
use criterion::{Criterion, criterion_group, criterion_main};
use syncmark::plan::build::{Request, build};
use syncmark::scenario::file::Scenario;
use syncmark::scenario::preset::SCENARIOS;
use syncmark::scenario::read::read;
use syncmark::scenario::tree::Node;

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scenario");
    for (name, text) in SCENARIOS {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let tree = Node::parse(text, 0).expect("shipped scenarios are TOML");
                read::<Scenario>(&tree).expect("and scenarios")
            });
        });
    }
}

fn planning(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    for (name, text) in SCENARIOS {
        let request = Request {
            name: name.to_owned(),
            text: text.to_owned(),
            ..Request::default()
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| build(&request).expect("shipped scenarios have plans"));
        });
    }
}

criterion_group!(benches, parsing, planning);
criterion_main!(benches);
