//! The devices of this child: on their cores, or on GPUs, and how DataParallel's copy.
//!
//! Contract: device `index` of a trial is the same whichever rank makes it. Devices go over the GPUs in turn, so that with more devices than
//! GPUs some share one.
use std::sync::Arc;

use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::cuda::{CudaBackend, CudaDevice, Precision, discovery};
use syncmark_engine::backend::{Backend, BackendError};
use syncmark_engine::comm::device_links::DeviceLinks;
use syncmark_engine::comm::links::{HostLinks, Links};

use super::RankError;
use crate::plan::config::{self, TrialConfig};
use crate::run::protocol::{Assignment, Purpose};
use crate::scenario::file;

/// Device `index` of the trial.
///
/// # Errors
/// When it cannot be had.
pub(super) fn device(assignment: &Assignment, index: usize) -> Result<Box<dyn Backend>, RankError> {
    match assignment.trial.backend {
        config::Backend::Cpu => cpu(assignment, index),
        config::Backend::Cuda => gpu(assignment, index),
    }
}

fn gpu(assignment: &Assignment, index: usize) -> Result<Box<dyn Backend>, RankError> {
    let gpus = discovery::gpus().map_err(|lack| BackendError::Device(lack.to_string()))?;
    let device = CudaDevice {
        ordinal: index % gpus,
        precision: match (&assignment.purpose, assignment.trial.precision) {
            // A gate compares orders of additions, which rounded products would drown.
            (Purpose::Gate { .. }, _) | (_, file::Precision::Fp32) => Precision::Fp32,
            (_, file::Precision::Tf32) => Precision::Tf32,
            (_, file::Precision::Bf16) => Precision::Bf16,
        },
    };
    Ok(Box::new(CudaBackend::new(device)?))
}

fn cpu(assignment: &Assignment, index: usize) -> Result<Box<dyn Backend>, RankError> {
    let cores = cores(assignment, index).to_vec();
    Ok(Box::new(CpuBackend::new(CpuDevice {
        cores,
        spin: spins(assignment),
        oversubscribed: assignment.oversubscribed,
        threads: assignment.trial.threads,
        ..CpuDevice::default()
    })?))
}

/// How DataParallel's devices copy.
///
/// # Errors
/// Devices of another kind than their backend says, or GPUs that cannot be told to reach each other.
pub(super) fn links(
    config: &TrialConfig,
    devices: &mut [Box<dyn Backend>],
) -> Result<Arc<dyn Links>, RankError> {
    Ok(match config.backend {
        config::Backend::Cpu => Arc::new(HostLinks::new(devices.iter().map(|device| &**device))?),
        config::Backend::Cuda => Arc::new(DeviceLinks::new(
            devices.iter_mut().map(|device| &mut **device as _),
        )?),
    })
}

/// Cores of a device; none where nobody was given any.
pub(super) fn cores(assignment: &Assignment, device: usize) -> &[usize] {
    assignment.cores.get(device).map_or(&[], Vec::as_slice)
}

/// Where the thread that a device's work comes from is pinned: the device's cores, or the first of them where the others have
/// threads of their own.
pub(super) fn compute_core(assignment: &Assignment, device: usize) -> &[usize] {
    match (cores(assignment, device), assignment.trial.threads) {
        ([first, ..], 2..) => std::slice::from_ref(first),
        (all, _) => all,
    }
}

/// Spinning pays where the device has a core to spare: with one core per device the spinning thread would hold up the
/// very thread that it waits for.
pub(super) fn spins(assignment: &Assignment) -> bool {
    let threads = assignment.trial.threads;
    !assignment.oversubscribed && assignment.cores.iter().all(|cores| cores.len() > threads)
}
