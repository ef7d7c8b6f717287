//! Training in bfloat16 on a GPU, and with cuBLASLt: it learns what fp32 learns, on one device and on several that share it. Without a GPU it says why nothing
//! was run, and fails if SYNCMARK_REQUIRE_GPU=1.
mod gpu;
mod trials;

use std::sync::Arc;

use syncmark_engine::backend::Backend;
use syncmark_engine::backend::cuda::Precision;
use syncmark_engine::comm::device_links::DeviceLinks;
use syncmark_engine::model::Model;
use syncmark_engine::model::spec::Norm;
use syncmark_engine::probe::Phase;
use syncmark_engine::strategy::{
    Dp, DpInputs, DpLoss, DpSettings, Single, SingleSettings, Strategy,
};
use trials::{Batch, CLASSES, OPTIMIZER, SEED, model, train_on};

/// Enough to learn a batch by heart; later, masks of dropout make single losses large.
const STEPS: usize = 16;
const SAMPLES: usize = 24;

/// How far a step's loss in bfloat16 may be from that in fp32, as a share of the first loss, ln 3 or so: a value is off by 2⁻⁹ of itself after
/// each of some ten layers, and training feeds it back. A wrong kernel is off by as much as the loss itself.
const TOLERANCE: f32 = 0.1;

fn single(backend: Box<dyn Backend>, model: &Model) -> Single {
    let settings = SingleSettings {
        max_batch: SAMPLES,
        accumulation: 1,
        chunks: Vec::new(),
        seed: SEED,
        optimizer: OPTIMIZER,
    };
    Single::new(backend, model, &settings).unwrap()
}

fn losses(strategy: &mut dyn Strategy) -> Vec<f32> {
    // One batch again and again, which can be learned by heart.
    train_on(strategy, STEPS, |_| Batch::new(0, SAMPLES)).losses
}

fn agree(what: &str, found: &[f32], expected: &[f32]) {
    let furthest = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs() / expected[0])
        .fold(0.0f32, f32::max);
    println!(
        "{what}: furthest from fp32: {furthest:.1e} of the first loss\n{found:?}\n{expected:?}"
    );
    assert!(furthest <= TOLERANCE, "{what}: {furthest}");
}

#[test]
fn losses_follow_those_of_fp32() {
    for norm in [Norm::Batch, Norm::Group, Norm::Layer, Norm::Rms] {
        let model = model(norm);
        let Some(wide) = gpu::gpu() else { return };
        let narrow = gpu::gpu_of(Precision::Bf16).expect("there was a GPU just now");
        let expected = losses(&mut single(wide, &model));
        let mut strategy = single(narrow, &model);
        let found = losses(&mut strategy);
        agree(&format!("{norm:?}"), &found, &expected);
        assert_ne!(found, expected, "nothing was rounded");
        assert!(found[STEPS - 1] < 0.5 * found[0], "{norm:?} learns nothing");
    }
}

/// In either precision that it has; on tensor cores all operands of products are rounded.
#[test]
fn losses_with_cublaslt_follow_those_of_fp32() {
    for precision in [Precision::Tf32, Precision::Bf16] {
        let model = model(Norm::Layer);
        let Some(wide) = gpu::gpu() else { return };
        let other = gpu::gpu_with_cublaslt(precision).expect("there was a GPU just now");
        let expected = losses(&mut single(wide, &model));
        let mut strategy = single(other, &model);
        let found = losses(&mut strategy);
        agree(&format!("cuBLASLt, {precision:?}"), &found, &expected);
        assert_ne!(found, expected, "nothing was rounded");
    }
}

/// Outputs and their gradients go between devices in two bytes, everything else in four.
#[test]
fn devices_on_one_gpu_exchange_narrow_outputs() {
    let (model, devices) = (model(Norm::Group), 2);
    for loss in [DpLoss::Gathered, DpLoss::Replica] {
        let Some(wide) = gpu::gpu() else { return };
        let mut backends: Vec<Box<dyn Backend>> = (0..devices)
            .map(|_| gpu::gpu_of(Precision::Bf16).expect("there was a GPU just now"))
            .collect();
        let links =
            DeviceLinks::new(backends.iter_mut().map(|backend| &mut **backend as _)).unwrap();
        let settings = DpSettings {
            max_batch: SAMPLES,
            accumulation: 1,
            seed: SEED,
            optimizer: OPTIMIZER,
            loss,
            inputs: DpInputs::Master,
            device_ids: Vec::new(),
            output_device: None,
            cores: Vec::new(),
        };
        let mut dp = Dp::new(backends, Arc::new(links), &model, &settings).unwrap();
        let found = losses(&mut dp);
        agree(
            &format!("{loss:?}"),
            &found,
            &losses(&mut single(wide, &model)),
        );
        let gathered: Vec<u64> = dp
            .counts()
            .into_iter()
            .filter(|(_, count)| count.phase == Phase::Gather)
            .map(|(_, count)| count.size_bytes)
            .collect();
        let expected = match loss {
            DpLoss::Gathered => (SAMPLES / devices * CLASSES * 2) as u64,
            DpLoss::Replica => 4,
        };
        assert!(
            !gathered.is_empty() && gathered.iter().all(|bytes| *bytes == expected),
            "{gathered:?}"
        );
    }
}
