//! What a sampler asks of GPUs, and NVML as the one that answers.
//!
//! Contract: nothing here changes a GPU's settings; what NVML does not say is `None`. GPUs are found by their place on the PCI bus,
//! because NVML counts them in another order than CUDA.
//! Reference: NVIDIA's NVML API Reference Guide, "Field Value Queries".
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::sys_exports::field_id;
use nvml_wrapper::{Device, Nvml};
use syncmark_engine::backend::cuda::discovery::PciPlace;

use crate::environment::nvml_fields::{field, over_all_links};

/// GPUs that can be asked, by index.
pub(super) trait Source {
    /// How many there are.
    fn gpus(&self) -> usize;
    /// Clock, heat, power and what holds it back, at this moment.
    fn sample(&mut self, gpu: usize) -> Sample;
    /// Processes with a context on it; `None` where NVML does not list them.
    fn processes(&mut self, gpu: usize) -> Option<Vec<Process>>;
    /// What it has moved since some moment.
    fn counters(&mut self, gpu: usize) -> Counters;
}

/// A GPU at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) sm_mhz: Option<u32>,
    pub(super) celsius: Option<u32>,
    pub(super) milliwatts: Option<u32>,
    /// Bits of [`crate::environment::gpus::REASONS`] and others.
    pub(super) reasons: Option<u64>,
}

/// A process with a context on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) memory_bytes: Option<u64>,
}

/// Counters that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Payload sent and received over all NVLinks.
    pub(super) nvlink_bytes: [Option<u64>; 2],
    /// Sent and received over PCIe.
    pub(super) pcie_bytes: [Option<u64>; 2],
    pub(super) pcie_replays: Option<u64>,
}

/// NVML's GPUs at some places; those that it does not find tell nothing.
pub(super) struct NvmlSource<'nvml> {
    nvml: &'nvml Nvml,
    devices: Vec<Option<Device<'nvml>>>,
}

impl<'nvml> NvmlSource<'nvml> {
    pub(super) fn new(nvml: &'nvml Nvml, places: &[PciPlace]) -> Self {
        let device = |place: &PciPlace| nvml.device_by_pci_bus_id(place.to_string()).ok();
        Self {
            nvml,
            devices: places.iter().map(device).collect(),
        }
    }
}

impl Source for NvmlSource<'_> {
    fn gpus(&self) -> usize {
        self.devices.len()
    }

    fn sample(&mut self, gpu: usize) -> Sample {
        let Some(device) = &self.devices[gpu] else {
            return Sample::default();
        };
        Sample {
            sm_mhz: device.clock_info(Clock::SM).ok(),
            celsius: device.temperature(TemperatureSensor::Gpu).ok(),
            milliwatts: device.power_usage().ok(),
            reasons: device
                .current_throttle_reasons()
                .ok()
                .map(|reasons| reasons.bits()),
        }
    }

    fn processes(&mut self, gpu: usize) -> Option<Vec<Process>> {
        let device = self.devices[gpu].as_ref()?;
        // A part of a GPU cannot be told from its other parts here.
        if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
            return None;
        }
        let listed = device.running_compute_processes().ok()?;
        let process = |found: &nvml_wrapper::struct_wrappers::device::ProcessInfo| Process {
            pid: found.pid,
            memory_bytes: match found.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            },
        };
        Some(listed.iter().map(process).collect())
    }

    fn counters(&mut self, gpu: usize) -> Counters {
        let Some(device) = &self.devices[gpu] else {
            return Counters::default();
        };
        let nvlink = |id| over_all_links(self.nvml, device, id);
        // Its width differs between GPUs, and only a value beyond 32 bits shows that it is not the narrow one.
        let pcie =
            |id| field(self.nvml, device, id, 0).filter(|bytes| *bytes > u64::from(u32::MAX));
        Counters {
            nvlink_bytes: [
                nvlink(field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX),
                nvlink(field_id::NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX),
            ],
            pcie_bytes: [
                pcie(field_id::NVML_FI_DEV_PCIE_COUNT_TX_BYTES),
                pcie(field_id::NVML_FI_DEV_PCIE_COUNT_RX_BYTES),
            ],
            pcie_replays: device.pcie_replay_counter().ok().map(u64::from),
        }
    }
}
