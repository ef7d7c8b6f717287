//! DDP's communication hooks against PyTorch's own, run by its DDP over gloo on the same gradients.
//!
//! Half precision is compared in bits with two ranks, where there is one order of addition. PowerSGD is compared with PyTorch's
//! results in f64 after every step, with its state: the factors and the error that each rank keeps.
#[allow(dead_code, reason = "shared with golden.rs, which uses the rest")]
#[path = "golden/fixture.rs"]
mod fixture;
mod instructions;
mod ranks;
mod trials;

use fixture::{Fixture, Tensor, values};
use ranks::{PATIENT, Transport, spawn_on};
use syncmark_engine::backend::{Backend, Category, HostSlice, HostSliceMut, Stream};
use syncmark_engine::comm::Communicator;
use syncmark_engine::layout::Layout;
use syncmark_engine::model::Init;
use syncmark_engine::probe::Phase;
use syncmark_engine::program::{NamedTensor, Parameter, TensorData};
use syncmark_engine::shape::Shape;
use syncmark_engine::strategy::hook::{Bucket, Hook, HookPlace};
use syncmark_engine::strategy::{Compression, PowerSgdSettings};
use syncmark_engine::tensor::{Dtype, Span};
use trials::{BOTH, On, device};

/// Norm-wise and relative, of f32 against f64 over a few steps whose errors feed back: some ten roundings of sums over up to
/// 48 elements.
const TOLERANCE: f64 = 1e-5;

/// A rank with a hook and its gradients.
struct Job<'a> {
    fixture: &'a Fixture,
    what: String,
    rank: usize,
    backend: Box<dyn Backend>,
    communicator: Box<dyn Communicator>,
    parameters: Vec<Parameter>,
    gradients: Span,
    state: Span,
    hook: Hook,
    buckets: Vec<Bucket>,
}

/// The fixture's parameters in the order in which a program would hold them.
fn parameters(fixture: &Fixture) -> Vec<Parameter> {
    let mut next = 0;
    let gradients = fixture.with_prefix("gradient.");
    let parameters = gradients
        .into_iter()
        .enumerate()
        .map(|(node, (name, tensor))| {
            let shape = tensor.shape[2..].to_vec();
            let layout = match shape[..] {
                [o, i, k, _] => Layout::convolution(o, i, k),
                [c, h, w] => Layout::activation(Shape::Image { c, h, w }, 1),
                _ => Layout::Same,
            };
            let range = next..next + shape.iter().product::<usize>();
            next = range.end;
            Parameter {
                name,
                node,
                range,
                shape,
                layout,
                init: Init::Zero,
            }
        });
    parameters.collect()
}

fn compression(fixture: &Fixture) -> Compression {
    match fixture.text("hook") {
        "fp16" => Compression::Fp16,
        "bf16" => Compression::Bf16,
        "powersgd" => Compression::PowerSgd(PowerSgdSettings {
            rank: fixture.json("rank"),
            start_step: fixture.json("start_step"),
            error_feedback: fixture.json("error_feedback"),
            warm_start: fixture.json("warm_start"),
            ..PowerSgdSettings::default()
        }),
        other => panic!("a hook {other}"),
    }
}

/// Buckets that end after the parameters `ends`, as one step has them.
fn buckets(parameters: &[Parameter], parts: usize) -> Vec<Bucket> {
    let each = parameters.len().div_ceil(parts);
    let groups: Vec<&[Parameter]> = parameters.chunks(each).collect();
    let bucket = |(index, group): (usize, &&[Parameter])| Bucket {
        range: group[0].range.start..group[group.len() - 1].range.end,
        index,
        last: index + 1 == groups.len(),
    };
    groups.iter().enumerate().map(bucket).collect()
}

impl<'a> Job<'a> {
    fn new(
        fixture: &'a Fixture,
        on: On,
        parts: usize,
        rank: usize,
        communicator: Box<dyn Communicator>,
    ) -> Self {
        let mut backend = device(on, rank);
        let parameters = parameters(fixture);
        let len = parameters.last().unwrap().range.end;
        let gradients = backend
            .allocate(Category::Gradients, Dtype::F32, len)
            .unwrap();
        let state = backend
            .allocate(Category::Workspace, Dtype::I32, 2)
            .unwrap();
        let place = HookPlace {
            gradients,
            parameters: &parameters,
            world_size: communicator.world_size(),
            seed: 3,
            state,
        };
        let hook = Hook::new(&mut *backend, compression(fixture), &place).unwrap();
        Self {
            what: format!("{} on {on:?} in {parts}, rank {rank}", fixture.name),
            fixture,
            rank,
            backend,
            communicator,
            buckets: buckets(&parameters, parts),
            parameters,
            gradients,
            state,
            hook,
        }
    }

    /// Row `index` of a tensor whose first dimension counts steps, or ranks and steps.
    fn row(tensor: &Tensor, index: usize, len: usize) -> &[f64] {
        &tensor.values[index * len..(index + 1) * len]
    }

    fn steps(&self) -> usize {
        self.fixture.with_prefix("gradient.")[0].1.shape[1]
    }

    /// This rank's gradients of a step, through all buckets; returns what the hook left, in PyTorch's order.
    fn step(&mut self, step: usize) -> Vec<Vec<f32>> {
        let (steps, mut memory) = (self.steps(), vec![0.0; self.gradients.len()]);
        for parameter in &self.parameters {
            let tensor = self.fixture.tensor(&format!("gradient.{}", parameter.name));
            let row = Self::row(tensor, self.rank * steps + step, parameter.range.len());
            let file: Vec<f32> = row.iter().map(|value| *value as f32).collect();
            parameter
                .layout
                .to_memory(&file, &mut memory[parameter.range.clone()]);
        }
        let backend = &mut *self.backend;
        let counters = [step as i32, 0];
        backend
            .upload(Stream::Compute, HostSlice::I32(&counters), self.state)
            .unwrap();
        backend
            .upload(Stream::Compute, HostSlice::F32(&memory), self.gradients)
            .unwrap();
        let mut events = Vec::new();
        for bucket in &self.buckets {
            let reduced = self.hook.reduce(backend, &mut *self.communicator, bucket);
            events.push(reduced.unwrap());
        }
        for event in events {
            backend.wait(Stream::Compute, event).unwrap();
        }
        backend
            .download(self.gradients, HostSliceMut::F32(&mut memory))
            .unwrap();
        let tensors = self.parameters.iter().map(|parameter| {
            let mut file = vec![0.0; parameter.range.len()];
            parameter
                .layout
                .to_file(&memory[parameter.range.clone()], &mut file);
            file
        });
        tensors.collect()
    }
}

/// Every rank of a fixture's job, on both backends and with one and with three buckets.
fn on_ranks(fixture: &Fixture, body: impl Fn(Job<'_>) + Sync) {
    for on in BOTH {
        for parts in [1, 3] {
            let transport = Transport::Shared(4096);
            spawn_on(transport, fixture.json("ranks"), PATIENT, |rank| {
                body(Job::new(fixture, on, parts, rank.rank, rank.comm));
            });
        }
    }
}

fn of_hook(hook: &str) -> Vec<Fixture> {
    let all = fixture::of_kind("hook");
    let found: Vec<Fixture> = all.into_iter().filter(|f| f.text("hook") == hook).collect();
    assert!(!found.is_empty(), "no fixture of {hook}");
    found
}

#[test]
fn half_precision_of_two_ranks_has_the_bits_of_pytorch() {
    for fixture in of_hook("fp16").iter().chain(&of_hook("bf16")) {
        if fixture.json::<usize>("ranks") != 2 {
            continue;
        }
        on_ranks(fixture, |mut job| {
            for step in 0..job.steps() {
                let found = job.step(step);
                for (parameter, found) in job.parameters.iter().zip(found) {
                    let mean = job.fixture.tensor(&format!("mean.{}", parameter.name));
                    let expected = Job::row(mean, step, found.len());
                    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                        // From the second step on autograd adds a gradient of -0 to one of +0.
                        let zeros = *found == 0.0 && *expected == 0.0;
                        assert!(
                            zeros || found.to_bits() == (*expected as f32).to_bits(),
                            "{}, step {step}: {} [{i}] is {found:e}, not {expected:e}",
                            job.what,
                            parameter.name
                        );
                    }
                }
            }
        });
    }
}

/// Of more ranks gloo adds in the order of its ring: each of the two additions may round the other way.
#[test]
fn half_precision_of_three_ranks_is_pytorchs_but_for_the_order_of_addition() {
    for (hook, unit, smallest) in [
        ("fp16", 2f64.powi(-11), 2f64.powi(-24)),
        ("bf16", 2f64.powi(-8), f64::from(f32::MIN_POSITIVE)),
    ] {
        for fixture in of_hook(hook) {
            let ranks: usize = fixture.json("ranks");
            if ranks == 2 {
                continue;
            }
            on_ranks(&fixture, |mut job| {
                let steps = job.steps();
                for step in 0..steps {
                    for (parameter, found) in job.parameters.clone().iter().zip(job.step(step)) {
                        let mean = job.fixture.tensor(&format!("mean.{}", parameter.name));
                        let given = job.fixture.tensor(&format!("gradient.{}", parameter.name));
                        let expected = Job::row(mean, step, found.len());
                        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                            let rows = (0..ranks).map(|r| {
                                Job::row(given, r * steps + step, expected_len(given))[i].abs()
                            });
                            let size = rows.sum::<f64>() / ranks as f64;
                            let allowed = 2.0 * (unit * size + smallest);
                            let same = f64::from(*found) == *expected;
                            assert!(
                                same || (f64::from(*found) - expected).abs() <= allowed,
                                "{}: {} [{i}] is {found:e}, not {expected:e}",
                                job.what,
                                parameter.name
                            );
                        }
                    }
                }
            });
        }
    }
}

/// Elements of one rank's gradient of one step.
fn expected_len(tensor: &Tensor) -> usize {
    tensor.shape[2..].iter().product()
}

fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    error / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE)
}

#[test]
fn powersgd_makes_the_steps_and_keeps_the_state_of_pytorch() {
    for fixture in of_hook("powersgd") {
        on_ranks(&fixture, |mut job| {
            let (steps, start) = (job.steps(), fixture.json::<usize>("start_step"));
            for step in 0..steps {
                job.draw(step, start);
                let found = job.step(step);
                for (parameter, found) in job.parameters.iter().zip(found) {
                    let mean = fixture.tensor(&format!("mean.{}", parameter.name));
                    let found: Vec<f64> = found.iter().map(|v| f64::from(*v)).collect();
                    let off = distance(&found, Job::row(mean, step, found.len()));
                    assert!(
                        off <= TOLERANCE,
                        "{}, step {step}: the mean of {} is off by {off:.1e}",
                        job.what,
                        parameter.name
                    );
                }
                if step >= start {
                    job.check_state(step - start);
                }
            }
        });
    }
}

impl Job<'_> {
    /// Puts the fixture's random numbers where PyTorch draws them: before the first compressed step, or before each.
    fn draw(&mut self, step: usize, start: usize) {
        let each = !self.fixture.json::<bool>("warm_start");
        if step < start || (step > start && !each) {
            return;
        }
        let draws = self.fixture.with_prefix("factor.");
        assert!(draws.len() > 1, "{}: factors", self.what);
        let tensor = |(name, tensor): (String, &Tensor)| {
            let shape = tensor.shape[1..].to_vec();
            let row = Self::row(tensor, step - start, shape.iter().product());
            let values = row.iter().map(|value| *value as f32).collect();
            NamedTensor {
                name: format!("q.{name}"),
                shape,
                data: TensorData::F32(values),
            }
        };
        let tensors: Vec<NamedTensor> = draws.into_iter().map(tensor).collect();
        self.hook
            .import_factors(&mut *self.backend, &tensors)
            .unwrap();
    }

    /// Compares factors and errors after compressed step number `row`; what is kept, and nothing else.
    fn check_state(&mut self, row: usize) {
        let ranks: usize = self.fixture.json("ranks");
        let found = self.hook.export(&mut *self.backend).unwrap();
        for (kind, index, kept) in [
            ("p.", row, self.fixture.json::<bool>("warm_start")),
            ("q.", row, self.fixture.json("warm_start")),
            (
                "error.",
                row * ranks + self.rank,
                self.fixture.json("error_feedback"),
            ),
        ] {
            let expected = self.fixture.with_prefix(kind);
            assert_eq!(!expected.is_empty(), kept, "{}: {kind}", self.what);
            for (name, tensor) in expected {
                let name = format!("{kind}{name}");
                let found = found
                    .iter()
                    .find(|tensor| tensor.name == name)
                    .unwrap_or_else(|| panic!("{}: no {name}", self.what));
                let found = values(found);
                let expected = Self::row(tensor, index, found.len());
                let off = distance(&found, expected);
                assert!(
                    off <= TOLERANCE,
                    "{}: {name} after {row} is off by {off:.1e}",
                    self.what
                );
            }
        }
    }
}

#[test]
fn powersgd_moves_its_factors_and_what_it_does_not_compress() {
    for fixture in of_hook("powersgd") {
        let ranks: u64 = fixture.json("ranks");
        on_ranks(&fixture, |mut job| {
            let start: usize = fixture.json("start_step");
            job.communicator.reset_counts();
            let mut expected = 0;
            for step in 0..job.steps() {
                job.draw(step, start);
                job.step(step);
                expected += job.elements_sent(step >= start, ranks);
            }
            let sent = |count: &syncmark_engine::comm::Count| {
                assert_eq!((count.phase, count.element_bytes), (Phase::AllReduce, 4));
                count.sent_bytes.unwrap()
            };
            let sent: u64 = job.communicator.counts().iter().map(sent).sum();
            assert_eq!(sent, 4 * expected, "{}", job.what);
        });
    }
}

impl Job<'_> {
    /// Elements that this rank sends in a step, worked out from the shapes: an all-reduce of len elements sends what
    /// others own, and the own chunk to each of them.
    fn elements_sent(&self, compressed: bool, ranks: u64) -> u64 {
        let rank: u64 = self.fixture.json("rank");
        let all_reduce = |len: u64| {
            let own = len / ranks + u64::from((self.rank as u64) < len % ranks);
            (len - own) + own * (ranks - 1)
        };
        let each = |bucket: &Bucket| {
            let [mut plain, mut p, mut q] = [0; 3];
            for parameter in &self.parameters {
                if !bucket.range.contains(&parameter.range.start) {
                    continue;
                }
                let (len, n) = (parameter.range.len() as u64, parameter.shape[0] as u64);
                let m = len / n;
                let r = rank.min(n).min(m);
                if compressed && 2 * r * (n + m) < len {
                    (p, q) = (p + n * r, q + m * r);
                } else {
                    plain += len;
                }
            }
            all_reduce(plain) + all_reduce(p) + all_reduce(q)
        };
        self.buckets.iter().map(each).sum()
    }
}

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
