//! DataParallel's threads, one per device but the master: devices move to them and back, so nothing is shared and nothing
//! is locked.
//!
//! Channels hold one job each and are allocated once.
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::device::{Device, Job};
use crate::backend::BackendError;
use crate::backend::cpu::pin_to_cores;
use crate::comm::links::Links;
use crate::strategy::{Result, StrategyError};

struct Worker {
    /// Number of its device.
    device: usize,
    jobs: Option<SyncSender<(Box<Device>, Job)>>,
    done: Receiver<Box<Device>>,
    thread: Option<JoinHandle<()>>,
}

/// The threads of all devices but the first, in their order.
pub(super) struct Workers(Vec<Worker>);

impl Workers {
    /// Starts the threads of all of `devices` but the first, that of device `i` pinned to `cores[i]` where given.
    pub(super) fn start(
        devices: &[usize],
        links: &Arc<dyn Links>,
        cores: &[Vec<usize>],
    ) -> Result<Self> {
        let mut workers = Self(Vec::with_capacity(devices.len() - 1));
        for &index in &devices[1..] {
            let cores = cores.get(index).cloned().unwrap_or_default();
            workers.0.push(start(index, Arc::clone(links), cores)?);
        }
        Ok(workers)
    }

    /// Hands a device and a job to its thread.
    pub(super) fn send(&self, place: usize, device: Box<Device>, job: Job) -> Result<()> {
        let jobs = self.0[place - 1]
            .jobs
            .as_ref()
            .expect("threads end with the strategy only");
        jobs.send((device, job)).map_err(|_| self.lost(place))
    }

    /// The device, once its job is done; none when its thread panicked.
    pub(super) fn receive(&self, place: usize) -> Option<Box<Device>> {
        self.0[place - 1].done.recv().ok()
    }

    /// The error of a device whose thread is gone. The master has none of its own.
    pub(super) fn lost(&self, place: usize) -> StrategyError {
        let worker = place.checked_sub(1).and_then(|index| self.0.get(index));
        lost(worker.map_or(0, |worker| worker.device))
    }
}

fn lost(device: usize) -> StrategyError {
    let source = BackendError::Thread("its thread ended in the middle of a step".into());
    StrategyError::Device { device, source }
}

fn start(index: usize, links: Arc<dyn Links>, cores: Vec<usize>) -> Result<Worker> {
    let (jobs, inbox) = sync_channel::<(Box<Device>, Job)>(1);
    let (outbox, done) = sync_channel(1);
    let (ready, started) = sync_channel(1);
    let body = move || {
        let pinned = pin_to_cores(&cores);
        let stop = pinned.is_err();
        if ready.send(pinned).is_err() || stop {
            return;
        }
        while let Ok((mut device, job)) = inbox.recv() {
            device.run(job, &*links);
            if outbox.send(device).is_err() {
                return;
            }
        }
    };
    let failed = |source| StrategyError::Device {
        device: index,
        source,
    };
    let thread = std::thread::Builder::new()
        .name(format!("device {index}"))
        .spawn(body);
    let thread = thread.map_err(|error| failed(BackendError::Thread(error.to_string())))?;
    started.recv().map_err(|_| lost(index))?.map_err(failed)?;
    Ok(Worker {
        device: index,
        jobs: Some(jobs),
        done,
        thread: Some(thread),
    })
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Without its channel the thread ends; a panic of it was reported when its device did not come back.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
