//! DataParallel on devices that share one GPU and copy within its memory: it learns what it learns on CPUs, by copies that are counted as
//! those between CPUs are. Without a GPU it says why nothing was run, and fails if SYNCMARK_REQUIRE_GPU=1.
mod gpu;
mod trials;

use std::sync::Arc;

use syncmark_engine::backend::Backend;
use syncmark_engine::comm::Count;
use syncmark_engine::comm::device_links::DeviceLinks;
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::strategy::{Dp, DpLoss, DpSettings, Strategy};
use trials::agree::{described, devices_agree};
use trials::{OPTIMIZER, On, SEED, dp, model, train};

const STEPS: usize = 3;

/// As [`dp`], on one GPU; none, with the reason on stdout, where there is no GPU.
fn on_gpu(model: &Model, len: usize, devices: usize, loss: DpLoss) -> Option<Dp> {
    let mut backends: Vec<Box<dyn Backend>> =
        (0..devices).map(|_| gpu::gpu()).collect::<Option<_>>()?;
    let links = DeviceLinks::new(backends.iter_mut().map(|backend| &mut **backend as _)).unwrap();
    assert!(links.reach().is_empty(), "there is one GPU");
    let settings = DpSettings {
        max_batch: len,
        accumulation: 1,
        seed: SEED,
        optimizer: OPTIMIZER,
        loss,
        device_ids: Vec::new(),
        output_device: None,
        cores: Vec::new(),
    };
    Some(Dp::new(backends, Arc::new(links), model, &settings).unwrap())
}

/// What was counted, but for times, in an order of its own.
fn counted(strategy: &Dp) -> Vec<String> {
    let without_times = |(device, count): (usize, Count)| {
        assert!(!count.transfer_ns.is_empty(), "{count:?} has no time");
        let count = Count {
            wait_ns: Vec::new(),
            transfer_ns: Vec::new(),
            ..count
        };
        format!("device {device}: {count:?}")
    };
    let mut counted: Vec<_> = strategy.counts().into_iter().map(without_times).collect();
    counted.sort_unstable();
    counted
}

#[test]
fn devices_on_one_gpu_learn_what_cpus_learn_by_the_same_copies() {
    let model = model(Norm::Batch);
    // Three devices share 4 samples as 2 and 2, and one has none.
    for (devices, len) in [(2, 9), (3, 9), (3, 4)] {
        for loss in [DpLoss::Gathered, DpLoss::Replica] {
            let Some(mut on_gpu) = on_gpu(&model, len, devices, loss) else {
                return;
            };
            let mut on_cpus = dp(On::Cpu, &model, len, devices, loss);
            let what = format!("{len} samples on {devices} devices, {loss:?}");
            let found = described(&train(&mut on_gpu, STEPS, len, |b| b));
            let expected = described(&train(&mut on_cpus, STEPS, len, |b| b));
            let furthest = devices_agree(&what, &found, &expected);
            println!("{what}: furthest from CPUs: {furthest:.1e}");
            let copies = counted(&on_gpu);
            assert!(!copies.is_empty(), "{what}");
            assert_eq!(copies, counted(&on_cpus), "{what}");
        }
    }
}
