//! From the text of our kernels to machine code of a GPU, by NVRTC, once per machine.
//!
//! Contract: the sources are part of the binary. Machine code is kept on disk under a hash of source, options, architecture and NVRTC's
//! version; a file there that cannot be read or written costs a compilation and nothing else. Options leave rounding as written but
//! for fused multiply-adds; `--use_fast_math` is not among them.
//! Reference: NVRTC's user guide.
use crate::backend::cuda::api::nvrtc;
use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};

use super::library::{self, Library};
use crate::backend::{BackendError, Result};

/// What sources include, by name.
const HEADERS: [(&str, &str); 5] = [
    ("common.cuh", include_str!("kernels/common.cuh")),
    ("lanes.cuh", include_str!("kernels/lanes.cuh")),
    ("columns.cuh", include_str!("kernels/columns.cuh")),
    ("attention.cuh", include_str!("kernels/attention.cuh")),
    ("mma.cuh", include_str!("kernels/mma.cuh")),
];

/// A file of kernels and how it is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The file's name.
    pub name: &'static str,
    text: &'static str,
    /// A number that the file is compiled for, by the macro's name: channels that a thread holds, elements of a head. None where it has no such choice.
    choice: Option<(&'static str, u32)>,
    /// Whether values, which `value_t` is, are bfloat16.
    narrow: bool,
}

macro_rules! source {
    ($name:literal) => {
        source!($name, None)
    };
    ($name:literal, $choice:expr) => {
        Source {
            name: $name,
            text: include_str!(concat!("kernels/", $name)),
            choice: $choice,
            narrow: false,
        }
    };
}

impl Source {
    /// Elementwise work.
    pub const ELEMENTWISE: Self = source!("elementwise.cu");
    /// Sums over rows, with one channel a thread, with two, and with four.
    pub const COLUMNS: [Self; 3] = [
        source!("columns.cu", Some(("VECTOR", 1))),
        source!("columns.cu", Some(("VECTOR", 2))),
        source!("columns.cu", Some(("VECTOR", 4))),
    ];
    /// Norms of groups that are sums over rows, with as many channels a thread.
    pub const GROUPS: [Self; 3] = [
        source!("groups.cu", Some(("VECTOR", 1))),
        source!("groups.cu", Some(("VECTOR", 2))),
        source!("groups.cu", Some(("VECTOR", 4))),
    ];
    /// Norms of samples that stay on chip, with as many channels a thread.
    pub const SAMPLES: [Self; 3] = [
        source!("samples.cu", Some(("VECTOR", 1))),
        source!("samples.cu", Some(("VECTOR", 2))),
        source!("samples.cu", Some(("VECTOR", 4))),
    ];
    /// Norms whose group is one run of memory.
    pub const ROWS: Self = source!("rows.cu");
    /// Losses and errors.
    pub const LOSS: Self = source!("loss.cu");
    /// Optimizers.
    pub const OPTIMIZER: Self = source!("optimizer.cu");
    /// Pooling.
    pub const POOL: Self = source!("pool.cu");
    /// Gradients of embeddings.
    pub const EMBEDDING: Self = source!("embedding.cu");
    /// Embeddings and attention.
    pub const TOKENS: Self = source!("tokens.cu");
    /// Attention without scores in memory, for heads of 32 and of 64 elements. Its values are bfloat16, and it needs sm_80.
    pub const ATTENTION: [Self; 2] = [
        source!("attention.cu", Some(("HEAD", 32))).narrow(),
        source!("attention.cu", Some(("HEAD", 64))).narrow(),
    ];
    /// Compression of gradients.
    pub const COMPRESSION: Self = source!("compression.cu");
    /// Those that read or write values, which may be of either type.
    pub const OF_VALUES: [Self; 15] = [
        Self::ELEMENTWISE,
        Self::COLUMNS[0],
        Self::COLUMNS[1],
        Self::COLUMNS[2],
        Self::GROUPS[0],
        Self::GROUPS[1],
        Self::GROUPS[2],
        Self::SAMPLES[0],
        Self::SAMPLES[1],
        Self::SAMPLES[2],
        Self::ROWS,
        Self::LOSS,
        Self::POOL,
        Self::EMBEDDING,
        Self::TOKENS,
    ];
    /// The others.
    pub const OF_PARAMETERS: [Self; 2] = [Self::OPTIMIZER, Self::COMPRESSION];

    /// All, each for every type of values that it is compiled for.
    pub fn all() -> impl Iterator<Item = Self> {
        let values = Self::OF_VALUES.into_iter();
        let of_values = values.flat_map(|source| [source, source.narrow()]);
        of_values.chain(Self::ATTENTION).chain(Self::OF_PARAMETERS)
    }

    /// The same file for values in bfloat16.
    pub const fn narrow(self) -> Self {
        Self {
            narrow: true,
            ..self
        }
    }

    /// Whether it is the form for values in bfloat16.
    pub const fn is_narrow(self) -> bool {
        self.narrow
    }

    fn options(self, architecture: &str) -> Vec<String> {
        let mut options = vec![
            "--std=c++17".to_owned(),
            format!("--gpu-architecture={architecture}"),
        ];
        if let Some((macro_name, number)) = self.choice {
            options.push(format!("-D{macro_name}={number}"));
        }
        if self.narrow {
            options.push("-DVALUES_BF16".to_owned());
        }
        options
    }
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Machine code of one architecture.
    Cubin,
    /// The virtual architecture's text.
    Ptx,
}

/// Compiles `source` for compute capability `(major, minor)`.
///
/// # Errors
/// NVRTC is missing, or what it says of the source.
pub fn compile(source: Source, (major, minor): (u32, u32), form: Form) -> Result<Vec<u8>> {
    nvrtc::load()?;
    let architecture = match form {
        Form::Cubin => format!("sm_{major}{minor}"),
        Form::Ptx => format!("compute_{major}{minor}"),
    };
    let text = |text: &str| CString::new(text).expect("sources hold no zero");
    let (code, name) = (text(source.text), text(source.name));
    let headers = HEADERS.map(|(name, header)| (text(name), text(header)));
    let names = headers.each_ref().map(|(name, _)| name.as_ptr());
    let texts = headers.each_ref().map(|(_, header)| header.as_ptr());
    let options: Vec<CString> = source
        .options(&architecture)
        .iter()
        .map(|option| text(option))
        .collect();
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program: nvrtcProgram = std::ptr::null_mut();
    // SAFETY: all strings outlive the program, which is destroyed below.
    unsafe {
        let created = nvrtc::nvrtcCreateProgram(
            &mut program,
            code.as_ptr(),
            name.as_ptr(),
            texts.len() as i32,
            texts.as_ptr(),
            names.as_ptr(),
        );
        said(created, source, "")?;
        let compiled = nvrtc::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let out =
            said(compiled, source, &log(program)).and_then(|()| output(program, source, form));
        let _ = nvrtc::nvrtcDestroyProgram(&mut program);
        out
    }
}

fn said(result: nvrtcResult, source: Source, log: &str) -> Result<()> {
    if result == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: the string lives as long as the library.
    let words = unsafe { CStr::from_ptr(nvrtc::nvrtcGetErrorString(result)) };
    let words = words.to_string_lossy();
    Err(BackendError::Device(
        format!("failed to compile {}: {words}\n{log}", source.name)
            .trim_end()
            .to_owned(),
    ))
}

/// # Safety
/// The program is alive.
unsafe fn log(program: nvrtcProgram) -> String {
    let mut size = 0;
    // SAFETY: the caller's promise; the log is as long as was said.
    unsafe {
        if nvrtc::nvrtcGetProgramLogSize(program, &mut size) != nvrtcResult::NVRTC_SUCCESS {
            return String::new();
        }
        let mut bytes = vec![0u8; size];
        if nvrtc::nvrtcGetProgramLog(program, bytes.as_mut_ptr().cast())
            != nvrtcResult::NVRTC_SUCCESS
        {
            return String::new();
        }
        String::from_utf8_lossy(&bytes)
            .trim_matches(['\0', '\n'])
            .to_owned()
    }
}

/// # Safety
/// The program is alive and was compiled.
unsafe fn output(program: nvrtcProgram, source: Source, form: Form) -> Result<Vec<u8>> {
    let mut size = 0;
    // SAFETY: the caller's promise; the output is as long as was said.
    unsafe {
        let sized = match form {
            Form::Cubin => nvrtc::nvrtcGetCUBINSize(program, &mut size),
            Form::Ptx => nvrtc::nvrtcGetPTXSize(program, &mut size),
        };
        said(sized, source, "")?;
        let mut bytes = vec![0u8; size];
        let to = bytes.as_mut_ptr().cast();
        let written = match form {
            Form::Cubin => nvrtc::nvrtcGetCUBIN(program, to),
            Form::Ptx => nvrtc::nvrtcGetPTX(program, to),
        };
        said(written, source, "").map(|()| bytes)
    }
}

/// Machine code of `source`, from disk if it was compiled before.
///
/// # Errors
/// As [`compile`].
pub(super) fn machine_code(source: Source, capability: (u32, u32)) -> Result<Vec<u8>> {
    let nvrtc = library::find(Library::Nvrtc)?;
    let architecture = format!("sm_{}{}", capability.0, capability.1);
    let mut hash = blake3::Hasher::new();
    let options = source.options(&architecture);
    let parts = [source.text, &nvrtc.version, env!("CARGO_PKG_VERSION")].into_iter();
    for part in parts
        .chain(HEADERS.map(|(_, header)| header))
        .chain(options.iter().map(String::as_str))
    {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let file =
        kept().map(|kept| kept.join(format!("{architecture}-{}.cubin", hash.finalize().to_hex())));
    // Its first 32 bytes are the hash of the rest: a file that a full disk cut short is not taken for code.
    let sound =
        |bytes: &[u8]| bytes.len() > 32 && blake3::hash(&bytes[32..]).as_bytes()[..] == bytes[..32];
    if let Some(file) = &file
        && let Ok(bytes) = std::fs::read(file)
        && sound(&bytes)
    {
        return Ok(bytes[32..].to_vec());
    }
    let code = compile(source, capability, Form::Cubin)?;
    if let Some(file) = file {
        let mut bytes = blake3::hash(&code).as_bytes().to_vec();
        bytes.extend_from_slice(&code);
        let beside = file.with_extension(format!("{}", std::process::id()));
        let written = file
            .parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .and_then(|()| std::fs::write(&beside, &bytes))
            .and_then(|()| std::fs::rename(&beside, &file));
        if written.is_err() {
            // Next time it is compiled again; that is all that is lost.
            let _ = std::fs::remove_file(&beside);
        }
    }
    Ok(code)
}

/// Compiles what was not compiled before on all cores, a source each: one after the other takes a machine's first run half a minute.
/// What fails here fails again where it is loaded, which says so.
pub(super) fn compile_ahead(sources: &[Source], capability: (u32, u32)) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let take = || sources.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        while let Some(source) = take() {
            let _ = machine_code(*source, capability);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..cores.min(sources.len()) {
            scope.spawn(work);
        }
    });
}

/// Where machine code is kept: `syncmark/kernels` of the user's caches.
fn kept() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let caches = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(caches.join("syncmark/kernels"))
}
