//! GPUs and NVIDIA's libraries, on made-up machines: without a driver, with a driver alone, and with everything.
use syncmark_engine::backend::cuda::library::{Library, Missing};
use syncmark_record::environment::gpu::{CudaLibrary, Distance, Gpu, GpuClocks, NvLink, Pcie};

use super::*;

fn missing(library: Library) -> Missing {
    Missing {
        library,
        reason: format!("{}: not there", library.soname()),
    }
}

/// The machine with these libraries and without the others.
fn with_libraries(there: &[Library]) -> Facts {
    let described = |library: Library| match there.contains(&library) {
        true => CudaLibrary {
            name: library.name().into(),
            version: Some("1.2.3".into()),
            path: Some(format!("/lib/{}", library.soname())),
            problem: None,
        },
        false => CudaLibrary {
            name: library.name().into(),
            problem: Some(missing(library).reason),
            ..CudaLibrary::default()
        },
    };
    let lacks: Vec<Lack> = Library::OF_A_DEVICE
        .into_iter()
        .filter(|library| !there.contains(library))
        .map(|library| Lack::Library(missing(library)))
        .collect();
    let mut facts = quiet();
    facts.cuda.libraries = Library::ALL.map(described).to_vec();
    facts.gpus = match lacks.as_slice() {
        [] => Ok(2),
        _ => Err(lacks),
    };
    facts
}

/// A GPU that nothing disturbs.
fn gpu(index: u32) -> Gpu {
    Gpu {
        index,
        name: "Example GPU".into(),
        memory_bytes: Some(80 << 30),
        compute_capability: Some("9.0".into()),
        pcie: Pcie {
            generation: Some(1),
            max_generation: Some(5),
            width: Some(16),
            max_width: Some(16),
        },
        numa_node: Some(1),
        network: Some("ib0 mlx5_0".into()),
        mig: Some(false),
        ecc: Some(true),
        clocks: GpuClocks {
            sm_mhz: Some(345),
            sm_max_mhz: Some(1980),
            locked: Some(true),
            ..GpuClocks::default()
        },
        power_limit_watts: Some(700.0),
        power_limit_default_watts: Some(700.0),
        ..Gpu::default()
    }
}

/// The machine with everything and these GPUs.
fn with_gpus(gpus: &[Gpu]) -> Facts {
    let mut facts = with_libraries(&Library::ALL);
    facts.nvidia_driver = true;
    facts.cuda.visible_gpus = Some(gpus.len() as u32);
    facts.cuda.gpus = gpus.to_vec();
    facts.gpus = Ok(gpus.len());
    facts
}

/// The findings about `subject`.
fn about(subject: &str, facts: &Facts) -> Vec<Finding> {
    let mut findings = examine(facts);
    findings.retain(|finding| finding.subject == subject);
    findings
}

fn one(subject: &str, facts: &Facts) -> Finding {
    let mut findings = about(subject, facts);
    assert_eq!(findings.len(), 1, "{findings:?}");
    findings.remove(0)
}

#[test]
fn without_a_driver_every_library_is_named_and_nothing_stops_the_cpu() {
    let facts = with_libraries(&[]);
    let backend = one("CUDA backend", &facts);
    assert_eq!((backend.level, backend.needed_by_all), (Level::No, false));
    for word in ["no NVIDIA driver", "cuDNN", "cuBLASLt"] {
        assert!(backend.found.contains(word), "{backend:?}");
    }
    for word in ["release 580", "scripts/cuda_libraries.sh", "takes the CPU"] {
        assert!(backend.meaning.contains(word), "{backend:?}");
    }
    for library in Library::ALL {
        let finding = one(library.name(), &facts);
        assert_eq!(finding.level, Level::No);
        assert_eq!(finding.found, missing(library).reason);
    }
    let nvrtc = one("NVRTC", &facts);
    assert!(
        nvrtc.meaning.contains("of no use without the driver"),
        "{nvrtc:?}"
    );
    assert!(about("GPU", &facts).is_empty() && about("links of GPUs", &facts).is_empty());
}

#[test]
fn with_a_driver_alone_each_library_says_how_to_install_it() {
    let mut facts = with_libraries(&[Library::Driver]);
    facts.nvidia_driver = true;
    let backend = one("CUDA backend", &facts);
    assert!(
        backend
            .found
            .starts_with("an NVIDIA driver is loaded; missing: NVRTC"),
        "{backend:?}"
    );
    assert!(!backend.meaning.contains("release 580"), "{backend:?}");
    assert_eq!(one("CUDA driver", &facts).level, Level::Ok);
    assert_eq!(
        one("NVML", &facts).level,
        Level::Warning,
        "GPUs train without it"
    );
    let cudnn = one("cuDNN", &facts);
    assert_eq!(cudnn.level, Level::No);
    for word in [
        "scripts/cuda_libraries.sh",
        "nvidia-cudnn-cu13",
        "SYNCMARK_CUDA_LIBRARIES",
    ] {
        assert!(cudnn.meaning.contains(word), "{cudnn:?}");
    }
}

#[test]
fn a_driver_that_gives_no_gpu_is_told_from_one_that_is_missing() {
    let mut facts = with_libraries(&Library::ALL);
    let reason = "the driver gives this process none (CUDA_ERROR_NO_DEVICE)".to_owned();
    facts.gpus = Err(vec![Lack::Gpu { reason }]);
    let backend = one("CUDA backend", &facts);
    assert!(
        backend.found.contains("CUDA_ERROR_NO_DEVICE"),
        "{backend:?}"
    );
    assert!(
        backend.meaning.contains("CUDA_VISIBLE_DEVICES"),
        "{backend:?}"
    );
}

#[test]
fn with_everything_gpus_are_listed_with_what_they_are() {
    let facts = with_gpus(&[gpu(0), gpu(1)]);
    let backend = one("CUDA backend", &facts);
    assert_eq!(
        (backend.level, backend.found.as_str()),
        (Level::Ok, "2 GPUs")
    );
    let gpus = about("GPU", &facts);
    assert_eq!(gpus.len(), 2);
    assert_eq!(
        gpus[1].found,
        "1: Example GPU, 80.0 GiB, compute capability 9.0, PCIe gen 5 x16 (now gen 1 x16), SM clock 345 of 1980 MHz, \
         power cap 700 W, ECC on, MIG off, clocks locked, NUMA node 1, network ib0 mlx5_0"
    );
    assert_eq!(
        gpus[1].level,
        Level::Ok,
        "an idle clock and link are no warning: {gpus:?}"
    );
    let nccl = one("NCCL", &facts);
    assert_eq!(
        (nccl.level, nccl.found.as_str()),
        (Level::Ok, "1.2.3, /lib/libnccl.so.2")
    );
    assert!(about("GPUs", &facts).is_empty(), "none is hidden");
}

#[test]
fn what_disturbs_a_gpu_is_warned_about() {
    let warned = |spoil: fn(&mut Gpu), word: &str| {
        let mut spoilt = gpu(0);
        spoil(&mut spoilt);
        let finding = one("GPU", &with_gpus(&[spoilt]));
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.meaning.contains(word), "{finding:?}");
    };
    warned(|gpu| gpu.mig = Some(true), "MIG");
    warned(|gpu| gpu.pcie.width = Some(8), "8 of 16 PCIe lanes");
    warned(|gpu| gpu.power_limit_watts = Some(500.0), "below the 700 W");
    warned(
        |gpu| gpu.clocks.held_back_by = vec!["heat".into()],
        "held back by heat",
    );
    warned(|gpu| gpu.processes = Some(1), "1 other process on it");
    warned(|gpu| gpu.processes = Some(2), "2 other processes on it");
    warned(|gpu| gpu.clocks.locked = None, "do not show as locked");
}

#[test]
fn a_gpu_that_says_nothing_but_its_name_is_listed() {
    let silent = Gpu {
        name: "Example GPU".into(),
        ..Gpu::default()
    };
    assert_eq!(one("GPU", &with_gpus(&[silent])).found, "0: Example GPU");
}

#[test]
fn hidden_gpus_are_counted() {
    let mut facts = with_gpus(&[gpu(0), gpu(1)]);
    facts.cuda.visible_gpus = Some(1);
    let hidden = one("GPUs", &facts);
    assert_eq!(hidden.level, Level::Warning);
    assert!(hidden.found.contains("1 of 2"), "{hidden:?}");
}

#[test]
fn links_are_told_by_their_other_ends() {
    let link = |peer| NvLink {
        version: Some(4),
        peer,
        ..NvLink::default()
    };
    let far = |other| Distance {
        gpu: other,
        across: "host bridge".into(),
    };
    let mut pair = [gpu(0), gpu(1)];
    (pair[0].distances, pair[1].distances) = (vec![far(1)], vec![far(0)]);
    let none = one("links of GPUs", &with_gpus(&pair));
    assert_eq!(
        none.found,
        "no NVLink is up; over PCIe 0-1 across the host bridge"
    );

    pair[0].nvlinks = vec![link(Some(1)), link(Some(1)), link(None)];
    let some = one("links of GPUs", &with_gpus(&pair));
    assert_eq!(some.level, Level::Warning);
    assert!(
        some.found.starts_with(
            "GPU 0: NVLinks (version 4): 1 to a switch or another device, 2 to GPU 1; over PCIe"
        ),
        "{some:?}"
    );
    pair[1].nvlinks = vec![link(Some(0)), link(Some(0))];
    assert_eq!(one("links of GPUs", &with_gpus(&pair)).level, Level::Ok);
    assert!(
        about("links of GPUs", &with_gpus(&[gpu(0)])).is_empty(),
        "one GPU has nobody to reach"
    );
}
