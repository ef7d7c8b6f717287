//! What the transport needs of a device, a rank's or one of a controller's: its stream, addresses, and a place for the reason of an abort.
//!
//! Contract: a GPU's, which is what there is outside of tests.
use std::sync::{Arc, OnceLock};

use super::library::RawStream;
use crate::backend::cuda::CudaBackend;
use crate::backend::cuda::stream::DeviceInterval;
use crate::backend::{Backend, Category, Event, Result, Stream};
use crate::tensor::{Dtype, Span};

/// Makes the device's context that of the calling thread.
pub(super) type Enter = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Where work is enqueued.
pub(super) struct Target<'a> {
    pub(super) stream: RawStream,
    /// Where a span lies; 0 for an empty one.
    pub(super) address: &'a dyn Fn(Span) -> u64,
}

/// What is on a GPU.
pub(super) trait OnGpu {
    /// See [`CudaBackend::loss`].
    fn loss(&self) -> Arc<OnceLock<String>>;
    fn enter(&self) -> Enter;
}

/// One of a controller's devices, for calls that one thread enqueues on the compute streams of all.
pub(super) trait Member: OnGpu {
    /// Number of its GPU.
    fn gpu(&self) -> usize;
    fn stream(&self) -> RawStream;
    /// Where a span lies; 0 for an empty one.
    fn address(&self, span: Span) -> u64;
    /// The call begins here.
    fn begin(&mut self) -> Result<()>;
    /// What has been enqueued since [`Member::begin`] was the call.
    fn end(&mut self) -> Result<Interval>;
}

/// A rank's device.
pub(super) trait Device: OnGpu {
    /// One number of 32 bits for NCCL to work on.
    fn scratch(&mut self) -> Result<Span>;
    /// Does what enqueues on the communication stream, after `after`.
    fn enqueue(
        &mut self,
        after: Event,
        work: &mut dyn FnMut(&Target<'_>) -> Result<()>,
    ) -> Result<(Event, Interval)>;
    /// For who waits for `end` on any thread; it need not have a begin.
    fn interval(&self, end: Event) -> Interval;
}

impl OnGpu for CudaBackend {
    fn loss(&self) -> Arc<OnceLock<String>> {
        Arc::clone(self.loss())
    }

    fn enter(&self) -> Enter {
        let gpu = Arc::clone(self.gpu());
        Arc::new(move || gpu.enter())
    }
}

impl Member for CudaBackend {
    fn gpu(&self) -> usize {
        CudaBackend::gpu(self).ordinal
    }

    fn stream(&self) -> RawStream {
        RawStream(self.raw_stream(Stream::Compute).cast())
    }

    fn address(&self, span: Span) -> u64 {
        match span.is_empty() {
            true => 0,
            false => CudaBackend::address(self, span),
        }
    }

    fn begin(&mut self) -> Result<()> {
        self.open(Stream::Compute)
    }

    fn end(&mut self) -> Result<Interval> {
        let event = self.close(Stream::Compute)?;
        Ok(Interval::Device(self.interval(event)))
    }
}

impl Device for CudaBackend {
    fn scratch(&mut self) -> Result<Span> {
        self.allocate(Category::Workspace, Dtype::I32, 1)
    }

    fn enqueue(
        &mut self,
        after: Event,
        work: &mut dyn FnMut(&Target<'_>) -> Result<()>,
    ) -> Result<(Event, Interval)> {
        let after = self.completion(after);
        let event = CudaBackend::enqueue(self, Stream::Communication, &after, |device| {
            work(&Target {
                stream: RawStream(device.raw_stream(Stream::Communication).cast()),
                address: &|span| device.address(span),
            })
        })?;
        Ok((event, Device::interval(self, event)))
    }

    fn interval(&self, end: Event) -> Interval {
        Interval::Device(CudaBackend::interval(self, end))
    }
}

/// A call from its begin to its end on the device.
#[derive(Clone)]
pub(super) enum Interval {
    Device(DeviceInterval),
    #[cfg(test)]
    Fake(super::fake::FakeInterval),
}

impl Interval {
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Device(interval) => interval.is_done(),
            #[cfg(test)]
            Self::Fake(interval) => interval.is_done(),
        }
    }

    /// What the device has failed at, if it will never be over.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Device(interval) => interval.failure().map(|error| error.to_string()),
            #[cfg(test)]
            Self::Fake(interval) => interval.failure(),
        }
    }

    /// None before it is over, and none once the device has forgotten.
    pub(super) fn elapsed_ns(&self) -> Option<u64> {
        match self {
            Self::Device(interval) => interval.elapsed_ns(),
            #[cfg(test)]
            Self::Fake(interval) => interval.elapsed_ns(),
        }
    }
}
