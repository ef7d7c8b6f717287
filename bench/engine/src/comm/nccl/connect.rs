//! How a rank's end of NCCL's communicator is made, without hanging where a rank does not come.
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

/// A communicator that nobody has taken over yet.
struct Fresh {
    nccl: Arc<dyn Nccl>,
    handle: Option<Handle>,
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Some(comm) = self.handle.take() {
            // SAFETY: it was just made, and nobody else has it.
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
    let (made, receiver) = channel();
    let maker = Arc::clone(nccl);
    let make = move || {
        let handle = match enter() {
            Ok(()) => maker.init(id, world, rank),
            Err(error) => Err(error.to_string()),
        };
        // If nobody waits any more, what was made ends here.
        let _ = made.send(handle.map(|handle| Fresh {
            nccl: maker,
            handle: Some(handle),
        }));
    };
    std::thread::Builder::new()
        .name(format!("nccl init {rank}"))
        .spawn(make)
        .map_err(|error| BackendError::Thread(format!("the thread that starts NCCL: {error}")))?;
    let (watch, begin) = (control.watch(), Instant::now());
    loop {
        match receiver.recv_timeout(POLL) {
            Ok(Ok(mut fresh)) => {
                let handle = fresh.handle.take();
                return Ok(handle.expect("it was put there when it was made"));
            }
            Ok(Err(words)) => return Err(BackendError::Communication(words)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(BackendError::Thread(
                    "the thread that starts NCCL has ended".into(),
                ));
            }
            Err(RecvTimeoutError::Timeout) => given_up(&watch, rank, begin)?,
        }
    }
}

/// Whether there is no use in waiting.
fn given_up(watch: &Watch, rank: usize, begin: Instant) -> Result<()> {
    let seen = watch.look();
    let reason = match seen.failure {
        Some(reason) => reason,
        None if !seen.left.is_empty() => format!(
            "{} left the job while rank {rank} waited for NCCL to connect",
            ranks(&seen.left)
        ),
        None if begin.elapsed() > LIMIT => {
            format!(
                "NCCL did not connect rank {rank} within {} s",
                LIMIT.as_secs()
            )
        }
        None => return Ok(()),
    };
    Err(BackendError::Communication(reason))
}
