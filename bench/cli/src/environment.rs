//! Describes the machine, the limits and the build that a run's figures belong to.
//!
//! Contract: reads files of the kernel below a root that tests replace, asks NVIDIA's driver where there is one, and never measures
//! anything. What the
//! machine does not say stays `None` or empty. Of the environment's variables only an allow-list is kept.
//! Reference: proc(5), sysfs(5), and `syncmark_record::environment`.
pub mod build;
pub mod cgroup;
pub mod cores;
pub mod gpus;
pub mod machine;
pub mod nvml_fields;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use syncmark_engine::backend::cpu::instructions;
use syncmark_record::environment::machine::Build;
use syncmark_record::environment::{Environment, FORMAT_VERSION};

/// Variables that are recorded by name.
const VARIABLES: [&str; 26] = [
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_VISIBLE_DEVICES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PMI_RANK",
    "PMI_SIZE",
    "RANK",
    "SLURM_JOB_ID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
    "WORLD_SIZE",
];

/// Variables that are recorded by the beginning of their name.
const PREFIXES: [&str; 3] = ["NCCL_", "OMPI_COMM_WORLD_", "SYNCMARK_"];

/// Words in a name that these prefixes must not let through: what keeps strangers out of a job is nobody's business.
const SECRETS: [&str; 5] = ["TOKEN", "SECRET", "PASSWORD", "CREDENTIAL", "_KEY"];

/// The root folder below which `proc`, `sys` and `etc` are looked up.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The machine that this process runs on.
    pub fn machine() -> Self {
        Self(PathBuf::from("/"))
    }

    /// Another folder, laid out like `/`.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// A file's text without white space at its ends; `None` where it is missing, unreadable or empty.
    pub fn read(&self, path: &str) -> Option<String> {
        let bytes = fs::read(self.path(path)).ok()?;
        // The device tree's strings end in a zero byte.
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_string())
    }

    /// The names in a folder; `None` where it cannot be read.
    pub fn list(&self, path: &str) -> Option<Vec<String>> {
        let entries = fs::read_dir(self.path(path)).ok()?;
        let names = entries.map(|entry| entry.ok()?.file_name().into_string().ok());
        names.collect()
    }

    /// Whether a path exists.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The folders on the way to what a path leads to once every link is followed, outermost first; `None` where it leads nowhere.
    pub fn followed(&self, path: &str) -> Option<Vec<String>> {
        let (root, real) = (self.0.canonicalize(), self.path(path).canonicalize());
        let real = real.ok()?;
        let below = real.strip_prefix(root.ok()?).ok()?;
        let words = below.iter().map(|word| word.to_str().map(str::to_owned));
        words.collect()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }
}

/// What the caller knows about the run.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// Name of the scenario.
    pub scenario: &'a str,
    /// Folder of the scenario's file, for the commit; `None` for a scenario that is embedded.
    pub scenario_folder: Option<&'a Path>,
    /// The arguments, program first.
    pub command: Vec<String>,
    /// Start of the run: UTC, RFC 3339.
    pub started: String,
}

/// Describes this machine for a run's `environment.json`.
pub fn capture(run: Run) -> Environment {
    let variables = std::env::vars_os().filter_map(|(name, value)| {
        Some((
            name.into_string().ok()?,
            value.to_string_lossy().into_owned(),
        ))
    });
    let mut environment = describe(&Root::machine(), variables);
    environment.cuda = gpus::with_a_driver();
    environment.scenario = run.scenario.to_string();
    environment.command = run.command;
    environment.started = run.started;
    environment.scenario_commit = run.scenario_folder.and_then(build::checkout);
    environment.build = build::build();
    environment.git_commit = environment.build.commit.clone();
    environment.rustc_version = build::compiler();
    environment
}

/// Describes the machine below `root`, with the variables of the allow-list; the fields of [`Run`], of the build and of GPUs
/// stay empty.
pub fn describe(root: &Root, variables: impl IntoIterator<Item = (String, String)>) -> Environment {
    let affinity = cores::affinity(root);
    let limits = cgroup::limits(root);
    Environment {
        format_version: FORMAT_VERSION,
        syncmark_version: env!("CARGO_PKG_VERSION").to_string(),
        git_commit: None,
        scenario_commit: None,
        build: Build::default(),
        host: root
            .read("proc/sys/kernel/hostname")
            .unwrap_or_else(unknown),
        started: String::new(),
        command: Vec::new(),
        scenario: String::new(),
        operating_system: operating_system(root),
        kernel: root
            .read("proc/sys/kernel/osrelease")
            .unwrap_or_else(unknown),
        cpu_model: cores::model(root).unwrap_or_else(unknown),
        logical_cores: cores::online(root).len() as u32,
        simd_features: cores::simd_features(),
        kernel_instructions: instructions::from_environment()
            .ok()
            .map(|set| set.name().to_owned()),
        memory_bytes: memory_bytes(root, "MemTotal").unwrap_or(0),
        machine: machine::machine(root, &affinity),
        cuda: None,
        auto_backend: None,
        governor: affinity
            .first()
            .and_then(|&core| cores::governor(root, core)),
        affinity,
        cpu_limit_cores: limits.cpu_cores,
        memory_limit_bytes: limits.memory_bytes,
        rustc_version: None,
        load_average: root
            .read("proc/loadavg")
            .and_then(|text| load_average(&text)),
        variables: allowed(variables),
        resumed: Vec::new(),
        launched: None,
        acceptance: None,
    }
}

/// A figure of /proc/meminfo in bytes, such as `MemTotal` or `MemAvailable`.
pub fn memory_bytes(root: &Root, name: &str) -> Option<u64> {
    let text = root.read("proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn unknown() -> String {
    "unknown".to_string()
}

fn operating_system(root: &Root) -> String {
    let release = root
        .read("etc/os-release")
        .or_else(|| root.read("usr/lib/os-release"));
    let pretty = release.as_deref().and_then(|text| {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(value.trim().trim_matches(['"', '\'']).to_string())
    });
    pretty.unwrap_or_else(|| std::env::consts::OS.to_string())
}

fn load_average(text: &str) -> Option<[f64; 3]> {
    let mut loads = text.split_whitespace().map_while(|word| word.parse().ok());
    Some([loads.next()?, loads.next()?, loads.next()?])
}

fn allowed(variables: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let prefixed = |name: &str| PREFIXES.iter().any(|p| name.starts_with(p));
    let secret = |name: &str| SECRETS.iter().any(|word| name.contains(word));
    let kept = |name: &str| VARIABLES.contains(&name) || (prefixed(name) && !secret(name));
    variables
        .into_iter()
        .filter(|(name, _)| kept(name))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Lays files out below a temporary root.
    pub(crate) fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let root = Root::at(folder.path());
        (folder, root)
    }

    #[test]
    fn a_machine_is_described_from_its_files() {
        let (_folder, root) = root(&[
            ("proc/sys/kernel/hostname", "node7\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-28-amd64\n"),
            (
                "proc/meminfo",
                "MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    8192 kB\n",
            ),
            ("proc/loadavg", "0.50 0.25 0.10 1/100 4242\n"),
            (
                "proc/cpuinfo",
                "processor\t: 0\nmodel name\t: Example CPU @ 3 GHz\n",
            ),
            (
                "proc/self/status",
                "Name:\tx\nCpus_allowed:\tc\nCpus_allowed_list:\t2-3\n",
            ),
            ("sys/devices/system/cpu/online", "0-3\n"),
            (
                "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
                "performance\n",
            ),
            (
                "etc/os-release",
                "NAME=Debian\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n",
            ),
        ]);
        let found = describe(&root, []);
        assert_eq!(found.host, "node7");
        assert_eq!(found.kernel, "6.1.0-28-amd64");
        assert_eq!(found.operating_system, "Debian GNU/Linux 13");
        assert_eq!(found.cpu_model, "Example CPU @ 3 GHz");
        assert_eq!((found.logical_cores, found.affinity), (4, vec![2, 3]));
        assert_eq!(found.governor.as_deref(), Some("performance"));
        assert_eq!(found.memory_bytes, 16 << 20);
        assert_eq!(memory_bytes(&root, "MemAvailable"), Some(8 << 20));
        assert_eq!(found.load_average, Some([0.5, 0.25, 0.1]));
    }

    #[test]
    fn what_a_machine_does_not_say_stays_unknown() {
        let (_folder, root) = root(&[
            ("proc/loadavg", "garbage"),
            ("proc/meminfo", "MemTotal: many kB"),
        ]);
        let found = describe(&root, []);
        assert_eq!(
            (found.host.as_str(), found.cpu_model.as_str()),
            ("unknown", "unknown")
        );
        assert_eq!((found.governor, found.load_average), (None, None));
        assert_eq!(
            (found.cpu_limit_cores, found.memory_limit_bytes),
            (None, None)
        );
        assert_eq!(found.memory_bytes, 0);
    }

    #[test]
    fn only_variables_of_the_allow_list_are_kept() {
        let given = [
            "NCCL_DEBUG",
            "RANK",
            "HOME",
            "AWS_SECRET_ACCESS_KEY",
            "MY_NCCL_X",
            "SYNCMARK_MASTER_PORT",
            "SYNCMARK_JOB_TOKEN",
            "NCCL_PROXY_PASSWORD",
            "SYNCMARK_API_KEY",
        ];
        let variables = given.map(|name| (name.to_string(), "1".to_string()));
        let kept: Vec<_> = allowed(variables).into_keys().collect();
        assert_eq!(kept, ["NCCL_DEBUG", "RANK", "SYNCMARK_MASTER_PORT"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_can_be_described() {
        let run = Run {
            scenario: "s",
            scenario_folder: None,
            command: vec!["syncmark".into()],
            started: "t".into(),
        };
        let found = capture(run);
        assert!(found.memory_bytes > 0);
        assert!(!found.affinity.is_empty());
        assert!(found.affinity.len() <= found.logical_cores as usize);
        assert_eq!(
            (found.scenario.as_str(), found.started.as_str()),
            ("s", "t")
        );
    }
}
