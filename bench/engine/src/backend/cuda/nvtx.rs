//! Named ranges of a thread's time, which NVIDIA's profilers show beside the GPU's work: NVTX.
//!
//! Contract: off until [`enable`] has found the library; off, a range costs a look at one word. Nothing of a step depends on it, and a
//! machine without the library runs the same. A replayed graph has no ranges within: nothing is enqueued there piece by piece.
//! Reference: NVIDIA Tools Extension, `nvtxRangePushA` and `nvtxRangePop`.
use std::ffi::{c_char, c_int};
use std::fmt::{Arguments, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::library;

/// Names of the library, newest first: that of the wheel `nvidia-nvtx`, and that of toolkits before CUDA 13.
const SONAMES: [&str; 2] = ["libnvtx3interop.so.1", "libnvToolsExt.so.1"];
/// Bytes of a name that are shown.
const NAME: usize = 64;

/// The library's functions.
struct Nvtx {
    push: unsafe extern "C" fn(*const c_char) -> c_int,
    pop: unsafe extern "C" fn() -> c_int,
}

static NVTX: OnceLock<Nvtx> = OnceLock::new();

/// Turns ranges on for this process; gives the file that was found.
///
/// # Errors
/// Where it was looked for, or what the file lacks.
pub fn enable() -> Result<PathBuf, String> {
    let (path, nvtx) = find(&library::directories())?;
    // Whoever was first has found the same.
    let _ = NVTX.set(nvtx);
    Ok(path)
}

/// Whether [`enable`] would find the library; its file.
///
/// # Errors
/// As [`enable`].
pub fn available() -> Result<PathBuf, String> {
    find(&library::directories()).map(|(path, _)| path)
}

fn find(directories: &[PathBuf]) -> Result<(PathBuf, Nvtx), String> {
    let mut refused = Vec::new();
    for soname in SONAMES {
        let below = directories
            .iter()
            .flat_map(|directory| library::candidates(directory, soname));
        for path in below.chain([PathBuf::from(soname)]) {
            match load(&path) {
                Ok(nvtx) => return Ok((path, nvtx)),
                Err(reason) => refused.push(reason),
            }
        }
    }
    Err(refused.join(", "))
}

fn load(path: &Path) -> Result<Nvtx, String> {
    let handle = library::open_file(path)?;
    // SAFETY: the types are those of NVIDIA's header.
    let functions = unsafe {
        let push = handle.get(b"nvtxRangePushA\0").map(|function| *function);
        let pop = handle.get(b"nvtxRangePop\0").map(|function| *function);
        (push, pop)
    };
    let (Ok(push), Ok(pop)) = functions else {
        return Err(format!("{} has no ranges", path.display()));
    };
    // Its functions are called until the process ends.
    std::mem::forget(handle);
    Ok(Nvtx { push, pop })
}

/// A range, which ends where this is dropped; ranges of a thread lie within each other.
#[must_use = "a range ends where this is dropped"]
pub(crate) struct Range(Option<&'static Nvtx>);

/// Begins a range called `name`.
pub(crate) fn range(name: Arguments<'_>) -> Range {
    let nvtx = NVTX.get();
    if let Some(nvtx) = nvtx {
        let mut text = Text {
            bytes: [0; NAME + 1],
            len: 0,
        };
        // What does not fit is cut off.
        let _ = text.write_fmt(name);
        // SAFETY: the text ends in a zero, and the library copies it.
        unsafe { (nvtx.push)(text.bytes.as_ptr().cast()) };
    }
    Range(nvtx)
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Some(nvtx) = self.0 {
            // SAFETY: this thread has begun the range.
            unsafe { (nvtx.pop)() };
        }
    }
}

/// Text on the stack that ends in a zero: ranges allocate nothing.
struct Text {
    bytes: [u8; NAME + 1],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let fits = text.len().min(NAME - self.len);
        self.bytes[self.len..self.len + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        if fits < text.len() {
            return Err(std::fmt::Error);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_says_where_it_looked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(SONAMES[0]);
        std::fs::write(&file, "not a library").unwrap();
        match find(&[folder.path().to_path_buf()]) {
            Ok((path, _)) => eprintln!("skipped: {} is installed here", path.display()),
            Err(reason) => {
                for expected in [file.to_str().unwrap(), SONAMES[1]] {
                    assert!(reason.contains(expected), "{reason}");
                }
            }
        }
    }

    #[test]
    fn a_name_is_cut_to_what_fits_and_ends_in_a_zero() {
        let mut text = Text {
            bytes: [1; NAME + 1],
            len: 0,
        };
        text.bytes[NAME] = 0;
        assert!(write!(text, "{}.conv2d forward", 12).is_ok());
        assert_eq!(&text.bytes[..text.len], b"12.conv2d forward");
        assert!(write!(text, "{}", "x".repeat(NAME)).is_err());
        assert_eq!((text.len, text.bytes[NAME]), (NAME, 0));
    }

    #[test]
    fn ranges_that_are_off_do_nothing() {
        if NVTX.get().is_none() {
            assert!(range(format_args!("step")).0.is_none());
        }
    }
}
