//! DataParallel over NCCL, a GPU for each device: it learns what it learns on CPUs by copies, and copies what these copy beside it. Two devices
//! on one GPU are refused. Without a GPU it says why nothing was run, and fails if SYNCMARK_REQUIRE_GPU=1; what needs several GPUs says so
//! where there is one.
mod gpu;
mod trials;

use std::sync::Arc;

use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cuda::library::{self, Library};
use syncmark_engine::backend::cuda::{CudaBackend, CudaDevice, discovery};
use syncmark_engine::comm::device_links::DeviceLinks;
use syncmark_engine::comm::nccl::NcclLinks;
use syncmark_engine::comm::{Collective, Count};
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Phase;
use syncmark_engine::strategy::{Dp, DpInputs, DpLoss, DpSettings, Strategy};
use trials::agree::{described, devices_agree};
use trials::{OPTIMIZER, On, SEED, dp, model, train};

const STEPS: usize = 3;

/// How many GPUs there are; none, with the reason on stdout, where nothing can be run on them.
fn gpus() -> Option<usize> {
    gpu::gpu()?;
    if let Err(missing) = library::find(Library::Nccl) {
        let required = std::env::var_os(gpu::REQUIRED).is_some_and(|value| value == "1");
        assert!(!required, "{} is set: {missing}", gpu::REQUIRED);
        println!("not run on a GPU: {missing}");
        return None;
    }
    Some(discovery::gpus().unwrap())
}

/// A device on each of these GPUs.
fn backends(ordinals: impl IntoIterator<Item = usize>) -> Vec<Box<dyn Backend>> {
    let device = |ordinal| {
        let device = CudaDevice {
            ordinal,
            ..CudaDevice::default()
        };
        Box::new(CudaBackend::new(device).unwrap()) as _
    };
    ordinals.into_iter().map(device).collect()
}

fn links(
    backends: &mut [Box<dyn Backend>],
) -> Result<NcclLinks, syncmark_engine::backend::BackendError> {
    let copies = DeviceLinks::new(backends.iter_mut().map(|backend| &mut **backend as _)).unwrap();
    let devices = backends.iter_mut().map(|backend| &mut **backend as _);
    NcclLinks::new(devices, Box::new(copies))
}

fn over_nccl(model: &Model, len: usize, loss: DpLoss, order: &[usize]) -> Dp {
    let mut backends = backends(0..order.len());
    let links = links(&mut backends).unwrap();
    let settings = DpSettings {
        max_batch: len,
        accumulation: 1,
        seed: SEED,
        optimizer: OPTIMIZER,
        loss,
        inputs: DpInputs::Master,
        device_ids: order.to_vec(),
        output_device: None,
        cores: Vec::new(),
    };
    Dp::new(backends, Arc::new(links), model, &settings).unwrap()
}

/// What was counted of what is copied, or of what is called, without times and in an order of its own.
fn counted(strategy: &Dp, called: bool) -> Vec<(usize, Count)> {
    let is_called = |(_, count): &(usize, Count)| {
        matches!(count.phase, Phase::Replicate | Phase::Reduce) == called
    };
    let without_times = |(device, count): (usize, Count)| {
        assert!(!count.transfer_ns.is_empty(), "{count:?} has no time");
        let count = Count {
            wait_ns: Vec::new(),
            transfer_ns: Vec::new(),
            ..count
        };
        (device, count)
    };
    let counts = strategy.counts().into_iter().filter(is_called);
    let mut counted: Vec<_> = counts.map(without_times).collect();
    counted.sort_by_key(|(device, count)| (*device, format!("{count:?}")));
    counted
}

#[test]
fn devices_on_gpus_of_their_own_learn_what_cpus_learn_by_copies() {
    let Some(gpus) = gpus() else { return };
    if gpus < 2 {
        println!("not run on several GPUs: there is one");
        return;
    }
    let model = model(Norm::Batch);
    let most = gpus.min(4);
    let usual: Vec<usize> = (0..most).collect();
    let turned: Vec<usize> = (0..most).rev().collect();
    // The last has samples for fewer devices than there are, if there are more than two.
    for (order, len) in [(&usual[..2], 9), (&usual, 9), (&turned, 9), (&usual, 4)] {
        for loss in [DpLoss::Gathered, DpLoss::Replica] {
            let mut on_gpus = over_nccl(&model, len, loss, order);
            let mut on_cpus = dp(On::Cpu, &model, len, order.len(), loss);
            let what = format!("{len} samples on devices {order:?}, {loss:?}");
            let found = described(&train(&mut on_gpus, STEPS, len, |b| b));
            let expected = described(&train(&mut on_cpus, STEPS, len, |b| b));
            let furthest = devices_agree(&what, &found, &expected);
            println!("{what}: furthest from CPUs: {furthest:.1e}");
            if order.is_sorted() {
                let copies = counted(&on_cpus, false);
                assert!(!copies.is_empty(), "{what}");
                assert_eq!(counted(&on_gpus, false), copies, "{what}");
            }
            let used = len.div_ceil(len.div_ceil(order.len()));
            let calls = counted(&on_gpus, true);
            let parameters = model.facts().parameter_bytes as u64;
            for collective in [Collective::Broadcast, Collective::Reduce] {
                let whole = calls.iter().filter(|(_, count)| {
                    let key = (count.collective, count.size_bytes, count.algorithm);
                    key == (collective, parameters, "nccl") && count.calls == STEPS as u64
                });
                assert_eq!(whole.count(), used, "{what}: {calls:?}");
            }
            assert!(calls.iter().all(|(_, count)| count.sent_bytes.is_none()));
        }
    }
}

#[test]
fn two_devices_on_one_gpu_are_refused() {
    if gpus().is_none() {
        return;
    }
    let mut backends = backends([0, 0]);
    let said = links(&mut backends).err().unwrap().to_string();
    assert!(said.contains("devices 0 and 1 are both on GPU 0"), "{said}");
}
