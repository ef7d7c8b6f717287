//! Which devices, kernels, transports and outputs this machine and this build have.
//!
//! Contract: pure; see [`super`]. Reference: "A device" in ARCHITECTURE.md.
use super::{Finding, Level};
use crate::cmd::doctor::facts::Facts;

/// Cores that can work at once: those of the affinity mask, or fewer where a control group limits CPU time.
fn usable_cores(facts: &Facts) -> usize {
    let cores = facts.environment.affinity.len();
    match facts.environment.cpu_limit_cores {
        // Half a core is a device that is throttled, so a fraction does not count.
        Some(limit) => cores.min(limit.floor() as usize),
        None => cores,
    }
}

pub(super) fn devices(facts: &Facts) -> Finding {
    let environment = &facts.environment;
    let usable = usable_cores(facts);
    let mut found = format!(
        "{} of {} logical cores ({} physical), {}",
        environment.affinity.len(),
        environment.logical_cores,
        facts.physical_cores,
        environment.cpu_model
    );
    if let Some(limit) = environment.cpu_limit_cores {
        found.push_str(&format!(
            "; the control group allows {limit:.2} cores of CPU time"
        ));
    }
    let judge = |level, meaning: String| Finding::new(level, "CPU devices", found.clone(), meaning);
    if usable < 2 {
        let meaning = "one device; two or more share a core, are recorded as oversubscribed and say nothing about \
                       scaling: give the process more cores";
        return judge(Level::Warning, meaning.to_string());
    }
    if usable < environment.affinity.len() {
        let meaning = format!(
            "up to {usable} devices without oversubscription; cores are throttled by the CPU limit, which \
             step times show as pauses: raise the limit or pin the process to {usable} cores"
        );
        return judge(Level::Warning, meaning);
    }
    if facts.physical_cores < usable {
        let meaning = format!(
            "up to {usable} devices without oversubscription, but more than {} of them share physical cores, which \
             looks like communication in efficiency",
            facts.physical_cores
        );
        return judge(Level::Warning, meaning);
    }
    judge(
        Level::Ok,
        format!("up to {usable} devices without oversubscription"),
    )
}

pub(super) fn simd(facts: &Facts) -> Finding {
    let features = &facts.environment.simd_features;
    let has = |name: &str| features.iter().any(|feature| feature == name);
    let found = if features.is_empty() {
        "none that is known".to_string()
    } else {
        features.join(" ")
    };
    let (level, meaning) = match facts.environment.kernel_instructions.as_deref() {
        Some("avx512") => (Level::Ok, "kernels use AVX-512"),
        Some("avx2") => (Level::Ok, "kernels use AVX2 with FMA"),
        _ if has("neon") => (Level::Ok, "kernels use NEON"),
        Some(_) => (
            Level::Warning,
            "kernels use only what every processor of the target has: compute takes several times longer and hides communication",
        ),
        None => (
            Level::No,
            "SYNCMARK_CPU_INSTRUCTIONS names instructions that are not there, so nothing runs: unset it",
        ),
    };
    Finding {
        needed_by_all: level == Level::No,
        ..Finding::new(level, "SIMD", found, meaning)
    }
}

pub(super) fn processes(facts: &Facts) -> Finding {
    match &facts.memfd {
        Ok(()) => Finding::new(
            Level::Ok,
            "shared memory",
            "memfd_create works",
            "ranks can be threads or processes of this host",
        ),
        Err(reason) => Finding::new(
            Level::No,
            "shared memory",
            format!("memfd_create fails: {reason}"),
            "ranks as processes cannot talk; thread ranks can: use `--filter parallel.launch=threads`, or allow the \
             call (a container's seccomp profile may forbid it)",
        ),
    }
}

pub(super) fn tcp(facts: &Facts) -> Finding {
    match &facts.tcp {
        Ok(true) => Finding::new(
            Level::Ok,
            "TCP",
            "connects, and the kernel counts bytes",
            "ranks can exchange over `transport = \"tcp\"`, on one host or, under torchrun, srun or mpirun, on several",
        ),
        Ok(false) => Finding::new(
            Level::Warning,
            "TCP",
            "connects, but the kernel does not count bytes",
            "`transport = \"tcp\"` runs without measured bytes: for these the kernel must be Linux 4.19 or later",
        ),
        Err(reason) => Finding::new(
            Level::No,
            "TCP",
            format!("127.0.0.1 cannot be connected to: {reason}"),
            "ranks on several hosts cannot talk, nor on one over `transport = \"tcp\"`; use `transport = \"shared\"`, or \
             allow sockets and bring the loopback interface up",
        ),
    }
}

pub(super) fn pdf(facts: &Facts) -> Finding {
    if facts.pdf {
        Finding::new(
            Level::Ok,
            "PDF reports",
            "built in",
            "report.pdf is written beside report.html and report.md",
        )
    } else {
        let meaning =
            "report.html and report.md only: build with the feature `pdf`, which is on by default";
        Finding::new(Level::No, "PDF reports", "not built in", meaning)
    }
}
