//! What the transport needs of a rank's device: its communication stream, addresses, and a place for the reason of an abort.
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

/// A rank's device.
pub(super) trait Device {
    /// See [`CudaBackend::loss`].
    fn loss(&self) -> Arc<OnceLock<String>>;
    fn enter(&self) -> Enter;
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

impl Device for CudaBackend {
    fn loss(&self) -> Arc<OnceLock<String>> {
        Arc::clone(self.loss())
    }

    fn enter(&self) -> Enter {
        let gpu = Arc::clone(self.gpu());
        Arc::new(move || gpu.enter())
    }

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

    /// None before it is over, and none once the device has forgotten.
    pub(super) fn elapsed_ns(&self) -> Option<u64> {
        match self {
            Self::Device(interval) => interval.elapsed_ns(),
            #[cfg(test)]
            Self::Fake(interval) => interval.elapsed_ns(),
        }
    }
}
