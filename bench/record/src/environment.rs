//! `environment.json`: the machine, the limits and the build that a run's figures belong to.
//!
//! Contract: a plain description; nothing here asks the operating system (the command line's environment
//! capture does). `None` means that the machine does not say, never that the value is zero.
//! Reference: "A run folder" in ARCHITECTURE.md.
pub mod gpu;
pub mod machine;

use std::collections::BTreeMap;

use gpu::Cuda;
use machine::{Build, Machine};
use serde::{Deserialize, Serialize};

use crate::acceptance::Acceptance;

/// Version of the run folder's format, counted up when a reader of the older one would misread a newer folder.
pub const FORMAT_VERSION: u32 = 1;

/// What a run ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Version of syncmark.
    pub syncmark_version: String,
    /// Commit that syncmark was built from. Before `build` was recorded it could be the scenario's, and said so.
    pub git_commit: Option<String>,
    /// Commit of the checkout that holds the scenario, with `, with changes` behind it if its files differ.
    #[serde(default)]
    pub scenario_commit: Option<String>,
    /// The build.
    #[serde(default)]
    pub build: Build,
    /// Name of the host.
    pub host: String,
    /// Start of the run: UTC, RFC 3339.
    pub started: String,
    /// The arguments, program first.
    pub command: Vec<String>,
    /// Name of the scenario.
    pub scenario: String,
    /// Operating system and its version.
    pub operating_system: String,
    /// Kernel release.
    pub kernel: String,
    /// CPU model as the kernel names it.
    pub cpu_model: String,
    /// Logical cores that are online.
    pub logical_cores: u32,
    /// Cores that this process may run on.
    pub affinity: Vec<u32>,
    /// Vector instruction sets that the kernels can choose from.
    pub simd_features: Vec<String>,
    /// Those that the CPU's kernels run with: `avx512`, `avx2` or `portable`.
    #[serde(default)]
    pub kernel_instructions: Option<String>,
    /// Memory of the machine in bytes.
    pub memory_bytes: u64,
    /// What else the machine tells of itself.
    #[serde(default)]
    pub machine: Machine,
    /// GPUs and NVIDIA's libraries, where there is a driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cuda: Option<Cuda>,
    /// What `parallel.backend = "auto"` stood for, `cpu` or `cuda`; none where no trial left it open. Before this was
    /// recorded it was the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_backend: Option<String>,
    /// Frequency governor of the first core of `affinity`.
    pub governor: Option<String>,
    /// CPU limit of the container or control group, in cores.
    pub cpu_limit_cores: Option<f64>,
    /// Memory limit of the container or control group, in bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Compiler that syncmark was built with.
    pub rustc_version: Option<String>,
    /// Load averages over 1, 5 and 15 minutes at the start.
    pub load_average: Option<[f64; 3]>,
    /// Environment variables from an allow-list; never the whole environment.
    pub variables: BTreeMap<String, String>,
    /// When the run was taken up again after an interruption: UTC, RFC 3339.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumed: Vec<String>,
    /// The processes of a launcher, where one started this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched: Option<Launched>,
    /// What accepted the several GPUs of this machine, where something has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceptance: Option<Acceptance>,
}

/// A run whose ranks a launcher started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launched {
    /// Who.
    pub launcher: String,
    /// One per rank, in rank order.
    pub agents: Vec<AgentRecord>,
}

/// Where a rank ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// The rank.
    pub rank: u32,
    /// Name of its host.
    pub host: String,
    /// CPU model of its host.
    pub cpu_model: String,
    /// Cores that its process may run on.
    pub affinity: Vec<u32>,
    /// Cores that it was given in trials of all ranks.
    pub cores: Vec<u32>,
}

impl Environment {
    /// Load averages over 1 minute per usable core: above about 0.3, something else ran beside the measurement.
    pub fn load_per_core(&self) -> Option<f64> {
        let cores = self.affinity.len().max(1) as f64;
        self.load_average.map(|load| load[0] / cores)
    }
}

#[cfg(test)]
pub(crate) fn sample() -> Environment {
    Environment {
        format_version: FORMAT_VERSION,
        syncmark_version: "0.1.0".into(),
        git_commit: None,
        scenario_commit: None,
        build: Build::default(),
        host: "example".into(),
        started: "2026-01-02T03:04:05Z".into(),
        command: vec!["syncmark".into(), "run".into(), "quickstart.toml".into()],
        scenario: "quickstart".into(),
        operating_system: "Debian GNU/Linux 13".into(),
        kernel: "6.12.0".into(),
        cpu_model: "Example CPU".into(),
        logical_cores: 4,
        affinity: vec![0, 2],
        simd_features: vec!["avx2".into()],
        kernel_instructions: Some("avx2".into()),
        memory_bytes: 8 << 30,
        machine: Machine {
            turbo: Some(false),
            ..Machine::default()
        },
        cuda: Some(Cuda {
            driver: Some("580.82.07".into()),
            gpus: vec![gpu::Gpu {
                name: "Example GPU".into(),
                nvlinks: vec![gpu::NvLink::default()],
                ..gpu::Gpu::default()
            }],
            ..Cuda::default()
        }),
        auto_backend: Some("cuda".into()),
        governor: None,
        cpu_limit_cores: Some(2.0),
        memory_limit_bytes: None,
        rustc_version: None,
        load_average: Some([0.5, 0.2, 0.1]),
        variables: BTreeMap::from([("OMP_NUM_THREADS".into(), "1".into())]),
        resumed: vec!["2026-01-02T04:00:00Z".into()],
        launched: Some(Launched {
            launcher: "torchrun".into(),
            agents: vec![AgentRecord {
                rank: 0,
                host: "example".into(),
                cpu_model: "Example CPU".into(),
                affinity: vec![0, 2],
                cores: vec![0],
            }],
        }),
        acceptance: Some(Acceptance::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_round_trip_keeps_every_field() {
        let text = serde_json::to_string(&sample()).unwrap();
        assert_eq!(
            serde_json::from_str::<Environment>(&text).unwrap(),
            sample()
        );
    }

    #[test]
    fn an_environment_of_the_first_version_is_read() {
        let mut value = serde_json::to_value(sample()).unwrap();
        let fields = value.as_object_mut().unwrap();
        for newer in [
            "scenario_commit",
            "build",
            "machine",
            "cuda",
            "auto_backend",
            "resumed",
            "launched",
            "acceptance",
        ] {
            fields.remove(newer).unwrap();
        }
        let read: Environment = serde_json::from_value(value).unwrap();
        assert_eq!((read.machine, read.build), Default::default());
        assert_eq!((read.cuda, read.auto_backend), (None, None));
        assert_eq!(read.host, "example");
    }

    #[test]
    fn a_gpu_that_tells_less_is_read() {
        let text =
            r#"{"gpus": [{"index": 3, "clocks": {"sm_mhz": 345}}], "of_a_later_version": 1}"#;
        let read: Cuda = serde_json::from_str(text).unwrap();
        assert_eq!(
            (read.gpus[0].index, read.gpus[0].clocks.sm_mhz),
            (3, Some(345))
        );
        assert_eq!(read.gpus[0].ecc, None);
    }

    #[test]
    fn load_is_counted_per_usable_core() {
        assert_eq!(sample().load_per_core(), Some(0.25));
    }
}
