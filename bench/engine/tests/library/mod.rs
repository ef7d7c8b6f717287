//! A CPU device that asks for batch norm by a library, and counts how often it was used.
#[path = "../delegate/mod.rs"]
mod delegate;

use std::sync::{Arc, Mutex};

use delegate::delegated;
use syncmark_engine::backend::cpu::CpuBackend;
use syncmark_engine::backend::{
    Backend, Category, Completion, Event, HostMemory, HostSlice, HostSliceMut, HostTask, MemoryUse,
    Result, Stream,
};
use syncmark_engine::comm::HostCall;
use syncmark_engine::kernel::Kernel;
use syncmark_engine::tensor::{Dtype, Span};

/// Calls of a library's batch norm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub forward: usize,
    pub backward: usize,
}

/// The device.
pub struct Asking {
    cpu: CpuBackend,
    calls: Arc<Mutex<Calls>>,
}

impl Asking {
    pub fn new(cpu: CpuBackend) -> Self {
        let calls = Arc::default();
        Self { cpu, calls }
    }

    /// The counters.
    pub fn calls(&self) -> Arc<Mutex<Calls>> {
        Arc::clone(&self.calls)
    }
}

impl Backend for Asking {
    delegated!(cpu);
    fn library_batch_norm(&self) -> bool {
        true
    }
    fn launch(&mut self, on: Stream, kernel: Kernel) -> Result<()> {
        let mut calls = self.calls.lock().unwrap();
        match kernel {
            Kernel::LibraryBatchNorm { .. } => calls.forward += 1,
            Kernel::LibraryBatchNormBackward { .. } => calls.backward += 1,
            _ => {}
        }
        drop(calls);
        self.cpu.launch(on, kernel)
    }
    fn host_memory(&self) -> Option<HostMemory> {
        self.cpu.host_memory()
    }
    fn name(&self) -> &'static str {
        self.cpu.name()
    }
}
