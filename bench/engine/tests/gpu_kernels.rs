//! Every kernel of the CUDA backend compiles for each architecture, where NVRTC is there: no GPU is needed for that.
use syncmark_engine::backend::BackendError;
use syncmark_engine::backend::cuda::compile::{Form, Source, compile};

/// Makes this fail, where it would be skipped for want of NVRTC.
const REQUIRED: &str = "SYNCMARK_REQUIRE_NVRTC";

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let (mut entries, mut narrow) = (0, 0);
    for source in Source::all() {
        for capability in [(8, 0), (9, 0), (10, 0)] {
            let ptx = match compile(source, capability, Form::Ptx) {
                Ok(ptx) => String::from_utf8(ptx).expect("PTX is text"),
                Err(error @ BackendError::Library(_)) => {
                    let required =
                        std::env::var_os(REQUIRED).is_some_and(|value| !value.is_empty());
                    assert!(
                        !required,
                        "{REQUIRED} is set, and there is no NVRTC: {error}. `scripts/cuda_libraries.sh --only nvrtc` downloads it; where that cannot be, set {REQUIRED}= (empty)"
                    );
                    println!("kernels are not compiled: {error}");
                    return;
                }
                Err(error) => panic!("{error}"),
            };
            let (major, minor) = capability;
            assert!(
                ptx.contains(&format!(".target sm_{major}{minor}")),
                "{}",
                source.name
            );
            let found = ptx.matches(".visible .entry").count();
            assert!(found > 0, "{} has no kernel", source.name);
            entries += found;
            // A form for values in bfloat16 rounds what it writes, where it writes any; one for floats does not.
            let rounds = ["cvt.rn.bf16.f32", "cvt.rn.bf16x2.f32"]
                .iter()
                .any(|rounding| ptx.contains(rounding));
            if source.is_narrow() {
                assert!(
                    rounds || source.name == "embedding.cu",
                    "{} rounds nothing",
                    source.name
                );
                narrow += found;
            } else if source.name != "compression.cu" {
                assert!(!rounds, "{} rounds values that are floats", source.name);
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
            if !doubles.contains(&source.name) {
                assert!(!ptx.contains(".f64"), "{} computes in f64", source.name);
            }
        }
    }
    println!("{entries} kernels, {narrow} of them for values in bfloat16");
}
