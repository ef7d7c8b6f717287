//! Models of tokens: one device, DataParallel and DistributedDataParallel make the same steps, with padding, dropout and a tied head,
//! for every norm; padding that is left out of batch statistics is left out over all ranks.
mod trials;

use std::ops::Range;

use syncmark_engine::data::{Dataset, HostBatch, Masking, Predict, SyntheticTokens};
use syncmark_engine::model::spec::{BatchNormSpec, LayerSpec, ModelSpec, Norm, Padding};
use syncmark_engine::model::{Model, NormOptions, resolve};
use syncmark_engine::probe::Silent;
use syncmark_engine::program::NamedTensor;
use syncmark_engine::strategy::{DpLoss, Strategy};
use trials::agree::{losses_agree, mean_losses, outcomes_agree, ranks_agree};
use trials::{BOTH, On, Outcome, SEED, dp, follow, ranks, single};

const STEPS: usize = 3;
const LENGTH: usize = 7;
const VOCABULARY: usize = 20;

const NET: &str = r#"[{"embedding":{"vocabulary":"classes","features":12,"padding":0}},"positions",{"dropout":{"p":0.1}},
    {"residual":{"body":["norm",{"attention":{"heads":3,"dropout":0.2}}]}},
    {"residual":{"body":["norm",{"linear":{"features":24}},{"gelu":{}},{"linear":{"features":12}}]}},
    "norm",{"linear":{"features":"classes","tied":true}}]"#;

fn model(norm: Norm, padding: Padding) -> Model {
    let layers: Vec<LayerSpec> = serde_json::from_str(NET).unwrap();
    let spec = ModelSpec {
        name: "test".into(),
        input: vec![LENGTH],
        classes: VOCABULARY,
        layers,
    };
    let options = NormOptions {
        batch: BatchNormSpec {
            padding,
            ..BatchNormSpec::default()
        },
        ..NormOptions::default()
    };
    resolve(&spec, &[LENGTH], VOCABULARY, norm, &options).unwrap()
}

fn data() -> SyntheticTokens {
    SyntheticTokens {
        len: 100,
        length: LENGTH,
        shortest: 2,
        vocabulary: VOCABULARY,
        masking: Masking {
            share: 0.3,
            predict: Predict::Hidden,
            seed: SEED,
        },
    }
}

/// Steps `strategy` through its part of batches of `len` samples.
fn train(strategy: &mut dyn Strategy, len: usize, part: Range<usize>) -> Outcome {
    let data = data();
    follow(strategy, STEPS, |strategy, step| {
        let (mut inputs, mut labels) = (vec![0.0; len * LENGTH], vec![0; len * LENGTH]);
        for sample in 0..len {
            let own = sample * LENGTH..(sample + 1) * LENGTH;
            data.write(step * len + sample, &mut inputs[own.clone()]);
            data.write_labels(step * len + sample, &mut labels[own]);
        }
        let whole = HostBatch {
            inputs: &inputs,
            labels: &labels,
            len,
        };
        strategy
            .step(whole.part(part.clone()), &mut Silent)
            .unwrap();
    })
}

fn train_ddp(on: On, model: &Model, devices: usize, each: usize) -> Vec<Outcome> {
    ranks(on, model, &vec![each; devices], Some(400), |rank, ddp| {
        train(ddp, devices * each, rank * each..(rank + 1) * each)
    })
}

#[test]
fn one_device_dp_and_ddp_agree() {
    let per_sample = [
        Norm::None,
        Norm::Layer,
        Norm::Instance,
        Norm::Group,
        Norm::Rms,
    ];
    let alone = per_sample.map(|norm| (norm, Padding::Counted));
    let batch = [Padding::Counted, Padding::Masked].map(|padding| (Norm::Batch, padding));
    for (norm, padding) in alone.into_iter().chain(batch) {
        let model = model(norm, padding);
        for (on, devices) in BOTH.into_iter().flat_map(|on| [(on, 2), (on, 3)]) {
            let what = format!("{norm:?}, padding {padding:?}, {devices} devices, {on:?}");
            let (len, chunks) = (devices * 2, vec![2; devices]);
            let reference = if norm == Norm::Batch {
                &chunks[..]
            } else {
                &[]
            };
            let expected = train(&mut single(On::Cpu, &model, len, reference), len, 0..len);
            for loss in [DpLoss::Gathered, DpLoss::Replica] {
                let found = train(&mut dp(on, &model, len, devices, loss), len, 0..len);
                outcomes_agree(&format!("DP, {loss:?}, {what}"), &found, &expected);
                losses_agree(&what, &found.losses, &expected.losses);
            }
            let found = train_ddp(on, &model, devices, 2);
            ranks_agree(&format!("DDP, {what}"), &found, &expected);
            losses_agree(&what, &mean_losses(&found), &expected.losses);
        }
    }
}

#[test]
fn padding_is_left_out_over_all_ranks() {
    for (padding, devices) in [
        (Padding::Counted, 2),
        (Padding::Masked, 2),
        (Padding::Masked, 3),
    ] {
        let len = devices * 2;
        let whole = model(Norm::Batch, padding);
        let expected = train(&mut single(On::Cpu, &whole, len, &[]), len, 0..len);
        for outcome in train_ddp(On::Cpu, &model(Norm::SyncBatch, padding), devices, 2) {
            let rename = |tensors: &[NamedTensor]| -> Vec<NamedTensor> {
                let of = |t: &NamedTensor| NamedTensor {
                    name: t.name.replace("sync-batch-norm", "batch-norm"),
                    ..t.clone()
                };
                tensors.iter().map(of).collect()
            };
            let found = Outcome {
                losses: outcome.losses.clone(),
                after_first: rename(&outcome.after_first),
                end: rename(&outcome.end),
            };
            outcomes_agree(
                &format!("{padding:?} on {devices} ranks"),
                &found,
                &expected,
            );
        }
    }
}

#[test]
fn what_is_wrong_is_counted_over_labels() {
    let model = model(Norm::Layer, Padding::Counted);
    let mut strategy = single(On::Cpu, &model, 4, &[]);
    let data = data();
    let len = 10;
    let (mut inputs, mut labels) = (vec![0.0; len * LENGTH], vec![0; len * LENGTH]);
    for sample in 0..len {
        let own = sample * LENGTH..(sample + 1) * LENGTH;
        data.write(sample, &mut inputs[own.clone()]);
        data.write_labels(sample, &mut labels[own]);
    }
    let batch = HostBatch {
        inputs: &inputs,
        labels: &labels,
        len,
    };
    let found = strategy.evaluate(batch).unwrap();
    let labelled = labels.iter().filter(|label| **label >= 0).count();
    assert_eq!((found.samples, found.labels), (len, labelled));
    assert!(
        found.errors <= labelled && found.loss > 1.0 && found.loss < 6.0,
        "{found:?}"
    );
}
