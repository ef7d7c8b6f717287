//! The fingerprint in short: caches, clock, memory nodes, and what the kernel keeps time by.
//!
//! Contract: pure; see [`super`]. What the machine does not say is no warning. Reference: the kernel's
//! admin-guide/mm/numaperf; `syncmark_record::environment::machine`.
use syncmark_record::environment::machine::{Cache, NumaNode};

use super::{Finding, Level};
use crate::cmd::doctor::facts::Facts;

/// Clock sources that are read without a system call.
const QUICK_CLOCKS: [&str; 4] = [
    "tsc",
    "kvm-clock",
    "hyperv_clocksource_tsc_page",
    "arch_sys_counter",
];

pub(super) fn caches(facts: &Facts) -> Finding {
    let machine = &facts.environment.machine;
    let words: Vec<String> = machine
        .caches
        .iter()
        .filter(|cache| cache.kind != "instruction")
        .map(cache)
        .collect();
    let found = match words.as_slice() {
        [] => "this machine does not say".to_owned(),
        words => words.join(", "),
    };
    let last = machine.caches.iter().max_by_key(|cache| cache.level);
    let meaning = match last {
        Some(last) if last.shared_by.len() > 1 => {
            "devices share the last level: compare with `independent`, not with `single` alone"
        }
        Some(_) => "no cache is shared between usable cores",
        None => "what fits into a cache is not known",
    };
    Finding::new(Level::Ok, "caches", found, meaning)
}

fn cache(cache: &Cache) -> String {
    let size = match cache.size_bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    };
    match cache.shared_by.len() {
        0 | 1 => format!("L{} {size}", cache.level),
        cores => format!("L{} {size} for {cores} cores", cache.level),
    }
}

pub(super) fn nodes(facts: &Facts) -> Finding {
    let affinity = &facts.environment.affinity;
    let used = |node: &&NumaNode| node.cores.iter().any(|core| affinity.contains(core));
    let all = &facts.environment.machine.numa;
    let (count, used) = (all.len(), all.iter().filter(used).count());
    let found = match count {
        0 => "this machine does not say".to_owned(),
        _ => format!("usable cores on {used} of {count}"),
    };
    if used > 1 {
        let meaning = "devices on different nodes reach each other's memory more slowly: `numactl --cpunodebind=0` keeps a run on one, \
                       unless that is what you want to know";
        return Finding::new(Level::Warning, "memory nodes", found, meaning);
    }
    Finding::new(
        Level::Ok,
        "memory nodes",
        found,
        "all usable cores are equally near to their memory",
    )
}

pub(super) fn clock(facts: &Facts) -> Finding {
    let source = facts.environment.machine.clock_source.as_deref();
    let found = source.unwrap_or("this machine does not say");
    if source.is_some_and(|source| !QUICK_CLOCKS.contains(&source)) {
        let meaning = "each look at the clock is a system call of a microsecond or more: it is in every step and span";
        return Finding::new(Level::Warning, "clock source", found, meaning);
    }
    Finding::new(
        Level::Ok,
        "clock source",
        found,
        "read without a system call, as far as is known",
    )
}
