//! The section Environment: the machine, what limits it, and the build.
//!
//! Contract: what could not be read says `not known`; nothing is left out, so that two reports can be laid beside each other.
//! GPUs have rows where there was a driver.
pub(super) mod gpus;

use syncmark_record::{
    Environment,
    environment::machine::{Cache, Frequency, NumaNode},
};

use crate::{
    document::{Alignment::Left, Block, Table},
    format::{count, number, significant},
    run_data::RunData,
};

/// The machine and the build.
pub(super) fn section(data: &RunData) -> Vec<Block> {
    let mut blocks = vec![Block::heading(1, "Environment")];
    match &data.environment {
        Some(environment) => blocks.push(Block::Table(table(environment))),
        None => blocks.push(Block::warning(
            "environment.json is missing: these figures cannot be tied to a machine.",
        )),
    }
    blocks
}

fn table(e: &Environment) -> Table {
    let mut table = Table::new("", &[("property", Left), ("value", Left)]);
    let rows = processor(e)
        .into_iter()
        .chain(memory(e))
        .chain(e.cuda.iter().flat_map(gpus::rows))
        .chain(system(e))
        .chain(build(e));
    for (property, value) in rows {
        table.push(vec![
            property.into(),
            value.unwrap_or_else(|| "not known".into()),
        ]);
    }
    for (variable, value) in &e.variables {
        table.push(vec![format!("variable {variable}"), value.clone()]);
    }
    table
}

type Row = (&'static str, Option<String>);

fn processor(e: &Environment) -> Vec<Row> {
    let m = &e.machine;
    let cores = format!(
        "{} online; this process may use {} ({})",
        e.logical_cores,
        count(e.affinity.len(), "core"),
        listed(&e.affinity)
    );
    let physical = m.physical_cores.map(|cores| {
        let sockets = m
            .sockets
            .map(|sockets| format!(" in {}", count(sockets as usize, "socket")));
        format!(
            "{}{}",
            count(cores as usize, "physical core"),
            sockets.unwrap_or_default()
        )
    });
    let limit = e
        .cpu_limit_cores
        .map_or_else(|| "none".into(), |limit| format!("{} cores", number(limit)));
    vec![
        ("host", Some(e.host.clone())),
        ("start (UTC)", Some(e.started.clone())),
        ("CPU", Some(e.cpu_model.clone())),
        ("cores", Some(cores)),
        ("physical cores", physical),
        ("hyper-threads", m.smt.map(on_off)),
        ("caches of a core", caches(&m.caches)),
        ("governor", e.governor.clone()),
        ("clock", clock(&m.frequency)),
        ("turbo", m.turbo.map(on_off)),
        ("microcode", m.microcode.clone()),
        (
            "vector instructions",
            (!e.simd_features.is_empty()).then(|| e.simd_features.join(", ")),
        ),
        ("kernels run with", e.kernel_instructions.clone()),
        ("CPU limit", Some(limit)),
        (
            "cores of the control group",
            m.cpuset.as_deref().map(listed),
        ),
    ]
}

fn memory(e: &Environment) -> Vec<Row> {
    let m = &e.machine;
    let none_or = |bytes: u64| {
        if bytes == 0 {
            "none".into()
        } else {
            gib(bytes)
        }
    };
    vec![
        ("memory", Some(gib(e.memory_bytes))),
        (
            "memory available at start",
            m.memory_available_bytes.map(gib),
        ),
        (
            "memory limit",
            Some(e.memory_limit_bytes.map_or_else(|| "none".into(), gib)),
        ),
        ("NUMA nodes", nodes(&m.numa)),
        ("swap", m.swap_bytes.map(none_or)),
        ("transparent huge pages", m.transparent_huge_pages.clone()),
        (
            "huge pages set aside",
            m.huge_pages.map(|pages| pages.to_string()),
        ),
    ]
}

fn system(e: &Environment) -> Vec<Row> {
    let m = &e.machine;
    let machine = m
        .virtual_machine
        .map(|is_virtual| match (is_virtual, &m.hypervisor) {
            (true, Some(name)) => format!("yes ({name})"),
            (true, None) => "yes".into(),
            (false, _) => "no".into(),
        });
    let load = e
        .load_average
        .map(|l| format!("{:.2}, {:.2}, {:.2}", l[0], l[1], l[2]));
    vec![
        ("load average at start", load),
        ("operating system", Some(e.operating_system.clone())),
        ("kernel", Some(e.kernel.clone())),
        ("clock source", m.clock_source.clone()),
        ("virtual machine", machine),
        ("container", m.container.clone()),
    ]
}

fn build(e: &Environment) -> Vec<Row> {
    let libraries = &e.build.libraries;
    vec![
        ("syncmark", Some(e.syncmark_version.clone())),
        ("commit of the build", e.git_commit.clone()),
        ("commit of the scenario", e.scenario_commit.clone()),
        ("rustc", e.rustc_version.clone()),
        ("target", e.build.target.clone()),
        ("profile", e.build.profile.clone()),
        (
            "libraries",
            (!libraries.is_empty()).then(|| libraries.join(", ")),
        ),
    ]
}

fn on_off(on: bool) -> String {
    if on { "on" } else { "off" }.into()
}

fn gib(bytes: u64) -> String {
    format!("{} GiB", significant(bytes as f64 / (1u64 << 30) as f64, 3))
}

/// `0-3, 8`: machines of hundreds of cores must not fill a page.
fn listed(cores: &[u32]) -> String {
    let mut sorted = cores.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for core in sorted {
        match ranges.last_mut() {
            Some((_, last)) if core <= *last + 1 => *last = core,
            _ => ranges.push((core, core)),
        }
    }
    let words = ranges.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first}, {last}"),
        _ => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// `L1 data 32 KiB, L2 512 KiB, L3 32 MiB (shared by cores 0-7)`.
fn caches(caches: &[Cache]) -> Option<String> {
    let one = |cache: &Cache| {
        let kind = if cache.kind == "unified" {
            String::new()
        } else {
            format!(" {}", cache.kind)
        };
        let size = match cache.size_bytes {
            bytes if bytes >= 1 << 20 => {
                format!("{} MiB", significant(bytes as f64 / 1_048_576.0, 3))
            }
            bytes => format!("{} KiB", significant(bytes as f64 / 1024.0, 3)),
        };
        let shared = match cache.shared_by.len() {
            0 | 1 => String::new(),
            _ => format!(" (shared by cores {})", listed(&cache.shared_by)),
        };
        format!("L{}{kind} {size}{shared}", cache.level)
    };
    (!caches.is_empty()).then(|| caches.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// `1500 to 3500 MHz by intel_pstate, 2445 MHz at the start`.
fn clock(f: &Frequency) -> Option<String> {
    let mhz = |value: f64| format!("{value:.0} MHz");
    let range = f.min_mhz.zip(f.max_mhz).map(|(min, max)| match &f.driver {
        Some(driver) => format!("{min:.0} to {max:.0} MHz by {driver}"),
        None => format!("{min:.0} to {max:.0} MHz"),
    });
    let base = f.base_mhz.map(|base| format!("base {}", mhz(base)));
    let current = f
        .current_mhz
        .map(|current| format!("{} at the start", mhz(current)));
    let words: Vec<String> = range.into_iter().chain(base).chain(current).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// `node 0: cores 0-7, 16.0 GiB; node 1: no cores, 8.00 GiB`.
fn nodes(nodes: &[NumaNode]) -> Option<String> {
    let one = |node: &NumaNode| {
        let cores = match node.cores.as_slice() {
            [] => "no cores".to_owned(),
            cores => format!("cores {}", listed(cores)),
        };
        let memory = node.memory_bytes.map(|bytes| format!(", {}", gib(bytes)));
        format!("node {}: {cores}{}", node.node, memory.unwrap_or_default())
    };
    (!nodes.is_empty()).then(|| nodes.iter().map(one).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_listed_as_ranges() {
        assert_eq!(listed(&[3, 0, 1, 2, 8]), "0-3, 8");
        assert_eq!(listed(&[0, 1]), "0, 1");
        assert_eq!(listed(&[]), "");
    }

    #[test]
    fn what_is_not_known_is_not_invented() {
        assert_eq!(
            (caches(&[]), clock(&Frequency::default()), nodes(&[])),
            (None, None, None)
        );
        let current = Frequency {
            current_mhz: Some(2445.4),
            ..Frequency::default()
        };
        assert_eq!(clock(&current).unwrap(), "2445 MHz at the start");
    }
}
