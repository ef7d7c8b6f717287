//! What a step should move, from the configuration alone: the formulas of `syncmark_record::bytes` fed with the model's
//! own sizes. Nothing here looks at a counter, so a call too many, too few or of another size shows as a difference.
use syncmark_engine::comm::Collective;
use syncmark_engine::model::node::Op;
use syncmark_engine::model::{Model, resolve};
use syncmark_engine::probe::Phase;
use syncmark_record::bytes::{self, Algorithm, Call, DataParallelStep, Gathered, Traffic};

use crate::plan::config::{Backend, DdpConfig, DpConfig, StrategyConfig, TrialConfig, Zero1Config};
use crate::scenario::file::{Compression, DpLoss, DpTransport};

/// PyTorch's default: PowerSGD leaves tensors alone that it does not make half as small.
const MIN_COMPRESSION_RATE: f64 = 2.0;

/// What one device or rank should send and receive per step in calls of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Device or rank.
    pub device: u32,
    /// For whom.
    pub phase: Phase,
    /// Which.
    pub collective: Collective,
    /// Payload of one call; for DP's copies, whose pieces have no size of their own, the phase's payload of a step.
    pub size_bytes: u64,
    /// Calls a step; for DP's copies not predicted.
    pub calls: Option<u64>,
    /// Bytes a step.
    pub traffic: Traffic,
}

/// All that a steady step of `config` should move, one entry per device, phase, collective and size.
pub fn step(config: &TrialConfig) -> Vec<Expected> {
    if !config.work.steps() {
        return Vec::new();
    }
    let options = config.norm_options();
    let Ok(model) = resolve(
        &config.model,
        &config.model.input,
        config.model.classes,
        config.norm,
        &options,
    ) else {
        return Vec::new();
    };
    match config.strategy {
        StrategyConfig::Single | StrategyConfig::Independent { .. } => Vec::new(),
        StrategyConfig::Dp(ref dp) => data_parallel(config, &model, dp),
        StrategyConfig::Zero1(ref zero1) => (0..config.devices as u32)
            .flat_map(|rank| sharded(config, &model, zero1, rank))
            .collect(),
        StrategyConfig::Ddp(ref ddp) => (0..config.devices as u32)
            .flat_map(|rank| distributed(config, &model, ddp, rank))
            .collect(),
    }
}

/// How the ranks of `config` exchange.
pub fn algorithm(config: &TrialConfig) -> Algorithm {
    match config.strategy.transport() {
        // NCCL does not say what it takes: its traffic is told beside that of a ring.
        Some("tcp" | "nccl") => Algorithm::Ring,
        _ if config.strategy.is_dp_over_nccl() => Algorithm::Ring,
        _ => Algorithm::SharedDirect,
    }
}

fn data_parallel(config: &TrialConfig, model: &Model, dp: &DpConfig) -> Vec<Expected> {
    let loss = dp.loss;
    if config.devices == 1 {
        return Vec::new();
    }
    let facts = model.facts();
    let (label, input) = (
        (size_of::<i32>() * model.labels_per_sample()) as u64,
        (model.input.elements() * size_of::<f32>()) as u64,
    );
    let output = (facts.output.elements() * config.precision.values().size()) as u64;
    let step = DataParallelStep {
        batch: config.batch.global as u64,
        micro_batches: config.accumulation as u64,
        order: dp.device_ids.iter().map(|device| *device as u64).collect(),
        output: dp.output_device as u64,
        scattered_bytes_per_sample: match (config.backend, loss) {
            // GPUs get their chunks from the host's memory.
            (Backend::Cuda, _) => 0,
            (Backend::Cpu, DpLoss::Replica) => input + label,
            (Backend::Cpu, DpLoss::Gathered) => input,
        },
        gathered: match loss {
            DpLoss::Gathered => Gathered::PerSample(output),
            DpLoss::Replica => Gathered::PerReplica(size_of::<f32>() as u64),
        },
        parameter_bytes: facts.parameter_bytes as u64,
        buffer_bytes: facts.buffer_bytes as u64,
    };
    let mut expected = Vec::new();
    let over_nccl = dp.transport == DpTransport::Nccl;
    let called = |phase: &str| over_nccl && matches!(phase, "replicate" | "reduce");
    for phase in step.phases() {
        if called(phase.phase) {
            continue;
        }
        let of_engine = Phase::ALL
            .into_iter()
            .find(|p| p.name() == phase.phase)
            .expect("a phase of the engine");
        let payload = phase.devices.iter().map(|t| t.sent).sum();
        for (device, traffic) in phase
            .devices
            .iter()
            .enumerate()
            .filter(|(_, t)| t.sent + t.received > 0)
        {
            expected.push(Expected {
                device: device as u32,
                phase: of_engine,
                collective: Collective::Copy,
                size_bytes: payload,
                calls: None,
                traffic: *traffic,
            });
        }
    }
    if over_nccl {
        let chunks = bytes::scatter_chunks(step.batch, step.order.len() as u64).len();
        expected.extend(together(config, model, &dp.device_ids[..chunks]));
    }
    expected
}

/// What devices call together, whose ranks are their places: broadcasts of the model by the first, and reduces of gradients to it.
fn together(config: &TrialConfig, model: &Model, devices: &[usize]) -> Vec<Expected> {
    let micro_batches = config.accumulation as u64;
    let parameters: u64 = ready_elements(model).iter().sum();
    let (statistics, counters) = running(model);
    let (send, sum) = (Collective::Broadcast, Collective::Reduce);
    let spans = [
        (Phase::Replicate, send, parameters, size_of::<f32>()),
        (Phase::Replicate, send, statistics, size_of::<f32>()),
        (Phase::Replicate, send, counters, size_of::<i64>()),
        (Phase::Reduce, sum, parameters, size_of::<f32>()),
    ];
    let of_place = |(place, device): (usize, &usize)| {
        let mut calls = Calls {
            ranks: devices.len() as u64,
            rank: place as u32,
            algorithm: algorithm(config),
            expected: Vec::new(),
        };
        if devices.len() > 1 {
            for (phase, collective, elements, width) in spans {
                for call in bytes::coalesced(elements, width as u64) {
                    calls.add(phase, collective, call, width, micro_batches);
                }
            }
        }
        let device = *device as u32;
        let of_device = move |expected| Expected { device, ..expected };
        calls.expected.into_iter().map(of_device)
    };
    devices.iter().enumerate().flat_map(of_place).collect()
}

fn distributed(config: &TrialConfig, model: &Model, ddp: &DdpConfig, rank: u32) -> Vec<Expected> {
    let mut calls = Calls {
        ranks: config.devices as u64,
        rank,
        algorithm: algorithm(config),
        expected: Vec::new(),
    };
    if config.devices == 1 {
        return Vec::new();
    }
    let micro_batches = config.accumulation as u64;
    // With no_sync only the last micro-batch's gradients are reduced, and only the next forward begins with rank 0's buffers.
    let reductions = if ddp.no_sync { 1 } else { micro_batches };
    // Gradients become ready from the last layer to the first, and lie in the arena in that order.
    let ready: Vec<Vec<u64>> = model
        .nodes
        .iter()
        .rev()
        .flat_map(|node| node.parameters())
        .map(|slot| slot.shape.iter().map(|size| *size as u64).collect())
        .collect();
    let sizes: Vec<u64> = ready.iter().map(|shape| shape.iter().product()).collect();
    let (first_cap, cap) = (ddp.first_bucket_cap_bytes, ddp.bucket_cap_bytes);
    let (mut next, mut left) = (0, 0);
    for elements in bytes::bucket_elements(&sizes, first_cap, cap) {
        left += elements;
        let first = next;
        while left > 0 {
            left -= sizes[next];
            next += 1;
        }
        calls.add_bucket(&ready[first..next], elements, ddp.compression, reductions);
    }
    if ddp.broadcast_buffers {
        buffers(&mut calls, model, reductions);
    }
    sync_batch_norm(&mut calls, model, micro_batches);
    calls.expected
}

/// A bucket's gradients are reduce-scattered and its parameters all-gathered, in equal parts.
fn sharded(config: &TrialConfig, model: &Model, zero1: &Zero1Config, rank: u32) -> Vec<Expected> {
    if config.devices == 1 {
        return Vec::new();
    }
    let mut calls = Calls {
        ranks: config.devices as u64,
        rank,
        algorithm: algorithm(config),
        expected: Vec::new(),
    };
    let (first_cap, cap) = (zero1.first_bucket_cap_bytes, zero1.bucket_cap_bytes);
    let buckets = bytes::bucket_elements(&ready_elements(model), first_cap, cap);
    for elements in bytes::divisible_buckets(&buckets, calls.ranks) {
        let (scatter, gather) = (Collective::ReduceScatter, Collective::AllGather);
        calls.add(Phase::ReduceScatter, scatter, elements, size_of::<f32>(), 1);
        let part = elements / calls.ranks;
        calls.add(Phase::AllGather, gather, part, size_of::<f32>(), 1);
    }
    if zero1.broadcast_buffers {
        buffers(&mut calls, model, 1);
    }
    sync_batch_norm(&mut calls, model, config.accumulation as u64);
    calls.expected
}

/// Elements of all parameters: gradients become ready from the last layer to the first, and lie in the arena in that order.
fn ready_elements(model: &Model) -> Vec<u64> {
    let nodes = model.nodes.iter().rev();
    let slots = nodes.flat_map(|node| node.parameters());
    slots.map(|slot| slot.elements() as u64).collect()
}

/// Rank 0's running statistics, and the counts of batches, `times` a step.
fn buffers(calls: &mut Calls, model: &Model, times: u64) {
    let (statistics, counters) = running(model);
    if counters == 0 {
        return;
    }
    let (phase, collective) = (Phase::BufferBroadcast, Collective::Broadcast);
    calls.add(phase, collective, statistics, size_of::<f32>(), times);
    calls.add(phase, collective, counters, size_of::<i64>(), times);
}

/// Running means and variances of all layers that keep them, and the number of such layers, each with a count of batches.
fn running(model: &Model) -> (u64, u64) {
    let channels = model
        .nodes
        .iter()
        .filter_map(|node| node.running_channels());
    channels.fold((0, 0), |(statistics, layers), channels| {
        (statistics + 2 * channels as u64, layers + 1)
    })
}

/// What SyncBN exchanges in a forward and a backward, `times` a step.
fn sync_batch_norm(calls: &mut Calls, model: &Model, times: u64) {
    for node in &model.nodes {
        if let (Op::BatchNorm { sync: true, .. }, Some(channels)) =
            (&node.op, node.running_channels())
        {
            let (forward, backward) = (2 * channels as u64 + 1, 2 * channels as u64);
            for (collective, elements) in [
                (Collective::AllGather, forward),
                (Collective::AllReduce, backward),
            ] {
                let (phase, width) = (Phase::SyncBatchNorm, size_of::<f32>());
                calls.add(phase, collective, elements, width, times);
            }
        }
    }
}

/// Collects the calls of one rank; equal ones become one entry.
struct Calls {
    ranks: u64,
    rank: u32,
    algorithm: Algorithm,
    expected: Vec<Expected>,
}

impl Calls {
    /// The all-reduces of a bucket of tensors of these shapes, `times` a step.
    fn add_bucket(
        &mut self,
        shapes: &[Vec<u64>],
        elements: u64,
        compression: Compression,
        times: u64,
    ) {
        let width = match compression {
            Compression::Fp16 | Compression::Bf16 => 2,
            Compression::None | Compression::Powersgd(_) => size_of::<f32>(),
        };
        let parts = match compression {
            Compression::Powersgd(power) => {
                let rank = power.rank as u64;
                let sum = bytes::low_rank_elements(shapes, rank, MIN_COMPRESSION_RATE);
                vec![sum.plain, sum.p, sum.q]
            }
            Compression::None | Compression::Fp16 | Compression::Bf16 => vec![elements],
        };
        for elements in parts.into_iter().filter(|elements| *elements > 0) {
            let (phase, collective) = (Phase::AllReduce, Collective::AllReduce);
            self.add(phase, collective, elements, width, times);
        }
    }

    /// Adds `times` equal calls a step.
    fn add(
        &mut self,
        phase: Phase,
        collective: Collective,
        elements: u64,
        element_bytes: usize,
        times: u64,
    ) {
        let formula = match collective {
            Collective::Broadcast => bytes::Collective::Broadcast { root: 0 },
            Collective::Reduce => bytes::Collective::Reduce { root: 0 },
            Collective::AllGather => bytes::Collective::AllGather,
            Collective::ReduceScatter => bytes::Collective::ReduceScatter,
            _ => bytes::Collective::AllReduce,
        };
        let element_bytes = element_bytes as u64;
        let call = Call {
            collective: formula,
            algorithm: self.algorithm,
            elements,
            element_bytes,
            ranks: self.ranks,
        };
        let traffic = call
            .traffic(u64::from(self.rank))
            .expect("both algorithms have every collective")
            * times;
        let size_bytes = elements * element_bytes;
        let known = self
            .expected
            .iter_mut()
            .find(|e| e.phase == phase && e.collective == collective && e.size_bytes == size_bytes);
        match known {
            Some(entry) => {
                entry.calls = entry.calls.map(|calls| calls + times);
                entry.traffic += traffic;
            }
            None => {
                self.expected.push(Expected {
                    device: self.rank,
                    phase,
                    collective,
                    size_bytes,
                    calls: Some(times),
                    traffic,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::config::Backend;
    use crate::run::mock;
    use crate::scenario::file::Precision;

    /// Outputs are values, of two bytes in bf16; inputs, parameters and losses are not.
    #[test]
    fn dp_in_bf16_gathers_half_the_bytes() {
        let sent = |precision, loss, phase| -> u64 {
            let mut config = mock::config(mock::dp(loss, 2), 2);
            (config.precision, config.backend) = (precision, Backend::Cuda);
            config.batch.global = 8;
            (config.model.input, config.model.classes) = (vec![4, 8, 8], 3);
            config.model.layers =
                serde_json::from_str(r#"["flatten", {"linear": {"features": 3}}]"#).unwrap();
            let of_phase = step(&config).into_iter().filter(|e| e.phase == phase);
            of_phase.map(|expected| expected.traffic.sent).sum()
        };
        for (loss, phase, share) in [
            (DpLoss::Gathered, Phase::Gather, 2),
            (DpLoss::Gathered, Phase::ScatterGradients, 2),
            (DpLoss::Gathered, Phase::Replicate, 1),
            (DpLoss::Gathered, Phase::Reduce, 1),
            (DpLoss::Replica, Phase::Gather, 1),
        ] {
            let [wide, narrow] =
                [Precision::Fp32, Precision::Bf16].map(|precision| sent(precision, loss, phase));
            assert!(wide > 0, "{loss:?} {phase:?}");
            assert_eq!(narrow * share, wide, "{loss:?} {phase:?}");
        }
        // The host has sent each GPU its chunk.
        for loss in [DpLoss::Gathered, DpLoss::Replica] {
            assert_eq!(sent(Precision::Fp32, loss, Phase::Scatter), 0, "{loss:?}");
        }
    }

    /// Over NCCL the ring's parts of broadcast and reduce, by the devices' places in the order; all else as by copies.
    #[test]
    fn dp_over_nccl_calls_once_for_all_devices() {
        let step_of = |nccl: bool, samples| {
            let mut config = mock::config(mock::dp(DpLoss::Gathered, 3), 3);
            if let StrategyConfig::Dp(dp) = &mut config.strategy {
                dp.device_ids = vec![2, 0, 1];
                dp.output_device = 2;
                if nccl {
                    dp.transport = DpTransport::Nccl;
                }
            }
            (config.backend, config.accumulation) = (Backend::Cuda, 2);
            config.batch.global = samples;
            (config.model.input, config.model.classes) = (vec![3, 4, 4], 3);
            (config.norm, config.model.layers) = (
                syncmark_engine::model::spec::Norm::Batch,
                serde_json::from_str(
                    r#"[{"conv2d":{"channels":5,"kernel":1}},"norm","flatten",{"linear":{"features":3}}]"#,
                )
                .unwrap(),
            );
            step(&config)
        };
        let is_called = |e: &&Expected| matches!(e.phase, Phase::Replicate | Phase::Reduce);
        let of_copies = step_of(false, 7);
        let found = step_of(true, 7);
        let others = |all: &[Expected]| -> Vec<Expected> {
            all.iter().filter(|e| !is_called(e)).copied().collect()
        };
        assert_eq!(others(&found), others(&of_copies));
        // 3 × 5 weights, no biases before a norm, 10 of the norm, 5 × 16 × 3 weights and 3 biases; a mean and a variance of 5 channels, one count.
        let parameters = 4 * (15 + 10 + 240 + 3);
        let calls: Vec<_> = found
            .iter()
            .filter(is_called)
            .map(|e| {
                let moved = (e.traffic.sent, e.traffic.received);
                (e.device, e.collective, e.size_bytes, e.calls, moved)
            })
            .collect();
        let (send, sum) = (Collective::Broadcast, Collective::Reduce);
        let mut expected = Vec::new();
        // The first sends and the last only receives; of a sum it is the other way round.
        for (device, [sends, receives], [adds, takes]) in [
            (2, [1, 0], [0, 1]),
            (0, [1, 1], [1, 0]),
            (1, [0, 1], [1, 1]),
        ] {
            for size in [parameters, 40, 8] {
                let moved = (2 * sends * size, 2 * receives * size);
                expected.push((device, send, size, Some(2), moved));
            }
            let moved = (2 * adds * parameters, 2 * takes * parameters);
            expected.push((device, sum, parameters, Some(2), moved));
        }
        assert_eq!(calls, expected);
        // Four samples are two on each of two devices; the third has no part in it.
        let of_two = step_of(true, 4);
        assert!(of_two.iter().filter(is_called).all(|e| e.device != 1));
        assert!(!step_of(true, 1).iter().any(|e| is_called(&e)));
    }
}
