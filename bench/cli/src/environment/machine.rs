//! The hardware beyond the name of its processor: caches, clocks, memory nodes, virtualization.
//!
//! Contract: reads files below a [`Root`]. What is missing or in another form than the kernel's is `None`.
//! Reference: the kernel's ABI/testing/sysfs-devices-system-cpu, ABI/stable/sysfs-devices-node, admin-guide/mm/transhuge.
use std::collections::BTreeSet;

use syncmark_record::environment::machine::{Cache, Frequency, Machine, NumaNode};

use super::cores::{self, Turbo};
use super::{Root, cgroup, memory_bytes};

const CPU: &str = "sys/devices/system/cpu";
const NODES: &str = "sys/devices/system/node";

/// Describes the machine; caches and clock are those of the first core of `affinity`.
pub fn machine(root: &Root, affinity: &[u32]) -> Machine {
    let online = cores::online(root);
    let first = affinity.first().copied();
    Machine {
        physical_cores: known_topology(root, &online)
            .then(|| cores::physical(root, &online) as u32),
        sockets: sockets(root, &online),
        smt: root
            .read(&format!("{CPU}/smt/active"))
            .and_then(|text| flag(&text)),
        microcode: cores::info(root, "microcode"),
        caches: first.map_or_else(Vec::new, |core| caches(root, core)),
        frequency: first.map_or_else(Frequency::default, |core| frequency(root, core)),
        turbo: match cores::turbo(root) {
            Turbo::On => Some(true),
            Turbo::Off => Some(false),
            Turbo::Unknown => None,
        },
        numa: nodes(root),
        memory_available_bytes: memory_bytes(root, "MemAvailable"),
        swap_bytes: memory_bytes(root, "SwapTotal"),
        transparent_huge_pages: root
            .read("sys/kernel/mm/transparent_hugepage/enabled")
            .and_then(|text| chosen(&text)),
        huge_pages: root
            .read("proc/sys/vm/nr_hugepages")
            .and_then(|text| text.parse().ok()),
        clock_source: root.read("sys/devices/system/clocksource/clocksource0/current_clocksource"),
        virtual_machine: cores::info(root, "flags").map(|_| cores::is_virtual(root)),
        hypervisor: hypervisor(root),
        container: container(root),
        cpuset: cgroup::cpuset(root),
    }
}

fn known_topology(root: &Root, online: &[u32]) -> bool {
    !online.is_empty()
        && online
            .iter()
            .all(|&core| !cores::siblings(root, core).is_empty())
}

fn sockets(root: &Root, online: &[u32]) -> Option<u32> {
    let package = |core: &u32| {
        root.read(&format!("{CPU}/cpu{core}/topology/physical_package_id"))?
            .parse::<i32>()
            .ok()
    };
    // The kernel writes -1 where it does not know.
    let packages: Option<BTreeSet<i32>> = online
        .iter()
        .map(|core| package(core).filter(|id| *id >= 0))
        .collect();
    packages
        .map(|ids| ids.len() as u32)
        .filter(|count| *count > 0)
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => None,
    }
}

/// The bracketed one of several words: `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let word = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    word.map(str::to_owned)
}

fn caches(root: &Root, core: u32) -> Vec<Cache> {
    let one = |index: u32| {
        let read = |name: &str| root.read(&format!("{CPU}/cpu{core}/cache/index{index}/{name}"));
        Some(Cache {
            level: read("level")?.parse().ok()?,
            kind: read("type")?.to_lowercase(),
            size_bytes: size(&read("size")?)?,
            shared_by: cores::list(&read("shared_cpu_list")?)?,
        })
    };
    let mut caches: Vec<Cache> = (0..16).map_while(one).collect();
    caches.sort_by(|a, b| (a.level, &a.kind).cmp(&(b.level, &b.kind)));
    caches
}

/// Size in bytes of the last cache before memory of a core.
pub fn last_level_cache(root: &Root, core: u32) -> Option<u64> {
    let caches = caches(root, core);
    let holding = caches.iter().filter(|cache| cache.kind != "instruction");
    let last = holding.max_by_key(|cache| cache.level)?;
    Some(last.size_bytes).filter(|bytes| *bytes > 0)
}

/// `32K`, `32M`.
fn size(text: &str) -> Option<u64> {
    let (number, unit) = match text.strip_suffix('K') {
        Some(number) => (number, 1 << 10),
        None => match text.strip_suffix('M') {
            Some(number) => (number, 1 << 20),
            None => (text, 1),
        },
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn frequency(root: &Root, core: u32) -> Frequency {
    let read = |name: &str| root.read(&format!("{CPU}/cpu{core}/cpufreq/{name}"));
    let mhz = |name: &str| Some(read(name)?.parse::<f64>().ok()? / 1e3);
    Frequency {
        min_mhz: mhz("scaling_min_freq"),
        max_mhz: mhz("scaling_max_freq"),
        base_mhz: mhz("base_frequency"),
        current_mhz: mhz("scaling_cur_freq").or_else(|| current_mhz(root, core)),
        driver: read("scaling_driver"),
    }
}

/// The clock of a core by /proc/cpuinfo.
fn current_mhz(root: &Root, core: u32) -> Option<f64> {
    let text = root.read("proc/cpuinfo")?;
    let mut own = text.split("\n\n").filter(|block| {
        let mut fields = block.lines().filter_map(|line| line.split_once(':'));
        fields.any(|(name, value)| name.trim() == "processor" && value.trim().parse() == Ok(core))
    });
    let block = own.next()?;
    let mut fields = block.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| name.trim() == "cpu MHz")?;
    value.trim().parse().ok()
}

/// Memory nodes that are online.
pub fn nodes(root: &Root) -> Vec<NumaNode> {
    let online = root
        .read(&format!("{NODES}/online"))
        .and_then(|text| cores::list(&text));
    let one = |node: u32| {
        let folder = format!("{NODES}/node{node}");
        // A node of memory alone has no cores: its list is an empty line.
        let own = root.read(&format!("{folder}/cpulist")).unwrap_or_default();
        Some(NumaNode {
            node,
            cores: cores::list(&own)?,
            memory_bytes: root
                .read(&format!("{folder}/meminfo"))
                .and_then(|text| node_memory(&text)),
        })
    };
    online
        .unwrap_or_default()
        .into_iter()
        .filter_map(one)
        .collect()
}

/// `Node 0 MemTotal:       12805920 kB`.
fn node_memory(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("MemTotal:"))?;
    let (_, value) = line.split_once("MemTotal:")?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// How a hypervisor or cloud names itself: by Xen's folder, else by the firmware's tables of a virtual machine.
fn hypervisor(root: &Root) -> Option<String> {
    if let Some(kind) = root.read("sys/hypervisor/type") {
        return Some(kind);
    }
    if !cores::is_virtual(root) {
        return None;
    }
    let dmi = |name: &str| root.read(&format!("sys/class/dmi/id/{name}"));
    match (dmi("sys_vendor"), dmi("product_name")) {
        (Some(vendor), Some(product)) => Some(format!("{vendor} {product}")),
        (vendor, product) => vendor.or(product),
    }
}

fn container(root: &Root) -> Option<String> {
    let marks = [(".dockerenv", "docker"), ("run/.containerenv", "podman")];
    let by_mark = || {
        marks
            .iter()
            .find(|(path, _)| root.exists(path))
            .map(|(_, name)| (*name).to_owned())
    };
    let by_group = || {
        let groups = root.read("proc/1/cgroup")?;
        let names = ["kubepods", "docker", "libpod", "lxc", "containerd"];
        names
            .into_iter()
            .find(|name| groups.contains(name))
            .map(str::to_owned)
    };
    root.read("run/systemd/container")
        .or_else(by_mark)
        .or_else(by_group)
}

#[cfg(test)]
mod tests {
    use super::super::tests::root;
    use super::*;

    #[test]
    fn a_machine_is_read_from_its_files() {
        let (_folder, root) = root(&[
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            (
                "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
                "0,2\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
                "1,3\n",
            ),
            (
                "sys/devices/system/cpu/cpu2/topology/thread_siblings_list",
                "0,2\n",
            ),
            (
                "sys/devices/system/cpu/cpu3/topology/thread_siblings_list",
                "1,3\n",
            ),
            (
                "sys/devices/system/cpu/cpu0/topology/physical_package_id",
                "0\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/topology/physical_package_id",
                "0\n",
            ),
            (
                "sys/devices/system/cpu/cpu2/topology/physical_package_id",
                "0\n",
            ),
            (
                "sys/devices/system/cpu/cpu3/topology/physical_package_id",
                "0\n",
            ),
            ("sys/devices/system/cpu/cpu1/cache/index0/level", "3\n"),
            ("sys/devices/system/cpu/cpu1/cache/index0/type", "Unified\n"),
            ("sys/devices/system/cpu/cpu1/cache/index0/size", "32768K\n"),
            (
                "sys/devices/system/cpu/cpu1/cache/index0/shared_cpu_list",
                "0-3\n",
            ),
            ("sys/devices/system/cpu/cpu1/cache/index1/level", "1\n"),
            ("sys/devices/system/cpu/cpu1/cache/index1/type", "Data\n"),
            ("sys/devices/system/cpu/cpu1/cache/index1/size", "48K\n"),
            (
                "sys/devices/system/cpu/cpu1/cache/index1/shared_cpu_list",
                "1,3\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_min_freq",
                "800000\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq",
                "3500000\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/cpufreq/scaling_driver",
                "intel_pstate\n",
            ),
            ("sys/devices/system/cpu/intel_pstate/no_turbo", "1\n"),
            ("sys/devices/system/node/online", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            (
                "sys/devices/system/node/node0/meminfo",
                "Node 0 MemTotal:       16 kB\nNode 0 MemFree: 1 kB\n",
            ),
            ("sys/devices/system/node/node1/cpulist", "\n"),
            (
                "proc/meminfo",
                "MemTotal: 16 kB\nMemAvailable: 8 kB\nSwapTotal: 0 kB\n",
            ),
            (
                "proc/cpuinfo",
                "processor\t: 0\ncpu MHz\t\t: 1.0\nflags\t: fpu hypervisor\n\nprocessor\t: 1\ncpu MHz\t\t: 2445.5\n",
            ),
            (
                "sys/kernel/mm/transparent_hugepage/enabled",
                "always [madvise] never\n",
            ),
            ("sys/class/dmi/id/sys_vendor", "Amazon EC2\n"),
            ("sys/class/dmi/id/product_name", "m5.large\n"),
            ("proc/1/cgroup", "0::/kubepods/burstable/pod1\n"),
        ]);
        let found = machine(&root, &[1, 3]);
        assert_eq!(
            (found.physical_cores, found.sockets, found.smt),
            (Some(2), Some(1), Some(true))
        );
        let caches: Vec<_> = found
            .caches
            .iter()
            .map(|c| (c.level, c.kind.as_str(), c.size_bytes, c.shared_by.len()))
            .collect();
        assert_eq!(
            caches,
            [(1, "data", 48 << 10, 2), (3, "unified", 32 << 20, 4)]
        );
        let expected = Frequency {
            min_mhz: Some(800.0),
            max_mhz: Some(3500.0),
            base_mhz: None,
            current_mhz: Some(2445.5),
            driver: Some("intel_pstate".into()),
        };
        assert_eq!((found.frequency, found.turbo), (expected, Some(false)));
        assert_eq!(last_level_cache(&root, 1), Some(32 << 20));
        assert_eq!(last_level_cache(&root, 0), None, "its caches are not known");
        let nodes: Vec<_> = found
            .numa
            .iter()
            .map(|n| (n.node, n.cores.len(), n.memory_bytes))
            .collect();
        assert_eq!(nodes, [(0, 4, Some(16 << 10)), (1, 0, None)]);
        assert_eq!(
            (found.memory_available_bytes, found.swap_bytes),
            (Some(8 << 10), Some(0))
        );
        assert_eq!(found.transparent_huge_pages.as_deref(), Some("madvise"));
        assert_eq!(found.hypervisor.as_deref(), Some("Amazon EC2 m5.large"));
        assert_eq!(
            (found.virtual_machine, found.container.as_deref()),
            (Some(true), Some("kubepods"))
        );
    }

    #[test]
    fn what_cannot_be_read_is_never_guessed() {
        let (_folder, root) = root(&[
            ("sys/devices/system/cpu/online", "0-1\n"),
            (
                "sys/devices/system/cpu/cpu0/topology/physical_package_id",
                "-1\n",
            ),
            ("sys/kernel/mm/transparent_hugepage/enabled", "perhaps\n"),
            ("sys/devices/system/cpu/smt/active", "2\n"),
        ]);
        assert_eq!(machine(&root, &[0, 1]), Machine::default());
    }
}
