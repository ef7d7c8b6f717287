//! NVIDIA's GPUs and libraries, as they are found on this machine.
//!
//! Contract: nothing here panics or changes a GPU's settings, whatever is installed; what a GPU, its driver or NVML does not say
//! stays `None`. NVML is started once and stays for as long as the process lives.
//! Reference: NVIDIA's NVML API Reference Guide; `syncmark_record::environment::gpu`.
use super::Root;
use crate::run::binding;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor, TopologyLevel};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use syncmark_engine::backend::cuda::discovery;
use syncmark_engine::backend::cuda::library::{self, Library};
use syncmark_record::environment::gpu::{
    Cuda, CudaLibrary, Distance, Gpu, GpuClocks, NvLink, Pcie,
};

/// The most NVLinks that a GPU can have.
const NVLINKS: u32 = 18;

/// GPUs and libraries for a run's `environment.json`; `None` without a driver, where nothing is loaded.
pub fn with_a_driver() -> Option<Cuda> {
    let driver = [Library::Driver, Library::Nvml];
    driver
        .into_iter()
        .any(|library| library::find(library).is_ok())
        .then(everything)
}

/// The same whatever there is, with the reason for what is not.
pub fn everything() -> Cuda {
    let (gpus, problem) = match machine() {
        Ok(gpus) => (gpus, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    Cuda {
        driver: library::find(Library::Nvml).ok().map(|found| found.version),
        visible_gpus: discovery::gpus().ok().map(|count| count as u32),
        gpus,
        problem,
        libraries: Library::ALL.map(described).to_vec(),
    }
}

fn described(library: Library) -> CudaLibrary {
    let name = library.name().to_owned();
    match library::find(library) {
        Ok(found) => CudaLibrary {
            name,
            version: Some(found.version),
            path: Some(found.path.display().to_string()),
            problem: None,
        },
        Err(missing) => CudaLibrary {
            name,
            problem: Some(missing.reason),
            ..CudaLibrary::default()
        },
    }
}

/// A handle of NVML of its own.
///
/// # Errors
/// Why there is none, in words.
pub fn nvml() -> Result<Nvml, String> {
    let found = library::find(Library::Nvml).map_err(|missing| missing.to_string())?;
    Nvml::builder()
        .lib_path(found.path.as_os_str())
        .init()
        .map_err(|error| error.to_string())
}

/// The machine's GPUs by NVML, or why it does not list them.
fn machine() -> Result<Vec<Gpu>, String> {
    let nvml = nvml()?;
    let words = |error: NvmlError| error.to_string();
    let count = nvml.device_count().map_err(words)?;
    let devices: Vec<(u32, Device)> = (0..count)
        .filter_map(|index| Some((index, nvml.device_by_index(index).ok()?)))
        .collect();
    let mut gpus: Vec<Gpu> = devices
        .iter()
        .map(|own| Gpu {
            distances: distances(&nvml, own, &devices),
            ..gpu(own.0, &own.1)
        })
        .collect();
    name_peers(&mut gpus);
    Ok(gpus)
}

fn gpu(index: u32, device: &Device) -> Gpu {
    let memory = device.memory_info().ok();
    let pci_bus_id = device.pci_info().ok().map(|pci| pci.bus_id);
    let near = pci_bus_id
        .as_deref()
        .map(|id| binding::locality(&Root::machine(), &in_sysfs(id)))
        .unwrap_or_default();
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    Gpu {
        index,
        name: device.name().unwrap_or_else(|_| "unknown".to_owned()),
        uuid: device.uuid().ok(),
        pci_bus_id,
        numa_node: near.node.map(u32::from),
        network: near.adapters(),
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        compute_capability: device
            .cuda_compute_capability()
            .ok()
            .map(|found| format!("{}.{}", found.major, found.minor)),
        pcie: Pcie {
            generation: device.current_pcie_link_gen().ok(),
            max_generation: device.max_pcie_link_gen().ok(),
            width: device.current_pcie_link_width().ok(),
            max_width: device.max_pcie_link_width().ok(),
        },
        nvlinks: (0..NVLINKS)
            .filter_map(|link| nvlink(device, link))
            .collect(),
        distances: Vec::new(),
        mig: device.mig_mode().ok().map(|mode| mode.current != 0),
        ecc: device
            .is_ecc_enabled()
            .ok()
            .map(|ecc| ecc.currently_enabled),
        persistence: device.is_in_persistent_mode().ok(),
        clocks: clocks(device),
        power_limit_watts: device.enforced_power_limit().ok().map(watts),
        power_limit_default_watts: device.power_management_limit_default().ok().map(watts),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        processes: device.running_compute_processes_count().ok(),
    }
}

/// A link that is up.
fn nvlink(device: &Device, number: u32) -> Option<NvLink> {
    let link = device.link_wrapper_for(number);
    link.is_active().ok().filter(|&up| up)?;
    Some(NvLink {
        link: number,
        version: link.version().ok(),
        peer: None,
        peer_pci_bus_id: link.remote_pci_info().ok().map(|pci| pci.bus_id),
    })
}

/// Tells the GPUs at the other ends of links from switches, by their places on the PCI bus.
fn name_peers(gpus: &mut [Gpu]) {
    let places: Vec<(Option<String>, u32)> = gpus
        .iter()
        .map(|gpu| (gpu.pci_bus_id.as_deref().map(place), gpu.index))
        .collect();
    for link in gpus.iter_mut().flat_map(|gpu| &mut gpu.nvlinks) {
        let other = link.peer_pci_bus_id.as_deref().map(place);
        link.peer = places
            .iter()
            .find(|(place, _)| place.is_some() && *place == other)
            .map(|&(_, index)| index);
    }
}

/// A place on the bus without the zeros before its domain: NVML writes four of them or eight.
fn place(bus_id: &str) -> String {
    let lower = bus_id.to_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) => format!("{}:{rest}", domain.trim_start_matches('0')),
        None => lower,
    }
}

/// A place as the kernel names its folder: small letters, and four digits of the domain, of which NVML writes eight.
fn in_sysfs(bus_id: &str) -> String {
    let lower = bus_id.to_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) => format!("{:0>4}:{rest}", domain.trim_start_matches('0')),
        None => lower,
    }
}

fn distances(nvml: &Nvml, own: &(u32, Device), all: &[(u32, Device)]) -> Vec<Distance> {
    let to = |(index, other): &(u32, Device)| {
        let level = nvml.topology_common_ancestor(&own.1, other).ok()?;
        Some(Distance {
            gpu: *index,
            across: across(level).to_owned(),
        })
    };
    all.iter()
        .filter(|other| other.0 != own.0)
        .filter_map(to)
        .collect()
}

fn across(level: TopologyLevel) -> &'static str {
    match level {
        TopologyLevel::Internal => "board",
        TopologyLevel::Single => "switch",
        TopologyLevel::Multiple => "switches",
        TopologyLevel::HostBridge => "host bridge",
        TopologyLevel::Node => "node",
        TopologyLevel::System => "system",
    }
}

fn clocks(device: &Device) -> GpuClocks {
    let reasons = device.current_throttle_reasons().ok();
    let mut clocks = GpuClocks {
        sm_mhz: device.clock_info(Clock::SM).ok(),
        sm_max_mhz: device.max_clock_info(Clock::SM).ok(),
        sm_application_mhz: device.applications_clock(Clock::SM).ok(),
        sm_default_application_mhz: device.default_applications_clock(Clock::SM).ok(),
        memory_mhz: device.clock_info(Clock::Memory).ok(),
        memory_max_mhz: device.max_clock_info(Clock::Memory).ok(),
        locked: None,
        held_back_by: reasons.map(held_back_by).unwrap_or_default(),
    };
    clocks.locked = locked(&clocks, reasons.unwrap_or(ThrottleReasons::NONE));
    clocks
}

/// Whether somebody set the clocks, as far as it shows: a busy GPU can be held to the application clock that it was delivered with.
fn locked(clocks: &GpuClocks, reasons: ThrottleReasons) -> Option<bool> {
    let own = clocks
        .sm_application_mhz
        .zip(clocks.sm_default_application_mhz);
    let set = match own {
        Some((own, default)) => own != default,
        None => reasons.contains(ThrottleReasons::APPLICATIONS_CLOCKS_SETTING),
    };
    set.then_some(true)
}

/// Why a clock can be held back, in words; that nothing is to be done is no reason. Those that say so are nobody's wish, and what
/// they slow down was measured on a GPU in a bad state: at its power cap a GPU does what it was built for.
pub const REASONS: [(ThrottleReasons, &str, bool); 8] = [
    (
        ThrottleReasons::APPLICATIONS_CLOCKS_SETTING,
        "clocks that were set",
        false,
    ),
    (ThrottleReasons::SW_POWER_CAP, "the power cap", false),
    (ThrottleReasons::HW_SLOWDOWN, "a hardware slowdown", true),
    (ThrottleReasons::SYNC_BOOST, "a group of GPUs", false),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat", true),
    (
        ThrottleReasons::HW_THERMAL_SLOWDOWN,
        "heat, by the hardware",
        true,
    ),
    (
        ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN,
        "a power brake outside of the GPU",
        true,
    ),
    (ThrottleReasons::DISPLAY_CLOCK_SETTING, "the display", false),
];

fn held_back_by(reasons: ThrottleReasons) -> Vec<String> {
    REASONS
        .into_iter()
        .filter(|(reason, ..)| reasons.contains(*reason))
        .map(|(_, words, _)| words.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described_whatever_it_has() {
        let found = everything();
        assert_eq!(found.libraries.len(), Library::ALL.len());
        for library in &found.libraries {
            assert_ne!(library.version.is_some(), library.problem.is_some());
            assert_eq!(library.version.is_some(), library.path.is_some());
        }
        assert!(found.problem.is_none() || found.gpus.is_empty());
        let driver = [Library::Driver, Library::Nvml];
        let there = driver.iter().any(|&library| library::find(library).is_ok());
        assert_eq!(with_a_driver().is_some(), there);
    }

    #[test]
    fn the_ends_of_links_are_told_by_their_places() {
        let link = |place: &str| NvLink {
            peer_pci_bus_id: Some(place.into()),
            ..NvLink::default()
        };
        let gpu = |index, place: &str, nvlinks| Gpu {
            index,
            pci_bus_id: Some(place.into()),
            nvlinks,
            ..Gpu::default()
        };
        let mut gpus = [
            gpu(0, "00000000:3B:00.0", vec![link("0000:5e:00.0")]),
            gpu(1, "00000000:5E:00.0", vec![link("00000000:07:00.0")]),
        ];
        name_peers(&mut gpus);
        assert_eq!(gpus[0].nvlinks[0].peer, Some(1));
        assert_eq!(gpus[1].nvlinks[0].peer, None, "a switch");
    }

    #[test]
    fn a_place_is_found_under_the_name_that_the_kernel_gives_it() {
        assert_eq!(in_sysfs("00000000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(in_sysfs("0000:3B:00.0"), "0000:3b:00.0");
        assert_eq!(in_sysfs("00010000:3B:00.0"), "10000:3b:00.0");
    }

    #[test]
    fn clocks_are_locked_only_where_that_shows() {
        let clocks = |own, default| GpuClocks {
            sm_application_mhz: own,
            sm_default_application_mhz: default,
            ..GpuClocks::default()
        };
        let idle = ThrottleReasons::GPU_IDLE;
        let set = ThrottleReasons::APPLICATIONS_CLOCKS_SETTING;
        assert_eq!(locked(&clocks(None, None), idle), None);
        assert_eq!(locked(&clocks(Some(1980), Some(1980)), idle), None);
        assert_eq!(locked(&clocks(Some(1200), Some(1980)), idle), Some(true));
        assert_eq!(locked(&clocks(Some(1980), Some(1980)), set), None);
        assert_eq!(locked(&clocks(None, None), set), Some(true));
    }

    #[test]
    fn an_idle_clock_is_not_held_back() {
        assert_eq!(held_back_by(ThrottleReasons::GPU_IDLE), [""; 0]);
        let hot = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN;
        assert_eq!(
            held_back_by(hot),
            ["the power cap", "heat, by the hardware"]
        );
    }
}
