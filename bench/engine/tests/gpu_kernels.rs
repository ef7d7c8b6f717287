//! Every kernel of the CUDA backend compiles for each architecture, where NVRTC is there: no GPU is needed for that.
use std::sync::atomic::{AtomicUsize, Ordering};

use syncmark_engine::backend::BackendError;
use syncmark_engine::backend::cuda::compile::{Form, Source, compile};

/// Makes this fail, where it would be skipped for want of NVRTC.
const REQUIRED: &str = "SYNCMARK_REQUIRE_NVRTC";

/// What was found in one source's code for one architecture.
#[derive(Default)]
struct Found {
    kernels: usize,
    /// Those for values in bfloat16.
    narrow: usize,
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let sources: Vec<Source> = Source::all().collect();
    let work: Vec<(Source, (u32, u32))> = sources
        .iter()
        .flat_map(|source| [(8, 0), (9, 0), (10, 0)].map(|capability| (*source, capability)))
        .collect();
    let next = AtomicUsize::new(0);
    // A thread per core: it is 40 s of work.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = std::thread::scope(|scope| {
        let takes_next = || -> Result<Found, BackendError> {
            let mut found = Found::default();
            while let Some((source, capability)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let ptx = match compile(*source, *capability, Form::Ptx) {
                    Err(error @ BackendError::Library(_)) => return Err(error),
                    result => result.unwrap_or_else(|error| panic!("{error}")),
                };
                let ptx = String::from_utf8(ptx).expect("PTX is text");
                let kernels = check(*source, *capability, &ptx);
                found.kernels += kernels;
                found.narrow += if source.is_narrow() { kernels } else { 0 };
            }
            Ok(found)
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(takes_next)).collect();
        let ended = running.into_iter().map(|thread| {
            let joined = thread.join();
            joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        ended.collect::<Result<Vec<Found>, BackendError>>()
    });
    match found {
        Ok(found) => {
            let kernels: usize = found.iter().map(|found| found.kernels).sum();
            let narrow: usize = found.iter().map(|found| found.narrow).sum();
            println!("{kernels} kernels, {narrow} of them for values in bfloat16");
        }
        Err(error) => {
            let required = std::env::var_os(REQUIRED).is_some_and(|value| !value.is_empty());
            assert!(
                !required,
                "{REQUIRED} is set, and there is no NVRTC: {error}. `scripts/cuda_libraries.sh --only nvrtc` downloads it; where that cannot be, set {REQUIRED}= (empty)"
            );
            println!("kernels are not compiled: {error}");
        }
    }
}

/// Holds PTX against what it must and must not have, and counts its kernels.
fn check(source: Source, (major, minor): (u32, u32), ptx: &str) -> usize {
    let name = source.name;
    assert!(
        ptx.contains(&format!(".target sm_{major}{minor}")),
        "{name}"
    );
    let kernels = ptx.matches(".visible .entry").count();
    assert!(kernels > 0, "{name} has no kernel");
    // A form for values in bfloat16 rounds what it writes, where it writes any; one for floats does not.
    let rounds = ["cvt.rn.bf16.f32", "cvt.rn.bf16x2.f32"]
        .iter()
        .any(|rounding| ptx.contains(rounding));
    if source.is_narrow() {
        assert!(rounds || name == "embedding.cu", "{name} rounds nothing");
    } else if name != "compression.cu" {
        assert!(!rounds, "{name} rounds values that are floats");
    }
    // Doubles are for optimizers' factors, losses' sums, normal numbers, orthonormal columns and means; elsewhere they are a slip.
    let doubles = [
        "loss.cu",
        "optimizer.cu",
        "compression.cu",
        "columns.cu",
        "groups.cu",
        "samples.cu",
    ];
    if !doubles.contains(&name) {
        assert!(!ptx.contains(".f64"), "{name} computes in f64");
    }
    kernels
}
