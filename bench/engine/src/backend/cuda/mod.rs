//! An NVIDIA GPU as a device. Nothing is linked: libraries are found when a device is made ([`library`]).
//!
//! Contract: [`crate::backend::Backend`]'s. Everything enqueues on one of two streams of the device's own; the host blocks in `download`,
//! in `synchronize`, and where an upload finds all of its pinned memory under way. Several devices may share one GPU. Results are the
//! same from call to call: no kernel of ours adds atomically where order matters, and only deterministic algorithms of cuDNN are taken. Of
//! its batch norm, which computes where it is asked for, cuDNN does not say.
//! A call that fails makes the device fail for good: CUDA's errors are sticky.
//! Reference: CUDA driver API; [`crate::kernel::Kernel`] for what each kernel computes.
pub(crate) mod api;
mod blas;
mod blas_lt;
pub mod choice;
pub mod compile;
pub mod discovery;
mod dnn;
pub(crate) mod gpu;
mod graph;
mod host;
mod launch;
pub mod library;
mod memory;
mod module;
pub mod nvtx;
mod settings;
pub mod stream;

use crate::backend::cuda::api::driver;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys::{CUdeviceptr, CUstream};

use crate::backend::{
    Backend, BackendError, Captured, Category, Completion, Event, HostSlice, HostSliceMut,
    HostTask, MemoryUse, Result, Stream,
};
use crate::comm::HostCall;
use crate::kernel::Kernel;
use crate::tensor::{Dtype, Span};
use blas::Blas;
use choice::Choice;
use dnn::Dnn;
use gpu::{Gpu, check};
use graph::{Capture, Graph};
use host::{of_slice, of_slice_mut};
pub(crate) use memory::Directory;
use memory::{Memory, Scratch, Staging};
pub use settings::{BatchNormBy, CudaDevice, Matmul, Precision};
use stream::{Clock, DeviceCompletion, DeviceInterval, Queue};

/// What cannot be a part of a step that is captured.
const IN_CAPTURE: BackendError = BackendError::Unsupported(
    "anything but kernels and collectives, in an order of their own, in a step that is captured",
);

/// A device on a GPU.
pub struct CudaBackend {
    failure: Option<BackendError>,
    precision: Precision,
    batch_norm: BatchNormBy,
    /// Why a collective that ran here was stopped, by whoever stopped it, on any thread.
    loss: Arc<OnceLock<String>>,
    graphs: Vec<Graph>,
    /// What the compute stream captures.
    capturing: Option<Capture>,
    // Handles go before the streams that they were given, all of it before the memory. Pairs are indexed by [`Stream`].
    blas: [Blas; 2],
    dnn: Dnn,
    queues: [Queue; 2],
    clock: Clock,
    scratch: [Scratch; 2],
    staging: [Staging; 2],
    memory: Memory,
    gpu: Arc<Gpu>,
}

// SAFETY: handles of streams, events and libraries may be used on any thread, by one at a time, which `&mut self` has them be.
unsafe impl Send for CudaBackend {}

impl CudaBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// A library that is missing, no such GPU, no memory.
    pub fn new(device: CudaDevice) -> Result<Self> {
        let gpu = Gpu::get(device.ordinal)?;
        gpu.enter()?;
        if device.precision == Precision::Bf16 {
            gpu.kernels.load_narrow()?;
        }
        if device.batch_norm == BatchNormBy::Cudnn {
            api::cudnn_norm::load()?;
            dnn::batch_norm::load_parts()?;
        }
        let queues = [Queue::new(&gpu)?, Queue::new(&gpu)?];
        let mut memory = Memory::new(&gpu);
        let clock = Clock::new(&gpu, &queues[0])?;
        let products = (device.precision, device.matmul);
        let blas = [
            Blas::new(queues[0].raw, products, &mut memory)?,
            Blas::new(queues[1].raw, products, &mut memory)?,
        ];
        Ok(Self {
            failure: None,
            precision: device.precision,
            batch_norm: device.batch_norm,
            loss: Arc::default(),
            graphs: Vec::new(),
            capturing: None,
            clock,
            scratch: [Scratch::default(), Scratch::default()],
            dnn: Dnn::new(queues[0].raw, device.precision)?,
            blas,
            staging: [Staging::new(&gpu)?, Staging::new(&gpu)?],
            queues,
            memory,
            gpu,
        })
    }

    /// Where a span lies on the GPU.
    pub(crate) fn address(&self, span: Span) -> CUdeviceptr {
        self.memory.address(span)
    }

    /// A stream, for libraries that enqueue on it themselves.
    pub(crate) fn raw_stream(&self, on: Stream) -> CUstream {
        self.queues[on as usize].raw
    }

    /// Where this device's memory lies, also while another thread has the device.
    pub(crate) fn directory(&self) -> Directory {
        self.memory.directory.clone()
    }

    /// The GPU that this device is on.
    pub(crate) fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Where whoever stops a collective on this device leaves the reason, before it stops it: a kernel that is told to leave ends as if
    /// all were well, so that CUDA knows of no failure. From then on every call fails with it.
    pub(crate) fn loss(&self) -> &Arc<OnceLock<String>> {
        &self.loss
    }

    /// From begin to end of what [`CudaBackend::enqueue`] returned `event` for.
    pub(crate) fn interval(&self, event: Event) -> DeviceInterval {
        self.queues[event.stream as usize].interval(event.sequence)
    }

    /// Does what enqueues on `on` between two events, after `after`; returns the event of its end, whose begin is told as well.
    pub(crate) fn enqueue(
        &mut self,
        on: Stream,
        after: &Completion,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Event> {
        self.wait_for(on, after)?;
        self.guard(|device| {
            // What is captured has no times.
            if device.capturing.is_none() {
                device.queues[on as usize].open()?;
            }
            work(device)?;
            device.queues[on as usize].record().map(|sequence| Event {
                stream: on,
                sequence,
            })
        })
    }

    /// Marks on `on` where the work begins that [`CudaBackend::close`] ends, for who enqueues on several devices as one.
    pub(crate) fn open(&mut self, on: Stream) -> Result<()> {
        self.outside()?;
        self.guard(|device| device.queues[on as usize].open())
    }

    /// The event of the end of what was enqueued since [`CudaBackend::open`], whose begin is told as well.
    pub(crate) fn close(&mut self, on: Stream) -> Result<Event> {
        self.guard(|device| {
            device.queues[on as usize].record().map(|sequence| Event {
                stream: on,
                sequence,
            })
        })
    }

    /// Refuses what a graph cannot hold, before the driver does, which would end the capture.
    fn outside(&self) -> Result<()> {
        match self.capturing {
            Some(_) => Err(IN_CAPTURE),
            None => Ok(()),
        }
    }

    /// Refuses what a capture under way would not notice.
    fn takes_part(&self, on: Stream) -> Result<()> {
        match &self.capturing {
            Some(capture) if on == Stream::Communication && !capture.forked => Err(IN_CAPTURE),
            _ => Ok(()),
        }
    }

    /// Lets `on` wait for event `sequence` of this device's stream `of`; while a step is captured, only if that is a part of it.
    fn order(&mut self, on: Stream, of: Stream, sequence: u64) -> Result<()> {
        if on == of {
            return self.takes_part(on);
        }
        if let Some(capture) = &mut self.capturing {
            if !capture.holds(of, sequence) {
                return Err(IN_CAPTURE);
            }
            capture.forked |= on == Stream::Communication;
        }
        let event = self.queues[of as usize].completion(sequence);
        self.queues[on as usize].wait(&event)
    }

    /// Which of this device's streams `completion` is an event of.
    fn stream_of(&self, completion: &DeviceCompletion) -> Option<Stream> {
        let streams = [Stream::Compute, Stream::Communication];
        let own = |stream: &Stream| self.queues[*stream as usize].has_made(completion);
        streams.into_iter().find(own)
    }

    /// Ends the capture of the compute stream, with all that the communication stream has in it.
    fn end_graph(&mut self, capture: &Capture) -> Result<Graph> {
        self.gpu.enter()?;
        let [compute, communication] = &mut self.queues;
        let joined = match capture.forked {
            true => communication
                .record()
                .and_then(|last| compute.wait(&communication.completion(last))),
            false => Ok(()),
        };
        // Also after a failure: the stream would write down for ever.
        let graph = Graph::end(&self.gpu, compute.raw, capture.forked);
        joined.and(graph)
    }

    /// Runs what may fail, unless something has failed before; its failure stays.
    fn guard<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let lost = |device: &Self| match device.loss.get() {
            Some(reason) => Err(BackendError::Communication(reason.clone())),
            None => Ok(()),
        };
        let ready = lost(self).and_then(|()| self.gpu.enter());
        let out = ready.and_then(|()| work(self));
        // What ran while a collective was stopped has used what that left behind.
        let out = lost(self).and(out);
        if let Err(error) = &out
            && !matches!(
                error,
                BackendError::Unsupported(_) | BackendError::OutOfMemory { .. }
            )
        {
            self.failure = Some(error.clone());
        }
        out
    }
}

impl Backend for CudaBackend {
    fn allocate(&mut self, category: Category, dtype: Dtype, len: usize) -> Result<Span> {
        self.outside()?;
        self.guard(|device| {
            let (span, base) = device.memory.allocate(category, dtype, len)?;
            let queue = &mut device.queues[Stream::Compute as usize];
            if span.bytes() > 0 {
                // SAFETY: the arena is new.
                let zeroed = unsafe { driver::cuMemsetD8Async(base, 0, span.bytes(), queue.raw) };
                check(zeroed, "failed to zero memory on the GPU")?;
            }
            // The other stream may be the first to use it.
            queue.synchronize()?;
            Ok(span)
        })
    }

    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()> {
        self.takes_part(on)?;
        self.guard(|device| launch::run(device, on, &kernel))
    }

    fn launch_both(&mut self, on: Stream, kernels: [Kernel; 2]) -> Result<()> {
        if on == Stream::Communication {
            self.outside()?;
        }
        self.guard(|device| launch::run_both(device, on, &kernels))
    }

    fn upload(&mut self, on: Stream, from: HostSlice<'_>, to: Span) -> Result<()> {
        let (dtype, from) = of_slice(from);
        assert!(
            dtype == to.dtype() && from.len() == to.bytes(),
            "{} bytes of {dtype:?} do not fill {to:?}",
            from.len()
        );
        if from.is_empty() {
            return Ok(());
        }
        self.outside()?;
        self.guard(|device| {
            let (stream, to) = (device.raw_stream(on), device.address(to));
            device.staging[on as usize].upload(stream, from, to)
        })
    }

    fn download(&mut self, from: Span, to: HostSliceMut<'_>) -> Result<()> {
        self.synchronize()?;
        let (dtype, to, bytes) = of_slice_mut(to);
        assert!(
            dtype == from.dtype() && bytes == from.bytes(),
            "{from:?} does not fill {bytes} bytes of {dtype:?}"
        );
        if bytes == 0 {
            return Ok(());
        }
        self.guard(|device| {
            // SAFETY: the host's slice is as long, and nobody else has it; both streams are empty.
            let copied = unsafe { driver::cuMemcpyDtoH_v2(to, device.address(from), bytes) };
            check(copied, "failed to copy from the GPU")
        })
    }

    fn record(&mut self, on: Stream) -> Event {
        // A failure here is told by whatever comes next.
        let recorded = self.guard(|device| device.queues[on as usize].record());
        Event {
            stream: on,
            sequence: recorded.unwrap_or(self.queues[on as usize].recorded),
        }
    }

    fn wait(&mut self, on: Stream, event: Event) -> Result<()> {
        self.guard(|device| device.order(on, event.stream, event.sequence))
    }

    fn completion(&mut self, event: Event) -> Completion {
        Completion::Device(self.queues[event.stream as usize].completion(event.sequence))
    }

    fn wait_for(&mut self, on: Stream, completion: &Completion) -> Result<()> {
        if let Completion::Device(own) = completion
            && let Some(of) = self.stream_of(own)
        {
            return self.guard(|device| device.order(on, of, own.sequence()));
        }
        self.outside()?;
        self.guard(|device| match completion {
            Completion::Device(other) => device.queues[on as usize].wait(other),
            // What a thread of the host has not done, only a thread of the host can wait for.
            Completion::Host(other) => other.wait(),
        })
    }

    fn enqueue_host(
        &mut self,
        _: Stream,
        _: &Completion,
        _: &Arc<dyn HostTask>,
        _: HostCall,
    ) -> Result<Event> {
        Err(BackendError::Unsupported(
            "work of the host on memory of a GPU",
        ))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.outside()?;
        self.guard(|device| {
            for queue in &mut device.queues {
                queue.synchronize()?;
            }
            let next = [0, 1].map(|stream| device.queues[stream].recorded + 1);
            device.clock.keep(&device.queues[0], next)
        })
    }

    fn time_ns(&mut self, event: Event) -> Result<u64> {
        self.guard(|device| {
            let stream = event.stream as usize;
            let times = device.queues[stream].times(event.sequence, &device.clock, stream);
            times.map(|(_, end)| end)
        })
    }

    fn begin_ns(&mut self, event: Event) -> Result<u64> {
        self.guard(|device| {
            let stream = event.stream as usize;
            let times = device.queues[stream].times(event.sequence, &device.clock, stream);
            times.map(|(begin, _)| begin)
        })
    }

    fn begin_capture(&mut self) -> Result<()> {
        self.outside()?;
        self.guard(|device| {
            graph::begin(device.raw_stream(Stream::Compute))?;
            device.memory.fix(true);
            let before = [0, 1].map(|stream| device.queues[stream].recorded);
            device.capturing = Some(Capture::new(before));
            Ok(())
        })
    }

    fn end_capture(&mut self) -> Result<Captured> {
        let nothing = BackendError::Unsupported("the end of a capture that was not begun");
        let capture = self.capturing.take().ok_or(nothing)?;
        self.memory.fix(false);
        let graph = self.end_graph(&capture);
        self.guard(|device| {
            device.graphs.push(graph?);
            Ok(Captured(device.graphs.len() - 1))
        })
    }

    fn replay(&mut self, captured: Captured) -> Result<()> {
        self.outside()?;
        self.guard(|device| {
            let graph = &device.graphs[captured.0];
            let [compute, communication] = &mut device.queues;
            if !graph.forked {
                return graph.launch(compute.raw);
            }
            // Collectives in the graph keep their order among those outside of it.
            let before = communication.record()?;
            compute.wait(&communication.completion(before))?;
            graph.launch(compute.raw)?;
            let end = compute.record()?;
            communication.wait(&compute.completion(end))
        })
    }

    fn memory_use(&self) -> MemoryUse {
        self.memory.by_category()
    }

    fn cuda(&mut self) -> Option<&mut CudaBackend> {
        Some(self)
    }

    fn values(&self) -> Dtype {
        self.precision.values()
    }

    fn library_batch_norm(&self) -> bool {
        self.batch_norm == BatchNormBy::Cudnn
    }

    fn choices(&self) -> Vec<Choice> {
        let mut all = self.dnn.choices();
        all.extend(self.blas.iter().flat_map(Blas::choices));
        all
    }

    fn name(&self) -> &'static str {
        "cuda"
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Memory and events must not go while kernels use them; what failed was said before.
        if self.gpu.enter().is_ok() {
            for queue in &mut self.queues {
                let _ = queue.synchronize();
            }
            // NCCL does not end a communicator before the graphs that have its calls in them are gone.
            self.graphs.clear();
        }
    }
}
