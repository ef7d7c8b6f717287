//! GPUs and NVIDIA's libraries in the section Environment.
//!
//! Contract: nothing is said of a machine without a driver, or of a folder from before GPUs were recorded.
use syncmark_record::acceptance::{Acceptance, CheckState};
use syncmark_record::environment::gpu::{Cuda, CudaLibrary, Gpu};
use syncmark_record::rows::TrialRow;

use super::{Row, gib, on_off};
use crate::document::Block;
use crate::format::count;

/// As `trials.csv` names the backend.
const CUDA: &str = "cuda";

pub(super) fn rows(cuda: &Cuda) -> Vec<Row> {
    let gpus = match cuda.gpus.as_slice() {
        [] => cuda
            .problem
            .as_ref()
            .map(|problem| format!("not listed: {problem}")),
        gpus => Some(gpus.iter().map(gpu).collect::<Vec<_>>().join("; ")),
    };
    let given = cuda
        .visible_gpus
        .map(|gpus| count(gpus as usize, "GPU"))
        .unwrap_or_else(|| "none".into());
    vec![
        ("NVIDIA driver", cuda.driver.clone()),
        ("GPUs", gpus),
        ("given to this process", Some(given)),
        (
            "NVIDIA's libraries",
            Some(
                cuda.libraries
                    .iter()
                    .map(library)
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
        ),
    ]
}

/// Names of the GPUs where a trial ran on one, `2 × NVIDIA H200`, for the report's head.
pub(in crate::compose) fn named(cuda: Option<&Cuda>, trials: &[TrialRow]) -> Option<String> {
    let on_gpus = trials.iter().any(|trial| trial.backend == CUDA);
    let gpus = &cuda.filter(|_| on_gpus)?.gpus;
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for gpu in gpus {
        match counts.iter_mut().find(|(name, _)| *name == gpu.name) {
            Some((_, count)) => *count += 1,
            None => counts.push((&gpu.name, 1)),
        }
    }
    let words = counts.iter().map(|(name, count)| match count {
        1 => (*name).to_owned(),
        count => format!("{count} × {name}"),
    });
    (!counts.is_empty()).then(|| words.collect::<Vec<_>>().join(", "))
}

/// What stands beside figures of several GPUs: what accepts them, or that nothing does.
pub(in crate::compose) fn accepted(
    acceptance: Option<&Acceptance>,
    machine: Option<&Cuda>,
    trials: &[TrialRow],
) -> Option<Block> {
    let on_gpus = trials.iter().filter(|trial| trial.backend == CUDA);
    let devices = on_gpus.map(|trial| trial.devices).max()?;
    if devices < 2 {
        return None;
    }
    match (acceptance, machine) {
        // What it says of itself is not enough.
        (Some(acceptance), Some(cuda)) if acceptance.covers(cuda, devices) => {
            Some(Block::note(accepted_by(acceptance)))
        }
        (Some(acceptance), _) => Some(Block::warning(format!(
            "{NOT_ACCEPTED} What {} compared: {}.",
            acceptance.scenario,
            told(acceptance, |_| true)
        ))),
        (None, _) => Some(Block::warning(format!("{NOT_ACCEPTED} {WHY_NOT}"))),
    }
}

const NOT_ACCEPTED: &str = "Multi-GPU not accepted here.";
const WHY_NOT: &str = "No `syncmark run gpu-acceptance` has passed with these GPUs, driver and NCCL, which holds results, DDP, bandwidth and bytes against other programs. \
Figures of several GPUs say what was measured, and nobody has shown that it is right.";

/// `Multi-GPU accepted here on 2026-01-02, by gpu-acceptance on 4 GPUs: ...`.
fn accepted_by(acceptance: &Acceptance) -> String {
    let day = acceptance.date.split('T').next().unwrap_or_default();
    let mut words = format!(
        "Multi-GPU accepted here on {day}, by {} on {} with syncmark {}: {}.",
        acceptance.scenario,
        count(acceptance.devices as usize, "GPU"),
        acceptance.syncmark,
        told(acceptance, |state| state == CheckState::Passed)
    );
    let skipped = told(acceptance, |state| state == CheckState::Skipped);
    if !skipped.is_empty() {
        words.push_str(&format!(" Not compared: {skipped}."));
    }
    words
}

/// `losses beside PyTorch's (passed: ...); ...` of the checks in such states.
fn told(acceptance: &Acceptance, of: impl Fn(CheckState) -> bool) -> String {
    let chosen = acceptance.checks.iter().filter(|check| of(check.state));
    let words = chosen.map(|check| {
        let state = match check.state {
            CheckState::Passed => "passed",
            CheckState::Failed => "FAILED",
            CheckState::Skipped => "skipped",
        };
        format!("{} {state} ({})", check.name, check.words)
    });
    words.collect::<Vec<_>>().join("; ")
}

/// `0: NVIDIA H200, 141 GiB, compute capability 9.0, ECC on, 18 NVLinks, power cap 700 W, clocks not known to be locked`.
fn gpu(gpu: &Gpu) -> String {
    let mut words = vec![format!("{}: {}", gpu.index, gpu.name)];
    words.extend(gpu.memory_bytes.map(gib));
    let capability = gpu.compute_capability.as_ref();
    words.extend(capability.map(|number| format!("compute capability {number}")));
    words.extend(gpu.ecc.map(|on| format!("ECC {}", on_off(on))));
    words.extend(
        gpu.mig
            .filter(|on| *on)
            .map(|on| format!("MIG {}", on_off(on))),
    );
    if !gpu.nvlinks.is_empty() {
        words.push(count(gpu.nvlinks.len(), "NVLink"));
    }
    words.extend(
        gpu.power_limit_watts
            .map(|watts| format!("power cap {watts:.0} W")),
    );
    words.push(match gpu.clocks.locked {
        Some(true) => "clocks locked".to_owned(),
        _ => "clocks not known to be locked".to_owned(),
    });
    words.join(", ")
}

fn library(library: &CudaLibrary) -> String {
    match &library.version {
        Some(version) => format!("{} {version}", library.name),
        None => format!("no {}", library.name),
    }
}

#[cfg(test)]
mod tests {
    use syncmark_record::acceptance::Check;

    use super::*;

    fn trial(backend: &str, devices: u32) -> TrialRow {
        TrialRow {
            backend: backend.into(),
            devices,
            ..TrialRow::unknown("id")
        }
    }

    #[test]
    fn the_head_names_gpus_that_were_used() {
        let gpu = |name: &str| Gpu {
            name: name.into(),
            ..Gpu::default()
        };
        let cuda = Cuda {
            gpus: vec![gpu("A"), gpu("B"), gpu("A")],
            ..Cuda::default()
        };
        let on = |backend| named(Some(&cuda), &[trial("cpu", 1), trial(backend, 1)]);
        assert_eq!(on("cuda").unwrap(), "2 × A, B");
        assert_eq!(on("cpu"), None);
        assert_eq!(named(None, &[trial("cuda", 1)]), None);
    }

    #[test]
    fn several_gpus_are_not_accepted() {
        let said = |backend, devices| accepted(None, None, &[trial(backend, devices)]);
        let warning = format!("{:?}", said("cuda", 2).unwrap());
        assert!(warning.contains("Multi-GPU not accepted here"), "{warning}");
        assert_eq!(said("cuda", 1), None);
        assert_eq!(said("cpu", 2), None);
    }

    fn machine(uuids: [&str; 2]) -> Cuda {
        Cuda {
            driver: Some("580".into()),
            gpus: uuids.map(gpu_of).to_vec(),
            libraries: vec![CudaLibrary {
                name: "NCCL".into(),
                version: Some("2.28.9".into()),
                ..CudaLibrary::default()
            }],
            ..Cuda::default()
        }
    }

    fn compared(state: CheckState) -> Acceptance {
        let check = |name: &str, state, required| Check {
            name: name.into(),
            state,
            required,
            words: "1e-7 away".into(),
            figures: Default::default(),
        };
        let mut acceptance = Acceptance {
            date: "2026-01-02T03:04:05Z".into(),
            scenario: "gpu-acceptance".into(),
            syncmark: "0.1.0 (abc)".into(),
            devices: 2,
            own_gpus: true,
            checks: vec![
                check("losses", state, true),
                check("bandwidth", CheckState::Skipped, false),
            ],
            ..Acceptance::default()
        }
        .on(&machine(["GPU-a", "GPU-b"]));
        acceptance.accepted = acceptance.accepts();
        acceptance
    }

    fn gpu_of(uuid: &str) -> Gpu {
        Gpu {
            uuid: Some(uuid.into()),
            ..Gpu::default()
        }
    }

    /// The machine that was accepted says so; another one, more devices, or an acceptance that is none, does not.
    #[test]
    fn only_the_machine_that_was_compared_is_accepted() {
        let said = |state, machine: &Cuda, devices| {
            let acceptance = compared(state);
            let block = accepted(Some(&acceptance), Some(machine), &[trial("cuda", devices)]);
            format!("{block:?}")
        };
        let own = machine(["GPU-a", "GPU-b"]);
        let accepts = |words: &str| words.contains("Multi-GPU accepted here on 2026-01-02");
        assert!(accepts(&said(CheckState::Passed, &own, 2)));
        let refused = [
            said(CheckState::Passed, &own, 3),
            said(CheckState::Passed, &machine(["GPU-a", "GPU-c"]), 2),
            said(CheckState::Failed, &own, 2),
            said(CheckState::Skipped, &own, 2),
        ];
        for words in refused {
            assert!(!accepts(&words), "{words}");
            assert!(words.contains(NOT_ACCEPTED), "{words}");
        }
    }

    #[test]
    fn an_acceptance_says_what_was_compared_and_what_was_not() {
        let words = accepted_by(&compared(CheckState::Passed));
        assert_eq!(
            words,
            "Multi-GPU accepted here on 2026-01-02, by gpu-acceptance on 2 GPUs with syncmark 0.1.0 (abc): losses passed (1e-7 away). \
             Not compared: bandwidth skipped (1e-7 away)."
        );
    }

    #[test]
    fn gpus_are_told_in_a_line_each() {
        let cuda = Cuda {
            driver: Some("580.82.07".into()),
            visible_gpus: Some(1),
            gpus: vec![Gpu {
                name: "Example GPU".into(),
                memory_bytes: Some(80 << 30),
                ecc: Some(true),
                mig: Some(false),
                power_limit_watts: Some(700.0),
                ..Gpu::default()
            }],
            problem: None,
            libraries: vec![
                CudaLibrary {
                    name: "NVRTC".into(),
                    version: Some("13.0".into()),
                    ..CudaLibrary::default()
                },
                CudaLibrary {
                    name: "NCCL".into(),
                    ..CudaLibrary::default()
                },
            ],
        };
        let rows = rows(&cuda);
        assert_eq!(
            rows[1].1.as_deref(),
            Some(
                "0: Example GPU, 80.0 GiB, ECC on, power cap 700 W, clocks not known to be locked"
            )
        );
        assert_eq!(rows[2].1.as_deref(), Some("1 GPU"));
        assert_eq!(rows[3].1.as_deref(), Some("NVRTC 13.0, no NCCL"));
    }

    #[test]
    fn a_driver_that_lists_nothing_says_why() {
        let cuda = Cuda {
            problem: Some("NVML: not there".into()),
            ..Cuda::default()
        };
        let rows = rows(&cuda);
        assert_eq!(rows[0].1, None);
        assert_eq!(rows[1].1.as_deref(), Some("not listed: NVML: not there"));
        assert_eq!(rows[2].1.as_deref(), Some("none"));
    }
}
