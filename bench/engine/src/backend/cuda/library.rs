//! NVIDIA's libraries, found when they are needed: where each one lies, which version it is, or why it cannot be used.
//!
//! Contract: nothing here panics, whatever the machine has. A library that was found stays loaded until the process ends, under its
//! own soname and with its symbols for everybody, so that whoever asks the loader for that name gets this very file. (`cudarc`
//! asks for names without a version first: a toolkit's `libnvrtc.so` on the loader's own paths goes before.)
//! Directories are searched in the order of [`directories`]; the loader's own paths come last.
//! Reference: dlopen(3); the layout of NVIDIA's wheels on PyPI.
#[cfg(test)]
mod tests;
mod version;

use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};

use version::version;

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
    /// Where its functions are looked for.
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
pub(super) fn candidates(directory: &Path, soname: &str) -> Vec<PathBuf> {
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
        slot.get_or_init(|| look_for(library, &directories()));
    }
    slot.get().expect("just set").as_ref().map_err(Clone::clone)
}

/// Loads the first file that the loader takes: from `directories` in their order, then from where the loader looks.
fn look_for(library: Library, directories: &[PathBuf]) -> Result<Loaded, Missing> {
    let soname = library.soname();
    let missing = |reason: String| Missing { library, reason };
    let mut refused = Vec::new();
    for directory in directories {
        let found = candidates(directory, soname);
        // Nobody looks for a driver where the others were installed.
        if found.is_empty() && library.wheel().is_some() {
            refused.push(format!("not in {}", directory.display()));
        }
        for path in found {
            match open(&path, library) {
                Ok(handle) => return finish(library, handle).map_err(missing),
                Err(error) => refused.push(error),
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

/// Files beside a library that it looks for by name only once it is used, in an order in which each comes after those that it needs.
fn companions(library: Library) -> &'static [&'static str] {
    match library {
        Library::Nvrtc => &["libnvrtc-builtins.so.13.0"],
        // Where the loader's own paths hold another cuDNN, parts of that one would be taken, and refused for their version.
        Library::Cudnn => &[
            "libcudnn_graph.so.9",
            "libcudnn_ops.so.9",
            "libcudnn_engines_precompiled.so.9",
            "libcudnn_engines_runtime_compiled.so.9",
            "libcudnn_heuristic.so.9",
            "libcudnn_cnn.so.9",
        ],
        _ => &[],
    }
}

/// Loads a file, and what lies beside it and belongs to it.
fn open(path: &Path, library: Library) -> Result<Handle, String> {
    if let Some(directory) = path.parent() {
        for companion in companions(library) {
            let companion = directory.join(companion);
            // What it says of a failure comes again, from the library, when it is used.
            if companion.is_file()
                && let Ok(handle) = open_file(&companion)
            {
                std::mem::forget(handle);
            }
        }
    }
    open_file(path)
}

pub(super) fn open_file(path: &Path) -> Result<Handle, String> {
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
