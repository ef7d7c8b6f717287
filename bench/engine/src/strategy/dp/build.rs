//! What DataParallel is built from: the order of its devices, and a replica on each.
//!
//! Only the master's replica has an optimizer, and only the output device room for the outputs of all.
//! Reference: `DataParallel.__init__` in `torch/nn/parallel/data_parallel.py`.
use super::DpSettings;
use super::device::Device;
use super::output::Output;
use crate::backend::cpu::pin_to_cores;
use crate::backend::{Backend, BackendError};
use crate::model::Model;
use crate::strategy::replica::{Replica, ReplicaSettings};
use crate::strategy::{Result, StrategyError};

/// The devices in the order in which they take chunks.
pub(super) fn order(count: usize, settings: &DpSettings) -> Result<Vec<usize>> {
    let order = match &settings.device_ids[..] {
        [] => (0..count).collect(),
        given => given.to_vec(),
    };
    let wrong = |setting, value: String, expected| StrategyError::Setting {
        setting,
        value,
        expected,
    };
    let mut sorted = order.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..count) {
        let expected = "write each device's number once, from 0 to one below the number of devices";
        return Err(wrong("device_ids", format!("{order:?}"), expected));
    }
    match settings.output_device.filter(|output| *output >= count) {
        Some(output) => {
            let expected = "write the number of one of the devices";
            Err(wrong("output_device", output.to_string(), expected))
        }
        None => Ok(order),
    }
}

/// In the order of `order`, a replica on each device for chunks of up to `share` samples.
pub(super) fn replicas(
    backends: Vec<Box<dyn Backend>>,
    model: &Model,
    settings: &DpSettings,
    order: &[usize],
    share: usize,
) -> Result<Vec<Option<Box<Device>>>> {
    let mut backends: Vec<Option<Box<dyn Backend>>> = backends.into_iter().map(Some).collect();
    let build = |(place, index): (usize, usize)| {
        let backend = backends[index].take().expect("each device comes once");
        let build = || device(backend, model, settings, order, (place, share));
        let built = match settings.cores.get(index) {
            Some(cores) if place > 0 && !cores.is_empty() => near(index, cores, build),
            _ => build(),
        };
        built.map(|device| Some(Box::new(device)))
    };
    order.iter().copied().enumerate().map(build).collect()
}

/// The device at `place` of `order`, for chunks of up to `share` samples.
fn device(
    backend: Box<dyn Backend>,
    model: &Model,
    settings: &DpSettings,
    order: &[usize],
    (place, share): (usize, usize),
) -> Result<Device> {
    let index = order[place];
    let outputs = index == settings.output_device.unwrap_or(order[0]);
    let replica = ReplicaSettings {
        device: index,
        max_batch: share,
        loss_batch: if outputs { settings.max_batch } else { share },
        accumulation: settings.accumulation,
        sample_offset: 0,
        global_batch: None,
        chunks: &[],
        world_size: 1,
        seed: settings.seed,
        optimizer: settings.optimizer,
        optimizes: place == 0,
    };
    let mut replica = Replica::new(backend, model, &replica)?;
    let output = if outputs {
        let (most, count) = (settings.max_batch, order.len());
        Some(Output::new(&mut replica, most, count, settings.loss)?)
    } else {
        None
    };
    Device::new(replica, [index, place, order[0]], settings.loss, output)
}

/// Builds a device on its own cores: memory that is touched first there is near them, as it is under strategies whose ranks build
/// their own devices. The master's are the caller's.
fn near(
    device: usize,
    cores: &[usize],
    build: impl FnOnce() -> Result<Device> + Send,
) -> Result<Device> {
    let failed = |source| StrategyError::Device { device, source };
    let body = || {
        pin_to_cores(cores).map_err(failed)?;
        build()
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name(format!("building {device}"))
            .spawn_scoped(scope, body)
            .map_err(|error| failed(BackendError::Thread(error.to_string())))?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
