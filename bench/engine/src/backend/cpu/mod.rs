//! The CPU as a device: kernels run at once on the calling thread, communication on a progress thread of the device.
//!
//! Contract: [`crate::backend::Backend`]'s, where the compute stream is always empty. A device computes on the calling thread, which
//! its owner pins with [`pin_to_cores`], and on as many others as it was made with, to which parts of each kernel go (`crew.rs`);
//! the progress thread shares their cores. Kernels are deterministic (same input and number of threads, same bits) and allocate nothing, but for the packing buffers
//! of the `gemm` crate (see `matmul.rs`).
mod attention;
mod average_pool;
mod batch_norm;
pub(crate) mod ceiling;
pub(crate) mod columns;
mod compression;
pub(crate) mod conv;
mod crew;
mod dropout;
mod elementwise;
mod embedding;
mod exp;
mod gelu;
mod group_norm;
mod group_runs;
pub mod instructions;
mod launch;
mod library_norm;
mod loss;
mod masked_norm;
mod matmul;
pub(crate) mod memory;
mod moments;
#[cfg(target_arch = "x86_64")]
mod narrow;
mod optimizer;
mod pool;
mod register;
mod rms_norm;
mod samples;
pub(crate) mod stream;
mod team;
pub(crate) mod worker;

use std::sync::Arc;

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::backend::{
    Backend, BackendError, Category, Completion, Event, HostSlice, HostSliceMut, HostTask,
    MemoryUse, Result, Stream,
};
use crate::comm::HostCall;
use crate::half::{Bf16, F16};
use crate::kernel::Kernel;
use crate::tensor::{Dtype, Span};
use crew::Crew;
use memory::HostMemory;
use stream::{HostCompletion, Progress};
use team::Team;
use worker::{Command, HostData, Worker, WorkerSettings};

/// What a CPU device is made of.
#[derive(Clone, Debug, Default)]
pub struct CpuDevice {
    /// Cores that the progress thread is pinned to; none leaves it to the scheduler.
    pub cores: Vec<usize>,
    /// Whether waiting may spin before it parks: only with more than one core, and no more devices than cores.
    pub spin: bool,
    /// Whether its cores serve other devices too: then its compute threads do not spin.
    pub oversubscribed: bool,
    /// Threads that compute, the caller's with them; 0 is one. The others are pinned to the cores from the second on, as many as
    /// there are.
    pub threads: usize,
    /// Elements of a part below which a kernel runs on the calling thread alone; none for what pays. Tests set it to 1.
    pub smallest_part: Option<usize>,
    /// Bytes that the device may allocate; `None` for what the machine has.
    pub memory_limit: Option<usize>,
}

/// Pins the calling thread to `cores`; an empty list leaves it as it is.
///
/// # Errors
/// [`BackendError::Thread`] when a core does not exist or is not among those the process may use.
pub fn pin_to_cores(cores: &[usize]) -> Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &core in cores {
        if core >= CpuSet::MAX_CPU {
            return Err(BackendError::Thread(format!("core {core} does not exist")));
        }
        set.set(core);
    }
    sched_setaffinity(None, &set).map_err(|error| {
        BackendError::Thread(format!("could not be pinned to cores {cores:?}: {error}"))
    })
}

/// Allocation with a limit and a record by category; shared by the backends on host memory.
pub(crate) struct Allocator {
    pub(crate) memory: HostMemory,
    limit: usize,
    by_category: MemoryUse,
}

impl Allocator {
    pub(crate) fn new(limit: Option<usize>) -> Self {
        Self {
            memory: HostMemory::new(),
            limit: limit.unwrap_or(usize::MAX),
            by_category: MemoryUse::default(),
        }
    }

    pub(crate) fn allocate(
        &mut self,
        category: Category,
        dtype: Dtype,
        len: usize,
    ) -> Result<Span> {
        let held: usize = self.by_category.iter().sum();
        let bytes = len.saturating_mul(dtype.size());
        let exhausted = BackendError::OutOfMemory {
            bytes,
            category,
            held,
        };
        if bytes > self.limit.saturating_sub(held) {
            return Err(exhausted);
        }
        let span = self.memory.allocate(dtype, len).ok_or(exhausted)?;
        self.by_category[category as usize] += bytes;
        Ok(span)
    }

    pub(crate) fn by_category(&self) -> MemoryUse {
        self.by_category
    }
}

/// Copies host data into a device's memory.
///
/// # Safety
/// Nobody else touches `to`.
pub(crate) unsafe fn upload(memory: &HostMemory, from: HostSlice<'_>, to: Span) {
    // SAFETY: the caller's promise.
    unsafe {
        match from {
            HostSlice::F32(from) => memory.write::<f32>(to).copy_from_slice(from),
            HostSlice::I32(from) => memory.write::<i32>(to).copy_from_slice(from),
            HostSlice::I64(from) => memory.write::<i64>(to).copy_from_slice(from),
            HostSlice::F16(from) => memory.write::<F16>(to).copy_from_slice(from),
            HostSlice::Bf16(from) => memory.write::<Bf16>(to).copy_from_slice(from),
        }
    }
}

/// Copies from a device's memory to the host's.
///
/// # Safety
/// Nobody writes to `from`.
pub(crate) unsafe fn download(memory: &HostMemory, from: Span, to: HostSliceMut<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match to {
            HostSliceMut::F32(to) => to.copy_from_slice(memory.read::<f32>(from)),
            HostSliceMut::I32(to) => to.copy_from_slice(memory.read::<i32>(from)),
            HostSliceMut::I64(to) => to.copy_from_slice(memory.read::<i64>(from)),
            HostSliceMut::F16(to) => to.copy_from_slice(memory.read::<F16>(from)),
            HostSliceMut::Bf16(to) => to.copy_from_slice(memory.read::<Bf16>(from)),
        }
    }
}

/// A CPU device.
pub struct CpuBackend {
    allocator: Allocator,
    /// The compute stream: it has no queue, only events.
    compute: Arc<Progress>,
    recorded: u64,
    communication: Worker,
    /// The other compute threads; none with one thread.
    crew: Option<Crew>,
}

impl CpuBackend {
    /// Starts the device's progress thread. The compute stream is whichever thread calls.
    ///
    /// # Errors
    /// [`BackendError::Thread`] when the thread cannot be started or pinned, [`BackendError::Instructions`] when the environment
    /// asks for instructions that cannot be had.
    pub fn new(device: CpuDevice) -> Result<Self> {
        instructions::from_environment().map_err(BackendError::Instructions)?;
        let allocator = Allocator::new(device.memory_limit);
        let settings = WorkerSettings {
            name: "communication",
            cores: &device.cores,
            spin: device.spin,
            delays: None,
        };
        let communication = Worker::start(allocator.memory.clone(), &settings)?;
        let crew = if device.threads > 1 {
            let core = |thread| device.cores.get(thread).copied();
            let others: Vec<Option<usize>> = (1..device.threads).map(core).collect();
            // A core for each thread, so that who spins is in nobody's way.
            let spin = !device.oversubscribed && device.cores.len() >= device.threads;
            Some(Crew::new(Team::start(&others, spin)?, device.smallest_part))
        } else {
            None
        };
        Ok(Self {
            allocator,
            compute: Progress::new(device.spin),
            recorded: 0,
            communication,
            crew,
        })
    }

    fn progress(&self, stream: Stream) -> &Arc<Progress> {
        match stream {
            Stream::Compute => &self.compute,
            Stream::Communication => self.communication.progress(),
        }
    }

    /// Blocks the compute stream, which is the caller; what it waited for in vain becomes its own failure.
    fn block(&self, completion: &Completion) -> Result<()> {
        self.compute.check()?;
        completion
            .wait()
            .inspect_err(|error| self.compute.fail(error.to_string()))
    }

    fn reach(&mut self, begin: Option<u64>) -> Event {
        self.recorded += 1;
        self.compute.reach(self.recorded, begin);
        Event {
            stream: Stream::Compute,
            sequence: self.recorded,
        }
    }
}

impl Backend for CpuBackend {
    fn allocate(&mut self, category: Category, dtype: Dtype, len: usize) -> Result<Span> {
        self.allocator.allocate(category, dtype, len)
    }

    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()> {
        match on {
            Stream::Compute => {
                self.compute.check()?;
                // SAFETY: the caller is the compute stream; by the order of streams nobody else is at the operands.
                unsafe {
                    match &mut self.crew {
                        Some(crew) => crew.run(&self.allocator.memory, &kernel),
                        None => execute(&self.allocator.memory, &kernel),
                    }
                }
                Ok(())
            }
            Stream::Communication => self.communication.push(Command::Kernel(kernel)),
        }
    }

    fn upload(&mut self, on: Stream, from: HostSlice<'_>, to: Span) -> Result<()> {
        match on {
            Stream::Compute => {
                self.compute.check()?;
                // SAFETY: as in `launch`.
                unsafe { upload(&self.allocator.memory, from, to) };
                Ok(())
            }
            Stream::Communication => self.communication.push(Command::Upload {
                from: HostData::copied(from),
                to,
            }),
        }
    }

    fn download(&mut self, from: Span, to: HostSliceMut<'_>) -> Result<()> {
        self.synchronize()?;
        // SAFETY: both streams are empty.
        unsafe { download(&self.allocator.memory, from, to) };
        Ok(())
    }

    fn record(&mut self, on: Stream) -> Event {
        match on {
            Stream::Compute => self.reach(None),
            Stream::Communication => Event {
                stream: on,
                sequence: self.communication.record(),
            },
        }
    }

    fn wait(&mut self, on: Stream, event: Event) -> Result<()> {
        if on == event.stream {
            return self.progress(on).check();
        }
        let completion = self.completion(event);
        self.wait_for(on, &completion)
    }

    fn completion(&mut self, event: Event) -> Completion {
        Completion::Host(HostCompletion::new(
            self.progress(event.stream),
            event.sequence,
        ))
    }

    fn wait_for(&mut self, on: Stream, completion: &Completion) -> Result<()> {
        match on {
            Stream::Compute => self.block(completion),
            Stream::Communication => self.communication.push(Command::Wait(completion.clone())),
        }
    }

    fn enqueue_host(
        &mut self,
        on: Stream,
        after: &Completion,
        task: &Arc<dyn HostTask>,
        call: HostCall,
    ) -> Result<Event> {
        match on {
            Stream::Compute => {
                self.block(after)?;
                let begin = crate::probe::now_ns();
                let run = task.run(&self.allocator.memory, call);
                run.map_err(|reason| {
                    self.compute.fail(reason.clone());
                    BackendError::Communication(reason)
                })?;
                Ok(self.reach(Some(begin)))
            }
            Stream::Communication => {
                let sequence = self
                    .communication
                    .host(after.clone(), Arc::clone(task), call)?;
                Ok(Event {
                    stream: on,
                    sequence,
                })
            }
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        let communication = self.communication.drain();
        self.compute.check()?;
        communication
    }

    fn time_ns(&mut self, event: Event) -> Result<u64> {
        Ok(self.progress(event.stream).times(event.sequence)?.1)
    }

    fn begin_ns(&mut self, event: Event) -> Result<u64> {
        Ok(self.progress(event.stream).times(event.sequence)?.0)
    }

    fn memory_use(&self) -> MemoryUse {
        self.allocator.by_category()
    }

    fn host_memory(&self) -> Option<HostMemory> {
        Some(self.allocator.memory.clone())
    }

    fn compute_threads(&self) -> usize {
        self.crew.as_ref().map_or(1, Crew::parts)
    }

    fn name(&self) -> &'static str {
        "cpu"
    }
}

/// Runs a kernel.
///
/// # Safety
/// Nobody else touches what the kernel writes, nobody writes what it reads.
pub(crate) unsafe fn execute(memory: &HostMemory, kernel: &Kernel) {
    // SAFETY: the caller's promise.
    unsafe { launch::run(memory, kernel) }
}
