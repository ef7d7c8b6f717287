//! Links: copies between the devices of one controller, for DataParallel.
//!
//! A copy runs on the destination's compute stream, after what the source has done to the data; it is counted where
//! it is made: received by the destination, sent by the source. On CPU devices the memories are modelled as separate:
//! DataParallel's semantics require these copies, this hardware does not.
use std::sync::{Arc, Mutex, PoisonError};

use super::controller::Controller;
use super::ledger::Ledger;
use super::{Count, HostCall};
use crate::backend::{
    Backend, BackendError, Completion, Event, HostMemory, HostTask, Result, Stream,
};
use crate::half::{Bf16, F16};
use crate::probe::{Phase, now_ns};
use crate::tensor::{Dtype, Span};

/// Largest piece that DataParallel copies at once, as PyTorch's broadcast and reduce coalesce.
pub const PIECE_BYTES: usize = 10 << 20;
/// Name of the copies' algorithm in records.
pub const ALGORITHM: &str = "peer-copy";

/// One copy between two devices.
#[derive(Clone, Copy, Debug)]
pub struct Copy {
    /// For whom it is counted.
    pub phase: Phase,
    /// Device and span that are read.
    pub from: (usize, Span),
    /// Device and span that are written.
    pub to: (usize, Span),
}

impl Copy {
    /// Whether there is such a link between `devices`, and whether the spans match.
    pub(super) fn check(&self, devices: usize) -> Result<()> {
        let ((source, from), (device, to)) = (self.from, self.to);
        if source >= devices || device >= devices || source == device {
            return Err(BackendError::Communication(format!(
                "no link from device {source} to {device} of {devices}"
            )));
        }
        if from.dtype() != to.dtype() || from.len() != to.len() {
            return Err(BackendError::Communication(format!(
                "a copy of {from:?} cannot fill {to:?}"
            )));
        }
        Ok(())
    }
}

/// Copies between devices.
pub trait Links: Send + Sync {
    /// Enqueues `copy` on the compute stream of its destination, whose backend is `destination`.
    ///
    /// # Ordering
    /// Runs after `after`, which the source gives, and after the destination's earlier work. Does not allocate once
    /// a copy of this phase and size has been made.
    ///
    /// # Errors
    /// Spans that do not match, or the destination's failure.
    fn copy(&self, destination: &mut dyn Backend, after: &Completion, copy: Copy) -> Result<Event>;
    /// Collectives for what goes from one device to all, or from all to one; none where that is done by copies too.
    fn controller(&self) -> Option<&dyn Controller> {
        None
    }
    /// What was counted since the last reset: (device, count), `root` of a copy being the other device.
    fn counts(&self) -> Vec<(usize, Count)>;
    /// Forgets the counts.
    fn reset_counts(&self);
}

/// The parts of `span` that go in one copy each: at most [`PIECE_BYTES`].
pub fn pieces(span: Span) -> impl Iterator<Item = Span> {
    let most = PIECE_BYTES / span.dtype().size();
    (0..span.len())
        .step_by(most)
        .map(move |start| span.slice(start..(start + most).min(span.len())))
}

/// [`Links`] between devices whose memory is the host's.
pub struct HostLinks {
    task: Arc<dyn HostTask>,
    memories: Arc<Memories>,
}

struct Memories {
    memories: Vec<HostMemory>,
    /// By destination: each is locked by its destination's thread alone within a step, so never contended.
    ledgers: Vec<Mutex<Ledger>>,
}

impl HostLinks {
    /// Links between `devices`, in their order.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when a device's memory is not the host's.
    pub fn new<'a>(devices: impl IntoIterator<Item = &'a dyn Backend>) -> Result<Self> {
        let memory = |device: &dyn Backend| {
            device.host_memory().ok_or(BackendError::Unsupported(
                "host copies between devices with memory of their own",
            ))
        };
        let memories: Vec<HostMemory> = devices.into_iter().map(memory).collect::<Result<_>>()?;
        let ledgers = memories
            .iter()
            .map(|_| Mutex::new(Ledger::new(ALGORITHM)))
            .collect();
        let memories = Arc::new(Memories { memories, ledgers });
        Ok(Self {
            task: Arc::clone(&memories) as Arc<dyn HostTask>,
            memories,
        })
    }
}

impl Links for HostLinks {
    fn copy(&self, destination: &mut dyn Backend, after: &Completion, copy: Copy) -> Result<Event> {
        let Copy {
            phase,
            from: (source, from),
            to: (device, to),
        } = copy;
        copy.check(self.memories.memories.len())?;
        let call = HostCall::Link {
            source,
            from,
            destination: device,
            to,
            phase,
        };
        destination.enqueue_host(Stream::Compute, after, &self.task, call)
    }

    fn counts(&self) -> Vec<(usize, Count)> {
        let mut all = Vec::new();
        for (device, ledger) in self.memories.ledgers.iter().enumerate() {
            for received in ledger
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .counts()
            {
                let source = received.root;
                let sent_bytes = received.received_bytes;
                all.push((
                    source,
                    Count {
                        root: device,
                        sent_bytes,
                        received_bytes: Some(0),
                        ..received.clone()
                    },
                ));
                all.push((device, received));
            }
        }
        all.sort_by_key(|(device, count)| (*device, count.phase, count.root, count.size_bytes));
        all
    }

    fn reset_counts(&self) {
        for ledger in &self.memories.ledgers {
            ledger
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .reset();
        }
    }
}

impl HostTask for Memories {
    fn run(&self, memory: &HostMemory, call: HostCall) -> std::result::Result<(), String> {
        let HostCall::Link {
            source,
            from,
            destination,
            to,
            phase,
        } = call
        else {
            return Err("links cannot run a collective".into());
        };
        let begin = now_ns();
        let other = &self.memories[source];
        // SAFETY: the copy runs in the order of the destination's compute stream and after the source's completion;
        // the controller lets neither device touch these spans before it has waited for the copy's own event.
        let bytes = unsafe {
            match from.dtype() {
                Dtype::F32 => transfer(memory.write::<f32>(to), other.read::<f32>(from)),
                Dtype::I32 => transfer(memory.write::<i32>(to), other.read::<i32>(from)),
                Dtype::I64 => transfer(memory.write::<i64>(to), other.read::<i64>(from)),
                Dtype::F16 => transfer(memory.write::<F16>(to), other.read::<F16>(from)),
                Dtype::Bf16 => transfer(memory.write::<Bf16>(to), other.read::<Bf16>(from)),
            }
        };
        let mut ledger = self.ledgers[destination]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        ledger.enter_copy(phase, source, from.dtype().size(), bytes, now_ns() - begin);
        Ok(())
    }
}

/// Copies and returns the bytes that were copied.
fn transfer<T: std::marker::Copy>(to: &mut [T], from: &[T]) -> usize {
    to.copy_from_slice(from);
    size_of_val(from)
}
