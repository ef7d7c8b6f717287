//! Whether GPUs can train here, each of the machine's GPUs, and the links between them.
//!
//! Contract: pure; see [`super`]. What a GPU does not say is no warning. An idle GPU lowers its clocks and the generation of its
//! PCIe link, so neither is judged by what it is at the moment. Reference: NVIDIA's NVML API Reference Guide.
use std::collections::BTreeMap;

use syncmark_engine::backend::cuda::discovery;
use syncmark_record::environment::gpu::Gpu;

use super::space::bytes;
use super::{Finding, Level};
use crate::cmd::doctor::facts::Facts;

pub(super) fn backend(facts: &Facts) -> Finding {
    let subject = "CUDA backend";
    let lacks = match &facts.gpus {
        Ok(gpus) => {
            let meaning = "`--backend cuda` runs here, and `auto` takes the GPUs for scenarios that need no more of them";
            return Finding::new(Level::Ok, subject, count(*gpus, "GPU"), meaning);
        }
        Err(lacks) => lacks,
    };
    let seen = match (facts.cuda.gpus.len(), facts.nvidia_driver) {
        (0, false) => "no NVIDIA driver".to_owned(),
        (0, true) => "an NVIDIA driver is loaded".to_owned(),
        (gpus, _) => count(gpus, "GPU"),
    };
    let reasons: Vec<String> = lacks.iter().map(short).collect();
    let meaning = format!(
        "`--backend cuda` is refused and `auto` takes the CPU: {}",
        discovery::help(lacks)
    );
    let found = format!("{seen}; missing: {}", reasons.join(", "));
    Finding::new(Level::No, subject, found, meaning)
}

/// A lack without its reason, which has a row of its own.
fn short(lack: &discovery::Lack) -> String {
    match lack {
        discovery::Lack::Library(missing) => missing.library.name().to_owned(),
        discovery::Lack::Gpu { reason } => format!("a GPU ({reason})"),
    }
}

pub(super) fn gpus(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.cuda.gpus.iter().map(gpu).collect();
    let (listed, visible) = (facts.cuda.gpus.len(), facts.cuda.visible_gpus);
    if let Some(hidden) = visible.filter(|&visible| (visible as usize) < listed) {
        let found = format!("{hidden} of {listed} given to this process");
        let meaning = "CUDA_VISIBLE_DEVICES or the container hides the others";
        findings.push(Finding::new(Level::Warning, "GPUs", found, meaning));
    }
    findings
}

fn gpu(gpu: &Gpu) -> Finding {
    let mut found = vec![format!("{}: {}", gpu.index, gpu.name)];
    found.extend(gpu.memory_bytes.map(bytes));
    let capability = gpu.compute_capability.as_ref();
    found.extend(capability.map(|number| format!("compute capability {number}")));
    found.extend(pcie(gpu));
    found.extend(clock("SM", gpu.clocks.sm_mhz, gpu.clocks.sm_max_mhz));
    found.extend(clock(
        "memory",
        gpu.clocks.memory_mhz,
        gpu.clocks.memory_max_mhz,
    ));
    found.extend(
        gpu.power_limit_watts
            .map(|watts| format!("power cap {watts:.0} W")),
    );
    found.extend(gpu.ecc.map(|on| format!("ECC {}", on_off(on))));
    found.extend(gpu.mig.map(|on| format!("MIG {}", on_off(on))));
    // That they are not is among the cautions.
    found.extend((gpu.clocks.locked == Some(true)).then(|| "clocks locked".to_owned()));
    found.extend(gpu.numa_node.map(|node| format!("NUMA node {node}")));
    found.extend(gpu.network.as_ref().map(|name| format!("network {name}")));
    let cautions = cautions(gpu);
    let (level, meaning) = match cautions.as_slice() {
        [] => (
            Level::Ok,
            "its clocks are set; nothing else is known to disturb it".to_owned(),
        ),
        cautions => (Level::Warning, cautions.join("; ")),
    };
    Finding::new(level, "GPU", found.join(", "), meaning)
}

/// What to know before a figure of this GPU is trusted.
fn cautions(gpu: &Gpu) -> Vec<String> {
    let mut cautions = Vec::new();
    if gpu.mig == Some(true) {
        cautions.push("MIG: a device is a part of the GPU, and parts neither reach each other nor stand for whole ones".to_owned());
    }
    if let (Some(now), Some(most)) = (gpu.pcie.width, gpu.pcie.max_width)
        && now < most
    {
        cautions.push(format!(
            "{now} of {most} PCIe lanes: copies from and to the host are slower than they could be"
        ));
    }
    if let (Some(cap), Some(usual)) = (gpu.power_limit_watts, gpu.power_limit_default_watts)
        && cap < usual
    {
        cautions.push(format!(
            "the power cap is below the {usual:.0} W that it was delivered with"
        ));
    }
    match gpu.clocks.held_back_by.as_slice() {
        [] => {}
        by => cautions.push(format!("clocks are held back by {}", by.join(", "))),
    }
    if let Some(others @ 1..) = gpu.processes {
        cautions.push(format!("{} on it", count(others as usize, "other process")));
    }
    if gpu.clocks.locked != Some(true) {
        cautions.push("clocks do not show as locked, so they move with heat and power: `nvidia-smi -lgc MHZ` locks them, which NVML does not always show".to_owned());
    }
    cautions
}

/// `PCIe gen 5 x16`, with what it is at the moment where that differs.
fn pcie(gpu: &Gpu) -> Option<String> {
    let (generation, width) = (gpu.pcie.max_generation?, gpu.pcie.max_width?);
    let now = gpu.pcie.generation.zip(gpu.pcie.width);
    let differs = now.filter(|&now| now != (generation, width));
    let now = differs.map(|(generation, width)| format!(" (now gen {generation} x{width})"));
    Some(format!(
        "PCIe gen {generation} x{width}{}",
        now.unwrap_or_default()
    ))
}

fn clock(what: &str, now: Option<u32>, most: Option<u32>) -> Option<String> {
    let most = most?;
    Some(match now {
        Some(now) => format!("{what} clock {now} of {most} MHz"),
        None => format!("{what} clock up to {most} MHz"),
    })
}

/// How GPUs reach each other; nothing to say of one that has no links.
pub(super) fn nvlink(facts: &Facts) -> Option<Finding> {
    let gpus = &facts.cuda.gpus;
    let linked = gpus.iter().filter(|gpu| !gpu.nvlinks.is_empty());
    if gpus.len() < 2 && linked.clone().count() == 0 {
        return None;
    }
    let links: Vec<String> = linked.clone().map(links).collect();
    let distances: Vec<String> = gpus.iter().flat_map(distances).collect();
    let found = match (links.is_empty(), distances.is_empty()) {
        (true, true) => "no NVLink is up".to_owned(),
        (true, false) => format!("no NVLink is up; over PCIe {}", distances.join(", ")),
        (false, true) => links.join("; "),
        (false, false) => format!("{}; over PCIe {}", links.join("; "), distances.join(", ")),
    };
    let some = linked.count();
    let (level, meaning) = match some {
        0 => (
            Level::Ok,
            "GPUs exchange over PCIe: bandwidths stand for this machine, not for one with NVLink",
        ),
        _ if some < gpus.len() => (
            Level::Warning,
            "some GPUs have no NVLink, so the slowest pair decides what ranks wait for",
        ),
        _ => (Level::Ok, "GPUs exchange over NVLink"),
    };
    Some(Finding::new(level, "links of GPUs", found, meaning))
}

/// `GPU 0: 12 NVLinks to GPU 1, 6 to a switch`.
fn links(gpu: &Gpu) -> String {
    let mut ends: BTreeMap<Option<u32>, usize> = BTreeMap::new();
    for link in &gpu.nvlinks {
        *ends.entry(link.peer).or_default() += 1;
    }
    let version = gpu.nvlinks.iter().find_map(|link| link.version);
    let version = version.map_or(String::new(), |version| format!(" (version {version})"));
    let ends: Vec<String> = ends
        .into_iter()
        .map(|(peer, links)| match peer {
            Some(peer) => format!("{links} to GPU {peer}"),
            None => format!("{links} to a switch or another device"),
        })
        .collect();
    format!("GPU {}: NVLinks{version}: {}", gpu.index, ends.join(", "))
}

/// `0-1 across the host bridge`, each pair once.
fn distances(gpu: &Gpu) -> Vec<String> {
    let later = gpu.distances.iter().filter(|other| other.gpu > gpu.index);
    later
        .map(|other| format!("{}-{} across the {}", gpu.index, other.gpu, other.across))
        .collect()
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn count(number: usize, what: &str) -> String {
    let plural = match (number, what.ends_with('s')) {
        (1, _) => "",
        (_, true) => "es",
        (_, false) => "s",
    };
    format!("{number} {what}{plural}")
}
