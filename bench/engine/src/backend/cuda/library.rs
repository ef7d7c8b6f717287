//! NVIDIA's libraries, found when they are needed: where each one lies, which version it is, or why it cannot be used.
//!
//! Contract: nothing here panics, whatever the machine has. A library that was found stays loaded until the process ends, under its
//! own soname and with its symbols for everybody, so that `cudarc`, which asks the loader for that name, gets this very file.
//! Directories are searched in the order of [`directories`]; the loader's own paths come last.
//! Reference: dlopen(3); the layout of NVIDIA's wheels on PyPI.
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};

/// Where to look for libraries first: directories with a colon between, such as a `site-packages` that holds NVIDIA's wheels.
pub const VARIABLE: &str = "SYNCMARK_CUDA_LIBRARIES";
/// The script that installs everything but the driver from PyPI.
pub const SCRIPT: &str = "scripts/cuda_libraries.sh";

/// One of NVIDIA's libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Library {
    /// The driver's own: `libcuda`.
    Driver,
    /// The driver's management library, which says what GPUs do.
    Nvml,
    /// The compiler of our kernels.
    Nvrtc,
    /// Matrix products; part of cuBLAS.
    CublasLt,
    /// Matrix products.
    Cublas,
    /// Convolutions.
    Cudnn,
    /// Collectives.
    Nccl,
}

impl Library {
    /// All, in an order in which each comes after those that it needs.
    pub const ALL: [Self; 7] = [
        Self::Driver,
        Self::Nvml,
        Self::Nvrtc,
        Self::CublasLt,
        Self::Cublas,
        Self::Cudnn,
        Self::Nccl,
    ];
    /// What a device needs to train.
    pub const OF_A_DEVICE: [Self; 5] = [
        Self::Driver,
        Self::Nvrtc,
        Self::CublasLt,
        Self::Cublas,
        Self::Cudnn,
    ];

    /// As NVIDIA writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Driver => "CUDA driver",
            Self::Nvml => "NVML",
            Self::Nvrtc => "NVRTC",
            Self::CublasLt => "cuBLASLt",
            Self::Cublas => "cuBLAS",
            Self::Cudnn => "cuDNN",
            Self::Nccl => "NCCL",
        }
    }

    /// The name that the loader knows it by.
    pub const fn soname(self) -> &'static str {
        match self {
            Self::Driver => "libcuda.so.1",
            Self::Nvml => "libnvidia-ml.so.1",
            Self::Nvrtc => "libnvrtc.so.13",
            Self::CublasLt => "libcublasLt.so.13",
            Self::Cublas => "libcublas.so.13",
            Self::Cudnn => "libcudnn.so.9",
            Self::Nccl => "libnccl.so.2",
        }
    }

    /// The package on PyPI that holds it; none for what comes with the driver.
    pub const fn wheel(self) -> Option<&'static str> {
        match self {
            Self::Driver | Self::Nvml => None,
            Self::Nvrtc => Some("nvidia-cuda-nvrtc"),
            Self::CublasLt | Self::Cublas => Some("nvidia-cublas"),
            Self::Cudnn => Some("nvidia-cudnn-cu13"),
            Self::Nccl => Some("nvidia-nccl-cu13"),
        }
    }
}

/// A library that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which.
    pub library: Library,
    /// The file, as the loader has it.
    pub path: PathBuf,
    /// What it says of itself, such as `13.0.88`.
    pub version: String,
}

/// A library that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", library.name())]
pub struct Missing {
    /// Which.
    pub library: Library,
    /// Why, as the loader or the library says.
    pub reason: String,
}

impl Missing {
    /// What to install.
    pub fn help(&self) -> String {
        match self.library.wheel() {
            Some(wheel) => format!(
                "run {SCRIPT}, which installs it from PyPI's {wheel}, or name the directory that holds {} in {VARIABLE}",
                self.library.soname()
            ),
            None => "install NVIDIA's driver, release 580 or later; in a container, start it with the GPUs (docker: --gpus all)"
                .to_owned(),
        }
    }
}

/// A library that stays loaded.
pub(crate) struct Loaded {
    pub(crate) handle: &'static Handle,
    pub(crate) found: Found,
}

/// Where libraries are looked for before the loader's own paths: those of [`VARIABLE`], then where [`SCRIPT`] puts them.
pub fn directories() -> Vec<PathBuf> {
    let named = std::env::var_os(VARIABLE);
    let named = named.iter().flat_map(std::env::split_paths);
    named
        .filter(|path| !path.as_os_str().is_empty())
        .chain(installed())
        .collect()
}

/// Where [`SCRIPT`] puts libraries: `syncmark/cuda` of the user's data.
pub fn installed() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data =
        absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(data.join("syncmark/cuda"))
}

/// Files of this name in `directory`, or where NVIDIA's wheels have them below it.
fn candidates(directory: &Path, soname: &str) -> Vec<PathBuf> {
    let mut found = vec![directory.join(soname), directory.join("lib").join(soname)];
    let packages = std::fs::read_dir(directory.join("nvidia"));
    let mut below: Vec<PathBuf> = packages
        .into_iter()
        .flatten()
        .flatten()
        .map(|package| package.path().join("lib").join(soname))
        .collect();
    below.sort();
    found.append(&mut below);
    found.retain(|path| path.is_file());
    found
}

/// Finds and loads `library`; the same answer for as long as the process lives.
///
/// # Errors
/// Why it cannot be used.
pub fn find(library: Library) -> Result<Found, Missing> {
    load(library).map(|loaded| loaded.found.clone())
}

pub(crate) fn load(library: Library) -> Result<&'static Loaded, Missing> {
    static LOADED: [OnceLock<Result<Loaded, Missing>>; Library::ALL.len()] =
        [const { OnceLock::new() }; Library::ALL.len()];
    // One at a time: a library's own initialisation may load another.
    static ONE: Mutex<()> = Mutex::new(());
    let slot = &LOADED[library as usize];
    if slot.get().is_none() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_init(|| look_for(library));
    }
    slot.get().expect("just set").as_ref().map_err(Clone::clone)
}

fn look_for(library: Library) -> Result<Loaded, Missing> {
    let soname = library.soname();
    let missing = |reason: String| Missing { library, reason };
    let mut refused = Vec::new();
    for directory in directories() {
        for path in candidates(&directory, soname) {
            match open(&path, library) {
                Ok(handle) => return finish(library, handle).map_err(missing),
                Err(error) => refused.push(format!("{}: {error}", path.display())),
            }
        }
    }
    match open(Path::new(soname), library) {
        Ok(handle) => finish(library, handle).map_err(missing),
        Err(error) => {
            refused.push(error);
            Err(missing(refused.join("; ")))
        }
    }
}

/// Loads a file, and beside it what it looks for by name only once it is used.
fn open(path: &Path, library: Library) -> Result<Handle, String> {
    if library == Library::Nvrtc
        && let Some(directory) = path.parent()
    {
        let builtins = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let of_nvrtc = |entry: &std::fs::DirEntry| {
            let name = entry.file_name();
            name.to_string_lossy().starts_with("libnvrtc-builtins.so")
        };
        for builtins in builtins.filter(of_nvrtc) {
            // What it says of a failure comes again, from NVRTC, when it is used.
            if let Ok(handle) = open_file(&builtins.path()) {
                std::mem::forget(handle);
            }
        }
    }
    open_file(path)
}

fn open_file(path: &Path) -> Result<Handle, String> {
    // SAFETY: NVIDIA's libraries may be initialised on any thread; nothing of theirs runs before or beside it.
    unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| {
        let source = std::error::Error::source(&error);
        source.map_or_else(|| error.to_string(), ToString::to_string)
    })
}

fn finish(library: Library, handle: Handle) -> Result<Loaded, String> {
    let handle: &'static Handle = Box::leak(Box::new(handle));
    let (symbol, version) = version(library, handle)?;
    Ok(Loaded {
        handle,
        found: Found {
            library,
            path: path_of(symbol).unwrap_or_else(|| PathBuf::from(library.soname())),
            version,
        },
    })
}

/// The file that a symbol came from.
fn path_of(symbol: *const c_void) -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: the symbol's library stays loaded; what comes back is read only where the call says that it was found.
    unsafe {
        if libc::dladdr(symbol, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name: *const c_char = info.assume_init().dli_fname;
        (!name.is_null())
            .then(|| PathBuf::from(CStr::from_ptr(name).to_string_lossy().into_owned()))
    }
}

type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
type Versions = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type Property = unsafe extern "C" fn(c_int, *mut c_int) -> c_int;
type Number = unsafe extern "C" fn() -> usize;
type Text = unsafe extern "C" fn(*mut c_char, u32) -> c_int;
type Start = unsafe extern "C" fn() -> c_int;

/// What a library says of its version, and the function that said it.
fn version(library: Library, handle: &Handle) -> Result<(*const c_void, String), String> {
    let status = |name: &str, status: c_int| {
        (status == 0)
            .then_some(())
            .ok_or_else(|| format!("{name} returned status {status}"))
    };
    /// # Safety
    /// `T` is the symbol's type.
    unsafe fn symbol<T: Copy>(handle: &Handle, name: &str) -> Result<T, String> {
        // SAFETY: the caller's promise.
        let symbol = unsafe { handle.get::<T>(name.as_bytes()) };
        symbol
            .map(|found| *found)
            .map_err(|_| format!("it has no function {name}"))
    }
    // SAFETY: the types are those of NVIDIA's headers.
    unsafe {
        match library {
            Library::Driver => {
                let function: Version = symbol(handle, "cuDriverGetVersion")?;
                let mut number = 0;
                status("cuDriverGetVersion", function(&mut number))?;
                Ok((
                    function as *const c_void,
                    format!("CUDA {}.{}", number / 1000, number % 1000 / 10),
                ))
            }
            Library::Nvml => {
                let start: Start = symbol(handle, "nvmlInit_v2")?;
                status("nvmlInit_v2", start())?;
                let function: Text = symbol(handle, "nvmlSystemGetDriverVersion")?;
                let mut text = [0; 96];
                status(
                    "nvmlSystemGetDriverVersion",
                    function(text.as_mut_ptr(), 96),
                )?;
                let text = CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned();
                Ok((function as *const c_void, text))
            }
            Library::Nvrtc => {
                let function: Versions = symbol(handle, "nvrtcVersion")?;
                let (mut major, mut minor) = (0, 0);
                status("nvrtcVersion", function(&mut major, &mut minor))?;
                Ok((function as *const c_void, format!("{major}.{minor}")))
            }
            Library::CublasLt | Library::Cublas => {
                let name = if library == Library::Cublas {
                    "cublasGetProperty"
                } else {
                    "cublasLtGetProperty"
                };
                let function: Property = symbol(handle, name)?;
                let mut parts = [0; 3];
                for (which, part) in parts.iter_mut().enumerate() {
                    status(name, function(which as c_int, part))?;
                }
                Ok((
                    function as *const c_void,
                    parts.map(|part| part.to_string()).join("."),
                ))
            }
            Library::Cudnn => {
                let function: Number = symbol(handle, "cudnnGetVersion")?;
                let number = function();
                let parts = [number / 10_000, number / 100 % 100, number % 100];
                Ok((
                    function as *const c_void,
                    parts.map(|part| part.to_string()).join("."),
                ))
            }
            Library::Nccl => {
                let function: Version = symbol(handle, "ncclGetVersion")?;
                let mut number = 0;
                status("ncclGetVersion", function(&mut number))?;
                let parts = [number / 10_000, number / 100 % 100, number % 100];
                Ok((
                    function as *const c_void,
                    parts.map(|part| part.to_string()).join("."),
                ))
            }
        }
    }
}
