//! The hardware and what limits it, as far as the machine tells.
//!
//! Contract: each field is `None` or empty where nothing could be read: nothing is guessed. Folders of older versions have
//! none of it.
use serde::{Deserialize, Serialize};

/// The machine under a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Physical cores behind the logical ones that are online.
    pub physical_cores: Option<u32>,
    /// Processor packages.
    pub sockets: Option<u32>,
    /// Whether physical cores run more than one hardware thread each.
    pub smt: Option<bool>,
    /// Microcode of the processor.
    pub microcode: Option<String>,
    /// Caches of the first usable core, by level.
    pub caches: Vec<Cache>,
    /// Clock of the first usable core.
    pub frequency: Frequency,
    /// Whether cores may run above their base clock.
    pub turbo: Option<bool>,
    /// NUMA nodes.
    pub numa: Vec<NumaNode>,
    /// Memory that could be had without swapping at the start, in bytes.
    pub memory_available_bytes: Option<u64>,
    /// Size of all swap spaces in bytes; 0 for none.
    pub swap_bytes: Option<u64>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// Huge pages that are set aside.
    pub huge_pages: Option<u64>,
    /// What the kernel keeps time by, such as `tsc`: another source makes each look at the clock a system call.
    pub clock_source: Option<String>,
    /// Whether the processor says that it is virtual.
    pub virtual_machine: Option<bool>,
    /// Hypervisor or cloud, where it names itself.
    pub hypervisor: Option<String>,
    /// Container runtime, where it shows.
    pub container: Option<String>,
    /// Cores of the container or control group.
    pub cpuset: Option<Vec<u32>>,
}

/// One cache of a core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u32,
    /// `data`, `instruction` or `unified`.
    pub kind: String,
    /// Its size.
    pub size_bytes: u64,
    /// Logical cores that share it.
    pub shared_by: Vec<u32>,
}

/// A core's clock in MHz.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Frequency {
    /// Lowest and highest that the governor may choose.
    pub min_mhz: Option<f64>,
    /// See `min_mhz`.
    pub max_mhz: Option<f64>,
    /// Clock without turbo.
    pub base_mhz: Option<f64>,
    /// At the start of the run. A virtual machine may show what it was sold as.
    pub current_mhz: Option<f64>,
    /// What sets it, such as `intel_pstate`.
    pub driver: Option<String>,
}

/// Cores with a memory of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumaNode {
    /// Number of the node.
    pub node: u32,
    /// Its logical cores.
    pub cores: Vec<u32>,
    /// Its memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// What syncmark was built from and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// Commit, with `, with changes` behind it if the sources differed from it. Builds without optimization do not look.
    pub commit: Option<String>,
    /// Target triple.
    pub target: Option<String>,
    /// Cargo's base profile and its optimization level, such as `release, opt-level 3`.
    pub profile: Option<String>,
    /// Libraries that do the work or draw it, with their versions, from the lock file.
    pub libraries: Vec<String>,
}
