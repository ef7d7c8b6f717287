//! DataParallel, DistributedDataParallel and ZeRO-1 against PyTorch: fixtures of five steps of convnet, of DP's step written out
//! in PyTorch, and of PyTorch's DDP, without and with its ZeroRedundancyOptimizer, over gloo, in f64.
#[allow(dead_code, reason = "shared with golden.rs, which uses the rest")]
#[path = "golden/fixture.rs"]
mod fixture;
mod instructions;
mod trials;

use std::path::PathBuf;
use std::sync::Arc;

use fixture::{Fixture, Tensor, values};
use syncmark_engine::backend::Backend;
use syncmark_engine::comm::Communicator;
use syncmark_engine::comm::links::HostLinks;
use syncmark_engine::comm::shared::{SharedCommunicator, Waiting};
use syncmark_engine::data::{Dataset, Digits, HostBatch, Split};
use syncmark_engine::model::{Model, NormOptions, resolve};
use syncmark_engine::optim::{AdamwSettings, OptimizerSettings, SgdSettings};
use syncmark_engine::probe::Silent;
use syncmark_engine::program::NamedTensor;
use syncmark_engine::strategy::{
    BucketCaps, Ddp, DdpOptions, DdpSettings, Dp, DpInputs, DpLoss, DpSettings, Strategy, Zero1,
    Zero1Settings,
};
use trials::{BOTH, On, device};

/// A step's loss may be this many times as far from f64 as PyTorch's own f32 gets in any of the steps.
const GAPS: f64 = 3.0;
/// And a few units in the last place more, where PyTorch's gap is by luck nearly nothing.
const FLOOR: f64 = 4.0 * f32::EPSILON as f64;
/// Of a tensor after five steps, norm-wise and relative: the bound of single layers, for the rounding of five steps
/// stays well below it.
const TOLERANCE: f64 = 1e-5;
/// Of the way that AdamW can have gone.
const SHARE_OF_WAY: f64 = 2e-3;

fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../scenarios")
        .join(path)
}

fn digits() -> Digits {
    let read = |name: &str| std::fs::read(file(&format!("data/{name}"))).unwrap();
    let (images, labels) = (
        read("digits.images.idx3-ubyte"),
        read("digits.labels.idx1-ubyte"),
    );
    Digits::parse(&images, &labels, Split::All).unwrap()
}

fn model(fixture: &Fixture) -> Model {
    assert_eq!(fixture.text("source"), "digits");
    let text =
        std::fs::read_to_string(file(&format!("models/{}.toml", fixture.text("model")))).unwrap();
    let norm = serde_json::from_value(fixture.text("norm").into()).unwrap();
    let input: Vec<usize> = fixture.json("input_shape");
    resolve(
        &toml::from_str(&text).unwrap(),
        &input,
        fixture.json("classes"),
        norm,
        &NormOptions::default(),
    )
    .unwrap()
}

fn optimizer(fixture: &Fixture) -> OptimizerSettings {
    let [learning_rate, weight_decay] =
        ["learning_rate", "weight_decay"].map(|key| fixture.json(key));
    if fixture.says("optimizer") {
        assert_eq!(fixture.text("optimizer"), "adamw", "{}", fixture.name);
        return OptimizerSettings::adamw(AdamwSettings {
            learning_rate,
            beta1: fixture.json("beta1"),
            beta2: fixture.json("beta2"),
            eps: fixture.json("eps"),
            weight_decay,
        });
    }
    let momentum = fixture.json("momentum");
    OptimizerSettings::sgd(SgdSettings {
        learning_rate,
        momentum,
        weight_decay,
        nesterov: false,
    })
}

/// Steps through the fixture's batches; of each of a step's `micro_batches` this strategy takes the samples `part`.
fn train(
    fixture: &Fixture,
    strategy: &mut dyn Strategy,
    micro_batches: usize,
    part: std::ops::Range<usize>,
) -> (Vec<f32>, Vec<NamedTensor>) {
    let (data, batch): (Digits, usize) = (digits(), fixture.json("batch"));
    let elements = data.shape().elements();
    let losses = (0..fixture.json("steps_trained")).map(|step: usize| {
        let own = (0..micro_batches).flat_map(|micro| {
            let first = step * batch + micro * batch / micro_batches;
            first + part.start..first + part.end
        });
        let own: Vec<usize> = own.collect();
        let mut inputs = vec![0.0; own.len() * elements];
        for (sample, to) in own.iter().zip(inputs.chunks_exact_mut(elements)) {
            data.write(*sample, to);
        }
        let labels: Vec<i32> = own.iter().map(|sample| data.label(*sample)).collect();
        let samples = HostBatch {
            inputs: &inputs,
            labels: &labels,
            len: own.len(),
        };
        strategy.step(samples, &mut Silent).unwrap();
        strategy.loss().unwrap()
    });
    (losses.collect(), strategy.export().unwrap())
}

fn check_losses(fixture: &Fixture, what: &str, found: &[f32], column: usize, columns: usize) {
    let losses = fixture.tensor("losses");
    assert_eq!(losses.values.len(), found.len() * columns);
    for (step, loss) in found.iter().enumerate() {
        let at = step * columns + column;
        let (expected, error) = (
            losses.values[at],
            (f64::from(*loss) - losses.values[at]).abs(),
        );
        let allowed = GAPS * fixture.fp32_gap("losses") + FLOOR * expected.abs();
        assert!(
            error <= allowed,
            "{what}, step {step}: {loss} is not {expected}: {error:.2e} > {allowed:.2e}"
        );
    }
}

fn check_tensors(fixture: &Fixture, what: &str, prefix: &str, found: &[NamedTensor]) {
    let expected = fixture.with_prefix(prefix);
    assert!(expected.len() > 5, "{what}: {prefix}");
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|d| d * d).sum::<f64>().sqrt();
    let size_of = |tensor: &Tensor| norm(&mut tensor.values.iter().copied());
    // AdamW makes a whole step of a gradient that is all but zero, in a direction that is rounding alone, and no bound on the
    // gradients' rounding bounds that. PyTorch's own f32 shows how far an element may differ; since which ones do is luck, with other
    // instructions too, a small share of the way that a tensor's elements can have gone is allowed besides. A wrong step is a share near 1.
    let adamw = fixture.says("optimizer");
    let way = fixture.json::<f64>("learning_rate") * fixture.json::<f64>("steps_trained");
    let luck = |name: &str, elements: usize| match adamw {
        true => {
            let own = fixture.fp32_gap(&format!("{prefix}{name}"));
            GAPS * own + SHARE_OF_WAY * way * (elements as f64).sqrt()
        }
        false => 0.0,
    };
    for (name, tensor) in expected {
        let found = found
            .iter()
            .find(|t| t.name == name)
            .unwrap_or_else(|| panic!("{what}: no {name}"));
        assert_eq!(found.shape, tensor.shape, "{what}: {name}");
        let found = values(found);
        let error = norm(&mut found.iter().zip(&tensor.values).map(|(a, b)| a - b));
        let size = size_of(tensor);
        assert!(
            error <= TOLERANCE * size + luck(&name, tensor.values.len()),
            "{what}: {name} differs by {:.1e}",
            error / size
        );
    }
}

#[test]
fn dp_makes_the_steps_that_are_written_out_in_pytorch() {
    for fixture in fixture::of_kind("dp") {
        let (model, batch, devices) = (
            model(&fixture),
            fixture.json::<usize>("batch"),
            fixture.json::<usize>("devices"),
        );
        let chunks: Vec<usize> = fixture.json("chunks");
        assert_eq!(
            chunks.len(),
            batch.div_ceil(batch.div_ceil(devices)),
            "{}",
            fixture.name
        );
        for on in BOTH {
            for loss in [DpLoss::Gathered, DpLoss::Replica] {
                // Means of uneven chunks weigh samples unequally, which is not what the fixture did.
                if loss == DpLoss::Replica && chunks.iter().any(|chunk| *chunk != chunks[0]) {
                    continue;
                }
                let what = format!("{} on {on:?}, {loss:?}", fixture.name);
                let backends: Vec<_> = (0..devices).map(|index| device(on, index)).collect();
                let links =
                    Arc::new(HostLinks::new(backends.iter().map(|backend| &**backend)).unwrap());
                let settings = DpSettings {
                    max_batch: batch,
                    accumulation: 1,
                    seed: fixture.json("seed"),
                    optimizer: optimizer(&fixture),
                    loss,
                    inputs: DpInputs::Master,
                    device_ids: Vec::new(),
                    output_device: None,
                    cores: Vec::new(),
                };
                let mut dp = Dp::new(backends, links, &model, &settings).unwrap();
                let (losses, end) = train(&fixture, &mut dp, 1, 0..batch);
                check_losses(&fixture, &what, &losses, 0, 1);
                check_tensors(&fixture, &what, "final.", &end);
            }
        }
    }
}

#[test]
fn ddp_makes_the_steps_of_pytorch_ddp() {
    for fixture in fixture::of_kind("ddp") {
        for on in BOTH {
            check_ranks(&fixture, on, |device, communicator, model, rank, each| {
                let settings = DdpSettings {
                    max_batch: each,
                    sample_offset: rank * each,
                    global_batch: fixture.json::<usize>("ranks") * each,
                    seed: fixture.json("seed"),
                    optimizer: optimizer(&fixture),
                    options: ddp_options(&fixture),
                };
                Box::new(Ddp::new(device, communicator, model, &settings).unwrap())
            });
        }
    }
}

fn ddp_options(fixture: &Fixture) -> DdpOptions {
    let mut options = DdpOptions::default();
    if fixture.says("accumulation") {
        options.accumulation = fixture.json("accumulation");
        options.no_sync = fixture.json("no_sync");
    }
    if fixture.says("broadcast_buffers") {
        options.broadcast_buffers = fixture.json("broadcast_buffers");
    }
    options
}

/// The L2 norm of every tensor: that of one which the fixture does not hold in full.
fn check_norms(fixture: &Fixture, what: &str, found: &[NamedTensor]) {
    let expected = fixture.with_prefix("final_norm.");
    assert_eq!(expected.len(), found_tensors(found).count(), "{what}");
    for (name, tensor) in expected {
        let found = found.iter().find(|t| t.name == name);
        let found = values(found.unwrap_or_else(|| panic!("{what}: no {name}")));
        let (norm, expected) = (
            found.iter().map(|v| v * v).sum::<f64>().sqrt(),
            tensor.values[0],
        );
        assert!(
            (norm - expected).abs() <= TOLERANCE * expected,
            "{what}: the norm of {name} is {norm}, not {expected}"
        );
    }
}

/// Parameters and buffers, without the optimizer's state.
fn found_tensors(found: &[NamedTensor]) -> impl Iterator<Item = &NamedTensor> {
    found.iter().filter(|t| !t.name.starts_with("momentum."))
}

#[test]
fn zero1_makes_the_steps_of_pytorchs_zero_redundancy_optimizer() {
    let fixtures = fixture::of_kind("zero1");
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        for (on, cap) in BOTH.into_iter().zip([None, Some(4000)]) {
            check_ranks(&fixture, on, |device, communicator, model, rank, each| {
                let settings = Zero1Settings {
                    max_batch: each,
                    sample_offset: rank * each,
                    global_batch: fixture.json::<usize>("batch"),
                    accumulation: 1,
                    seed: fixture.json("seed"),
                    optimizer: optimizer(&fixture),
                    bucket_caps: cap.map(BucketCaps::uniform).unwrap_or_default(),
                    broadcast_buffers: true,
                };
                Box::new(Zero1::new(device, communicator, model, &settings).unwrap())
            });
        }
    }
}

/// Trains on every rank what `build` makes of its device, its communicator, the model, which rank it is, and the samples of each.
fn check_ranks(
    fixture: &Fixture,
    on: On,
    build: impl Fn(Box<dyn Backend>, Box<dyn Communicator>, &Model, usize, usize) -> Box<dyn Strategy>
    + Sync,
) {
    let build = &build;
    let (model, ranks) = (model(fixture), fixture.json::<usize>("ranks"));
    let each: usize = fixture.json("per_rank_batch");
    let options = ddp_options(fixture);
    let communicators = SharedCommunicator::for_threads(ranks, Waiting::default()).unwrap();
    std::thread::scope(|scope| {
        for (rank, communicator) in communicators.into_iter().enumerate() {
            let model = &model;
            scope.spawn(move || {
                let what = format!("{} on {on:?}, rank {rank}", fixture.name);
                let device = device(on, rank);
                let mut strategy = build(device, Box::new(communicator), model, rank, each);
                let part = rank * each..(rank + 1) * each;
                let (losses, end) = train(fixture, &mut *strategy, options.accumulation, part);
                check_losses(fixture, &what, &losses, rank, ranks);
                if rank == 0 {
                    check_tensors(fixture, &what, "final.", &end);
                    if fixture.text("kind") == "ddp" {
                        check_norms(fixture, &what, &end);
                    }
                } else if fixture.text("norm") == "batch" {
                    check_tensors(fixture, &what, &format!("final_rank{rank}."), &end);
                }
                assert_eq!(strategy.parameters_equal().unwrap(), Some(true), "{what}");
            });
        }
    });
}

#[test]
fn all_of_this_holds_with_other_instructions() {
    instructions::run_again_without("with_other_instructions");
}
