//! Whether GPUs can train here, and if not, everything that is missing.
//!
//! Contract: nothing here panics and nothing is left running; the driver is initialised, no context is made. What is missing
//! is listed whole, so that one look is enough to put it right.
//! Reference: the CUDA driver API, cuInit, cuDeviceGetCount and cuDeviceGetAttribute.
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use cudarc::driver::sys::CUdevice_attribute_enum as Attribute;
use cudarc::driver::{result, sys};

use super::api::driver;
use super::library::{self, Library, Missing, SCRIPT, VARIABLE};

/// Something without which no GPU trains here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// A library.
    #[error(transparent)]
    Library(#[from] Missing),
    /// A GPU that this process may use.
    #[error("GPU: {reason}")]
    Gpu {
        /// What the driver says.
        reason: String,
    },
}

impl Lack {
    /// What to do about it.
    pub fn help(&self) -> String {
        match self {
            Self::Library(missing) => missing.help(),
            Self::Gpu { .. } => "look at nvidia-smi and CUDA_VISIBLE_DEVICES; a container must be started with the GPUs (docker: --gpus all)".to_owned(),
        }
    }
}

/// What to do about all of it, each thing once.
pub fn help(lacks: &[Lack]) -> String {
    let mut wheels = BTreeSet::new();
    let mut words: Vec<String> = Vec::new();
    for lack in lacks {
        match lack {
            Lack::Library(missing) if missing.library.wheel().is_some() => {
                wheels.extend(missing.library.wheel());
            }
            other if !words.contains(&other.help()) => words.push(other.help()),
            _ => {}
        }
    }
    if !wheels.is_empty() {
        let wheels: Vec<&str> = wheels.into_iter().collect();
        words.push(format!(
            "run {SCRIPT}, which installs {} from PyPI, or name the directories that hold them in {VARIABLE}",
            wheels.join(", ")
        ));
    }
    words.join("; ")
}

/// GPUs that the driver gives to this process, as CUDA_VISIBLE_DEVICES and MIG leave them: one at least.
///
/// # Errors
/// Why there is none.
pub fn gpus() -> Result<usize, Lack> {
    library::find(Library::Driver)?;
    let lack = |reason: String| Lack::Gpu { reason };
    // The crate takes the driver from the loader by itself and panics where it fails, so it is asked first; the guard is for a
    // driver that is older than the functions it needs.
    // SAFETY: loading the driver's library again runs nothing of it.
    if !unsafe { sys::is_culib_present() } {
        return Err(lack(
            "the loader does not give the driver's library again".to_owned(),
        ));
    }
    let counted = catch_unwind(AssertUnwindSafe(|| {
        result::init().and_then(|()| result::device::get_count())
    }));
    match counted {
        Ok(Ok(count)) if count > 0 => Ok(count.unsigned_abs() as usize),
        Ok(Ok(_)) => Err(lack("the driver gives this process none".to_owned())),
        Ok(Err(error)) => Err(lack(in_words(error.0))),
        Err(_) => Err(lack("the driver lacks functions of CUDA 13".to_owned())),
    }
}

/// Where a GPU sits on the PCI bus. Displayed as the kernel names its folder, such as `0000:3b:00.0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciPlace {
    /// Domain, 0 on most machines.
    pub domain: u32,
    /// Bus within the domain.
    pub bus: u8,
    /// Device on the bus; a GPU computes as its function 0.
    pub device: u8,
}

impl std::fmt::Display for PciPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            domain,
            bus,
            device,
        } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.0")
    }
}

/// Places of the GPUs that [`gpus`] counts, by ordinal: NVML and the kernel know GPUs by their place, and count them in another order.
///
/// # Errors
/// As [`gpus`], or what the driver says.
pub fn places() -> Result<Vec<PciPlace>, Lack> {
    let count = gpus()?;
    driver::load()?;
    (0..count as i32).map(place).collect()
}

fn place(ordinal: i32) -> Result<PciPlace, Lack> {
    let told = |result: sys::CUresult| match result {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        other => Err(Lack::Gpu {
            reason: format!("the driver does not say where GPU {ordinal} is: {other:?}"),
        }),
    };
    let mut device = 0;
    // SAFETY: the driver was started by `gpus`, and writes a number.
    told(unsafe { driver::cuDeviceGet(&mut device, ordinal) })?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: as above, of a device that exists.
        told(unsafe { driver::cuDeviceGetAttribute(&mut value, attribute, device) })?;
        Ok::<_, Lack>(value)
    };
    Ok(PciPlace {
        domain: attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)? as u32,
        bus: attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)? as u8,
        device: attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)? as u8,
    })
}

/// The name of a status, which needs nothing of the driver.
fn in_words(status: sys::CUresult) -> String {
    match status {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            "the driver gives this process none (CUDA_ERROR_NO_DEVICE)".to_owned()
        }
        other => format!("the driver does not start: {other:?}"),
    }
}

/// How many GPUs can train here, with all libraries that a device needs, and NCCL too where `ranks_meet`.
///
/// # Errors
/// Everything that is missing.
pub fn available(ranks_meet: bool) -> Result<usize, Vec<Lack>> {
    let nccl = ranks_meet.then_some(Library::Nccl);
    let libraries: Vec<Library> = Library::OF_A_DEVICE.into_iter().chain(nccl).collect();
    let missing = libraries
        .into_iter()
        .filter_map(|library| library::find(library).err());
    judge(missing.collect(), gpus())
}

/// Puts together what was found; a driver that is missing is not also a GPU that is missing.
fn judge(missing: Vec<Missing>, gpus: Result<usize, Lack>) -> Result<usize, Vec<Lack>> {
    let mut lacks: Vec<Lack> = missing.into_iter().map(Lack::Library).collect();
    match gpus {
        Ok(count) if lacks.is_empty() => return Ok(count),
        Err(lack @ Lack::Gpu { .. }) => lacks.push(lack),
        // What else it could be is among the libraries.
        _ => {}
    }
    Err(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(library: Library) -> Missing {
        Missing {
            library,
            reason: "gone".into(),
        }
    }

    fn no_gpu() -> Lack {
        Lack::Gpu {
            reason: "the driver gives this process none".into(),
        }
    }

    #[test]
    fn gpus_are_there_only_with_everything() {
        assert_eq!(judge(Vec::new(), Ok(4)), Ok(4));
        let nccl = missing(Library::Nccl);
        assert_eq!(
            judge(vec![nccl.clone()], Ok(4)),
            Err(vec![Lack::Library(nccl)])
        );
        assert_eq!(judge(Vec::new(), Err(no_gpu())), Err(vec![no_gpu()]));
    }

    #[test]
    fn places_are_written_as_the_kernel_names_them() {
        let place = PciPlace {
            domain: 0,
            bus: 0x3b,
            device: 0x1f,
        };
        assert_eq!(place.to_string(), "0000:3b:1f.0");
        let far = PciPlace {
            domain: 0x1_0000,
            ..place
        };
        assert_eq!(far.to_string(), "10000:3b:1f.0");
    }

    #[test]
    fn a_missing_driver_is_named_once() {
        let driver = missing(Library::Driver);
        let found = judge(vec![driver.clone()], Err(Lack::Library(driver.clone())));
        assert_eq!(found, Err(vec![Lack::Library(driver)]));
    }

    #[test]
    fn help_names_each_remedy_once() {
        let lacks = [
            missing(Library::Driver).into(),
            missing(Library::CublasLt).into(),
            missing(Library::Cublas).into(),
            missing(Library::Cudnn).into(),
        ];
        let help = help(&lacks);
        for word in ["NVIDIA's driver", SCRIPT, VARIABLE, "nvidia-cudnn-cu13"] {
            assert_eq!(help.matches(word).count(), 1, "{word}: {help}");
        }
        assert_eq!(help.matches("nvidia-cublas").count(), 1, "{help}");
    }

    #[test]
    fn this_machine_can_be_asked_whatever_it_has() {
        match available(true) {
            Ok(gpus) => assert!(gpus > 0),
            Err(lacks) => assert!(!lacks.is_empty()),
        }
        match gpus() {
            Ok(count) => assert!(count > 0),
            Err(lack) => assert!(!lack.help().is_empty()),
        }
    }
}
