//! GPUs and NVIDIA's libraries in the section Environment.
//!
//! Contract: nothing is said of a machine without a driver, or of a folder from before GPUs were recorded.
use syncmark_record::environment::gpu::{Cuda, CudaLibrary, Gpu};
use syncmark_record::rows::TrialRow;

use super::{Row, gib, on_off};
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

/// What stands beside figures of several GPUs as long as nothing accepts a machine.
pub(in crate::compose) fn not_accepted(trials: &[TrialRow]) -> Option<String> {
    let several = |trial: &TrialRow| trial.backend == CUDA && trial.devices > 1;
    trials.iter().any(several).then(|| {
        "Multi-GPU not accepted here: bandwidth was not held against nccl-tests on this machine, nor DDP against PyTorch, nor bytes against \
         counters of its links. Figures of several GPUs say what was measured, and nobody has shown that it is right."
            .to_owned()
    })
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
        let said = |backend, devices| not_accepted(&[trial(backend, devices)]);
        assert!(
            said("cuda", 2)
                .unwrap()
                .starts_with("Multi-GPU not accepted here")
        );
        assert_eq!(said("cuda", 1), None);
        assert_eq!(said("cpu", 2), None);
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
