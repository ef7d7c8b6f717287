//! The devices of this child: on their cores, or on GPUs, and how DataParallel's copy.
//!
//! Contract: device `index` of a trial is the same whichever rank makes it. Devices go over the GPUs in turn, so that with more devices than
//! GPUs some share one.
use std::sync::Arc;

use syncmark_engine::backend::cpu::{CpuBackend, CpuDevice};
use syncmark_engine::backend::cuda::{
    BatchNormBy, CudaBackend, CudaDevice, Matmul, Precision, discovery,
};
use syncmark_engine::backend::{Backend, BackendError};
use syncmark_engine::comm::device_links::{DeviceLinks, Reach};
use syncmark_engine::comm::links::{HostLinks, Links};
use syncmark_engine::comm::nccl::NcclLinks;

use super::RankError;
use crate::plan::config::{self, TrialConfig};
use crate::run::protocol::{Assignment, Purpose};
use crate::run::spool::Event;
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
        batch_norm: match assignment.trial.cuda_batch_norm {
            file::CudaBatchNorm::Own => BatchNormBy::Own,
            file::CudaBatchNorm::Cudnn => BatchNormBy::Cudnn,
        },
        matmul: match (&assignment.purpose, assignment.trial.cuda_matmul) {
            // In a gate's fp32 there is nothing else.
            (Purpose::Gate { .. }, _) | (_, file::CudaMatmul::Cublas) => Matmul::Cublas,
            (_, file::CudaMatmul::CublasLt) => Matmul::CublasLt,
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

/// How DataParallel's devices copy, or call NCCL, and between GPUs whether directly, an event for each ordered pair of devices on different ones.
///
/// # Errors
/// Devices of another kind than their backend says, or GPUs that cannot be told to reach each other.
pub(super) fn links(
    config: &TrialConfig,
    devices: &mut [Box<dyn Backend>],
) -> Result<(Arc<dyn Links>, Vec<Event>), RankError> {
    Ok(match config.backend {
        config::Backend::Cpu => {
            let links = HostLinks::new(devices.iter().map(|device| &**device))?;
            (Arc::new(links), Vec::new())
        }
        config::Backend::Cuda => {
            let gpus = discovery::gpus().map_err(|lack| BackendError::Device(lack.to_string()))?;
            let links = DeviceLinks::new(devices.iter_mut().map(|device| &mut **device as _))?;
            let peers = peers(links.reach(), devices.len(), gpus);
            let links: Arc<dyn Links> = match config.strategy.is_dp_over_nccl() {
                true => {
                    let devices = devices.iter_mut().map(|device| &mut **device as _);
                    Arc::new(NcclLinks::new(devices, Box::new(links))?)
                }
                false => Arc::new(links),
            };
            (links, peers)
        }
    })
}

/// What `reach` says of GPUs, said of the devices on them.
fn peers(reach: &[Reach], devices: usize, gpus: usize) -> Vec<Event> {
    let pairs = (0..devices).flat_map(|from| (0..devices).map(move |to| (from, to)));
    let known = |(from, to): (usize, usize)| {
        let own = |reach: &&Reach| (reach.from, reach.to) == (from % gpus, to % gpus);
        let directly = reach.iter().find(own)?.directly;
        Some(Event::GpuPeer {
            from: from as u16,
            to: to as u16,
            directly,
        })
    };
    pairs.filter_map(known).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_reach_each_other_as_their_gpus_do() {
        let reach = |from, to, directly| Reach { from, to, directly };
        let found = peers(&[reach(0, 1, true), reach(1, 0, false)], 3, 2);
        let peer = |from, to, directly| Event::GpuPeer { from, to, directly };
        // Devices 0 and 2 share GPU 0.
        let expected = [
            peer(0, 1, true),
            peer(1, 0, false),
            peer(1, 2, false),
            peer(2, 1, true),
        ];
        assert_eq!(found, expected);
    }
}
