//! Bandwidth of a GPU's memory: one stream in and one out, by the backend's own copy kernel.
//!
//! Contract: the working set is at least 4 times the second-level cache of any GPU there is today; each window goes over all of it and is
//! timed by the device's events. Bytes are those read and those written. All elements are compared after the last window.
use super::{Ceiling, CeilingError, Measured, Result, Spread, WINDOWS};
use crate::backend::{Backend, Category, HostSliceMut, Stream};
use crate::kernel::{Kernel, Write};
use crate::tensor::Dtype;

/// Elements of each of the two streams: together 1 GiB, where caches hold up to 126 MB.
const ELEMENTS: usize = 128 << 20;
/// Copies of a window.
const COPIES: usize = 4;
const VALUE: f32 = 0.75;

/// What `device`'s memory carries. Its memory is the device's until that is dropped.
///
/// # Errors
/// No memory, a failure of the device, or a copy that is none.
pub fn gpu_memory(device: &mut dyn Backend) -> Result<Measured> {
    let mut stream = || device.allocate(Category::Workspace, Dtype::F32, ELEMENTS);
    let (from, to) = (stream()?, stream()?);
    let value = VALUE;
    device.launch(Stream::Compute, Kernel::Fill { to: from, value })?;
    let mut figures = Vec::with_capacity(WINDOWS + 1);
    for _ in 0..=WINDOWS {
        let begin = device.record(Stream::Compute);
        for _ in 0..COPIES {
            let write = Write::Overwrite;
            device.launch(Stream::Compute, Kernel::Copy { from, to, write })?;
        }
        let end = device.record(Stream::Compute);
        device.synchronize()?;
        let took = device.time_ns(end)? - device.time_ns(begin)?;
        let bytes = COPIES * 2 * to.bytes();
        figures.push(bytes as f64 / (took.max(1) as f64 / 1e9));
    }
    // The first window warmed up.
    figures.remove(0);
    let mut found = vec![0.0; ELEMENTS];
    device.download(to, HostSliceMut::F32(&mut found))?;
    if let Some(wrong) = found.iter().find(|found| **found != VALUE) {
        return Err(CeilingError::Wrong {
            ceiling: Ceiling::MemoryReadWrite,
            found: f64::from(*wrong),
            expected: f64::from(VALUE),
        });
    }
    Ok(Measured {
        ceiling: Ceiling::MemoryReadWrite,
        threads: 1,
        instructions: None,
        working_set_bytes: Some(2 * to.bytes() as u64),
        spread: Spread::of(figures, false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendError;
    use crate::backend::cuda::{CudaBackend, CudaDevice};

    #[test]
    fn a_gpu_has_a_bandwidth() {
        let mut device: Box<dyn Backend> = match CudaBackend::new(CudaDevice::default()) {
            Ok(device) => Box::new(device),
            Err(reason) => {
                let required = std::env::var_os("SYNCMARK_REQUIRE_GPU").is_some_and(|v| v == "1");
                assert!(
                    !required,
                    "SYNCMARK_REQUIRE_GPU is set, and there is no GPU: {reason}"
                );
                println!("not run on a GPU: {reason}");
                return;
            }
        };
        let found = gpu_memory(&mut *device).unwrap();
        // No GPU that runs this moves less than 100 GB/s or more than 20 TB/s.
        let median = found.spread.median;
        assert!((1e11..2e13).contains(&median), "{median:e}");
        let out = device.allocate(Category::Workspace, Dtype::F32, 1 << 46);
        assert!(matches!(out, Err(BackendError::OutOfMemory { .. })));
    }
}
