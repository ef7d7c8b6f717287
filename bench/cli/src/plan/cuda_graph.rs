//! Which steps can be one CUDA graph (`train.cuda_graph`).
use crate::scenario::file::{Kind, Scenario, Strategy, Transport};

/// Why a step of the scenario is no single graph, where it is to be one.
pub(super) fn no_graph(scenario: &Scenario) -> Option<&'static str> {
    if !scenario.train.cuda_graph {
        return None;
    }
    match scenario.parallel.strategy {
        _ if scenario.kind != Kind::Train => {
            Some("only kind = \"train\" takes steps that are one CUDA graph")
        }
        Strategy::Dp => Some(
            "a step of DP is no CUDA graph: its controller joins the threads of its devices between phases",
        ),
        Strategy::Ddp | Strategy::Zero1 if scenario.parallel.transport == Transport::Tcp => Some(
            "a step of ranks that exchange over tcp is no CUDA graph: the host takes part in every collective, as it does not over nccl",
        ),
        _ if scenario.train.accumulation > 1 => Some(
            "a step of several micro-batches is no CUDA graph: each is uploaded while the step goes on",
        ),
        Strategy::Single | Strategy::Independent | Strategy::Ddp | Strategy::Zero1 => None,
    }
}
