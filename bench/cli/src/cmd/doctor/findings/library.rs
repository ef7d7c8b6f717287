//! Each of NVIDIA's libraries: where it is, or why it cannot be used and what to install.
//!
//! Contract: pure; see [`super`]. Reference: `syncmark_engine::backend::cuda::library`.
use syncmark_engine::backend::cuda::library::{Library, Missing, SCRIPT};
use syncmark_record::environment::gpu::CudaLibrary;

use super::{Finding, Level};
use crate::cmd::doctor::facts::Facts;

pub(super) fn libraries(facts: &Facts) -> Vec<Finding> {
    let found = |library: &Library| {
        let described = facts.cuda.libraries.iter();
        described
            .into_iter()
            .find(|described| described.name == library.name())
    };
    let driver = found(&Library::Driver).is_some_and(|driver| driver.version.is_some());
    Library::ALL
        .iter()
        .filter_map(|library| Some(judged(*library, found(library)?, driver)))
        .collect()
}

fn judged(library: Library, found: &CudaLibrary, driver: bool) -> Finding {
    let subject = library.name();
    if let Some(version) = &found.version {
        let path = found.path.as_deref().unwrap_or("an unknown place");
        return Finding::new(
            Level::Ok,
            subject,
            format!("{version}, {path}"),
            needed_for(library),
        );
    }
    let reason = found.problem.clone().unwrap_or_default();
    let meaning = match library.wheel() {
        // Nothing helps before the driver is there.
        Some(wheel) if !driver => format!(
            "{}; of no use without the driver: {SCRIPT} installs it from PyPI's {wheel}",
            needed_for(library)
        ),
        _ => {
            let missing = Missing {
                library,
                reason: reason.clone(),
            };
            format!("{}: {}", needed_for(library), missing.help())
        }
    };
    // GPUs train without being watched.
    let level = match library {
        Library::Nvml if driver => Level::Warning,
        _ => Level::No,
    };
    Finding::new(level, subject, reason, meaning)
}

fn needed_for(library: Library) -> &'static str {
    match library {
        Library::Driver => "for everything on GPUs",
        Library::Nvml => "to say what GPUs there are, and how they do",
        Library::Nvrtc => "compiles kernels",
        Library::CublasLt | Library::Cublas => "for matrix products",
        Library::Cudnn => "for convolutions",
        Library::Nccl => "for ranks on GPUs that exchange",
    }
}
