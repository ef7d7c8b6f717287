//! The seam between what trains and what computes: a device's memory, its two streams and its kernels.
//!
//! The backend owns memory; everyone else passes [`Span`]s. Everything *enqueues*; events order streams, and the host
//! only blocks in [`Backend::download`] and [`Backend::synchronize`]. A backend whose compute stream runs at once on the
//! calling thread (the CPU) is the special case of an empty queue.
mod completion;
pub mod cpu;
pub mod cuda;
pub mod deferred;

use std::sync::Arc;

use crate::comm::HostCall;
use crate::half::{Bf16, F16};
use crate::kernel::Kernel;
use crate::tensor::{Dtype, Span};

pub use completion::Completion;
pub use cpu::memory::HostMemory;

/// One of a device's two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Kernels, uploads and optimizer.
    Compute,
    /// Collectives.
    Communication,
}

/// A point in a stream of one backend. Sequence numbers of one stream grow by one per record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Its stream.
    pub stream: Stream,
    /// Its place in the stream.
    pub sequence: u64,
}

/// Work that a backend has captured and can enqueue again as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured(pub(crate) usize);

/// What memory is for; the report's memory chart shows these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Category {
    /// Parameters.
    Parameters,
    /// Parameter gradients.
    Gradients,
    /// Momentum and later optimizer state.
    Optimizer,
    /// Values, their gradients, and what layers keep for backward.
    Activations,
    /// Running statistics.
    Buffers,
    /// Staging, gathered outputs, kernel workspaces, device-side state.
    Workspace,
}

impl Category {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 6] = [
        Self::Parameters,
        Self::Gradients,
        Self::Optimizer,
        Self::Activations,
        Self::Buffers,
        Self::Workspace,
    ];
}

/// Bytes allocated per [`Category`], indexed in the order of [`Category::ALL`]. Nothing is ever freed before the
/// backend is dropped, so what is allocated is also the peak.
pub type MemoryUse = [usize; 6];

/// Why a device could not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BackendError {
    /// Allocation failed.
    #[error("out of memory: {bytes} bytes for {category:?} on top of {held} bytes")]
    OutOfMemory {
        /// Asked for.
        bytes: usize,
        /// For what.
        category: Category,
        /// Already held.
        held: usize,
    },
    /// A device thread ended or could not be started.
    #[error("device thread: {0}")]
    Thread(String),
    /// A collective or link on one of the streams failed.
    #[error("{0}")]
    Communication(String),
    /// The environment asks for vector instructions that do not exist or that this processor lacks.
    #[error("{0}")]
    Instructions(String),
    /// Batch statistics of one element per channel, which has no variance.
    #[error(
        "{layer}: chunk {chunk} has {samples} sample and one element per channel, which has no variance: use at least 2 samples"
    )]
    OneElement {
        /// The layer, such as `1.batch-norm`.
        layer: String,
        /// The normalization chunk.
        chunk: usize,
        /// Its samples.
        samples: usize,
    },
    /// What a GPU, or one of its libraries, said when it could not go on.
    #[error("{0}")]
    Device(String),
    /// A library that a GPU needs cannot be used.
    #[error("{}; {}", .0, .0.help())]
    Library(#[from] cuda::library::Missing),
    /// Host access to memory that is not the host's, or work of a kind this backend cannot queue.
    #[error("not supported on this backend: {0}")]
    Unsupported(&'static str),
}

/// Result of backend calls.
pub type Result<T> = std::result::Result<T, BackendError>;

/// Host data on its way to a device.
#[derive(Clone, Copy, Debug)]
pub enum HostSlice<'a> {
    /// f32.
    F32(&'a [f32]),
    /// i32.
    I32(&'a [i32]),
    /// i64.
    I64(&'a [i64]),
    /// binary16.
    F16(&'a [F16]),
    /// bfloat16.
    Bf16(&'a [Bf16]),
}

/// Where data from a device goes.
#[derive(Debug)]
pub enum HostSliceMut<'a> {
    /// f32.
    F32(&'a mut [f32]),
    /// i32.
    I32(&'a mut [i32]),
    /// i64.
    I64(&'a mut [i64]),
    /// binary16.
    F16(&'a mut [F16]),
    /// bfloat16.
    Bf16(&'a mut [Bf16]),
}

/// Work that runs on the host in a stream's order: a collective of the `shared` transport, a copy between CPU devices.
pub trait HostTask: Send + Sync {
    /// Runs on the stream's thread, with the memory of the stream's device.
    ///
    /// # Errors
    /// A sentence; it becomes the sticky failure of the stream.
    fn run(&self, memory: &HostMemory, call: HostCall) -> std::result::Result<(), String>;
}

/// A device.
pub trait Backend: Send {
    /// Allocates `len` zeroed elements, aligned to 64 bytes. Building only: never inside a step.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`].
    fn allocate(&mut self, category: Category, dtype: Dtype, len: usize) -> Result<Span>;
    /// Enqueues a kernel.
    ///
    /// # Errors
    /// The sticky failure of the stream, if it has one.
    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()>;
    /// Enqueues a kernel and then another, which a device may do as one: a product and the bias of what it makes, or a product and the
    /// gradient of the bias from its first operand.
    ///
    /// # Errors
    /// As [`Backend::launch`].
    fn launch_both(&mut self, on: Stream, kernels: [Kernel; 2]) -> Result<()> {
        kernels
            .into_iter()
            .try_for_each(|kernel| self.launch(on, kernel))
    }
    /// Enqueues a copy from host memory; `from` may be reused when this returns.
    ///
    /// # Errors
    /// The sticky failure of the stream, if it has one.
    fn upload(&mut self, on: Stream, from: HostSlice<'_>, to: Span) -> Result<()>;
    /// Copies to host memory. Blocks until everything enqueued before on both streams is done.
    ///
    /// # Errors
    /// As [`Backend::synchronize`].
    fn download(&mut self, from: Span, to: HostSliceMut<'_>) -> Result<()>;
    /// Marks the present end of a stream.
    fn record(&mut self, on: Stream) -> Event;
    /// What is enqueued on `on` from now on runs after `event` of the same backend.
    ///
    /// # Errors
    /// On a backend that runs at once: the failure of what was waited for.
    fn wait(&mut self, on: Stream, event: Event) -> Result<()>;
    /// A handle to `event` that another backend of this process can wait for. Does not allocate.
    fn completion(&mut self, event: Event) -> Completion;
    /// As [`Backend::wait`], for another backend's event.
    ///
    /// # Errors
    /// As [`Backend::wait`].
    fn wait_for(&mut self, on: Stream, completion: &Completion) -> Result<()>;
    /// Enqueues host work after the stream's earlier work and after `after`; returns the event of its end.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where memory is not the host's.
    fn enqueue_host(
        &mut self,
        on: Stream,
        after: &Completion,
        task: &Arc<dyn HostTask>,
        call: HostCall,
    ) -> Result<Event>;
    /// Blocks until both streams are empty.
    ///
    /// # Errors
    /// The sticky failure of either stream.
    fn synchronize(&mut self) -> Result<()>;
    /// Nanoseconds on [`crate::probe::now_ns`]'s clock at which `event` was reached: the end of its work. Valid after
    /// [`Backend::synchronize`] for the latest 4096 events of a stream.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when asked too early or too late.
    fn time_ns(&mut self, event: Event) -> Result<u64>;
    /// When the work that ends at `event` (of [`Backend::enqueue_host`]) began, after its dependencies. As [`Backend::time_ns`].
    ///
    /// # Errors
    /// As [`Backend::time_ns`].
    fn begin_ns(&mut self, event: Event) -> Result<u64>;
    /// From now on what is enqueued on the compute stream is written down instead of run, until [`Backend::end_capture`]; so is what is enqueued
    /// on the communication stream once that waits for an event of the compute stream that was recorded meanwhile. What is uploaded, downloaded
    /// or allocated meanwhile cannot be captured and fails, so does waiting for an event that was recorded before, or of another backend,
    /// and so does a kernel that would need more scratch than was there: run what is captured at least once before. Events
    /// that are recorded meanwhile have no times and are nothing to wait for afterwards.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] where nothing can be captured, or while something is.
    fn begin_capture(&mut self) -> Result<()> {
        Err(BackendError::Unsupported("capturing the work of a step"))
    }
    /// Ends what [`Backend::begin_capture`] began, also after a failure. Nothing of it has run.
    ///
    /// # Errors
    /// When there is nothing to end, or the device cannot make one piece of it.
    fn end_capture(&mut self) -> Result<Captured> {
        Err(BackendError::Unsupported("capturing the work of a step"))
    }
    /// Enqueues what was captured, with the same operands.
    ///
    /// # Ordering
    /// Behind what the compute stream holds, and in front of what is enqueued on it from now on. Where the communication stream has a part in it, the
    /// same holds for that stream. Does not block.
    ///
    /// # Errors
    /// The sticky failure of the stream, if it has one.
    fn replay(&mut self, captured: Captured) -> Result<()> {
        let _ = captured;
        Err(BackendError::Unsupported("capturing the work of a step"))
    }
    /// Bytes allocated so far.
    fn memory_use(&self) -> MemoryUse;
    /// A handle to this device's memory where that is the host's: what [`HostTask`]s of other devices copy from.
    fn host_memory(&self) -> Option<HostMemory> {
        None
    }
    /// The GPU behind this device, if there is one: for who enqueues on its streams (NCCL) or copies from its memory (DP's links).
    fn cuda(&mut self) -> Option<&mut cuda::CudaBackend> {
        None
    }
    /// What activations and their gradients are in this device's memory: [`Dtype::F32`], or [`Dtype::Bf16`] where kernels read and write
    /// that too. All else that is a real number is f32.
    fn values(&self) -> Dtype {
        Dtype::F32
    }
    /// Which algorithms NVIDIA's libraries were left to take so far, for the records: allocates, so never within a step.
    fn choices(&self) -> Vec<cuda::choice::Choice> {
        Vec::new()
    }
    /// Whether batch norm is to be computed by a library of the device's ([`Kernel::LibraryBatchNorm`] and what follows it) where that can.
    fn library_batch_norm(&self) -> bool {
        false
    }
    /// `cpu`, `deferred`, ...
    fn name(&self) -> &'static str;
    /// Threads that a kernel may be spread over, each with a workspace of its own.
    fn compute_threads(&self) -> usize {
        1
    }
}
