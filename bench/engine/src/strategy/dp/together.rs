//! Replicate and reduce where the links have a controller's collectives: one call for all devices in use, made by the controller's thread
//! between two phases, while no other thread has a device.
//!
//! The master is their root. Its copy of the parameters is the original, as with copies, and the sum of the gradients arrives in its own.
//! Reference: `torch/nn/parallel/comm.py`, `broadcast_coalesced` and `reduce_add_coalesced`.
use std::sync::Arc;

use super::Dp;
use super::device::Device;
use crate::backend::Backend;
use crate::comm::controller::{Controller, Failed, Members};
use crate::probe::Phase;
use crate::program::Program;
use crate::strategy::{Result, StrategyError};
use crate::tensor::Span;

/// The devices in use, with what of each program takes part.
struct Used<'a> {
    devices: &'a mut [Option<Box<Device>>],
    what: fn(&Program) -> Span,
}

impl Used<'_> {
    fn at(&mut self, place: usize) -> &mut Device {
        self.devices[place]
            .as_mut()
            .expect("devices are here between phases")
    }
}

impl Members for Used<'_> {
    fn count(&self) -> usize {
        self.devices.len()
    }

    fn device(&mut self, place: usize) -> (usize, &mut dyn Backend) {
        let device = self.at(place);
        (device.index, &mut *device.replica.backend)
    }

    fn span(&mut self, place: usize) -> Span {
        let what = self.what;
        what(&self.at(place).replica.program)
    }
}

impl From<Failed> for StrategyError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed {
                device: Some(device),
                source,
            } => Self::Device { device, source },
            Failed { source, .. } => Self::Backend(source),
        }
    }
}

/// What a replica is a copy of.
pub(super) const MODEL: [fn(&Program) -> Span; 3] = [
    |program| program.parameters(),
    |program| program.buffers().floats,
    |program| program.buffers().integers,
];

impl Dp {
    /// Whether the links have collectives that replicate and reduce.
    pub(super) fn is_together(&self) -> bool {
        self.links.controller().is_some()
    }

    /// Parameters and buffers from the master to all devices in use, if that is not done by copies.
    pub(super) fn replicate_together(&mut self, used: usize) -> Result<()> {
        self.together(used, Phase::Replicate, |controller, devices| {
            MODEL.into_iter().try_for_each(|what| {
                controller.broadcast(Phase::Replicate, &mut Used { devices, what })
            })
        })
    }

    /// The gradients of all devices in use to the master, which has their sum.
    pub(super) fn reduce_together(&mut self, used: usize) -> Result<()> {
        self.together(used, Phase::Reduce, |controller, devices| {
            let what = Program::gradients;
            controller.reduce(Phase::Reduce, &mut Used { devices, what })
        })
    }

    fn together(
        &mut self,
        used: usize,
        phase: Phase,
        call: impl FnOnce(
            &dyn Controller,
            &mut [Option<Box<Device>>],
        ) -> std::result::Result<(), Failed>,
    ) -> Result<()> {
        let links = Arc::clone(&self.links);
        let Some(controller) = links.controller().filter(|_| self.synchronize && used > 1) else {
            return Ok(());
        };
        let devices = &mut self.devices[..used];
        for device in devices.iter_mut().flatten() {
            let replica = &mut device.replica;
            device.opened = Some(replica.trace.open(&mut *replica.backend));
        }
        call(controller, devices)?;
        for device in devices.iter_mut().flatten() {
            let replica = &mut device.replica;
            if let Some(opened) = device.opened.take() {
                replica.trace.close(&mut *replica.backend, phase, opened);
            }
        }
        Ok(())
    }
}
