//! Spools of made-up ranks, folded.
use super::*;
use crate::plan::config::{
    Backend, Batch, DataConfig, MeasureConfig, SourceConfig, StrategyConfig, Work,
};
use crate::run::mock::ddp;
use crate::run::spool::{CeilingEvent, CommEvent, LearningEvent};
use crate::scenario::file::{
    CudaBatchNorm, CudaMatmul, Launch, Optimizer, Precision, Scaling, Schedule, Sgd, Transport,
};
use syncmark_engine::comm::Collective;
use syncmark_engine::model::spec::{Features, LayerSpec, LinearSpec, ModelSpec, Norm};
use syncmark_engine::probe::Phase;

/// Two ranks of a linear layer with 3 × 5 weights and 3 biases: one bucket of 18 elements.
fn config() -> TrialConfig {
    let linear = LinearSpec {
        features: Features::Classes,
        bias: None,
        tied: false,
    };
    TrialConfig {
        protocol: 1,
        work: Work::Train,
        model: ModelSpec {
            name: "line".into(),
            input: vec![5],
            classes: 3,
            layers: vec![LayerSpec::Linear(linear)],
        },
        norm: Norm::None,
        norm_groups: None,
        norm_padding: None,
        norm_momentum: None,
        data: DataConfig {
            source: SourceConfig::Synthetic,
            seed: 0,
        },
        optimizer: Optimizer::Sgd(Sgd {
            learning_rate: 0.1,
            momentum: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        }),
        schedule: Schedule::Constant,
        accumulation: 1,
        precision: Precision::Fp32,
        cuda_graph: false,
        cuda_batch_norm: CudaBatchNorm::Own,
        cuda_matmul: CudaMatmul::Cublas,
        train_seed: 0,
        strategy: ddp(Launch::Threads),
        backend: Backend::Cpu,
        devices: 2,
        threads: 1,
        scaling: Scaling::Weak,
        batch: Batch {
            global: 8,
            chunks: vec![4, 4],
        },
        measure: MeasureConfig {
            steps: 3,
            min_time_ns: 0,
            warmup_steps: 0,
            warmup_time_ns: 0,
            timeout_ns: 1,
            trace_steps: 1,
            unsynchronized: true,
            nvtx: false,
            smoke: true,
        },
    }
}

fn fold(config: &TrialConfig, ranks: &[Vec<Event>]) -> RepeatRecord {
    fold_on(&[], config, ranks)
}

fn fold_on(clocks: &[String], config: &TrialConfig, ranks: &[Vec<Event>]) -> RepeatRecord {
    let facts = RepeatFacts {
        trial: "id",
        config,
        repeat: 4,
        order: 2,
        started: "2026-01-01T00:00:00Z".into(),
        outcome: Outcome::Passed,
        reason: None,
        unsynchronized_first: Some(true),
        cores: &[vec![0, 1, 2, 5], vec![7]],
        clocks,
        nccl: None,
    };
    record(&facts, ranks)
}

fn step(pass: Pass, step: u64, start_ns: u64, end_ns: u64) -> Event {
    Event::Step {
        pass: pass_number(pass),
        step,
        start_ns,
        end_ns,
        samples: 4,
    }
}

/// Three steps of 10 ns from `start` on, and the end of the pass.
fn pass(pass: Pass, start: u64) -> Vec<Event> {
    let mut events: Vec<Event> = (0..3)
        .map(|i| step(pass, i, start + 10 * i, start + 10 * i + 10))
        .collect();
    let (number, end) = (pass_number(pass), start + 30);
    events.push(Event::Pass {
        pass: number,
        steps: 3,
        samples: 12,
        start_ns: start,
        end_ns: end,
    });
    events
}

#[test]
fn host_and_device_are_told_apart_in_their_pass_alone() {
    let told = |step| Event::Dispatch {
        step,
        dispatch_ns: 3 + step,
        upload_ns: 2,
        device_ns: 7,
    };
    let events = [
        pass(Pass::Window, 100),
        vec![step(Pass::Dispatch, 0, 200, 210), told(0)],
        // A rank that was killed after the step and before what is told of it.
        vec![step(Pass::Dispatch, 1, 210, 220)],
    ]
    .concat();
    let rows = fold(&config(), &[events]).steps;
    let times: Vec<_> = rows
        .iter()
        .map(|row| (row.pass, row.dispatch_ns, row.upload_ns, row.device_ns))
        .collect();
    let none = (Pass::Window, None, None, None);
    assert_eq!(times[..3], [none; 3]);
    assert_eq!(times[3], (Pass::Dispatch, Some(3), Some(2), Some(7)));
    assert_eq!(times[4], (Pass::Dispatch, None, None, None));
    assert_eq!(rows[3].forward_ns, None, "it has no phases");
}

#[test]
fn times_of_different_hosts_are_never_subtracted() {
    let clocks = ["a".to_owned(), "b".to_owned(), "a".to_owned()];
    let span = |start| Event::Span {
        device: 0,
        track: 1,
        phase: 0,
        bucket: u16::MAX,
        step: 0,
        host_ns: [start, start + 5],
        device_ns: [start, start + 5],
    };
    let rank = |start| [pass(Pass::Window, start), vec![span(start)]].concat();
    // Host b was started an age before host a.
    let record = fold_on(
        &clocks,
        &config(),
        &[rank(100), rank(9_000_000_000), rank(104)],
    );
    assert_eq!(record.repeat.window_ns, Some(34));
    assert_eq!(record.repeat.samples, 36);
    let starts: Vec<(&str, u64)> = record
        .phases
        .iter()
        .map(|row| (row.clock.as_str(), row.start_ns))
        .collect();
    assert_eq!(starts, [("a", 0), ("b", 0), ("a", 4)]);
}

#[test]
fn a_window_lasts_from_the_first_start_to_the_last_end() {
    let row = fold(
        &config(),
        &[pass(Pass::Window, 100), pass(Pass::Window, 107)],
    )
    .repeat;
    assert_eq!((row.window_ns, row.steps, row.samples), (Some(37), 3, 24));
    assert_eq!(
        (row.first_third_ns, row.last_third_ns),
        (Some(10), Some(10))
    );
    assert_eq!(drift(&row), Some(0.0));
    assert_eq!(
        (
            row.unsynchronized_window_ns,
            row.unsynchronized_order.as_deref()
        ),
        (None, Some("before"))
    );
}

#[test]
fn a_killed_rank_leaves_its_finished_steps_and_no_window() {
    let mut killed = pass(Pass::Window, 100);
    killed.truncate(2);
    let record = fold(&config(), &[pass(Pass::Window, 100), killed]);
    assert_eq!(
        (record.repeat.window_ns, record.repeat.first_third_ns),
        (None, None)
    );
    assert_eq!(record.repeat.steps, 3, "of the rank that came furthest");
    let steps: Vec<(u32, u64)> = record
        .steps
        .iter()
        .map(|row| (row.rank, row.step))
        .collect();
    assert_eq!(steps, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]);
}

#[test]
fn a_window_that_slows_down_drifts() {
    let mut events: Vec<Event> = (0..3)
        .map(|i| step(Pass::Window, i, 100 * i, 100 * i + 100))
        .collect();
    events.extend((3..6).map(|i| step(Pass::Window, i, 100 * i, 100 * i + 100)));
    events.extend((6..9).map(|i| step(Pass::Window, i, 600 + 110 * (i - 6), 710 + 110 * (i - 6))));
    events.push(Event::Pass {
        pass: 0,
        steps: 9,
        samples: 36,
        start_ns: 0,
        end_ns: 930,
    });
    let row = fold(&config(), &[events]).repeat;
    assert!((drift(&row).unwrap() - 0.1).abs() < 1e-9, "{row:?}");
}

#[test]
fn phases_are_totals_of_the_traced_pass_alone() {
    let span = |phase: Phase, start: u64, end: u64| Event::Span {
        device: 0,
        track: 1,
        phase: phase as u8,
        bucket: u16::MAX,
        step: 0,
        host_ns: [start, end],
        device_ns: [start, end],
    };
    let mut events = vec![step(Pass::Window, 0, 0, 9), step(Pass::Traced, 0, 20, 60)];
    events.extend([
        span(Phase::Forward, 20, 25),
        span(Phase::Forward, 25, 31),
        span(Phase::Wait, 31, 40),
    ]);
    events.push(Event::Memory {
        device: 0,
        bytes: [1, 2, 3, 4, 5, 6],
    });
    let record = fold(&config(), &[events]);
    let of = |pass| record.steps.iter().find(|row| row.pass == pass).unwrap();
    assert_eq!(
        (of(Pass::Traced).forward_ns, of(Pass::Traced).wait_ns),
        (Some(11), Some(9))
    );
    assert_eq!(
        (of(Pass::Traced).step_ns, of(Pass::Window).forward_ns),
        (40, None)
    );
    assert_eq!(record.phases.len(), 3);
    assert_eq!(
        (record.phases[1].start_ns, record.phases[1].end_ns),
        (5, 11)
    );
    let device = &record.devices[0];
    assert_eq!(
        (device.peak_memory_bytes, device.busy_ns_per_step),
        (21, Some(11)),
        "waiting is not computing"
    );
    assert_eq!(device.cores, "0-2,5");
}

fn all_reduce(device: u16, size_bytes: u64, sent_bytes: u64) -> Event {
    Event::Comm(CommEvent {
        device,
        phase: Phase::AllReduce as u8,
        collective: COLLECTIVES
            .iter()
            .position(|c| *c == Collective::AllReduce)
            .unwrap() as u8,
        algorithm: 0,
        element_bytes: 4,
        root: 0,
        size_bytes,
        calls: 3,
        steps: 3,
        sent_bytes: Some(sent_bytes),
        received_bytes: Some(sent_bytes),
        wait_ns: [1, 2],
        transfer_ns: [3, u32::MAX],
    })
}

#[test]
fn a_bucket_of_the_wrong_size_and_one_that_never_came_both_show() {
    // 18 elements over 2 ranks: each sends 9 + 9 elements, 72 bytes a step.
    let rows = fold(
        &config(),
        &[vec![all_reduce(0, 72, 216)], vec![all_reduce(1, 72, 216)]],
    )
    .comm;
    assert_eq!(rows.len(), 2);
    assert!(
        rows.iter()
            .all(|row| row.predicted_sent_bytes == Some(216) && row.sent_bytes == Some(216)),
        "{rows:?}"
    );
    assert_eq!(
        (rows[0].transfer_ns_p50, rows[0].transfer_ns_p90),
        (Some(3), None)
    );

    let rows = fold(&config(), &[vec![all_reduce(0, 68, 204)]]).comm;
    let seen: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.rank,
                row.size_bytes,
                row.sent_bytes,
                row.predicted_sent_bytes,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (0, 68, Some(204), Some(0)),
            (0, 72, Some(0), Some(216)),
            (1, 72, Some(0), Some(216))
        ]
    );
}

#[test]
fn a_measured_figure_belongs_to_the_totals_before_it() {
    let measured = Event::Measured { sent_bytes: 288 };
    let ranks = [
        vec![all_reduce(0, 72, 216), measured],
        vec![all_reduce(1, 72, 216), pass(Pass::Window, 0)[0], measured],
    ];
    let rows = fold(&config(), &ranks).comm;
    let seen: Vec<_> = rows.iter().map(|row| row.measured_sent_bytes).collect();
    assert_eq!(seen, [Some(288), None]);
}

#[test]
fn ranks_over_tcp_are_compared_with_a_ring() {
    let mut config = config();
    let StrategyConfig::Ddp(ddp) = &mut config.strategy else {
        unreachable!("it is DDP");
    };
    ddp.transport = Transport::Tcp;
    (config.devices, config.batch.chunks) = (3, vec![4; 3]);
    // Chunks of 6 elements: a ring sends two of them in each half, and a rank that never called is missing.
    let rows = fold(&config, &[vec![all_reduce(0, 72, 3 * 96)], vec![], vec![]]).comm;
    let mut seen: Vec<_> = rows
        .iter()
        .map(|row| (row.rank, row.sent_bytes, row.predicted_sent_bytes))
        .collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            (0, Some(288), Some(288)),
            (1, Some(0), Some(288)),
            (2, Some(0), Some(288))
        ]
    );
    // Rank 0's totals say what they were made of; those of ranks that never called are predicted.
    assert!(rows[1..].iter().all(|row| row.algorithm == "ring"));
}

#[test]
fn evaluations_are_a_learning_curve_with_a_closer_look_at_its_end() {
    let at = |step, train_loss, eval_error| {
        Event::Learning(LearningEvent {
            step,
            train_ns: 100 * step,
            train_loss,
            eval_loss: eval_error,
            eval_error,
            ..LearningEvent::NOTHING
        })
    };
    let none = f64::NAN;
    let ranks = [
        vec![
            at(10, 2.0, 0.5),
            at(20, 1.0, 0.25),
            Event::LearningEnd {
                step: 20,
                train_eval: [0.7, 0.1],
                dropout: [none, none],
                precise: [none, none],
            },
            Event::NormStatistics {
                layer: 1,
                channels: 8,
                step: 20,
                values: 64.0,
                batches: 3,
                mean_noise: 0.5,
                variance_noise: 0.25,
            },
        ],
        // Other ranks say nothing of evaluations.
        vec![at(10, 4.0, none), at(20, 3.0, none)],
    ];
    let record = fold(&config(), &ranks);
    let curve: Vec<_> = record
        .learning
        .iter()
        .map(|row| {
            (
                row.step,
                row.samples_seen,
                row.train_loss,
                row.eval_error,
                row.train_ns,
            )
        })
        .collect();
    assert_eq!(
        curve,
        [
            (10, 80, Some(3.0), Some(0.5), Some(1000)),
            (20, 160, Some(2.0), Some(0.25), Some(2000))
        ]
    );
    let ends: Vec<_> = record
        .learning
        .iter()
        .map(|row| (row.train_eval_error, row.precise_error))
        .collect();
    assert_eq!(ends, [(None, None), (Some(0.1), None)]);
    let noise = &record.norm_statistics[0];
    assert_eq!(
        (noise.layer, noise.normalization_batch, noise.variance_noise),
        (1, 4, 0.25)
    );
}

#[test]
fn ceilings_become_rows_with_their_names_and_units() {
    let ceiling = |ceiling, instructions| {
        Event::Ceiling(CeilingEvent {
            ceiling,
            instructions,
            threads: 1,
            windows: 12,
            working_set_bytes: None,
            last_level_cache_bytes: None,
            figures: [2.0, 3.0, 1.0, 2.5],
        })
    };
    // A ceiling of a later version is no row, and no error.
    let events = vec![ceiling(0, 2), ceiling(5, 0), ceiling(200, 0), ceiling(0, 9)];
    let rows = fold(&config(), &[events]).ceilings;
    let told: Vec<_> = rows
        .iter()
        .map(|row| (&row.ceiling[..], row.instructions.as_deref(), &row.unit[..]))
        .collect();
    assert_eq!(
        told,
        [
            ("multiply-add", Some("avx2"), "flop/s"),
            ("tcp-round-trip", None, "ns")
        ]
    );
    assert_eq!((rows[0].median, rows[0].best), (2.0, 3.0));
    assert_eq!((rows[0].p25, rows[0].p75, rows[0].repeat), (1.0, 2.5, 4));
}
