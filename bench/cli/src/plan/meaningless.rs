//! Combinations that mean nothing, whatever computes: why, and what to write instead.
use crate::plan::cuda_graph::no_graph;
use crate::scenario::file::{Kind, Scaling, Scenario, Strategy};

/// Why a combination means nothing.
pub struct Refused {
    /// The key to look at.
    pub key: &'static str,
    /// The reason.
    pub why: String,
    /// What to write instead, where it is all that was asked for.
    pub instead: &'static str,
}

/// Why a combination means nothing, and what to write instead.
pub(super) fn meaningless(scenario: &Scenario, synchronizes: bool) -> Option<Refused> {
    let refused = |why: &str, instead| {
        Some(Refused {
            key: "parallel.strategy",
            why: why.to_owned(),
            instead,
        })
    };
    if scenario.kind == Kind::LayerCost
        && (scenario.parallel.strategy, scenario.parallel.devices) != (Strategy::Single, 1)
    {
        let why = "the nodes of a model are timed on one device, with the strategy single";
        let instead = "write strategy = \"single\" and devices = 1, or kind = \"train\"";
        return refused(why, instead);
    }
    if scenario.kind == Kind::NormCost
        && !matches!(scenario.parallel.strategy, Strategy::Single | Strategy::Ddp)
    {
        let why = "the cost of norms is that of one device, or of ranks under DDP";
        let instead = "write strategy = \"single\" or \"ddp\"";
        return refused(why, instead);
    }
    if let Some(why) = no_graph(scenario) {
        return Some(Refused {
            key: "train.cuda_graph",
            why: why.to_owned(),
            instead: "leave cuda_graph out",
        });
    }
    if scenario.train.normalization_batch.is_some()
        && scenario.parallel.strategy != Strategy::Single
    {
        let why = "a normalization batch is cut out of one device's; other strategies have each device's own";
        let instead = "write strategy = \"single\", or leave normalization_batch out";
        return refused(why, instead);
    }
    if scenario.learns() && scenario.parallel.strategy == Strategy::Independent {
        let why = "independent replicas learn different things";
        return refused(why, "write strategy = \"single\"");
    }
    if matches!(scenario.kind, Kind::LayerCost | Kind::NormCost) && scenario.train.accumulation > 1
    {
        let why = "the nodes of a model are timed in steps of one micro-batch";
        return refused(why, "write accumulation = 1");
    }
    let (devices, batch) = (scenario.parallel.devices, scenario.data.batch_size);
    let divides = scenario.parallel.scaling == Scaling::Weak || batch.is_multiple_of(devices);
    let evenly = "write a batch_size that devices divides, or scaling = \"weak\"";
    match scenario.parallel.strategy {
        Strategy::Single if devices > 1 => refused(
            &format!("single is one device, not {devices}"),
            "write devices = 1, or another strategy",
        ),
        Strategy::Dp if synchronizes => refused(
            "SyncBatchNorm needs ranks, and DP has none: PyTorch refuses it too",
            "write norm = \"batch\", which under DP has each replica's own statistics, or strategy = \"ddp\"",
        ),
        Strategy::Independent if synchronizes => refused(
            "SyncBatchNorm synchronizes, and independent replicas do not",
            "write norm = \"batch\", or strategy = \"ddp\"",
        ),
        Strategy::Ddp | Strategy::Zero1 if !divides => refused(
            &format!(
                "{devices} ranks cannot share a global batch of {batch} evenly, and ranks are averaged, not samples"
            ),
            evenly,
        ),
        Strategy::Independent if !divides => refused(
            &format!("{devices} replicas cannot share a global batch of {batch} evenly"),
            evenly,
        ),
        _ => None,
    }
}
