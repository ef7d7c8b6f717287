//! What the doctor looks at, gathered without judging it.
//!
//! Contract: leaves nothing behind: the probe file in the output folder and the memory file are gone when this
//! returns, and no folder is created.
//! Reference: memfd_create(2), statvfs(3), and `environment` for what is read from /proc and /sys and asked of NVIDIA's driver.
use std::env;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create, statvfs};
use syncmark_engine::backend::cuda::discovery::{self, Lack};
use syncmark_engine::comm::tcp::carried;
use syncmark_record::environment::Environment;
use syncmark_record::environment::gpu::Cuda;

use crate::environment::cores::{self, Turbo};
use crate::environment::{Root, describe, gpus, memory_bytes};

/// A machine as the doctor sees it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// As it would be recorded with a run; without the fields that belong to a run.
    pub environment: Environment,
    /// Physical cores behind the usable logical ones.
    pub physical_cores: usize,
    /// Governors of all usable cores that have one.
    pub governors: Vec<String>,
    /// Whether the clock may rise above its base.
    pub turbo: Turbo,
    /// Whether this is a virtual machine.
    pub is_virtual: bool,
    /// Share of CPU time that a hypervisor gave to others since the machine started, from 0 to 1.
    pub steal: Option<f64>,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available_bytes: Option<u64>,
    /// Whether anonymous shared memory can be made, and if not, why.
    pub memfd: Result<(), String>,
    /// Whether the kernel counts what a connection sends; or why this host cannot connect to itself.
    pub tcp: Result<bool, String>,
    /// Free space of /dev/shm in bytes; `None` where it is missing.
    pub shm_free_bytes: Option<u64>,
    /// The folder for temporary files.
    pub tmp: PathBuf,
    /// Its free space in bytes; `None` where it is missing.
    pub tmp_free_bytes: Option<u64>,
    /// The folder for run folders.
    pub out: PathBuf,
    /// Free space of the output folder in bytes, or why nothing can be written there.
    pub out_free_bytes: Result<u64, String>,
    /// Whether the kernel's part of an NVIDIA driver is loaded.
    pub nvidia_driver: bool,
    /// GPUs and NVIDIA's libraries, with the reason for what is not there.
    pub cuda: Cuda,
    /// How many GPUs can train, or everything that they lack.
    pub gpus: Result<usize, Vec<Lack>>,
    /// Whether this build can write PDF.
    pub pdf: bool,
}

impl Facts {
    /// Looks at this machine; `out` is the folder that runs would be written to.
    pub fn gather(out: &Path) -> Self {
        let root = Root::machine();
        let environment = describe(&root, std::iter::empty());
        let tmp = env::temp_dir();
        Self {
            physical_cores: cores::physical(&root, &environment.affinity),
            governors: environment
                .affinity
                .iter()
                .filter_map(|&core| cores::governor(&root, core))
                .collect(),
            turbo: cores::turbo(&root),
            is_virtual: cores::is_virtual(&root),
            steal: cores::steal(&root),
            memory_available_bytes: memory_bytes(&root, "MemAvailable"),
            memfd: memfd().map_err(|error| error.to_string()),
            tcp: tcp().map_err(|error| error.to_string()),
            shm_free_bytes: free_bytes(Path::new("/dev/shm")).ok(),
            tmp_free_bytes: free_bytes(&tmp).ok(),
            tmp,
            out: out.to_path_buf(),
            out_free_bytes: writable(out).map_err(|error| error.to_string()),
            nvidia_driver: root.exists("proc/driver/nvidia/version"),
            cuda: gpus::everything(),
            gpus: discovery::available(false),
            pdf: cfg!(feature = "pdf"),
            environment,
        }
    }
}

/// Makes a memory file of one page, as the `shared` transport does for processes.
fn memfd() -> io::Result<()> {
    let file = memfd_create("syncmark-doctor", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, 4096)?;
    Ok(())
}

/// Connects this host to itself over the loopback interface, as the `tcp` transport does for ranks of one host.
fn tcp() -> io::Result<bool> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    Ok(carried(&stream).is_some())
}

fn free_bytes(folder: &Path) -> io::Result<u64> {
    let space = statvfs(folder)?;
    // Blocks for unprivileged users, in units of fragments.
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Free space where `folder` is or would be made, after a file was written there and taken away.
fn writable(folder: &Path) -> io::Result<u64> {
    let existing = nearest(folder)?;
    if !existing.is_dir() {
        let reason = format!("{} is a file, not a folder", existing.display());
        return Err(io::Error::new(io::ErrorKind::NotADirectory, reason));
    }
    let probe = existing.join(format!(".syncmark-doctor-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&probe)?;
    fs::remove_file(&probe)?;
    free_bytes(&existing)
}

/// The nearest of `folder` and the folders around it that exists.
fn nearest(folder: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(folder)?;
    let existing = absolute
        .ancestors()
        .find(|path| path.symlink_metadata().is_ok());
    existing
        .map(Path::to_path_buf)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_does_not_exist_yet_is_judged_by_the_one_around_it() {
        let folder = tempfile::tempdir().unwrap();
        let free = writable(&folder.path().join("reports/of/today")).unwrap();
        assert!(free > 0);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            0,
            "nothing is left behind"
        );
    }

    #[test]
    fn a_file_in_the_folders_place_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("reports");
        fs::write(&file, "").unwrap();
        let error = writable(&file.join("today")).unwrap_err().to_string();
        assert!(error.contains("reports is a file"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_files_can_be_made_on_linux() {
        memfd().unwrap();
    }
}
