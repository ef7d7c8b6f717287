//! A GPU of this process: its primary context, what it can do, and our kernels on it. All devices on one GPU share it.
//!
//! Contract: made once per process and GPU, kept until the process ends (a context that is destroyed while a library still holds it is a
//! crash at exit). Every call into CUDA goes through [`check`], which has the driver's own words.
//! Reference: CUDA driver API, "Primary Context Management".
use crate::backend::cuda::api::driver;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute_enum as Attribute, CUresult};

use super::api;
use super::discovery;
use super::module::Kernels;
use crate::backend::{BackendError, Result};

thread_local! {
    /// The context that the thread entered last.
    static CURRENT: Cell<CUcontext> = const { Cell::new(std::ptr::null_mut()) };
}

/// The thread has called a library that may have entered other contexts: it will have to enter its own again.
pub(crate) fn has_left() {
    CURRENT.set(std::ptr::null_mut());
}

/// A GPU with its context.
pub(crate) struct Gpu {
    /// Its number among the process's GPUs.
    pub(crate) ordinal: usize,
    device: CUdevice,
    context: CUcontext,
    /// Compute capability, such as (9, 0).
    pub(crate) capability: (u32, u32),
    /// Multiprocessors.
    pub(crate) multiprocessors: u32,
    pub(crate) kernels: Kernels,
}

// SAFETY: a context may be current on any number of threads, and functions of a module be launched from each.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({}, {:?})", self.ordinal, self.capability)
    }
}

/// What the driver says of `result`, as an error of what was tried.
pub(crate) fn check(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    let mut name = std::ptr::null();
    // SAFETY: both calls only write a pointer to a string that lives as long as the driver.
    let (text, name) = unsafe {
        let _ = driver::cuGetErrorString(result, &mut text);
        let _ = driver::cuGetErrorName(result, &mut name);
        let of = |pointer: *const std::ffi::c_char| {
            (!pointer.is_null()).then(|| CStr::from_ptr(pointer).to_string_lossy().into_owned())
        };
        (of(text), of(name))
    };
    Err(BackendError::Device(format!(
        "{what}: {} ({})",
        text.unwrap_or_else(|| "an error that the driver has no words for".to_owned()),
        name.unwrap_or_else(|| format!("status {}", result as u32)),
    )))
}

impl Gpu {
    /// GPU `ordinal` of this process.
    ///
    /// # Errors
    /// A library that is missing, no such GPU, kernels that do not compile.
    pub(crate) fn get(ordinal: usize) -> Result<Arc<Self>> {
        static GPUS: Mutex<Option<HashMap<usize, Arc<Gpu>>>> = Mutex::new(None);
        api::load()?;
        let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        let gpus = gpus.get_or_insert_with(HashMap::new);
        if let Some(gpu) = gpus.get(&ordinal) {
            return Ok(Arc::clone(gpu));
        }
        let gpu = Arc::new(Self::open(ordinal)?);
        gpus.insert(ordinal, Arc::clone(&gpu));
        Ok(gpu)
    }

    fn open(ordinal: usize) -> Result<Self> {
        let there = discovery::gpus().map_err(|lack| BackendError::Device(lack.to_string()))?;
        if ordinal >= there {
            return Err(BackendError::Device(format!(
                "there is no GPU {ordinal}: the driver shows {there}"
            )));
        }
        let mut device: CUdevice = 0;
        let mut context = std::ptr::null_mut();
        // SAFETY: the driver has started and the device exists.
        unsafe {
            check(
                driver::cuDeviceGet(&mut device, ordinal as i32),
                "failed to open a GPU",
            )?;
            check(
                driver::cuDevicePrimaryCtxRetain(&mut context, device),
                "failed to make a context",
            )?;
            check(
                driver::cuCtxSetCurrent(context),
                "failed to enter a context",
            )?;
        }
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: as above.
            let result = unsafe { driver::cuDeviceGetAttribute(&mut value, attribute, device) };
            check(result, "failed to ask what a GPU can do").map(|()| value as u32)
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(Self {
            ordinal,
            device,
            context,
            capability,
            multiprocessors,
            kernels: Kernels::load(capability)?,
        })
    }

    /// Makes the context that of the calling thread.
    pub(crate) fn enter(&self) -> Result<()> {
        if CURRENT.get() == self.context {
            return Ok(());
        }
        // SAFETY: primary contexts are never released.
        let entered = unsafe { driver::cuCtxSetCurrent(self.context) };
        check(entered, "failed to enter a context")?;
        CURRENT.set(self.context);
        Ok(())
    }

    pub(crate) fn device(&self) -> CUdevice {
        self.device
    }

    pub(crate) fn context(&self) -> CUcontext {
        self.context
    }
}
