//! What each library says of its version.
//!
//! Contract: a library that lacks the function, or whose function fails, has no version and cannot be used; the reason is in the
//! library's own words where it has a function for them.
//! Reference: the headers cuda.h, nvml.h, nvrtc.h, cublas_api.h, cublasLt.h, cudnn_version.h and nccl.h.
use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::os::unix::Library as Handle;

use super::Library;

/// CUDA 13.0, as the driver counts.
const OLDEST_CUDA: c_int = 13_000;

type OneNumber = unsafe extern "C" fn(*mut c_int) -> c_int;
type TwoNumbers = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type Property = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
type Number = unsafe extern "C" fn() -> usize;
type Text = unsafe extern "C" fn(*mut c_char, u32) -> c_int;
type Start = unsafe extern "C" fn() -> c_int;
type Words = unsafe extern "C" fn(c_int) -> *const c_char;

/// The version, and the function that said it: its address tells the file.
type Said = (*const c_void, String);

/// Asks `library`.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn version(library: Library, handle: &Handle) -> Result<Said, String> {
    // SAFETY: `handle` is that library, and NVIDIA's headers declare its functions so.
    unsafe {
        match library {
            Library::Driver => driver(handle),
            Library::Nvml => nvml(handle),
            Library::Nvrtc => nvrtc(handle),
            Library::CublasLt => property(handle, "cublasLtGetProperty"),
            Library::Cublas => property(handle, "cublasGetProperty"),
            Library::Cudnn => cudnn(handle),
            Library::Nccl => nccl(handle),
        }
    }
}

/// # Safety
/// `handle` is the driver's library.
unsafe fn driver(handle: &Handle) -> Result<Said, String> {
    // SAFETY: cuda.h declares it so; it needs no initialisation.
    unsafe {
        let function: OneNumber = symbol(handle, "cuDriverGetVersion")?;
        let mut number = 0;
        passed("cuDriverGetVersion", function(&mut number), None)?;
        Ok((function as *const c_void, of_the_driver(number)?))
    }
}

/// The CUDA that a driver knows: older ones lack functions and refuse the kernels that NVRTC makes.
fn of_the_driver(number: c_int) -> Result<String, String> {
    let version = format!("CUDA {}.{}", number / 1000, number % 1000 / 10);
    match number {
        OLDEST_CUDA.. => Ok(version),
        _ => Err(format!("it knows {version}, and CUDA 13.0 is needed")),
    }
}

/// Starts NVML for as long as the process lives, since it says nothing before.
///
/// # Safety
/// `handle` is NVML.
unsafe fn nvml(handle: &Handle) -> Result<Said, String> {
    // SAFETY: nvml.h declares them so; the text fits (NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE is 80).
    unsafe {
        let words = symbol::<Words>(handle, "nvmlErrorString").ok();
        let start: Start = symbol(handle, "nvmlInit_v2")?;
        passed("nvmlInit_v2", start(), words)?;
        let function: Text = symbol(handle, "nvmlSystemGetDriverVersion")?;
        let mut text = [0; 96];
        let status = function(text.as_mut_ptr(), 95);
        passed("nvmlSystemGetDriverVersion", status, words)?;
        let version = CStr::from_ptr(text.as_ptr()).to_string_lossy();
        Ok((function as *const c_void, version.into_owned()))
    }
}

/// # Safety
/// `handle` is NVRTC.
unsafe fn nvrtc(handle: &Handle) -> Result<Said, String> {
    // SAFETY: nvrtc.h declares them so.
    unsafe {
        let words = symbol::<Words>(handle, "nvrtcGetErrorString").ok();
        let function: TwoNumbers = symbol(handle, "nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        passed("nvrtcVersion", function(&mut major, &mut minor), words)?;
        Ok((function as *const c_void, format!("{major}.{minor}")))
    }
}

/// # Safety
/// `handle` is cuBLAS or cuBLASLt, and `name` its function for its version.
unsafe fn property(handle: &Handle, name: &str) -> Result<Said, String> {
    // SAFETY: cublas_api.h and cublasLt.h declare them so; library_types.h numbers major, minor and patch from 0.
    unsafe {
        let function: Property = symbol(handle, name)?;
        let mut parts = [0; 3];
        for (which, part) in (0..).zip(&mut parts) {
            passed(name, function(which, part), None)?;
        }
        let [major, minor, patch] = parts;
        Ok((
            function as *const c_void,
            format!("{major}.{minor}.{patch}"),
        ))
    }
}

/// # Safety
/// `handle` is cuDNN.
unsafe fn cudnn(handle: &Handle) -> Result<Said, String> {
    // SAFETY: cudnn_version.h declares it so.
    unsafe {
        let function: Number = symbol(handle, "cudnnGetVersion")?;
        Ok((function as *const c_void, dotted(function())))
    }
}

/// # Safety
/// `handle` is NCCL.
unsafe fn nccl(handle: &Handle) -> Result<Said, String> {
    // SAFETY: nccl.h declares them so.
    unsafe {
        let words = symbol::<Words>(handle, "ncclGetErrorString").ok();
        let function: OneNumber = symbol(handle, "ncclGetVersion")?;
        let mut number = 0;
        passed("ncclGetVersion", function(&mut number), words)?;
        Ok((
            function as *const c_void,
            dotted(number.unsigned_abs() as usize),
        ))
    }
}

/// `9.19.0` for 91900, as cuDNN from 9.0 and NCCL from 2.9 count.
fn dotted(number: usize) -> String {
    format!(
        "{}.{}.{}",
        number / 10_000,
        number / 100 % 100,
        number % 100
    )
}

/// # Safety
/// `T` is the type of the function `name`.
unsafe fn symbol<T: Copy>(handle: &Handle, name: &str) -> Result<T, String> {
    // SAFETY: the caller's promise.
    let found = unsafe { handle.get::<T>(name.as_bytes()) };
    found
        .map(|function| *function)
        .map_err(|_| format!("it has no function {name}"))
}

/// # Safety
/// `words` is the library's function that puts a status into words.
unsafe fn passed(name: &str, status: c_int, words: Option<Words>) -> Result<(), String> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise; the text is a constant of the library.
    let said = words.and_then(|words| unsafe {
        let text = words(status);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    });
    Err(match said {
        Some(said) => format!("{name} failed: {said} (status {status})"),
        None => format!("{name} failed with status {status}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_before_cuda_13_is_refused() {
        assert_eq!(of_the_driver(13_000).unwrap(), "CUDA 13.0");
        assert_eq!(of_the_driver(13_010).unwrap(), "CUDA 13.1");
        let refused = of_the_driver(12_080).unwrap_err();
        assert!(refused.contains("CUDA 12.8"), "{refused}");
    }

    #[test]
    fn numbers_are_dotted() {
        assert_eq!([dotted(91_900), dotted(22_809)], ["9.19.0", "2.28.9"]);
    }
}
