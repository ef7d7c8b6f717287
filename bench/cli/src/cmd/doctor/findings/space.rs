//! Memory and folders: what is free and what cannot be written.
//!
//! Contract: pure; see [`super`]. Reference: "A run folder" in ARCHITECTURE.md for what is written.
use super::{Finding, Level};
use crate::cmd::doctor::facts::Facts;

/// Memory that the shipped scenarios' largest trial takes with room to spare.
const MEMORY: u64 = 2 << 30;
/// Space for spool files and a run folder with raw samples of every step.
const SPACE: u64 = 512 << 20;

pub(super) fn memory(facts: &Facts) -> Finding {
    let environment = &facts.environment;
    let available = facts
        .memory_available_bytes
        .unwrap_or(environment.memory_bytes);
    let room = available.min(environment.memory_limit_bytes.unwrap_or(u64::MAX));
    let mut found = format!(
        "{} of {} available",
        bytes(available),
        bytes(environment.memory_bytes)
    );
    if let Some(limit) = environment.memory_limit_bytes {
        found.push_str(&format!("; the control group allows {}", bytes(limit)));
    }
    if room < MEMORY {
        let meaning = "large models on several devices may run out of memory: use fewer devices or a smaller batch";
        return Finding::new(Level::Warning, "memory", found, meaning);
    }
    Finding::new(
        Level::Ok,
        "memory",
        found,
        "enough for the shipped scenarios",
    )
}

pub(super) fn shm(facts: &Facts) -> Finding {
    let subject = "/dev/shm";
    match facts.shm_free_bytes {
        Some(free) => {
            let found = format!("{} free", bytes(free));
            Finding::new(
                Level::Ok,
                subject,
                found,
                "not needed: regions are memory files, outside of its size limit",
            )
        }
        None => Finding::new(
            Level::Ok,
            subject,
            "missing",
            "not needed: regions are memory files",
        ),
    }
}

pub(super) fn tmp(facts: &Facts) -> Finding {
    let folder = facts.tmp.display();
    match facts.tmp_free_bytes {
        Some(free) if free >= SPACE => Finding::new(
            Level::Ok,
            "temporary files",
            format!("{} free in {folder}", bytes(free)),
            "enough",
        ),
        Some(free) => Finding::new(
            Level::Warning,
            "temporary files",
            format!("{} free in {folder}", bytes(free)),
            format!(
                "less than {}: long runs may fill it; set TMPDIR to another folder",
                bytes(SPACE)
            ),
        ),
        None => Finding::new(
            Level::Warning,
            "temporary files",
            format!("{folder} cannot be read"),
            "set TMPDIR to a folder that can be written",
        ),
    }
}

pub(super) fn out(facts: &Facts) -> Finding {
    let folder = facts.out.display();
    let (level, found, meaning) = match &facts.out_free_bytes {
        Ok(free) if *free >= SPACE => (
            Level::Ok,
            format!("{folder}: {} free", bytes(*free)),
            "can be written".to_string(),
        ),
        Ok(free) => (
            Level::Warning,
            format!("{folder}: {} free", bytes(*free)),
            format!(
                "less than {}: records of a long run may not fit",
                bytes(SPACE)
            ),
        ),
        Err(reason) => (
            Level::No,
            format!("{folder}: {reason}"),
            "no run can be stored: name another folder with --out".to_string(),
        ),
    };
    Finding {
        needed_by_all: true,
        ..Finding::new(level, "output folder", found, meaning)
    }
}

/// Bytes with a binary prefix and one decimal.
pub(super) fn bytes(bytes: u64) -> String {
    const PREFIXES: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    let prefix = PREFIXES.iter().find(|(size, _)| bytes >= *size);
    prefix.map_or_else(
        || format!("{bytes} B"),
        |(size, unit)| format!("{:.1} {unit}", bytes as f64 / *size as f64),
    )
}
