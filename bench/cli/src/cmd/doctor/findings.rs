//! Judges what the doctor gathered: what runs here, and what must be known before a figure is trusted.
//!
//! Contract: pure. Each finding says what was found and what follows from it; a warning never stops a run.
//! Reference: "A device" and "The runner" in ARCHITECTURE.md; each threshold stands with its reason where it is used.
mod capability;
mod gpu;
mod hardware;
mod library;
mod noise;
mod space;
#[cfg(test)]
mod tests;

use capability::{devices, pdf, processes, simd, tcp};
use gpu::{backend, gpus, nvlink};
use hardware::{caches, clock, nodes};
use library::libraries;
use noise::{governor, load, neighbours, turbo};
use space::{memory, out, shm, tmp};

use super::facts::Facts;

/// How a finding is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// It runs, but figures depend on it.
    Warning,
    /// It does not run here.
    No,
}

impl Level {
    /// The mark in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::No => "no",
        }
    }
}

/// One row of the doctor's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it is marked.
    pub level: Level,
    /// What was looked at.
    pub subject: &'static str,
    /// What was found.
    pub found: String,
    /// What follows, and what to do about it.
    pub meaning: String,
    /// Whether no trial at all can run without it.
    pub needed_by_all: bool,
}

impl Finding {
    fn new(
        level: Level,
        subject: &'static str,
        found: impl Into<String>,
        meaning: impl Into<String>,
    ) -> Self {
        Self {
            level,
            subject,
            found: found.into(),
            meaning: meaning.into(),
            needed_by_all: false,
        }
    }
}

/// Judges everything, in the order in which a reader needs it.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        devices(facts),
        simd(facts),
        backend(facts),
        processes(facts),
        tcp(facts),
    ];
    findings.extend([
        memory(facts),
        shm(facts),
        tmp(facts),
        out(facts),
        pdf(facts),
    ]);
    findings.extend([
        governor(facts),
        turbo(facts),
        clock(facts),
        caches(facts),
        nodes(facts),
        load(facts),
        neighbours(facts),
    ]);
    findings.extend(gpus(facts));
    findings.extend(nvlink(facts));
    findings.extend(libraries(facts));
    findings
}
