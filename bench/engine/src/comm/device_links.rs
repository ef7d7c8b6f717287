//! Links between GPUs: copies from one device's memory to another's, on the destination's compute stream.
//!
//! Contract: [`Links`]'. Bytes are counted where the copy is enqueued, times are those between the events around it. Devices on one GPU
//! copy within its memory; those on two copy from one to the other, directly where the driver lets them reach each other
//! ([`DeviceLinks::reach`]), else through the host's memory, as the driver does by itself.
//! Reference: CUDA driver API, cuMemcpyPeerAsync and cuCtxEnablePeerAccess; DataParallel's peer copies in SEMANTICS, "DP".
use crate::backend::cuda::api::driver;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::CUresult;

use super::ledger::SAMPLES;
use super::links::{ALGORITHM, Copy, Links};
use super::{Collective, Count};
use crate::backend::cuda::Directory;
use crate::backend::cuda::gpu::{Gpu, check};
use crate::backend::cuda::stream::DeviceInterval;
use crate::backend::{Backend, BackendError, Completion, Event, Result, Stream};
use crate::probe::Phase;

/// A device as others see it.
struct End {
    gpu: Arc<Gpu>,
    memory: Directory,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    phase: Phase,
    source: usize,
    elements: usize,
    element_bytes: usize,
}

struct Entry {
    key: Key,
    calls: u64,
    /// The latest, at most [`SAMPLES`].
    latest: VecDeque<DeviceInterval>,
}

/// [`Links`] between GPUs.
pub struct DeviceLinks {
    ends: Vec<End>,
    /// By destination: each is locked by its destination's thread alone within a step, so never contended.
    entries: Vec<Mutex<Vec<Entry>>>,
    reach: Vec<Reach>,
}

/// Whether two GPUs reach each other's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// GPU that reads or writes.
    pub from: usize,
    /// GPU whose memory it is.
    pub to: usize,
    /// Directly, or through the host.
    pub directly: bool,
}

impl DeviceLinks {
    /// Links between `devices`, in their order. GPUs that can reach each other are made to.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when a device is not a GPU's, or what the driver says.
    pub fn new<'a>(devices: impl IntoIterator<Item = &'a mut dyn Backend>) -> Result<Self> {
        let end = |device: &mut dyn Backend| {
            let device = device.cuda().ok_or(BackendError::Unsupported(
                "copies between GPUs and other devices",
            ))?;
            Ok(End {
                gpu: Arc::clone(device.gpu()),
                memory: device.directory(),
            })
        };
        let ends: Vec<End> = devices.into_iter().map(end).collect::<Result<_>>()?;
        let mut reach: Vec<Reach> = Vec::new();
        for (a, b) in ends.iter().flat_map(|a| ends.iter().map(move |b| (a, b))) {
            let (from, to) = (a.gpu.ordinal, b.gpu.ordinal);
            let known = |known: &Reach| known.from == from && known.to == to;
            if from != to && !reach.iter().any(known) {
                let directly = enable(&a.gpu, &b.gpu)?;
                reach.push(Reach { from, to, directly });
            }
        }
        let entries = ends.iter().map(|_| Mutex::default()).collect();
        Ok(Self {
            ends,
            entries,
            reach,
        })
    }

    /// Which GPUs reach each other's memory: one entry for each ordered pair of different GPUs.
    pub fn reach(&self) -> &[Reach] {
        &self.reach
    }

    fn entries(&self, device: usize) -> MutexGuard<'_, Vec<Entry>> {
        self.entries[device]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, device: usize, key: Key, interval: DeviceInterval) {
        let mut entries = self.entries(device);
        let index = entries
            .iter()
            .position(|entry| entry.key == key)
            .unwrap_or_else(|| {
                entries.push(Entry {
                    key,
                    calls: 0,
                    latest: VecDeque::with_capacity(SAMPLES),
                });
                entries.len() - 1
            });
        let entry = &mut entries[index];
        entry.calls += 1;
        if entry.latest.len() == SAMPLES {
            entry.latest.pop_front();
        }
        entry.latest.push_back(interval);
    }
}

/// Lets `from` reach the memory of `to`; says whether it can.
fn enable(from: &Gpu, to: &Gpu) -> Result<bool> {
    from.enter()?;
    let mut can = 0;
    // SAFETY: both devices exist, and `from`'s context is the thread's.
    unsafe {
        let asked = driver::cuDeviceCanAccessPeer(&mut can, from.device(), to.device());
        check(asked, "failed to ask whether a GPU reaches another")?;
        if can == 0 {
            return Ok(false);
        }
        match driver::cuCtxEnablePeerAccess(to.context(), 0) {
            CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(true),
            enabled => check(enabled, "failed to let a GPU reach another").map(|()| true),
        }
    }
}

impl Links for DeviceLinks {
    fn copy(&self, destination: &mut dyn Backend, after: &Completion, copy: Copy) -> Result<Event> {
        let Copy {
            phase,
            from: (source, from),
            to: (device, to),
        } = copy;
        copy.check(self.ends.len())?;
        let destination = destination
            .cuda()
            .ok_or(BackendError::Unsupported("a link to what is not a GPU"))?;
        let (own, other) = (&self.ends[device], &self.ends[source]);
        let event = destination.enqueue(Stream::Compute, after, |destination| {
            if from.is_empty() {
                return Ok(());
            }
            let (target, origin) = (destination.address(to), other.memory.address(from));
            let (bytes, stream) = (from.bytes(), destination.raw_stream(Stream::Compute));
            // SAFETY: the copy runs in the order of the destination's compute stream and after the source's completion; the controller
            // lets neither device touch these spans before it has waited for the copy's own event.
            let copied = unsafe {
                if own.gpu.ordinal == other.gpu.ordinal {
                    driver::cuMemcpyDtoDAsync_v2(target, origin, bytes, stream)
                } else {
                    let (here, there) = (own.gpu.context(), other.gpu.context());
                    driver::cuMemcpyPeerAsync(target, here, origin, there, bytes, stream)
                }
            };
            check(copied, "failed to copy between devices")
        })?;
        let key = Key {
            phase,
            source,
            elements: from.len(),
            element_bytes: from.dtype().size(),
        };
        self.enter(device, key, destination.interval(event));
        Ok(event)
    }

    fn counts(&self) -> Vec<(usize, Count)> {
        let mut all = Vec::new();
        for device in 0..self.ends.len() {
            for entry in self.entries(device).iter().filter(|entry| entry.calls > 0) {
                let key = entry.key;
                let size_bytes = (key.elements * key.element_bytes) as u64;
                let received = Count {
                    phase: key.phase,
                    collective: Collective::Copy,
                    algorithm: ALGORITHM,
                    size_bytes,
                    elements: key.elements as u64,
                    element_bytes: key.element_bytes as u64,
                    root: key.source,
                    calls: entry.calls,
                    sent_bytes: Some(0),
                    received_bytes: Some(size_bytes * entry.calls),
                    measured_sent_bytes: None,
                    wait_ns: Vec::new(),
                    transfer_ns: entry
                        .latest
                        .iter()
                        .filter_map(DeviceInterval::elapsed_ns)
                        .collect(),
                };
                let sent = Count {
                    root: device,
                    sent_bytes: received.received_bytes,
                    received_bytes: Some(0),
                    ..received.clone()
                };
                all.push((key.source, sent));
                all.push((device, received));
            }
        }
        all.sort_by_key(|(device, count)| (*device, count.phase, count.root, count.size_bytes));
        all
    }

    fn reset_counts(&self) {
        for device in 0..self.ends.len() {
            for entry in self.entries(device).iter_mut() {
                entry.calls = 0;
                entry.latest.clear();
            }
        }
    }
}
