//! A device that writes down which steps were captured and which were replayed, in front of one that does it.
#![allow(dead_code, reason = "each test binary uses its part")]
#[path = "../delegate/mod.rs"]
mod delegate;

use std::sync::{Arc, Mutex};

use delegate::delegated;
use syncmark_engine::backend::cuda::CudaBackend;
use syncmark_engine::backend::{
    Backend, Captured, Category, Completion, Event, HostMemory, HostSlice, HostSliceMut, HostTask,
    MemoryUse, Result, Stream,
};
use syncmark_engine::comm::HostCall;
use syncmark_engine::kernel::Kernel;
use syncmark_engine::tensor::{Dtype, Span};

/// What a device was asked for, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Capture,
    /// Of which capture, by number.
    Replay(usize),
}

/// The device of a rank, and what it has done.
pub struct Captures {
    inner: Box<dyn Backend>,
    pub ways: Arc<Mutex<Vec<Way>>>,
    known: Vec<Captured>,
}

impl Captures {
    pub fn new(inner: Box<dyn Backend>) -> Self {
        Self {
            inner,
            ways: Arc::default(),
            known: Vec::new(),
        }
    }
}

impl Backend for Captures {
    delegated!(inner);
    fn begin_capture(&mut self) -> Result<()> {
        self.ways.lock().unwrap().push(Way::Capture);
        self.inner.begin_capture()
    }
    fn end_capture(&mut self) -> Result<Captured> {
        let captured = self.inner.end_capture()?;
        self.known.push(captured);
        Ok(captured)
    }
    fn replay(&mut self, captured: Captured) -> Result<()> {
        let number = self.known.iter().position(|known| *known == captured);
        let replay = Way::Replay(number.expect("it was captured here"));
        self.ways.lock().unwrap().push(replay);
        self.inner.replay(captured)
    }
    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()> {
        self.inner.launch(on, kernel)
    }
    fn host_memory(&self) -> Option<HostMemory> {
        self.inner.host_memory()
    }
    fn cuda(&mut self) -> Option<&mut CudaBackend> {
        self.inner.cuda()
    }
    fn values(&self) -> Dtype {
        self.inner.values()
    }
    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
