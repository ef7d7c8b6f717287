//! DataParallel over a written-down NCCL, on devices whose memory is the host's: it learns what it learns by copies, and how it ends.
mod endings;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::SOON;
use crate::backend::cpu::{CpuBackend, CpuDevice};
use crate::backend::{Backend, BackendError, Result};
use crate::comm::links::{HostLinks, Links, PIECE_BYTES};
use crate::comm::nccl::device::{Enter, Interval, Member, OnGpu};
use crate::comm::nccl::fake::{Done, Fake, FakeInterval};
use crate::comm::nccl::library::{Operator, RawStream};
use crate::comm::nccl::links::NcclLinks;
use crate::comm::nccl::transfer::Kind;
use crate::comm::{Collective, Count};
use crate::data::HostBatch;
use crate::half::{Bf16, F16};
use crate::model::spec::{ModelSpec, Norm};
use crate::model::{Model, NormOptions, lower};
use crate::optim::{OptimizerSettings, SgdSettings};
use crate::philox::{self, Purpose};
use crate::probe::{Phase, Silent};
use crate::strategy::{Dp, DpInputs, DpLoss, DpSettings, Strategy};
use crate::tensor::{Dtype, Span};

const INPUT: [usize; 3] = [2, 4, 6];
const CLASSES: usize = 3;
/// Numbers of GPUs, which are not those of devices.
const FIRST_GPU: usize = 10;

/// What a test decides of a device on the host.
#[derive(Default)]
struct Facts {
    loss: Arc<OnceLock<String>>,
    under_way: Arc<AtomicBool>,
    failed: Arc<Mutex<Option<String>>>,
}

/// A device of the host in the place of a GPU's.
struct OnHost<'a> {
    backend: &'a mut dyn Backend,
    facts: &'a Facts,
    gpu: usize,
}

impl OnGpu for OnHost<'_> {
    fn loss(&self) -> Arc<OnceLock<String>> {
        Arc::clone(&self.facts.loss)
    }

    fn enter(&self) -> Enter {
        Arc::new(|| Ok(()))
    }
}

impl Member for OnHost<'_> {
    fn gpu(&self) -> usize {
        self.gpu
    }

    fn stream(&self) -> RawStream {
        RawStream(std::ptr::null_mut())
    }

    fn address(&self, span: Span) -> u64 {
        let memory = self.backend.host_memory().unwrap();
        // SAFETY: nobody writes meanwhile, and only the address is kept.
        unsafe {
            match span.dtype() {
                Dtype::F32 => memory.read::<f32>(span).as_ptr() as u64,
                Dtype::I32 => memory.read::<i32>(span).as_ptr() as u64,
                Dtype::I64 => memory.read::<i64>(span).as_ptr() as u64,
                Dtype::F16 => memory.read::<F16>(span).as_ptr() as u64,
                Dtype::Bf16 => memory.read::<Bf16>(span).as_ptr() as u64,
            }
        }
    }

    fn begin(&mut self) -> Result<()> {
        match self.facts.loss.get() {
            Some(reason) => Err(BackendError::Communication(reason.clone())),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> Result<Interval> {
        let done = !self.facts.under_way.load(Ordering::SeqCst);
        Ok(Interval::Fake(FakeInterval(
            Arc::new(AtomicBool::new(done)),
            Arc::clone(&self.facts.failed),
        )))
    }
}

fn model(layers: &str, norm: Norm) -> Model {
    let spec = ModelSpec {
        name: "test".into(),
        input: INPUT.to_vec(),
        classes: CLASSES,
        layers: serde_json::from_str(layers).unwrap(),
    };
    lower(&spec, &INPUT, CLASSES, norm, &NormOptions::default()).unwrap()
}

const NET: &str = r#"[{"conv2d":{"channels":4,"kernel":3,"padding":1}},"norm","relu","flatten",{"linear":{"features":"classes"}}]"#;

fn settings(max_batch: usize, loss: DpLoss) -> DpSettings {
    DpSettings {
        max_batch,
        accumulation: 1,
        seed: 17,
        optimizer: OptimizerSettings::sgd(SgdSettings {
            learning_rate: 0.05,
            momentum: 0.9,
            weight_decay: 0.0,
            nesterov: false,
        }),
        loss,
        inputs: DpInputs::Master,
        device_ids: Vec::new(),
        output_device: None,
        cores: Vec::new(),
    }
}

fn backends(count: usize) -> Vec<Box<dyn Backend>> {
    let one = |_| Box::new(CpuBackend::new(CpuDevice::default()).unwrap()) as _;
    (0..count).map(one).collect()
}

fn copies(backends: &[Box<dyn Backend>]) -> HostLinks {
    HostLinks::new(backends.iter().map(|backend| &**backend)).unwrap()
}

/// DataParallel over `fake`, and what the test decides of its devices.
fn over(
    fake: &Arc<Fake>,
    model: &Model,
    devices: usize,
    settings: &DpSettings,
) -> (Dp, Arc<Vec<Facts>>) {
    let mut backends = backends(devices);
    let facts: Arc<Vec<Facts>> = Arc::new((0..devices).map(|_| Facts::default()).collect());
    let known = Arc::clone(&facts);
    let copies = Box::new(copies(&backends));
    let links = NcclLinks::over(
        Arc::clone(fake) as _,
        Box::new(move |device, backend, work| {
            work(&mut OnHost {
                backend,
                facts: &known[device],
                gpu: FIRST_GPU + device,
            })
        }),
        backends.iter_mut().map(|backend| &mut **backend as _),
        copies,
    );
    let dp = Dp::new(backends, Arc::new(links.unwrap()), model, settings);
    (dp.unwrap(), facts)
}

fn by_copies(model: &Model, devices: usize, settings: &DpSettings) -> Dp {
    let backends = backends(devices);
    let links = Arc::new(copies(&backends));
    Dp::new(backends, links, model, settings).unwrap()
}

fn step(dp: &mut dyn Strategy, number: usize, len: usize) -> crate::strategy::Result<()> {
    let mut inputs = vec![0.0; len * INPUT.iter().product::<usize>()];
    philox::fill_symmetric(5, Purpose::Inputs, number as u32, 0, 1.7, &mut inputs);
    let labels: Vec<i32> = (0..len)
        .map(|i| ((i * 5 + number) % CLASSES) as i32)
        .collect();
    let batch = HostBatch {
        inputs: &inputs,
        labels: &labels,
        len,
    };
    dp.step(batch, &mut Silent)
}

/// What was counted of two phases, without times.
fn counted(dp: &Dp, phases: [Phase; 2]) -> Vec<(usize, Count)> {
    let of = |(_, count): &(usize, Count)| phases.contains(&count.phase);
    let without_times = |(device, count)| {
        let count = Count {
            wait_ns: Vec::new(),
            transfer_ns: Vec::new(),
            ..count
        };
        (device, count)
    };
    let counts = dp.counts().into_iter().filter(of);
    counts.map(without_times).collect()
}

#[test]
fn it_learns_what_it_learns_by_copies_and_copies_the_same_otherwise() {
    let model = model(NET, Norm::Batch);
    let cases = [
        (1, 5, 1, &[][..], None),
        (2, 8, 1, &[], None),
        (3, 8, 1, &[], None),
        (4, 10, 2, &[2, 0, 3, 1], None),
        (2, 8, 1, &[1, 0], Some(0)),
        // Two devices have the samples; the third computes the loss.
        (3, 4, 1, &[], Some(2)),
    ];
    for (devices, len, accumulation, order, output) in cases {
        for loss in [DpLoss::Gathered, DpLoss::Replica] {
            let settings = DpSettings {
                accumulation,
                device_ids: order.to_vec(),
                output_device: output,
                ..settings(len, loss)
            };
            let fake = Arc::new(Fake::default());
            let (mut nccl, _) = over(&fake, &model, devices, &settings);
            let mut copies = by_copies(&model, devices, &settings);
            for number in 0..3 {
                for dp in [&mut nccl, &mut copies] {
                    step(dp, number, len * accumulation).unwrap();
                }
                // The fake adds in the order of the ranks, as the master does.
                assert_eq!(nccl.loss().unwrap(), copies.loss().unwrap());
            }
            let what = format!("{len} on {devices}, {order:?} {output:?} {loss:?}");
            assert_eq!(nccl.export().unwrap(), copies.export().unwrap(), "{what}");
            for phases in [
                [Phase::Scatter, Phase::Gather],
                [Phase::ScatterGradients, Phase::Gather],
            ] {
                let (found, expected) = (counted(&nccl, phases), counted(&copies, phases));
                assert_eq!(found, expected, "{what}");
            }
        }
    }
}

#[test]
fn calls_are_those_of_ncclbroadcast_and_ncclreduce_and_are_counted_by_payload() {
    let (model, fake) = (model(NET, Norm::Batch), Arc::new(Fake::default()));
    let (mut dp, _) = over(&fake, &model, 2, &settings(4, DpLoss::Gathered));
    step(&mut dp, 0, 4).unwrap();
    let facts = model.facts();
    let parameters = facts.parameter_bytes as u64;
    let statistics = facts.buffer_bytes as u64 - 8;
    let sum = Kind::Reduce {
        operator: Operator::SUM,
        root: 0,
    };
    let send = Kind::Broadcast { root: 0 };
    let expected = [
        (send, parameters / 4, Dtype::F32),
        (send, statistics / 4, Dtype::F32),
        (send, 1, Dtype::I64),
        (sum, parameters / 4, Dtype::F32),
    ];
    let mut addresses = Vec::new();
    for rank in 0..2 {
        let done = fake.done(rank);
        assert_eq!(done.len(), expected.len(), "{done:?}");
        for (done, (kind, count, dtype)) in done.iter().zip(expected) {
            let Done::Group(transfers) = done else {
                panic!("{done:?}");
            };
            let [transfer] = &transfers[..] else {
                panic!("one transfer of each rank");
            };
            let found = (transfer.kind, transfer.count as u64, transfer.dtype);
            assert_eq!(found, (kind, count, dtype));
            assert_eq!(transfer.from, transfer.to, "in place");
            addresses.push(transfer.from);
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 8, "each has memory of its own");
    step(&mut dp, 1, 4).unwrap();
    let counts = counted(&dp, [Phase::Replicate, Phase::Reduce]);
    for device in 0..2 {
        let own: Vec<_> = counts
            .iter()
            .filter(|(of, _)| *of == device)
            .map(|(_, count)| {
                assert_eq!((count.sent_bytes, count.received_bytes), (None, None));
                assert_eq!((count.algorithm, count.calls), ("nccl", 2));
                (count.collective, count.size_bytes)
            })
            .collect();
        let expected = [
            (Collective::Broadcast, 8),
            (Collective::Broadcast, statistics),
            (Collective::Broadcast, parameters),
            (Collective::Reduce, parameters),
        ];
        assert_eq!(own, expected);
    }
    dp.reset_counts();
    assert!(dp.counts().is_empty());
    dp.set_synchronize(false);
    step(&mut dp, 2, 4).unwrap();
    assert!(dp.counts().is_empty(), "nothing is exchanged");
}

#[test]
fn large_spans_go_in_pieces() {
    let layers = r#"["flatten",{"linear":{"features":60000}},{"linear":{"features":"classes"}}]"#;
    let (model, fake) = (model(layers, Norm::None), Arc::new(Fake::default()));
    let (mut dp, _) = over(&fake, &model, 2, &settings(2, DpLoss::Gathered));
    step(&mut dp, 0, 2).unwrap();
    let parameters = model.facts().parameter_bytes as u64;
    let piece = PIECE_BYTES as u64;
    assert!(parameters > piece && parameters < 2 * piece);
    let counts = counted(&dp, [Phase::Replicate, Phase::Reduce]);
    let mut sizes: Vec<_> = counts.iter().map(|(_, count)| count.size_bytes).collect();
    sizes.sort_unstable();
    let rest = parameters - piece;
    assert_eq!(sizes, [[rest; 4], [piece; 4]].concat());
}

#[test]
fn devices_without_samples_have_no_part_in_a_communicator_and_each_is_made_once() {
    let (model, fake) = (model(NET, Norm::Batch), Arc::new(Fake::default()));
    let settings = settings(6, DpLoss::Gathered);
    let (mut dp, _) = over(&fake, &model, 3, &settings);
    let mut copies = by_copies(&model, 3, &settings);
    let mut made = Vec::new();
    // Six samples are two on each device; four are two on two, two are one on two, and one is one on one.
    for (number, len) in [6, 4, 1, 6, 2, 4].into_iter().enumerate() {
        step(&mut dp, number, len).unwrap();
        step(&mut copies, number, len).unwrap();
        made.push(fake.identities.lock().unwrap().len());
    }
    assert_eq!(made, [3, 5, 5, 5, 5, 5]);
    assert_eq!(dp.export().unwrap(), copies.export().unwrap());
    drop(dp);
    let destroyed = |rank| {
        let done = fake.done(rank);
        done.iter().filter(|done| **done == Done::Destroy).count()
    };
    assert_eq!([0, 1, 2].map(destroyed), [2, 2, 1]);
}
