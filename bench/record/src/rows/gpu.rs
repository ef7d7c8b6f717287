//! The rows of `gpus.csv`: where a device's GPU sits, and the state it was in while it was timed.
use serde::{Deserialize, Serialize};

use super::Pass;

/// `gpus.csv`: one row per trial, repeat, timed pass and device on a GPU.
///
/// Everything from `watched_ns` on is NVML's, sampled beside the pass, and empty where NVML is missing or does not say.
/// Of devices that share a GPU in one process the first one has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuRow {
    pub trial: String,
    pub repeat: u32,
    /// `window` or `unsynchronized`.
    pub pass: Pass,
    pub device: u32,
    /// Its place, such as `0000:3b:00.0`.
    pub pci_bus_id: String,
    /// Memory node of the host that the GPU hangs on; empty where the kernel does not say.
    pub numa_node: Option<u32>,
    /// Cores that the device's threads are pinned to.
    pub cores: String,
    /// Whether all of them are of that node, and why not.
    pub bound: bool,
    pub unbound_because: Option<String>,
    /// The network adapter that is nearest on the PCI bus, such as `ib0` or `mlx5_0`.
    pub network: Option<String>,
    /// Devices of the same process whose memory its GPU reaches directly, and those it reaches through the host, such as `1+2`.
    /// Only DP copies that way.
    pub peers_direct: Option<String>,
    pub peers_through_host: Option<String>,
    pub watched_ns: Option<u64>,
    pub samples: Option<u64>,
    pub sm_clock_median_mhz: Option<u32>,
    pub sm_clock_min_mhz: Option<u32>,
    /// By how much the mean clock was lower in one third of the pass than in another: 0.05 is 5 %. Empty below 6 samples.
    pub sm_clock_spread: Option<f64>,
    pub temperature_max_celsius: Option<u32>,
    pub power_mean_watts: Option<f64>,
    pub power_max_watts: Option<f64>,
    /// What held the clock back, with the share of samples, such as `the power cap 96 %`; `nothing` where nothing did.
    pub held_back_by: Option<String>,
    /// Share of samples with a reason that counts as a disturbance, and these reasons.
    pub slowdown_share: Option<f64>,
    pub slowdown: Option<String>,
    /// Processes with a context on the GPU that are not the run's, the most at a time, and the memory that they held.
    pub foreign_processes: Option<u64>,
    pub foreign_memory_bytes: Option<u64>,
    /// Payload over all of the GPU's NVLinks in the pass.
    pub nvlink_sent_bytes: Option<u64>,
    pub nvlink_received_bytes: Option<u64>,
    /// Over PCIe, as the GPU counts it; empty where its counter is too narrow to tell whether it began again.
    pub pcie_sent_bytes: Option<u64>,
    pub pcie_received_bytes: Option<u64>,
    /// Packets that were sent again over PCIe: more than a few mean a bad link.
    pub pcie_replays: Option<u64>,
}
