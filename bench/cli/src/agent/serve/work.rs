//! One child of an agent: started by order of rank 0, its words and files passed on.
//!
//! Contract: the paths of the assignment become this host's, the shared region is opened from the process that holds it and
//! recognised, and the meeting point of a `tcp` trial becomes the address at which this agent reaches rank 0.
use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use syncmark_engine::probe::now_ns;

use crate::agent::message::{Report, SharedRegion, Start};
use crate::agent::parcel::{send_output, send_spool};
use crate::agent::wire::send;
use crate::run::child::Child;
use crate::run::protocol::{Assignment, Meeting, Purpose};
use crate::run::silence;
use crate::run::spool_folder::SpoolFolder;

/// A child at work.
pub struct Work {
    /// It.
    pub child: Child,
    spool: SpoolFolder,
    output: Option<PathBuf>,
    told: usize,
}

impl Work {
    /// Starts the child.
    ///
    /// # Errors
    /// A sentence; no child is left then.
    pub fn start(
        binary: &Path,
        scratch: &Path,
        start: Start,
        rank_0: IpAddr,
    ) -> Result<Self, String> {
        let spool = SpoolFolder::create(&scratch.join("spools"), "job", 1, start.capacity)
            .map_err(|error| error.to_string())?;
        let region = start.region.map(open_region).transpose()?;
        let mut assignment = start.assignment;
        assignment.spools = spool.spools().to_vec();
        if let Some(region) = &region {
            let fd = region.as_raw_fd();
            assignment.meeting = Some(Meeting::Region { fd });
        }
        if let Some(Meeting::Tcp { address, .. }) = &mut assignment.meeting {
            address.set_ip(rank_0);
        }
        let output = place_output(&mut assignment, scratch);
        let rank = assignment.rank as usize;
        let child =
            Child::start(binary, &assignment, rank..rank + 1).map_err(|error| error.to_string())?;
        Ok(Self {
            child,
            spool,
            output,
            told: 0,
        })
    }

    /// Passes on what is new; true once the child has ended and all that it left has been sent.
    ///
    /// # Errors
    /// When rank 0 cannot be told.
    pub fn attend(&mut self, stream: &TcpStream) -> io::Result<bool> {
        self.child.attend();
        for message in &self.child.messages[self.told..] {
            let message = message.clone();
            send(stream, &Report::Said { message })?;
        }
        self.told = self.child.messages.len();
        let Some((status, _)) = self.child.ended else {
            return Ok(false);
        };
        let tail = self.child.tail.iter().cloned().collect();
        let status = status.into_raw();
        send(stream, &Report::Ended { status, tail })?;
        let problem = self.send_files(stream).err().map(|error| error.to_string());
        send(stream, &Report::Complete { problem })?;
        Ok(true)
    }

    fn send_files(&self, stream: &TcpStream) -> io::Result<()> {
        send_spool(stream, &self.spool.spools()[0])?;
        match &self.output {
            // A child that failed before its last step leaves none.
            Some(output) if output.exists() => {
                send_output(stream, output)?;
                std::fs::remove_file(output)
            }
            _ => Ok(()),
        }
    }

    /// Its sign of life.
    pub fn beat(&self) -> Report {
        let beat = self.spool.heartbeats_ns().first().copied().unwrap_or(0);
        Report::Beat {
            silent_ns: (beat > 0).then(|| now_ns().saturating_sub(beat)),
            stopped: silence::is_stopped(self.child.pid()),
        }
    }
}

/// Puts the gate's output, if there is to be one, into this host's folder.
fn place_output(assignment: &mut Assignment, scratch: &Path) -> Option<PathBuf> {
    match &mut assignment.purpose {
        Purpose::Gate { outputs, .. } => {
            let output = scratch.join("output.safetensors");
            *outputs = vec![output.clone()];
            Some(output)
        }
        _ => None,
    }
}

/// Opens the region that another process holds, so that a child can inherit it.
fn open_region(region: SharedRegion) -> Result<OwnedFd, String> {
    let path = format!("/proc/{}/fd/{}", region.process, region.descriptor);
    let failed = |why: String| {
        format!(
            "cannot open the shared memory of rank 0 at {path}: {why}; set parallel.transport = \"tcp\" if the ranks are apart"
        )
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| failed(error.to_string()))?;
    let fd = OwnedFd::from(file);
    let found = rustix::fs::fstat(&fd).map_err(|error| failed(error.to_string()))?;
    if (found.st_dev, found.st_ino) != (region.device, region.inode) {
        return Err(failed("another process has that number here".to_owned()));
    }
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())
        .map_err(|error| failed(error.to_string()))?;
    Ok(fd)
}
