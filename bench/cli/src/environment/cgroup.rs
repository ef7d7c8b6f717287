//! The limits that a container or control group puts on CPU time and memory.
//!
//! Contract: the tightest limit on the way from this process's group up to the root of its hierarchy, for control
//! groups v2 and, where a controller is not there, v1. No limit is `None`.
//! Reference: the kernel's admin-guide/cgroup-v2 and admin-guide/cgroup-v1.
use super::{Root, cores};

/// Memory limits of v1 at or above this mean "none": the kernel writes the largest multiple of a page.
const V1_UNLIMITED: u64 = 1 << 60;

/// Limits of this process's control groups.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// CPU time in cores: quota over period.
    pub cpu_cores: Option<f64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// Reads the limits of the process's own groups.
pub fn limits(root: &Root) -> Limits {
    let groups = root.read("proc/self/cgroup").unwrap_or_default();
    let unified = folders(&groups, "", "sys/fs/cgroup");
    let cpu = folders(&groups, "cpu", "sys/fs/cgroup/cpu");
    let memory = folders(&groups, "memory", "sys/fs/cgroup/memory");
    let unified_cpu = unified
        .iter()
        .filter_map(|at| cpu_v2(&root.read(&format!("{at}/cpu.max"))?));
    let v1_cpu = cpu.iter().filter_map(|at| cpu_v1(root, at));
    let unified_memory = unified
        .iter()
        .filter_map(|at| root.read(&format!("{at}/memory.max"))?.parse().ok());
    let v1_memory = memory
        .iter()
        .filter_map(|at| {
            root.read(&format!("{at}/memory.limit_in_bytes"))?
                .parse()
                .ok()
        })
        .filter(|bytes: &u64| *bytes < V1_UNLIMITED);
    Limits {
        cpu_cores: unified_cpu.chain(v1_cpu).min_by(f64::total_cmp),
        memory_bytes: unified_memory.chain(v1_memory).min(),
    }
}

/// The cores of this process's group, or of the nearest one above it that names any.
pub fn cpuset(root: &Root) -> Option<Vec<u32>> {
    let groups = root.read("proc/self/cgroup").unwrap_or_default();
    let unified = folders(&groups, "", "sys/fs/cgroup")
        .into_iter()
        .map(|at| format!("{at}/cpuset.cpus.effective"));
    let v1 = folders(&groups, "cpuset", "sys/fs/cgroup/cpuset")
        .into_iter()
        .map(|at| format!("{at}/cpuset.cpus"));
    unified
        .chain(v1)
        .find_map(|file| cores::list(&root.read(&file)?))
}

/// The folders of a process's group and of all groups above it, the hierarchy's root last.
///
/// `controller` is empty for v2. Inside a container the path may lie outside of what is mounted; then only the
/// mounted root, which is the container's own group, is found.
fn folders(groups: &str, controller: &str, mount: &str) -> Vec<String> {
    let path = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| fields.next())?
    });
    let mut parts: Vec<&str> = path
        .unwrap_or("")
        .split('/')
        .filter(|part| !part.is_empty() && *part != "..")
        .collect();
    let mut folders = Vec::with_capacity(parts.len() + 1);
    loop {
        folders.push(
            std::iter::once(mount)
                .chain(parts.iter().copied())
                .collect::<Vec<_>>()
                .join("/"),
        );
        if parts.pop().is_none() {
            return folders;
        }
    }
}

/// `cpu.max` of v2: "quota period" in microseconds, or "max period".
fn cpu_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    cores(quota.parse().ok()?, period.trim().parse().ok()?)
}

/// `cpu.cfs_quota_us` of v1, -1 for none, and `cpu.cfs_period_us`.
fn cpu_v1(root: &Root, folder: &str) -> Option<f64> {
    let read = |name: &str| root.read(&format!("{folder}/{name}"))?.parse::<f64>().ok();
    cores(read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?)
}

fn cores(quota: f64, period: f64) -> Option<f64> {
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::super::tests::root;
    use super::*;

    #[test]
    fn the_tightest_limit_of_nested_groups_counts() {
        let (_folder, root) = root(&[
            ("proc/self/cgroup", "0::/kubepods/pod1/container\n"),
            ("sys/fs/cgroup/kubepods/cpu.max", "800000 100000\n"),
            ("sys/fs/cgroup/kubepods/pod1/cpu.max", "150000 100000\n"),
            (
                "sys/fs/cgroup/kubepods/pod1/container/cpu.max",
                "max 100000\n",
            ),
            ("sys/fs/cgroup/kubepods/memory.max", "max\n"),
            (
                "sys/fs/cgroup/kubepods/pod1/container/memory.max",
                "1073741824\n",
            ),
        ]);
        assert_eq!(
            limits(&root),
            Limits {
                cpu_cores: Some(1.5),
                memory_bytes: Some(1 << 30)
            }
        );
    }

    #[test]
    fn a_containers_own_root_is_read_where_its_path_is_not_mounted() {
        let (_folder, root) = root(&[
            ("proc/self/cgroup", "0::/../../elsewhere\n"),
            ("sys/fs/cgroup/cpu.max", "200000 100000\n"),
        ]);
        assert_eq!(limits(&root).cpu_cores, Some(2.0));
    }

    #[test]
    fn limits_of_version_1_are_read_and_its_unlimited_values_are_not() {
        let (_folder, root) = root(&[
            (
                "proc/self/cgroup",
                "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes",
                "2147483648\n",
            ),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n"),
        ]);
        assert_eq!(
            limits(&root),
            Limits {
                cpu_cores: Some(0.5),
                memory_bytes: Some(2 << 30)
            }
        );
    }

    #[test]
    fn the_cores_of_a_group_are_those_of_the_nearest_one_that_names_any() {
        let (_folder, v2) = root(&[
            ("proc/self/cgroup", "0::/job/step\n"),
            ("sys/fs/cgroup/job/step/cpuset.cpus.effective", "\n"),
            ("sys/fs/cgroup/job/cpuset.cpus.effective", "2-3\n"),
        ]);
        assert_eq!(cpuset(&v2), Some(vec![2, 3]));
        let (_folder, v1) = root(&[
            ("proc/self/cgroup", "3:cpuset:/job\n0::/\n"),
            ("sys/fs/cgroup/cpuset/job/cpuset.cpus", "1\n"),
        ]);
        assert_eq!(cpuset(&v1), Some(vec![1]));
    }

    #[test]
    fn without_control_groups_there_is_no_limit() {
        let (_folder, root) = root(&[]);
        assert_eq!(limits(&root), Limits::default());
        assert_eq!(cpuset(&root), None);
    }
}
