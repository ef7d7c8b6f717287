//! GPUs and NVIDIA's libraries in the section Environment.
//!
//! Contract: nothing is said of a machine without a driver, or of a folder from before GPUs were recorded.
use syncmark_record::environment::gpu::{Cuda, CudaLibrary, Gpu};

use super::{Row, gib, on_off};
use crate::format::count;

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
