//! What makes step times change by themselves: the clock, other programs, and neighbours on the same hardware.
//!
//! Contract: pure; see [`super`]. Reference: the kernel's admin-guide/pm/cpufreq.
use super::{Finding, Level};
use crate::cmd::doctor::facts::Facts;
use crate::environment::cores::Turbo;

/// Load per usable core above which something else ran: the doctor itself takes next to nothing.
const BUSY: f64 = 0.3;
/// Stolen CPU time above which a virtual machine's neighbours show in step times; intervals of 1 % are common.
const STEAL: f64 = 0.01;

pub(super) fn governor(facts: &Facts) -> Finding {
    let subject = "frequency governor";
    let slow: Vec<_> = facts
        .governors
        .iter()
        .filter(|name| *name != "performance")
        .collect();
    match (facts.governors.len(), slow.first()) {
        (0, _) => Finding::new(
            Level::Warning,
            subject,
            "this machine does not show one",
            "the clock may change without being seen, as in most virtual machines: trust ratios within a block of \
             repeats more than milliseconds",
        ),
        (_, None) => Finding::new(
            Level::Ok,
            subject,
            "performance on every usable core",
            "the clock is not lowered",
        ),
        (cores, Some(first)) => Finding::new(
            Level::Warning,
            subject,
            format!("`{first}` on {} of {cores} usable cores", slow.len()),
            "the clock follows the load, so short steps look slow: `sudo cpupower frequency-set -g performance`",
        ),
    }
}

pub(super) fn turbo(facts: &Facts) -> Finding {
    let subject = "turbo";
    match facts.turbo {
        Turbo::Off => Finding::new(
            Level::Ok,
            subject,
            "off",
            "the clock does not depend on how many cores work",
        ),
        Turbo::On => Finding::new(
            Level::Warning,
            subject,
            "on",
            "one busy core may run faster than many, so efficiency against `single` loses what the clock loses; \
             compare with `independent`, or switch turbo off",
        ),
        Turbo::Unknown => Finding::new(
            Level::Warning,
            subject,
            "this machine does not say",
            "one busy core may run faster than many: read efficiency against `independent`",
        ),
    }
}

pub(super) fn load(facts: &Facts) -> Finding {
    let subject = "other load";
    let environment = &facts.environment;
    let (Some(per_core), Some(load)) = (environment.load_per_core(), environment.load_average)
    else {
        return Finding::new(
            Level::Warning,
            subject,
            "not known",
            "something else may be running",
        );
    };
    let found = format!(
        "load {:.2} over the last minute, {per_core:.2} per usable core",
        load[0]
    );
    if per_core > BUSY {
        let meaning = "something else is running and will slow some steps: wait until it ends, or expect trials \
                       marked `disturbed`";
        return Finding::new(Level::Warning, subject, found, meaning);
    }
    Finding::new(Level::Ok, subject, found, "quiet")
}

pub(super) fn neighbours(facts: &Facts) -> Finding {
    let subject = "virtual machine";
    let steal = facts.steal.unwrap_or(0.0);
    let found = format!(
        "{}; {:.2} % of CPU time stolen",
        if facts.is_virtual { "yes" } else { "no" },
        steal * 100.0
    );
    if steal > STEAL {
        let meaning =
            "the hypervisor gives time to others while trials run: repeat at another time";
        return Finding::new(Level::Warning, subject, found, meaning);
    }
    if facts.is_virtual {
        let meaning = "its cores may be threads of shared physical cores, and neighbours share caches and memory";
        return Finding::new(Level::Warning, subject, found, meaning);
    }
    Finding::new(
        Level::Ok,
        subject,
        found,
        "the cores are this machine's own",
    )
}
