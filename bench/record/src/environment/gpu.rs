//! NVIDIA's GPUs and libraries, as far as they tell of themselves.
//!
//! Contract: each field is `None` or empty where nothing could be read: nothing is guessed. Folders of older versions, and
//! of machines without a driver, have none of it. Clocks and limits are those at the start of the run.
//! Reference: NVIDIA's NVML API Reference Guide.
use serde::{Deserialize, Serialize};

/// What there is of CUDA.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cuda {
    /// Release of the driver, such as `580.82.07`.
    pub driver: Option<String>,
    /// GPUs that the driver gives to this process; `CUDA_VISIBLE_DEVICES` hides others.
    pub visible_gpus: Option<u32>,
    /// GPUs of the machine, by NVML's index.
    pub gpus: Vec<Gpu>,
    /// Why the machine's GPUs could not be listed.
    pub problem: Option<String>,
    /// NVIDIA's libraries.
    pub libraries: Vec<CudaLibrary>,
}

/// One of NVIDIA's libraries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CudaLibrary {
    /// As NVIDIA writes it.
    pub name: String,
    /// What it says of itself.
    pub version: Option<String>,
    /// The file.
    pub path: Option<String>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// A GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// NVML's index, in the order of the PCI bus; CUDA may count otherwise.
    pub index: u32,
    /// Product name.
    pub name: String,
    /// Its identity, `GPU-...`.
    pub uuid: Option<String>,
    /// Its place, such as `00000000:3B:00.0`.
    pub pci_bus_id: Option<String>,
    /// Memory node of the host that it hangs on.
    pub numa_node: Option<u32>,
    /// The network adapters that are nearest on the PCI bus, by the names of the kernel and of RDMA.
    pub network: Option<String>,
    /// Its memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Of it, what was taken.
    pub memory_used_bytes: Option<u64>,
    /// Such as `9.0`.
    pub compute_capability: Option<String>,
    /// The link to the host.
    pub pcie: Pcie,
    /// Links that are up.
    pub nvlinks: Vec<NvLink>,
    /// How far each other GPU is over PCIe.
    pub distances: Vec<Distance>,
    /// Whether it is cut into instances.
    pub mig: Option<bool>,
    /// Whether its memory corrects errors.
    pub ecc: Option<bool>,
    /// Whether the driver stays loaded without a process.
    pub persistence: Option<bool>,
    /// Its clocks.
    pub clocks: GpuClocks,
    /// Power that it may draw, in watts.
    pub power_limit_watts: Option<f64>,
    /// The same as it was delivered.
    pub power_limit_default_watts: Option<f64>,
    /// Temperature in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Processes that compute on it.
    pub processes: Option<u32>,
}

/// A link over PCI Express. An idle GPU lowers its generation to save power.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pcie {
    /// Generation at the moment.
    pub generation: Option<u32>,
    /// The highest that GPU and host have in common.
    pub max_generation: Option<u32>,
    /// Lanes at the moment.
    pub width: Option<u32>,
    /// The most that GPU and host have in common.
    pub max_width: Option<u32>,
}

/// An NVLink that is up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NvLink {
    /// Its number.
    pub link: u32,
    /// Version of the protocol.
    pub version: Option<u32>,
    /// Index of the GPU at its other end; none for a switch or another device.
    pub peer: Option<u32>,
    /// Place of what is at its other end.
    pub peer_pci_bus_id: Option<String>,
}

/// How far another GPU is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Distance {
    /// Its index.
    pub gpu: u32,
    /// What is between them: `board`, `switch`, `switches`, `host bridge`, `node` or `system`.
    pub across: String,
}

/// A GPU's clocks in MHz.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuClocks {
    /// Of the multiprocessors, at the moment.
    pub sm_mhz: Option<u32>,
    /// The highest of the multiprocessors.
    pub sm_max_mhz: Option<u32>,
    /// What applications asked for; another than the default is a kind of lock.
    pub sm_application_mhz: Option<u32>,
    /// What they get without asking.
    pub sm_default_application_mhz: Option<u32>,
    /// Of the memory, at the moment.
    pub memory_mhz: Option<u32>,
    /// The highest of the memory.
    pub memory_max_mhz: Option<u32>,
    /// Whether somebody set them. NVML does not show a lock of an idle GPU, so `false` is never said: `None` is not known.
    pub locked: Option<bool>,
    /// Why the clock was below what it could be.
    pub held_back_by: Vec<String>,
}
