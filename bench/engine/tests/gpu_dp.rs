//! DataParallel on devices that share one GPU and copy within its memory: it learns what it learns on CPUs, by copies that are counted as
//! those between CPUs are; and the same on GPUs of their own, where there are several. Without a GPU it says why nothing was run, and fails
//! if SYNCMARK_REQUIRE_GPU=1.
mod gpu;
mod trials;

use std::sync::Arc;

use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cuda::discovery;
use syncmark_engine::comm::Count;
use syncmark_engine::comm::device_links::DeviceLinks;
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::strategy::{Dp, DpInputs, DpLoss, DpSettings, Strategy};
use trials::agree::{described, devices_agree};
use trials::{OPTIMIZER, On, SEED, dp_from, model, train};

const STEPS: usize = 3;

/// As [`dp_from`], on so many GPUs in turn; none, with the reason on stdout, where there is no GPU.
fn on_gpus(
    gpus: usize,
    inputs: DpInputs,
    model: &Model,
    len: usize,
    devices: usize,
    loss: DpLoss,
) -> Option<Dp> {
    let device = |device| gpu::gpu_at(device % gpus);
    let mut backends: Vec<Box<dyn Backend>> = (0..devices).map(device).collect::<Option<_>>()?;
    let links = DeviceLinks::new(backends.iter_mut().map(|backend| &mut **backend as _)).unwrap();
    let used = gpus.min(devices);
    assert_eq!(
        links.reach().len(),
        used * (used - 1),
        "{:?}",
        links.reach()
    );
    let settings = DpSettings {
        max_batch: len,
        accumulation: 1,
        seed: SEED,
        optimizer: OPTIMIZER,
        loss,
        inputs,
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
    learns_what_cpus_learn(1);
}

#[test]
fn devices_on_gpus_of_their_own_learn_what_cpus_learn_by_the_same_copies() {
    match discovery::gpus() {
        Ok(gpus @ 2..) => learns_what_cpus_learn(gpus),
        Ok(_) => println!("not run: there is one GPU"),
        // Whether that is a failure the other test says.
        Err(reason) => println!("not run on GPUs: {reason}"),
    }
}

fn learns_what_cpus_learn(gpus: usize) {
    let model = model(Norm::Batch);
    let both = [DpInputs::Master, DpInputs::Host];
    // Three devices share 4 samples as 2 and 2, and one has none.
    for (devices, len) in [(2, 9), (3, 9), (3, 4)] {
        for (loss, inputs) in [DpLoss::Gathered, DpLoss::Replica]
            .into_iter()
            .flat_map(|loss| both.map(|inputs| (loss, inputs)))
        {
            let Some(mut on_gpus) = on_gpus(gpus, inputs, &model, len, devices, loss) else {
                return;
            };
            let mut on_cpus = dp_from(inputs, On::Cpu, &model, len, devices, loss, 1);
            let what = format!(
                "{len} samples from the {inputs:?} on {devices} devices, GPUs: {gpus}, {loss:?}"
            );
            let found = described(&train(&mut on_gpus, STEPS, len, |b| b));
            let expected = described(&train(&mut on_cpus, STEPS, len, |b| b));
            let furthest = devices_agree(&what, &found, &expected);
            println!("{what}: furthest from CPUs: {furthest:.1e}");
            let copies = counted(&on_gpus);
            assert!(!copies.is_empty(), "{what}");
            assert_eq!(copies, counted(&on_cpus), "{what}");
        }
    }
}
