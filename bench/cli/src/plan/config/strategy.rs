//! The strategy of a trial, with the settings that it uses and no others.
use serde::{Deserialize, Serialize};

use crate::scenario::file::{Compression, DpLoss, DpTransport, Launch, Transport};

/// A strategy with the settings that it uses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StrategyConfig {
    /// One device.
    Single,
    /// N replicas without synchronization.
    Independent {
        /// What its replicas are.
        launch: Launch,
    },
    /// DataParallel.
    Dp(DpConfig),
    /// DistributedDataParallel.
    Ddp(DdpConfig),
    /// ZeRO-1.
    Zero1(Zero1Config),
}

/// Settings of DataParallel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpConfig {
    /// Where the loss is computed.
    pub loss: DpLoss,
    /// How it replicates and reduces; peer copies on one device, where it does neither.
    #[serde(default, skip_serializing_if = "is_peer_copy")]
    pub transport: DpTransport,
    /// The order of devices; a permutation of 0 to N − 1 whose first holds the master.
    pub device_ids: Vec<usize>,
    /// Where outputs are gathered.
    pub output_device: usize,
    /// The dimension that is scattered.
    pub dim: usize,
}

fn is_peer_copy(transport: &DpTransport) -> bool {
    *transport == DpTransport::PeerCopy
}

/// Settings of DistributedDataParallel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdpConfig {
    /// What its ranks are.
    pub launch: Launch,
    /// How they exchange bytes.
    pub transport: Transport,
    /// A bucket is closed once it holds this much.
    pub bucket_cap_bytes: u64,
    /// The same for the first one.
    pub first_bucket_cap_bytes: u64,
    /// Whether buckets are reduced while backward goes on.
    pub overlap: bool,
    /// Whether only the last micro-batch synchronizes; true with one micro-batch.
    pub no_sync: bool,
    /// What gradients are exchanged as.
    pub compression: Compression,
    /// Whether rank 0's buffers are broadcast.
    pub broadcast_buffers: bool,
}

/// Settings of ZeRO-1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zero1Config {
    /// What its ranks are.
    pub launch: Launch,
    /// How they exchange bytes.
    pub transport: Transport,
    /// A bucket is closed once it holds this much.
    pub bucket_cap_bytes: u64,
    /// The same for the first one.
    pub first_bucket_cap_bytes: u64,
    /// Whether rank 0's buffers are broadcast.
    pub broadcast_buffers: bool,
}

impl StrategyConfig {
    /// `single`, `independent`, `dp`, `ddp` or `zero1`, as in a scenario and in `trials.csv`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Independent { .. } => "independent",
            Self::Dp(_) => "dp",
            Self::Ddp(_) => "ddp",
            Self::Zero1(_) => "zero1",
        }
    }

    /// What its ranks or replicas are, where there is a choice.
    pub fn launched(&self) -> Option<Launch> {
        match self {
            Self::Independent { launch } => Some(*launch),
            Self::Ddp(ddp) => Some(ddp.launch),
            Self::Zero1(zero) => Some(zero.launch),
            Self::Single | Self::Dp(_) => None,
        }
    }

    /// `threads` or `processes` where the strategy has a choice.
    pub fn launch(&self) -> Option<&'static str> {
        self.launched().map(|launch| match launch {
            Launch::Threads => "threads",
            Launch::Processes => "processes",
        })
    }

    /// How ranks exchange bytes, where there are ranks that do.
    pub fn ranks_transport(&self) -> Option<Transport> {
        match self {
            Self::Ddp(ddp) => Some(ddp.transport),
            Self::Zero1(zero) => Some(zero.transport),
            Self::Single | Self::Independent { .. } | Self::Dp(_) => None,
        }
    }

    /// `shared`, `tcp`, `nccl`, or `copies` under DP, as in `trials.csv`.
    pub fn transport(&self) -> Option<&'static str> {
        match (self, self.ranks_transport()) {
            (Self::Dp(_), _) => Some("copies"),
            (_, Some(Transport::Shared)) => Some("shared"),
            (_, Some(Transport::Tcp)) => Some("tcp"),
            (_, Some(Transport::Nccl)) => Some("nccl"),
            (_, None) => None,
        }
    }

    /// `gathered` or `replica` under DP.
    pub fn dp_loss(&self) -> Option<&'static str> {
        match self {
            Self::Dp(dp) => Some(match dp.loss {
                DpLoss::Gathered => "gathered",
                DpLoss::Replica => "replica",
            }),
            _ => None,
        }
    }

    /// `peer-copy` or `nccl` under DP.
    pub fn dp_transport(&self) -> Option<&'static str> {
        match self {
            Self::Dp(dp) => Some(match dp.transport {
                DpTransport::PeerCopy => "peer-copy",
                DpTransport::Nccl => "nccl",
            }),
            _ => None,
        }
    }

    /// Whether its devices exchange by NCCL, given that they are GPUs'.
    pub fn needs_nccl(&self) -> bool {
        self.ranks_transport().is_some() || self.is_dp_over_nccl()
    }

    /// Whether it is DP that replicates and reduces by NCCL.
    pub fn is_dp_over_nccl(&self) -> bool {
        self.dp()
            .is_some_and(|dp| dp.transport == DpTransport::Nccl)
    }

    /// DP's settings.
    pub fn dp(&self) -> Option<&DpConfig> {
        match self {
            Self::Dp(dp) => Some(dp),
            _ => None,
        }
    }

    /// DDP's settings.
    pub fn ddp(&self) -> Option<&DdpConfig> {
        match self {
            Self::Ddp(ddp) => Some(ddp),
            _ => None,
        }
    }

    /// Caps of the buckets, the first one's second, where there are buckets.
    pub fn bucket_caps(&self) -> Option<(u64, u64)> {
        match self {
            Self::Ddp(ddp) => Some((ddp.bucket_cap_bytes, ddp.first_bucket_cap_bytes)),
            Self::Zero1(zero) => Some((zero.bucket_cap_bytes, zero.first_bucket_cap_bytes)),
            Self::Single | Self::Independent { .. } | Self::Dp(_) => None,
        }
    }

    /// Whether rank 0's buffers are broadcast, where there are ranks that could.
    pub fn broadcast_buffers(&self) -> Option<bool> {
        match self {
            Self::Ddp(ddp) => Some(ddp.broadcast_buffers),
            Self::Zero1(zero) => Some(zero.broadcast_buffers),
            Self::Single | Self::Independent { .. } | Self::Dp(_) => None,
        }
    }
}

impl DpConfig {
    /// The order of devices in words, where it is not the usual one.
    pub fn order(&self) -> Option<String> {
        let usual = self.device_ids.iter().copied().eq(0..self.device_ids.len());
        let words: Vec<String> = self.device_ids.iter().map(usize::to_string).collect();
        (!usual).then(|| words.join("+"))
    }

    /// The output device, where it is not the first of the order.
    pub fn other_output(&self) -> Option<usize> {
        Some(self.output_device).filter(|device| self.device_ids.first() != Some(device))
    }
}
