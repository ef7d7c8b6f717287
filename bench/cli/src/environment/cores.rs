//! The CPU: its model, its cores, which of them this process may use, and what disturbs their clock.
//!
//! Contract: core numbers are the kernel's logical CPUs. Everything is read from files below a [`Root`], except the
//! instruction sets, which the processor itself tells.
//! Reference: the kernel's ABI/testing/sysfs-devices-system-cpu.
use std::collections::BTreeSet;

use super::Root;

const CPU: &str = "sys/devices/system/cpu";

/// Whether cores may run above their base clock while few of them work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turbo {
    /// They may, so the clock depends on how many cores work.
    On,
    /// Switched off.
    Off,
    /// The machine does not say.
    Unknown,
}

/// The CPU's model as the kernel names it.
pub fn model(root: &Root) -> Option<String> {
    let field = |wanted: &str| info(root, wanted);
    // Arm names parts by number; boards name themselves in the device tree.
    let arm = || {
        Some(format!(
            "implementer {} part {}",
            field("CPU implementer")?,
            field("CPU part")?
        ))
    };
    field("model name")
        .or_else(|| root.read("sys/firmware/devicetree/base/model"))
        .or_else(arm)
}

/// A field of /proc/cpuinfo on the first core that has it.
pub fn info(root: &Root, wanted: &str) -> Option<String> {
    root.read("proc/cpuinfo")?.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == wanted && !value.trim().is_empty()).then(|| value.trim().to_string())
    })
}

/// The cores that are online.
pub fn online(root: &Root) -> Vec<u32> {
    let listed = root
        .read(&format!("{CPU}/online"))
        .and_then(|text| list(&text));
    listed.unwrap_or_else(|| affinity(root))
}

/// The cores that this process may run on.
///
/// The kernel's list has no upper bound, unlike the fixed-size mask of sched_getaffinity.
pub fn affinity(root: &Root) -> Vec<u32> {
    let status = root.read("proc/self/status").unwrap_or_default();
    let allowed = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    allowed.and_then(list).unwrap_or_default()
}

/// A core's frequency governor.
pub fn governor(root: &Root, core: u32) -> Option<String> {
    root.read(&format!("{CPU}/cpu{core}/cpufreq/scaling_governor"))
}

/// Whether the clock may rise above its base.
pub fn turbo(root: &Root) -> Turbo {
    let intel = root
        .read(&format!("{CPU}/intel_pstate/no_turbo"))
        .map(|text| text == "0");
    let generic = || {
        root.read(&format!("{CPU}/cpufreq/boost"))
            .map(|text| text == "1")
    };
    match intel.or_else(generic) {
        Some(true) => Turbo::On,
        Some(false) => Turbo::Off,
        None => Turbo::Unknown,
    }
}

/// How many physical cores stand behind these logical ones; a logical core of unknown topology counts as one.
pub fn physical(root: &Root, cores: &[u32]) -> usize {
    cores
        .iter()
        .map(|&core| siblings(root, core).first().copied().unwrap_or(core))
        .collect::<BTreeSet<_>>()
        .len()
}

/// The hardware threads of a core, itself among them; empty where the topology is not known.
pub fn siblings(root: &Root, core: u32) -> Vec<u32> {
    let path = format!("{CPU}/cpu{core}/topology/thread_siblings_list");
    root.read(&path)
        .and_then(|text| list(&text))
        .unwrap_or_default()
}

/// Whether the processor says that it is virtual.
pub fn is_virtual(root: &Root) -> bool {
    info(root, "flags")
        .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

/// The share of CPU time, from 0 to 1, that a hypervisor gave to others since the machine started.
pub fn steal(root: &Root) -> Option<f64> {
    let stat = root.read("proc/stat")?;
    let first = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = first
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest times are counted in user already.
    let total: f64 = ticks.iter().take(8).sum();
    let steal = ticks.get(7)?;
    (total > 0.0).then(|| steal / total)
}

/// The vector instruction sets of this processor that numeric kernels can use, narrowest first.
pub fn simd_features() -> Vec<String> {
    let mut found: Vec<&str> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("avx", is_x86_feature_detected!("avx")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512dq", is_x86_feature_detected!("avx512dq")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ];
        found.extend(known.iter().filter(|(_, has)| *has).map(|(name, _)| *name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let known = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("sve", std::arch::is_aarch64_feature_detected!("sve")),
        ];
        found.extend(known.iter().filter(|(_, has)| *has).map(|(name, _)| *name));
    }
    found.into_iter().map(String::from).collect()
}

/// The kernel's notation for sets of cores, such as `0-3,8,10-11`; `None` where it is anything else.
pub fn list(text: &str) -> Option<Vec<u32>> {
    let mut cores = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // A corrupt file must not make a list of four billion cores.
        if first > last || last - first > 1 << 16 {
            return None;
        }
        cores.extend(first..=last);
    }
    Some(cores)
}

#[cfg(test)]
mod tests {
    use super::super::tests::root;
    use super::*;

    #[test]
    fn lists_of_cores_are_read_as_the_kernel_writes_them() {
        assert_eq!(list("0-2,5,7-8\n"), Some(vec![0, 1, 2, 5, 7, 8]));
        assert_eq!(list(""), Some(vec![]));
        for corrupt in ["a", "3-1", "0-4294967295", "1-2-3"] {
            assert_eq!(list(corrupt), None, "{corrupt}");
        }
    }

    #[test]
    fn hyper_threads_of_one_core_count_once() {
        let (_folder, root) = root(&[
            (
                "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
                "0,2\n",
            ),
            (
                "sys/devices/system/cpu/cpu2/topology/thread_siblings_list",
                "0,2\n",
            ),
            (
                "sys/devices/system/cpu/cpu1/topology/thread_siblings_list",
                "1,3\n",
            ),
        ]);
        assert_eq!(physical(&root, &[0, 2]), 1);
        assert_eq!(physical(&root, &[0, 1, 2]), 2);
        assert_eq!(physical(&root, &[0, 9]), 2);
    }

    #[test]
    fn turbo_is_read_in_both_of_its_forms() {
        for (path, text, wanted) in [
            (
                "sys/devices/system/cpu/intel_pstate/no_turbo",
                "0",
                Turbo::On,
            ),
            (
                "sys/devices/system/cpu/intel_pstate/no_turbo",
                "1",
                Turbo::Off,
            ),
            ("sys/devices/system/cpu/cpufreq/boost", "1", Turbo::On),
            ("sys/devices/system/cpu/cpufreq/boost", "0", Turbo::Off),
            ("etc/nothing", "0", Turbo::Unknown),
        ] {
            assert_eq!(turbo(&root(&[(path, text)]).1), wanted, "{path} {text}");
        }
    }

    #[test]
    fn virtual_machines_and_stolen_time_are_seen() {
        let (_folder, root) = root(&[
            ("proc/cpuinfo", "flags\t\t: fpu hypervisor avx2\n"),
            ("proc/stat", "cpu  60 0 20 10 0 0 0 10 5 0\ncpu0 1 1\n"),
        ]);
        assert!(is_virtual(&root));
        assert_eq!(steal(&root), Some(0.1));
    }

    #[test]
    fn arm_processors_have_a_name_too() {
        let (_folder, root) = root(&[(
            "proc/cpuinfo",
            "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n",
        )]);
        assert_eq!(model(&root).as_deref(), Some("implementer 0x41 part 0xd0c"));
    }
}
