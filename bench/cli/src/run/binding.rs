//! Which cores are near a GPU, which of them its device gets, and whether it got them.
//!
//! Contract: pure but for reading files below a [`Root`], and the driver once for where GPUs are. Cores come from those that the run
//! was given; where a GPU's own cannot be had its device gets others, and [`Unbound`] says why. A device of a GPU has more cores than
//! compute threads: NCCL's and the driver's own threads inherit its mask, and would share one core with the thread that launches.
//! Reference: the kernel's ABI/testing/sysfs-bus-pci (`numa_node`, `local_cpulist`).
use std::sync::OnceLock;

use syncmark_engine::backend::cuda::discovery::{self, PciPlace};

use crate::environment::{Root, cores};
use crate::plan::config::{Backend, TrialConfig};

/// Set to `off`, devices get the run's cores in turn, wherever their GPUs sit.
pub const VARIABLE: &str = "SYNCMARK_GPU_BINDING";

/// Cores that a device of a GPU gets where there are enough: one that launches, and some for the threads of NCCL and the driver.
pub const CORES_OF_A_GPU: usize = 4;

/// What is near a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Memory node; `None` where the kernel does not say, as in many virtual machines.
    pub node: Option<u16>,
    /// Cores of it; empty where they are not known.
    pub cores: Vec<usize>,
    /// The network adapter that is nearest on the PCI bus.
    pub network: Option<String>,
    /// The nearest one that RDMA knows.
    pub rdma: Option<String>,
}

impl Locality {
    /// Names of the adapters, as a reader wants them: `ib0 mlx5_0`.
    pub fn adapters(&self) -> Option<String> {
        let names: Vec<&str> = self
            .network
            .iter()
            .chain(&self.rdma)
            .map(String::as_str)
            .collect();
        (!names.is_empty()).then(|| names.join(" "))
    }
}

/// Why a device is not bound to the cores of its GPU's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Unbound {
    /// The kernel does not say where the GPU hangs, on a machine with several nodes.
    NotKnown = 1,
    /// The run was given no core of that node.
    NoneInCommon = 2,
    /// [`VARIABLE`] says so.
    Asked = 3,
    /// The cores of the node that the run was given did not suffice, or a launcher gave the rank others.
    Elsewhere = 4,
}

impl Unbound {
    /// In words that fit after "because".
    pub fn words(self) -> &'static str {
        match self {
            Self::NotKnown => "the kernel does not say on which NUMA node the GPU is",
            Self::NoneInCommon => "the run was given no core of the GPU's NUMA node",
            Self::Asked => "SYNCMARK_GPU_BINDING=off asks for no binding",
            Self::Elsewhere => {
                "the cores of the GPU's NUMA node that the run was given did not suffice, or the launcher gave the rank others"
            }
        }
    }

    /// The reason with this number in a spool.
    pub fn numbered(number: u8) -> Option<Self> {
        let all = [
            Self::NotKnown,
            Self::NoneInCommon,
            Self::Asked,
            Self::Elsewhere,
        ];
        all.into_iter().find(|reason| *reason as u8 == number)
    }
}

/// Whether the user wants no binding.
pub fn switched_off() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == "off")
}

/// Where this process's GPUs sit, by ordinal; empty where the driver does not say.
pub fn places() -> &'static [PciPlace] {
    static PLACES: OnceLock<Vec<PciPlace>> = OnceLock::new();
    PLACES.get_or_init(|| discovery::places().unwrap_or_default())
}

/// What is near the GPU at `place`.
pub fn locality(root: &Root, place: &str) -> Locality {
    let gpu = format!("sys/bus/pci/devices/{place}");
    let known = |text: String| cores::list(&text);
    let node: Option<u16> = node_of(root, &gpu);
    let of_node = || root.read(&format!("sys/devices/system/node/node{}/cpulist", node?));
    // Without a node the kernel lists all cores as local.
    let local = node.and_then(|_| root.read(&format!("{gpu}/local_cpulist")).or_else(of_node));
    Locality {
        node,
        cores: local
            .and_then(known)
            .unwrap_or_default()
            .into_iter()
            .map(|core| core as usize)
            .collect(),
        network: nearest(root, &gpu, "sys/class/net"),
        rdma: nearest(root, &gpu, "sys/class/infiniband"),
    }
}

/// The node of a device; the kernel writes -1 where it does not know.
fn node_of(root: &Root, device: &str) -> Option<u16> {
    root.read(&format!("{device}/numa_node"))?.parse().ok()
}

/// The adapter of a class of devices that shares the longest way on the PCI bus with the GPU; one of the same node where none shares any.
fn nearest(root: &Root, gpu: &str, class: &str) -> Option<String> {
    let own = root.followed(gpu)?;
    let node = node_of(root, gpu);
    let mut names = root.list(class)?;
    names.sort();
    let mut best: Option<((usize, bool), String)> = None;
    for name in names {
        let device = format!("{class}/{name}/device");
        let Some(way) = root.followed(&device) else {
            continue;
        };
        let on_pci = |word: &&String| word.starts_with("pci");
        let Some(depth) = way.iter().position(|word| on_pci(&word)) else {
            continue;
        };
        let common = own.iter().zip(&way).take_while(|(a, b)| a == b).count();
        let shared = common.saturating_sub(depth);
        let near = (shared, node.is_some() && node_of(root, &device) == node);
        let better = best.as_ref().is_none_or(|(known, _)| near > *known);
        if near > (0, false) && better {
            best = Some((near, name));
        }
    }
    best.map(|(_, name)| name)
}

/// Cores of each device, of `near` its GPU where it can be: [`CORES_OF_A_GPU`] each, or as many as its share of the node, and at
/// least `threads` as long as there are as many that nobody has.
pub fn assign(near: &[Locality], threads: usize, usable: &[usize]) -> Vec<Vec<usize>> {
    let local = |device: usize| -> Vec<usize> {
        let own = &near[device].cores;
        let within = |core: &usize| own.is_empty() || own.contains(core);
        let found: Vec<usize> = usable.iter().copied().filter(within).collect();
        match found.is_empty() {
            true => usable.to_vec(),
            false => found,
        }
    };
    let locals: Vec<Vec<usize>> = (0..near.len()).map(local).collect();
    let mut taken: Vec<usize> = Vec::new();
    let mut given = Vec::new();
    for own in &locals {
        let rivals = locals
            .iter()
            .filter(|other| other.iter().any(|core| own.contains(core)));
        let share = own.len() / rivals.count().max(1);
        let wanted = share.clamp(threads, CORES_OF_A_GPU.max(threads));
        let free = |core: &&usize| !taken.contains(core);
        let mut cores: Vec<usize> = own.iter().filter(free).take(wanted).copied().collect();
        if cores.len() < threads {
            let others = usable
                .iter()
                .filter(|core| free(core) && !cores.contains(core));
            let more: Vec<usize> = others.take(threads - cores.len()).copied().collect();
            cores.extend(more);
        }
        taken.extend(&cores);
        given.push(cores);
    }
    // Too few for all: in turn, as on CPUs.
    if given.iter().any(|cores| cores.len() < threads) {
        return super::cores::assign(near.len(), threads, usable);
    }
    given
}

/// Cores of each device of a trial out of `usable`, near their GPUs where it has some and nobody asked otherwise.
pub fn cores_of(trial: &TrialConfig, usable: &[usize]) -> Vec<Vec<usize>> {
    let known = match trial.backend {
        Backend::Cuda if !switched_off() => places(),
        _ => &[],
    };
    if known.is_empty() {
        return super::cores::assign(trial.devices, trial.threads, usable);
    }
    let root = Root::machine();
    let near: Vec<Locality> = (0..trial.devices)
        .map(|device| locality(&root, &known[device % known.len()].to_string()))
        .collect();
    assign(&near, trial.threads, usable)
}

/// Why a device with these `cores` is not near its GPU; `given` are those of the run, `nodes` those of the machine.
pub fn unbound(
    near: &Locality,
    cores: &[usize],
    given: &[usize],
    nodes: usize,
    off: bool,
) -> Option<Unbound> {
    if nodes < 2 {
        // There is only one place to be.
        return None;
    }
    let local = |core: &usize| near.cores.contains(core);
    match near.cores.is_empty() {
        true => Some(Unbound::NotKnown),
        false if !cores.is_empty() && cores.iter().all(local) => None,
        false if off => Some(Unbound::Asked),
        false if !given.iter().any(local) => Some(Unbound::NoneInCommon),
        false => Some(Unbound::Elsewhere),
    }
}

/// Nodes of the machine that have cores.
pub fn nodes(root: &Root) -> usize {
    let found = crate::environment::machine::nodes(root);
    found.iter().filter(|node| !node.cores.is_empty()).count()
}

#[cfg(test)]
mod tests;
