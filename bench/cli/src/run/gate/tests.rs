//! Which gates a trial needs, and what they compare.
use super::*;
use crate::run::mock::{config, ddp, dp};
use crate::scenario::file::{DpLoss, Launch};

fn of_dp(devices: usize) -> TrialConfig {
    config(dp(DpLoss::Gathered, devices), devices)
}

fn of_ddp(devices: usize) -> TrialConfig {
    config(ddp(Launch::Processes), devices)
}

fn pair(trial: &TrialConfig) -> Pair {
    match Gate::of(trial) {
        Gate::Needed(pair) => *pair,
        Gate::None(why) => panic!("no gate: {why}"),
    }
}

#[test]
fn an_even_trial_is_gated_with_even_chunks() {
    let pair = pair(&of_ddp(2));
    assert_eq!(
        (pair.strategy.batch.global, &pair.strategy.batch.chunks[..]),
        (8, &[4, 4][..])
    );
    assert_eq!(
        (&pair.reference.strategy, pair.reference.devices),
        (&StrategyConfig::Single, 1)
    );
    assert_eq!(
        (&pair.chunks[..], &pair.reference.batch.chunks[..]),
        (&[4, 4][..], &[8][..])
    );
    assert_eq!(pair.reference_name(), "1 device, chunks 4+4");
}

#[test]
fn compressed_gradients_are_allowed_their_rounding_and_powersgd_gets_full_rank() {
    let of = |compression| {
        let mut trial = of_ddp(2);
        if let StrategyConfig::Ddp(ddp) = &mut trial.strategy {
            ddp.compression = compression;
        }
        pair(&trial)
    };
    let stages = |compression| of(compression).stages().map(|s| (s.steps, s.tolerance));
    assert_eq!(stages(Compression::None), [(1, 1e-3), (3, 5e-2)]);
    assert_eq!(stages(Compression::Fp16), [(1, 5e-3), (3, 5e-2)]);
    assert_eq!(stages(Compression::Bf16), [(1, 4e-2), (3, 1e-1)]);
    let power = PowerSgd {
        rank: 1,
        start_step: 1000,
        error_feedback: true,
        warm_start: false,
    };
    assert_eq!(stages(Compression::Powersgd(power)), [(1, 1e-3), (4, 5e-2)]);
    let gated = of(Compression::Powersgd(power));
    let found = gated.strategy.strategy.ddp().map(|ddp| ddp.compression);
    let expected = PowerSgd {
        rank: FULL_RANK,
        start_step: 2,
        ..power
    };
    assert_eq!(found, Some(Compression::Powersgd(expected)));
    // Ranks share a gate: what it proves does not depend on them.
    let other = PowerSgd { rank: 8, ..power };
    assert_eq!(gated.key(), of(Compression::Powersgd(other)).key());
}

#[test]
fn an_uneven_trial_is_gated_with_uneven_chunks() {
    let mut trial = of_dp(4);
    trial.batch = Batch {
        global: 130,
        chunks: vec![33, 33, 33, 31],
    };
    assert_eq!(pair(&trial).chunks, [4, 4, 4, 3]);
    trial.batch = Batch {
        global: 10,
        chunks: vec![3, 3, 3, 1],
    };
    assert_eq!(pair(&trial).chunks, [3, 3, 3, 1]);
    trial.batch = Batch {
        global: 9,
        chunks: vec![3, 3, 3],
    };
    assert_eq!(
        pair(&trial).chunks,
        [3, 3, 3],
        "the fourth device stays without samples, as in the trial"
    );
}

#[test]
fn sync_batch_norm_is_held_against_the_global_batch() {
    let mut trial = of_ddp(2);
    trial.norm = Norm::SyncBatch;
    let pair = pair(&trial);
    assert_eq!(
        (pair.reference.norm, &pair.chunks[..]),
        (Norm::Batch, &[8][..])
    );
    trial
        .model
        .layers
        .push(LayerSpec::BatchNorm(Default::default()));
    assert!(matches!(Gate::of(&trial), Gate::None(_)));
}

#[test]
fn micro_batches_and_what_ddp_exchanges_are_kept() {
    let mut trial = of_ddp(2);
    trial.accumulation = 3;
    let StrategyConfig::Ddp(options) = &mut trial.strategy else {
        unreachable!("of_ddp makes DDP");
    };
    (options.no_sync, options.broadcast_buffers) = (false, false);
    (options.bucket_cap_bytes, options.overlap) = (4096, false);
    let gate = pair(&trial);
    assert_eq!(gate.strategy.strategy, trial.strategy);
    assert_eq!(
        (gate.strategy.accumulation, gate.reference.accumulation),
        (3, 3)
    );
    assert_eq!(
        gate.reference_name(),
        "1 device, chunks 4+4, 3 micro-batches, running statistics of rank 0 alone"
    );
    let plain = pair(&of_ddp(2));
    assert_ne!(
        gate.reference_key(STAGES[0]),
        plain.reference_key(STAGES[0])
    );
    trial.accumulation = 100;
    assert_eq!(pair(&trial).reference.accumulation, MICRO_BATCHES);
}

#[test]
fn trials_that_differ_in_length_share_a_gate_and_strategies_share_a_reference() {
    let (short, mut long) = (of_ddp(2), of_ddp(2));
    long.measure.steps = 1000;
    assert_eq!(pair(&short).key(), pair(&long).key());
    let dp = of_dp(2);
    assert_ne!(pair(&dp).key(), pair(&short).key());
    assert_ne!(
        pair(&dp).reference_key(STAGES[0]),
        pair(&dp).reference_key(STAGES[1])
    );
    assert_eq!(
        pair(&dp).reference_key(STAGES[0]),
        pair(&short).reference_key(STAGES[0])
    );
}

#[test]
fn what_has_nothing_to_agree_with_says_so() {
    assert!(matches!(
        Gate::of(&config(StrategyConfig::Single, 1)),
        Gate::None(_)
    ));
    assert!(matches!(
        Gate::of(&config(
            StrategyConfig::Independent {
                launch: Launch::Threads
            },
            2
        )),
        Gate::None(_)
    ));
}

#[test]
fn every_rank_of_ddp_writes_a_dump_and_dp_writes_one() {
    let dumps = |trial| {
        let pair = pair(&trial);
        pair.strategy_job(STAGES[0], "x", Path::new("gates"))
            .1
            .len()
    };
    assert_eq!(dumps(of_ddp(3)), 3);
    assert_eq!(dumps(of_dp(3)), 1);
}
