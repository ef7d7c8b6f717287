//! How ends of NCCL's communicator are made, a rank's or all of a controller's, without hanging where a rank does not come.
//!
//! Contract: `ncclCommInitRank` waits for all ranks, and for ever. It runs on a thread of its own, beside which the rank's thread
//! watches the job; where that has failed the thread is left behind, with whatever it still gets. NCCL can do so by itself, in a mode in
//! which every later collective would begin on a new thread of NCCL's: that would be measured as this program's.
//! Reference: NCCL user guide, "Creating a communicator with options" and "Fault Tolerance".
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use cudarc::nccl::sys::ncclUniqueId as UniqueId;

use super::device::Enter;
use super::library::{Handle, Nccl};
use crate::backend::{BackendError, Result};
use crate::comm::error::ranks;
use crate::comm::{Communicator, Watch};

/// How often the rank's thread looks how the job is.
const POLL: Duration = Duration::from_millis(5);
/// How long all ranks have to come.
const LIMIT: Duration = Duration::from_secs(300);

/// Communicators that nobody has taken over yet.
struct Fresh {
    nccl: Arc<dyn Nccl>,
    handles: Vec<Handle>,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        for comm in self.handles.drain(..) {
            // SAFETY: they were just made, and nobody else has them.
            let _ = unsafe { self.nccl.abort(comm) };
        }
    }
}

/// This rank's end of the communicator `id`. Blocks until all ranks have come.
///
/// # Errors
/// What NCCL says, or why the job was aborted meanwhile.
pub(super) fn connect(
    nccl: &Arc<dyn Nccl>,
    id: UniqueId,
    control: &dyn Communicator,
    enter: Enter,
) -> Result<Handle> {
    let (world, rank) = (control.world_size(), control.rank());
    let make = move |nccl: &dyn Nccl| {
        enter().map_err(|error| error.to_string())?;
        Ok(vec![nccl.init(id, world, rank)?])
    };
    let handles = patiently(nccl, &format!("rank {rank}"), &control.watch(), make)?;
    Ok(handles[0])
}

/// All ends of a communicator of this process alone, in the order of `devices`, each of which enters its GPU. Blocks until they are connected.
///
/// # Errors
/// What NCCL says, or why `watch` sees no use in waiting.
pub(super) fn connect_together(
    nccl: &Arc<dyn Nccl>,
    who: &str,
    watch: &Watch,
    devices: Vec<Enter>,
) -> Result<Vec<Handle>> {
    let make = move |nccl: &dyn Nccl| {
        let id = nccl.unique_id()?;
        let enter = |rank: usize| devices[rank]().map_err(|error| error.to_string());
        nccl.init_together(id, devices.len(), &enter)
    };
    patiently(nccl, who, watch, make)
}

fn patiently(
    nccl: &Arc<dyn Nccl>,
    who: &str,
    watch: &Watch,
    make: impl FnOnce(&dyn Nccl) -> std::result::Result<Vec<Handle>, String> + Send + 'static,
) -> Result<Vec<Handle>> {
    let (made, receiver) = channel();
    let maker = Arc::clone(nccl);
    let make = move || {
        let handles = make(&*maker);
        // If nobody waits any more, what was made ends here.
        let _ = made.send(handles.map(|handles| Fresh {
            nccl: maker,
            handles,
        }));
    };
    std::thread::Builder::new()
        .name(format!("nccl init {who}"))
        .spawn(make)
        .map_err(|error| BackendError::Thread(format!("the thread that starts NCCL: {error}")))?;
    let begin = Instant::now();
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(Ok(mut fresh)) => return Ok(std::mem::take(&mut fresh.handles)),
            Ok(Err(words)) => return Err(BackendError::Communication(words)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(BackendError::Thread(
                    "the thread that starts NCCL has ended".into(),
                ));
            }
            Err(RecvTimeoutError::Timeout) => given_up(watch, who, begin)?,
        }
    }
}

/// Whether there is no use in waiting.
fn given_up(watch: &Watch, who: &str, begin: Instant) -> Result<()> {
    let seen = watch.look();
    let reason = match seen.failure {
        Some(reason) => reason,
        None if !seen.left.is_empty() => format!(
            "{} left the job while {who} waited for NCCL to connect",
            ranks(&seen.left)
        ),
        None if begin.elapsed() > LIMIT => {
            format!("NCCL did not connect {who} within {} s", LIMIT.as_secs())
        }
        None => return Ok(()),
    };
    Err(BackendError::Communication(reason))
}
